"""Bilinear sampling of images at the points of a grid, with gradients of gradients.

    y[p] = Σ_q x[q] · t(p − q),  t the tent, zero outside the image        dx = Sᵀ(dy, grid)        dgrid = ⟨dy, ∂S/∂p⟩

S is linear in x, so its transpose's gradients are S itself and dgrid's kernel: closed under differentiation in x, which
older torch's own sampling isn't.
Used by adaptive augmentation, Karras et al. 2020 (arXiv:2006.06676).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gankern.ops import _impl

_FIXED = (0, 0, False)  # bilinear, zeros outside, the corners' outer edges at ±1


def _forward_impl(x: Tensor, grid: Tensor) -> Tensor:
    return torch.ops.aten.grid_sampler_2d(x, grid, *_FIXED)


def _input_grad_impl(dy: Tensor, grid: Tensor, size: Sequence[int]) -> Tensor:
    x = dy.new_empty(size)  # only its shape is read
    return torch.ops.aten.grid_sampler_2d_backward(dy, x, grid, *_FIXED, [True, False])[0]


def _grid_grad_impl(dy: Tensor, x: Tensor, grid: Tensor) -> Tensor:
    return torch.ops.aten.grid_sampler_2d_backward(dy, x, grid, *_FIXED, [False, True])[1]


_grid_sample = _impl.register("grid_sample", _forward_impl)
_input_grad = _impl.register("grid_sample_input_grad", _input_grad_impl)
_grid_grad = _impl.register("grid_sample_grid_grad", _grid_grad_impl)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, dy):
    x, grid = ctx.saved_tensors
    dx = _input_grad(dy, grid, list(x.shape)) if ctx.needs_input_grad[0] else None
    return dx, _grid_grad(dy, x, grid) if ctx.needs_input_grad[1] else None


def _save_input_grad(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])


def _input_grad_backward(ctx, v):
    dy, grid = ctx.saved_tensors
    grad_dy = _grid_sample(v, grid) if ctx.needs_input_grad[0] else None
    return grad_dy, _grid_grad(dy, v, grid) if ctx.needs_input_grad[1] else None, None


def _grid_grad_backward(ctx, v):
    raise NotImplementedError("grid_sample: the gradient of the grid can't be differentiated again, that of x can")


_impl.register_autograd(_grid_sample, _backward, setup_context=_save)
_impl.register_autograd(_input_grad, _input_grad_backward, setup_context=_save_input_grad)
_impl.register_autograd(_grid_grad, _grid_grad_backward, setup_context=_save)


def grid_sample(x: Tensor, grid: Tensor) -> Tensor:
    """x [N, C, H, W] sampled bilinearly at grid [N, h, w, 2], (x, y) in [-1, 1] from edge to edge: [N, C, h, w].

    Zeros lie outside. Differentiable to any order in x and once in the grid. Raises ValueError for shapes and dtypes
    that don't fit.
    """
    if x.ndim != 4 or grid.ndim != 4 or grid.shape[0] != x.shape[0] or grid.shape[3] != 2:
        raise ValueError(f"grid has shape {tuple(grid.shape)}, expected [N, h, w, 2] for x of shape {tuple(x.shape)}")
    if grid.dtype != x.dtype:
        raise ValueError(f"grid is {grid.dtype}, expected x's {x.dtype}")
    return _grid_sample(x, grid)
