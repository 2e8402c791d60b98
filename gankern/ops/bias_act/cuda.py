"""Launches of csrc's bias_act: what `kernels` has for Triton."""

import torch
from torch import Tensor

from gankern.ops import _cuda, _impl
from gankern.ops._layout import dense, dense_like, matrix


def forward(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
) -> Tensor:
    """y in x's dtype and memory format."""
    x = dense(x)
    residual = None if residual is None else dense_like(residual, x)
    y = torch.empty_like(x)
    if _impl.launching() and x.numel():
        rows, cols, channels, by_row = matrix(x, dim)
        bias = None if bias is None else bias.contiguous()
        args = (rows, cols, channels, not by_row, *_cuda.activation(act, alpha, gain, clamp))
        _cuda.launch("bias_act_forward", x, bias, residual, y, *args)
    return y


def backward(
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
    ddb: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(dx, db); db is empty unless `bias_grad`. `ddb` is added to dy along `dim` in the same read."""
    ref = x if y is None else y
    ref = None if ref is None else dense(ref)
    dy = dense(dy) if ref is None else dense_like(dy, ref)
    dx = torch.empty_like(dy)
    db = dy.new_empty(dy.shape[dim] if bias_grad else 0)
    if not _impl.launching():
        return dx, db
    if dy.numel() == 0:
        return dx, db.zero_()
    rows, cols, channels, by_row = matrix(dy, dim)
    x, y = (ref, None) if y is None else (None, ref)
    ddb, bias = (None if t is None else t.contiguous() for t in (ddb, bias))
    args = (rows, cols, channels, not by_row, *_cuda.activation(act, alpha, gain, clamp))
    _cuda.launch("bias_act_backward", dy, ddb, x, bias, y, dx, db if bias_grad else None, *args)
    return dx, db
