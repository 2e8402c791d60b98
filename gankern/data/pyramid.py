"""The box-downsampled levels that `prepare(pyramid=True)` stores beside the images, one array a level.

    pyramid/4.npy ... pyramid/<R/2>.npy   uint8 [N, 3, r, r], row i of the i-th image by name, never compressed
    pyramid/index.json                    which images the levels were made of

No file of it has an image's suffix, so that this and other tools see the full-resolution images alone. Each level is
reduced from the full resolution, as `ImageDataset` reduces images where no level is stored: to the same bytes.
"""

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from gankern.data.decode import DECODE_VERSION
from gankern.data.source import READ_ERRORS, FolderSource, Source

FORMAT = 1
FOLDER = "pyramid"
INDEX = f"{FOLDER}/index.json"
CHANNELS = 3
HEADER_BYTES = 128  # of a level's .npy, whatever its number of images

Levels = dict[int, np.ndarray]  # by resolution: uint8 [C, r, r]

log = logging.getLogger(__name__)


def pixels(image: Image.Image) -> np.ndarray:
    """uint8 [C, H, W] of an RGB image."""
    flat = np.asarray(image).reshape(-1, CHANNELS)  # flat, the copy below is three times as fast
    return flat.T.copy().reshape(CHANNELS, image.height, image.width)


def level_resolutions(resolution: int) -> list[int]:
    """The levels below a resolution, coarsest first: 32 -> [4, 8, 16]."""
    return [1 << i for i in range(2, resolution.bit_length() - 1)]


def reduced(image: Image.Image) -> Levels:
    """All levels of a square RGB image."""
    return {r: pixels(image.reduce(image.width // r)) for r in level_resolutions(image.width)}


class PyramidWriter:
    """Takes the levels of image after image, then hands them on as files. Made by `DatasetWriter`.

    The rows lie in nameless temporary files in `folder` until then, because a zip takes one file after the other.
    """

    def __init__(self, folder: Path):
        self.count = 0
        self._folder, self._files, self._images = folder, {}, []
        self._open = ExitStack()

    def add(self, name: str, data: bytes, levels: Levels) -> None:
        """The levels of the next image, and the name and content of its file."""
        for resolution, level in levels.items():
            if resolution not in self._files:
                file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
                file.write(bytes(HEADER_BYTES))
                self._files[resolution] = self._open.enter_context(file)
            self._files[resolution].write(level.data)
        self._images.append((name, len(data), zlib.crc32(data)))
        self.count += 1

    def finish(self, create: Callable[[str], BinaryIO]) -> None:
        """Writes all to the files that `create(name)` opens; the index last, it is what makes the rest count."""
        for resolution in sorted(self._files):
            with self._files.pop(resolution) as file, create(f"{FOLDER}/{resolution}.npy") as out:
                file.seek(0)
                file.write(_header((self.count, CHANNELS, resolution, resolution)))
                file.seek(0)
                shutil.copyfileobj(file, out, 1 << 20)
        index = {"format": FORMAT, "decode": DECODE_VERSION, "images": self.count, **_digests(self._images)}
        with create(INDEX) as out:
            out.write(json.dumps(index).encode())

    def close(self) -> None:
        """Drops what hasn't been handed on."""
        self._open.close()


class Level:
    """One stored level, mapped anew in each process that asks for it."""

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...]):
        self._place, self._array = (path, offset, shape), None

    @property
    def array(self) -> np.ndarray:
        """uint8 [N, C, r, r], read-only. OSError if its file is no longer there."""
        if self._array is None:
            path, offset, shape = self._place
            try:
                self._array = np.memmap(path, np.uint8, "r", offset, shape)
            except ValueError as error:
                raise OSError(f"{path} has shrunk since the dataset was opened") from error
        return self._array

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_array": None}  # else its pickle would hold all images


def find_level(source: Source, resolution: int) -> Level | None:
    """The level of that resolution, of all images of the source; None, with a warning where there is one that can't
    be used: made of other images than those that are there, damaged, or compressed."""
    name, shape = f"{FOLDER}/{resolution}.npy", (len(source.entries), CHANNELS, resolution, resolution)
    try:
        if source.place(INDEX) is None or source.place(name) is None:
            return None
        _check_index(source)
        return Level(*_check_array(source, name, shape), shape)
    except (*READ_ERRORS, ValueError) as error:
        log.warning("%s: its pyramid isn't used, images are decoded and reduced instead: %s", source.path, error)
        return None


def _check_index(source: Source) -> None:
    """ValueError unless the pyramid is of these images."""
    kind = "sizes" if isinstance(source, FolderSource) else "contents"
    try:
        index = json.loads(source.read(INDEX))
        version, count, digest = (index["format"], index["decode"]), index["images"], index[kind]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{INDEX} isn't what 'gankern data prepare' writes ({error!r})") from None
    if version != (FORMAT, DECODE_VERSION):
        raise ValueError("it was made by another version of gankern")
    if count != len(source.entries):
        raise ValueError(f"it was made of {count} images, and there are {len(source.entries)}")
    if digest != _digests(source.entries)[kind]:
        raise ValueError("it was made of other images")
    if isinstance(source, FolderSource):  # lists no checksums, so an image may have changed and kept its size
        path = source.path / INDEX
        made = path.stat().st_mtime_ns
        late = next((entry.name for entry in source.entries if entry.stamp > made), None)
        if late is not None:
            raise ValueError(f"{late} is newer than {path}; 'touch' that if no image has changed")


def _check_array(source: Source, name: str, shape: tuple[int, ...]) -> tuple[Path, int]:
    """Where the values begin. ValueError unless they are uint8 of that shape."""
    path, offset, size = source.place(name)
    with open(path, "rb") as file:
        whole = size == HEADER_BYTES + math.prod(shape) and file.seek(0, os.SEEK_END) >= offset + size
        file.seek(offset)
        if not whole or file.read(HEADER_BYTES) != _header(shape):
            raise ValueError(f"{name} isn't an array of {list(shape)}, or is cut off")
    return path, offset + HEADER_BYTES


def _header(shape: tuple[int, ...]) -> bytes:
    """The first bytes of a .npy file of uint8."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(HEADER_BYTES - 11)
    return np.lib.format.magic(1, 0) + (HEADER_BYTES - 10).to_bytes(2, "little") + text.encode() + b"\n"


def _digests(images: Iterable[tuple[str, int, int]]) -> dict[str, str]:
    """Hashes of (name, size, CRC) of image files: with the CRCs, and without."""
    contents, sizes = hashlib.sha256(), hashlib.sha256()
    for name, size, crc in images:
        sizes.update(f"{size} {name}\n".encode())
        contents.update(f"{crc} {size} {name}\n".encode())
    return {"sizes": sizes.hexdigest(), "contents": contents.hexdigest()}
