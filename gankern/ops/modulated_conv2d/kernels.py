"""Triton kernels of the pass between two convolutions: one read and one write each way.

    forward     v = clamp(gain · act(d·t + strength·noise + b)),   writes v and, or, v · s⁺ (the next layer's style)
    backward    from dv, d(v·s⁺) and the saved v or v·s⁺: g, the gradient of the pre-activation p; writes dt = d·g and
                the sums over each image's pixels  Σ g,  Σ g·noise,  Σ g·(p − strength·noise − b) = d·Σ g·t,  Σ dys·v

The pre-activation comes back from v (linear and leaky ReLU invert), so t is never kept. With d = s, no bias and no
activation the same two kernels multiply by a style and give the style's gradient. An image is a matrix of its memory:
[pixels, channels] in channels_last, [channels, pixels] in NCHW.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._activations import activate, clamped, slope, unclamped
from gankern.ops._triton import (
    CONFIGS,
    accumulator,
    as_held,
    cdiv,
    config,
    dense,
    dense_like,
    is_channels_last,
    launch,
    pow2,
    programs,
    size_class,
)

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


@dataclass
class Operands:
    """What the pass applies, each None where it doesn't: d and next_styles [N, C], noise [1 or N, pixels], strength
    [], bias [C]; and the activation (act, alpha, gain, clamp)."""

    d: Tensor | None
    noise: Tensor | None
    strength: Tensor | None
    bias: Tensor | None
    next_styles: Tensor | None
    act: tuple[str, float, float, float]


@triton.jit
def _place(ch, px, n, pixels, channels, NHWC: tl.constexpr):
    """(offsets, mask) of the tile of these channels and pixels in image n."""
    image = n * pixels * channels
    if NHWC:
        return image + px.to(tl.int64)[:, None] * channels + ch[None, :], (px < pixels)[:, None] & (ch < channels)[
            None, :
        ]
    else:
        return image + ch.to(tl.int64)[:, None] * pixels + px[None, :], (ch < channels)[:, None] & (px < pixels)[
            None, :
        ]


@triton.jit
def _of_channels(values, ch, channels, NHWC: tl.constexpr, ACC: tl.constexpr):
    """One number a channel, broadcastable to the tile."""
    loaded = tl.load(values + ch, mask=ch < channels, other=0.0).to(ACC)
    return loaded[None, :] if NHWC else loaded[:, None]


@triton.jit
def _of_pixels(values, px, pixels, NHWC: tl.constexpr, ACC: tl.constexpr):
    """One number a pixel, broadcastable to the tile."""
    loaded = tl.load(values + px, mask=px < pixels, other=0.0).to(ACC)
    return loaded[:, None] if NHWC else loaded[None, :]


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
    ACT: tl.constexpr,
    HAS: tl.constexpr,
    WRITES: tl.constexpr,
    NHWC: tl.constexpr,
    ACC: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
):
    """HAS: whether there is d, noise, strength, bias. WRITES: v, v · s⁺."""
    blocks = tl.cdiv(channels, BC)
    pid, n = tl.program_id(0), tl.program_id(1).to(tl.int64)
    # neighbours in the grid are neighbours in memory
    tiles = tl.cdiv(pixels, BP)
    ch = (pid % blocks if NHWC else pid // tiles) * BC + tl.arange(0, BC)
    px = (pid // blocks if NHWC else pid % tiles) * BP + tl.arange(0, BP)
    offsets, mask = _place(ch, px, n, pixels, channels, NHWC)
    u = tl.load(t + offsets, mask=mask, other=0.0).to(ACC)
    if HAS[0]:
        u *= _of_channels(d + n * channels, ch, channels, NHWC, ACC)
    if HAS[1]:
        eta = _of_pixels(noise + n * noise_step, px, pixels, NHWC, ACC)
        u += eta * tl.load(strength).to(ACC) if HAS[2] else eta
    if HAS[3]:
        u += _of_channels(bias, ch, channels, NHWC, ACC)
    v = clamped(activate(u, tl.constexpr(ACT[0]), ACT[1]) * ACT[2], ACT[3])
    if WRITES[0]:
        tl.store(y + offsets, v, mask=mask)
    if WRITES[1]:
        tl.store(ys + offsets, v * _of_channels(next_styles + n * channels, ch, channels, NHWC, ACC), mask=mask)


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
    ACT: tl.constexpr,
    HAS: tl.constexpr,
    READS: tl.constexpr,
    SUMS: tl.constexpr,
    NHWC: tl.constexpr,
    ACC: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
):
    """READS: whether there is dy, dys, and whether `saved` is v · s⁺. SUMS: which of the four sums are wanted.

    Program (j, i, n) takes the channels of block j and every tile i + k·programs of image n's pixels.
    """
    i, n, many = tl.program_id(1), tl.program_id(2).to(tl.int64), tl.num_programs(1)
    ch = tl.program_id(0) * BC + tl.arange(0, BC)
    zero = tl.full([], 0.0, ACC)
    tile: tl.constexpr = [BP, BC] if NHWC else [BC, BP]
    sum_g, sum_gn, sum_gt, sum_s = tl.zeros(tile, ACC), tl.zeros(tile, ACC), tl.zeros(tile, ACC), tl.zeros(tile, ACC)
    if HAS[0]:
        scale = _of_channels(d + n * channels, ch, channels, NHWC, ACC)
    if HAS[2]:
        amount = tl.load(strength).to(ACC)
    if HAS[3]:
        b = _of_channels(bias, ch, channels, NHWC, ACC)
    if READS[1]:
        s = _of_channels(next_styles + n * channels, ch, channels, NHWC, ACC)
    for step in range(i, tl.cdiv(pixels, BP), many):
        px = step * BP + tl.arange(0, BP)
        offsets, mask = _place(ch, px, n, pixels, channels, NHWC)
        v = tl.load(saved + offsets, mask=mask, other=0.0).to(ACC)
        g = tl.load(dy + offsets, mask=mask, other=0.0).to(ACC) if READS[0] else tl.zeros(tile, ACC)
        if READS[1]:
            if READS[2]:
                # where the style is zero nothing reaches v, and nothing tells what it was
                v = tl.where(s == zero, zero, v / s)
            styled = tl.load(dys + offsets, mask=mask, other=0.0).to(ACC)
            g += styled * s
            if SUMS[3]:
                sum_s += styled * v
        rate = slope(v, tl.constexpr(ACT[0]), ACT[1]) * ACT[2]
        g = tl.where(unclamped(v, ACT[3]), g * rate, zero)
        if SUMS[0]:
            sum_g += g
        if HAS[1] and (SUMS[1] or SUMS[2]):
            eta = _of_pixels(noise + n * noise_step, px, pixels, NHWC, ACC)
        if SUMS[1]:
            sum_gn += g * eta
        if SUMS[2]:
            p = v / rate
            if HAS[1]:
                p -= eta * amount if HAS[2] else eta
            if HAS[3]:
                p -= b
            sum_gt += tl.where(mask, g * p, zero)
        if HAS[0]:
            g *= scale
        tl.store(dt + offsets, g, mask=mask)
    row = (n * many + i) * channels + ch
    part = tl.num_programs(2).to(tl.int64) * many * channels
    axis: tl.constexpr = 0 if NHWC else 1
    if SUMS[0]:
        tl.store(partial + row, tl.sum(sum_g, axis), mask=ch < channels)
    if SUMS[1]:
        tl.store(partial + part + row, tl.sum(sum_gn, axis), mask=ch < channels)
    if SUMS[2]:
        tl.store(partial + 2 * part + row, tl.sum(sum_gt, axis), mask=ch < channels)
    if SUMS[3]:
        tl.store(partial + 3 * part + row, tl.sum(sum_s, axis), mask=ch < channels)


# -- launches ---------------------------------------------------------------------------------------------------------


def flat_noise(noise: Tensor | None, t: Tensor) -> Tensor | None:
    """Noise broadcastable to [N, 1, H, W] as [1 or N, pixels], copied only where it repeats along H or W."""
    if noise is None:
        return None
    noise = noise.reshape([1] * (4 - noise.ndim) + list(noise.shape))
    return noise.expand(-1, 1, *t.shape[2:]).reshape(noise.shape[0], t.shape[2] * t.shape[3])


def _plan(kernel: str, t: Tensor, o: Operands):
    """(key, settings, pointer arguments but the tensors of the pass, number arguments, constants)."""
    n, channels, h, w = t.shape
    nhwc = is_channels_last(t)
    key = f"{str(t.dtype).removeprefix('torch.')} {'nhwc' if nhwc else 'nchw'} {size_class(channels)}"
    key += f" {size_class(h * w)}"
    settings = config(kernel, key, t)
    # the contiguous dimension first; then no more than there is, since small images would leave most of a tile empty
    first, second = (channels, h * w) if nhwc else (h * w, channels)
    first = min(pow2(first), settings["TILE"])
    second = min(pow2(second), max(settings["TILE"] // first, 1))
    noise = flat_noise(o.noise, t)
    pointers = tuple(t if p is None else p.contiguous() for p in (o.d, noise, o.strength, o.bias, o.next_styles))
    numbers = (h * w, channels, h * w if noise is not None and noise.shape[0] == n and n > 1 else 0)
    has = (o.d is not None, noise is not None, o.strength is not None, o.bias is not None)
    act, alpha, gain, clamp = o.act
    constants = {"ACT": (act, alpha, gain, as_held(clamp, t.dtype)), "HAS": has, "NHWC": nhwc}
    constants |= {"ACC": accumulator(t.dtype)}
    constants |= {"BC": first, "BP": second} if nhwc else {"BC": second, "BP": first}
    return key, settings, pointers, numbers, constants


def forward(t: Tensor, o: Operands, plain: bool = True) -> tuple[Tensor, Tensor]:
    """(v, v · next_styles) of t [N, C, H, W], in its dtype and memory format; empty where not `plain` or no style."""
    t = dense(t)
    styled = o.next_styles is not None
    y = torch.empty_like(t) if plain else t.new_empty(0)
    ys = torch.empty_like(t) if styled else t.new_empty(0)
    if _impl.launching() and t.numel():
        key, settings, pointers, numbers, constants = _plan("layer_forward", t, o)
        grid = (cdiv(numbers[0], constants["BP"]) * cdiv(numbers[1], constants["BC"]), t.shape[0])
        args = (t, *pointers, y, ys, *numbers)
        launch(_forward, "layer_forward", key, grid, args, constants | {"WRITES": (plain, styled)}, settings)
    return y, ys


def backward(
    dy: Tensor | None,
    dys: Tensor | None,
    v: Tensor | None,
    vs: Tensor | None,
    o: Operands,
    sums: tuple[bool, bool, bool, bool],
) -> tuple[Tensor, Tensor]:
    """(dt, [4, N, C] of Σ g, Σ g·noise, d·Σ g·t, Σ dys·v) from the gradients of v and v · next_styles and either of
    the two; the sums that aren't wanted hold nothing."""
    saved = dense(vs if v is None else v)
    dy, dys = (None if t is None else dense_like(t, saved) for t in (dy, dys))
    dt = torch.empty_like(saved)
    n, channels = saved.shape[:2]
    dtype = torch.promote_types(saved.dtype, torch.float32)
    totals = torch.empty([4, n, channels], dtype=dtype, device=saved.device)
    if not _impl.launching():
        return dt, totals
    if saved.numel() == 0:
        return dt, totals.zero_()
    key, settings, pointers, numbers, constants = _plan("layer_backward", saved, o)
    blocks, tiles = cdiv(channels, constants["BC"]), cdiv(numbers[0], constants["BP"])
    many = max(1, min(tiles, cdiv(programs(saved, settings["WAVES"]), blocks * n)))
    partial = torch.empty([4, n, many, channels], dtype=dtype, device=saved.device)
    constants |= {"READS": (dy is not None, dys is not None, v is None), "SUMS": sums}
    args = (saved if dy is None else dy, saved if dys is None else dys, saved, *pointers, dt, partial, *numbers)
    launch(_backward, "layer_backward", key, (blocks, many, n), args, constants, settings)
    return dt, partial[:, :, 0] if many == 1 else partial.sum(2)
