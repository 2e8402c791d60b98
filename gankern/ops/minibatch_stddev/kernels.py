"""Triton kernels of minibatch_stddev: copy and statistic in one pass, for values, gradients and second order.

A program takes one group of samples and one group of channels, item by item: the items of a sample are its channels
and pixels, and a tile holds [samples of the group, items], so that each number is read once. A group's few numbers at
4x4 fit one program, which fills the appended map too; a large one is split in chunks, whose sums a second launch adds
in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._layout import cdiv, dense, dense_as, dense_like, empty, is_channels_last
from gankern.ops._settings import pow2, size_class
from gankern.ops._triton import CONFIGS, accumulator, config, launch, programs

# ALONE: the most numbers that one program takes of a group
CONFIGS["minibatch_stddev_forward"] = (
    {"TILE": 8192, "num_warps": 16, "ALONE": 65536, "WAVES": 4},
    {"TILE": 4096, "num_warps": 8, "ALONE": 32768, "WAVES": 4},
    {"TILE": 2048, "num_warps": 4, "ALONE": 32768, "WAVES": 8},
)
CONFIGS["minibatch_stddev_backward"] = (
    {"TILE": 8192, "num_warps": 16, "ALONE": 65536, "WAVES": 4},
    {"TILE": 4096, "num_warps": 8, "ALONE": 32768, "WAVES": 4},
)
CONFIGS["minibatch_stddev_second"] = (
    {"TILE": 4096, "num_warps": 16, "ALONE": 65536, "WAVES": 4},
    {"TILE": 2048, "num_warps": 16, "ALONE": 65536, "WAVES": 4},
    {"TILE": 8192, "num_warps": 16, "ALONE": 65536, "WAVES": 4},
)
CONFIGS["minibatch_stddev_fill"] = ({"TILE": 2048, "num_warps": 4},)


# -- where things lie -------------------------------------------------------------------------------------------------


@triton.jit
def _items(first, f, c, channels, hw, total, LAST: tl.constexpr, BT: tl.constexpr):
    """Items of channel group f: offsets in a sample of `channels` and in one of `total` channels; which exist."""
    i = first + tl.arange(0, BT)
    if LAST:
        p = i // c
        j = f * c + i - p * c
        return p * channels + j, p * total + j, i < c * hw
    else:
        at = f * c * hw + i
        return at, at, i < c * hw


@triton.jit
def _samples(first, m, groups, group, BG: tl.constexpr):
    """Members `first` to `first + BG` of group m: sample numbers (64 bits) and which exist."""
    g = first + tl.arange(0, BG)
    return ((g * groups + m).to(tl.int64))[:, None], (g < group)[:, None]


@triton.jit
def _map_at(p, channel, total, hw, LAST: tl.constexpr):
    """Offsets of pixels p of one channel within a sample of `total` channels."""
    return p * total + channel if LAST else channel * hw + p


@triton.jit
def _fill_map(y, value, f, m, groups, group, channels, total, hw, LAST: tl.constexpr, BG: tl.constexpr):
    """The same number at every pixel of channel `channels + f`, in every sample of group m."""
    for first in range(0, group, BG):
        n, alive = _samples(first, m, groups, group, BG)
        for pixel in range(0, hw, 64):
            p = pixel + tl.arange(0, 64)
            offsets = n * total * hw + _map_at(p, channels + f, total, hw, LAST)[None, :]
            tl.store(y + offsets, tl.zeros([BG, 64], value.dtype) + value, mask=alive & (p < hw)[None, :])


@triton.jit
def _map_sum(dy, f, m, groups, group, channels, total, hw, LAST: tl.constexpr, ACC: tl.constexpr, BG: tl.constexpr):
    """Σ of channel `channels + f` over the pixels and the samples of group m."""
    t = tl.zeros([BG, 64], ACC)
    for first in range(0, group, BG):
        n, alive = _samples(first, m, groups, group, BG)
        for pixel in range(0, hw, 64):
            p = pixel + tl.arange(0, 64)
            offsets = n * total * hw + _map_at(p, channels + f, total, hw, LAST)[None, :]
            t += tl.load(dy + offsets, mask=alive & (p < hw)[None, :], other=0.0).to(ACC)
    return tl.sum(t)


@triton.jit
def _mean(t, place, ACC: tl.constexpr, BG: tl.constexpr, BT: tl.constexpr):
    """Mean over the group's samples, item by item. place: t's items, which exist, how far samples are apart, group m,
    how many groups, how large, and where the loop over samples ends."""
    at, alive, step, m, groups, group, end = place
    total = tl.zeros([BT], ACC)
    for first in range(0, end, BG):
        n, there = _samples(first, m, groups, group, BG)
        u = tl.load(t + n * step + at[None, :], mask=there & alive[None, :], other=0.0).to(ACC)
        total += tl.sum(u, 0)
    return total / group


@triton.jit
def _statistics(x, v, place, EPS: tl.constexpr, ACC: tl.constexpr, BG: tl.constexpr, BT: tl.constexpr):
    """(μ [1, items], σ, Σ v·(x − μ) over the group's samples unless v is None) of x's items at `place`."""
    mean = _mean(x, place, ACC, BG, BT)[None, :]
    at, alive, step, m, groups, group, end = place
    squares, shared = tl.zeros([BT], ACC), tl.zeros([BT], ACC)
    for first in range(0, end, BG):
        n, there = _samples(first, m, groups, group, BG)
        mask = there & alive[None, :]
        d = tl.load(x + n * step + at[None, :], mask=mask, other=0.0).to(ACC) - mean
        d = tl.where(there, d, tl.zeros([BG, BT], ACC))
        if v is not None:
            w = tl.load(v + n * step + at[None, :], mask=mask, other=0.0).to(ACC)
            shared += tl.sum(d * w, 0)
        squares += tl.sum(d * d, 0)
    return mean, tl.sqrt(squares / group + EPS), shared


# -- kernels ----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["groups", "group", "many"])
def _forward(
    x,
    y,
    partial,
    groups,
    group,
    c,
    channels,
    hw,
    total,
    many,
    EPS: tl.constexpr,
    ALONE: tl.constexpr,
    ONE: tl.constexpr,
    LAST: tl.constexpr,
    ACC: tl.constexpr,
    BG: tl.constexpr,
    BT: tl.constexpr,
):
    """Copies x's channels into y and sums σ over the items that it saw."""
    parts = total - channels
    m, f = tl.program_id(0) // parts, tl.program_id(0) % parts
    end = BG if ONE else group  # one trip: the compiler makes the loads below one
    step = channels * hw
    sigmas = tl.zeros([BT], ACC)
    for first_item in range(tl.program_id(1) * BT, c * hw, many * BT):
        at, to, alive = _items(first_item, f, c, channels, hw, total, LAST, BT)
        place = (at, alive, step, m, groups, group, end)
        _, sigma, _ = _statistics(x, None, place, EPS, ACC, BG, BT)
        for first in range(0, end, BG):
            n, there = _samples(first, m, groups, group, BG)
            u = tl.load(x + n * step + at[None, :], mask=there & alive[None, :], other=0.0).to(ACC)
            tl.store(y + n * total * hw + to[None, :], u, mask=there & alive[None, :])
        sigmas += tl.where(alive, sigma, tl.zeros([BT], ACC))
    s = tl.sum(sigmas)
    if ALONE:
        _fill_map(y, s / (c * hw), f, m, groups, group, channels, total, hw, LAST, BG)
    else:
        tl.store(partial + tl.program_id(0) * many + tl.program_id(1), s)


@triton.jit(do_not_specialize=["groups", "group", "many"])
def _fill(
    y,
    partial,
    groups,
    group,
    channels,
    hw,
    total,
    many,
    items,
    LAST: tl.constexpr,
    ACC: tl.constexpr,
    BP: tl.constexpr,
    BT: tl.constexpr,
):
    """Σ partial / items into the map; a program takes a sample's channel group and a block of pixels."""
    parts = total - channels
    n, f = tl.program_id(0) // parts, tl.program_id(0) % parts
    row = (n % groups) * parts + f
    sums = tl.zeros([BP], ACC)
    for first in range(0, many, BP):
        i = first + tl.arange(0, BP)
        sums += tl.load(partial + row * many + i, mask=i < many, other=0.0)
    p = tl.program_id(1) * BT + tl.arange(0, BT)
    offsets = n.to(tl.int64) * total * hw + _map_at(p, channels + f, total, hw, LAST)
    tl.store(y + offsets, tl.zeros([BT], ACC) + tl.sum(sums) / items, mask=p < hw)


@triton.jit(do_not_specialize=["groups", "group", "many"])
def _backward(
    dy,
    x,
    dx,
    sums,
    groups,
    group,
    c,
    channels,
    hw,
    total,
    many,
    EPS: tl.constexpr,
    ALONE: tl.constexpr,
    ONE: tl.constexpr,
    LAST: tl.constexpr,
    ACC: tl.constexpr,
    BG: tl.constexpr,
    BT: tl.constexpr,
):
    """dx = dy + t·(x − μ)/σ, where t = Σ of dy's map / (G·items) is summed here (ALONE) or given."""
    parts = total - channels
    m, f = tl.program_id(0) // parts, tl.program_id(0) % parts
    end = BG if ONE else group
    step = channels * hw
    if ALONE:
        t = _map_sum(dy, f, m, groups, group, channels, total, hw, LAST, ACC, BG)
    else:
        t = tl.load(sums + tl.program_id(0))
    t = t / (c * hw) / group
    for first_item in range(tl.program_id(1) * BT, c * hw, many * BT):
        at, to, alive = _items(first_item, f, c, channels, hw, total, LAST, BT)
        place = (at, alive, step, m, groups, group, end)
        mean, sigma, _ = _statistics(x, None, place, EPS, ACC, BG, BT)
        scale = (t / sigma)[None, :]
        for first in range(0, end, BG):
            n, there = _samples(first, m, groups, group, BG)
            mask = there & alive[None, :]
            u = tl.load(x + n * step + at[None, :], mask=mask, other=0.0).to(ACC)
            g = tl.load(dy + n * total * hw + to[None, :], mask=mask, other=0.0).to(ACC)
            tl.store(dx + n * step + at[None, :], g + scale * (u - mean), mask=mask)


@triton.jit(do_not_specialize=["groups", "group", "many"])
def _second(
    v,
    dy,
    x,
    grad_dy,
    grad_x,
    sums,
    partial,
    groups,
    group,
    c,
    channels,
    hw,
    total,
    many,
    EPS: tl.constexpr,
    ALONE: tl.constexpr,
    ONE: tl.constexpr,
    LAST: tl.constexpr,
    ACC: tl.constexpr,
    BG: tl.constexpr,
    BT: tl.constexpr,
):
    """grad_x = t·((v − mean v)/σ − (x − μ)·mean(v(x − μ))/σ³); v goes into grad_dy, and Σ v·(x − μ)/σ for its map."""
    parts = total - channels
    m, f = tl.program_id(0) // parts, tl.program_id(0) % parts
    end = BG if ONE else group
    step = channels * hw
    if ALONE:
        t = _map_sum(dy, f, m, groups, group, channels, total, hw, LAST, ACC, BG)
    else:
        t = tl.load(sums + tl.program_id(0))
    t = t / (c * hw) / group
    products = tl.zeros([BT], ACC)
    for first_item in range(tl.program_id(1) * BT, c * hw, many * BT):
        at, to, alive = _items(first_item, f, c, channels, hw, total, LAST, BT)
        place = (at, alive, step, m, groups, group, end)
        v_mean = _mean(v, place, ACC, BG, BT)[None, :]
        mean, sigma, shared = _statistics(x, v, place, EPS, ACC, BG, BT)
        rs = 1 / sigma
        slope = (rs * rs * shared / group)[None, :]
        for first in range(0, end, BG):
            n, there = _samples(first, m, groups, group, BG)
            mask = there & alive[None, :]
            d = tl.load(x + n * step + at[None, :], mask=mask, other=0.0).to(ACC) - mean
            w = tl.load(v + n * step + at[None, :], mask=mask, other=0.0).to(ACC)
            tl.store(grad_dy + n * total * hw + to[None, :], w, mask=mask)
            tl.store(grad_x + n * step + at[None, :], (t * rs)[None, :] * (w - v_mean - slope * d), mask=mask)
        products += tl.where(alive, shared * rs, tl.zeros([BT], ACC))
    s = tl.sum(products) / group
    if ALONE:
        _fill_map(grad_dy, s / (c * hw), f, m, groups, group, channels, total, hw, LAST, BG)
    else:
        tl.store(partial + tl.program_id(0) * many + tl.program_id(1), s)


# -- launches ---------------------------------------------------------------------------------------------------------


def _plan(name: str, x: Tensor, group: int, num_channels: int) -> tuple[str, dict, int, bool, dict]:
    """(shape class, settings, programs a group, whether that is one, constants)."""
    n, channels, h, w = x.shape
    items = channels // num_channels * h * w
    last = is_channels_last(x)
    key = f"{str(x.dtype).removeprefix('torch.')} {'nhwc' if last else 'nchw'} {size_class(items)}"
    settings = config(name, key, x)
    bg = min(pow2(group), 16, settings["TILE"])
    bt = min(pow2(items), max(settings["TILE"] // bg, 1))
    alone = items * group <= settings["ALONE"]
    across = max(n // group * num_channels, 1)
    many = 1 if alone else min(cdiv(items, bt), cdiv(programs(x, settings["WAVES"]), across), 65535)
    constants = {"ALONE": alone, "ONE": bg >= group, "LAST": last, "ACC": accumulator(x.dtype), "BG": bg, "BT": bt}
    return key, settings, many, alone, constants


def _sizes(x: Tensor, group: int, num_channels: int) -> tuple[int, ...]:
    """(groups, group, channels a part, channels, pixels, channels of y)."""
    n, c, h, w = x.shape
    return n // group, group, c // num_channels, c, h * w, c + num_channels


def _wide_empty(x: Tensor, size: int) -> Tensor:
    return torch.empty(size, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


def _launch_fill(y: Tensor, partial: Tensor, key: str, sizes: tuple[int, ...], many: int) -> None:
    groups, group, c, channels, hw, total = sizes
    settings = config("minibatch_stddev_fill", key, y)
    bt = min(pow2(hw), settings["TILE"])
    constants = {"LAST": is_channels_last(y), "ACC": accumulator(y.dtype), "BP": 128, "BT": bt}
    grid = (groups * group * (total - channels), cdiv(hw, bt))
    args = (y, partial, groups, group, channels, hw, total, many, c * hw)
    launch(_fill, "minibatch_stddev_fill", key, grid, args, constants, settings)


def _map_sums(dy: Tensor, x: Tensor, group: int) -> Tensor:
    """Σ of dy's maps over the pixels and each group's samples: [groups · parts]."""
    t = dy[:, x.shape[1] :].sum([2, 3], dtype=torch.promote_types(x.dtype, torch.float32))
    return t.reshape(group, -1).sum(0)


def forward(x: Tensor, group: int, num_channels: int, eps: float) -> Tensor:
    """y [N, C + num_channels, H, W] in x's dtype and memory format."""
    x = dense(x)
    n, c, h, w = x.shape
    y = empty([n, c + num_channels, h, w], x)
    if not _impl.launching():
        return y
    key, settings, many, alone, constants = _plan("minibatch_stddev_forward", x, group, num_channels)
    sizes = _sizes(x, group, num_channels)
    across = sizes[0] * num_channels
    partial = _wide_empty(x, across * many)
    args = (x, y, partial, *sizes, many)
    launch(_forward, "minibatch_stddev_forward", key, (across, many), args, {"EPS": eps} | constants, settings)
    if not alone:
        _launch_fill(y, partial, key, sizes, many)
    return y


def backward(dy: Tensor, x: Tensor, group: int, num_channels: int, eps: float) -> Tensor:
    """dx in x's dtype and memory format."""
    x = dense(x)
    dy, dx = dense_as(dy, is_channels_last(x)), torch.empty_like(x)
    if not _impl.launching():
        return dx
    key, settings, many, alone, constants = _plan("minibatch_stddev_backward", x, group, num_channels)
    sizes = _sizes(x, group, num_channels)
    sums = x if alone else _map_sums(dy, x, group)
    args, grid = (dy, x, dx, sums, *sizes, many), (sizes[0] * num_channels, many)
    launch(_backward, "minibatch_stddev_backward", key, grid, args, {"EPS": eps} | constants, settings)
    return dx


def second(v: Tensor, dy: Tensor, x: Tensor, group: int, num_channels: int, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients of <dx, v> with respect to dy and x."""
    x = dense(x)
    v, dy = dense_like(v, x), dense_as(dy, is_channels_last(x))
    grad_dy, grad_x = torch.empty_like(dy), torch.empty_like(x)
    if not _impl.launching():
        return grad_dy, grad_x
    key, settings, many, alone, constants = _plan("minibatch_stddev_second", x, group, num_channels)
    sizes = _sizes(x, group, num_channels)
    across = sizes[0] * num_channels
    sums, partial = x if alone else _map_sums(dy, x, group), _wide_empty(x, across * many)
    args = (v, dy, x, grad_dy, grad_x, sums, partial, *sizes, many)
    launch(_second, "minibatch_stddev_second", key, (across, many), args, {"EPS": eps} | constants, settings)
    if not alone:
        _launch_fill(grad_dy, partial, key, sizes, many)
    return grad_dy, grad_x
