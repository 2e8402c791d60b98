"""Reads the published CIFAR-10 and MNIST files into arrays. Trusts nothing in them: no code of a pickle is run."""

import gzip
import math
import pickle
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gankern.errors import InputError

MAX_BATCH_BYTES = 256 << 20  # a CIFAR-10 batch has 31 MB
MAX_IDX_BYTES = 2 << 30

PICKLE_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): np.zeros(1).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.zeros(1).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}

Arrays = tuple[np.ndarray, np.ndarray | None]  # uint8 [N, H, W, 3], int64 [N]


def is_cifar(path: Path) -> bool:
    return path.name.lower().endswith((".tar.gz", ".tgz"))


def is_mnist(path: Path) -> bool:
    return "idx3-ubyte" in path.name


def read_cifar10(path: Path) -> Arrays:
    """The training images of cifar-10-python.tar.gz. InputError: not that archive, or damaged."""
    images, labels = [], []
    with _damage(path), tarfile.open(path, "r:gz") as archive:
        members = {Path(member.name).name: member for member in archive if member.isfile()}
        for name in sorted(name for name in members if re.fullmatch(r"data_batch_\d", name)):
            if members[name].size > MAX_BATCH_BYTES:
                raise ValueError(f"{name} is too large")
            batch = _ArraysOnly(archive.extractfile(members[name]), encoding="bytes").load()
            data, classes = batch[b"data"], np.asarray(batch[b"labels"])
            if data.dtype != np.uint8 or data.shape != (len(data), 3072) or classes.shape != data.shape[:1]:
                raise ValueError(f"{name} doesn't hold 32x32 images with labels")
            if classes.dtype.kind != "i" or classes.min() < 0 or classes.max() > 9:
                raise ValueError(f"{name} has labels outside of 0..9")
            images.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.append(classes.astype(np.int64))
    if not images:
        raise InputError(f"{path}: expected the python version of CIFAR-10 (no data_batch_1 in it)")
    return np.concatenate(images), np.concatenate(labels)


def read_mnist(path: Path) -> Arrays:
    """An idx3 file of grey images, padded with black to 32x32 from 28x28; labels of the idx1 file beside it, if any."""
    grey = _read_idx(path, dims=3)
    side = 1 << (max(grey.shape[1:]) - 1).bit_length()
    margins = [((side - size) // 2, side - size - (side - size) // 2) for size in grey.shape[1:]]
    grey = np.pad(grey, [(0, 0), *margins])
    labels_path = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    labels = None
    if labels_path.is_file():
        labels = _read_idx(labels_path, dims=1).astype(np.int64)
        if len(labels) != len(grey):
            raise InputError(f"{labels_path}: {len(labels)} labels for {len(grey)} images")
    return np.repeat(grey[..., None], 3, axis=3), labels


class _ArraysOnly(pickle.Unpickler):
    """Loads what dicts, lists, bytes and numpy arrays need, and refuses all else."""

    def find_class(self, module: str, name: str) -> object:
        try:
            return PICKLE_NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}") from None


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except MemoryError:
        raise
    except Exception as error:  # a crafted pickle can make any operation fail in any way
        raise InputError(f"{path}: damaged, or not what its name says ({error})") from error


def _read_idx(path: Path, dims: int) -> np.ndarray:
    with _damage(path), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        magic, *shape = np.frombuffer(file.read(4 + 4 * dims), dtype=">u4").tolist()
        if magic != 0x800 + dims:
            raise ValueError(f"its first bytes are {magic:#010x}, expected {0x800 + dims:#010x}")
        size = math.prod(shape)
        if not 0 < size <= MAX_IDX_BYTES:
            raise ValueError(f"it claims {size} bytes")
        data = file.read(size + 1)
        if len(data) != size:
            raise ValueError(f"it holds {len(data)} bytes, expected {size}")
    return np.frombuffer(data, np.uint8).reshape(shape)
