"""Triton kernels of the demodulation coefficient: small, so that one launch is all that a layer pays each way."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._layout import cdiv
from gankern.ops._triton import CONFIGS, accumulator, config, launch

CONFIGS["demodulate"] = ({"BLOCK": 32, "LOOP": 64, "num_warps": 4}, {"BLOCK": 16, "LOOP": 128, "num_warps": 4})
CONFIGS["demodulate_backward"] = CONFIGS["demodulate"]


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
def _minus_half_h(dd, d, at, mask, ACC: tl.constexpr):
    c = tl.load(d + at, mask=mask, other=0.0).to(ACC)
    return tl.load(dd + at, mask=mask, other=0.0).to(ACC) * c * c * c * -0.5


@triton.jit
def _of_styles(
    pid, dd, energy, styles, d, ds, inner, outer, BLOCK: tl.constexpr, LOOP: tl.constexpr, ACC: tl.constexpr
):
    """BLOCK of one sample's ds."""
    blocks = tl.cdiv(inner, BLOCK)
    n = (pid // blocks).to(tl.int64)
    i = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)[None, :]
    total = tl.zeros([LOOP, BLOCK], ACC)
    for first in range(0, outer, LOOP):
        o = first + tl.arange(0, LOOP)[:, None]
        h = _minus_half_h(dd, d, n * outer + o, o < outer, ACC)
        total += h * tl.load(energy + o * inner + i, mask=(o < outer) & (i < inner), other=0.0).to(ACC)
    s = tl.load(styles + n * inner + i, mask=i < inner, other=0.0).to(ACC)
    tl.store(ds + n * inner + i, 2 * s * tl.sum(total, 0, keep_dims=True), mask=i < inner)


@triton.jit
def _of_energy(
    pid, dd, styles, d, de, images, inner, outer, BLOCK: tl.constexpr, LOOP: tl.constexpr, ACC: tl.constexpr
):
    """A tile [BLOCK, LOOP] of dE."""
    across = tl.cdiv(inner, LOOP)
    o = pid // across * BLOCK + tl.arange(0, BLOCK)[:, None]
    i = pid % across * LOOP + tl.arange(0, LOOP)[None, :]
    total = tl.zeros([BLOCK, LOOP], ACC)
    for n in range(images):
        s = tl.load(styles + n * inner + i, mask=i < inner, other=0.0).to(ACC)
        total += _minus_half_h(dd, d, n * outer + o, o < outer, ACC) * s * s
    tl.store(de + o * inner + i, total, mask=(o < outer) & (i < inner))


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
        _of_styles(pid, dd, energy, styles, d, ds, inner, outer, BLOCK, LOOP, ACC)
    else:
        _of_energy(pid - of_styles, dd, styles, d, de, images, inner, outer, BLOCK, LOOP, ACC)


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
