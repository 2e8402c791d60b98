"""Triton kernels of the pass between two convolutions: one read and one write each way.

    forward     v = clamp(gain · act(d·t + strength·noise + b)),   writes v and, or, v · s⁺ (the next layer's style)
    backward    from dv, d(v·s⁺) and the saved v or v·s⁺: g, the gradient of the pre-activation p; writes dt = d·g and
                the sums over each image's pixels  Σ g,  Σ g·noise,  Σ g·(p − strength·noise − b)/d = Σ g·t,  Σ dys·v

The pre-activation comes back from v (linear and leaky ReLU invert), so t is never kept. With d = s, no bias and no
activation the same two kernels multiply by a style and give the style's gradient. An image is a matrix of its memory:
[pixels, channels] in channels_last, [channels, pixels] in NCHW.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._layout import cdiv, dense, dense_like, is_channels_last
from gankern.ops._settings import pow2, size_class
from gankern.ops._triton import CONFIGS, accumulator, config, launch, programs
from gankern.ops.modulated_conv2d.layer import Operands, sums_dtype
from gankern.ops.modulated_conv2d.sums import gradients_of, store_sum, total_up
from gankern.ops.modulated_conv2d.tile import add_sums, arguments, finish, gradient, operands, sum_shape

CONFIGS["layer_forward"] = (
    {"TILE": 4096, "num_warps": 8},
    {"TILE": 2048, "num_warps": 4},
    {"TILE": 4096, "num_warps": 4},
)
CONFIGS["layer_backward"] = (  # four running sums a value: few values a thread keep the registers within two blocks
    {"TILE": 2048, "num_warps": 8, "WAVES": 4},
    {"TILE": 1024, "num_warps": 4, "WAVES": 8},
    {"TILE": 2048, "num_warps": 4, "WAVES": 4},
)


@triton.jit
def numbers(first, many: tl.constexpr, FIRST_DIM: tl.constexpr):
    """`many` numbers from `first` along one of a tile's dimensions."""
    if FIRST_DIM:
        return first + tl.arange(0, many)[:, None]
    else:
        return first + tl.arange(0, many)[None, :]


@triton.jit
def place(c, px, n, pixels, channels, NHWC: tl.constexpr):
    """(offsets, mask) of the tile of these channels and pixels in image n."""
    mask = (c < channels) & (px < pixels)
    if NHWC:
        return n * pixels * channels + px.to(tl.int64) * channels + c, mask
    else:
        return n * pixels * channels + c.to(tl.int64) * pixels + px, mask


