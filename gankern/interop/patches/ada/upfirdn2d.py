"""upfirdn2d and its helpers under the signatures of StyleGAN2-ADA's module of that name.

`up`, `down`: a number or [x, y]; `padding`: a number, [x, y] or [x0, x1, y0, y1]; `f`: [k], [ky, kx] or None.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gankern import ops

Numbers = int | Sequence[int]
_IMPL = {"cuda": None, "ref": "reference"}  # gankern's own choice, or eager PyTorch
_SEPARABLE_FROM = 8  # taps from which a filter given as one list stays separable


def _init() -> bool:
    return True


def _parse_scaling(scaling: Numbers) -> tuple[int, int]:
    x, y = (scaling, scaling) if isinstance(scaling, int) else scaling
    return int(x), int(y)


def _parse_padding(padding: Numbers) -> tuple[int, int, int, int]:
    p = [padding] * 2 if isinstance(padding, int) else list(padding)
    x0, x1, y0, y1 = (p[0], p[0], p[1], p[1]) if len(p) == 2 else p
    return int(x0), int(x1), int(y0), int(y1)


def _get_filter_size(f: Tensor | None) -> tuple[int, int]:
    """(width, height)."""
    return (1, 1) if f is None else (f.shape[-1], f.shape[0])


def setup_filter(
    f: Tensor | Sequence | float | None,
    device: torch.device | str = "cpu",
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> Tensor:
    """A float32 filter, normalised to sum 1 and multiplied by `gain`; one list of few taps becomes its outer product
    unless `separable`."""
    f = torch.as_tensor(1.0 if f is None else f, dtype=torch.float32)
    if separable is None:
        separable = f.ndim == 1 and f.numel() >= _SEPARABLE_FROM
    f = ops.setup_filter(f, device=device, normalize=normalize, separable=separable)
    f = f.flip(list(range(f.ndim))) if flip_filter else f
    return f * gain ** (f.ndim / 2)


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: Numbers = 1,
    down: Numbers = 1,
    padding: Numbers = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    """Zero-insert, pad or crop, filter with f · gain, decimate. As `gankern.ops.upfirdn2d`."""
    if impl not in _IMPL:
        raise ValueError(f"impl={impl!r}, expected 'cuda' or 'ref'")
    if f is not None and f.dtype not in (torch.float32, torch.float64):
        f = f.float()  # a network cast as a whole takes its filters along
    up, down, padding = _parse_scaling(up), _parse_scaling(down), _parse_padding(padding)
    return ops.upfirdn2d(x, f, up, down, padding, flip_filter, gain, impl=_IMPL[impl])


def filter2d(
    x: Tensor, f: Tensor | None, padding: Numbers = 0, flip_filter: bool = False, gain: float = 1, impl: str = "cuda"
) -> Tensor:
    """x filtered at its own size; `padding` comes on top."""
    return downsample2d(x, f, 1, padding, flip_filter, gain, impl)


def upsample2d(
    x: Tensor,
    f: Tensor | None,
    up: Numbers = 2,
    padding: Numbers = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    """x enlarged `up` times without a shift; `padding`, in pixels of the result, comes on top."""
    ux, uy = _parse_scaling(up)
    fx, fy = _get_filter_size(f)
    own = (fx + ux - 1) // 2, (fx - ux) // 2, (fy + uy - 1) // 2, (fy - uy) // 2
    pad = [a + b for a, b in zip(own, _parse_padding(padding), strict=True)]
    return upfirdn2d(x, f, (ux, uy), 1, pad, flip_filter, gain * ux * uy, impl)


def downsample2d(
    x: Tensor,
    f: Tensor | None,
    down: Numbers = 2,
    padding: Numbers = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    """x reduced `down` times without a shift; `padding`, in pixels of x, comes on top."""
    dx, dy = _parse_scaling(down)
    fx, fy = _get_filter_size(f)
    own = (fx - dx + 1) // 2, (fx - dx) // 2, (fy - dy + 1) // 2, (fy - dy) // 2
    pad = [a + b for a, b in zip(own, _parse_padding(padding), strict=True)]
    return upfirdn2d(x, f, 1, (dx, dy), pad, flip_filter, gain, impl)
