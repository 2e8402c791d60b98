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
    {"TILE": 4096, "num_warps": 4},
    {"TILE": 2048, "num_warps": 4},
    {"TILE": 8192, "num_warps": 8},
)
CONFIGS["layer_backward"] = (
    {"TILE": 4096, "num_warps": 8, "WAVES": 8},
    {"TILE": 2048, "num_warps": 4, "WAVES": 8},
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
def _place(first_row, first_col, n, pixels, channels, NHWC: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr):
    """(offsets, mask, channel numbers, pixel numbers) of a tile of image n."""
    rows = pixels if NHWC else channels
    cols = channels if NHWC else pixels
    r = first_row + tl.arange(0, BM)
    c = first_col + tl.arange(0, BK)
    offsets = n * pixels * channels + r.to(tl.int64)[:, None] * cols + c[None, :]
    mask = (r < rows)[:, None] & (c < cols)[None, :]
    return offsets, mask, c if NHWC else r, r if NHWC else c


@triton.jit
def _by_channel(values, NHWC: tl.constexpr):
    return values[None, :] if NHWC else values[:, None]


@triton.jit
def _by_pixel(values, NHWC: tl.constexpr):
    return values[:, None] if NHWC else values[None, :]


@triton.jit
def _added(noise, strength, bias, n, ch, px, pixels, channels, noise_step, HAS: tl.constexpr, NHWC, ACC):
    """(strength · noise + bias, noise) of a tile, broadcastable to it; HAS names what there is."""
    total = tl.zeros([1, 1], ACC)
    eta = tl.zeros([1, 1], ACC)
    if HAS[1]:
        eta = _by_pixel(tl.load(noise + n * noise_step + px, mask=px < pixels, other=0.0).to(ACC), NHWC)
        total = total + (eta * tl.load(strength).to(ACC) if HAS[2] else eta)
    if HAS[3]:
        total = total + _by_channel(tl.load(bias + ch, mask=ch < channels, other=0.0).to(ACC), NHWC)
    return total, eta


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
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    across = tl.cdiv(channels if NHWC else pixels, BK)
    pid, n = tl.program_id(0), tl.program_id(1).to(tl.int64)
    offsets, mask, ch, px = _place((pid // across) * BM, (pid % across) * BK, n, pixels, channels, NHWC, BM, BK)
    u = tl.load(t + offsets, mask=mask, other=0.0).to(ACC)
    if HAS[0]:
        u *= _by_channel(tl.load(d + n * channels + ch, mask=ch < channels, other=0.0).to(ACC), NHWC)
    if HAS[1] or HAS[3]:
        u += _added(noise, strength, bias, n, ch, px, pixels, channels, noise_step, HAS, NHWC, ACC)[0]
    v = clamped(activate(u, ACT[0], ACT[1]) * ACT[2], ACT[3])
    if WRITES[0]:
        tl.store(y + offsets, v, mask=mask)
    if WRITES[1]:
        s = tl.load(next_styles + n * channels + ch, mask=ch < channels, other=0.0).to(ACC)
        tl.store(ys + offsets, v * _by_channel(s, NHWC), mask=mask)


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
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """READS: whether there is dy, dys, and whether `saved` is v · s⁺. SUMS: which of the four sums are wanted.

    Program (j, i, n) takes the channels of block j and every tile i + k·programs of image n's pixels.
    """
    j, i, n = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    many = tl.num_programs(1)
    sum_g, sum_gn = tl.zeros([BM, BK], ACC), tl.zeros([BM, BK], ACC)
    sum_gt, sum_s = tl.zeros([BM, BK], ACC), tl.zeros([BM, BK], ACC)
    for tile in range(i, tl.cdiv(pixels, BM if NHWC else BK), many):
        first_row, first_col = (tile * BM, j * BK) if NHWC else (j * BM, tile * BK)
        offsets, mask, ch, px = _place(first_row, first_col, n, pixels, channels, NHWC, BM, BK)
        v = tl.load(saved + offsets, mask=mask, other=0.0).to(ACC)
        g = tl.zeros([BM, BK], ACC)
        if READS[0]:
            g += tl.load(dy + offsets, mask=mask, other=0.0).to(ACC)
        if READS[1]:
            s = tl.load(next_styles + n * channels + ch, mask=ch < channels, other=0.0).to(ACC)
            s = _by_channel(s, NHWC)
            if READS[2]:
                # where the style is zero nothing reaches v, and nothing tells what it was
                v = tl.where(s == tl.full([], 0.0, ACC), tl.full([], 0.0, ACC), v / s)
            styled = tl.load(dys + offsets, mask=mask, other=0.0).to(ACC)
            g += styled * s
            if SUMS[3]:
                sum_s += styled * v
        rate = slope(v, ACT[0], ACT[1]) * ACT[2]
        g = tl.where(unclamped(v, ACT[3]), g * rate, tl.full([], 0.0, ACC))
        added, eta = _added(noise, strength, bias, n, ch, px, pixels, channels, noise_step, HAS, NHWC, ACC)
        if SUMS[0]:
            sum_g += g
        if SUMS[1]:
            sum_gn += g * eta
        if SUMS[2]:
            # masked: out of the image p is 0 and what was added isn't
            sum_gt += tl.where(mask, g * (v / rate - added), tl.full([], 0.0, ACC))
        if HAS[0]:
            g *= _by_channel(tl.load(d + n * channels + ch, mask=ch < channels, other=0.0).to(ACC), NHWC)
        tl.store(dt + offsets, g, mask=mask)
    ch = j * (BK if NHWC else BM) + tl.arange(0, BK if NHWC else BM)
    row = (n * many + i) * channels + ch
    step = tl.num_programs(2).to(tl.int64) * many * channels
    axis: tl.constexpr = 0 if NHWC else 1
    if SUMS[0]:
        tl.store(partial + row, tl.sum(sum_g, axis), mask=ch < channels)
    if SUMS[1]:
        tl.store(partial + step + row, tl.sum(sum_gn, axis), mask=ch < channels)
    if SUMS[2]:
        tl.store(partial + 2 * step + row, tl.sum(sum_gt, axis), mask=ch < channels)
    if SUMS[3]:
        tl.store(partial + 3 * step + row, tl.sum(sum_s, axis), mask=ch < channels)


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
    bk = min(pow2(channels if nhwc else h * w), settings["TILE"])
    # no more rows than there are: small images would leave most of a tile empty
    bm = max(min(settings["TILE"] // bk, pow2(h * w if nhwc else channels)), 1)
    noise = flat_noise(o.noise, t)
    pointers = tuple(t if p is None else p.contiguous() for p in (o.d, noise, o.strength, o.bias, o.next_styles))
    numbers = (h * w, channels, h * w if noise is not None and noise.shape[0] == n and n > 1 else 0)
    has = (o.d is not None, noise is not None, o.strength is not None, o.bias is not None)
    act, alpha, gain, clamp = o.act
    constants = {"ACT": (act, alpha, gain, as_held(clamp, t.dtype)), "HAS": has, "NHWC": nhwc}
    constants |= {"ACC": accumulator(t.dtype), "BM": bm, "BK": bk}
    return key, settings, pointers, numbers, constants


def forward(t: Tensor, o: Operands, plain: bool = True) -> tuple[Tensor, Tensor]:
    """(v, v · next_styles) of t [N, C, H, W], in its dtype and memory format; empty where not `plain` or no style."""
    t = dense(t)
    styled = o.next_styles is not None
    y = torch.empty_like(t) if plain else t.new_empty(0)
    ys = torch.empty_like(t) if styled else t.new_empty(0)
    if _impl.launching() and t.numel():
        key, settings, pointers, numbers, constants = _plan("layer_forward", t, o)
        rows, cols = numbers[:2] if constants["NHWC"] else numbers[1::-1]
        grid = (cdiv(rows, constants["BM"]) * cdiv(cols, constants["BK"]), t.shape[0])
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
    nhwc, bm, bk = (constants[k] for k in ("NHWC", "BM", "BK"))
    blocks, tiles = cdiv(channels, bk if nhwc else bm), cdiv(numbers[0], bm if nhwc else bk)
    many = max(1, min(tiles, cdiv(programs(saved, settings["WAVES"]), blocks * n)))
    partial = torch.empty([4, n, many, channels], dtype=dtype, device=saved.device)
    constants |= {"READS": (dy is not None, dys is not None, v is None), "SUMS": sums}
    args = (saved if dy is None else dy, saved if dys is None else dys, saved, *pointers, dt, partial, *numbers)
    launch(_backward, "layer_backward", key, (blocks, many, n), args, constants, settings)
    return dt, partial[:, :, 0] if many == 1 else partial.sum(2)
