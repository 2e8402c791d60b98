"""The activations and their derivatives as Triton functions, for every kernel that applies one.

Names and formulas as in `bias_act`: f(u); the slope f' in terms of a = f(u), or of u for swish; and the slope's own
derivative with respect to its argument. All in the accumulator's type.
"""

import triton
import triton.language as tl


@triton.jit
def _expm1(u):
    if u.dtype == tl.float64:
        return tl.exp(u) - 1
    # exp(u) - 1 loses all digits of a small u
    series = u * (1 + u * (0.5 + u * (1 / 6 + u * (1 / 24 + u * (1 / 120)))))
    return tl.where(tl.abs(u) < 0.1, series, tl.exp(u) - 1)


@triton.jit
def _tanh(u):
    t = tl.exp(-2 * tl.abs(u))
    a = (1 - t) / (1 + t)
    a = tl.where(u < 0, -a, a)
    if u.dtype == tl.float64:
        return a
    s = u * u
    return tl.where(tl.abs(u) < 0.1, u * (1 - s * (1 / 3 - s * (2 / 15))), a)


@triton.jit
def _softplus(u):
    t = tl.exp(-tl.abs(u))
    log1p = tl.log(1 + t)
    if u.dtype != tl.float64:
        log1p = tl.where(t < 0.01, t * (1 - t * (0.5 - t * (1 / 3))), log1p)
    return tl.maximum(u, 0.0) + log1p


@triton.jit
def _sigmoid(u):
    t = tl.exp(-tl.abs(u))
    return tl.where(u >= 0, tl.full([], 1.0, u.dtype), t) / (1 + t)


@triton.jit
def activate(u, ACT: tl.constexpr, ALPHA: tl.constexpr):
    """f(u)."""
    if ACT == "relu":
        return tl.where(u > 0, u, tl.full([], 0.0, u.dtype))
    elif ACT == "lrelu":
        return tl.where(u > 0, u, u * ALPHA)
    elif ACT == "tanh":
        return _tanh(u)
    elif ACT == "sigmoid":
        return _sigmoid(u)
    elif ACT == "elu":
        return tl.where(u > 0, u, _expm1(tl.minimum(u, 0.0)))
    elif ACT == "selu":
        return 1.0507009873554805 * tl.where(u > 0, u, 1.6732632423543772 * _expm1(tl.minimum(u, 0.0)))
    elif ACT == "softplus":
        return _softplus(u)
    elif ACT == "swish":
        return u * _sigmoid(u)
    else:
        return u


@triton.jit
def slope(a, ACT: tl.constexpr, ALPHA: tl.constexpr):
    """f' in terms of a = f(u); for swish in terms of a = u."""
    zero = tl.full([], 0.0, a.dtype)  # constants in a's own type: a bare number would be float32 in tl.where
    if ACT == "relu":
        return tl.where(a > 0, zero + 1, zero)
    elif ACT == "lrelu":
        return tl.where(a > 0, zero + 1, zero + ALPHA)
    elif ACT == "tanh":
        return 1 - a * a
    elif ACT == "sigmoid":
        return a * (1 - a)
    elif ACT == "elu":
        return tl.where(a >= 0, zero + 1, a + 1)
    elif ACT == "selu":
        return tl.where(a >= 0, zero + 1.0507009873554805, a + 1.7580993408473766)
    elif ACT == "softplus":
        return -_expm1(-a)
    elif ACT == "swish":
        c = _sigmoid(a)
        return c * (1 + a * (1 - c))
    else:
        return tl.full(a.shape, 1.0, a.dtype)


@triton.jit
def slope_grad(a, ACT: tl.constexpr):
    """The derivative of `slope` with respect to its argument."""
    if ACT == "tanh":
        return -2 * a
    elif ACT == "sigmoid":
        return 1 - 2 * a
    elif ACT == "elu" or ACT == "selu":
        return tl.where(a >= 0, tl.full([], 0.0, a.dtype), tl.full([], 1.0, a.dtype))
    elif ACT == "softplus":
        return tl.exp(-a)
    elif ACT == "swish":
        c = _sigmoid(a)
        return c * (1 - c) * (2 + a * (1 - 2 * c))
    else:
        return tl.full(a.shape, 0.0, a.dtype)


@triton.jit
def clamped(v, CLAMP: tl.constexpr):
    """v within ±CLAMP (none where negative); NaN comes through, since no comparison holds for it."""
    if CLAMP < 0:
        return v
    limit = tl.full([], CLAMP, v.dtype)
    return tl.where(v > limit, limit, tl.where(v < -limit, -limit, v))


@triton.jit
def unclamped(y, CLAMP: tl.constexpr):
    """Where the clamp lets a gradient through (everywhere for a negative one)."""
    if CLAMP < 0:
        return tl.full(y.shape, True, tl.int1)
    return tl.abs(y) < tl.full([], CLAMP, y.dtype)