@triton.jit
def _forward(
    t,
    d,
    noise,
    strength,
    bias,
    next_styles,
    y,
    ys,
    pixels,
    channels,
    noise_step,
    SPEC: tl.constexpr,
    NHWC: tl.constexpr,
    ACC: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
):
    blocks, tiles = tl.cdiv(channels, BC), tl.cdiv(pixels, BP)
    pid, n = tl.program_id(0), tl.program_id(1).to(tl.int64)
    # neighbours in the grid are neighbours in memory
    c = numbers((pid % blocks if NHWC else pid // tiles) * BC, BC, not NHWC)
    px = numbers((pid // blocks if NHWC else pid % tiles) * BP, BP, NHWC)
    at, mask = place(c, px, n, pixels, channels, NHWC)
    scale, noise, amount, b, styles = operands(
        d, noise, strength, bias, next_styles, n, c, channels, noise_step, SPEC, ACC
    )
    u = tl.load(t + at, mask=mask, other=0.0).to(ACC)
    finish(y, ys, at, mask, u, scale, noise + px, px < pixels, amount, b, styles, SPEC, ACC)


@triton.jit
def _backward(
    dy,
    dys,
    saved,
    d,
    noise,
    strength,
    bias,
    next_styles,
    dt,
    partial,
    pixels,
    channels,
    noise_step,
    SPEC: tl.constexpr,
    NHWC: tl.constexpr,
    ACC: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
):
    """Program (j, i, n) takes the channels of block j and every tile i + k·programs of image n's pixels."""
    i, n, many = tl.program_id(1), tl.program_id(2).to(tl.int64), tl.num_programs(1)
    c = numbers(tl.program_id(0) * BC, BC, not NHWC)
    scale, noise, amount, b, styles = operands(
        d, noise, strength, bias, next_styles, n, c, channels, noise_step, SPEC, ACC
    )
    rows: tl.constexpr = BP if NHWC else BC
    cols: tl.constexpr = BC if NHWC else BP
    sums = (
        tl.zeros(sum_shape(SPEC[12], rows, cols), ACC),
        tl.zeros(sum_shape(SPEC[13], rows, cols), ACC),
        tl.zeros(sum_shape(SPEC[14], rows, cols), ACC),
        tl.zeros(sum_shape(SPEC[15], rows, cols), ACC),
    )
    for step in range(i, tl.cdiv(pixels, BP), many):
        px = numbers(step * BP, BP, NHWC)
        at, mask = place(c, px, n, pixels, channels, NHWC)
        g, rate, v, styled = gradient(dy, dys, saved, at, mask, styles, SPEC, ACC)
        sums = add_sums(sums, g, rate, v, styled, noise + px, px < pixels, amount, b, mask, SPEC, ACC)
        if SPEC[4]:
            g *= scale
        tl.store(dt + at, g, mask=mask)
    row = (n * many + i) * channels + c
    part = tl.num_programs(2).to(tl.int64) * many * channels
    program = (n * many + i) * tl.num_programs(0) + tl.program_id(0)
    for k in tl.static_range(4):
        if SPEC[12 + k]:
            total = tl.sum(sums[k], 0 if NHWC else 1, keep_dims=True)
            if k == 2 and SPEC[16]:
                total /= scale
            store_sum(partial, k, total, part, row, program, c < channels)


# -- launches ---------------------------------------------------------------------------------------------------------


def plan(kernel: str, t: Tensor) -> tuple[str, dict, dict]:
    """(key, settings, constants)."""
    _, channels, h, w = t.shape
    nhwc = is_channels_last(t)
    key = f"{str(t.dtype).removeprefix('torch.')} {'nhwc' if nhwc else 'nchw'} {size_class(channels)}"
    key += f" {size_class(h * w)}"
    settings = config(kernel, key, t)
    # the contiguous dimension first; then no more than there is, since small images would leave most of a tile empty
    first, second = (channels, h * w) if nhwc else (h * w, channels)
    first = min(pow2(first), settings["TILE"])
    second = min(pow2(second), max(settings["TILE"] // first, 1))
    constants = {"NHWC": nhwc, "ACC": accumulator(t.dtype)}
    constants |= {"BC": first, "BP": second} if nhwc else {"BC": second, "BP": first}
    return key, settings, constants


def forward(t: Tensor, o: Operands, plain: bool = True) -> tuple[Tensor, Tensor]:
    """(v, v · next_styles) of t [N, C, H, W], in its dtype and memory format; empty where not `plain` or no style."""
    t = dense(t)
    styled = o.next_styles is not None
    y = torch.empty_like(t) if plain else t.new_empty(0)
    ys = torch.empty_like(t) if styled else t.new_empty(0)
    if _impl.launching() and t.numel():
        key, settings, constants = plan("layer_forward", t)
        pointers, noise_step, spec = arguments(o, t)
        pixels, channels = t.shape[2] * t.shape[3], t.shape[1]
        grid = (cdiv(pixels, constants["BP"]) * cdiv(channels, constants["BC"]), t.shape[0])
        args = (t, *pointers, y, ys, pixels, channels, noise_step)
        constants["SPEC"] = (*spec, plain, styled)
        launch(_forward, "layer_forward", key, grid, args, constants, settings)
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
    """(dt, [db, dstrength, dd, ds⁺]) from the gradients of v and v · next_styles and either of the two; None for a
    gradient that isn't among the `sums` wanted. `of_style`: in dd's place Σ g·p, the gradient of a style that v was
    multiplied by."""
    saved = dense(vs if v is None else v)
    dy, dys = (None if t is None else dense_like(t, saved) for t in (dy, dys))
    dt, gradients = torch.empty_like(saved), gradients_of(saved, o, sums)
    if not _impl.launching():
        return dt, gradients
    if saved.numel() == 0:
        return dt, [t if t is None else t.zero_() for t in gradients]
    key, settings, constants = plan("layer_backward", saved)
    pointers, noise_step, spec = arguments(o, saved)
    n, channels, height, width = saved.shape
    blocks, tiles = cdiv(channels, constants["BC"]), cdiv(height * width, constants["BP"])
    many = max(1, min(tiles, cdiv(programs(saved, settings["WAVES"]), blocks * n)))
    partial = torch.empty([4, n, many, channels], dtype=sums_dtype(saved), device=saved.device)
    divided = o.d is not None and not of_style
    constants["SPEC"] = (*spec, dy is not None, dys is not None, v is None, *sums, divided)
    args = (saved if dy is None else dy, saved if dys is None else dys, saved, *pointers)
    args += (dt, partial, height * width, channels, noise_step)
    launch(_backward, "layer_backward", key, (blocks, many, n), args, constants, settings)
    total_up(partial, gradients, n * many * blocks)
    return dt, gradients
