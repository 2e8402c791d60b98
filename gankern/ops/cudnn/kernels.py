"""Triton kernels beside cuDNN's graphs: the gradient that reaches a layer through its to-RGB layer alone, and the sums
of a layer's gradient where a graph can't have them. Images are channels_last.

    rgb_gradient      E = Σ_j m_j·dimg_j    h = lrelu'(y)·E    writes dt = scale·h and Σ h, Σ h·noise, Σ y·dimg_j
    gradient_sums     h = dt/scale          E = h/lrelu'(y)    writes Σ h, Σ h·noise, Σ E·y

The first moves y and dt, 2.0 of an activation, where a matrix product and the layer's pass move 4.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._layout import cdiv
from gankern.ops._settings import pow2, size_class
from gankern.ops._triton import CONFIGS, accumulator, config, launch, programs
from gankern.ops.modulated_conv2d.kernels import numbers, place

CONFIGS["rgb_gradient"] = (
    {"TILE": 1024, "num_warps": 4, "WAVES": 8},
    {"TILE": 2048, "num_warps": 8, "WAVES": 4},
    {"TILE": 2048, "num_warps": 4, "WAVES": 4},
)
CONFIGS["gradient_sums"] = (
    {"TILE": 2048, "num_warps": 4, "WAVES": 8},
    {"TILE": 4096, "num_warps": 8, "WAVES": 4},
)


@triton.jit
def _row(t, step, n, c, channels, ACC: tl.constexpr):
    """t[n, c] of a [N, C] whose samples lie `step` apart."""
    return tl.load(t + n * step + c, mask=c < channels, other=0.0).to(ACC)


@triton.jit
def _store(partial, K: tl.constexpr, total, i, n, c, channels):
    """Program i's K-th sum of image n, into partial [sums, N, programs, C]."""
    part = tl.num_programs(2).to(tl.int64) * tl.num_programs(1) * channels
    at = K * part + (n * tl.num_programs(1) + i) * channels + c
    tl.store(partial + at, tl.sum(total, 0, keep_dims=True), mask=c < channels)


@triton.jit
def _rgb_gradient(
    image,
    matrix,
    saved,
    scale,
    noise,
    dt,
    partial,
    pixels,
    channels,
    matrix_step,
    matrix_row,
    scale_step,
    noise_step,
    ALPHA: tl.constexpr,
    NOISE: tl.constexpr,
    ACC: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
):
    """Program (j, i, n): the channels of block j, and every tile i + k·programs of image n's pixels."""
    i, n = tl.program_id(1), tl.program_id(2).to(tl.int64)
    c = numbers(tl.program_id(0) * BC, BC, False)
    m0 = _row(matrix, matrix_step, n, c, channels, ACC)
    m1 = _row(matrix + matrix_row, matrix_step, n, c, channels, ACC)
    m2 = _row(matrix + 2 * matrix_row, matrix_step, n, c, channels, ACC)
    by = _row(scale, scale_step, n, c, channels, ACC)
    zero = tl.zeros([BP, BC], ACC)
    sum_h, sum_hn, sum_0, sum_1, sum_2 = zero, zero, zero, zero, zero
    for step in range(i, tl.cdiv(pixels, BP), tl.num_programs(1)):
        px = numbers(step * BP, BP, True)
        at, mask = place(c, px, n, pixels, channels, True)
        first = image + n * 3 * pixels + px
        i0 = tl.load(first, mask=px < pixels, other=0.0).to(ACC)
        i1 = tl.load(first + pixels, mask=px < pixels, other=0.0).to(ACC)
        i2 = tl.load(first + 2 * pixels, mask=px < pixels, other=0.0).to(ACC)
        y = tl.load(saved + at, mask=mask, other=0.0).to(ACC)
        e = m0 * i0 + m1 * i1 + m2 * i2
        h = tl.where(y > 0, e, e * ALPHA)
        tl.store(dt + at, h * by, mask=mask)
        sum_h += h
        if NOISE:
            sum_hn += h * tl.load(noise + n * noise_step + px, mask=px < pixels, other=0.0).to(ACC)
        sum_0 += y * i0
        sum_1 += y * i1
        sum_2 += y * i2
    _store(partial, 0, sum_h, i, n, c, channels)
    if NOISE:
        _store(partial, 1, sum_hn, i, n, c, channels)
    _store(partial, 2, sum_0, i, n, c, channels)
    _store(partial, 3, sum_1, i, n, c, channels)
    _store(partial, 4, sum_2, i, n, c, channels)


