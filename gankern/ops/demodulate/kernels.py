"""Triton kernels of the demodulation coefficient: small, so that one launch is all that a layer pays each way."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._layout import cdiv
from gankern.ops._triton import CONFIGS, accumulator, config, launch

CONFIGS["demodulate"] = ({"BLOCK": 32, "LOOP": 64, "num_warps": 4}, {"BLOCK": 16, "LOOP": 64, "num_warps": 4})
CONFIGS["demodulate_backward"] = CONFIGS["demodulate_second"] = CONFIGS["demodulate"]


@triton.jit
def _forward(
    energy, styles, d, inner, outer, EPS: tl.constexpr, BLOCK: tl.constexpr, LOOP: tl.constexpr, ACC: tl.constexpr
):
    n = tl.program_id(1).to(tl.int64)
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]
    total = tl.zeros([BLOCK, LOOP], ACC)
    for first in range(0, inner, LOOP):
        i = first + tl.arange(0, LOOP)[None, :]
        s = tl.load(styles + n * inner + i, mask=i < inner, other=0.0).to(ACC)
        total += tl.load(energy + o * inner + i, mask=(o < outer) & (i < inner), other=0.0).to(ACC) * s * s
    variance = tl.sum(total, 1, keep_dims=True) + tl.full([], EPS, ACC)
    tl.store(d + n * outer + o, 1 / tl.sqrt(variance), mask=o < outer)


@triton.jit
def _h(dd, d, at, mask, ACC: tl.constexpr):
    c = tl.load(d + at, mask=mask, other=0.0).to(ACC)
    return tl.load(dd + at, mask=mask, other=0.0).to(ACC) * c * c * c


@triton.jit
def _of_styles(pid, other, dd, energy, d, ds, inner, outer, BLOCK: tl.constexpr, LOOP: tl.constexpr, ACC: tl.constexpr):
    """BLOCK of one sample's −other·(h·E): ds of the styles themselves, δs of the cotangent."""
    blocks = tl.cdiv(inner, BLOCK)
    n = (pid // blocks).to(tl.int64)
    i = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)[None, :]
    total = tl.zeros([LOOP, BLOCK], ACC)
    for first in range(0, outer, LOOP):
        o = first + tl.arange(0, LOOP)[:, None]
        h = _h(dd, d, n * outer + o, o < outer, ACC)
        total += h * tl.load(energy + o * inner + i, mask=(o < outer) & (i < inner), other=0.0).to(ACC)
    s = tl.load(other + n * inner + i, mask=i < inner, other=0.0).to(ACC)
    tl.store(ds + n * inner + i, -s * tl.sum(total, 0, keep_dims=True), mask=i < inner)


