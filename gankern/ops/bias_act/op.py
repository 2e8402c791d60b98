"""Bias, activation, gain and clamp in one operator.

    y = clamp(gain · act(x + b), ±clamp) [+ residual]

    dx = dy · gain · act'(x + b) · [|y| < clamp]        db = Σ dx over every dim but the bias's

The gradient is written in terms of y, so only y is kept for backward (leaky ReLU and the like invert: the sign of y is
the sign of x + b); swish keeps x, and so does every activation with a residual, which hides y. First and second order.
Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" (arXiv:1912.04958); the activations are the
field's usual ones.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._gradients import weight_gradients_wanted
from gankern.ops._layout import wide

_SELU_ALPHA = 1.6732632423543772
_SELU_SCALE = 1.0507009873554805


@dataclass(frozen=True)
class Activation:
    """An activation a = f(u) and its derivatives, written in a (in u where `needs_x`).

    `slope` is f'; `slope_grad` is the derivative of `slope` with respect to its argument, None where it is zero.
    """

    f: Callable[[Tensor, float], Tensor]
    slope: Callable[[Tensor, float], Tensor]
    slope_grad: Callable[[Tensor], Tensor] | None = None
    alpha: float = 0.0
    gain: float = 1.0
    needs_x: bool = False


def _swish_slope(u: Tensor, _: float) -> Tensor:
    c = torch.sigmoid(u)
    return c * (1 + u * (1 - c))


def _swish_slope_grad(u: Tensor) -> Tensor:
    c = torch.sigmoid(u)
    return c * (1 - c) * (2 + u * (1 - 2 * c))


def _where(condition: Tensor, a: Tensor | float, b: Tensor | float, like: Tensor) -> Tensor:
    # two Python numbers would give float32, whatever `like` is
    a = a if isinstance(a, Tensor) else torch.scalar_tensor(a, dtype=like.dtype, device=like.device)
    return torch.where(condition, a, b)


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(lambda u, _: u, lambda a, _: torch.ones_like(a)),
    "relu": Activation(lambda u, _: F.relu(u), lambda a, _: _where(a > 0, 1.0, 0.0, a), gain=math.sqrt(2)),
    "lrelu": Activation(F.leaky_relu, lambda a, alpha: _where(a > 0, 1.0, alpha, a), alpha=0.2, gain=math.sqrt(2)),
    "tanh": Activation(lambda u, _: torch.tanh(u), lambda a, _: 1 - a * a, lambda a: -2 * a),
    "sigmoid": Activation(lambda u, _: torch.sigmoid(u), lambda a, _: a * (1 - a), lambda a: 1 - 2 * a),
    "elu": Activation(
        lambda u, _: F.elu(u), lambda a, _: _where(a >= 0, 1.0, a + 1, a), lambda a: _where(a >= 0, 0.0, 1.0, a)
    ),
    "selu": Activation(
        lambda u, _: F.selu(u),
        lambda a, _: _where(a >= 0, _SELU_SCALE, a + _SELU_SCALE * _SELU_ALPHA, a),
        lambda a: _where(a >= 0, 0.0, 1.0, a),
    ),
    "softplus": Activation(lambda u, _: F.softplus(u), lambda a, _: -torch.expm1(-a), lambda a: torch.exp(-a)),
    "swish": Activation(
        lambda u, _: u * torch.sigmoid(u), _swish_slope, _swish_slope_grad, gain=math.sqrt(2), needs_x=True
    ),
}


def _along(b: Tensor, dim: int, ndim: int) -> Tensor:
    return b.reshape([-1 if i == dim else 1 for i in range(ndim)])


def _sum_to_bias(dx: Tensor, dim: int) -> Tensor:
    return dx.sum([i for i in range(dx.ndim) if i != dim]) if dx.ndim > 1 else dx


def bias_act_reference(
    x: Tensor,
    bias: Tensor | None,
    dim: int = 1,
    act: str = "linear",
    alpha: float = 0.0,
    gain: float = 1.0,
    clamp: float = -1.0,
) -> Tensor:
    """The definition, in eager PyTorch. `clamp` < 0 means none."""
    u = x if bias is None else x + _along(bias, dim, x.ndim)
    y = ACTIVATIONS[act].f(u, alpha) * gain
    return y.clamp(-clamp, clamp) if clamp >= 0 else y


def _argument_and_mask(x, bias, y, dim, act, alpha, gain, clamp) -> tuple[Tensor, Tensor | None]:
    """What `act`'s derivatives are written in, in at least float32, and where the clamp lets the gradient through
    (None: everywhere). y tells that in its own dtype: there the clamped values are the rounded clamp."""
    if y is not None:
        argument = wide(y) / gain if gain != 0 else wide(y)
        return argument, y.abs() < clamp if clamp >= 0 else None
    u = wide(x) if bias is None else wide(x) + _along(wide(bias), dim, x.ndim)
    a = ACTIVATIONS[act].f(u, alpha)
    return u if ACTIVATIONS[act].needs_x else a, (a * gain).abs() < clamp if clamp >= 0 else None


# -- registration -----------------------------------------------------------------------------------------------------


def _forward_impl(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
    impl: str,
) -> Tensor:
    if impl != "reference":
        return _impl.launchers(__package__, impl).forward(x, bias, residual, dim, act, alpha, gain, clamp)
    if bias is None or act not in ("relu", "lrelu") or gain <= 0:
        wide_bias = None if bias is None else wide(bias)
        y = bias_act_reference(wide(x), wide_bias, dim, act, alpha, gain, clamp)
    else:
        # relu and lrelu are positively homogeneous: the gain folds into the sum and saves the CPU a pass
        y = torch.add(_along(wide(bias) * gain, dim, x.ndim), wide(x), alpha=gain)
        y = F.relu_(y) if act == "relu" else F.leaky_relu_(y, alpha)
        y = y.clamp_(-clamp, clamp) if clamp >= 0 else y
    return (y if residual is None else y.add_(residual)).to(x.dtype)


def _backward_impl(
    dy: Tensor,
    x: Tensor | None,
    bias: Tensor | None,
    y: Tensor | None,
    bias_grad: bool,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """(dx, db); db is empty unless `bias_grad`. y is None where the activation is linear and there is no clamp."""
    if impl != "reference":
        return _impl.launchers(__package__, impl).backward(dy, x, bias, y, bias_grad, dim, act, alpha, gain, clamp)
    if y is None and x is None:
        dx = wide(dy) * gain
    elif act in ("relu", "lrelu") and clamp < 0 and gain > 0 and y is not None:
        dx = torch.ops.aten.leaky_relu_backward(wide(dy), wide(y), alpha, True).mul_(gain)
    else:
        argument, mask = _argument_and_mask(x, bias, y, dim, act, alpha, gain, clamp)
        dx = wide(dy) * (ACTIVATIONS[act].slope(argument, alpha) * gain)
        dx = dx if mask is None else dx * mask
    db = _sum_to_bias(dx, dim).to(dy.dtype, copy=True) if bias_grad else dy.new_empty(0)
    return dx.to(dy.dtype), db


_bias_act = _impl.register("bias_act", _forward_impl)
bias_act_backward = _impl.register("bias_act_backward", _backward_impl)


def _save_forward(ctx, inputs, output):
    x, bias, residual, *ctx.args = inputs
    _, act, _, _, clamp, _ = ctx.args
    needed = act != "linear" or clamp >= 0
    needs_x = needed and (ACTIVATIONS[act].needs_x or residual is not None)
    kept = (x, bias, None) if needs_x else (None, None, output if needed else None)
    ctx.save_for_backward(*kept)


def _backward(ctx, dy):
    needs_bias = ctx.needs_input_grad[1] and weight_gradients_wanted()
    dx = db = None
    if ctx.needs_input_grad[0] or needs_bias:
        dx, db = bias_act_backward(dy, *ctx.saved_tensors, needs_bias, *ctx.args)
    return dx, db if needs_bias else None, dy if ctx.needs_input_grad[2] else None, *[None] * 6


_impl.register_autograd(_bias_act, _backward, setup_context=_save_forward)


def _save_backward(ctx, inputs, output):
    dy, x, bias, y, ctx.bias_grad, *ctx.args = inputs
    ctx.save_for_backward(dy, x, bias, y)


def _second_formulas(ddx, ddb, dy, x, bias, y, dim, act, alpha, gain, clamp, impl, need_dy=True):
    """Gradients of <dx, ddx> + <db, ddb> with respect to dy, x, bias and y (None where zero), in differentiable
    operators. db = Σ dx, so ddx and ddb act on dx together."""
    args = dim, act, alpha, gain, clamp, impl
    v = ddx if ddb is None else ddx + _along(ddb, dim, ddx.ndim)
    grad_dy = bias_act_backward(v, x, bias, y, False, *args)[0] if need_dy else None
    spec = ACTIVATIONS[act]
    if spec.slope_grad is None:
        return grad_dy, None, None, None
    argument, mask = _argument_and_mask(x, bias, y, dim, act, alpha, gain, clamp)
    t = wide(v) * wide(dy) * spec.slope_grad(argument)
    t = t if mask is None else t * mask
    if y is not None:
        return grad_dy, None, None, t.to(y.dtype) if gain != 0 else torch.zeros_like(y)
    t = t if spec.needs_x else t * spec.slope(argument, alpha)
    grad_bias = _sum_to_bias(t * gain, dim).to(x.dtype) if bias is not None else None
    return grad_dy, (t * gain).to(x.dtype), grad_bias, None


def _second_impl(
    ddx: Tensor,
    ddb: Tensor | None,
    dy: Tensor,
    x: Tensor | None,
    bias: Tensor | None,
    y: Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`_second_formulas` in one pass, once no third order is asked for; empty tensors for None."""
    none = dy.new_empty(0)
    if impl != "reference" and ACTIVATIONS[act].slope_grad is None:  # a slope that is constant by pieces
        backward = _impl.launchers(__package__, impl).backward
        grad_dy = backward(ddx, x, bias, y, False, dim, act, alpha, gain, clamp, ddb)[0]
        return grad_dy, none, none.clone(), none.clone()
    if impl == "triton":
        from gankern.ops.bias_act import kernels

        return kernels.second(ddx, ddb, dy, x, bias, y, dim, act, alpha, gain, clamp)
    gradients = _second_formulas(ddx, ddb, dy, x, bias, y, dim, act, alpha, gain, clamp, impl)
    return tuple(dy.new_empty(0) if t is None else t for t in gradients)


