"""Pixel norm: each pixel's feature vector scaled to unit root mean square.

    y = x · r,   r = (mean(x², dim) + eps)^-1/2

    dx = r·dy − r³·x·mean(x·dy)

The gradient is self-adjoint in dy, so the double backward's dy part is the backward op again. First and second order.
Karras et al. 2018, "Progressive Growing of GANs" (arXiv:1710.10196), section 4.2.
"""

import torch
from torch import Tensor

from gankern.ops import _impl


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def pixel_norm_reference(x: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """The definition, in eager PyTorch; statistics in at least float32."""
    xf = x.to(_statistics_dtype(x))
    return (xf * (xf.square().mean(dim, keepdim=True) + eps).rsqrt()).to(x.dtype)


def pixel_norm_backward_reference(dy: Tensor, x: Tensor, dim: int, eps: float) -> Tensor:
    """dx, by the equation above."""
    xf, dyf = x.to(_statistics_dtype(x)), dy.to(_statistics_dtype(x))
    r = (xf.square().mean(dim, keepdim=True) + eps).rsqrt()
    # x's term first: dx takes its memory format, whatever dy's strides are
    return torch.addcmul(xf * (r.pow(3) * -(xf * dyf).mean(dim, keepdim=True)), r, dyf).to(x.dtype)


# -- registration -----------------------------------------------------------------------------------------------------


def _forward_impl(x: Tensor, dim: int, eps: float, impl: str) -> Tensor:
    if impl != "reference":
        return _impl.launchers(__package__, impl).forward(x, dim, eps)
    return pixel_norm_reference(x, dim, eps)


def _backward_impl(dy: Tensor, x: Tensor, dim: int, eps: float, impl: str) -> Tensor:
    if impl != "reference":
        return _impl.launchers(__package__, impl).backward(dy, x, dim, eps)
    return pixel_norm_backward_reference(dy, x, dim, eps)


_pixel_norm = _impl.register("pixel_norm", _forward_impl)
_pixel_norm_backward = _impl.register("pixel_norm_backward", _backward_impl)


def _save_forward(ctx, inputs, output):
    x, *ctx.args = inputs
    ctx.save_for_backward(x)


def _backward(ctx, dy):
    return _pixel_norm_backward(dy, *ctx.saved_tensors, *ctx.args), None, None, None


_impl.register_autograd(_pixel_norm, _backward, setup_context=_save_forward)


def _save_backward(ctx, inputs, output):
    dy, x, *ctx.args = inputs
    ctx.save_for_backward(dy, x)


def _second_formulas(v: Tensor, dy: Tensor, x: Tensor, dim: int, eps: float, impl: str, need_dy=True, need_x=True):
    """Gradients of <dx, v> in differentiable operators; with a = mean(x·v), m = mean(x·dy), q = mean(v·dy):
    d/dx = r³·(3·r²·a·m·x − q·x − m·v − a·dy)."""
    grad_dy = _pixel_norm_backward(v, x, dim, eps, impl) if need_dy else None
    if not need_x:
        return grad_dy, None
    xf, vf, dyf = (t.to(_statistics_dtype(x)) for t in (x, v, dy))
    r = (xf.square().mean(dim, keepdim=True) + eps).rsqrt()
    a, m, q = ((s * t).mean(dim, keepdim=True) for s, t in ((xf, vf), (xf, dyf), (vf, dyf)))
    return grad_dy, (r.pow(3) * (xf * (3 * r.square() * a * m - q) - m * vf - a * dyf)).to(x.dtype)


def _second_impl(v: Tensor, dy: Tensor, x: Tensor, dim: int, eps: float, impl: str) -> tuple[Tensor, Tensor]:
    """`_second_formulas` in one pass, once no third order is asked for."""
    if impl != "reference":
        return _impl.launchers(__package__, impl).second(v, dy, x, dim, eps)
    return _second_formulas(v, dy, x, dim, eps, impl)


pixel_norm_second = _impl.register("pixel_norm_second", _second_impl)


def _double_backward(ctx, v):
    dy, x = ctx.saved_tensors
    need_dy, need_x = ctx.needs_input_grad[:2]
    if ctx.args[-1] == "reference" or torch.is_grad_enabled() or not need_x:
        gradients = _second_formulas(v, dy, x, *ctx.args, need_dy, need_x)
    else:
        gradients = pixel_norm_second(v, dy, x, *ctx.args)
    return *gradients, None, None, None


_impl.register_autograd(_pixel_norm_backward, _double_backward, setup_context=_save_backward)
_impl.declare("pixel_norm", "triton", "cuda", "reference")

# -- public -----------------------------------------------------------------------------------------------------------


def pixel_norm(x: Tensor, dim: int = 1, eps: float = 1e-8, *, impl: str | None = None) -> Tensor:
    """x · rsqrt(mean(x², dim) + eps): unit root mean square along `dim` (not unit length); differentiable twice.

    `x`: any shape of at least one dimension, any float dtype. Raises ValueError for another dtype or a `dim` that x
    doesn't have. Karras et al. 2018 (arXiv:1710.10196).
    """
    if not x.is_floating_point():
        raise ValueError(f"x has dtype {x.dtype}, expected a floating-point tensor")
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"dim={dim}, expected a dimension of x, whose shape is {tuple(x.shape)}")
    return _pixel_norm(x, dim % x.ndim, float(eps), _impl.choose("pixel_norm", impl, x))