@triton.jit
def _of_energy(
    pid,
    other,
    dd,
    styles,
    d,
    de,
    images,
    inner,
    outer,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
    LOOP: tl.constexpr,
    ACC: tl.constexpr,
):
    """A tile [BLOCK, LOOP] of −SCALE·hᵀ·(other·s): dE of the styles themselves, δE of the cotangent."""
    across = tl.cdiv(inner, LOOP)
    o = (pid // across * BLOCK + tl.arange(0, BLOCK)[:, None]).to(tl.int64)
    i = (pid % across * LOOP + tl.arange(0, LOOP)[None, :]).to(tl.int64)
    total = tl.zeros([BLOCK, LOOP], ACC)
    for n in range(images):
        at = n * inner + i
        s = tl.load(styles + at, mask=i < inner, other=0.0).to(ACC)
        s *= tl.load(other + at, mask=i < inner, other=0.0).to(ACC)
        total += _h(dd, d, n * outer + o, o < outer, ACC) * s
    tl.store(de + o * inner + i, total * -SCALE, mask=(o < outer) & (i < inner))


@triton.jit
def _of_gradient(
    pid, a, dd, energy, styles, d, ddd, d_d, inner, outer, BLOCK: tl.constexpr, LOOP: tl.constexpr, ACC: tl.constexpr
):
    """BLOCK of one sample's δdd and δd."""
    blocks = tl.cdiv(outer, BLOCK)
    n = (pid // blocks).to(tl.int64)
    o = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)[:, None]
    total = tl.zeros([BLOCK, LOOP], ACC)
    for first in range(0, inner, LOOP):
        i = first + tl.arange(0, LOOP)[None, :]
        s = tl.load(styles + n * inner + i, mask=i < inner, other=0.0).to(ACC)
        s *= tl.load(a + n * inner + i, mask=i < inner, other=0.0).to(ACC)
        total += s * tl.load(energy + o * inner + i, mask=(o < outer) & (i < inner), other=0.0).to(ACC)
    at, mask = n * outer + o, o < outer
    c = tl.load(d + at, mask=mask, other=0.0).to(ACC)
    r = tl.sum(total, 1, keep_dims=True) * c * c
    tl.store(ddd + at, -r * c, mask=mask)
    tl.store(d_d + at, -3 * r * tl.load(dd + at, mask=mask, other=0.0).to(ACC), mask=mask)


@triton.jit(do_not_specialize=["images", "of_styles"])
def _backward(
    dd,
    energy,
    styles,
    d,
    de,
    ds,
    images,
    inner,
    outer,
    of_styles,
    BLOCK: tl.constexpr,
    LOOP: tl.constexpr,
    ACC: tl.constexpr,
):
    """The first `of_styles` programs make ds, the others dE."""
    pid = tl.program_id(0)
    if pid < of_styles:
        _of_styles(pid, styles, dd, energy, d, ds, inner, outer, BLOCK, LOOP, ACC)
    else:
        _of_energy(pid - of_styles, styles, dd, styles, d, de, images, inner, outer, 0.5, BLOCK, LOOP, ACC)


@triton.jit(do_not_specialize=["images", "of_styles", "of_gradient"])
def _second(
    a,
    dd,
    energy,
    styles,
    d,
    ddd,
    de,
    ds,
    d_d,
    images,
    inner,
    outer,
    of_styles,
    of_gradient,
    BLOCK: tl.constexpr,
    LOOP: tl.constexpr,
    ACC: tl.constexpr,
):
    """The first `of_styles` programs make δs, the next `of_gradient` δdd and δd, the others δE."""
    pid = tl.program_id(0)
    if pid < of_styles:
        _of_styles(pid, a, dd, energy, d, ds, inner, outer, BLOCK, LOOP, ACC)
    elif pid < of_styles + of_gradient:
        _of_gradient(pid - of_styles, a, dd, energy, styles, d, ddd, d_d, inner, outer, BLOCK, LOOP, ACC)
    else:
        pid -= of_styles + of_gradient
        _of_energy(pid, a, dd, styles, d, de, images, inner, outer, 1.0, BLOCK, LOOP, ACC)


# -- launches ---------------------------------------------------------------------------------------------------------


def _constants(kernel: str, t: Tensor) -> tuple[dict, dict]:
    settings = config(kernel, str(t.dtype).removeprefix("torch."), t)
    return settings, {"BLOCK": settings["BLOCK"], "LOOP": settings["LOOP"], "ACC": accumulator(t.dtype)}


def forward(energy: Tensor, styles: Tensor, eps: float) -> Tensor:
    """d [N, O]."""
    (n, inner), outer = styles.shape, energy.shape[0]
    d = styles.new_empty(n, outer)
    if _impl.launching() and d.numel():
        settings, constants = _constants("demodulate", styles)
        args = (energy.contiguous(), styles.contiguous(), d, inner, outer)
        grid = (cdiv(outer, constants["BLOCK"]), n)
        launch(_forward, "demodulate", str(styles.dtype), grid, args, {"EPS": eps} | constants, settings)
    return d


def backward(dd: Tensor, energy: Tensor, styles: Tensor, d: Tensor, needs: list[bool]) -> tuple:
    """(dE, ds), None for one that isn't needed."""
    (n, inner), outer = styles.shape, energy.shape[0]
    de = torch.empty([outer, inner], dtype=energy.dtype, device=energy.device) if needs[0] else None
    ds = torch.empty([n, inner], dtype=styles.dtype, device=styles.device) if needs[1] else None
    if _impl.launching() and (needs[0] or n):
        settings, constants = _constants("demodulate_backward", styles)
        block, loop = constants["BLOCK"], constants["LOOP"]
        of_styles = cdiv(inner, block) * n if needs[1] else 0
        of_energy = cdiv(outer, block) * cdiv(inner, loop) if needs[0] else 0
        tensors = tuple(t.contiguous() for t in (dd, energy, styles, d))
        args = (*tensors, d if de is None else de, d if ds is None else ds, n, inner, outer, of_styles)
        grid = (of_styles + of_energy,)
        launch(_backward, "demodulate_backward", str(styles.dtype), grid, args, constants, settings)
    return de, ds


def second(a: Tensor, dd: Tensor, energy: Tensor, styles: Tensor, d: Tensor, need_energy: bool) -> tuple:
    """(δdd, δE, δs, δd) for the cotangent a of ds; δE None where it isn't needed."""
    (n, inner), outer = styles.shape, energy.shape[0]
    ddd, d_d = torch.empty_like(d, memory_format=torch.contiguous_format), styles.new_empty(n, outer)
    de, ds = styles.new_empty(outer, inner) if need_energy else None, styles.new_empty(n, inner)
    if _impl.launching() and (need_energy or n):
        settings, constants = _constants("demodulate_second", styles)
        block, loop = constants["BLOCK"], constants["LOOP"]
        of_styles, of_gradient = cdiv(inner, block) * n, cdiv(outer, block) * n
        of_energy = cdiv(outer, block) * cdiv(inner, loop) if need_energy else 0
        tensors = tuple(t.contiguous() for t in (a, dd, energy, styles, d))
        args = (*tensors, ddd, d if de is None else de, ds, d_d, n, inner, outer, of_styles, of_gradient)
        grid = (of_styles + of_gradient + of_energy,)
        launch(_second, "demodulate_second", str(styles.dtype), grid, args, constants, settings)
    return ddd, de, ds, d_d
