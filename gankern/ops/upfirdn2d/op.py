"""Upsample, FIR-filter and downsample: the resampling of the StyleGAN family in one operator.

    1. insert up − 1 zeros after each pixel        2. pad (or crop, where negative) by [x0, x1, y0, y1]
    3. convolve with f · gain                      4. keep every down-th pixel

    out = floor((in·up + pad0 + pad1 − taps) / down) + 1,  along each axis

The gradient is the same operator with up and down exchanged and f reversed, so it is differentiable to any order in x.
Karras et al. 2019 (arXiv:1812.04948) and 2020 (arXiv:1912.04958).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._layout import dense_as, empty, is_channels_last

_SEPARABLE_PASSES_FROM = 7  # taps: below it one pass with the outer product is faster than two passes


def setup_filter(
    taps: Tensor | Sequence[float] | Sequence[Sequence[float]] | None,
    *,
    device: torch.device | str | None = None,
    normalize: bool = True,
    separable: bool = True,
) -> Tensor:
    """A float32 filter for `upfirdn2d`, normalised to sum 1: `[k]` (separable) or `[ky, kx]`.

    `taps`: one list for a separable filter, a list of lists for a full one, None for the identity. With
    `separable=False` one list becomes its outer product, the form in which checkpoints store it.
    Raises ValueError for another shape or an empty list.
    """
    f = torch.as_tensor(1.0 if taps is None else taps, dtype=torch.float32, device=device)
    if f.ndim == 0:
        f = f[None]
    if f.ndim not in (1, 2) or f.numel() == 0:
        raise ValueError(f"taps has shape {tuple(f.shape)}, expected one list or a list of lists")
    if f.ndim == 1 and not separable:
        f = torch.outer(f, f)
    return f / f.sum() if normalize else f


def _pad(x: Tensor, padding: Sequence[int]) -> Tensor:
    """x padded with zeros, then cropped where negative. `F.pad` crops first and refuses to crop more than there is,
    which the adjoint asks for where outputs saw nothing but padding."""
    if any(p > 0 for p in padding):
        x = F.pad(x, [max(p, 0) for p in padding])
    x0, x1, y0, y1 = (max(-p, 0) for p in padding)
    return x[:, :, y0 : x.shape[2] - y1, x0 : x.shape[3] - x1]


def upfirdn2d_reference(
    x: Tensor,
    f: Tensor,
    up: tuple[int, int] = (1, 1),
    down: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    flip_filter: bool = False,
    gain: float = 1.0,
) -> Tensor:
    """The definition, step by step, in eager PyTorch. `up` and `down` are (x, y)."""
    n, c, h, w = x.shape
    x = x.reshape(n, c, h, 1, w, 1)
    x = F.pad(x, [0, up[0] - 1, 0, 0, 0, up[1] - 1]).reshape(n, c, h * up[1], w * up[0])
    x = _pad(x, padding)
    f = f.to(torch.promote_types(f.dtype, x.dtype))
    f = torch.outer(f, f) if f.ndim == 1 else f
    f = (f if flip_filter else f.flip(0, 1)) * gain
    x = F.conv2d(x, f.to(x.dtype).expand(c, 1, *f.shape), groups=c)
    return x[:, :, :: down[1], :: down[0]]


def _correlate(x: Tensor, f: Tensor, padding: Sequence[int], down: tuple[int, int]) -> Tensor:
    """Depthwise correlation of x, padded or cropped, with f [ky, kx], keeping every down-th pixel."""
    x0, x1, y0, y1 = padding
    if x0 == x1 >= 0 and y0 == y1 >= 0:
        own = (y0, x0)
    else:
        x, own = _pad(x, padding), (0, 0)
    weight = f.to(x.dtype).expand(x.shape[1], 1, *f.shape)
    return F.conv2d(x, weight, padding=own, stride=(down[1], down[0]), groups=x.shape[1])


def _phase(r: int, up: int, taps: int, pad0: int, size: int, out: int) -> tuple[slice, int, int]:
    """Output pixels r, r + up, ... of a signal upsampled by `up`: the taps that meet pixels of x (the others meet
    inserted zeros), and the padding of x before and after with which they are a plain correlation."""
    first = (pad0 - r) % up
    count = len(range(first, taps, up))
    offset = (r + first - pad0) // up
    length = len(range(r, out, up))
    return slice(first, None, up), -offset, offset + length + count - 1 - size


def _upsample(x: Tensor, f: Tensor, up: tuple[int, int], padding: Sequence[int]) -> Tensor:
    """Polyphase: each of the up·up phases of the output is a short correlation of x itself."""
    n, c, h, w = x.shape
    x0, x1, y0, y1 = padding
    out_h, out_w = h * up[1] + y0 + y1 - f.shape[0] + 1, w * up[0] + x0 + x1 - f.shape[1] + 1
    y = empty((n, c, out_h, out_w), x).zero_()
    for ry in range(min(up[1], out_h)):
        rows, top, bottom = _phase(ry, up[1], f.shape[0], y0, h, out_h)
        for rx in range(min(up[0], out_w)):
            cols, left, right = _phase(rx, up[0], f.shape[1], x0, w, out_w)
            sub = f[rows, cols]
            if sub.numel():
                y[:, :, ry :: up[1], rx :: up[0]] = _correlate(x, sub, (left, right, top, bottom), (1, 1))
    return y


def _eager(x, f, up, down, padding, flip_filter, gain) -> Tensor:
    """The same function as the reference, without multiplying by inserted zeros."""
    f = f.to(torch.promote_types(f.dtype, x.dtype))
    f = f if flip_filter else f.flip(list(range(f.ndim)))
    if f.ndim == 1 and f.numel() >= _SEPARABLE_PASSES_FROM:
        x0, x1, y0, y1 = padding
        g = f * math.sqrt(abs(gain))
        rows, cols = g[:, None], (g if gain >= 0 else -g)[None]
        x = _filter(x, cols, (up[0], 1), (down[0], 1), (x0, x1, 0, 0))
        return _filter(x, rows, (1, up[1]), (1, down[1]), (0, 0, y0, y1))
    return _filter(x, (torch.outer(f, f) if f.ndim == 1 else f) * gain, up, down, padding)


def _filter(x, f, up, down, padding) -> Tensor:
    if up == (1, 1):
        return _correlate(x, f, padding, down)
    y = _upsample(x, f, up, padding)
    if down == (1, 1):
        return y
    return dense_as(y[:, :, :: down[1], :: down[0]], is_channels_last(y))


# -- registration -----------------------------------------------------------------------------------------------------


def _forward_impl(
    x: Tensor,
    f: Tensor,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip_filter: bool,
    gain: float,
    impl: str,
) -> Tensor:
    if impl != "reference":
        return _impl.launchers(__package__, impl).forward(x, f, up, down, padding, flip_filter, gain)
    if x.numel() == 0:
        return upfirdn2d_reference(x, f, tuple(up), tuple(down), tuple(padding), flip_filter, gain).contiguous()
    return _eager(x, f, tuple(up), tuple(down), tuple(padding), flip_filter, gain)


_upfirdn2d = _impl.register("upfirdn2d", _forward_impl)


def _save(ctx, inputs, output):
    x, f, *ctx.args = inputs
    ctx.save_for_backward(f)
    ctx.in_size = x.shape[2:]
    ctx.format = format_of(x)


def format_of(x: Tensor) -> torch.memory_format:
    """The memory format in which gradients of x, and of what keeps its format, are wanted."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def adjoint_padding(f: Tensor, in_size: Sequence[int], out_size: Sequence[int], up, down, padding) -> list[int]:
    """The padding with which the operator of exchanged `up` and `down` takes [.., *out_size] back to [.., *in_size]."""
    (upx, upy), (downx, downy), (x0, _, y0, _) = up, down, padding
    (h, w), (out_h, out_w) = in_size, out_size
    fx, fy = f.shape[-1], f.shape[0]
    return [
        fx - x0 - 1,
        w * upx - out_w * downx + x0 - upx + 1,
        fy - y0 - 1,
        h * upy - out_h * downy + y0 - upy + 1,
    ]


