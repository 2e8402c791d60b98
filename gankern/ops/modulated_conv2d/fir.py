# ruff: noqa: RUF005 - Triton does not know (*a, b)
"""Triton kernels of the pass between two convolutions where a filter stands in it: one read and one write each way.

    forward     v = clamp(gain · act(d·FIR(t) + strength·noise + b))    writes v and, or, v · s⁺
    backward    dt = FIRᵀ(d·g), with g and its sums over each image made where dv and the saved v are read

The filter is `upfirdn2d`'s strip; what `kernels` does to a tile stands here in the strip's hooks.
"""

import functools
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._layout import cdiv, dense, dense_like, empty
from gankern.ops._triton import CONFIGS, config, launch
from gankern.ops.modulated_conv2d.layer import Operands, sums_dtype
from gankern.ops.modulated_conv2d.sums import gradients_of, store_sum, total_up
from gankern.ops.modulated_conv2d.tile import add_sums, arguments, finish, gradient, operands, sum_shape
from gankern.ops.upfirdn2d.kernels import covers, key_of, load_tile, output, plan, store_tile, unrollable
from gankern.ops.upfirdn2d.op import adjoint_padding
from gankern.ops.upfirdn2d.strip import fir_strip, tile_of

CONFIGS["layer_fir_forward"] = (
    {"BYTES": 2048, "ROWS": 16, "PX": 1, "AHEAD": True, "num_warps": 4},
    {"BYTES": 2048, "ROWS": 32, "PX": 1, "AHEAD": False, "num_warps": 4},
)
CONFIGS["layer_fir_backward"] = (
    {"BYTES": 2048, "ROWS": 32, "PX": 1, "AHEAD": False, "num_warps": 4},
    {"BYTES": 2048, "ROWS": 32, "PX": 1, "AHEAD": True, "num_warps": 4},
)


@triton.jit
def _inside(row, col, height, width):
    return (row >= 0) & (row < height) & (col >= 0) & (col < width)


@triton.jit
def _finish(args, state, row, col, start, offset, mask, v, SPEC: tl.constexpr, ACC: tl.constexpr):
    """The store hook: what follows the filter."""
    y, ys, scale, noise, amount, b, styles, height, width = args
    pixels = _inside(row, col, height, width)
    noise += row * width + col
    finish(y, ys, start + offset, mask, v, scale, noise, pixels, amount, b, styles, SPEC, ACC)
    return state


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
    scale, noise, amount, b, styles = operands(
        d, noise, strength, bias, next_styles, n, c, channels, noise_step, SPEC, ACC
    )
    args = (y, ys, scale, noise, amount, b, styles, out_height, out_width)
    fir_strip(load_tile, (t,), _finish, args, (), f, place, dims, X, Y, FORM, SPEC, ACC)


@triton.jit
def _gradient(
    args, state, row, col, start, offset, mask, mine, OWN: tl.constexpr, SPEC: tl.constexpr, ACC: tl.constexpr
):
    """The load hook: d·g; and its sums, of the pixels that this program counts."""
    dy, dys, saved, scale, noise, amount, b, styles, height, width = args
    g, rate, v, styled = gradient(dy, dys, saved, start + offset, mask, styles, SPEC, ACC)
    if OWN:
        pixels = _inside(row, col, height, width)
        noise += row * width + col
        state = add_sums(state, g, rate, v, styled, noise, pixels, amount, b, mine & mask, SPEC, ACC)
    if SPEC[4]:
        g *= scale
    return g, state


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
    scale, noise, amount, b, styles = operands(
        d, noise, strength, bias, next_styles, n, c, channels, noise_step, SPEC, ACC
    )
    args = (dy, dys, saved, scale, noise, amount, b, styles, height, width)
    state = ()
    for k in tl.static_range(4):
        state = state + (tl.zeros(sum_shape(SPEC[12 + k], FORM[4], FORM[5]), ACC),)
    state = fir_strip(_gradient, args, store_tile, (dt,), state, f, place, dims, X, Y, FORM, SPEC, ACC)
    across = tl.cdiv(out_width, FORM[4 if FORM[3] else 5] * X[4])
    strips = across * tl.cdiv(out_height, FORM[6])
    one = tl.program_id(0) // tl.cdiv(channels, FORM[5]) if FORM[3] else tl.program_id(0)
    at = (one % strips).to(tl.int64) * planes + plane
    for k in tl.static_range(4):
        if SPEC[12 + k]:
            total = tl.sum(state[k], 0 if FORM[3] else 1, keep_dims=True)
            if k == 2 and SPEC[4]:
                total /= scale
            store_sum(partial, k, total, strips.to(tl.int64) * planes, at, tl.program_id(0), exists)


