"""Launches of csrc's pixel_norm: what `kernels` has for Triton."""

import torch
from torch import Tensor

from gankern.ops import _cuda, _impl
from gankern.ops._layout import around, dense, dense_like


def _sizes(x: Tensor, dim: int) -> tuple[int, int, int]:
    outer, inner = around(x, dim)
    return outer, x.shape[dim], inner


def forward(x: Tensor, dim: int, eps: float) -> Tensor:
    """y in x's dtype and memory format."""
    x = dense(x)
    y = torch.empty_like(x)
    if _impl.launching() and x.numel():
        _cuda.launch("pixel_norm_forward", x, y, *_sizes(x, dim), eps)
    return y


def backward(dy: Tensor, x: Tensor, dim: int, eps: float) -> Tensor:
    """dx in x's dtype and memory format."""
    x = dense(x)
    dy, dx = dense_like(dy, x), torch.empty_like(x)
    if _impl.launching() and x.numel():
        _cuda.launch("pixel_norm_backward", dy, x, dx, *_sizes(x, dim), eps)
    return dx


def second(v: Tensor, dy: Tensor, x: Tensor, dim: int, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients of <dx, v> with respect to dy and x, in x's memory format."""
    x = dense(x)
    v, dy = dense_like(v, x), dense_like(dy, x)
    grad_dy, grad_x = torch.empty_like(x), torch.empty_like(x)
    if _impl.launching() and x.numel():
        _cuda.launch("pixel_norm_second", v, dy, x, grad_dy, grad_x, *_sizes(x, dim), eps)
    return grad_dy, grad_x
