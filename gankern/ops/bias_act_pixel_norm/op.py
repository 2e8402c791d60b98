"""Bias, activation, gain and pixel norm in one operator: what follows each convolution of ProGAN's generator.

    y = r · a,   a = gain · act(u),   u = x + b,   r = (mean(a²) + eps)^-1/2      over the channels of a pixel

    dx = gain · act'(u) · r·(dy − r²·a·mean(a·dy))        db = Σ dx over every dim but the channels

Gradients recompute a and r from x: only x and the bias are kept. First and second order. Karras et al. 2018,
"Progressive Growing of GANs" (arXiv:1710.10196), section 4.2 and appendix A: leaky ReLU of 0.2, gain 1.
"""

import torch
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._gradients import weight_gradients_wanted
from gankern.ops._layout import wide
from gankern.ops.bias_act import ACTIVATIONS, activation_args, bias_act_reference, check_bias
from gankern.ops.pixel_norm import pixel_norm_reference
from gankern.ops.pixel_norm.op import pixel_norm_backward_reference


def _along(b: Tensor, ndim: int) -> Tensor:
    return wide(b).reshape(-1, *[1] * (ndim - 2))


def _to_bias(du: Tensor) -> Tensor:
    return du.sum([0, *range(2, du.ndim)])


def bias_act_pixel_norm_reference(
    x: Tensor,
    bias: Tensor | None = None,
    act: str = "lrelu",
    alpha: float = 0.2,
    gain: float = 1.0,
    eps: float = 1e-8,
) -> Tensor:
    """The definition, in eager PyTorch; in at least float32."""
    a = bias_act_reference(wide(x), None if bias is None else wide(bias), 1, act, alpha, gain)
    return pixel_norm_reference(a, 1, eps).to(x.dtype)


def _activated(x: Tensor, bias: Tensor | None, act: str, alpha: float, gain: float):
    """(a, its derivative with respect to u, its second derivative or None where that is zero), in at least float32."""
    spec, u = ACTIVATIONS[act], wide(x)
    u = u if bias is None else u + _along(bias, x.ndim)
    f = spec.f(u, alpha)
    argument = u if spec.needs_x else f
    slope = spec.slope(argument, alpha) * gain
    if spec.slope_grad is None:
        return f * gain, slope, None
    curvature = spec.slope_grad(argument)
    return f * gain, slope, curvature * gain if spec.needs_x else curvature * slope


# -- registration -----------------------------------------------------------------------------------------------------


def _forward_impl(x: Tensor, bias: Tensor | None, act: str, alpha: float, gain: float, eps: float, impl: str) -> Tensor:
    if impl != "reference":
        return _impl.launchers(__package__, impl).forward(x, bias, act, alpha, gain, eps)
    return bias_act_pixel_norm_reference(x, bias, act, alpha, gain, eps)


