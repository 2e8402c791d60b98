"""Triton kernels of instance_norm: normalise, affine, activation and gain in one launch where a tile holds planes.

Bytes: x and y forward; dy, x and dx backward; and a weight's, bias's and their gradients' where they are a pixel's.
Planes that are split cost a launch of `statistics` and x once more forward, that, one for sums, x twice and dy once
more backward.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._activations import activate, slope
from gankern.ops._layout import dense, dense_like
from gankern.ops._settings import pow2
from gankern.ops._triton import CONFIGS, launch
from gankern.ops.instance_norm.statistics import added, chunking, combined, measure, moments, sizes, tiles, wide_empty
from gankern.ops.pixel_norm.kernels import elements, vectors

CONFIGS["instance_norm_forward"] = (
    {"TILE": 4096, "num_warps": 4, "STRIDED": 8192},
    {"TILE": 2048, "num_warps": 4},
    {"TILE": 4096, "num_warps": 8, "STRIDED": 8192},
)
CONFIGS["instance_norm_backward"] = (
    {"TILE": 2048, "num_warps": 4},
    {"TILE": 2048, "num_warps": 8},
    {"TILE": 1024, "num_warps": 4},
)
CONFIGS["instance_norm_sums"] = (
    {"TILE": 2048, "num_warps": 4},
    {"TILE": 4096, "num_warps": 8},
)


# -- forward ----------------------------------------------------------------------------------------------------------


@triton.jit
def _param(t, offsets, mask, plane, alive, channels, KIND: tl.constexpr, ACC: tl.constexpr):
    """What a weight or bias is at a tile, broadcastable to it; zero for none."""
    if KIND == 3:
        return tl.load(t + offsets, mask=mask, other=0.0).to(ACC)
    elif KIND == 2:
        return tl.load(t + plane, mask=alive, other=0.0).to(ACC)[:, None]
    elif KIND == 1:
        return tl.load(t + plane % channels, mask=alive, other=0.0).to(ACC)[:, None]
    else:
        return tl.zeros([1, 1], ACC)


@triton.jit
def _factor(weight, offsets, mask, plane, alive, channels, SPEC: tl.constexpr, ACC: tl.constexpr):
    """weight_offset + weight; one without a weight."""
    if SPEC[6] == 0:
        return tl.full([1, 1], 1.0, ACC)
    else:
        return _param(weight, offsets, mask, plane, alive, channels, SPEC[6], ACC) + SPEC[4]


@triton.jit(do_not_specialize=["outer"])
def _forward(
    x,
    weight,
    bias,
    y,
    means,
    squares,
    outer,
    k,
    inner,
    channels,
    chunk,
    chunks,
    SPEC: tl.constexpr,
    ONCE: tl.constexpr,
    CP: tl.constexpr,
    LAST: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    begin, alive, plane = vectors(tl.program_id(0) // chunks, outer, k, inner, LAST, BM)
    start = tl.program_id(0) % chunks * chunk
    end = tl.minimum(start + chunk, k)
    if ONCE:
        offsets, mask = elements(begin, alive, 0, k, inner, LAST, BK)
        mean, r = moments(tl.load(x + offsets, mask=mask, other=0.0).to(ACC), mask, k, SPEC)
    else:
        mean, r = combined(means, squares, plane, alive, k, chunk, chunks, SPEC, CP)
    for first in range(0 if ONCE else start, BK if ONCE else end, BK):  # one trip: the load above serves again
        offsets, mask = elements(begin, alive, first, k if ONCE else end, inner, LAST, BK)
        u = tl.load(x + offsets, mask=mask, other=0.0).to(ACC)
        s = _factor(weight, offsets, mask, plane, alive, channels, SPEC, ACC)
        u = (u - mean) * r * s + _param(bias, offsets, mask, plane, alive, channels, SPEC[7], ACC)
        tl.store(y + offsets, activate(u, tl.constexpr(SPEC[0]), SPEC[1]) * SPEC[2], mask=mask)


# -- backward ---------------------------------------------------------------------------------------------------------


@triton.jit
def _gradient(
    dy, x, weight, bias, offsets, mask, mean, r, plane, alive, channels, SPEC: tl.constexpr, ACC: tl.constexpr
):
    """(g = dy · gain · act'(u), h, s) of a tile."""
    h = (tl.load(x + offsets, mask=mask, other=0.0).to(ACC) - mean) * r
    h = tl.where(mask, h, tl.full([], 0.0, ACC))
    g = tl.load(dy + offsets, mask=mask, other=0.0).to(ACC) * SPEC[2]
    s = _factor(weight, offsets, mask, plane, alive, channels, SPEC, ACC)
    if SPEC[0] != "linear":
        a = h * s + _param(bias, offsets, mask, plane, alive, channels, SPEC[7], ACC)
        if SPEC[0] != "swish":
            a = activate(a, tl.constexpr(SPEC[0]), SPEC[1])
        g = g * slope(a, tl.constexpr(SPEC[0]), SPEC[1])
    return g, h, s


@triton.jit(do_not_specialize=["outer"])
def _sums(
    dy,
    x,
    weight,
    bias,
    means,
    squares,
    sum_e,
    sum_eh,
    sum_g,
    outer,
    k,
    inner,
    channels,
    chunk,
    chunks,
    SPEC: tl.constexpr,
    SUM_G: tl.constexpr,
    CP: tl.constexpr,
    LAST: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """A chunk's Σ e and Σ e·h, where e is g, or g·s with a factor a pixel; then Σ g too, where it is asked for."""
    i = tl.program_id(0) % chunks
    begin, alive, plane = vectors(tl.program_id(0) // chunks, outer, k, inner, LAST, BM)
    end = tl.minimum(i * chunk + chunk, k)
    mean, r = combined(means, squares, plane, alive, k, chunk, chunks, SPEC, CP)
    total_e = tl.zeros([BM, BK], ACC)
    total_eh, total_g = total_e, total_e
    for first in range(i * chunk, end, BK):
        offsets, mask = elements(begin, alive, first, end, inner, LAST, BK)
        g, h, s = _gradient(dy, x, weight, bias, offsets, mask, mean, r, plane, alive, channels, SPEC, ACC)
        if SUM_G:
            total_g += g
        e = g * s if SPEC[6] == 3 else g
        total_e += e
        total_eh += e * h
    tl.store(sum_e + plane * chunks + i, tl.sum(total_e, 1), mask=alive)
    tl.store(sum_eh + plane * chunks + i, tl.sum(total_eh, 1), mask=alive)
    if SUM_G:
        tl.store(sum_g + plane * chunks + i, tl.sum(total_g, 1), mask=alive)


@triton.jit(do_not_specialize=["outer"])
def _backward(
    dy,
    x,
    weight,
    bias,
    means,
    squares,
    sum_e,
    sum_eh,
    sum_g,
    dx,
    dw,
    db,
    outer,
    k,
    inner,
    channels,
    chunk,
    chunks,
    SPEC: tl.constexpr,
    GRADS: tl.constexpr,
    SUM_G: tl.constexpr,
    ONCE: tl.constexpr,
    CP: tl.constexpr,
    LAST: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """dx, and the parameters' gradients where they are a pixel's; planes' sums as in `_sums`, here or there.

    GRADS: the kinds of the weight's and the bias's gradient.
    """
    begin, alive, plane = vectors(tl.program_id(0) // chunks, outer, k, inner, LAST, BM)
    start = tl.program_id(0) % chunks * chunk
    end = tl.minimum(start + chunk, k)
    if ONCE:
        offsets, mask = elements(begin, alive, 0, k, inner, LAST, BK)
        mean, r = moments(tl.load(x + offsets, mask=mask, other=0.0).to(ACC), mask, k, SPEC)
        g, h, s = _gradient(dy, x, weight, bias, offsets, mask, mean, r, plane, alive, channels, SPEC, ACC)
        e = g * s if SPEC[6] == 3 else g
        total_e, total_eh = tl.sum(e, 1)[:, None], tl.sum(e * h, 1)[:, None]
    else:
        mean, r = combined(means, squares, plane, alive, k, chunk, chunks, SPEC, CP)
        total_e, total_eh = added(sum_e, plane, alive, chunks, CP), added(sum_eh, plane, alive, chunks, CP)
    for first in range(0 if ONCE else start, BK if ONCE else end, BK):
        offsets, mask = elements(begin, alive, first, k if ONCE else end, inner, LAST, BK)
        g, h, s = _gradient(dy, x, weight, bias, offsets, mask, mean, r, plane, alive, channels, SPEC, ACC)
        e = total_e / k + h * (total_eh / (k - SPEC[5]))
        e = e if SPEC[6] == 3 else e * s
        tl.store(dx + offsets, r * (g * s - e), mask=mask)
        if GRADS[0] == 3:
            tl.store(dw + offsets, g * h, mask=mask)
        if GRADS[1] == 3:
            tl.store(db + offsets, g, mask=mask)
    if ONCE:  # after the loop: a store before it would part its loads from those above
        at = plane[:, None]
        tl.store(sum_e + at, total_e, mask=alive[:, None])
        tl.store(sum_eh + at, total_eh, mask=alive[:, None])
        if SUM_G:
            tl.store(sum_g + at, tl.sum(g, 1)[:, None], mask=alive[:, None])


# -- launches ---------------------------------------------------------------------------------------------------------


def _kind(t: Tensor | None) -> int:
    return 0 if t is None else min(t.ndim, 3)


def _laid(t: Tensor | None, x: Tensor) -> Tensor:
    """A parameter in the layout that the kernels read; x in place of none."""
    if t is None:
        return x
    return dense_like(t, x) if t.ndim > 2 else t.contiguous()


def _spec(args: tuple, weight: Tensor | None, bias: Tensor | None) -> tuple:
    act, alpha, gain, eps, biased, weight_offset = args
    return act, alpha, gain, eps, weight_offset, 0 if biased else 1, _kind(weight), _kind(bias)


def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, args: tuple) -> Tensor:
    """y in x's dtype and memory format. `args`: (act, alpha, gain, eps, biased, weight_offset)."""
    x = dense(x)
    y = torch.empty_like(x)
    if not _impl.launching():
        return y
    key, settings, once, blocks, constants = tiles("instance_norm_forward", x)
    chunk, chunks = (sizes(x)[1], 1) if once else chunking(x)
    parts = (x, x) if once else measure(x, chunk, chunks)
    constants |= {"SPEC": _spec(args, weight, bias), "ONCE": once, "CP": pow2(chunks)}
    tensors = (x, _laid(weight, x), _laid(bias, x), y, *parts)
    numbers = (*sizes(x), x.shape[1], chunk, chunks)
    launch(_forward, "instance_norm_forward", key, (blocks * chunks,), tensors + numbers, constants, settings)
    return y


def _to_param(sums: Tensor, x: Tensor, ndim: int) -> Tensor:
    """Sums [N·C, chunks] to a gradient [C] or [N, C] of x's dtype."""
    n, c = x.shape[:2]
    t = sums.reshape(n, c, sums.shape[1])
    return (t.sum([0, 2]) if ndim == 1 else t.sum(2)).to(x.dtype)


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    weight_grad: bool,
    bias_grad: int,
    args: tuple,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias); empty for what isn't wanted. `bias_grad`: the bias's number of dimensions, or 0."""
    x = dense(x)
    dy, dx = dense_like(dy, x), torch.empty_like(x)
    grads = _kind(weight) if weight_grad else 0, min(bias_grad, 3)
    shapes = {0: [0], 1: [x.shape[1]], 2: list(x.shape[:2])}
    dw, db = (torch.empty_like(x) if kind == 3 else x.new_empty(shapes[kind]) for kind in grads)
    if not _impl.launching():
        return dx, dw, db
    key, settings, once, blocks, constants = tiles("instance_norm_backward", x)
    chunk, chunks = (sizes(x)[1], 1) if once else chunking(x)
    sums = wide_empty(x, 3, x.shape[0] * x.shape[1], chunks)
    sum_g = _kind(weight) == 3 and grads[1] in (1, 2)
    shared = {"SPEC": _spec(args, weight, bias), "SUM_G": sum_g, "CP": pow2(chunks)}
    parts = (x, x) if once else measure(x, chunk, chunks)
    tensors = (dy, x, _laid(weight, x), _laid(bias, x), *parts, *sums)
    numbers = (*sizes(x), x.shape[1], chunk, chunks)
    if not once:
        name = "instance_norm_sums"
        own_key, own, _, own_blocks, own_constants = tiles(name, x)
        launch(_sums, name, own_key, (own_blocks * chunks,), tensors + numbers, own_constants | shared, own)
    constants |= shared | {"GRADS": grads, "ONCE": once}
    tensors += (dx, dw, db)
    launch(_backward, "instance_norm_backward", key, (blocks * chunks,), tensors + numbers, constants, settings)
    dw = _to_param(sums[1], x, grads[0]) if grads[0] in (1, 2) else dw
    return dx, dw, _to_param(sums[2 if sum_g else 0], x, grads[1]) if grads[1] in (1, 2) else db
