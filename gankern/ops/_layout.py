"""Memory formats: what is dense as it lies, and tensors as matrices of their memory; and the dtype of sums."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether x [N, C, H, W] lies in memory as [N, H, W, C] and not as [N, C, H, W] (a single channel is both)."""
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def dense(x: Tensor) -> Tensor:
    """x itself where it fills its memory as NCHW or channels_last, else a contiguous copy."""
    return x if x.is_contiguous() or is_channels_last(x) else x.contiguous()


def dense_as(t: Tensor, channels_last: bool) -> Tensor:
    """t as NCHW or channels_last: itself where it lies so, else a copy."""
    return t.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def dense_like(t: Tensor, like: Tensor) -> Tensor:
    """t in the memory format of `like`, a dense tensor of the same shape: itself where it has it, else a copy."""
    return t if t.stride() == like.stride() else dense_as(t, is_channels_last(like))


def empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A new tensor of this shape in the memory format, on the device and (unless given) of the dtype of `like`."""
    memory_format = torch.channels_last if is_channels_last(like) else torch.contiguous_format
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=memory_format)


def around(x: Tensor, dim: int) -> tuple[int, int]:
    """(outer, inner): how many elements of a dense x stand outside and inside of `dim` in memory."""
    order = [0, 2, 3, 1] if is_channels_last(x) else list(range(x.ndim))
    place = order.index(dim)
    return math.prod(x.shape[i] for i in order[:place]), math.prod(x.shape[i] for i in order[place + 1 :])


def matrix(x: Tensor, dim: int) -> tuple[int, int, int, bool]:
    """(rows, cols, channels, whether each row belongs to one channel) of a dense x whose channels are `dim`; else the
    columns are the channels."""
    if x.ndim == 0:
        return 1, 1, 1, False
    outer, inner = around(x, dim)
    channels = x.shape[dim]
    return (outer, channels, channels, False) if inner == 1 else (outer * channels, inner, channels, True)


def wide(t: Tensor) -> Tensor:
    """t in at least float32."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def cdiv(a: int, b: int) -> int:
    return -(-a // b)
