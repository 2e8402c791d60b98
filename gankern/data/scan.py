"""Looks over the images of a source before any work: which are bad, how large they are, how they will be converted."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gankern.data.decode import BadImage, Header, decode, looks_whole, read_header
from gankern.data.parallel import Progress, ordered_map
from gankern.data.source import READ_ERRORS, Entry, Source
from gankern.errors import InputError

TAIL_BYTES = 64
NAMES_IN_A_LINE = 10


@dataclass
class Scan:
    """The usable images with their headers, and the bad ones as (name, reason)."""

    good: list[tuple[Entry, Header]] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)

    def conversions(self) -> dict[str, int]:
        """How many images need each kind of conversion."""
        return dict(Counter(kind for _, header in self.good for kind in header.conversions))


def scan(
    source: Source,
    entries: Sequence[Entry],
    *,
    skip_bad: bool,
    thorough: bool = False,
    progress: Progress | None = None,
) -> Scan:
    """Reads all headers and, where a file's end looks cut off or if `thorough`, all pixels.

    InputError names the bad images, unless `skip_bad`; also with it where none is left.
    """
    result = Scan()
    look = ordered_map if thorough else map
    for done, (entry, seen) in enumerate(look(lambda entry: (entry, _look(source, entry, thorough)), entries), 1):
        if isinstance(seen, Header):
            result.good.append((entry, seen))
        else:
            result.bad.append((entry.name, seen))
        if progress:
            progress(done, len(entries))
    if result.bad and not skip_bad:
        raise bad_images(source.path, result.bad, len(entries))
    if not result.good:
        raise InputError(f"{source.path}: every image is bad: {listed(result.bad)}")
    return result


def bad_images(path: Path, bad: Sequence[tuple[str, str]], total: int) -> InputError:
    """The error that lists bad images by name."""
    return InputError(
        f"{path}: {len(bad)} of {total} images can't be used: {listed(bad)}; --skip-bad goes on without them"
    )


def listed(bad: Sequence[tuple[str, str]]) -> str:
    """'a.png (truncated), b.gif (animated) and 5 more'."""
    text = ", ".join(f"{name} ({reason})" for name, reason in bad[:NAMES_IN_A_LINE])
    return text + (f" and {len(bad) - NAMES_IN_A_LINE} more" if len(bad) > NAMES_IN_A_LINE else "")


def _look(source: Source, entry: Entry, thorough: bool) -> Header | str:
    try:
        with source.open(entry.name) as file:
            header = read_header(file)
        tail = source.tail(entry, TAIL_BYTES)
        if thorough or (tail is not None and not looks_whole(tail, entry.name)):
            decode(source.read(entry.name))
        return header
    except BadImage as error:
        return str(error)
    except READ_ERRORS as error:
        return f"can't be read: {error}"
