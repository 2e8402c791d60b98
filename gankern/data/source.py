"""Where images come from: a folder or a zip, listed in a fixed order and read by name. Decoding lives in decode.py."""

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from gankern.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif")
LABELS_FILE = "dataset.json"
READ_ERRORS = (OSError, EOFError, RuntimeError, NotImplementedError, KeyError, zipfile.BadZipFile, zlib.error)

Item = TypeVar("Item")


class Entry(NamedTuple):
    """One image file: its name relative to the source with forward slashes, its size, and its mtime (ns) or CRC."""

    name: str
    size: int
    stamp: int


class FolderSource:
    """The image files of a folder and all folders below it."""

    def __init__(self, path: Path):
        self.path = path
        self.entries = sorted(_walk(path))
        self.fingerprint = str(path.resolve())  # mtimes alone don't tell two folders apart

    def open(self, name: str) -> BinaryIO:
        return open(self.path / name, "rb")

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def tail(self, entry: Entry, count: int) -> bytes | None:
        """The last bytes of a file; None where only reading the whole of it would tell."""
        with self.open(entry.name) as file:
            file.seek(max(0, entry.size - count))
            return file.read()

    def place(self, name: str) -> tuple[Path, int, int] | None:
        """Path, offset and size of the bytes of any file of the source, image or not; None where it isn't there."""
        path = self.path / name
        return (path, 0, path.stat().st_size) if path.is_file() else None

    def read_labels(self) -> bytes | None:
        path = self.path / LABELS_FILE
        return path.read_bytes() if path.is_file() else None


class ZipSource:
    """The image files of a zip. Every process opens the zip for itself, so that no two share a file position."""

    fingerprint = ""  # the CRCs of the entries are enough, wherever the zip lies

    def __init__(self, path: Path):
        self.path = path
        self._zip, self._owner = None, 0
        infos = [info for info in self._archive().infolist() if not info.is_dir()]
        for info in infos:
            if not _is_safe(info.filename):
                raise InputError(f"{path}: refused, the zip holds a name that leads outside of it: {info.filename!r}")
        self.entries = sorted(
            Entry(info.filename, info.file_size, info.CRC) for info in infos if _is_image(info.filename)
        )

    def open(self, name: str) -> BinaryIO:
        return self._archive().open(name)

    def read(self, name: str) -> bytes:
        return self._archive().read(name)

    def tail(self, entry: Entry, count: int) -> bytes | None:
        return None

    def place(self, name: str) -> tuple[Path, int, int] | None:
        """As of a folder. ValueError for a file that is compressed, and so lies nowhere as it is."""
        info = self._archive().NameToInfo.get(name)
        if info is None:
            return None
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:  # bit 0: encrypted
            raise ValueError(f"{name} is compressed in this zip, and of use only without compression")
        with open(self.path, "rb") as file:
            file.seek(info.header_offset)
            header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise zipfile.BadZipFile(f"{name} isn't where the zip says")
        return self.path, info.header_offset + 30 + sum(struct.unpack("<HH", header[26:])), info.file_size

    def read_labels(self) -> bytes | None:
        return self.read(LABELS_FILE) if LABELS_FILE in self._archive().NameToInfo else None

    def _archive(self) -> zipfile.ZipFile:
        if self._owner != os.getpid():
            try:
                self._zip = zipfile.ZipFile(self.path)
            except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
                raise InputError(f"{self.path}: not a readable zip ({error})") from error
            self._owner = os.getpid()
        return self._zip

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_zip": None, "_owner": 0}


Source = FolderSource | ZipSource


def open_source(path: str | os.PathLike) -> Source:
    """Lists the images of a folder (with its subfolders) or of a zip, sorted by name.

    Hidden files and names without a known image suffix are passed over. InputError: no such path, no zip,
    a zip with '..' or absolute names, no image in it.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir():
        source = FolderSource(path)
    elif zipfile.is_zipfile(path) or path.suffix.lower() == ".zip":
        source = ZipSource(path)
    else:
        raise InputError(f"{path}: expected a folder or a zip of images")
    if not source.entries:
        raise InputError(f"{path}: no images found, expected PNG, JPEG or WebP files")
    return source


def spread(entries: Sequence[Item], count: int | None) -> list[Item]:
    """At most `count` entries, evenly spread over the list so that sorted classes are all represented."""
    if count is None or count >= len(entries):
        return list(entries)
    if count < 1:
        raise InputError(f"--max-images: expected at least 1, got {count}")
    return [entries[i * len(entries) // count] for i in range(count)]


def _walk(folder: Path, prefix: str = "", above: tuple[str, ...] = ()) -> Iterator[Entry]:
    above = (*above, os.path.realpath(folder))
    for item in os.scandir(folder):
        if item.is_dir():
            if not _is_hidden(item.name) and os.path.realpath(item.path) not in above:  # a link up would never end
                yield from _walk(Path(item.path), f"{prefix}{item.name}/", above)
        elif _is_image(item.name) and item.is_file():
            stat = item.stat()
            yield Entry(prefix + item.name, stat.st_size, stat.st_mtime_ns)


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not any(_is_hidden(part) for part in name.split("/"))


def _is_safe(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return ".." not in parts and parts[0] != "" and ":" not in parts[0]
