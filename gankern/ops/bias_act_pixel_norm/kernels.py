"""Triton kernels of bias_act_pixel_norm: one pass forward, one backward with the bias gradient in the same read, one
for second order.

Tiles are pixel_norm's: [BM pixels, BK of their channels]. Bytes at the floor: x and y forward; dy, x and dx backward.
A bias gradient costs few partial sums more. Where a pixel's channels don't fit a tile (a thousand of them in NCHW, many
more in channels_last) every tensor is read twice, and dx once again for the bias.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._activations import activate, slope, slope_grad
from gankern.ops._layout import around, cdiv, dense, dense_like
from gankern.ops._triton import CONFIGS, accumulator, config, launch, programs
from gankern.ops.bias_act import ACTIVATIONS
from gankern.ops.pixel_norm.kernels import elements, shape_key, tiling, vectors

# STRIDED: the most elements of an NCHW tile, which holds a pixel's 512 channels and leaves registers for the sums
CONFIGS["bias_act_pixel_norm_forward"] = (
    {"TILE": 4096, "num_warps": 4},
    {"TILE": 2048, "num_warps": 4},
    {"TILE": 8192, "num_warps": 8},
)
CONFIGS["bias_act_pixel_norm_backward"] = (
    {"TILE": 4096, "num_warps": 8, "STRIDED": 8192, "WAVES": 6},
    {"TILE": 2048, "num_warps": 8, "STRIDED": 8192, "WAVES": 8},
    {"TILE": 4096, "num_warps": 8, "STRIDED": 8192, "WAVES": 4},
)
CONFIGS["bias_act_pixel_norm_second"] = (
    {"TILE": 2048, "num_warps": 8, "STRIDED": 4096, "WAVES": 8},
    {"TILE": 2048, "num_warps": 4, "STRIDED": 4096, "WAVES": 8},
)

# SPEC, of every kernel: (act, alpha, gain, eps, whether there is a bias, whether the slope changes but by jumps)


# -- kernels ----------------------------------------------------------------------------------------------------------


@triton.jit
def _per_channel(t, first, k, BK: tl.constexpr):
    """A bias at a tile's channels, broadcastable to it."""
    c = first + tl.arange(0, BK)
    return tl.load(t + c, mask=c < k, other=0.0)[None, :]


@triton.jit
def _activated(x, bias, offsets, mask, first, k, SPEC: tl.constexpr, ACC: tl.constexpr, BK: tl.constexpr):
    """(a, what the slope is written in) of a tile; a is zero where there is no channel."""
    u = tl.load(x + offsets, mask=mask, other=0.0).to(ACC)
    if SPEC[4]:
        u += _per_channel(bias, first, k, BK).to(ACC)
    f = activate(u, tl.constexpr(SPEC[0]), SPEC[1])
    a = tl.where((first + tl.arange(0, BK) < k)[None, :], f * SPEC[2], tl.full([], 0.0, ACC))
    return a, u if SPEC[0] == "swish" else f


@triton.jit
def _inverse(squares, alive, k, SPEC: tl.constexpr):
    """r of a tile's pixels [BM, 1]; zero where there is none, which then adds nothing to any sum."""
    r = tl.rsqrt(tl.sum(squares, 1) / k + SPEC[3])
    return tl.where(alive, r, tl.full([], 0.0, r.dtype))[:, None]