bias_act_second = _impl.register("bias_act_second", _second_impl)


def _double_backward(ctx, ddx, ddb):
    dy, x, bias, y = ctx.saved_tensors
    ddb = ddb if ctx.bias_grad else None
    if ctx.args[-1] == "reference" or torch.is_grad_enabled():
        gradients = _second_formulas(ddx, ddb, dy, x, bias, y, *ctx.args, need_dy=ctx.needs_input_grad[0])
    else:
        gradients = bias_act_second(ddx, ddb, dy, x, bias, y, *ctx.args)
        curved = ACTIVATIONS[ctx.args[1]].slope_grad is not None
        there = (True, curved and y is None, curved and y is None and bias is not None, curved and y is not None)
        gradients = [t if have else None for t, have in zip(gradients, there, strict=True)]
    return *gradients, *[None] * 7


_impl.register_autograd(bias_act_backward, _double_backward, setup_context=_save_backward)
_impl.declare("bias_act", "triton", "cuda", "reference")

# -- public -----------------------------------------------------------------------------------------------------------


def activation_args(
    act: str, alpha: float | None, gain: float | None, clamp: float | None
) -> tuple[str, float, float, float]:
    """The registered ops' (act, alpha, gain, clamp), the activation's own where None; raises ValueError as
    `bias_act`."""
    if act not in ACTIVATIONS:
        raise ValueError(f"act={act!r}, expected one of {', '.join(ACTIVATIONS)}")
    if clamp is not None and not clamp >= 0:
        raise ValueError(f"clamp={clamp}, expected None or a number >= 0")
    spec = ACTIVATIONS[act]
    alpha = spec.alpha if alpha is None or act != "lrelu" else float(alpha)
    if not alpha >= 0:
        raise ValueError(f"alpha={alpha}, expected a slope >= 0")
    return act, alpha, spec.gain if gain is None else float(gain), -1.0 if clamp is None else float(clamp)


