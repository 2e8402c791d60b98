"""What a layer does to a tile of its convolution's output, and that step's gradient: for every kernel that ends in it.

    v = clamp(gain · act(d·u + strength·noise + b)),  and v · s⁺ for the next layer

A tile has channels along one dimension and pixels along the other; channel numbers c and all that goes by them are
broadcastable to it. SPEC, one tuple of constants for all functions here: act, alpha, gain, clamp (0 to 3); whether
there is d, noise, strength, bias, s⁺ (4 to 8); forward, whether v and v · s⁺ are written (9, 10); backward, whether
there is a gradient of v, of v · s⁺, and v · s⁺ saved in v's place (9 to 11), and which of the four sums are wanted (12
to 15). From 16 on kernels append their own: the backward pass of `kernels` whether the third sum is divided by d; that
of `second` whether there is a cotangent of dd and one of s⁺'s gradient (16, 17).
"""

import triton
import triton.language as tl
from torch import Tensor

from gankern.ops._activations import activate, clamped, slope, unclamped
from gankern.ops._triton import as_held
from gankern.ops.modulated_conv2d.layer import Operands


def arguments(o: Operands, v: Tensor) -> tuple[tuple[Tensor, ...], int, tuple]:
    """For an output v [N, C, H, W]: the pointers d, noise, strength, bias, next_styles (v itself for what there
    isn't), how far apart the noise of two samples lies, and SPEC's first nine."""
    noise, step = o.flat_noise(v)
    tensors = (o.d, noise, o.strength, o.bias, o.next_styles)
    act, alpha, gain, clamp = o.act
    spec = (act, alpha, gain, as_held(clamp, v.dtype), *(p is not None for p in tensors))
    return tuple(v if p is None else p.contiguous() for p in tensors), step, spec


@triton.jit
def operands(d, noise, strength, bias, next_styles, n, c, channels, noise_step, SPEC: tl.constexpr, ACC: tl.constexpr):
    """(d, where the samples' noise begins, strength, b, s⁺) of samples n and channels c."""
    scale, b, styles = tl.zeros([1, 1], ACC), tl.zeros([1, 1], ACC), tl.zeros([1, 1], ACC)
    amount = tl.full([], 1.0, ACC)
    if SPEC[4]:
        scale = tl.load(d + n * channels + c, mask=c < channels, other=0.0).to(ACC)
    if SPEC[6]:
        amount = tl.load(strength).to(ACC)
    if SPEC[7]:
        b = tl.load(bias + c, mask=c < channels, other=0.0).to(ACC)
    if SPEC[8]:
        styles = tl.load(next_styles + n * channels + c, mask=c < channels, other=0.0).to(ACC)
    return scale, noise + n * noise_step, amount, b, styles


@triton.jit
def finish(y, ys, at, mask, u, scale, noise, pixels, amount, b, styles, SPEC: tl.constexpr, ACC: tl.constexpr):
    """Makes v of u and writes it at `at`; `noise` points to the noise of the tile's pixels, those in the mask `pixels`
    (no larger than they are: one number serves all channels)."""
    if SPEC[4]:
        u *= scale
    if SPEC[5]:
        u += tl.load(noise, mask=pixels, other=0.0).to(ACC) * amount
    if SPEC[7]:
        u += b
    v = clamped(activate(u, tl.constexpr(SPEC[0]), SPEC[1]) * SPEC[2], SPEC[3])
    if SPEC[9]:
        tl.store(y + at, v, mask=mask)
    if SPEC[10]:
        tl.store(ys + at, v * styles, mask=mask)


@triton.jit
def gradient(dy, dys, saved, at, mask, styles, SPEC: tl.constexpr, ACC: tl.constexpr):
    """(g, the gradient of the pre-activation, 0 where not mask; gain · slope; v; the gradient of v · s⁺)."""
    zero = tl.full([], 0.0, ACC)
    v = tl.load(saved + at, mask=mask, other=0.0).to(ACC)
    if SPEC[10]:
        if SPEC[11]:
            # where the style is zero nothing reaches v, and nothing tells what it was
            v = tl.where(styles == zero, zero, v / styles)
        styled = tl.load(dys + at, mask=mask, other=0.0).to(ACC)
        g = styled * styles
        if SPEC[9]:
            g += tl.load(dy + at, mask=mask, other=0.0).to(ACC)
    else:
        g = tl.load(dy + at, mask=mask, other=0.0).to(ACC)
        styled = g
    rate = slope(v, tl.constexpr(SPEC[0]), SPEC[1]) * SPEC[2]
    return tl.where(mask & unclamped(v, SPEC[3]), g * rate, zero), rate, v, styled


@triton.jit
def add_sums(sums, g, rate, v, styled, noise, pixels, amount, b, own, SPEC: tl.constexpr, ACC: tl.constexpr):
    """The four sums, Σ g, Σ g·noise, Σ g·(p − strength·noise − b), Σ dys·v, with this tile's `own` pixels added."""
    sum_g, sum_gn, sum_gt, sum_s = sums
    zero = tl.full([], 0.0, ACC)
    g = tl.where(own, g, zero)
    if SPEC[5] and (SPEC[13] or SPEC[14]):
        eta = tl.load(noise, mask=pixels, other=0.0).to(ACC)
    if SPEC[12]:
        sum_g += g
    if SPEC[13]:
        sum_gn += g * eta
    if SPEC[14]:
        p = v / rate
        if SPEC[5]:
            p -= eta * amount
        if SPEC[7]:
            p -= b
        sum_gt += g * p
    if SPEC[15]:
        sum_s += tl.where(own, styled * v, zero)
    return sum_g, sum_gn, sum_gt, sum_s


@triton.constexpr_function
def sum_shape(wanted, rows, cols):
    """The shape of one running sum: a single number where nobody wants it."""
    return (rows, cols) if wanted else (1, 1)
