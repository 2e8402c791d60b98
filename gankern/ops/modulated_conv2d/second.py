"""Second order of a layer whose input came styled, in one Triton pass: what path-length regularisation differentiates.

The first backward pass gave dx = Cᵢ(d·g, w), dd = Σ g·u and ds⁺ = Σ dys·y, with dv = dy + s⁺·dys, g = rate·dv and
rate = gain·slope. For the cotangents a of dx, e of dd and f of ds⁺, with A = C(a, w) and q = d·u = p − noise − b:

    δdv = rate·(d·A + e/d·q)     δdy = δdv     δdys = s⁺·δdv + f·y     δy = e/d·dv + f·dys
    δw = C_w(d·g, a)    δd = Σ g·A − e/d·dd    δb = −Σ e/d·g    δstrength = −Σ e/d·g·noise    δs⁺ = Σ dys·δdv

y counts as a variable, so that its gradient goes on through the forward layer with the others. Where y·s⁺ was saved in
its place, δ(y·s⁺) = (e/d + f/s⁺)·dys, and δs⁺ has −(e/d + f/s⁺)·ds⁺ besides.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._layout import cdiv, dense, dense_like
from gankern.ops._triton import CONFIGS, launch, programs
from gankern.ops.conv2d import conv2d_backward, library_conv2d
from gankern.ops.modulated_conv2d.kernels import numbers, place, plan
from gankern.ops.modulated_conv2d.layer import Layer, Operands, Tensors, sums_dtype
from gankern.ops.modulated_conv2d.sums import gradients_of, store_sum, total_up
from gankern.ops.modulated_conv2d.tile import arguments, gradient, operands, sum_shape
from gankern.ops.upfirdn2d import upfirdn2d, upfirdn2d_adjoint

CONFIGS["layer_second"] = (
    {"TILE": 1024, "num_warps": 4, "WAVES": 8},
    {"TILE": 2048, "num_warps": 8, "WAVES": 4},
    {"TILE": 2048, "num_warps": 4, "WAVES": 4},
)


@triton.jit
def _cotangents(e, f, n, c, channels, scale, SPEC: tl.constexpr, ACC: tl.constexpr):
    """(e/d, f) of samples n and channels c, 0 for one that there isn't."""
    of_d, of_styles = tl.zeros([1, 1], ACC), tl.zeros([1, 1], ACC)
    if SPEC[16]:
        of_d = tl.load(e + n * channels + c, mask=c < channels, other=0.0).to(ACC) / scale
        of_d = tl.where(c < channels, of_d, tl.full([], 0.0, ACC))
    if SPEC[17]:
        of_styles = tl.load(f + n * channels + c, mask=c < channels, other=0.0).to(ACC)
    return of_d, of_styles


@triton.jit
def _second(
    dy,
    dys,
    saved,
    after,
    d,
    noise,
    strength,
    bias,
    next_styles,
    e,
    f,
    dd,
    dnext,
    ddy,
    ddys,
    dsaved,
    dt,
    partial,
    pixels,
    channels,
    noise_step,
    SPEC: tl.constexpr,
    NHWC: tl.constexpr,
    ACC: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
):
    """`after`: A; dd and dnext as the first pass gave them. Programs and partial sums as of that pass; the sums are
    those that δb, δstrength, δd and δs⁺ are made of."""
    i, n, many = tl.program_id(1), tl.program_id(2).to(tl.int64), tl.num_programs(1)
    c = numbers(tl.program_id(0) * BC, BC, not NHWC)
    scale, noise, amount, b, styles = operands(
        d, noise, strength, bias, next_styles, n, c, channels, noise_step, SPEC, ACC
    )
    of_d, of_styles = _cotangents(e, f, n, c, channels, scale, SPEC, ACC)
    zero = tl.full([], 0.0, ACC)
    if SPEC[11]:
        both = of_d + tl.where(styles == zero, zero, of_styles / styles)
    rows: tl.constexpr = BP if NHWC else BC
    cols: tl.constexpr = BC if NHWC else BP
    sum_g = tl.zeros(sum_shape(SPEC[12], rows, cols), ACC)
    sum_gn = tl.zeros(sum_shape(SPEC[13], rows, cols), ACC)
    sum_ga = tl.zeros(sum_shape(SPEC[14], rows, cols), ACC)
    sum_s = tl.zeros(sum_shape(SPEC[15], rows, cols), ACC)
    for step in range(i, tl.cdiv(pixels, BP), many):
        px = numbers(step * BP, BP, NHWC)
        at, mask = place(c, px, n, pixels, channels, NHWC)
        g, rate, v, styled = gradient(dy, dys, saved, at, mask, styles, SPEC, ACC)
        q = v / rate
        if SPEC[5]:
            eta = tl.load(noise + px, mask=px < pixels, other=0.0).to(ACC)
            q -= eta * amount
        if SPEC[7]:
            q -= b
        a = tl.load(after + at, mask=mask, other=0.0).to(ACC)
        of_v = rate * (scale * a + of_d * q)
        if SPEC[9]:
            tl.store(ddy + at, of_v, mask=mask)
        if SPEC[10]:
            tl.store(ddys + at, of_v * styles + of_styles * v, mask=mask)
        if SPEC[11]:
            tl.store(dsaved + at, both * styled, mask=mask)
        elif SPEC[10]:
            tl.store(dsaved + at, of_d * g / rate + of_styles * styled, mask=mask)
        else:
            tl.store(dsaved + at, of_d * g / rate, mask=mask)
        tl.store(dt + at, g * scale, mask=mask)
        if SPEC[12]:
            sum_g += g
        if SPEC[13]:
            sum_gn += g * eta
        if SPEC[14]:
            sum_ga += g * a
        if SPEC[15]:
            sum_s += tl.where(mask, styled * of_v, zero)
    sums = (sum_g, sum_gn, sum_ga, sum_s)
    row = (n * many + i) * channels + c
    part = tl.num_programs(2).to(tl.int64) * many * channels
    program = (n * many + i) * tl.num_programs(0) + tl.program_id(0)
    for k in tl.static_range(4):
        if SPEC[12 + k]:
            total = tl.sum(sums[k], 0 if NHWC else 1, keep_dims=True)
            if k < 2:
                total *= -of_d  # 0 where there is no such channel
            if k == 2 and SPEC[16]:
                total -= tl.where(i == 0, of_d, zero) * tl.load(dd + n * channels + c, mask=c < channels, other=0.0)
            if k == 3 and SPEC[11]:
                known = tl.load(dnext + n * channels + c, mask=c < channels, other=0.0)
                total -= tl.where(i == 0, both, zero) * known
            store_sum(partial, k, total, part, row, program, c < channels)


