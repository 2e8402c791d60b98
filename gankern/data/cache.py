"""Decodes a dataset once into one uint8 array: a memory-mapped file shared by all processes, or plain memory."""

import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gankern.data.dataset import ImageDataset
from gankern.data.parallel import Progress, available_cores
from gankern.data.workers import decode_batches
from gankern.errors import InputError

try:
    import fcntl
except ImportError:  # no such locks on Windows: two processes may decode the same, the last one's file stays
    fcntl = None

CHUNK_BYTES = 4 << 20
WORKERS_PAY_AFTER = 4.0  # seconds of work; starting the processes takes two

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """$GANKERN_CACHE, or ~/.cache/gankern. May be deleted at any time."""
    return Path(os.environ.get("GANKERN_CACHE") or "~/.cache/gankern").expanduser()


def load_array(dataset: ImageDataset, workers: int | None = None, progress: Progress | None = None) -> np.ndarray:
    """All images, uint8 [N, C, R, R], read-only: from the cache folder, decoded into it where they aren't there yet.

    Processes that ask for the same images wait for one of them to decode. A folder that can't be written is passed
    over with a warning, for plain memory. Where the dataset's pyramid has the images, they are mapped from it instead.
    InputError: bad images (all are listed), or no room on the disk.
    """
    if dataset.stored_array is not None:
        return dataset.stored_array
    shape = (len(dataset), dataset.channels, dataset.resolution, dataset.resolution)
    label = re.sub(r"\W+", "_", dataset.name)[:40]
    path = cache_folder() / f"{label}-{dataset.resolution}-{dataset.identity[:24]}.npy"
    array = _open(path, shape)
    if array is not None:
        return array
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")) as alone:
            array = _open(path, shape)
            if array is None:
                _build(dataset, path, shape, alone, workers, progress)
                array = _open(path, shape)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(dataset, path.parent) from error
        log.warning("cache folder can't be used (%s); decoded images stay in memory", error)
        array = None
    return _in_memory(dataset, shape, workers, progress) if array is None else array


def _open(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError):
        return None
    return array if array.shape == shape and array.dtype == np.uint8 else None


def _build(
    dataset: ImageDataset,
    path: Path,
    shape: tuple[int, ...],
    alone: bool,
    workers: int | None,
    progress: Progress | None,
) -> None:
    if alone:
        for leftover in path.parent.glob(f"{path.name}.*.tmp"):  # of a process that was killed
            leftover.unlink()
    if shutil.disk_usage(path.parent).free < dataset.nbytes:
        raise _no_room(dataset, path.parent)
    temporary = path.with_name(f"{path.name}.{os.uname().nodename}-{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.lib.format.write_array_header_2_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for chunk in _decoded_chunks(dataset, workers, progress):
                file.write(chunk.data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _in_memory(
    dataset: ImageDataset, shape: tuple[int, ...], workers: int | None, progress: Progress | None
) -> np.ndarray:
    array, done = np.empty(shape, np.uint8), 0
    for chunk in _decoded_chunks(dataset, workers, progress):
        array[done : done + len(chunk)] = chunk
        done += len(chunk)
    array.flags.writeable = False
    return array


def _decoded_chunks(dataset: ImageDataset, workers: int | None, progress: Progress | None) -> Iterator[np.ndarray]:
    image_bytes = dataset.nbytes // len(dataset)
    chunk = max(1, CHUNK_BYTES // image_bytes)
    batches = [range(i, min(i + chunk, len(dataset))) for i in range(0, len(dataset), chunk)]
    estimate = len(dataset) * (1e-4 + 3e-8 * dataset.read_resolution**2)  # seconds on one core
    if workers is None:
        workers = available_cores() if estimate > WORKERS_PAY_AFTER else 0
    done, bad = 0, []
    for decoded in decode_batches(dataset, batches, chunk, workers=min(workers, len(batches))):
        bad += decoded.bad
        done += len(decoded.images)
        if progress:
            progress(done, len(dataset))
        if not bad:  # else only the list of bad images is still of use
            yield decoded.images.numpy()
    if bad:
        raise dataset.bad(bad)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Waits for the lock; says whether it is held, as some network file systems have none. Ends with the process."""
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except (AttributeError, OSError):
            yield False
            return
        yield True


def _no_room(dataset: ImageDataset, folder: Path) -> InputError:
    free = shutil.disk_usage(folder).free
    return InputError(
        f"{folder}: no room for the decoded images: {dataset.nbytes / 2**20:,.0f} MiB needed, {free / 2**20:,.0f} "
        f"free; set GANKERN_CACHE to a folder on a larger disk, or turn the cache off"
    )
