"""Minibatch standard deviation: how much the samples of a group differ, appended as constant feature maps.

The batch [N, C, H, W] is split into M = N/G strided groups (sample i is with i + M, i + 2M, ...) and the channels into
F groups of c = C/F:

    σ = sqrt(var over the group (biased) + eps)     [M, F, c, H, W]
    s = mean of σ over (c, H, W)                    [M, F]
    y = concat(x, s spread over the group's samples and all pixels)

    dx = dy[:, :C] + t · (x − μ) / (G·c·H·W·σ),     t = Σ of dy's stat channel over the group and all pixels

First and second order. Karras et al. 2018, "Progressive Growing of GANs" (arXiv:1710.10196), section 3.
"""

import torch
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._layout import dense_as, is_channels_last, wide


def _grouped(x: Tensor, group: int, num_channels: int) -> Tensor:
    """[N, C, H, W] -> [G, M, F, c, H, W] in at least float32."""
    n, c, h, w = x.shape
    shape = (group, n // group, num_channels, c // num_channels, h, w)
    return wide(x).reshape(shape)


def _centred(x: Tensor, group: int, num_channels: int, eps: float) -> tuple[Tensor, Tensor]:
    """x − μ [G, M, F, c, H, W] and σ [1, M, F, c, H, W]."""
    g = _grouped(x, group, num_channels)
    g = g - g.mean(0, keepdim=True)
    return g, (g.square().mean(0, keepdim=True) + eps).sqrt()


def _spread(s: Tensor, x: Tensor, group: int) -> Tensor:
    """[M, F] -> [N, F, H, W] in x's dtype: every sample of the group and every pixel gets its group's number."""
    s = s.to(x.dtype).repeat(group, 1)[:, :, None, None]
    return s.expand(-1, -1, x.shape[2], x.shape[3])


def _gathered(t: Tensor, group: int) -> Tensor:
    """The adjoint of `_spread`: [N, F, H, W] -> [M, F]."""
    t = wide(t).sum([2, 3])
    return t.reshape(group, -1, t.shape[1]).sum(0)


def _append(x: Tensor, stat: Tensor) -> Tensor:
    return dense_as(torch.cat([x, stat], 1), is_channels_last(x))


def minibatch_stddev_reference(x: Tensor, group: int, num_channels: int = 1, eps: float = 1e-8) -> Tensor:
    """The definition, in eager PyTorch; statistics in at least float32. `group` divides N."""
    if x.shape[0] == 0:
        return _append(x, x.new_zeros(0, num_channels, *x.shape[2:]))
    _, sigma = _centred(x, group, num_channels, eps)
    return _append(x, _spread(sigma.mean([3, 4, 5])[0], x, group))


def minibatch_stddev_backward_reference(dy: Tensor, x: Tensor, group: int, num_channels: int, eps: float) -> Tensor:
    """dx, by the equation above."""
    c = x.shape[1]
    if x.shape[0] == 0:
        return torch.zeros_like(x)
    g, sigma = _centred(x, group, num_channels, eps)
    t = _gathered(dy[:, c:], group) / (g.numel() / g.shape[1] / g.shape[2])  # [M, F] / (G·c·H·W)
    dx = (t[None, :, :, None, None, None] * g / sigma).reshape(x.shape) + dy[:, :c]
    return dx.to(x.dtype)


# -- registration -----------------------------------------------------------------------------------------------------


def _forward_impl(x: Tensor, group: int, num_channels: int, eps: float, impl: str) -> Tensor:
    if impl != "reference":
        return _impl.launchers(__package__, impl).forward(x, group, num_channels, eps)
    return minibatch_stddev_reference(x, group, num_channels, eps)


def _backward_impl(dy: Tensor, x: Tensor, group: int, num_channels: int, eps: float, impl: str) -> Tensor:
    if impl != "reference":
        return _impl.launchers(__package__, impl).backward(dy, x, group, num_channels, eps)
    return torch.empty_like(x).copy_(minibatch_stddev_backward_reference(dy, x, group, num_channels, eps))


_minibatch_stddev = _impl.register("minibatch_stddev", _forward_impl)
_minibatch_stddev_backward = _impl.register("minibatch_stddev_backward", _backward_impl)


def _save_forward(ctx, inputs, output):
    x, *ctx.args = inputs
    ctx.save_for_backward(x)


def _backward(ctx, dy):
    return _minibatch_stddev_backward(dy, *ctx.saved_tensors, *ctx.args), None, None, None, None


_impl.register_autograd(_minibatch_stddev, _backward, setup_context=_save_forward)


def _save_backward(ctx, inputs, output):
    dy, x, *ctx.args = inputs
    ctx.save_for_backward(dy, x)


def _second_formulas(v, dy, x, group, num_channels, eps, need_x=True) -> tuple[Tensor, Tensor | None]:
    """Gradients of <dx, v> in differentiable operators, with k = 1/(G·c·H·W): to dy's stat channel k·Σ v(x−μ)/σ over
    the group, spread; to x k·t·[(v − mean v)/σ − (x−μ)·mean(v(x−μ))/σ³], means over the group."""
    if x.shape[0] == 0:
        return torch.zeros_like(dy), torch.zeros_like(x)
    g, sigma = _centred(x, group, num_channels, eps)
    vg = _grouped(v, group, num_channels)
    k = g.shape[1] * g.shape[2] / g.numel()
    stat = k * (vg * g / sigma).sum([0, 3, 4, 5])  # [M, F]
    grad_dy = torch.cat([v, _spread(stat, x, group)], 1)
    if not need_x:
        return grad_dy, None
    t = k * _gathered(dy[:, x.shape[1] :], group)[None, :, :, None, None, None]
    covariance = (vg * g).mean(0, keepdim=True)
    grad_x = t * ((vg - vg.mean(0, keepdim=True)) / sigma - g * covariance / sigma.pow(3))
    return grad_dy, grad_x.reshape(x.shape).to(x.dtype)


def _second_impl(
    v: Tensor, dy: Tensor, x: Tensor, group: int, num_channels: int, eps: float, impl: str
) -> tuple[Tensor, Tensor]:
    """`_second_formulas` in one pass, once no third order is asked for."""
    if impl == "triton":
        from gankern.ops.minibatch_stddev import kernels

        return kernels.second(v, dy, x, group, num_channels, eps)
    return _second_formulas(v, dy, x, group, num_channels, eps)


minibatch_stddev_second = _impl.register("minibatch_stddev_second", _second_impl)


def _double_backward(ctx, v):
    dy, x = ctx.saved_tensors
    if ctx.args[-1] == "reference" or torch.is_grad_enabled():
        gradients = _second_formulas(v, dy, x, *ctx.args[:-1], need_x=ctx.needs_input_grad[1])
    else:
        gradients = minibatch_stddev_second(v, dy, x, *ctx.args)
    return *gradients, None, None, None, None


_impl.register_autograd(_minibatch_stddev_backward, _double_backward, setup_context=_save_backward)
_impl.declare("minibatch_stddev", "triton", "cuda", "reference")

# -- public -----------------------------------------------------------------------------------------------------------


def minibatch_stddev(
    x: Tensor,
    group_size: int | None = 4,
    num_channels: int = 1,
    eps: float = 1e-8,
    *,
    impl: str | None = None,
) -> Tensor:
    """x with `num_channels` feature maps appended that hold the standard deviation within each group; twice
    differentiable.

    `x`: [N, C, H, W], any float dtype -> [N, C + num_channels, H, W]. `group_size`: samples a group, None for the whole
    batch; groups are strided (sample i with i + N/G). Raises ValueError where N isn't divisible by min(group_size, N)
    or C by `num_channels`. Karras et al. 2018 (arXiv:1710.10196).
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} of shape {tuple(x.shape)}, expected a floating-point tensor [N, C, H, W]")
    n, c = x.shape[:2]
    if group_size is not None and group_size < 1:
        raise ValueError(f"group_size={group_size}, expected None or a number >= 1")
    group = n if group_size is None else min(group_size, n)
    if n and n % group:
        raise ValueError(f"group_size={group_size} doesn't divide the batch of {n}")
    if num_channels < 1 or c % num_channels:
        raise ValueError(f"num_channels={num_channels}, expected a divisor of x's {c} channels")
    return _minibatch_stddev(x, max(group, 1), num_channels, float(eps), _impl.choose("minibatch_stddev", impl, x))
