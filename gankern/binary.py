"""The compiled kernels: where they are looked for, and what they were made of. Standard library alone, no compiler."""

import hashlib
import json
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

NAMES = {"cuda": "_cuda.abi3.so", "host": "gankern_host.so"}
_HERE = Path(__file__).resolve().parent


def csrc_dir() -> Path:
    """The folder of the sources: inside an installed package, beside the package in a checkout."""
    inside = _HERE / "csrc"
    return inside if inside.is_dir() else _HERE.parent / "csrc"


def cache_dir() -> Path:
    """$GANKERN_CACHE, or ~/.cache/gankern. May be deleted at any time."""
    return Path(os.environ.get("GANKERN_CACHE") or "~/.cache/gankern").expanduser()


def package_version() -> str:
    """gankern's."""
    return re.search(r'__version__ = "(.+)"', (_HERE / "_version.py").read_text())[1]


def digest(*parts: object) -> str:
    """A short hash of things whose repr says all."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def source_files(folder: Path) -> list[Path]:
    """Sources and headers in a folder, in a fixed order."""
    return sorted(p for p in folder.rglob("*") if p.suffix in (".cu", ".cuh", ".h"))


def fingerprint(folder: Path, more: Sequence[Path] = ()) -> str:
    """A hash of what a library is made of: sources, how they are built, gankern's version; the same in any place."""
    contents = [(p.relative_to(folder).as_posix(), p.read_bytes()) for p in source_files(folder)]
    how = (_HERE / "build.py").read_bytes()
    return digest(package_version(), how, contents, [(p.name, p.read_bytes()) for p in more])


def record_path(library: Path) -> Path:
    """Where the record of a library lies."""
    return library.with_name(library.name.split(".")[0] + ".json")


def record(library: Path) -> dict | None:
    """How a library was built: versions, architectures, date, flags. None: it is missing, or has no legible record."""
    try:
        found = json.loads(record_path(library).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and library.is_file() else None


def runs_on(archs: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether code for architectures such as ("8.0", "9.0a", "12.0+PTX") runs on a GPU."""
    for arch in archs:
        major, minor, kind, ptx = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", arch).groups()
        built = int(major), int(minor)
        if built == capability or (built[0] == capability[0] and built < capability and kind != "a"):
            return True
        if ptx and not kind and built < capability:
            return True
    return False


def search(capability: tuple[int, int] | None = None) -> tuple[Path | None, str]:
    """The CUDA library to load, for a GPU of that compute capability where it is given, and where it comes from.

    None and the reason where there is none: one of other sources isn't taken. Takes milliseconds.
    """
    if given := os.environ.get("GANKERN_CUDA_LIB"):
        found = Path(given).is_file()
        return (Path(given) if found else None), f"GANKERN_CUDA_LIB={given}" + ("" if found else ": no such file")
    places = [_HERE, *(cache_dir() / "build").glob("*")]
    known = [(place / NAMES["cuda"], record(place / NAMES["cuda"])) for place in places]
    known = [(library, made) for library, made in known if made and made.get("machine") == platform.machine()]
    if not known:
        return None, "not built: run gankern build"
    wanted = fingerprint(csrc_dir())
    known = [(library, made) for library, made in known if made.get("sources") == wanted]
    if not known:
        return None, "stale, built from other sources: run gankern build"
    fitting = [one for one in known if capability is None or runs_on(one[1]["archs"], capability)]
    if not fitting:
        archs = sorted({arch for _, made in known for arch in made["archs"]})
        return None, f"built for {', '.join(archs)}, not for {capability[0]}.{capability[1]}: run gankern build"
    best = max(fitting, key=lambda one: (one[0].parent == _HERE, one[0].stat().st_mtime))[0]
    return best, "part of the package" if best.parent == _HERE else "made by gankern build"


def find(capability: tuple[int, int] | None = None) -> Path | None:
    """The CUDA library to load; see `search`."""
    return search(capability)[0]
