"""Triton kernels that scale, cast and lay out all weights of a network, and give their gradients, in one launch each.

A program takes a tile of (output, input) channels of one weight. Which one it is stands in a table made once.
"""

import functools
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._triton import CONFIGS, accumulator, config, launch

CONFIGS["prepare_weights"] = (
    {"ROWS": 16, "COLS": 64, "num_warps": 4},
    {"ROWS": 32, "COLS": 64, "num_warps": 8},
)
CONFIGS["prepare_weights_backward"] = CONFIGS["prepare_weights"]


@triton.jit
def _tile(blocks, weights, gains, ROWS: tl.constexpr, COLS: tl.constexpr, ACC: tl.constexpr):
    """(flags, where the weight begins, where its energy begins, O, I, k·k, its gain, first o, first i)."""
    pid = tl.program_id(0).to(tl.int64)
    weight = tl.load(blocks + 3 * pid)
    row = weights + 6 * weight
    gain = tl.load(gains + weight).to(ACC)
    o, i = tl.load(blocks + 3 * pid + 1) * ROWS, tl.load(blocks + 3 * pid + 2) * COLS
    flags, begin, energy = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    return flags, begin, energy, tl.load(row + 3), tl.load(row + 4), tl.load(row + 5), gain, o, i


@triton.jit
def _scale(flat, ks, energies, o, i, shape, gain, has_energy, TURNED: tl.constexpr, ACC: tl.constexpr):
    """One tile; o and i are numbered so that neighbours in the result are neighbours in it."""
    outer, inner, taps = shape
    mask = (o < outer) & (i < inner)
    total = tl.zeros([i.shape[0], o.shape[1]] if TURNED else [o.shape[0], i.shape[1]], ACC)
    for tap in range(taps):
        w = tl.load(flat + (o * inner + i) * taps + tap, mask=mask, other=0.0).to(ACC)
        total += w * w
        if TURNED:
            tl.store(ks + (i * taps + tap) * outer + o, w * gain, mask=mask)
        else:
            tl.store(ks + (o * taps + tap) * inner + i, w * gain, mask=mask)
    tl.store(energies + o * inner + i, total, mask=mask & has_energy)


@triton.jit
def _forward(flat, blocks, weights, gains, ks, energies, ROWS: tl.constexpr, COLS: tl.constexpr, ACC: tl.constexpr):
    flags, begin, energy, outer, inner, taps, gain, o, i = _tile(blocks, weights, gains, ROWS, COLS, ACC)
    shape, rows, cols = (outer, inner, taps), tl.arange(0, ROWS), tl.arange(0, COLS)
    flat, ks, energies = flat + begin, ks + begin, energies + energy
    if flags & 1:
        _scale(flat, ks, energies, o + rows[None, :], i + cols[:, None], shape, gain, flags > 1, True, ACC)
    else:
        _scale(flat, ks, energies, o + rows[:, None], i + cols[None, :], shape, gain, flags > 1, False, ACC)


@triton.jit
def _backward(
    dk,
    de,
    flat,
    blocks,
    weights,
    gains,
    dflat,
    ENERGY: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    ACC: tl.constexpr,
):
    flags, begin, energy, outer, inner, taps, gain, first_o, first_i = _tile(blocks, weights, gains, ROWS, COLS, ACC)
    o, i = first_o + tl.arange(0, ROWS)[:, None], first_i + tl.arange(0, COLS)[None, :]
    mask = (o < outer) & (i < inner)
    twice = tl.zeros([ROWS, COLS], ACC)
    if ENERGY:
        twice = 2 * tl.load(de + energy + o * inner + i, mask=mask & (flags > 1), other=0.0).to(ACC)
    turned = flags & 1
    for tap in range(taps):
        place = tl.where(turned == 1, (i * taps + tap) * outer + o, (o * taps + tap) * inner + i)
        g = tl.load(dk + begin + place, mask=mask, other=0.0).to(ACC) * gain
        at = begin + (o * inner + i) * taps + tap
        if ENERGY:
            g += tl.load(flat + at, mask=mask & (flags > 1), other=0.0).to(ACC) * twice
        tl.store(dflat + at, g, mask=mask)


# -- launches ---------------------------------------------------------------------------------------------------------


@functools.cache  # as many as there are networks; never dropped, since a captured graph may hold the addresses
def _table(shapes: tuple, gains: tuple, flags: tuple, rows: int, cols: int, device: torch.device, wide: torch.dtype):
    """(blocks [programs, 3]: weight, block of o, block of i; weights [n, 6] as `_tile` reads them; gains [n])."""
    blocks, weights, begin, energy = [], [], 0, 0
    for n, flag in enumerate(flags):
        o, i, k = shapes[3 * n : 3 * n + 3]
        weights.append((flag, begin, energy, o, i, k))
        blocks += [(n, a, b) for a in range(-(-o // rows)) for b in range(-(-i // cols))]
        begin += o * i * k
        energy += o * i if flag > 1 else 0
    return (
        torch.tensor(blocks, dtype=torch.int64, device=device),
        torch.tensor(weights, dtype=torch.int64, device=device),
        torch.tensor(gains, dtype=wide, device=device),
    )


def _plan(kernel: str, flat: Tensor, shapes: Sequence[int], gains: Sequence[float], flags: Sequence[int]):
    settings = config(kernel, str(flat.dtype).removeprefix("torch."), flat)
    wide = torch.promote_types(flat.dtype, torch.float32)
    rows, cols = settings["ROWS"], settings["COLS"]
    table = _table(tuple(shapes), tuple(gains), tuple(flags), rows, cols, flat.device, wide)
    return table, settings, {"ROWS": rows, "COLS": cols, "ACC": accumulator(flat.dtype)}


def forward(
    flat: Tensor, shapes: Sequence[int], gains: Sequence[float], flags: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(all k, all E)."""
    ks = torch.empty_like(flat, dtype=dtype)
    sizes = [math.prod(shapes[3 * n : 3 * n + 2]) for n, flag in enumerate(flags) if flag > 1]
    energies = flat.new_empty(sum(sizes))
    if _impl.launching():
        table, settings, constants = _plan("prepare_weights", flat, shapes, gains, flags)
        args = (flat, *table, ks, energies if sizes else flat)
        launch(_forward, "prepare_weights", str(flat.dtype), (len(table[0]),), args, constants, settings)
    return ks, energies


def backward(
    dk: Tensor, de: Tensor | None, flat: Tensor, shapes: Sequence[int], gains: Sequence[float], flags: Sequence[int]
) -> Tensor:
    """The gradient of `flat`."""
    dflat = torch.empty_like(flat)
    if _impl.launching():
        table, settings, constants = _plan("prepare_weights_backward", flat, shapes, gains, flags)
        args = (dk.contiguous(), flat if de is None else de.contiguous(), flat, *table, dflat)
        constants = {"ENERGY": de is not None} | constants
        launch(_backward, "prepare_weights_backward", str(flat.dtype), (len(table[0]),), args, constants, settings)
    return dflat
