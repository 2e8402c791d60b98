"""Instance norm: each sample's channel to zero mean and unit variance over its pixels, then an affine, an activation
and a gain.

    h = (x − μ) · r,   μ = mean(x),   r = (Σ(x − μ)²/D + eps)^-1/2      over the P pixels of a sample's channel
    y = gain · act(u),   u = h · s + b,   s = offset + weight           D = P (biased) or P − 1

The affine is one number a channel [C] (Ulyanov et al. 2016, "Instance Normalization", arXiv:1607.08022), one a sample
and channel [N, C] (AdaIN: Huang and Belongie 2017, arXiv:1703.06868) or one a pixel [N, C, *spatial] (SPADE: Park et
al. 2019, arXiv:1903.07291). With A e = r · (e − mean(e) − h · Σ(e·h)/D), the derivative of h, which is self-adjoint:

    g = dy · gain · act'(u)      dx = A(g·s)      dweight = Σ g·h      dbias = Σ g

Gradients recompute the statistics from x: only the inputs are kept. First and second order.
"""

import math

from torch import Tensor

from gankern.ops import _impl
from gankern.ops._gradients import weight_gradients_wanted
from gankern.ops._layout import wide
from gankern.ops.bias_act import ACTIVATIONS, activation_args


def _broadcast(t: Tensor, x: Tensor) -> Tensor:
    """[C], [N, C] or [N, C, *spatial] as it broadcasts to x, in at least float32."""
    if t.ndim == 1:
        t = t[None]
    return wide(t).reshape(*t.shape, *[1] * (x.ndim - t.ndim))


def _sum_to(t: Tensor, ndim: int) -> Tensor:
    """The adjoint of `_broadcast` for a parameter of `ndim` dimensions."""
    if ndim > 2:
        return t
    t = t.sum(list(range(2, t.ndim)))
    return t.sum(0) if ndim == 1 else t