def _backward_impl(
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    bias_grad: bool,
    act: str,
    alpha: float,
    gain: float,
    eps: float,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """(dx, db); db is empty unless `bias_grad`."""
    if impl != "reference":
        return _impl.launchers(__package__, impl).backward(dy, x, bias, bias_grad, act, alpha, gain, eps)
    a, slope, _ = _activated(x, bias, act, alpha, gain)
    du = pixel_norm_backward_reference(wide(dy), a, 1, eps) * slope
    return du.to(x.dtype), _to_bias(du).to(x.dtype) if bias_grad else x.new_empty(0)


_bias_act_pixel_norm = _impl.register("bias_act_pixel_norm", _forward_impl)
_bias_act_pixel_norm_backward = _impl.register("bias_act_pixel_norm_backward", _backward_impl)


def _save_forward(ctx, inputs, output):
    x, bias, *ctx.args = inputs
    ctx.save_for_backward(x, bias)


def _backward(ctx, dy):
    needs_bias = ctx.needs_input_grad[1] and weight_gradients_wanted()
    dx, db = _bias_act_pixel_norm_backward(dy, *ctx.saved_tensors, needs_bias, *ctx.args)
    return dx, db if needs_bias else None, *[None] * 5


_impl.register_autograd(_bias_act_pixel_norm, _backward, setup_context=_save_forward)


def _save_backward(ctx, inputs, output):
    dy, x, bias, ctx.bias_grad, *ctx.args = inputs
    ctx.save_for_backward(dy, x, bias)


def _second_formulas(ddx, ddb, dy, x, bias, act, alpha, gain, eps, impl) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of <dx, ddx> + <db, ddb> with respect to dy, x and bias, in differentiable operators.

    db = Σ dx, so v = ddx + ddb acts on dx. With w = v·∂a/∂u, p = mean(a·w), m = mean(a·dy) and q = mean(w·dy):
    d/da = r³·(3·r²·p·m·a − q·a − m·w − p·dy), and v·∂²a/∂u² comes with the gradient of pixel norm itself.
    """
    a, slope, curvature = _activated(x, bias, act, alpha, gain)
    v = wide(ddx) if ddb is None else wide(ddx) + _along(ddb, x.ndim)
    w, g = v * slope, wide(dy)
    r = (a.square().mean(1, keepdim=True) + eps).rsqrt()
    p, m, q = ((s * t).mean(1, keepdim=True) for s, t in ((a, w), (a, g), (w, g)))
    du = (a * (3 * r.square() * p * m - q) - w * m - g * p) * r.pow(3) * slope
    if curvature is not None:
        du = du + pixel_norm_backward_reference(g, a, 1, eps) * curvature * v
    grad_dy = pixel_norm_backward_reference(w, a, 1, eps).to(x.dtype)
    return grad_dy, du.to(x.dtype), None if bias is None else _to_bias(du).to(x.dtype)


def _second_impl(
    ddx: Tensor,
    ddb: Tensor | None,
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    act: str,
    alpha: float,
    gain: float,
    eps: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """`_second_formulas` in one pass, once no third order is asked for; an empty tensor for None."""
    if impl != "reference":
        return _impl.launchers(__package__, impl).second(ddx, ddb, dy, x, bias, act, alpha, gain, eps)
    grad_dy, grad_x, grad_bias = _second_formulas(ddx, ddb, dy, x, bias, act, alpha, gain, eps, impl)
    return grad_dy, grad_x, x.new_empty(0) if grad_bias is None else grad_bias


bias_act_pixel_norm_second = _impl.register("bias_act_pixel_norm_second", _second_impl)


def _double_backward(ctx, ddx, ddb):
    dy, x, bias = ctx.saved_tensors
    inputs = ddx, ddb if ctx.bias_grad else None, dy, x, bias, *ctx.args
    if ctx.args[-1] == "reference" or torch.is_grad_enabled():
        gradients = _second_formulas(*inputs)
    else:
        *gradients, grad_bias = bias_act_pixel_norm_second(*inputs)
        gradients.append(None if bias is None else grad_bias)
    return *gradients, *[None] * 6


_impl.register_autograd(_bias_act_pixel_norm_backward, _double_backward, setup_context=_save_backward)
_impl.declare("bias_act_pixel_norm", "triton", "reference")

# -- public -----------------------------------------------------------------------------------------------------------


def bias_act_pixel_norm(
    x: Tensor,
    bias: Tensor | None = None,
    act: str = "lrelu",
    alpha: float | None = None,
    gain: float | None = 1.0,
    eps: float = 1e-8,
    *,
    impl: str | None = None,
) -> Tensor:
    """a · rsqrt(mean(a², 1) + eps) with a = gain · act(x + bias): unit root mean square over the channels of each
    pixel; differentiable twice.

    `x`: [N, C] or [N, C, *spatial], any float dtype; `bias`: [C], of x's dtype. `act`, `alpha` as in `bias_act`;
    `gain` is 1 as in ProGAN, and None gives the activation's own, which differs by eps alone. Raises ValueError for
    another shape or dtype, an unknown activation, a bias that doesn't fit x, and a negative alpha. Karras et al. 2018
    (arXiv:1710.10196).
    """
    if x.ndim < 2 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} of shape {tuple(x.shape)}, expected a floating-point tensor [N, C, *spatial]")
    if bias is not None:
        check_bias(bias, x, x.shape[1])
    act, alpha, gain, _ = activation_args(act, alpha, gain, None)
    chosen = _impl.choose("bias_act_pixel_norm", impl, x)
    return _bias_act_pixel_norm(x, bias, act, alpha, gain, float(eps), chosen)