def _pass(dy, dys, saved: Tensor, styled: bool, after: Tensor, o: Operands, e, f, dd, dnext, sums):
    """(δdy, δdys, δsaved, d·g, [δb, δstrength, δd, δs⁺]). `styled`: saved is y·s⁺. None for a gradient that wasn't
    there or isn't among the `sums` wanted."""
    saved = dense(saved)
    dy, dys, after = (None if t is None else dense_like(t, saved) for t in (dy, dys, after))
    ddy, ddys = (None if t is None else torch.empty_like(saved) for t in (dy, dys))
    dsaved, dt, gradients = torch.empty_like(saved), torch.empty_like(saved), gradients_of(saved, o, sums)
    if not _impl.launching():
        return ddy, ddys, dsaved, dt, gradients
    if saved.numel() == 0:
        return ddy, ddys, dsaved, dt, [t if t is None else t.zero_() for t in gradients]
    key, settings, constants = plan("layer_second", saved)
    pointers, noise_step, spec = arguments(o, saved)
    n, channels, height, width = saved.shape
    blocks, tiles = cdiv(channels, constants["BC"]), cdiv(height * width, constants["BP"])
    many = max(1, min(tiles, cdiv(programs(saved, settings["WAVES"]), blocks * n)))
    partial = torch.empty([4, n, many, channels], dtype=sums_dtype(saved), device=saved.device)
    constants["SPEC"] = (*spec, dy is not None, dys is not None, styled, *sums, e is not None, f is not None)
    args = (saved if dy is None else dy, saved if dys is None else dys, saved, after, *pointers)
    args += tuple(saved if t is None else t.contiguous() for t in (e, f, dd, dnext))
    args += tuple(saved if t is None else t for t in (ddy, ddys))
    args += (dsaved, dt, partial, height * width, channels, noise_step)
    launch(_second, "layer_second", key, (blocks, many, n), args, constants, settings)
    total_up(partial, gradients, n * many * blocks)
    return ddy, ddys, dsaved, dt, gradients


def serves(t: Tensors, layer: Layer, needs: list[bool]) -> bool:
    """Whether a backward pass that will be differentiated is of the kind that this file has the gradient of: with
    respect to activations and styles alone, of a demodulated layer whose activation inverts."""
    if layer.impl == "reference" or _impl.obstacle("triton", t.x.device):
        return False
    if t.styles is not None or t.d is None or not layer.invertible or layer.clamp >= 0:
        return False
    fixed = t.noise is None or not t.noise.requires_grad
    return fixed and not any(needs[i] for i in (1, 2, 4, 5, 6))


def gradients(cotangents, dy, dys, t: Tensors, saved: Tensor, dd, dnext, layer: Layer, needs: list[bool]):
    """Gradients of (dy, dys, weight, d, strength, bias, next_styles, saved) from the cotangents of dx, dd and
    next_styles' gradient, each None where there is none; `needs`: of weight, d, strength, bias and next_styles (bias
    and strength only beside a cotangent of dd)."""
    a, e, f = cotangents
    need_w, need_d, need_strength, need_b, need_next = needs
    o = Operands(t.d, t.noise, t.strength, t.bias, t.next_styles, layer.activation)
    kernel, args, stretch = layer.kernel(t.weight, t.x), layer.conv_args(t.weight), layer.up == 2
    a = torch.zeros_like(t.x) if a is None else a
    after = library_conv2d(dense(a), kernel, *args)
    if stretch:
        fir = layer.fir_args(t.weight, t.f)
        after = upfirdn2d(after, t.f, **fir, impl=layer.sub_impl)
    sums = (need_b, need_strength, need_d, need_next)
    found = _pass(dy, dys, saved, not layer.plain, after, o, e, f, dd, dnext, sums)
    ddy, ddys, dsaved, dt, (db, dstrength, d_d, dstyles) = found
    dw = None
    if need_w:
        if stretch:
            dt = upfirdn2d_adjoint(dt, t.f, layer.before_fir(t.x, t.weight), **fir, impl=layer.sub_impl)
        _, dkernel = conv2d_backward(dt, a, kernel, t.x.shape, *args, needs=(False, True))
        dw = layer.kernel_adjoint(dkernel, t.weight)
    return ddy, ddys, dw, d_d, dstrength, db, dstyles, dsaved
