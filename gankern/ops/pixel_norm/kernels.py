"""Triton kernels of pixel_norm: one pass forward, one backward, one for second order. Here too stands how a tile covers
vectors that are normalised, which `instance_norm` shares.

Memory is [outer, k, inner] with the vectors along k. A tile is [BM vectors, BK of their elements]; where a vector fits
(BK >= k) every tensor is read once, else the program goes along its vectors twice. With inner == 1 (channels_last,
latents [N, C]) the elements of a vector are neighbours, else (NCHW) the vectors are, and a tile takes 64 bytes of them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._layout import around, cdiv, dense, dense_like
from gankern.ops._settings import pow2, size_class
from gankern.ops._triton import CONFIGS, accumulator, config, launch

CONFIGS["pixel_norm_forward"] = (
    {"TILE": 4096, "num_warps": 4},
    {"TILE": 2048, "num_warps": 4},
    {"TILE": 8192, "num_warps": 8},
)
CONFIGS["pixel_norm_backward"] = (
    {"TILE": 4096, "num_warps": 8},
    {"TILE": 2048, "num_warps": 4},
    {"TILE": 8192, "num_warps": 8},
)
CONFIGS["pixel_norm_second"] = (
    {"TILE": 2048, "num_warps": 4},
    {"TILE": 4096, "num_warps": 8},
)


# -- vectors and tiles ------------------------------------------------------------------------------------------------


@triton.jit
def vectors(block, outer, k, inner, LAST: tl.constexpr, BM: tl.constexpr):
    """The block's vectors: where they begin (64 bits), which exist, and their numbers among outer · inner."""
    if LAST:
        i = block.to(tl.int64) * BM + tl.arange(0, BM)
        return i * k, i < outer, i
    else:
        blocks = tl.cdiv(inner, BM)
        o = (block // blocks).to(tl.int64)
        i = (block % blocks) * BM + tl.arange(0, BM)
        return o * k * inner + i, i < inner, o * inner + i


@triton.jit
def elements(begin, alive, first, k, inner, LAST: tl.constexpr, BK: tl.constexpr):
    """Offsets and mask of elements `first` to `first + BK` of each vector."""
    c = first + tl.arange(0, BK)
    mask = alive[:, None] & (c < k)[None, :]
    if LAST:
        return begin[:, None] + c[None, :], mask
    else:
        return begin[:, None] + c.to(tl.int64)[None, :] * inner, mask


def tiling(k: int, inner: int, item_size: int, settings: dict) -> tuple[int, int, bool, dict]:
    """(BM, BK, whether a tile holds whole vectors, settings with warps for that tile)."""
    tile, bk = settings["TILE"], pow2(k)
    most = 4 * tile if inner == 1 else settings.get("STRIDED", 4 * tile)  # where registers would not do
    bm = min(pow2(inner), max(64 // item_size, 1)) if inner > 1 else 1
    while bm * bk > most and bm * item_size > 16:
        bm //= 2
    once = bm * bk <= most
    if once:
        bm = max(bm, tile // bk)
        bm = min(bm, pow2(inner)) if inner > 1 else bm
    else:
        bm = min(pow2(inner), max(128 // item_size, 1), tile) if inner > 1 else 1
        bk = min(bk, max(tile // bm, 1))
    warps = min(16, settings["num_warps"] * max(1, bm * bk // tile))
    return bm, bk, once, settings | {"num_warps": warps}


# -- kernels ----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["outer"])
def _forward(
    x,
    y,
    outer,
    k,
    inner,
    EPS: tl.constexpr,
    LAST: tl.constexpr,
    ONCE: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    begin, alive, _ = vectors(tl.program_id(0), outer, k, inner, LAST, BM)
    squares = tl.zeros([BM, BK], ACC)
    for first in range(0, BK if ONCE else k, BK):
        offsets, mask = elements(begin, alive, first, k, inner, LAST, BK)
        u = tl.load(x + offsets, mask=mask, other=0.0).to(ACC)
        squares += u * u
    r = tl.rsqrt(tl.sum(squares, 1) / k + EPS)[:, None]
    for first in range(0, BK if ONCE else k, BK):
        offsets, mask = elements(begin, alive, first, k, inner, LAST, BK)
        u = tl.load(x + offsets, mask=mask, other=0.0).to(ACC)
        tl.store(y + offsets, u * r, mask=mask)


@triton.jit(do_not_specialize=["outer"])
def _backward(
    dy,
    x,
    dx,
    outer,
    k,
    inner,
    EPS: tl.constexpr,
    LAST: tl.constexpr,
    ONCE: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """dx = r·(dy − r²·m·x), m = mean(x·dy)."""
    begin, alive, _ = vectors(tl.program_id(0), outer, k, inner, LAST, BM)
    squares = tl.zeros([BM, BK], ACC)
    products = tl.zeros([BM, BK], ACC)
    for first in range(0, BK if ONCE else k, BK):
        offsets, mask = elements(begin, alive, first, k, inner, LAST, BK)
        u = tl.load(x + offsets, mask=mask, other=0.0).to(ACC)
        g = tl.load(dy + offsets, mask=mask, other=0.0).to(ACC)
        squares += u * u
        products += u * g
    r = tl.rsqrt(tl.sum(squares, 1) / k + EPS)[:, None]
    t = r * r * (tl.sum(products, 1) / k)[:, None]
    for first in range(0, BK if ONCE else k, BK):
        offsets, mask = elements(begin, alive, first, k, inner, LAST, BK)
        u = tl.load(x + offsets, mask=mask, other=0.0).to(ACC)
        g = tl.load(dy + offsets, mask=mask, other=0.0).to(ACC)
        tl.store(dx + offsets, r * (g - t * u), mask=mask)


@triton.jit(do_not_specialize=["outer"])
def _second(
    v,
    dy,
    x,
    grad_dy,
    grad_x,
    outer,
    k,
    inner,
    EPS: tl.constexpr,
    LAST: tl.constexpr,
    ONCE: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """grad_dy = r·(v − r²·a·x) and grad_x = r³·((3·r²·a·m − q)·x − m·v − a·dy), with a = mean(x·v), m = mean(x·dy),
    q = mean(v·dy)."""
    begin, alive, _ = vectors(tl.program_id(0), outer, k, inner, LAST, BM)
    squares = tl.zeros([BM, BK], ACC)
    uw, ug, wg = squares, squares, squares
    for first in range(0, BK if ONCE else k, BK):
        offsets, mask = elements(begin, alive, first, k, inner, LAST, BK)
        u = tl.load(x + offsets, mask=mask, other=0.0).to(ACC)
        g = tl.load(dy + offsets, mask=mask, other=0.0).to(ACC)
        w = tl.load(v + offsets, mask=mask, other=0.0).to(ACC)
        squares += u * u
        uw += u * w
        ug += u * g
        wg += w * g
    r = tl.rsqrt(tl.sum(squares, 1) / k + EPS)[:, None]
    a, m = (tl.sum(uw, 1) / k)[:, None], (tl.sum(ug, 1) / k)[:, None]
    r2 = r * r
    t = 3 * r2 * a * m - (tl.sum(wg, 1) / k)[:, None]
    for first in range(0, BK if ONCE else k, BK):
        offsets, mask = elements(begin, alive, first, k, inner, LAST, BK)
        u = tl.load(x + offsets, mask=mask, other=0.0).to(ACC)
        g = tl.load(dy + offsets, mask=mask, other=0.0).to(ACC)
        w = tl.load(v + offsets, mask=mask, other=0.0).to(ACC)
        tl.store(grad_dy + offsets, r * (w - r2 * a * u), mask=mask)
        tl.store(grad_x + offsets, r2 * r * (t * u - m * w - a * g), mask=mask)


# -- launches ---------------------------------------------------------------------------------------------------------


def shape_key(x: Tensor, k: int, inner: int) -> str:
    """The shape class: dtype, whether a vector's elements are neighbours, and its length."""
    return f"{str(x.dtype).removeprefix('torch.')} {'last' if inner == 1 else 'strided'} {size_class(k)}"


def _launch(kernel, name: str, x: Tensor, tensors: tuple, dim: int, eps: float) -> None:
    (outer, inner), k = around(x, dim), x.shape[dim]
    key = shape_key(x, k, inner)
    bm, bk, once, settings = tiling(k, inner, x.element_size(), config(name, key, x))
    constants = {"EPS": eps, "LAST": inner == 1, "ONCE": once, "ACC": accumulator(x.dtype), "BM": bm, "BK": bk}
    grid = (cdiv(outer, bm) if inner == 1 else outer * cdiv(inner, bm),)
    launch(kernel, name, key, grid, (*tensors, outer, k, inner), constants, settings)


def forward(x: Tensor, dim: int, eps: float) -> Tensor:
    """y in x's dtype and memory format."""
    x = dense(x)
    y = torch.empty_like(x)
    if _impl.launching():
        _launch(_forward, "pixel_norm_forward", x, (x, y), dim, eps)
    return y


def backward(dy: Tensor, x: Tensor, dim: int, eps: float) -> Tensor:
    """dx in x's dtype and memory format."""
    x = dense(x)
    dy, dx = dense_like(dy, x), torch.empty_like(x)
    if _impl.launching():
        _launch(_backward, "pixel_norm_backward", x, (dy, x, dx), dim, eps)
    return dx


def second(v: Tensor, dy: Tensor, x: Tensor, dim: int, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients of <dx, v> with respect to dy and x, in x's memory format."""
    x = dense(x)
    v, dy = dense_like(v, x), dense_like(dy, x)
    grad_dy, grad_x = torch.empty_like(x), torch.empty_like(x)
    if _impl.launching():
        _launch(_second, "pixel_norm_second", x, (v, dy, x, grad_dy, grad_x), dim, eps)
    return grad_dy, grad_x
