# ruff: noqa: RUF005 - Triton does not know (*a, b)
"""Triton kernels of the pass between two convolutions where a filter stands in it: one read and one write each way.

    forward     v = clamp(gain · act(d·FIR(t) + strength·noise + b))    writes v and, or, v · s⁺
    backward    dt = FIRᵀ(d·g), with g and its sums over each image made where dv and the saved v are read

The filter is `upfirdn2d`'s strip; what `kernels` does to a tile stands here in the strip's hooks.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._activations import activate, clamped, slope, unclamped
from gankern.ops._triton import CONFIGS, as_held, config, dense, dense_like, empty, launch
from gankern.ops.modulated_conv2d.kernels import Operands, flat_noise
from gankern.ops.upfirdn2d.kernels import axis, key_of, load_tile, output, plan, store_tile, unrollable
from gankern.ops.upfirdn2d.op import adjoint_padding
from gankern.ops.upfirdn2d.strip import count, fir_strip, first, step, tile_of

CONFIGS["layer_fir_forward"] = (
    {"BYTES": 2048, "ROWS": 16, "PX": 1, "AHEAD": True, "num_warps": 4},
    {"BYTES": 2048, "ROWS": 32, "PX": 1, "AHEAD": False, "num_warps": 4},
)
CONFIGS["layer_fir_backward"] = (
    {"BYTES": 2048, "ROWS": 32, "PX": 1, "AHEAD": False, "num_warps": 4},
    {"BYTES": 2048, "ROWS": 32, "PX": 1, "AHEAD": True, "num_warps": 4},
)


@triton.jit
def _activated(args, state, row, col, start, offset, mask, v, SPEC: tl.constexpr, ACC: tl.constexpr):
    """The store hook: what follows the filter. SPEC: as `_operands` has it, then whether v and v · s⁺ are written."""
    y, ys, scale, b, styles, noise, amount, width = args
    if SPEC[4]:
        v *= scale
    if SPEC[5]:
        v += tl.load(noise + row * width + col, mask=mask, other=0.0).to(ACC) * amount
    if SPEC[7]:
        v += b
    v = clamped(activate(v, tl.constexpr(SPEC[0]), SPEC[1]) * SPEC[2], SPEC[3])
    if SPEC[9]:
        tl.store(y + start + offset, v, mask=mask)
    if SPEC[10]:
        tl.store(ys + start + offset, v * styles, mask=mask)
    return state


@triton.jit
def _operands(d, noise, strength, bias, next_styles, n, c, channels, noise_step, SPEC: tl.constexpr, ACC: tl.constexpr):
    """(d, noise's pointer, strength, bias, styles) of a tile's samples n and channels c. SPEC begins with act, alpha,
    gain, clamp, and whether there is d, noise, strength, bias, styles."""
    scale, amount, b, styles = (
        tl.zeros([1, 1], ACC),
        tl.full([], 1.0, ACC),
        tl.zeros([1, 1], ACC),
        tl.zeros([1, 1], ACC),
    )
    mask = c < channels
    if SPEC[4]:
        scale = tl.load(d + n * channels + c, mask=mask, other=0.0).to(ACC)
    if SPEC[6]:
        amount = tl.load(strength).to(ACC)
    if SPEC[7]:
        b = tl.load(bias + c, mask=mask, other=0.0).to(ACC)
    if SPEC[8]:
        styles = tl.load(next_styles + n * channels + c, mask=mask, other=0.0).to(ACC)
    return scale, noise + n * noise_step, amount, b, styles


@triton.jit(do_not_specialize=["planes"])
def _forward(
    t,
    f,
    d,
    noise,
    strength,
    bias,
    next_styles,
    y,
    ys,
    noise_step,
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
    place, n, c = tile_of(tl.program_id(0), planes, dims, X, Y, FORM)
    n = tl.where(n * channels < planes, n, 0)  # planes beyond the last, whose numbers nobody reads
    scale, noise, amount, b, styles = _operands(
        d, noise, strength, bias, next_styles, n, c, channels, noise_step, SPEC, ACC
    )
    args = (y, ys, scale, b, styles, noise, amount, out_width)
    fir_strip(load_tile, (t,), _activated, args, (), f, place, dims, X, Y, FORM, SPEC, ACC)


@triton.jit
def _gradient(
    args, state, row, col, start, offset, mask, mine, OWN: tl.constexpr, SPEC: tl.constexpr, ACC: tl.constexpr
):
    """The load hook: d·g from the gradients of v and v · s⁺ and either of the two; its sums, of the pixels that this
    program counts. SPEC: as `_operands` has it, whether there is dy, dys, v · s⁺ for v, and the four wanted sums."""
    dy, dys, saved, scale, b, styles, noise, amount, width = args
    zero = tl.full([], 0.0, ACC)
    v = tl.load(saved + start + offset, mask=mask, other=0.0).to(ACC)
    if SPEC[10]:
        if SPEC[11]:
            v = tl.where(styles == zero, zero, v / styles)
        styled = tl.load(dys + start + offset, mask=mask, other=0.0).to(ACC)
        g = styled * styles
        if SPEC[9]:
            g += tl.load(dy + start + offset, mask=mask, other=0.0).to(ACC)
    else:
        g = tl.load(dy + start + offset, mask=mask, other=0.0).to(ACC)
    rate = slope(v, tl.constexpr(SPEC[0]), SPEC[1]) * SPEC[2]
    g = tl.where(mask & unclamped(v, SPEC[3]), g * rate, zero)
    if OWN:
        own = tl.where(mine, g, zero)
        sum_g, sum_gn, sum_gt, sum_s = state
        if SPEC[12]:
            sum_g += own
        if SPEC[5] and (SPEC[13] or SPEC[14]):
            eta = tl.load(noise + row * width + col, mask=mask, other=0.0).to(ACC)
        if SPEC[13]:
            sum_gn += own * eta
        if SPEC[14]:
            p = v / rate
            if SPEC[5]:
                p -= eta * amount
            if SPEC[7]:
                p -= b
            sum_gt += own * p
        if SPEC[15]:
            sum_s += tl.where(mine & mask, styled * v, zero)
        state = (sum_g, sum_gn, sum_gt, sum_s)
    if SPEC[4]:
        g *= scale
    return g, state


@triton.constexpr_function
def _sum_shape(wanted, FORM):
    """The shape of one running sum: a single number where nobody wants it."""
    return (FORM[4], FORM[5]) if wanted else (1, 1)


@triton.jit(do_not_specialize=["planes"])
def _backward(
    dy,
    dys,
    saved,
    f,
    d,
    noise,
    strength,
    bias,
    next_styles,
    dt,
    partial,
    noise_step,
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
    """partial [4, strips of an image, planes]."""
    dims = (height, width, out_height, out_width, channels)
    place, n, c = tile_of(tl.program_id(0), planes, dims, X, Y, FORM)
    plane = n * channels + c
    exists = (c < channels) & (plane < planes)
    n = tl.where(n * channels < planes, n, 0)
    scale, noise, amount, b, styles = _operands(
        d, noise, strength, bias, next_styles, n, c, channels, noise_step, SPEC, ACC
    )
    args = (dy, dys, saved, scale, b, styles, noise, amount, width)
    state = ()
    for k in tl.static_range(4):
        state = state + (tl.zeros(_sum_shape(SPEC[12 + k], FORM), ACC),)
    state = fir_strip(_gradient, args, store_tile, (dt,), state, f, place, dims, X, Y, FORM, SPEC, ACC)
    across = tl.cdiv(out_width, FORM[4 if FORM[3] else 5] * X[4])
    strips = across * tl.cdiv(out_height, FORM[6])
    one = tl.program_id(0) // tl.cdiv(channels, FORM[5]) if FORM[3] else tl.program_id(0)
    at = (one % strips).to(tl.int64) * planes + plane
    for k in tl.static_range(4):
        if SPEC[12 + k]:
            total = tl.sum(state[k], 0 if FORM[3] else 1, keep_dims=True)
            tl.store(partial + k * strips.to(tl.int64) * planes + at, total, mask=exists)


# -- launches ---------------------------------------------------------------------------------------------------------


def _pointers(t: Tensor, like: Tensor, o: Operands) -> tuple[tuple[Tensor, ...], int, tuple[bool, ...]]:
    noise = flat_noise(o.noise, like)
    operands = (o.d, noise, o.strength, o.bias, o.next_styles)
    own = noise is not None and noise.shape[0] == like.shape[0] and like.shape[0] > 1
    has = tuple(p is not None for p in operands)
    return tuple(t if p is None else p.contiguous() for p in operands), own * like[0, 0].numel(), has


def _act(o: Operands, dtype: torch.dtype) -> tuple:
    act, alpha, gain, clamp = o.act
    return act, alpha, gain, as_held(clamp, dtype)


def forward(t: Tensor, f: Tensor, fir: dict, o: Operands, plain: bool) -> tuple[Tensor, Tensor]:
    """(v, v · next_styles) of the filtered t; empty where not `plain` or no style. `fir`: up, padding and gain."""
    t = dense(t)
    styled = o.next_styles is not None
    up, down = (fir["up"],) * 2, (1, 1)
    like = output(t, f, up, down, fir["padding"])
    y = like if plain else t.new_empty(0)
    ys = t.new_empty(0) if not styled else torch.empty_like(like) if plain else like
    if _impl.launching() and like.numel():
        key = key_of(t, f, up, down)
        settings = config("layer_fir_forward", key, t)
        grid, numbers, constants = plan(t, f, like, up, down, fir["padding"], False, fir["gain"], settings)
        pointers, noise_step, has = _pointers(t, like, o)
        constants |= {"SPEC": (*_act(o, t.dtype), *has, plain, styled)}
        args = (t, f.contiguous(), *pointers, y, ys, noise_step, *numbers)
        launch(_forward, "layer_fir_forward", key, grid, args, constants, settings)
    return y, ys


@functools.cache
def fits(taps: tuple, up: int, padding: tuple, size: tuple, out_size: tuple) -> bool:
    """Whether the fused kernels take a filter of shape `taps`: small enough to unroll, and every output pixel read by
    the strip of the backward pass that is to count it in its sums."""
    f = torch.empty(taps, device="meta")
    configs = CONFIGS["layer_fir_forward"] + CONFIGS["layer_fir_backward"]
    if not all(unrollable(f, (up, up), (1, 1), c) and unrollable(f, (1, 1), (up, up), c) for c in configs):
        return False
    reverse = adjoint_padding(f, size, out_size, (up, up), (1, 1), padding)
    for inputs, outputs, pad0, k in (
        (out_size[1], size[1], reverse[0], taps[-1]),
        (out_size[0], size[0], reverse[2], taps[0]),
    ):
        along = axis(1, up, pad0, k)
        if inputs > outputs * up or first(along) > 0 or first(along) + count(along) < step(along):
            return False
    return True


def backward(
    dy: Tensor | None,
    dys: Tensor | None,
    v: Tensor | None,
    vs: Tensor | None,
    f: Tensor,
    fir: dict,
    size: list[int],
    o: Operands,
    sums: tuple[bool, bool, bool, bool],
) -> tuple[Tensor, Tensor]:
    """(dt [N, C, *size], [4, N, C] of Σ g, Σ g·noise, d·Σ g·FIR(t), Σ dys·v), as `kernels.backward`."""
    saved = dense(vs if v is None else v)
    dy, dys = (None if t is None else dense_like(t, saved) for t in (dy, dys))
    n, channels = saved.shape[:2]
    dt = empty((n, channels, *size), saved)
    dtype = torch.promote_types(saved.dtype, torch.float32)
    totals = torch.empty([4, n, channels], dtype=dtype, device=saved.device)
    if not _impl.launching():
        return dt, totals
    if saved.numel() == 0:
        return dt, totals.zero_()
    up, down = (1, 1), (fir["up"],) * 2
    padding = adjoint_padding(f, size, saved.shape[2:], down, up, fir["padding"])
    key = key_of(saved, f, up, down)
    settings = config("layer_fir_backward", key, saved)
    grid, numbers, constants = plan(saved, f, dt, up, down, padding, True, fir["gain"], settings)
    pointers, noise_step, has = _pointers(saved, saved, o)
    reads = (dy is not None, dys is not None, v is None)
    constants |= {"SPEC": (*_act(o, saved.dtype), *has, *reads, *sums)}
    form, xs = constants["FORM"], constants["X"]
    strips = -(-size[1] // (form[4 if form[3] else 5] * xs[4])) * -(-size[0] // form[6])
    partial = torch.empty([4, strips, n * channels], dtype=dtype, device=saved.device)
    args = (saved if dy is None else dy, saved if dys is None else dys, saved, f.contiguous(), *pointers)
    args += (dt, partial, noise_step, *numbers)
    launch(_backward, "layer_fir_backward", key, grid, args, constants, settings)
    return dt, partial.sum(1).view(4, n, channels)
