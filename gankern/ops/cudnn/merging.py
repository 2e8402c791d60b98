"""A resampling filter and a convolution as one kernel: 3x3 and [1, 3, 3, 1] make 6x6.

    upsampling     y = FIR(Cᵀ(x, w))       k6[a] = Σ_b f[a - b]·w[b]       y[2i + a - 2] += k6[a]·x[i]
    downsampling   y = C↓2(FIR(x), w)      k6[a] = Σ_b f[b - a + 3]·w[b]   y[o] = Σ_a k6[a]·x[2o + a - 2]

Four times the multiply-adds of the convolution, and no pass of the filter's own. An upsampling by the merged kernel is
two 3x3 convolutions, one for its even rows and one for its odd ones; its input gradient is one convolution of stride 2.
Karras et al. 2020 (arXiv:1912.04958), appendix B, for the two steps that are merged.
"""

import functools
import itertools

import torch
from torch import Tensor

from gankern.ops import _impl

TAPS = 3, 4, 6
"""Of the convolution, the filter and both."""


FEW = 32
"""Channels on a layer's larger side at most, for the merged kernel to pay by an H100's rates: 798 TFLOP/s, 3.0 TB/s."""


@functools.cache
def _gather(up: bool) -> tuple[list[list[int]], list[list[float]]]:
    """[36][9] each: which of the filter's 16 taps leads from a tap of w to one of the merged kernel; 1, or 0 where none
    does."""
    k, f, m = TAPS
    taps, there = [], []
    for ay, ax, by, bx in itertools.product(range(m), range(m), range(k), range(k)):
        ty, tx = (ay - by, ax - bx) if up else (by - ay + 3, bx - ax + 3)
        inside = 0 <= ty < f and 0 <= tx < f
        taps.append(ty * f + tx if inside else 0)
        there.append(float(inside))
    rows = range(0, m * m * k * k, k * k)
    return [taps[i : i + k * k] for i in rows], [there[i : i + k * k] for i in rows]


@_impl.constant
def _constants(up: bool, gain: float, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    taps, there = _gather(up)
    return torch.tensor(taps, device=device), gain * torch.tensor(there, device=device, dtype=dtype)


def pays(w: Tensor, f: Tensor) -> bool:
    """Whether a layer of weight w runs merged: where few channels make memory the limit, so that four times the
    multiply-adds cost less than a pass over its image."""
    return tuple(w.shape[2:]) == (TAPS[0],) * 2 and f.shape[-1] == TAPS[1] and min(w.shape[:2]) <= FEW


def merge_matrix(f: Tensor, up: bool, gain: float) -> Tensor:
    """[36, 9], in f's dtype: from a kernel's taps to the merged kernel's, f [4] or [4, 4] as of `setup_filter`."""
    f = f if f.ndim == 2 else torch.outer(f, f)
    taps, there = _constants(up, gain, f.device, f.dtype)
    return f.reshape(-1)[taps] * there


def merged(w: Tensor, matrix: Tensor) -> Tensor:
    """w [O, I, 3, 3], I innermost in memory -> [O, I, 6, 6], likewise."""
    o, i = w.shape[:2]
    taps = w.permute(0, 2, 3, 1).reshape(o, 9, i)
    return (matrix @ taps).view(o, 6, 6, i).permute(0, 3, 1, 2)


def merged_adjoint(dk: Tensor, matrix: Tensor) -> Tensor:
    """The gradient [O, I, 3, 3] of w from that of `merged`'s result."""
    o, i = dk.shape[:2]
    taps = dk.permute(0, 2, 3, 1).reshape(o, 36, i)
    return (matrix.t() @ taps).view(o, 3, 3, i).permute(0, 3, 1, 2)


def phases(kernel: Tensor) -> list[Tensor]:
    """The 3x3 correlations [2·O, I, 3, 3] that an upsampling kernel [O, I, 6, 6] is: of the first and the second row of
    each pixel of the input, with both columns: y[2i + p] = Σ_t k6[p + 4 - 2t]·x[i + t - 1]."""
    o, i = kernel.shape[:2]
    # [O, 3, 2, 3, 2, I]: taps apart by their parity; turned, since a transposed convolution convolves
    parts = kernel.permute(0, 2, 3, 1).reshape(o, 3, 2, 3, 2, i).flip(1, 3).permute(2, 4, 0, 1, 3, 5).contiguous()
    return [part.view(2 * o, 3, 3, i).permute(0, 3, 1, 2) for part in parts]


def rows_of(y: Tensor, row: int) -> Tensor:
    """The first or second row of every two of y [N, C, 2h, 2w], channels_last, as [N, 2·C, h, w] in place: a pixel's
    two columns lie side by side."""
    n, c, height, width = y.shape
    strides = height * width * c, 1, 2 * width * c, 2 * c
    return y.as_strided([n, 2 * c, height // 2, width // 2], strides, y.storage_offset() + row * width * c)


@_impl.constant
def of_columns(channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[2, 2·C]: 1 for the channels of the first column, and of the second."""
    return torch.eye(2, device=device, dtype=dtype).repeat_interleave(channels, 1)
