"""The Triton kernel beside cuDNN's graphs: from what reaches a layer's output to the gradient of its convolution, and
every sum over the image that the layer's small gradients are made of. Images are channels_last.

    y = saved/s     E = s·dx + Σ_j m_j·dimg_j     h = lrelu'(y)·E     writes dt = scale·h
    Σ y·dx          Σ h          Σ h·noise          Σ y·dimg_j

dx is of the layer that reads s·y, dimg_j are the three maps of the to-RGB layer that reads y: either may be missing.
One pass, dx and saved in, dt out: 3.0 of an activation, as against 5 where to-RGB's gradient is a tensor of its own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._layout import cdiv, dense_like
from gankern.ops._settings import pow2, size_class
from gankern.ops._triton import CONFIGS, accumulator, config, launch, programs
from gankern.ops.modulated_conv2d.kernels import numbers, place

CONFIGS["chain_gradient"] = (  # six running sums a value: few values a thread keep the registers within two blocks
    {"TILE": 1024, "num_warps": 4, "WAVES": 8},
    {"TILE": 2048, "num_warps": 8, "WAVES": 4},
    {"TILE": 512, "num_warps": 2, "WAVES": 16},
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
def _chain_gradient(
    dx,
    image,
    saved,
    style,
    inverse,
    matrix,
    scale,
    noise,
    dt,
    partial,
    pixels,
    channels,
    matrix_step,
    matrix_row,
    noise_step,
    ALPHA: tl.constexpr,
    DX: tl.constexpr,
    RGB: tl.constexpr,
    NOISE: tl.constexpr,
    ACC: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
):
    """Program (j, i, n): the channels of block j, and every tile i + k·programs of image n's pixels. Without dx, saved
    is y."""
    i, n = tl.program_id(1), tl.program_id(2).to(tl.int64)
    c = numbers(tl.program_id(0) * BC, BC, False)
    by = _row(scale, channels, n, c, channels, ACC)
    if DX:
        s, to_y = _row(style, channels, n, c, channels, ACC), _row(inverse, channels, n, c, channels, ACC)
    if RGB:
        m0 = _row(matrix, matrix_step, n, c, channels, ACC)
        m1 = _row(matrix + matrix_row, matrix_step, n, c, channels, ACC)
        m2 = _row(matrix + 2 * matrix_row, matrix_step, n, c, channels, ACC)
    zero = tl.zeros([BP, BC], ACC)
    sum_x, sum_h, sum_hn, sum_0, sum_1, sum_2 = zero, zero, zero, zero, zero, zero
    for step in range(i, tl.cdiv(pixels, BP), tl.num_programs(1)):
        px = numbers(step * BP, BP, True)
        at, mask = place(c, px, n, pixels, channels, True)
        y = tl.load(saved + at, mask=mask, other=0.0).to(ACC)
        e = zero
        if DX:
            y *= to_y
            raw = tl.load(dx + at, mask=mask, other=0.0).to(ACC)
            sum_x += y * raw
            e += s * raw
        if RGB:
            first = image + n * 3 * pixels + px
            i0 = tl.load(first, mask=px < pixels, other=0.0).to(ACC)
            i1 = tl.load(first + pixels, mask=px < pixels, other=0.0).to(ACC)
            i2 = tl.load(first + 2 * pixels, mask=px < pixels, other=0.0).to(ACC)
            e += m0 * i0 + m1 * i1 + m2 * i2
            sum_0 += y * i0
            sum_1 += y * i1
            sum_2 += y * i2
        h = tl.where(y > 0, e, e * ALPHA)
        tl.store(dt + at, h * by, mask=mask)
        sum_h += h
        if NOISE:
            sum_hn += h * tl.load(noise + n * noise_step + px, mask=px < pixels, other=0.0).to(ACC)
    _store(partial, 0, sum_x, i, n, c, channels)
    _store(partial, 1, sum_h, i, n, c, channels)
    _store(partial, 2, sum_hn, i, n, c, channels)
    _store(partial, 3, sum_0, i, n, c, channels)
    _store(partial, 4, sum_1, i, n, c, channels)
    _store(partial, 5, sum_2, i, n, c, channels)


# -- launches ---------------------------------------------------------------------------------------------------------


def chain_gradient(
    dx: Tensor | None,
    image: Tensor | None,
    saved: Tensor,
    style: Tensor | None,
    inverse: Tensor | None,
    matrix: Tensor | None,
    scale: Tensor,
    noise: Tensor | None,
    alpha: float,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(dt, sums [6, N, C], in `out` where given) of dx [N, C, H, W] with style and inverse [N, C], and of image [N, 3,
    H, W] with matrix [N, 3, C]: one of the two or both. scale [N, C]; noise [1 or N, 1, H, W]."""
    n, channels, h, w = saved.shape
    key = f"{str(saved.dtype).removeprefix('torch.')} {size_class(channels)} {size_class(h * w)}"
    settings = config("chain_gradient", key, saved)
    across = min(pow2(channels), settings["TILE"])
    down = min(pow2(h * w), max(settings["TILE"] // across, 1))
    blocks, tiles = cdiv(channels, across), cdiv(h * w, down)
    many = max(1, min(tiles, cdiv(programs(saved, settings["WAVES"]), blocks * n)))
    dt, wide = torch.empty_like(saved), torch.promote_types(saved.dtype, torch.float32)
    partial = torch.empty([6, n, many, channels], dtype=wide, device=saved.device)
    if _impl.launching() and saved.numel():
        rows = [saved if t is None else t.contiguous() for t in (style, inverse)]
        steps = (matrix.stride(0), matrix.stride(1)) if matrix is not None else (0, 0)
        noise_step = noise[0].numel() if noise is not None and len(noise) > 1 else 0
        dx_ = saved if dx is None else dense_like(dx, saved)
        image_, noise_ = (saved if t is None else t.contiguous() for t in (image, noise))
        args = (dx_, image_, saved, *rows, saved if matrix is None else matrix, scale.contiguous(), noise_, dt, partial)
        constants = {"ALPHA": alpha, "DX": dx is not None, "RGB": image is not None, "NOISE": noise is not None}
        constants |= {"BC": across, "BP": down, "ACC": accumulator(saved.dtype)}
        numbers_ = (h * w, channels, *steps, noise_step)
        launch(_chain_gradient, "chain_gradient", key, (blocks, many, n), args + numbers_, constants, settings)
    return dt, torch.sum(partial, 2, out=out)