# -- launches ---------------------------------------------------------------------------------------------------------


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
        pointers, noise_step, spec = arguments(o, like)
        constants["SPEC"] = (*spec, plain, styled)
        args = (t, f.contiguous(), *pointers, y, ys, noise_step, *numbers)
        launch(_forward, "layer_fir_forward", key, grid, args, constants, settings)
    return y, ys


@functools.cache
def fits(taps: tuple, up: int, padding: tuple, size: tuple, out_size: tuple) -> bool:
    """Whether the fused kernels take a filter of shape `taps`: small enough to unroll, and every output pixel read by
    the strip of the backward pass that is to count it in its sums."""
    f, up_xy = torch.empty(taps, device="meta"), (up, up)
    configs = CONFIGS["layer_fir_forward"] + CONFIGS["layer_fir_backward"]
    if not all(unrollable(f, up_xy, (1, 1), c) and unrollable(f, (1, 1), up_xy, c) for c in configs):
        return False
    dy, dt = (torch.empty([1, 1, *s], device="meta") for s in (out_size, size))
    reverse = adjoint_padding(f, size, out_size, up_xy, (1, 1), padding)
    plans = (plan(dy, f, dt, (1, 1), up_xy, reverse, True, 1.0, c) for c in CONFIGS["layer_fir_backward"])
    return all(covers(dy, dt, constants) for _, _, constants in plans)


def backward(
    dy: Tensor | None,
    dys: Tensor | None,
    v: Tensor | None,
    vs: Tensor | None,
    f: Tensor,
    fir: dict,
    size: list[int],
    o: Operands,
    sums: Sequence[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """(dt [N, C, *size], [db, dstrength, dd, ds⁺]), as `kernels.backward`."""
    saved = dense(vs if v is None else v)
    dy, dys = (None if t is None else dense_like(t, saved) for t in (dy, dys))
    n, channels = saved.shape[:2]
    dt, gradients = empty((n, channels, *size), saved), gradients_of(saved, o, sums)
    if not _impl.launching():
        return dt, gradients
    if saved.numel() == 0:
        return dt, [t if t is None else t.zero_() for t in gradients]
    up, down = (1, 1), (fir["up"],) * 2
    padding = adjoint_padding(f, size, saved.shape[2:], down, up, fir["padding"])
    key = key_of(saved, f, up, down)
    settings = config("layer_fir_backward", key, saved)
    grid, numbers, constants = plan(saved, f, dt, up, down, padding, True, fir["gain"], settings)
    pointers, noise_step, spec = arguments(o, saved)
    constants["SPEC"] = (*spec, dy is not None, dys is not None, v is None, *sums)
    form, xs = constants["FORM"], constants["X"]
    strips = cdiv(size[1], form[4 if form[3] else 5] * xs[4]) * cdiv(size[0], form[6])
    partial = torch.empty([4, strips, n, channels], dtype=sums_dtype(saved), device=saved.device)
    args = (saved if dy is None else dy, saved if dys is None else dys, saved, f.contiguous(), *pointers)
    args += (dt, partial, noise_step, *numbers)
    launch(_backward, "layer_fir_backward", key, grid, args, constants, settings)
    total_up(partial, gradients, math.prod(grid), parts_first=True)
    return dt, gradients
