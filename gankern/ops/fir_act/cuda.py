"""Launches of csrc's filter with bias and activation on either side: what `kernels` has for Triton.

Small separable filters with a linear activation or leaky ReLU run in one pass; the others as the two operators that
they are made of.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gankern.ops import _cuda, _impl
from gankern.ops._layout import dense, dense_as, dense_like, empty, is_channels_last
from gankern.ops.bias_act import cuda as bias_act
from gankern.ops.upfirdn2d import cuda as upfirdn2d

_TAPS, _VECTOR_BYTES = 4, 16
# (up, down) that the kernels have, where the filter stands before the activation or its gradient, and after it
_BEFORE, _AFTER = ((1, 1), (2, 1)), ((1, 1), (1, 2))


def fits(f: Tensor, fir: Sequence, factors: Sequence, channels_last: bool, *tensors: Tensor | None) -> bool:
    """Whether the FIR core takes this filter of at most 4 taps: one of `factors`, whole vectors in channels_last."""
    (up, up_y), (down, down_y) = fir[:2]
    if f.ndim != 1 or f.numel() > _TAPS or fir[4] < 0 or up != up_y or down != down_y or (up, down) not in factors:
        return False
    if not channels_last:
        return True
    there = [t for t in tensors if t is not None]
    whole = there[0].shape[1] * there[0].element_size() % _VECTOR_BYTES == 0
    return whole and all(t.data_ptr() % _VECTOR_BYTES == 0 for t in there)


def _fits(f: Tensor, fir: Sequence, factors: Sequence, act: tuple, channels_last: bool, *tensors) -> bool:
    return act[0] in ("linear", "lrelu") and fits(f, fir, factors, channels_last, *tensors)


def _arguments(channels_last: bool, fir: Sequence, act: tuple) -> tuple:
    return channels_last, *upfirdn2d.sampling(fir), *_cuda.activation(*act)


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def filter_act(x: Tensor, f: Tensor, bias: Tensor | None, fir: tuple, act: tuple) -> Tensor:
    """y = act(FIR(x) + bias); `act` = (name, alpha, gain, clamp)."""
    x = dense(x)
    y = upfirdn2d.output(x, f, *fir[:3])
    if not _impl.launching() or y.numel() == 0:
        return y
    cl = is_channels_last(x)
    if not _fits(f, fir, _BEFORE, act, cl, x):
        return bias_act.forward(upfirdn2d.forward(x, f, *fir), bias, None, 1, *act)
    _cuda.launch("filter_act", x, upfirdn2d.taps(f, x), _contiguous(bias), y, *_arguments(cl, fir, act))
    return y


def filter_act_backward(
    dy: Tensor, y: Tensor | None, f: Tensor, size: Sequence[int], bias_grad: bool, fir: tuple, act: tuple
) -> tuple[Tensor, Tensor]:
    """(dx, db) of `filter_act`; `fir` is already the adjoint's. y is None where act is linear and without a clamp."""
    y = None if y is None else dense(y)
    dy = dense(dy) if y is None else dense_like(dy, y)
    dx, db = empty((*dy.shape[:2], *size), dy), dy.new_empty(dy.shape[1] if bias_grad else 0)
    if not _impl.launching():
        return dx, db
    cl = is_channels_last(dy)
    if dy.numel() == 0 or not _fits(f, fir, _AFTER, act, cl, dy, y):
        g, db = bias_act.backward(dy, None, None, y, bias_grad, 1, *act)
        return upfirdn2d.forward(g, f, *fir), db
    args = _arguments(cl, fir, act)
    _cuda.launch("filter_act_grad", dy, upfirdn2d.taps(f, dy), y, dx, db if bias_grad else None, *args)
    return dx, db


def act_filter(x: Tensor, bias: Tensor | None, f: Tensor, fir: tuple, act: tuple) -> Tensor:
    """z = FIR(act(x + bias))."""
    x = dense(x)
    z = upfirdn2d.output(x, f, *fir[:3])
    if not _impl.launching() or z.numel() == 0:
        return z
    cl = is_channels_last(x)
    if not _fits(f, fir, _AFTER, act, cl, x):
        return upfirdn2d.forward(bias_act.forward(x, bias, None, 1, *act), f, *fir)
    _cuda.launch("act_filter", x, upfirdn2d.taps(f, x), _contiguous(bias), z, *_arguments(cl, fir, act))
    return z


def _saved(x: Tensor | None, bias: Tensor | None, act: tuple) -> tuple:
    """(x, bias, y) as bias_act's gradient wants them."""
    if x is None or act[0] == "swish":
        return x, bias, None
    return None, None, bias_act.forward(x, bias, None, 1, *act)


def act_filter_backward(
    dz: Tensor,
    x: Tensor | None,
    bias: Tensor | None,
    f: Tensor,
    size: Sequence[int],
    bias_grad: bool,
    fir: tuple,
    act: tuple,
) -> tuple[Tensor, Tensor]:
    """(dx, db) of `act_filter`; `fir` is already the adjoint's. x is None where act is linear and without a clamp."""
    x = None if x is None else dense(x)
    cl = is_channels_last(dense(dz) if x is None else x)
    dz = dense_as(dz, cl)
    dx = empty((*dz.shape[:2], *size), dz) if x is None else torch.empty_like(x)
    db = dz.new_empty(dz.shape[1] if bias_grad else 0)
    if not _impl.launching():
        return dx, db
    if dx.numel() == 0 or not _fits(f, fir, _BEFORE, act, cl, dz, x):
        t = dense_as(upfirdn2d.forward(dz, f, *fir), cl)
        return bias_act.backward(t, *_saved(x, bias, act), bias_grad, 1, *act)
    args = _arguments(cl, fir, act)
    bias = _contiguous(bias)
    _cuda.launch("act_filter_grad", dz, upfirdn2d.taps(f, dz), x, bias, dx, db if bias_grad else None, *args)
    return dx, db


def act_filter_tangent(
    v: Tensor, vb: Tensor | None, x: Tensor | None, bias: Tensor | None, f: Tensor, fir: tuple, act: tuple
) -> Tensor:
    """The derivative of `act_filter` along (v, vb): FIR((v + vb) · gain · slope)."""
    x = None if x is None else dense(x)
    v = dense(v) if x is None else dense_like(v, x)
    z = upfirdn2d.output(v, f, *fir[:3])
    if not _impl.launching() or z.numel() == 0:
        return z
    cl = is_channels_last(v)
    if not _fits(f, fir, _AFTER, act, cl, v, x):
        g = bias_act.backward(v, *_saved(x, bias, act), False, 1, *act, vb)[0]
        return upfirdn2d.forward(g, f, *fir)
    args = _arguments(cl, fir, act)
    _cuda.launch("act_filter_tangent", v, _contiguous(vb), upfirdn2d.taps(f, v), x, _contiguous(bias), z, *args)
    return z
