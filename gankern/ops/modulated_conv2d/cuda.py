"""Launches of csrc's pass between two convolutions: what `kernels` has for Triton."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gankern.ops import _cuda, _impl
from gankern.ops._layout import dense, dense_like, is_channels_last
from gankern.ops.modulated_conv2d.layer import Operands, sums_dtype


def _aligned(t: Tensor) -> Tensor:
    """t where its memory begins at 16 bytes, else a copy, whose does."""
    return t.clone() if t.data_ptr() % 16 else t


def operands(o: Operands, v: Tensor) -> tuple[tuple[Tensor | None, ...], int]:
    """d, noise, strength, bias and next_styles as the kernels take them for an output v [N, C, H, W], and how far apart
    the noise of two samples lies."""
    wide = sums_dtype(v)
    noise, step = o.flat_noise(v)
    d, noise, strength, styles = (
        None if t is None else _aligned(t.to(wide).contiguous()) for t in (o.d, noise, o.strength, o.next_styles)
    )
    return (d, noise, strength, None if o.bias is None else _aligned(o.bias.contiguous()), styles), step


def sizes(v: Tensor, noise_step: int) -> tuple[int, int, int, int, bool]:
    """(images, pixels, channels, noise_step, whether v is channels_last)."""
    n, channels, height, width = v.shape
    return n, height * width, channels, noise_step, is_channels_last(v)


def wanted_sums(sums: Sequence[bool], v: Tensor) -> tuple[Tensor | None, int]:
    """(room [k, N, C] for the k sums wanted, None for none; which, as bits)."""
    many = sum(sums)
    totals = torch.empty([many, *v.shape[:2]], dtype=sums_dtype(v), device=v.device) if many else None
    return totals, sum(1 << i for i, wanted in enumerate(sums) if wanted)


def finished(totals: Tensor | None, o: Operands, sums: Sequence[bool], of_style: bool = False) -> list[Tensor | None]:
    """[db, dstrength, dd, ds⁺] of the sums Σ g, Σ g·noise, Σ g·(p − strength·noise − b), Σ dys·v that were wanted."""
    found = iter(() if totals is None else totals.unbind())
    b, strength, of_d, styles = (next(found) if wanted else None for wanted in sums)
    return [
        None if b is None else b.sum(0).to(o.bias.dtype),
        None if strength is None else strength.sum().to(o.strength.dtype),
        of_d if of_d is None or of_style or o.d is None else of_d / o.d,
        None if styles is None else styles.to(o.next_styles.dtype),
    ]


def forward(t: Tensor, o: Operands, plain: bool = True) -> tuple[Tensor, Tensor]:
    """(v, v · next_styles) of t [N, C, H, W], in its dtype and memory format; empty where not `plain` or no style."""
    t = dense(t)
    styled = o.next_styles is not None
    y = torch.empty_like(t) if plain else t.new_empty(0)
    ys = torch.empty_like(t) if styled else t.new_empty(0)
    if _impl.launching() and t.numel():
        tensors, noise_step = operands(o, t)
        outputs = (y if plain else None, ys if styled else None)
        _cuda.launch("layer_forward", t, *tensors, *outputs, *sizes(t, noise_step), *_cuda.activation(*o.act))
    return y, ys


def backward(
    dy: Tensor | None,
    dys: Tensor | None,
    v: Tensor | None,
    vs: Tensor | None,
    o: Operands,
    sums: Sequence[bool],
    *,
    of_style: bool = False,
) -> tuple[Tensor, list[Tensor | None]]:
    """What `kernels.backward` gives."""
    saved = dense(vs if v is None else v)
    dy, dys = (None if t is None else dense_like(t, saved) for t in (dy, dys))
    dt = torch.empty_like(saved)
    totals, wanted = wanted_sums(sums, saved)
    if _impl.launching() and saved.numel():
        tensors, noise_step = operands(o, saved)
        args = (*sizes(saved, noise_step), *_cuda.activation(*o.act))
        _cuda.launch("layer_backward", dy, dys, saved, v is None, *tensors, dt, totals, wanted, *args)
    elif _impl.launching() and totals is not None:
        totals.zero_()
    return dt, finished(totals, o, sums, of_style)
