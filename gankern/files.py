"""Files and folders written whole or not at all."""

import contextlib
import os
import re
import shutil
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gankern.errors import InputError

_LEFTOVER = re.compile(r"\.(.+)\.\d+\.(tmp|old)")


def is_leftover(path: Path) -> bool:
    """Whether this is what `replacing` leaves in a process that is killed."""
    return _LEFTOVER.fullmatch(path.name) is not None


def sweep(folder: Path) -> None:
    """Removes such leftovers, and puts back what was about to be replaced. Only for who has the folder to itself."""
    for path in list(folder.iterdir()):
        match = _LEFTOVER.fullmatch(path.name)
        if not match:
            continue
        if match[2] == "old" and not (folder / match[1]).exists():
            os.replace(path, folder / match[1])
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, then syncs it and renames it to `path`; removes it on any error.

    Only a folder takes a folder's place. An OSError (no space, no permission) becomes an InputError that names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if path.is_dir() and not temporary.is_dir():
            raise InputError(f"{path}: a folder, expected a file's name")
        for file in temporary.iterdir() if temporary.is_dir() else ():
            _sync(file)
        _sync(temporary)
        if path.is_dir():  # a folder can't be replaced in one step
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise InputError(f"{path}: could not be written ({error.strerror or error}); what was there is kept") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def save_torch(content: Any, path: Path) -> None:
    """torch.save, but a full disk is an OSError: given a path, torch's writer doesn't say so."""
    try:
        with path.open("wb") as out:
            torch.save(content, out)
    except RuntimeError as error:
        reason = error.__context__
        raise (reason if isinstance(reason, OSError) else OSError(str(error).splitlines()[0])) from error


def refuse_inflating(path: Path, option: str = "") -> None:
    """Raises InputError for a zip that could hold far more than its size: torch stores its files uncompressed.
    `option`: that which names it, and a space."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, struct.error, OSError, ValueError) as error:
        raise InputError(f"{option}{path}: a damaged zip file ({error})") from None
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        said = "refused: a zip whose contents are larger than the file, which torch doesn't write"
        raise InputError(f"{option}{path}: {said}")
