"""upfirdn2d with bias and activation, the activation after it or before it, in one operator each.

    y = act(A x + b)            dx = Aᵀ g,  db = Σ g           with g = dy · act'(A x + b)
    z = A act(x + b)            dx = act'(x + b) · Aᵀ dz       db = Σ dx

A is `upfirdn2d` with all its arguments, act is `bias_act`'s with gain and clamp. The first keeps y, the second x and b:
neither the filtered nor the activated image between the two is ever written. The second stands before the strided
convolutions of the StyleGAN2 discriminator. Karras et al. 2020 (arXiv:1912.04958).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._gradients import weight_gradients_wanted
from gankern.ops.bias_act import op as ba
from gankern.ops.upfirdn2d import op as ud


def _kept(x: Tensor | None, bias: Tensor | None, act: tuple, impl: str, forward=ba._forward_impl) -> tuple:
    """(x, bias, y) as `bias_act_backward` wants them, y from x."""
    if x is None or ba.ACTIVATIONS[act[0]].needs_x:
        return x, bias if x is not None else None, None
    return None, None, forward(x, bias, None, 1, *act, impl)


def _keeps(act: tuple) -> bool:
    """Whether the slope isn't the same everywhere."""
    return act[0] != "linear" or act[3] >= 0


# -- the filter, then the activation ----------------------------------------------------------------------------------


def _filter_act_impl(
    x: Tensor,
    f: Tensor,
    bias: Tensor | None,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip_filter: bool,
    filter_gain: float,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
    impl: str,
) -> Tensor:
    fir = up, down, padding, flip_filter, filter_gain
    if impl != "reference":
        return _impl.launchers(__package__, impl).filter_act(x, f, bias, fir, (act, alpha, gain, clamp))
    return ba._forward_impl(ud._forward_impl(x, f, *fir, impl), bias, None, 1, act, alpha, gain, clamp, impl)


