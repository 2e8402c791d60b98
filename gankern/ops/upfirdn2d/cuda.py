"""Launches of csrc's upfirdn2d: what `kernels` has for Triton."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gankern.ops import _cuda, _impl
from gankern.ops._layout import dense, empty, is_channels_last


def output(x: Tensor, f: Tensor, up: Sequence[int], down: Sequence[int], padding: Sequence[int]) -> Tensor:
    """The output to fill for a dense x."""
    n, c, h, w = x.shape
    height = (h * up[1] + padding[2] + padding[3] - f.shape[0]) // down[1] + 1
    width = (w * up[0] + padding[0] + padding[1] - f.shape[-1]) // down[0] + 1
    return empty((n, c, height, width), x)


def taps(f: Tensor, x: Tensor) -> Tensor:
    """f as the kernels for x read it: in the type of its sums."""
    return f.to(torch.promote_types(x.dtype, torch.float32)).contiguous()


def sampling(fir: Sequence) -> tuple:
    """The kernels' arguments of a filter (up, down, padding, flip, gain)."""
    up, down, padding, flip, gain = fir
    return *up, *down, padding[0], padding[2], flip, gain


def forward(
    x: Tensor,
    f: Tensor,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip_filter: bool,
    gain: float,
    residual: Tensor | None = None,
) -> Tensor:
    """y in x's dtype and memory format, plus a `residual` of its shape where given, in a pass of its own."""
    x = dense(x)
    y = output(x, f, up, down, padding)
    if _impl.launching() and y.numel():
        args = sampling((up, down, padding, flip_filter, gain))
        _cuda.launch("upfirdn2d", x, taps(f, x), y, is_channels_last(x), *args)
    return y if residual is None or not _impl.launching() else y.add_(residual)