def adjoint_args(f, in_size, out_size, up, down, padding, flip_filter, gain) -> tuple:
    """(up, down, padding, flip_filter, gain) of the operator that takes dy [.., *out_size] to dx [.., *in_size]."""
    reverse = adjoint_padding(f, in_size, out_size, up, down, padding)
    return list(down), list(up), reverse, not flip_filter, gain


def adjoint(dy, f, in_size, up, down, padding, flip_filter, gain, impl) -> Tensor:
    """The gradient of x [.., *in_size] from that of upfirdn2d(x, f, up, down, padding, ...)."""
    return _upfirdn2d(dy, f, *adjoint_args(f, in_size, dy.shape[2:], up, down, padding, flip_filter, gain), impl)


def _backward(ctx, dy):
    if ctx.args[-1] != "reference":
        dy = dy.contiguous(memory_format=ctx.format)
    return adjoint(dy, *ctx.saved_tensors, ctx.in_size, *ctx.args), *[None] * 7


_impl.register_autograd(_upfirdn2d, _backward, setup_context=_save)
_impl.declare("upfirdn2d", "triton", "cuda", "reference")

# -- public -----------------------------------------------------------------------------------------------------------


def _pair(value: int | Sequence[int], name: str) -> list[int]:
    pair = [value, value] if isinstance(value, int) else list(value) if isinstance(value, Sequence) else []
    if len(pair) != 2 or not all(isinstance(v, (int, torch.SymInt)) and v >= 1 for v in pair):
        raise ValueError(f"{name}={value!r}, expected a whole number >= 1 or two of them, [x, y]")
    return pair


