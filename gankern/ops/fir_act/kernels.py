"""Triton kernels of the filter with bias and activation on either side: the hooks around `fir_strip`, one pass each.

Bytes at the floor. Filter then activation: x and y; backward dy, y and dx. Activation then filter: x and z; backward
dz, x and dx. The bias gradient is summed in the same pass.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._activations import activate, clamped, slope, unclamped
from gankern.ops._layout import cdiv, dense, dense_as, dense_like, empty, is_channels_last
from gankern.ops._triton import CONFIGS, config, launch
from gankern.ops.bias_act import kernels as bias_act
from gankern.ops.upfirdn2d import kernels as upfirdn2d
from gankern.ops.upfirdn2d.strip import fir_strip, out_shape, shape, tile_of

for _name in ("filter_act", "filter_act_backward", "act_filter", "act_filter_backward", "act_filter_tangent"):
    CONFIGS[_name] = (
        {"BYTES": 2048, "ROWS": 16, "PX": 1, "AHEAD": False, "num_warps": 4},
        {"BYTES": 2048, "ROWS": 32, "PX": 1, "AHEAD": True, "num_warps": 4},
        {"BYTES": 2048, "ROWS": 32, "PX": 2, "AHEAD": False, "num_warps": 4},
    )


@triton.jit
def _bias(bias, c, alive, SPEC: tl.constexpr, ACC: tl.constexpr):
    """The bias, broadcastable to a tile."""
    if SPEC[5]:
        return tl.load(bias + c, mask=alive, other=0.0).to(ACC)
    else:
        return tl.zeros([1, 1], ACC)


@triton.jit
def _factor(ref, offset, mask, b, SPEC: tl.constexpr, ACC: tl.constexpr):
    """gain · slope where the clamp lets a gradient through, else 0; `ref` is y (SPEC[4] == 1) or x (2), or unused."""
    if SPEC[4] == 0:
        return tl.full([1, 1], SPEC[2], ACC)
    else:
        t = tl.load(ref + offset, mask=mask, other=0.0).to(ACC)
        if SPEC[4] == 1:
            y = t
            a = t / SPEC[2] if SPEC[2] != 0 else t
        else:
            a = activate(t + b, tl.constexpr(SPEC[0]), SPEC[1])
            y = a * SPEC[2]
            if SPEC[0] == "swish":
                a = t + b
        rate = slope(a, tl.constexpr(SPEC[0]), SPEC[1]) * SPEC[2]
        return tl.where(unclamped(y, SPEC[3]), rate, tl.full([], 0.0, ACC))


@triton.jit
def _load_act(
    args, state, row, col, start, offset, mask, mine, OWN: tl.constexpr, SPEC: tl.constexpr, ACC: tl.constexpr
):
    x, b = args
    u = tl.load(x + start + offset, mask=mask, other=0.0).to(ACC) + b
    v = clamped(activate(u, tl.constexpr(SPEC[0]), SPEC[1]) * SPEC[2], SPEC[3])
    return tl.where(mask, v, tl.full([], 0.0, ACC)), state  # act(b) is not 0: padding comes after it


@triton.jit
def _load_grad(
    args, state, row, col, start, offset, mask, mine, OWN: tl.constexpr, SPEC: tl.constexpr, ACC: tl.constexpr
):
    """g = (dy + ddb) · gain · slope, from y or from x."""
    dy, ddb, ref, b = args
    zero = tl.full([], 0.0, ACC)
    g = tl.load(dy + start + offset, mask=mask, other=0.0).to(ACC) + ddb
    g = g * _factor(ref, start + offset, mask, b, SPEC, ACC)
    g = tl.where(mask, g, zero)
    if OWN and SPEC[6]:
        state = (state[0] + tl.where(mine, g, zero),)
    return g, state


@triton.jit
def _store_act(args, state, row, col, start, offset, mask, v, SPEC: tl.constexpr, ACC: tl.constexpr):
    y, b = args
    v = clamped(activate(v + b, tl.constexpr(SPEC[0]), SPEC[1]) * SPEC[2], SPEC[3])
    tl.store(y + start + offset, v, mask=mask)
    return state


@triton.jit
def _store_grad(args, state, row, col, start, offset, mask, v, SPEC: tl.constexpr, ACC: tl.constexpr):
    """v · gain · slope of the input that stood where v goes."""
    dx, ref, b = args
    v = v * _factor(ref, start + offset, mask, b, SPEC, ACC)
    tl.store(dx + start + offset, v, mask=mask)
    if SPEC[6]:
        state = (state[0] + tl.where(mask, v, tl.full([], 0.0, ACC)),)
    return state


@triton.jit
def _store_sums(partial, total, pid, c, plane, planes, dims, X: tl.constexpr, FORM: tl.constexpr):
    """This program's sums: partial[program, channel] for channels_last, else partial[plane, program]."""
    _, _, OH, OW, C = dims
    if FORM[3]:
        at = (pid // tl.cdiv(C, FORM[5])).to(tl.int64) * C
        tl.store(partial + at + c, tl.sum(total, 0)[None, :], mask=c < C)
    else:
        many = tl.cdiv(OW, FORM[5] * X[4]) * tl.cdiv(OH, FORM[6])
        tl.store(partial + plane * many + pid % many, tl.sum(total, 1)[:, None], mask=plane < planes)


@triton.jit(do_not_specialize=["planes"])
def _filter_act(
    x,
    f,
    y,
    bias,
    planes,
    height,
    width,
    out_height,
    out_width,
    channels,
    SPEC: tl.constexpr,
    X: tl.constexpr,
    Y: tl.constexpr,
    FORM: tl.constexpr,
    ACC: tl.constexpr,
):
    dims = (height, width, out_height, out_width, channels)
    place, _, c = tile_of(tl.program_id(0), planes, dims, X, Y, FORM)
    b = _bias(bias, c, place[6], SPEC, ACC)
    fir_strip(upfirdn2d.load_tile, (x,), _store_act, (y, b), (), f, place, dims, X, Y, FORM, SPEC, ACC)


@triton.jit(do_not_specialize=["planes"])
def _act_filter(
    x,
    f,
    y,
    bias,
    planes,
    height,
    width,
    out_height,
    out_width,
    channels,
    SPEC: tl.constexpr,
    X: tl.constexpr,
    Y: tl.constexpr,
    FORM: tl.constexpr,
    ACC: tl.constexpr,
):
    dims = (height, width, out_height, out_width, channels)
    place, _, c = tile_of(tl.program_id(0), planes, dims, X, Y, FORM)
    b = _bias(bias, c, place[6], SPEC, ACC)
    fir_strip(_load_act, (x, b), upfirdn2d.store_tile, (y,), (), f, place, dims, X, Y, FORM, SPEC, ACC)


@triton.jit(do_not_specialize=["planes"])
def _filter_of_grad(
    dy,
    f,
    dx,
    ref,
    bias,
    ddb,
    partial,
    planes,
    height,
    width,
    out_height,
    out_width,
    channels,
    SPEC: tl.constexpr,
    X: tl.constexpr,
    Y: tl.constexpr,
    FORM: tl.constexpr,
    ACC: tl.constexpr,
):
    """FIR of (dy + ddb) · gain · slope, and the sums of that product."""
    dims = (height, width, out_height, out_width, channels)
    pid = tl.program_id(0)
    place, n, c = tile_of(pid, planes, dims, X, Y, FORM)
    b = _bias(bias, c, place[6], SPEC, ACC)
    extra = tl.zeros([1, 1], ACC)
    if SPEC[7]:
        extra = tl.load(ddb + c, mask=place[6], other=0.0).to(ACC)
    args = (dy, extra, ref, b)
    if SPEC[6]:
        state = (tl.zeros(shape(FORM), ACC),)
        state = fir_strip(_load_grad, args, upfirdn2d.store_tile, (dx,), state, f, place, dims, X, Y, FORM, SPEC, ACC)
        _store_sums(partial, state[0], pid, c, (n * channels + c).to(tl.int64), planes, dims, X, FORM)
    else:
        fir_strip(_load_grad, args, upfirdn2d.store_tile, (dx,), (), f, place, dims, X, Y, FORM, SPEC, ACC)


@triton.jit(do_not_specialize=["planes"])
def _grad_of_filter(
    dz,
    f,
    dx,
    ref,
    bias,
    partial,
    planes,
    height,
    width,
    out_height,
    out_width,
    channels,
    SPEC: tl.constexpr,
    X: tl.constexpr,
    Y: tl.constexpr,
    FORM: tl.constexpr,
    ACC: tl.constexpr,
):
    """gain · slope · FIR of dz, and its sums."""
    dims = (height, width, out_height, out_width, channels)
    pid = tl.program_id(0)
    place, n, c = tile_of(pid, planes, dims, X, Y, FORM)
    args = (dx, ref, _bias(bias, c, place[6], SPEC, ACC))
    if SPEC[6]:
        state = (tl.zeros(out_shape(FORM, X), ACC),)
        state = fir_strip(upfirdn2d.load_tile, (dz,), _store_grad, args, state, f, place, dims, X, Y, FORM, SPEC, ACC)
        _store_sums(partial, state[0], pid, c, (n * channels + c).to(tl.int64), planes, dims, X, FORM)
    else:
        fir_strip(upfirdn2d.load_tile, (dz,), _store_grad, args, (), f, place, dims, X, Y, FORM, SPEC, ACC)


# -- launches ---------------------------------------------------------------------------------------------------------


def _partial(x: Tensor, grid: int, form: tuple) -> Tensor:
    """Room for every program's sums, [programs, C] for channels_last, else [planes, programs]."""
    n, c = x.shape[:2]
    dtype = torch.promote_types(x.dtype, torch.float32)
    many = grid // cdiv(c, form[5]) if form[3] else grid // cdiv(n * c, form[4])
    return torch.empty((many, c) if form[3] else (n * c, many), dtype=dtype, device=x.device)


def _summed(partial: Tensor, x: Tensor, channels_last: bool) -> Tensor:
    if channels_last:
        return partial.sum(0).to(x.dtype)
    return partial.reshape(x.shape[0], x.shape[1], -1).sum([0, 2]).to(x.dtype)


def _launch(kernel, name: str, x: Tensor, f: Tensor, y: Tensor, tensors: tuple, fir: tuple, spec: tuple):
    """Launch on the strips of the filter `fir` = (up, down, padding, flip, gain) from x to y.

    With spec[6], the last of `tensors` being room for them, returns the sums; None where the strips can't take them.
    """
    key = upfirdn2d.key_of(x, f, fir[0], fir[1])
    settings = config(name, key, x)
    grid, args, constants = upfirdn2d.plan(x, f, y, *fir, settings)
    if spec[6]:
        if kernel is _filter_of_grad and not upfirdn2d.covers(x, y, constants):
            return None
        partial = _partial(y if kernel is _grad_of_filter else x, grid[0], constants["FORM"])
        tensors = (*tensors[:-1], partial)
    launch(kernel, name, key, grid, (x, f, y, *tensors, *args), {"SPEC": spec, **constants}, settings)
    return _summed(partial, x, is_channels_last(x)) if spec[6] else None


def _fits(f: Tensor, fir: tuple) -> bool:
    return upfirdn2d.unrollable(f, fir[0], fir[1], CONFIGS["filter_act"][0])


def filter_act(x: Tensor, f: Tensor, bias: Tensor | None, fir: tuple, act: tuple) -> Tensor:
    """y = act(FIR(x) + bias); `act` = (name, alpha, gain, clamp)."""
    x = dense(x)
    y = upfirdn2d.output(x, f, *fir[:3])
    if not _impl.launching() or y.numel() == 0:
        return y
    if not _fits(f, fir):
        return bias_act.forward(upfirdn2d.forward(x, f, *fir), bias, None, 1, *act)
    spec = (*act[:3], bias_act.as_held(act[3], x.dtype), 0, bias is not None, False, False)
    bias = x if bias is None else bias.contiguous()
    _launch(_filter_act, "filter_act", x, f.contiguous(), y, (bias,), fir, spec)
    return y


def filter_act_backward(
    dy: Tensor, y: Tensor | None, f: Tensor, size: Sequence[int], bias_grad: bool, fir: tuple, act: tuple
) -> tuple[Tensor, Tensor]:
    """(dx, db) of `filter_act`; `fir` is already the adjoint's. y is None where act is linear and without a clamp."""
    y = None if y is None else dense(y)
    dy = dense(dy) if y is None else dense_like(dy, y)
    dx, db = empty((*dy.shape[:2], *size), dy), dy.new_empty(dy.shape[1] if bias_grad else 0)
    if not _impl.launching():
        return dx, db
    if dy.numel() == 0 or not _fits(f, fir):
        g, db = bias_act.backward(dy, None, None, y, bias_grad, 1, *act)
        return upfirdn2d.forward(g, f, *fir), db
    spec = (*act[:3], bias_act.as_held(act[3], dy.dtype), 0 if y is None else 1, False, bias_grad, False)
    tensors = (dy if y is None else y, dy, dy, db)
    sums = _launch(_filter_of_grad, "filter_act_backward", dy, f.contiguous(), dx, tensors, fir, spec)
    if bias_grad and sums is None:  # cropped so that no strip owns the border
        g, db = bias_act.backward(dy, None, None, y, True, 1, *act)
        return upfirdn2d.forward(g, f, *fir), db
    return dx, sums if bias_grad else db


def act_filter(x: Tensor, bias: Tensor | None, f: Tensor, fir: tuple, act: tuple) -> Tensor:
    """z = FIR(act(x + bias))."""
    x = dense(x)
    z = upfirdn2d.output(x, f, *fir[:3])
    if not _impl.launching() or z.numel() == 0:
        return z
    if not _fits(f, fir):
        return upfirdn2d.forward(bias_act.forward(x, bias, None, 1, *act), f, *fir)
    spec = (*act, 0, bias is not None, False, False)
    bias = x if bias is None else bias.contiguous()
    _launch(_act_filter, "act_filter", x, f.contiguous(), z, (bias,), fir, spec)
    return z


def act_filter_backward(
    dz: Tensor,
    x: Tensor | None,
    bias: Tensor | None,
    f: Tensor,
    size: Sequence[int],
    bias_grad: bool,
    fir: tuple,
    act: tuple,
) -> tuple[Tensor, Tensor]:
    """(dx, db) of `act_filter`; `fir` is already the adjoint's. x is None where act is linear and without a clamp."""
    x = None if x is None else dense(x)
    dz = dense(dz) if x is None else dense_as(dz, is_channels_last(x))
    if x is not None and is_channels_last(x) != is_channels_last(dz):
        x = x.contiguous()  # a dz of 1x1 lies in both formats, and counts as NCHW
    dx, db = empty((*dz.shape[:2], *size), dz), dz.new_empty(dz.shape[1] if bias_grad else 0)
    if not _impl.launching():
        return dx, db
    if dx.numel() == 0 or not _fits(f, fir):
        t = upfirdn2d.forward(dz, f, *fir)
        y = None if x is None or act[0] == "swish" else bias_act.forward(x, bias, None, 1, *act)
        kept = (x, bias, None) if act[0] == "swish" else (None, None, y)
        return bias_act.backward(t, *kept, bias_grad, 1, *act)
    spec = (*act, 0 if x is None else 2, bias is not None, bias_grad, False)
    tensors = (dz if x is None else x, dz if bias is None else bias.contiguous(), db)
    sums = _launch(_grad_of_filter, "act_filter_backward", dz, f.contiguous(), dx, tensors, fir, spec)
    return dx, sums if bias_grad else db


def act_filter_tangent(
    v: Tensor, vb: Tensor | None, x: Tensor | None, bias: Tensor | None, f: Tensor, fir: tuple, act: tuple
) -> Tensor:
    """The derivative of `act_filter` along (v, vb): FIR((v + vb) · gain · slope)."""
    x = None if x is None else dense(x)
    v = dense(v) if x is None else dense_like(v, x)
    z = upfirdn2d.output(v, f, *fir[:3])
    if not _impl.launching() or z.numel() == 0:
        return z
    if not _fits(f, fir):
        y = None if x is None or act[0] == "swish" else bias_act.forward(x, bias, None, 1, *act)
        kept = (x, bias, None) if act[0] == "swish" else (None, None, y)
        return upfirdn2d.forward(bias_act.backward(v, *kept, False, 1, *act, vb)[0], f, *fir)
    spec = (*act, 0 if x is None else 2, bias is not None, False, vb is not None)
    tensors = (v if x is None else x, v if bias is None else bias.contiguous(), v if vb is None else vb.contiguous(), v)
    _launch(_filter_of_grad, "act_filter_tangent", v, f.contiguous(), z, tensors, fir, spec)
    return z