def _filter_act_backward_impl(
    dy: Tensor,
    y: Tensor | None,
    f: Tensor,
    size: Sequence[int],
    bias_grad: bool,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip_filter: bool,
    filter_gain: float,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """(dx, db); db is empty unless `bias_grad`. y is None where the activation is linear and there is no clamp."""
    fir = up, down, padding, flip_filter, filter_gain
    adjoint = ud.adjoint_args(f, size, dy.shape[2:], *fir)
    if impl != "reference":
        backward = _impl.launchers(__package__, impl).filter_act_backward
        return backward(dy, y, f, size, bias_grad, adjoint, (act, alpha, gain, clamp))
    g, db = ba._backward_impl(dy, None, None, y, bias_grad, 1, act, alpha, gain, clamp, impl)
    return ud._forward_impl(g, f, *adjoint, impl), db


_filter_act = _impl.register("upfirdn2d_bias_act", _filter_act_impl)
_filter_act_backward = _impl.register("upfirdn2d_bias_act_backward", _filter_act_backward_impl)


def _save_filter_act(ctx, inputs, output):
    x, f, _, *ctx.args = inputs
    ctx.size = list(x.shape[2:])
    ctx.format = ud.format_of(x)
    ctx.save_for_backward(output if _keeps(ctx.args[5:9]) else None, f)


def _backward_of_filter_act(ctx, dy):
    y, f = ctx.saved_tensors
    needs_bias = ctx.needs_input_grad[2] and weight_gradients_wanted()
    dy = dy.contiguous(memory_format=ctx.format)
    dx, db = _filter_act_backward(dy, y, f, ctx.size, needs_bias, *ctx.args)
    return dx, None, db if needs_bias else None, *[None] * 10


_impl.register_autograd(_filter_act, _backward_of_filter_act, setup_context=_save_filter_act)


def _save_filter_act_backward(ctx, inputs, output):
    dy, y, f, _, ctx.bias_grad, *ctx.args = inputs
    ctx.save_for_backward(dy, y, f)


def _double_backward_of_filter_act(ctx, ddx, ddb):
    """Through g: its gradient is A ddx (+ ddb), and from there on as in `bias_act`."""
    dy, y, f = ctx.saved_tensors
    fir, act, impl = ctx.args[:5], ctx.args[5:9], ctx.args[-1]
    ddb = ddb if ctx.bias_grad else None
    v = ud._upfirdn2d(ddx, f, *fir, impl)
    if impl == "reference" or torch.is_grad_enabled():
        grad_dy, _, _, grad_y = ba._second_formulas(v, ddb, dy, None, None, y, 1, *act, impl)
    else:
        grad_dy, _, _, grad_y = ba.bias_act_second(v, ddb, dy, None, None, y, 1, *act, impl)
        grad_y = grad_y if grad_y.shape == dy.shape else None
    return grad_dy, grad_y, *[None] * 13


_impl.register_autograd(_filter_act_backward, _double_backward_of_filter_act, setup_context=_save_filter_act_backward)
_impl.declare("upfirdn2d_bias_act", "triton", "cuda", "reference")

# -- the activation, then the filter ----------------------------------------------------------------------------------


def _act_filter_impl(
    x: Tensor,
    bias: Tensor | None,
    f: Tensor,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip_filter: bool,
    filter_gain: float,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
    impl: str,
) -> Tensor:
    fir = up, down, padding, flip_filter, filter_gain
    if impl != "reference":
        return _impl.launchers(__package__, impl).act_filter(x, bias, f, fir, (act, alpha, gain, clamp))
    return ud._forward_impl(ba._forward_impl(x, bias, None, 1, act, alpha, gain, clamp, impl), f, *fir, impl)


def _act_filter_backward_impl(
    dz: Tensor,
    x: Tensor | None,
    bias: Tensor | None,
    f: Tensor,
    size: Sequence[int],
    bias_grad: bool,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip_filter: bool,
    filter_gain: float,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """(dx, db); db is empty unless `bias_grad`. x is None where the activation is linear and there is no clamp."""
    adjoint = ud.adjoint_args(f, size, dz.shape[2:], up, down, padding, flip_filter, filter_gain)
    spec = act, alpha, gain, clamp
    if impl != "reference":
        return _impl.launchers(__package__, impl).act_filter_backward(dz, x, bias, f, size, bias_grad, adjoint, spec)
    t = ud._forward_impl(dz, f, *adjoint, impl)
    return ba._backward_impl(t, *_kept(x, bias, spec, impl), bias_grad, 1, *spec, impl)


def _act_filter_tangent_impl(
    v: Tensor,
    vb: Tensor | None,
    x: Tensor | None,
    bias: Tensor | None,
    f: Tensor,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip_filter: bool,
    filter_gain: float,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
    impl: str,
) -> Tensor:
    """A ((v + vb) · act'): the gradient of <dx, v> + <db, vb> with respect to dz, in one pass."""
    fir, spec = (up, down, padding, flip_filter, filter_gain), (act, alpha, gain, clamp)
    if impl != "reference":
        return _impl.launchers(__package__, impl).act_filter_tangent(v, vb, x, bias, f, fir, spec)
    v = v if vb is None else v + ba._along(vb, 1, 4)
    g = ba._backward_impl(v, *_kept(x, bias, spec, impl), False, 1, *spec, impl)[0]
    return ud._forward_impl(g, f, *fir, impl)


_act_filter = _impl.register("bias_act_upfirdn2d", _act_filter_impl)
_act_filter_backward = _impl.register("bias_act_upfirdn2d_backward", _act_filter_backward_impl)
_act_filter_tangent = _impl.register("bias_act_upfirdn2d_tangent", _act_filter_tangent_impl)


def _save_act_filter(ctx, inputs, output):
    x, bias, f, *ctx.args = inputs
    ctx.size = list(x.shape[2:])
    ctx.format = ud.format_of(x)
    keeps = _keeps(ctx.args[5:9])
    ctx.save_for_backward(x if keeps else None, bias if keeps else None, f)


def _backward_of_act_filter(ctx, dz):
    x, bias, f = ctx.saved_tensors
    needs_bias = ctx.needs_input_grad[1] and weight_gradients_wanted()
    dz = dz.contiguous(memory_format=ctx.format)
    dx, db = _act_filter_backward(dz, x, bias, f, ctx.size, needs_bias, *ctx.args)
    return dx, db if needs_bias else None, *[None] * 11


_impl.register_autograd(_act_filter, _backward_of_act_filter, setup_context=_save_act_filter)


def _save_act_filter_backward(ctx, inputs, output):
    dz, x, bias, f, ctx.size, ctx.bias_grad, *ctx.args = inputs
    ctx.save_for_backward(dz, x, bias, f)


def _double_backward_of_act_filter(ctx, ddx, ddb):
    """With t = Aᵀ dz, dx = `bias_act_backward`(t): its second order, whose gradient of t goes on to dz by A."""
    dz, x, bias, f = ctx.saved_tensors
    fir, act, impl = ctx.args[:5], ctx.args[5:9], ctx.args[-1]
    ddb = ddb if ctx.bias_grad else None
    curved = ba.ACTIVATIONS[act[0]].slope_grad is not None
    composed = impl == "reference" or torch.is_grad_enabled()
    if not curved and not composed:
        grad_dz = _act_filter_tangent(ddx, ddb, x, bias, f, *fir, *act, impl)
        return grad_dz, *[None] * 15
    kept = _kept(x, bias, act, impl, ba._bias_act)
    # t counts only where the slope has a slope
    t = ud._upfirdn2d(dz, f, *ud.adjoint_args(f, ctx.size, dz.shape[2:], *fir), impl) if curved else ddx
    second = ba._second_formulas if composed else ba.bias_act_second
    grad_t, grad_x, grad_bias, grad_y = second(ddx, ddb, t, *kept, 1, *act, impl)
    if curved and kept[2] is not None:
        grad_x, grad_bias = ba.bias_act_backward(grad_y, None, None, kept[2], bias is not None, 1, *act, impl)
    grad_x, grad_bias = (grad_x, grad_bias) if curved else (None, None)
    return ud._upfirdn2d(grad_t, f, *fir, impl), grad_x, grad_bias if bias is not None else None, *[None] * 13


_impl.register_autograd(_act_filter_backward, _double_backward_of_act_filter, setup_context=_save_act_filter_backward)
_impl.declare("bias_act_upfirdn2d", "triton", "cuda", "reference")

# -- public -----------------------------------------------------------------------------------------------------------


def _arguments(x, f, bias, up, down, padding, flip_filter, filter_gain, act, alpha, gain, clamp) -> tuple:
    """(f, the registered ops' filter arguments, their activation's); raises ValueError as the two operators do."""
    f, fir = ud.filter_args(x, f, up, down, padding, flip_filter, filter_gain)
    if bias is not None:
        ba.check_bias(bias, x, x.shape[1])
    return f, fir, ba.activation_args(act, alpha, gain, clamp)


def upfirdn2d_bias_act(
    x: Tensor,
    f: Tensor | None,
    bias: Tensor | None = None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    filter_gain: float = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    *,
    impl: str | None = None,
) -> Tensor:
    """bias_act(upfirdn2d(x, f, ..., gain=filter_gain), bias, act=act, ...) in one pass, differentiable twice.

    Arguments and errors are those of `upfirdn2d` and `bias_act`. Swish, whose slope y doesn't tell, takes two passes.
    """
    f, fir, spec = _arguments(x, f, bias, up, down, padding, flip_filter, filter_gain, act, alpha, gain, clamp)
    impl = _impl.choose("upfirdn2d_bias_act", impl, x)
    if ba.ACTIVATIONS[act].needs_x:
        return ba._bias_act(ud._upfirdn2d(x, f, *fir, impl), bias, None, 1, *spec, impl)
    return _filter_act(x, f, bias, *fir, *spec, impl)


def bias_act_upfirdn2d(
    x: Tensor,
    bias: Tensor | None,
    f: Tensor | None,
    act: str = "lrelu",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    filter_gain: float = 1,
    *,
    impl: str | None = None,
) -> Tensor:
    """upfirdn2d(bias_act(x, bias, act=act, ...), f, ..., gain=filter_gain) in one pass, differentiable twice.

    Arguments and errors are those of `bias_act` and `upfirdn2d`; the padding is of zeros, whatever act(bias) is.
    """
    f, fir, spec = _arguments(x, f, bias, up, down, padding, flip_filter, filter_gain, act, alpha, gain, clamp)
    return _act_filter(x, bias, f, *fir, *spec, _impl.choose("bias_act_upfirdn2d", impl, x))
