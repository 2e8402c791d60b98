"""Statistics of instance_norm's planes, a plane being one sample's channel, and how planes are tiled and split.

A tile that holds whole planes finds their mean and variance itself (`moments`). A plane that doesn't fit is split in
chunks of pixels: `measure` launches for every chunk's mean and sum of squared deviations (Welford), which the kernels
that follow combine in a fixed order (`combined`). How a plane is split depends on its size alone, not on the batch.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from gankern.ops._layout import cdiv, is_channels_last
from gankern.ops._settings import pow2
from gankern.ops._triton import CONFIGS, accumulator, config, launch
from gankern.ops.pixel_norm.kernels import elements, shape_key, tiling, vectors

# CHUNK: numbers of a chunk, all the planes of a tile together
CONFIGS["instance_norm_statistics"] = (
    {"TILE": 2048, "num_warps": 4, "CHUNK": 32768},
    {"TILE": 4096, "num_warps": 8, "CHUNK": 32768},
    {"TILE": 4096, "num_warps": 8, "CHUNK": 65536},
)
MOST_CHUNKS = {"last": 16, "strided": 64}  # programs combine all of a plane's


# SPEC, of every kernel: (act, alpha, gain, eps, weight_offset, 0 or 1 less than the pixels to divide by, kind of
# weight, kind of bias); a kind is the parameter's number of dimensions: 0 none, 1 [C], 2 [N, C], 3 as x


# -- kernels ----------------------------------------------------------------------------------------------------------


@triton.jit
def moments(u, mask, k, SPEC: tl.constexpr):
    """(mean, 1/σ) of the whole planes in a tile, [BM, 1] each."""
    mean = (tl.sum(u, 1) / k)[:, None]
    d = tl.where(mask, u - mean, tl.full([], 0.0, u.dtype))
    return mean, tl.rsqrt(tl.sum(d * d, 1) / (k - SPEC[5]) + SPEC[3])[:, None]


@triton.jit
def combined(means, squares, plane, alive, k, chunk, chunks, SPEC: tl.constexpr, CP: tl.constexpr):
    """(mean, 1/σ) of planes out of their chunks' (Chan, Golub and LeVeque 1979)."""
    i = tl.arange(0, CP)
    at = plane[:, None] * chunks + i[None, :]
    mask = alive[:, None] & (i < chunks)[None, :]
    part = tl.load(means + at, mask=mask, other=0.0)
    square = tl.load(squares + at, mask=mask, other=0.0)
    count = tl.maximum(tl.minimum(k - i * chunk, chunk), 0).to(part.dtype)[None, :]
    mean = (tl.sum(part * count, 1) / k)[:, None]
    total = tl.sum(square + count * (part - mean) * (part - mean), 1)
    return mean, tl.rsqrt(total / (k - SPEC[5]) + SPEC[3])[:, None]


@triton.jit
def added(sums, plane, alive, chunks, CP: tl.constexpr):
    """The chunks' sums of each plane, [BM, 1]."""
    i = tl.arange(0, CP)
    mask = alive[:, None] & (i < chunks)[None, :]
    return tl.sum(tl.load(sums + plane[:, None] * chunks + i[None, :], mask=mask, other=0.0), 1)[:, None]


@triton.jit(do_not_specialize=["outer"])
def _statistics(
    x,
    means,
    squares,
    outer,
    k,
    inner,
    chunk,
    chunks,
    LAST: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """A chunk's mean and sum of squared deviations: each lane's own first, then all lanes' together."""
    i = tl.program_id(0) % chunks
    begin, alive, plane = vectors(tl.program_id(0) // chunks, outer, k, inner, LAST, BM)
    start = i * chunk
    end = tl.minimum(start + chunk, k)
    mean = tl.zeros([BM, BK], ACC)
    square = tl.zeros([BM, BK], ACC)
    seen = tl.full([], 0.0, ACC)
    for first in range(start, end, BK):
        offsets, mask = elements(begin, alive, first, end, inner, LAST, BK)
        u = tl.load(x + offsets, mask=mask, other=0.0).to(ACC)
        seen += 1
        d = tl.where(mask, u - mean, tl.full([], 0.0, ACC))
        mean += d * (1 / seen)
        square += d * (u - mean)
    lane = tl.arange(0, BK)
    count = (tl.maximum(end - start - lane + (BK - 1), 0) // BK).to(ACC)[None, :]
    total = tl.sum(mean * count, 1) / (end - start)
    d = mean - total[:, None]
    tl.store(means + plane * chunks + i, total, mask=alive)
    tl.store(squares + plane * chunks + i, tl.sum(square + count * d * d, 1), mask=alive)


# -- launches ---------------------------------------------------------------------------------------------------------


def sizes(x: Tensor) -> tuple[int, int, int]:
    """(outer, k, inner) of a dense x, as `pixel_norm` tiles it."""
    n, c, *spatial = x.shape
    return (n, math.prod(spatial), c) if is_channels_last(x) else (n * c, math.prod(spatial), 1)


def tiles(name: str, x: Tensor) -> tuple[str, dict, bool, int, dict]:
    """(shape class, settings, whether a tile holds whole planes, blocks of planes, constants)."""
    outer, k, inner = sizes(x)
    key = shape_key(x, k, inner)
    bm, bk, once, settings = tiling(k, inner, x.element_size(), config(name, key, x))
    constants = {"LAST": inner == 1, "ACC": accumulator(x.dtype), "BM": bm, "BK": bk}
    return key, settings, once, cdiv(outer, bm) if inner == 1 else outer * cdiv(inner, bm), constants


def chunking(x: Tensor) -> tuple[int, int]:
    """(pixels of a chunk, chunks) of planes that are split."""
    _, k, inner = sizes(x)
    numbers = config("instance_norm_statistics", shape_key(x, k, inner), x)["CHUNK"]
    planes = min(pow2(inner), 128 // x.element_size()) if inner > 1 else 1
    chunk = max(numbers // planes, cdiv(k, MOST_CHUNKS["last" if inner == 1 else "strided"]))
    chunk = cdiv(chunk, 16) * 16
    return chunk, cdiv(k, chunk)


def wide_empty(x: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


def measure(x: Tensor, chunk: int, chunks: int) -> Tensor:
    """Means and sums of squared deviations of every plane's chunks: [2, N·C, chunks]."""
    moments = wide_empty(x, 2, x.shape[0] * x.shape[1], chunks)
    key, settings, _, blocks, constants = tiles("instance_norm_statistics", x)
    args = (x, *moments, *sizes(x), chunk, chunks)
    launch(_statistics, "instance_norm_statistics", key, (blocks * chunks,), args, constants, settings)
    return moments