def default_gain(act: str) -> float:
    """The gain that `bias_act` applies for `act` where none is given."""
    return ACTIVATIONS[act].gain


def check_bias(bias: Tensor, x: Tensor, size: int) -> None:
    """Raises ValueError unless `bias` is [size], of x's dtype and device."""
    if bias.shape != (size,):
        raise ValueError(f"bias has shape {tuple(bias.shape)}, expected ({size},)")
    if bias.dtype != x.dtype or bias.device != x.device:
        raise ValueError(f"bias is {bias.dtype} on {bias.device}, expected x's {x.dtype} on {x.device}")


def check_residual(residual: Tensor, x: Tensor, shape: Sequence[int]) -> None:
    """Raises ValueError unless `residual` has this shape, and x's dtype and device."""
    if (tuple(residual.shape), residual.dtype, residual.device) != (tuple(shape), x.dtype, x.device):
        found = f"{residual.dtype} of shape {tuple(residual.shape)} on {residual.device}"
        raise ValueError(f"residual is {found}, expected x's {x.dtype} of shape {tuple(shape)} on {x.device}")


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    *,
    residual: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """clamp(act(x + bias) · gain, ±clamp) [+ residual], differentiable twice.

    `x`: any shape, any float dtype; `bias`: `[x.shape[dim]]`, of x's dtype. `act`: linear, relu (gain √2), lrelu
    (alpha 0.2, gain √2), tanh, sigmoid, elu, selu, softplus, swish (gain √2); alpha is lrelu's negative slope, >= 0.
    None for `alpha`, `gain`: the activation's own; for `clamp`: none. `residual`: x's shape and dtype, added last.
    Raises ValueError for an unknown activation, a bias or residual that doesn't fit x, and a negative alpha or clamp.
    """
    if not x.is_floating_point():
        raise ValueError(f"x has dtype {x.dtype}, expected a floating-point tensor")
    if bias is not None:
        if not -x.ndim <= dim < x.ndim:
            raise ValueError(f"dim={dim}, expected a dimension of x, whose shape is {tuple(x.shape)}")
        dim %= x.ndim
        check_bias(bias, x, x.shape[dim])
    else:
        dim = min(1, x.ndim - 1)
    args = activation_args(act, alpha, gain, clamp)
    if residual is not None:
        check_residual(residual, x, x.shape)
    return _bias_act(x, bias, residual, dim, *args, _impl.choose("bias_act", impl, x))
