"""Tensors and numpy scalars inside pickles: what may stand for torch's and numpy's own functions there.

A storage is bytes in torch's older format, itself made of pickles: those are read as data first, the sizes that they
state held against the bytes that follow, and only then torch's weights-only loader is given them.
"""

import io
import pickle
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gankern.interop import pickles
from gankern.interop.pickles import Buildable, Known, Refused

DTYPES = {f"torch.{name}": getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16", "uint8")}
DTYPES |= {f"torch.{name}": getattr(torch, name) for name in ("int8", "int16", "int32", "int64", "bool")}
STORAGES = {"Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16}
STORAGES |= {"Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16, "Int": torch.int32, "Long": torch.int64}
STORAGES = {f"torch.{name}Storage": dtype for name, dtype in (STORAGES | {"Bool": torch.bool}).items()}


# -- storages ---------------------------------------------------------------------------------------------------------


def _persistent(identity: tuple) -> tuple[str, int]:
    """A storage's key, and its size in bytes."""
    kind, dtype, key, _, count, view = identity
    formed = isinstance(kind, str) and isinstance(dtype, torch.dtype) and isinstance(key, str) and _is_count(count)
    if not formed or kind != "storage" or view is not None:
        raise Refused("it holds a storage of an unknown form")
    return key, count * dtype.itemsize


def check_storage(data: bytes) -> None:
    """Raises Refused unless `data` is one whole storage in torch's older format, of the size that it states."""
    file, size, stated = io.BytesIO(data), len(data), []

    def persistent(identity: tuple) -> tuple[str, int]:
        stated.append(_persistent(identity))
        return stated[-1]

    plain, storage = Known(), Known(values=STORAGES, persistent=persistent)
    magic, version, _ = (pickles.load(file, plain, size) for _ in range(3))
    if magic != torch.serialization.MAGIC_NUMBER or version != torch.serialization.PROTOCOL_VERSION:
        raise Refused("it holds a storage that isn't in torch's format")
    found, keys = pickles.load(file, storage, size), pickles.load(file, plain, size)
    if len(stated) != 1 or found is not stated[0] or keys != [found[0]]:
        raise Refused("it holds a storage of an unknown form")
    there = len(data) - file.tell()
    if there != 8 + found[1]:
        raise Refused(f"a storage states {found[1]:,} bytes, {max(there - 8, 0):,} are there")


def load_storage(data: bytes) -> Any:
    """A storage, from `torch.storage._load_from_bytes(data)`."""
    if not isinstance(data, bytes):
        raise Refused("it holds a storage of an unknown form")
    check_storage(data)
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise Refused(f"a storage can't be read ({pickles.reason(error)})") from None


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**63


def rebuild_tensor(storage: Any, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    """From `torch._utils._rebuild_tensor_v2(...)`; what follows the stride (gradient flag, hooks) is dropped."""
    if not isinstance(storage, torch.storage.TypedStorage):
        raise Refused("it makes a tensor of what is no storage")
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) != len(stride) or len(size) > 16:
        raise Refused("it makes a tensor of a shape and strides of unknown forms")
    if not all(map(_is_count, (offset, *size, *stride))):
        raise Refused("it makes a tensor of a shape and strides that aren't counts")
    flat = torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)
    elements, last = 1, offset
    for n, step in zip(size, stride, strict=True):
        elements, last = elements * n, last + (n - 1) * step
    if elements > len(flat) or (elements and last >= len(flat)):
        raise Refused(f"it makes a tensor of shape {size!r:.100} from {len(flat):,} numbers")
    return flat.as_strided(size, stride, offset)


def rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    """From `torch._utils._rebuild_parameter(data, requires_grad, hooks)`."""
    if not isinstance(data, Tensor):
        raise Refused("it makes a parameter of what is no tensor")
    return data


def _size(items: Any = ()) -> tuple:
    if not isinstance(items, tuple | list):
        raise Refused("it makes a shape of what is no list")
    return tuple(items)


# -- numpy ------------------------------------------------------------------------------------------------------------


class _DType(Buildable):
    """numpy.dtype: a plain number's."""

    def __init__(self, code: str, *_: Any):
        if not isinstance(code, str) or code.lstrip("<>=|") not in _NUMBERS:
            raise Refused(f"it holds numpy data of type {pickles.word(code)}")
        self.dtype = np.dtype(code)

    def build(self, state: tuple) -> "_DType":
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")
        return self


_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


def _scalar(dtype: _DType, data: bytes) -> Any:
    return np.frombuffer(data, dtype.dtype)[0].item()


class _Array(Buildable):
    """An array that is about to get its state."""

    def build(self, state: tuple) -> np.ndarray:
        _, shape, dtype, fortran, data = state
        if not isinstance(data, bytes) or not isinstance(fortran, bool):
            raise Refused("it holds a numpy array of objects")
        return np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if fortran else "C")


def _encode(text: str, encoding: str) -> bytes:
    """_codecs.encode, as which older protocols write bytes."""
    if not isinstance(encoding, str) or encoding != "latin1":
        raise Refused(f"it encodes text as {pickles.word(encoding)}")
    return text.encode("latin1")


# -- the table --------------------------------------------------------------------------------------------------------

VALUES = DTYPES | {"numpy.ndarray": None}  # an argument of _reconstruct

CALLS = {
    "torch.storage._load_from_bytes": load_storage,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": rebuild_parameter,
    "torch.device": lambda *_: None,
    "torch.Size": _size,
    "numpy.dtype": _DType,
    "_codecs.encode": _encode,
} | {
    f"numpy.{core}.multiarray.{name}": function
    for core in ("core", "_core")
    for name, function in (("scalar", _scalar), ("_reconstruct", lambda *_: _Array()))
}