def _pixels(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


def _normalised(x: Tensor, eps: float, biased: bool) -> tuple[Tensor, Tensor, int]:
    """h, r (kept dims) and D."""
    xf, pixels = wide(x), _pixels(x)
    d = math.prod(x.shape[2:]) - int(not biased)
    centred = xf - xf.mean(pixels, keepdim=True)
    r = (centred.square().sum(pixels, keepdim=True) / d + eps).rsqrt()
    return centred * r, r, d


def _derivative(e: Tensor, h: Tensor, r: Tensor, d: int) -> Tensor:
    """A e: the derivative of h along e, and its adjoint."""
    pixels = _pixels(h)
    # h first: the result takes x's memory format
    return (h * (-(e * h).sum(pixels, keepdim=True) / d) + (e - e.mean(pixels, keepdim=True))) * r


def _affine(h: Tensor, weight: Tensor | None, bias: Tensor | None, offset: float) -> tuple[Tensor, Tensor | float]:
    """(u, s)."""
    s = 1.0 if weight is None else _broadcast(weight, h) + offset
    u = h if weight is None else h * s
    return u if bias is None else u + _broadcast(bias, h), s


def _slopes(u: Tensor, act: str, alpha: float, gain: float, second: bool = False) -> tuple[Tensor, Tensor | None]:
    """gain · act'(u), and gain · act''(u) where `second` (None where it is zero)."""
    spec = ACTIVATIONS[act]
    argument = u if spec.needs_x else spec.f(u, alpha)
    slope = spec.slope(argument, alpha)
    if not second or spec.slope_grad is None:
        return slope * gain, None
    curvature = spec.slope_grad(argument)
    return slope * gain, (curvature if spec.needs_x else curvature * slope) * gain


def instance_norm_reference(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    act: str = "linear",
    alpha: float = 0.0,
    gain: float = 1.0,
    eps: float = 1e-5,
    biased: bool = True,
    weight_offset: float = 0.0,
) -> Tensor:
    """The definition, in eager PyTorch; in at least float32."""
    u, _ = _affine(_normalised(x, eps, biased)[0], weight, bias, weight_offset)
    return (ACTIVATIONS[act].f(u, alpha) * gain).to(x.dtype)


# -- registration -----------------------------------------------------------------------------------------------------


def _forward_impl(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    act: str,
    alpha: float,
    gain: float,
    eps: float,
    biased: bool,
    weight_offset: float,
    impl: str,
) -> Tensor:
    if impl == "triton":
        from gankern.ops.instance_norm import kernels

        return kernels.forward(x, weight, bias, (act, alpha, gain, eps, biased, weight_offset))
    return instance_norm_reference(x, weight, bias, act, alpha, gain, eps, biased, weight_offset)


def _backward_impl(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    weight_grad: bool,
    bias_grad: int,
    act: str,
    alpha: float,
    gain: float,
    eps: float,
    biased: bool,
    weight_offset: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias). `bias_grad`: the bias's number of dimensions, 0 for no gradient; gradients not wanted are
    empty. `bias` is None where the activation is linear, which doesn't need it."""
    if impl == "triton":
        from gankern.ops.instance_norm import kernels

        args = act, alpha, gain, eps, biased, weight_offset
        return kernels.backward(dy, x, weight, bias, weight_grad, bias_grad, args)
    h, r, d = _normalised(x, eps, biased)
    u, s = _affine(h, weight, bias, weight_offset)
    g = _slopes(u, act, alpha, gain)[0] * wide(dy)
    dx = _derivative(g * s, h, r, d).to(x.dtype)
    dw = _sum_to(g * h, weight.ndim).to(x.dtype) if weight_grad else x.new_empty(0)
    db = _sum_to(g, bias_grad).to(x.dtype) if bias_grad else x.new_empty(0)
    return dx, dw, db


_instance_norm = _impl.register("instance_norm", _forward_impl)
_instance_norm_backward = _impl.register("instance_norm_backward", _backward_impl)


def _save_forward(ctx, inputs, output):
    x, weight, bias, *ctx.args = inputs
    ctx.bias_ndim = 0 if bias is None else bias.ndim
    ctx.save_for_backward(x, weight, None if ctx.args[0] == "linear" else bias)


def _backward(ctx, dy):
    wanted = weight_gradients_wanted()
    weight_grad = ctx.needs_input_grad[1] and wanted
    bias_grad = ctx.bias_ndim if ctx.needs_input_grad[2] and wanted else 0
    dx, dw, db = _instance_norm_backward(dy, *ctx.saved_tensors, weight_grad, bias_grad, *ctx.args)
    return dx, dw if weight_grad else None, db if bias_grad else None, *[None] * 7


_impl.register_autograd(_instance_norm, _backward, setup_context=_save_forward)


def _save_backward(ctx, inputs, output):
    dy, x, weight, bias, ctx.weight_grad, ctx.bias_grad, *ctx.args = inputs
    ctx.save_for_backward(dy, x, weight, bias)


def _second_formulas(ddx, ddw, ddb, dy, x, weight, bias, act, alpha, gain, eps, biased, weight_offset, impl):
    """Gradients of <dx, ddx> + <dw, ddw> + <db, ddb> = Σ g·q with respect to dy, x, weight and bias, in differentiable
    operators; q = s·A(ddx) + h·ddw + ddb is u's derivative along the three.

    With k = dy·gain·act''(u)·q and t = A(ddx), through u, h and A itself:
    grad_x = A(k·s + g·ddw) − r/D · (h·<g·s, t> + <ddx, h>·A(g·s) + <g·s, h>·t).
    """
    h, r, d = _normalised(x, eps, biased)
    u, s = _affine(h, weight, bias, weight_offset)
    slope, curvature = _slopes(u, act, alpha, gain, second=True)
    pixels, v = _pixels(x), wide(ddx)
    t = _derivative(v, h, r, d)
    q = t * s
    w = None if ddw is None else _broadcast(ddw, x)
    q = q if w is None else q + h * w
    q = q if ddb is None else q + _broadcast(ddb, x)
    g = slope * wide(dy)
    gs = g * s
    k = None if curvature is None else curvature * q * wide(dy)
    through_h = k * s if k is not None else None
    if w is not None:
        through_h = g * w if through_h is None else through_h + g * w
    inner = (h * (gs * t).sum(pixels, keepdim=True)) + _derivative(gs, h, r, d) * (v * h).sum(pixels, keepdim=True)
    inner = inner + t * (gs * h).sum(pixels, keepdim=True)
    grad_x = inner * (-r / d)
    grad_x = grad_x if through_h is None else grad_x + _derivative(through_h, h, r, d)
    grad_w = None
    if weight is not None:
        grad_w = _sum_to(g * t if k is None else k * h + g * t, weight.ndim).to(x.dtype)
    grad_b = None if bias is None or k is None else _sum_to(k, bias.ndim).to(x.dtype)
    return (slope * q).to(dy.dtype), grad_x.to(x.dtype), grad_w, grad_b


def _double_backward(ctx, ddx, ddw, ddb):
    dy, x, weight, bias = ctx.saved_tensors
    ddw, ddb = ddw if ctx.weight_grad else None, ddb if ctx.bias_grad else None
    return *_second_formulas(ddx, ddw, ddb, dy, x, weight, bias, *ctx.args), *[None] * 9


_impl.register_autograd(_instance_norm_backward, _double_backward, setup_context=_save_backward)
_impl.declare("instance_norm", "triton", "reference")

# -- public -----------------------------------------------------------------------------------------------------------


def _check_affine(name: str, t: Tensor | None, x: Tensor) -> None:
    if t is None:
        return
    shapes = [tuple(x.shape[1:2]), tuple(x.shape[:2]), tuple(x.shape)]
    if tuple(t.shape) not in shapes:
        raise ValueError(f"{name} has shape {tuple(t.shape)}, expected one of {', '.join(map(str, shapes))}")
    if t.dtype != x.dtype or t.device != x.device:
        raise ValueError(f"{name} is {t.dtype} on {t.device}, expected x's {x.dtype} on {x.device}")


def instance_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    eps: float = 1e-5,
    biased: bool = True,
    *,
    weight_offset: float = 0.0,
    impl: str | None = None,
) -> Tensor:
    """gain · act(h · (weight_offset + weight) + bias), h = (x − mean) · rsqrt(var + eps) over the pixels of each sample
    and channel; differentiable twice.

    `x`: [N, C, *spatial], any float dtype. `weight`, `bias`, each on its own and of x's dtype: None, [C] (instance
    norm), [N, C] (AdaIN) or x's shape (SPADE). `weight_offset=1.0` gives AdaIN's and SPADE's 1 + γ without a pass of
    its own; without a weight the factor is 1. `biased`: variance over P pixels (instance norm everywhere), or over
    P − 1 (the original AdaIN). `act`, `alpha`, `gain` as in `bias_act` (note that relu and lrelu have a gain of √2).
    Raises ValueError for other shapes, dtypes or devices, and for one pixel where not `biased`.
    """
    if x.ndim < 3 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} of shape {tuple(x.shape)}, expected a floating-point tensor [N, C, *spatial]")
    _check_affine("weight", weight, x)
    _check_affine("bias", bias, x)
    if not biased and math.prod(x.shape[2:]) < 2:
        raise ValueError(f"biased=False with x of shape {tuple(x.shape)}, expected two pixels or more")
    act, alpha, gain, _ = activation_args(act, alpha, gain, None)
    args = act, alpha, gain, float(eps), bool(biased), float(weight_offset), _impl.choose("instance_norm", impl, x)
    return _instance_norm(x, weight, bias, *args)
