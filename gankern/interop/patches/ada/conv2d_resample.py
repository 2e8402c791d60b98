"""Convolution with up- and downsampling under the signature of StyleGAN2-ADA's module of that name.

    y = ↓down f * (w * (f · up² * pad(↑up x)))

The filters commute with the convolution: a transposed or strided one, or a 1x1 one on the smaller image, saves most of
the work.
"""

import importlib
from collections.abc import Sequence

from torch import Tensor

# by the name under which this file runs: the code base's switches are on that module
conv2d_gradfix = importlib.import_module(".conv2d_gradfix", __package__)
upfirdn2d = importlib.import_module(".upfirdn2d", __package__)


def _convolve(x: Tensor, w: Tensor, groups: int, flip_weight: bool, stride: int = 1, padding: int = 0) -> Tensor:
    w = w if flip_weight else w.flip(2, 3)
    return conv2d_gradfix.conv2d(x, w, stride=stride, padding=padding, groups=groups)


def _upconvolve(x: Tensor, w: Tensor, groups: int, flip_weight: bool, up: int) -> Tensor:
    """The whole convolution of x with `up` - 1 zeros between its pixels. A transposed correlation is a convolution, so
    the kernel is flipped where a correlation is asked for."""
    o, i, kh, kw = w.shape
    w = w.flip(2, 3) if flip_weight else w
    w = w.reshape(groups, o // groups, i, kh, kw).transpose(1, 2).reshape(groups * i, o // groups, kh, kw)
    return conv2d_gradfix.conv_transpose2d(x, w, stride=up, groups=groups)


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    """x [N, I, H, W] enlarged through f, convolved with w [O, I/groups, kh, kw], reduced through f.

    `padding`: of the enlarged image. `flip_weight=True` correlates (as torch does), False convolves; `flip_filter` is
    upfirdn2d's. Differentiable to any order in x and w.
    """
    kh, kw = w.shape[2:]
    fx, fy = upfirdn2d._get_filter_size(f)
    x0, x1, y0, y1 = upfirdn2d._parse_padding(padding)
    if up > 1:
        x0, x1, y0, y1 = x0 + (fx + up - 1) // 2, x1 + (fx - up) // 2, y0 + (fy + up - 1) // 2, y1 + (fy - up) // 2
    if down > 1:
        x0, x1 = x0 + (fx - down + 1) // 2, x1 + (fx - down) // 2
        y0, y1 = y0 + (fy - down + 1) // 2, y1 + (fy - down) // 2

    if up == 1 and down == 1:
        if x0 == x1 == y0 == y1 >= 0:
            return _convolve(x, w, groups, flip_weight, padding=x0)
        return _convolve(upfirdn2d.upfirdn2d(x, None, padding=[x0, x1, y0, y1]), w, groups, flip_weight)
    if up == 1:
        small = down if kh == kw == 1 else 1
        x = upfirdn2d.upfirdn2d(x, f, down=small, padding=[x0, x1, y0, y1], flip_filter=flip_filter)
        return _convolve(x, w, groups, flip_weight, stride=down // small)
    if kh == kw == 1:
        x = _convolve(x, w, groups, flip_weight)
        x = upfirdn2d.upfirdn2d(x, f, up=up, padding=[x0, x1, y0, y1], flip_filter=flip_filter, gain=up**2)
    else:
        x = _upconvolve(x, w, groups, flip_weight, up)
        pad = [x0 - kw + 1, x1 - kw + up, y0 - kh + 1, y1 - kh + up]
        x = upfirdn2d.upfirdn2d(x, f, padding=pad, flip_filter=flip_filter, gain=up**2)
    return x if down == 1 else upfirdn2d.upfirdn2d(x, f, down=down, flip_filter=flip_filter)
