"""The beginning of a residual block that reduces by 2: its convolution, and the filter of its skip, of the same x.

    t = C(x, w)        s = FIR↓2(x)        dx = Cᵢ(dt, w) + FIRᵀ↑2(ds)        dw = C_w(dt, x)

As one operator, because autograd would sum the two gradients of x in a pass of its own: here the filter's adds the
convolution's where it writes: two passes of an activation less. Karras et al. 2020 (arXiv:1912.04958), 4.1.
"""

import torch
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._gradients import weight_gradients_wanted
from gankern.ops.conv2d import conv2d, conv2d_backward, downsample_padding, library_conv2d
from gankern.ops.upfirdn2d import upfirdn2d
from gankern.ops.upfirdn2d.op import adjoint, adjoint_args, format_of


def _fir(f: Tensor) -> dict:
    return {"down": 2, "padding": downsample_padding(f)}


def _forward_impl(x: Tensor, w: Tensor, f: Tensor, padding: int, impl: str) -> tuple[Tensor, Tensor]:
    return library_conv2d(x, w, 1, padding, False), upfirdn2d(x, f, **_fir(f), impl=impl)


def _backward_impl(
    dt: Tensor, ds: Tensor, x: Tensor, w: Tensor, f: Tensor, need_w: bool, padding: int, impl: str
) -> tuple[Tensor, Tensor]:
    """(dx, dw); dw empty where it isn't needed."""
    dx, dw = conv2d_backward(dt, x, w, x.shape, 1, padding, False, needs=(True, need_w))
    args = adjoint_args(f, x.shape[2:], ds.shape[2:], [1, 1], [2, 2], downsample_padding(f), False, 1.0)
    launchers = _impl.launchers("gankern.ops.upfirdn2d", impl)
    ds = ds.contiguous(memory_format=format_of(x))
    return launchers.forward(ds, f, *args, residual=dx), x.new_empty(0) if dw is None else dw


_branches = _impl.register("residual_branches", _forward_impl)
_branches_backward = _impl.register("residual_branches_backward", _backward_impl)


def _save(ctx, inputs, output):
    x, w, f, ctx.padding, ctx.impl = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, w, f)


def _backward(ctx, dt, ds):
    x, w, f = ctx.saved_tensors
    need_x, need_w = ctx.needs_input_grad[0], ctx.needs_input_grad[1] and weight_gradients_wanted() and dt is not None
    if dt is not None and ds is not None and need_x and not torch.is_grad_enabled():
        dx, dw = _branches_backward(dt, ds, x, w, f, need_w, ctx.padding, ctx.impl)
        return dx, dw if need_w else None, None, None, None
    dx = dw = None
    if dt is not None:
        dx, dw = conv2d_backward(dt, x, w, x.shape, 1, ctx.padding, False, needs=(need_x, need_w))
    if ds is not None and need_x:
        skip = adjoint(
            ds.contiguous(memory_format=format_of(x)),
            f,
            x.shape[2:],
            [1, 1],
            [2, 2],
            downsample_padding(f),
            False,
            1.0,
            ctx.impl,
        )
        dx = skip if dx is None else dx + skip
    return dx, dw, None, None, None


_impl.register_autograd(_branches, _backward, setup_context=_save)
_impl.declare("residual_branches", "triton", "cuda", "reference")


def residual_branches(
    x: Tensor, weight: Tensor, f: Tensor, padding: int = 0, *, impl: str | None = None
) -> tuple[Tensor, Tensor]:
    """(conv2d(x, weight, padding=padding), downsample2d(x, f)), differentiable to any order.

    x [N, I, H, W], weight [O, I, k, k] in x's dtype, f from `setup_filter`. Raises ValueError as the two do.
    """
    impl = _impl.choose("residual_branches", impl, x)
    if impl == "reference":
        return conv2d(x, weight, padding=padding), upfirdn2d(x, f, **_fir(f), impl=impl)
    if x.ndim != 4 or weight.ndim != 4 or weight.shape[1] != x.shape[1] or weight.dtype != x.dtype:
        raise ValueError(f"weight is {weight.dtype} of {tuple(weight.shape)}, which doesn't fit x of {tuple(x.shape)}")
    return _branches(x, weight, f, padding, impl)