@triton.jit(do_not_specialize=["outer"])
def _forward(
    x,
    bias,
    y,
    outer,
    k,
    inner,
    SPEC: tl.constexpr,
    LAST: tl.constexpr,
    ONCE: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    begin, alive, _pixel = vectors(tl.program_id(0), outer, k, inner, LAST, BM)
    squares = tl.zeros([BM, BK], ACC)
    for first in range(0, BK if ONCE else k, BK):
        offsets, mask = elements(begin, alive, first, k, inner, LAST, BK)
        a, _argument = _activated(x, bias, offsets, mask, first, k, SPEC, ACC, BK)
        squares += a * a
    r = _inverse(squares, alive, k, SPEC)
    for first in range(0, BK if ONCE else k, BK):  # one trip: the load above serves again
        offsets, mask = elements(begin, alive, first, k, inner, LAST, BK)
        a, _argument = _activated(x, bias, offsets, mask, first, k, SPEC, ACC, BK)
        tl.store(y + offsets, a * r, mask=mask)


@triton.jit
def _added(total, d, LAST: tl.constexpr):
    """total + d: element by element in channels_last, whose pixels lie in other warps, else summed over the pixels."""
    if LAST:
        return total + d
    else:
        return total + tl.sum(d, 0)[None, :]


@triton.jit
def _store_sums(partial, total, k, BK: tl.constexpr):
    c = tl.arange(0, BK)
    tl.store(partial + tl.program_id(0) * k + c, tl.sum(total, 0), mask=c < k)


@triton.jit(do_not_specialize=["outer"])
def _backward(
    dy,
    x,
    bias,
    dx,
    partial,
    outer,
    k,
    inner,
    SPEC: tl.constexpr,
    SUMS: tl.constexpr,
    LAST: tl.constexpr,
    ONCE: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """dx = ∂a/∂u · r·(dy − r²·m·a), m = mean(a·dy); with SUMS each program's Σ dx, of every block pid + i·programs."""
    blocks = tl.cdiv(outer, BM) if LAST else outer * tl.cdiv(inner, BM)
    total = tl.zeros([BM if LAST else 1, BK], ACC)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        begin, alive, _pixel = vectors(tl.cast(block, tl.int32), outer, k, inner, LAST, BM)
        squares = tl.zeros([BM, BK], ACC)
        products = squares
        for first in range(0, BK if ONCE else k, BK):
            offsets, mask = elements(begin, alive, first, k, inner, LAST, BK)
            a, _argument = _activated(x, bias, offsets, mask, first, k, SPEC, ACC, BK)
            g = tl.load(dy + offsets, mask=mask, other=0.0).to(ACC)
            squares += a * a
            products += a * g
        r = _inverse(squares, alive, k, SPEC)
        t = r * r * (tl.sum(products, 1) / k)[:, None]
        for first in range(0, BK if ONCE else k, BK):
            offsets, mask = elements(begin, alive, first, k, inner, LAST, BK)
            a, argument = _activated(x, bias, offsets, mask, first, k, SPEC, ACC, BK)
            g = tl.load(dy + offsets, mask=mask, other=0.0).to(ACC)
            d = slope(argument, tl.constexpr(SPEC[0]), SPEC[1]) * SPEC[2] * (r * (g - t * a))
            tl.store(dx + offsets, d, mask=mask)
            if SUMS:
                total = _added(total, d, LAST)
    if SUMS:
        _store_sums(partial, total, k, BK)


@triton.jit
def _operands(
    ddx,
    ddb,
    dy,
    x,
    bias,
    offsets,
    mask,
    first,
    k,
    SPEC: tl.constexpr,
    DDB: tl.constexpr,
    ACC: tl.constexpr,
    BK: tl.constexpr,
):
    """(a, ∂a/∂u, ∂²a/∂u², ddx + ddb, dy) of a tile."""
    ACT: tl.constexpr = SPEC[0]
    a, argument = _activated(x, bias, offsets, mask, first, k, SPEC, ACC, BK)
    v = tl.load(ddx + offsets, mask=mask, other=0.0).to(ACC)
    if DDB:
        v += _per_channel(ddb, first, k, BK).to(ACC)
    s = slope(argument, ACT, SPEC[1]) * SPEC[2]
    curvature = slope_grad(argument, ACT) * (SPEC[2] if ACT == "swish" else s)
    return a, s, curvature, v, tl.load(dy + offsets, mask=mask, other=0.0).to(ACC)


@triton.jit(do_not_specialize=["outer"])
def _second(
    ddx,
    ddb,
    dy,
    x,
    bias,
    grad_dy,
    grad_x,
    partial,
    outer,
    k,
    inner,
    SPEC: tl.constexpr,
    DDB: tl.constexpr,
    SUMS: tl.constexpr,
    LAST: tl.constexpr,
    ONCE: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """With v = ddx + ddb, w = v·∂a/∂u, p = mean(a·w), m = mean(a·dy), q = mean(w·dy): grad_dy = r·(w − r²·p·a) and
    grad_x = ∂a/∂u · r³·((3·r²·p·m − q)·a − m·w − p·dy) + v·∂²a/∂u² · r·(dy − r²·m·a); Σ grad_x as `_backward`."""
    blocks = tl.cdiv(outer, BM) if LAST else outer * tl.cdiv(inner, BM)
    total = tl.zeros([BM if LAST else 1, BK], ACC)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        begin, alive, _pixel = vectors(tl.cast(block, tl.int32), outer, k, inner, LAST, BM)
        squares = tl.zeros([BM, BK], ACC)
        aw, ag, wg = squares, squares, squares
        for first in range(0, BK if ONCE else k, BK):
            offsets, mask = elements(begin, alive, first, k, inner, LAST, BK)
            a, s, _curvature, v, g = _operands(ddx, ddb, dy, x, bias, offsets, mask, first, k, SPEC, DDB, ACC, BK)
            squares += a * a
            aw += a * (v * s)
            ag += a * g
            wg += v * s * g
        r = _inverse(squares, alive, k, SPEC)
        p, m = (tl.sum(aw, 1) / k)[:, None], (tl.sum(ag, 1) / k)[:, None]
        t = 3 * r * r * p * m - (tl.sum(wg, 1) / k)[:, None]
        for first in range(0, BK if ONCE else k, BK):
            offsets, mask = elements(begin, alive, first, k, inner, LAST, BK)
            a, s, curvature, v, g = _operands(ddx, ddb, dy, x, bias, offsets, mask, first, k, SPEC, DDB, ACC, BK)
            w = v * s
            d = s * (r * r * r * (t * a - m * w - p * g))
            if SPEC[5]:
                d += curvature * v * (r * (g - r * r * m * a))
            tl.store(grad_dy + offsets, r * (w - r * r * p * a), mask=mask)
            tl.store(grad_x + offsets, d, mask=mask)
            if SUMS:
                total = _added(total, d, LAST)
    if SUMS:
        _store_sums(partial, total, k, BK)


# -- launches ---------------------------------------------------------------------------------------------------------


def _vector(bias: Tensor | None, x: Tensor) -> Tensor:
    """A bias as the kernels read it; x in place of none."""
    return x if bias is None else bias.contiguous()


def _spec(bias: Tensor | None, act: str, alpha: float, gain: float, eps: float) -> tuple:
    return act, alpha, gain, eps, bias is not None, ACTIVATIONS[act].slope_grad is not None


def _plan(name: str, x: Tensor, spec: tuple) -> tuple[str, dict, int, tuple, dict]:
    """(shape class, settings, blocks of pixels, the kernel's numbers, its constants) of a dense x."""
    (outer, inner), k = around(x, 1), x.shape[1]
    key = shape_key(x, k, inner)
    bm, bk, once, settings = tiling(k, inner, x.element_size(), config(name, key, x))
    constants = {"SPEC": spec, "LAST": inner == 1, "ONCE": once, "ACC": accumulator(x.dtype), "BM": bm, "BK": bk}
    blocks = cdiv(outer, bm) if inner == 1 else outer * cdiv(inner, bm)
    return key, settings, blocks, (outer, k, inner), constants


def _launch_summing(kernel, name: str, tensors: tuple, spec: tuple, bias_grad: bool, **flags) -> Tensor:
    """Launch over all pixels of the last of `tensors`, which is what is written; its sum over them [C], empty unless
    `bias_grad`."""
    out = tensors[-1]
    key, settings, blocks, numbers, constants = _plan(name, out, spec)
    wide = torch.promote_types(out.dtype, torch.float32)
    sums = bias_grad and constants["ONCE"]
    many = min(blocks, programs(out, settings["WAVES"])) if sums else blocks
    partial = torch.empty([many if sums else 0, out.shape[1]], dtype=wide, device=out.device)
    launch(kernel, name, key, (many,), (*tensors, partial, *numbers), constants | {"SUMS": sums} | flags, settings)
    if not bias_grad:
        return out.new_empty(0)
    return (partial.sum(0) if sums else out.sum([0, *range(2, out.ndim)], dtype=wide)).to(out.dtype)


def forward(x: Tensor, bias: Tensor | None, act: str, alpha: float, gain: float, eps: float) -> Tensor:
    """y in x's dtype and memory format."""
    x = dense(x)
    y = torch.empty_like(x)
    if _impl.launching():
        name = "bias_act_pixel_norm_forward"
        key, settings, blocks, numbers, constants = _plan(name, x, _spec(bias, act, alpha, gain, eps))
        launch(_forward, name, key, (blocks,), (x, _vector(bias, x), y, *numbers), constants, settings)
    return y


def backward(
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    bias_grad: bool,
    act: str,
    alpha: float,
    gain: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """(dx, db) in x's memory format; db is empty unless `bias_grad`."""
    x = dense(x)
    dy, dx = dense_like(dy, x), torch.empty_like(x)
    db = x.new_empty(x.shape[1] if bias_grad else 0)
    if _impl.launching():
        tensors = dy, x, _vector(bias, x), dx
        spec = _spec(bias, act, alpha, gain, eps)
        db = _launch_summing(_backward, "bias_act_pixel_norm_backward", tensors, spec, bias_grad)
    return dx, db


def second(
    ddx: Tensor,
    ddb: Tensor | None,
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    act: str,
    alpha: float,
    gain: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of <dx, ddx> + <db, ddb> with respect to dy, x and bias (empty without one), in x's memory format."""
    x = dense(x)
    ddx, dy = dense_like(ddx, x), dense_like(dy, x)
    grad_dy, grad_x = torch.empty_like(x), torch.empty_like(x)
    grad_bias = x.new_empty(0 if bias is None else x.shape[1])
    if _impl.launching():
        tensors = ddx, _vector(ddb, x), dy, x, _vector(bias, x), grad_dy, grad_x
        spec = _spec(bias, act, alpha, gain, eps)
        flags = {"bias_grad": bias is not None, "DDB": ddb is not None}
        grad_bias = _launch_summing(_second, "bias_act_pixel_norm_second", tensors, spec, **flags)
    return grad_dy, grad_x, grad_bias
