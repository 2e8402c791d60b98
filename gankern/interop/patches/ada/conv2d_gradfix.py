"""Convolutions whose gradients are differentiable and can leave out the weights', under torch's own signatures.

`enabled = False` takes torch's own convolutions. Those with dilation, output padding, different strides or paddings by
axis, under autocast or of operands that aren't 4-D and of one dtype are torch's own always: the same numbers.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gankern import ops

Numbers = int | Sequence[int]

enabled = True
weight_gradients_disabled = False


@contextlib.contextmanager
def no_weight_gradients(disable: bool = True) -> Iterator[None]:
    """Backward passes inside compute no gradients of weights, nor of `bias_act`'s biases."""
    global weight_gradients_disabled
    before = weight_gradients_disabled
    with ops.no_weight_gradients() if disable else contextlib.nullcontext():
        weight_gradients_disabled = before or disable
        try:
            yield
        finally:
            weight_gradients_disabled = before


def _one(value: Numbers) -> int | None:
    """The number that holds for both axes, None where there is none."""
    if isinstance(value, int):
        return value
    numbers = () if isinstance(value, str) else set(value)
    return numbers.pop() if len(numbers) == 1 else None


def _ours(x: Tensor, weight: Tensor, stride: Numbers, padding: Numbers, dilation: Numbers) -> bool:
    alike = x.ndim == weight.ndim == 4 and x.dtype == weight.dtype and x.is_floating_point()
    known = _one(stride) is not None and _one(padding) is not None and _one(dilation) == 1
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # meta has none
    return enabled and alike and known and not autocast


def _with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else ops.bias_act(y, bias)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers | str = 0,
    dilation: Numbers = 1,
    groups: int = 1,
) -> Tensor:
    """torch.nn.functional.conv2d."""
    if not _ours(input, weight, stride, padding, dilation):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return _with_bias(ops.conv2d(input, weight, _one(stride), _one(padding), groups=groups), bias)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers = 0,
    output_padding: Numbers = 0,
    groups: int = 1,
    dilation: Numbers = 1,
) -> Tensor:
    """torch.nn.functional.conv_transpose2d."""
    if _one(output_padding) != 0 or not _ours(input, weight, stride, padding, dilation):
        return F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    y = ops.conv2d(input, weight, _one(stride), _one(padding), transposed=True, groups=groups)
    return _with_bias(y, bias)
