"""A convolution with bias, activation, gain and residual in one kernel: what `conv2d_bias_act` runs as impl="cudnn"."""

import torch
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._layout import dense_as, is_channels_last
from gankern.ops.conv2d import output_shape
from gankern.ops.cudnn import layers
from gankern.ops.cudnn.graph import Graph, Spec, spec
from gankern.ops.cudnn.layer import number
from gankern.ops.cudnn.layers import nhwc
from gankern.ops.cudnn.plans import accepts, run

Activation = tuple[str, float, float]
"""act, alpha, gain."""


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _graph(
    x: Tensor, w: Tensor, bias: Tensor | None, summed: bool, keep: bool, stride: int, padding: int, a: Activation
) -> Graph:
    act, alpha, gain = a
    y = nhwc(tuple(output_shape(x, w, stride, padding)), x.dtype)
    images = (nhwc(tuple(t.shape), x.dtype) for t in (x, w))
    of_bias = None if bias is None else spec(bias)
    factor = None if gain == 1 else Spec((1,) * 4, (1,) * 4, _wide(x))
    alpha, summed_in, kept = None if act == "linear" else alpha, y if summed else None, y if keep else None
    return layers.plain(*images, of_bias, summed_in, y, stride, padding, alpha, factor, kept)


def serves(
    x: Tensor, w: Tensor, bias: Tensor | None, summed: bool, keep: bool, stride: int, padding: int, a: Activation
) -> bool:
    """Whether there is such a kernel for x [N, C, H, W] and w [O, C, kh, kw], `summed` with a residual: not for an
    activation that isn't leaky ReLU, in NCHW, where the convolution stands alone, or where cuDNN refuses."""
    act, _, gain = a
    alone = act == "linear" and gain == 1 and bias is None and not summed
    if alone or act not in ("linear", "lrelu") or not is_channels_last(x):
        return False
    if not x.numel() or min(output_shape(x, w, stride, padding)) < 1:
        return False
    graph = _graph(x, w, bias, summed, keep, stride, padding, a)
    return accepts(graph, x.device, "the library's convolution and a pass run")


def _laid_out(t: Tensor) -> Tensor:
    """t in channels_last, with the strides that graphs name where it is 1 wide too."""
    return dense_as(t, True).as_strided(t.shape, nhwc(tuple(t.shape), t.dtype).strides)


def forward(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    keep: bool,
    stride: int,
    padding: int,
    a: Activation,
) -> tuple[Tensor, Tensor]:
    """(y, y before the residual); an empty tensor for the second unless `keep`."""
    shape = output_shape(x, w, stride, padding)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    before = torch.empty_like(y) if keep else x.new_empty(0)
    if _impl.launching():
        x, w, added = (None if t is None else _laid_out(t) for t in (x, w, residual))
        operands = {"x": x, "w": w, "residual": added, "b": None if bias is None else bias.contiguous()}
        results = {"y": _laid_out(y), "before": _laid_out(before) if keep else None}
        gain = None if a[2] == 1 else number(a[2], _wide(x), x.device)
        graph = _graph(x, w, bias, residual is not None, keep, stride, padding, a)
        run(graph, operands | results | {"gain": gain})
    return y, before
