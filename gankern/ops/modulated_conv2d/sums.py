"""The gradients of a layer's small operands from its pass's partial sums, in one launch.

A pass leaves four sums for every part of an image, [4, images, parts, channels] in any order of the middle two; the
second's, which goes over the channels as well, stand one after the other in its place, one of each program. They become
db [C] and dstrength over all images and parts; dd and ds⁺ [N, C] over the parts.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from gankern.ops._layout import cdiv
from gankern.ops._settings import pow2
from gankern.ops._triton import CONFIGS, accumulator, config, launch
from gankern.ops.modulated_conv2d.layer import Operands, sums_dtype

CONFIGS["layer_sums"] = ({"ROWS": 64, "COLS": 64, "num_warps": 4}, {"ROWS": 32, "COLS": 64, "num_warps": 4})


@triton.jit
def store_sum(partial, K: tl.constexpr, total, part, row, program, mask):
    """Leaves a program's K-th sum, of its channels: at `row`, or the second, over them as well, at its own number."""
    if K == 1:
        tl.store(partial + part + program, tl.sum(total))
    else:
        tl.store(partial + K * part + row, total, mask=mask)


@triton.jit
def _total(partial, first, last, images, n_step, m_step, c, inside, ROWS: tl.constexpr, ACC: tl.constexpr):
    """Σ of rows first to last of [parts · images, C], where a row is part r // images of image r % images."""
    total = tl.zeros([ROWS, c.shape[1]], ACC)
    for start in range(first, last, ROWS):
        r = start + tl.arange(0, ROWS)[:, None]
        at = (r % images).to(tl.int64) * n_step + (r // images).to(tl.int64) * m_step + c
        total += tl.load(partial + at, mask=(r < last) & inside, other=0.0)
    return tl.sum(total, 0, keep_dims=True)


@triton.jit(do_not_specialize=["images", "many", "part", "strengths"])
def _sums(
    partial,
    db,
    dstrength,
    dd,
    dnext,
    images,
    many,
    channels,
    part,
    n_step,
    m_step,
    strengths,
    WANTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    ACC: tl.constexpr,
):
    """Programs (block of channels, n): the sums of image n for n < images, then db, then dstrength."""
    n = tl.program_id(1)
    c = tl.program_id(0) * COLS + tl.arange(0, COLS)[None, :]
    inside = c < channels
    if n < images:
        row, at = partial + n.to(tl.int64) * n_step, n.to(tl.int64) * channels + c
        if WANTED[2]:
            tl.store(dd + at, _total(row + 2 * part, 0, many, 1, n_step, m_step, c, inside, ROWS, ACC), mask=inside)
        if WANTED[3]:
            tl.store(dnext + at, _total(row + 3 * part, 0, many, 1, n_step, m_step, c, inside, ROWS, ACC), mask=inside)
    elif n == images:
        if WANTED[0]:
            total = _total(partial, 0, many * images, images, n_step, m_step, c, inside, ROWS, ACC)
            tl.store(db + c, total, mask=inside)
    elif tl.program_id(0) == 0:  # there is such a row only where the strength's gradient is wanted
        all_of_them = tl.zeros([ROWS * COLS], ACC)
        for start in range(0, strengths, ROWS * COLS):
            k = start + tl.arange(0, ROWS * COLS)
            all_of_them += tl.load(partial + part + k, mask=k < strengths, other=0.0)
        tl.store(dstrength, tl.sum(all_of_them))


def gradients_of(v: Tensor, o: Operands, wanted: Sequence[bool]) -> list[Tensor | None]:
    """Room for (db, dstrength, dd, ds⁺) of an output v [N, C, H, W]; None for those not `wanted`."""
    n, channels = v.shape[:2]
    wide = sums_dtype(v)
    kinds = (
        ([channels], o.bias.dtype if wanted[0] else wide),
        ([], o.strength.dtype if wanted[1] else wide),
        ([n, channels], wide),
        ([n, channels], o.next_styles.dtype if wanted[3] else wide),
    )
    return [
        torch.empty(shape, dtype=dtype, device=v.device) if want else None
        for (shape, dtype), want in zip(kinds, wanted, strict=True)
    ]


def total_up(partial: Tensor, gradients: list[Tensor | None], strengths: int, *, parts_first: bool = False) -> None:
    """Fills `gradients`, those of them that are there, from partial [4, N, parts, C], or [4, parts, N, C]; `strengths`:
    how many programs left a sum for the strength."""
    wanted = tuple(t is not None for t in gradients)
    if not any(wanted):
        return
    n, many, channels = (partial.shape[k] for k in ((2, 1, 3) if parts_first else (1, 2, 3)))
    n_step, m_step = (channels, n * channels) if parts_first else (many * channels, channels)
    settings = config("layer_sums", str(partial.dtype).removeprefix("torch."), partial)
    cols = min(settings["COLS"], max(16, pow2(channels)))
    blocks = cdiv(channels, cols)
    args = tuple(partial if t is None else t for t in gradients)
    numbers = (n, many, channels, n * many * channels, n_step, m_step, strengths)
    constants = {"WANTED": wanted, "ROWS": settings["ROWS"], "COLS": cols, "ACC": accumulator(partial.dtype)}
    grid = (blocks, n + 2 if wanted[1] else n + 1)
    launch(_sums, "layer_sums", str(partial.dtype), grid, (partial, *args, *numbers), constants, settings)
