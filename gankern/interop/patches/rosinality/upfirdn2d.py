"""upfirdn2d under rosinality's signature."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gankern import ops


def upfirdn2d(
    input: Tensor,
    kernel: Tensor,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    pad: Sequence[int] = (0, 0),
) -> Tensor:
    """Zero-insert, pad or crop, convolve with kernel [ky, kx], decimate. `up`, `down`: a number or (x, y); `pad`:
    (before, after) of both axes or (x0, x1, y0, y1). As `gankern.ops.upfirdn2d`."""
    if kernel.dtype not in (torch.float32, torch.float64):
        kernel = kernel.float()  # a network cast as a whole takes its filters along
    return ops.upfirdn2d(input, kernel, up, down, [*pad] * 2 if len(pad) == 2 else [*pad])
