"""Launches of csrc's pass between two convolutions where a filter stands in it: what `fir` has for Triton."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gankern.ops import _cuda, _impl
from gankern.ops._layout import dense, dense_like, empty, is_channels_last
from gankern.ops.fir_act import cuda as fir_act
from gankern.ops.modulated_conv2d import cuda
from gankern.ops.modulated_conv2d.layer import Operands
from gankern.ops.upfirdn2d import cuda as upfirdn2d
from gankern.ops.upfirdn2d.op import adjoint_padding

_TAPS = 4


def fits(taps: tuple, up: int, padding: tuple, size: tuple, out_size: tuple) -> bool:
    """Whether the fused kernels take a filter of shape `taps`. Channels that aren't whole vectors take two passes."""
    return len(taps) == 1 and taps[0] <= _TAPS and up in (1, 2)


def forward(t: Tensor, f: Tensor, fir: dict, o: Operands, plain: bool) -> tuple[Tensor, Tensor]:
    """(v, v · next_styles) of the filtered t; empty where not `plain` or no style. `fir`: up, padding and gain."""
    t = dense(t)
    styled, cl = o.next_styles is not None, is_channels_last(t)
    sampling = (fir["up"],) * 2, (1, 1), fir["padding"], False, fir["gain"]
    like = upfirdn2d.output(t, f, *sampling[:3])
    y = like if plain else t.new_empty(0)
    ys = t.new_empty(0) if not styled else torch.empty_like(like) if plain else like
    if not _impl.launching() or like.numel() == 0:
        return y, ys
    if o.act[0] not in ("linear", "lrelu") or not fir_act.fits(f, sampling, ((1, 1), (2, 1)), cl, t):
        return cuda.forward(upfirdn2d.forward(t, f, *sampling), o, plain)
    tensors, noise_step = cuda.operands(o, like)
    outputs = (y if plain else None, ys if styled else None)
    args = (noise_step, cl, *upfirdn2d.sampling(sampling), *_cuda.activation(*o.act))
    _cuda.launch("layer_fir_forward", t, upfirdn2d.taps(f, t), *tensors, *outputs, *args)
    return y, ys


def backward(
    dy: Tensor | None,
    dys: Tensor | None,
    v: Tensor | None,
    vs: Tensor | None,
    f: Tensor,
    fir: dict,
    size: Sequence[int],
    o: Operands,
    sums: Sequence[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """What `fir.backward` gives."""
    saved = dense(vs if v is None else v)
    dy, dys = (None if t is None else dense_like(t, saved) for t in (dy, dys))
    dt, cl = empty((*saved.shape[:2], *size), saved), is_channels_last(saved)
    up, down = (1, 1), (fir["up"],) * 2
    padding = adjoint_padding(f, size, saved.shape[2:], down, up, fir["padding"])
    sampling = up, down, padding, True, fir["gain"]
    if _impl.launching() and saved.numel() and not fir_act.fits(f, sampling, ((1, 1), (1, 2)), cl, saved, dy, dys):
        dt, gradients = cuda.backward(dy, dys, v, vs, o, sums)
        return upfirdn2d.forward(dt, f, *sampling), gradients
    totals, wanted = cuda.wanted_sums(sums, saved)
    if _impl.launching() and saved.numel():
        tensors, noise_step = cuda.operands(o, saved)
        args = (wanted, noise_step, cl, *upfirdn2d.sampling(sampling), *_cuda.activation(*o.act))
        _cuda.launch(
            "layer_fir_backward", dy, dys, saved, v is None, upfirdn2d.taps(f, saved), *tensors, dt, totals, *args
        )
    elif _impl.launching() and totals is not None:
        totals.zero_()
    return dt, cuda.finished(totals, o, sums)