def _padding4(value: int | Sequence[int]) -> list[int]:
    p = [value] * 4 if isinstance(value, int) else list(value) if isinstance(value, Sequence) else []
    p = [p[0], p[0], p[1], p[1]] if len(p) == 2 else p
    if len(p) != 4 or not all(isinstance(v, (int, torch.SymInt)) for v in p):
        raise ValueError(f"padding={value!r}, expected a whole number, [x, y] or [x0, x1, y0, y1]")
    return p


def check_filter(f: Tensor, x: Tensor, name: str = "f") -> None:
    """Raises ValueError unless `f` is a constant float32 or float64 filter on x's device."""
    if f.ndim not in (1, 2) or f.numel() == 0 or f.dtype not in (torch.float32, torch.float64) or f.requires_grad:
        raise ValueError(
            f"{name} is {f.dtype} of shape {tuple(f.shape)}{', requires grad' if f.requires_grad else ''}, "
            "expected a constant float32 or float64 tensor [k] or [ky, kx]"
        )
    if f.device != x.device:
        raise ValueError(f"{name} is on {f.device}, expected x's {x.device}")


def filter_args(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int],
    down: int | Sequence[int],
    padding: int | Sequence[int],
    flip_filter: bool,
    gain: float,
) -> tuple[Tensor, tuple]:
    """f and the registered op's (up, down, padding, flip_filter, gain); raises ValueError as `upfirdn2d`."""
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} of shape {tuple(x.shape)}, expected a floating-point tensor [N, C, H, W]")
    if f is None:
        f = torch.ones(1, device=x.device)
    check_filter(f, x)
    upxy, downxy, pad = _pair(up, "up"), _pair(down, "down"), _padding4(padding)
    for axis, size, u, p0, p1, taps in (
        ("width", x.shape[3], upxy[0], pad[0], pad[1], f.shape[-1]),
        ("height", x.shape[2], upxy[1], pad[2], pad[3], f.shape[0]),
    ):
        if size * u + p0 + p1 < taps:
            raise ValueError(
                f"padding={padding!r}: the padded {axis} {size * u + p0 + p1} is less than f's {taps} taps"
            )
    return f, (upxy, downxy, pad, bool(flip_filter), float(gain))


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    *,
    impl: str | None = None,
) -> Tensor:
    """Zero-insert by `up`, pad or crop by `padding`, filter with f · gain, keep every `down`-th pixel.

    `x`: [N, C, H, W], any float dtype. `f`: float32 `[k]` (separable) or `[ky, kx]` from `setup_filter`, None for the
    identity; no gradient flows to it. `up`, `down`: a number or [x, y]; `padding`: a number, [x, y] or [x0, x1, y0,
    y1] in pixels of the upsampled image, negative crops. `flip_filter`: correlate instead of convolving.
    Differentiable to any order in x. Raises ValueError for bad arguments and where the padded image is smaller than
    the filter.
    """
    f, args = filter_args(x, f, up, down, padding, flip_filter, gain)
    return _upfirdn2d(x, f, *args, _impl.choose("upfirdn2d", impl, x))


def upfirdn2d_adjoint(
    dy: Tensor, f: Tensor, in_size: Sequence[int], up: int, padding: Sequence[int], gain: float, *, impl: str
) -> Tensor:
    """The gradient of x [N, C, *in_size] from dy, that of upfirdn2d(x, f, up, padding=padding, gain=gain)."""
    return adjoint(dy, f, in_size, (up, up), (1, 1), padding, False, gain, impl)


def upsample2d(x: Tensor, f: Tensor, up: int = 2, *, impl: str | None = None) -> Tensor:
    """x [N, C, H, W] enlarged `up` times through f, aligned so that no shift arises: [N, C, H·up, W·up]."""
    px, py = ((t + up - 1) // 2 for t in (f.shape[-1], f.shape[0]))
    qx, qy = ((t - up) // 2 for t in (f.shape[-1], f.shape[0]))
    return upfirdn2d(x, f, up=up, padding=[px, qx, py, qy], gain=up * up, impl=impl)


def downsample2d(x: Tensor, f: Tensor, down: int = 2, *, impl: str | None = None) -> Tensor:
    """x [N, C, H, W] reduced `down` times through f, aligned so that no shift arises: [N, C, H/down, W/down]."""
    px, py = ((t - down + 1) // 2 for t in (f.shape[-1], f.shape[0]))
    qx, qy = ((t - down) // 2 for t in (f.shape[-1], f.shape[0]))
    return upfirdn2d(x, f, down=down, padding=[px, qx, py, qy], impl=impl)
