"""A convolution with bias, activation, gain and clamp, and a residual: one layer of a discriminator.

    y = clamp(gain · act(C(x, w) + b), ±clamp) [+ residual]

    dt = dy · gain · act'(C(x, w) + b) · [|y| < clamp]      dx = Cᵢ(dt, w)      dw = C_w(dt, x)      db = Σ_nhw dt

The library's convolution and `bias_act`'s pass; or one kernel of cuDNN's, from whose y the gradient is written. Where a
residual hides y, that kernel writes y before the sum as well if there will be a gradient. With A an activation's bytes
that is 3A forward (residual in, two out), as against 4A with the sum in a pass of its own and 4A for convolution and
`bias_act`; the gradient's pass moves 3A (dy and what was kept in, dt out) whichever was. Karras et al. 2018
(arXiv:1710.10196) and 2020 (arXiv:1912.04958).
"""

import torch
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._gradients import weight_gradients_wanted
from gankern.ops.bias_act import activation_args, bias_act, bias_act_backward, check_bias, check_residual
from gankern.ops.conv2d import check_weight, conv2d, conv2d_backward, output_shape


def _forward_impl(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    keep: bool,
    stride: int,
    padding: int,
    act: str,
    alpha: float,
    gain: float,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """(y, y before the residual); an empty tensor for the second unless `keep`. `impl`: of the gradient's pass."""
    from gankern.ops.cudnn import conv

    return conv.forward(x, weight, bias, residual, keep, stride, padding, (act, alpha, gain))


_conv2d_bias_act = _impl.register("conv2d_bias_act", _forward_impl)


def _save(ctx, inputs, output):
    x, w, _, residual, ctx.keep, *ctx.args = inputs
    ctx.set_materialize_grads(False)
    before = output[1] if ctx.keep else output[0] if residual is None else None  # as `keep` says, none is needed
    ctx.save_for_backward(x, w, None if ctx.args[2] == "linear" else before)


def _backward(ctx, dy, dbefore):
    x, w, y = ctx.saved_tensors
    stride, padding, act, alpha, gain, impl = ctx.args
    need_x, need_w, need_b, need_residual = ctx.needs_input_grad[:4]
    need_w, need_b = (need and weight_gradients_wanted() for need in (need_w, need_b))
    dx = dw = db = None
    g = dy if dbefore is None or not ctx.keep else dbefore if dy is None else dy + dbefore
    if g is not None and (need_x or need_w or need_b):
        dt = g
        if need_b or act != "linear" or gain != 1:
            dt, db = bias_act_backward(g, None, None, y, need_b, 1, act, alpha, gain, -1.0, impl)
        dx, dw = conv2d_backward(dt, x, w, x.shape, stride, padding, False, needs=(need_x, need_w))
    return dx, dw, db if need_b else None, dy if need_residual else None, *[None] * 7


_impl.register_autograd(_conv2d_bias_act, _backward, setup_context=_save)
_impl.declare("conv2d_bias_act", "triton", "cudnn", "cuda", "reference")

# -- public -----------------------------------------------------------------------------------------------------------


def _in_one_kernel(tensors: tuple[Tensor | None, ...], stride: int, padding: int, a: tuple) -> Tensor | None:
    """As cuDNN's kernel; None where there is none."""
    from gankern.ops.cudnn import conv

    *operands, residual = tensors
    differentiated = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
    keep = residual is not None and a[0] != "linear" and differentiated
    if not conv.serves(*operands, residual is not None, keep, stride, padding, a):
        return None
    return _conv2d_bias_act(*tensors, keep, stride, padding, *a, _impl.choose("bias_act", None, tensors[0]))[0]


def conv2d_bias_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    act: str = "lrelu",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    *,
    residual: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """clamp(gain · act(conv2d(x, weight) + bias), ±clamp) [+ residual], differentiable twice.

    `x` [N, I, H, W], `weight` [O, I, kh, kw], `bias` [O] and `residual` of the result's shape, all of x's dtype; `act`,
    `alpha`, `gain` and `clamp` as in `bias_act`. impl="cudnn" is one kernel for linear and leaky ReLU without a clamp,
    for channels_last x in bfloat16 or float16; what it doesn't cover, and what torch.compile traces, is composed of
    `conv2d` and `bias_act`. Raises ValueError for arguments that don't fit x.
    """
    check_weight(x, weight)
    args = activation_args(act, alpha, gain, clamp)
    if bias is not None:
        check_bias(bias, x, weight.shape[0])
    if residual is not None:
        check_residual(residual, x, output_shape(x, weight, stride, padding))
    chosen = _impl.choose("conv2d_bias_act", impl, x)
    if chosen == "cudnn" and clamp is None and not torch.compiler.is_compiling():
        y = _in_one_kernel((x, weight, bias, residual), stride, padding, args[:3])
        if y is not None:
            return y
    y = conv2d(x, weight, stride, padding)
    if bias is None and residual is None and args[0] == "linear" and args[2] == 1 and clamp is None:
        return y
    # what was chosen without asking for it leaves the pass its own choice
    of_pass = None if chosen == "cudnn" or (impl is None and chosen == "triton") else chosen
    return bias_act(y, bias, 1, act, alpha, gain, clamp, residual=residual, impl=of_pass)
