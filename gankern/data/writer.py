"""Writes the dataset layout of the StyleGAN tools, whole or not at all: numbered folders of PNGs and dataset.json.

A pyramid (pyramid.py) may stand beside them.
"""

import errno
import fcntl
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from gankern.data.labels import Label
from gankern.data.pyramid import Levels, PyramidWriter
from gankern.data.source import LABELS_FILE
from gankern.errors import InputError

IMAGES_IN_A_FOLDER = 1000
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # fixed: the same images make the same bytes


def encode_png(image: Image.Image) -> bytes:
    """The PNG file of an image."""
    buffer = BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


class DatasetWriter:
    """Takes PNG files in order, with or without labels. Made by `dataset_writer`."""

    def __init__(self, partial: Path, archive: zipfile.ZipFile | None):
        self.count = 0
        self._partial, self._archive, self._labels = partial, archive, []
        self._pyramid = PyramidWriter(partial.parent)

    def add(self, png: bytes, label: Label | None = None, levels: Levels | None = None) -> None:
        """Writes the next image. Either all images have a label or none has; likewise levels of a pyramid."""
        name = f"{self.count // IMAGES_IN_A_FOLDER:05d}/img{self.count:08d}.png"
        self._write(name, png)
        if label is not None:
            self._labels.append([name, label])
        if levels:
            self._pyramid.add(name, png, levels)
        self.count += 1

    def finish(self) -> None:
        """Writes the labels, and the pyramid. ValueError: only some images have one."""
        for kind, count in (("labels", len(self._labels)), ("pyramids", self._pyramid.count)):
            if count not in (0, self.count):
                raise ValueError(f"{count} {kind} for {self.count} images")
        self._write(LABELS_FILE, json.dumps({"labels": self._labels or None}).encode())
        if self._pyramid.count:
            self._pyramid.finish(self._create)

    def close(self) -> None:
        """Drops what `finish` hasn't written."""
        self._pyramid.close()

    def _write(self, name: str, data: bytes) -> None:
        if self._archive is not None:
            self._archive.writestr(_zip_info(name), data)
        else:
            self._path(name).write_bytes(data)

    def _create(self, name: str) -> BinaryIO:
        if self._archive is not None:
            return self._archive.open(_zip_info(name), "w", force_zip64=True)
        return open(self._path(name), "wb")

    def _path(self, name: str) -> Path:
        path = self._partial / name
        path.parent.mkdir(exist_ok=True)
        return path


@contextmanager
def dataset_writer(out: str | os.PathLike) -> Iterator[DatasetWriter]:
    """Writes to a zip if `out` ends in .zip, else to a folder: beside it as `<out>.partial`, renamed at the end.

    InputError: `out` exists and isn't empty, somebody else is writing it, or the disk is full. After an error nothing
    is left; a killed process leaves the partial file, which the next one takes over.
    """
    out = Path(out).expanduser()
    partial = out.with_name(out.name + ".partial")
    zipped = out.suffix.lower() == ".zip"
    refuse_existing(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if zipped:
            partial.touch()
        else:
            partial.mkdir(exist_ok=True)
        with _claimed(partial, out):
            yield from _write_then_rename(partial, out, zipped)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"{out}: the disk is full, nothing was written") from error
        raise InputError(f"{out}: can't be written ({error.strerror or error})") from error


def refuse_existing(out: Path) -> None:
    """InputError if there is something that writing would replace."""
    if out.is_dir():
        if any(out.iterdir()):
            raise InputError(f"{out}: the folder isn't empty, expected a new or an empty one")
    elif out.exists() and (out.stat().st_size or out.suffix.lower() != ".zip"):
        raise InputError(f"{out}: exists already, expected a new name")


@contextmanager
def _claimed(partial: Path, out: Path) -> Iterator[None]:
    handle = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, so a kill leaves no lock
        except BlockingIOError:
            raise InputError(f"{out}: another process is writing it") from None
        refuse_existing(out)  # that other process may have ended between the first look and the lock
        yield
    finally:
        os.close(handle)


def _write_then_rename(partial: Path, out: Path, zipped: bool) -> Iterator[DatasetWriter]:
    try:
        if zipped:
            with open(partial, "wb") as file:
                with zipfile.ZipFile(file, "w") as archive, closing(DatasetWriter(partial, archive)) as writer:
                    yield writer
                    writer.finish()
                file.flush()
                os.fsync(file.fileno())
        else:
            for leftover in partial.iterdir():  # of a process that was killed
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            with closing(DatasetWriter(partial, None)) as writer:
                yield writer
                writer.finish()
        os.rename(partial, out)
    except BaseException:
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
        raise


def _zip_info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, ZIP_DATE)
    info.create_system, info.external_attr = 3, 0o644 << 16  # what Unix writes, on any system
    return info