@triton.jit
def _gradient_sums(
    dt,
    saved,
    inverse,
    scale,
    noise,
    partial,
    pixels,
    channels,
    inverse_step,
    scale_step,
    noise_step,
    ALPHA: tl.constexpr,
    NOISE: tl.constexpr,
    ACC: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
):
    """Programs as above."""
    i, n = tl.program_id(1), tl.program_id(2).to(tl.int64)
    c = numbers(tl.program_id(0) * BC, BC, False)
    to_y = _row(inverse, inverse_step, n, c, channels, ACC)
    by = _row(scale, scale_step, n, c, channels, ACC)
    by = tl.where(c < channels, by, tl.full([], 1.0, ACC))
    zero = tl.zeros([BP, BC], ACC)
    sum_h, sum_hn, sum_ey = zero, zero, zero
    for step in range(i, tl.cdiv(pixels, BP), tl.num_programs(1)):
        px = numbers(step * BP, BP, True)
        at, mask = place(c, px, n, pixels, channels, True)
        y = tl.load(saved + at, mask=mask, other=0.0).to(ACC) * to_y
        h = tl.load(dt + at, mask=mask, other=0.0).to(ACC) / by
        sum_h += h
        if NOISE:
            sum_hn += h * tl.load(noise + n * noise_step + px, mask=px < pixels, other=0.0).to(ACC)
        sum_ey += tl.where(y > 0, h, h / ALPHA) * y
    _store(partial, 0, sum_h, i, n, c, channels)
    if NOISE:
        _store(partial, 1, sum_hn, i, n, c, channels)
    _store(partial, 2, sum_ey, i, n, c, channels)


# -- launches ---------------------------------------------------------------------------------------------------------


def _plan(kernel: str, t: Tensor) -> tuple[str, dict, dict, tuple[int, int, int]]:
    """(key, settings, constants, grid) for sums over an image t."""
    n, channels, h, w = t.shape
    key = f"{str(t.dtype).removeprefix('torch.')} {size_class(channels)} {size_class(h * w)}"
    settings = config(kernel, key, t)
    across = min(pow2(channels), settings["TILE"])
    down = min(pow2(h * w), max(settings["TILE"] // across, 1))
    blocks, tiles = cdiv(channels, across), cdiv(h * w, down)
    many = max(1, min(tiles, cdiv(programs(t, settings["WAVES"]), blocks * n)))
    return key, settings, {"BC": across, "BP": down, "ACC": accumulator(t.dtype)}, (blocks, many, n)


def _flat(noise: Tensor | None, t: Tensor) -> tuple[Tensor, int]:
    """A noise map [1 or N, 1, H, W], contiguous, and how far apart two samples' lie; t where there is none."""
    if noise is None:
        return t, 0
    return noise.contiguous(), noise[0].numel() if noise.shape[0] > 1 else 0


def _launch(
    kernel, name: str, t: Tensor, sums: int, pointers: tuple, numbers_: tuple, noise, alpha: float, out: Tensor | None
) -> Tensor:
    """The sums [`sums`, N, C] over t's pixels, in `out` where given; the second is 0 without noise."""
    key, settings, constants, grid = _plan(name, t)
    n, channels, h, w = t.shape
    make = torch.empty if noise is not None else torch.zeros
    partial = make([sums, n, grid[1], channels], dtype=torch.promote_types(t.dtype, torch.float32), device=t.device)
    flat, step = _flat(noise, t)
    args = (*pointers[:-1], flat, *pointers[-1:], partial) if name == "rgb_gradient" else (*pointers, flat, partial)
    constants |= {"ALPHA": alpha, "NOISE": noise is not None}
    if _impl.launching() and t.numel():
        launch(kernel, name, key, grid, (*args, h * w, channels, *numbers_, step), constants, settings)
    return torch.sum(partial, 2, out=out)


def rgb_gradient(
    image: Tensor, matrix: Tensor, saved: Tensor, scale: Tensor, noise: Tensor | None, alpha: float
) -> tuple[Tensor, Tensor]:
    """(dt, sums [5, N, C]) of image [N, 3, H, W] through matrix [N, 3, C], with y `saved`, scale [N, C] and noise
    [1 or N, 1, H, W]."""
    dt = torch.empty_like(saved)
    steps = matrix.stride(0), matrix.stride(1), scale.stride(0)
    pointers = (image.contiguous(), matrix, saved, scale, dt)
    return dt, _launch(_rgb_gradient, "rgb_gradient", saved, 5, pointers, steps, noise, alpha, None)


def gradient_sums(
    dt: Tensor,
    saved: Tensor,
    inverse: Tensor,
    scale: Tensor,
    noise: Tensor | None,
    alpha: float,
    out: Tensor | None = None,
) -> Tensor:
    """Sums [3, N, C], in `out` where given, of a layer's dt, its output `saved` times 1/`inverse` [N, C], scale [N,
    C]."""
    steps, pointers = (inverse.stride(0), scale.stride(0)), (dt, saved, inverse, scale)
    return _launch(_gradient_sums, "gradient_sums", saved, 3, pointers, steps, noise, alpha, out)
