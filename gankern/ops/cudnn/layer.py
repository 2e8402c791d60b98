"""A modulated layer on its own, its forward pass in one kernel: what `modulated_conv2d` runs as impl="cudnn".

Its input comes styled or is multiplied in a pass of its own; upsampling layers keep the pass with their filter.
"""

import functools

import torch
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._layout import is_channels_last
from gankern.ops.cudnn import layers
from gankern.ops.cudnn.graph import Graph, spec
from gankern.ops.cudnn.plans import accepts, run
from gankern.ops.modulated_conv2d.layer import Layer, Tensors


@_impl.constant
def number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full([], value, dtype=dtype, device=device)


def _operands(t: Tensors, layer: Layer, x: Tensor) -> dict[str, Tensor | None]:
    wide = torch.promote_types(x.dtype, torch.float32)
    w = layer.kernel(t.weight, x).contiguous(memory_format=torch.channels_last)
    noise, strength = t.noise, t.strength
    if noise is not None:
        noise = noise.to(wide).reshape([1] * (4 - noise.ndim) + list(noise.shape))
        noise = noise.expand(-1, 1, *layer.out_size(t.x, t.weight)).contiguous()
        strength = None if strength is None else strength.to(wide)
    gain = None if layer.gain == 1 else number(layer.gain, wide, x.device)
    small = {"d": t.d, "style": t.next_styles}
    small = {name: None if s is None else s.to(wide).contiguous() for name, s in small.items()}
    return {"x": x, "w": w, "noise0": noise, "strength0": strength, "b": t.bias, "gain": gain} | small


def _graph(o: dict[str, Tensor | None], layer: Layer, y: Tensor | None, ys: Tensor | None) -> Graph:
    given = [o[name] for name in ("x", "w", "d", "noise0", "strength0", "b", "style")]
    specs = [None if t is None else spec(t) for t in (*given, y, ys)]
    alpha = None if layer.act == "linear" else layer.alpha
    gain = None if o["gain"] is None else spec(o["gain"])
    return layers.modulated(*specs, int(o["noise0"] is not None), layer.padding, alpha, gain)


def forward(t: Tensors, layer: Layer, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """(y, y · next_styles) of x styled already; an empty tensor for the one that isn't asked for. None where there is
    no such kernel: for an activation that isn't leaky ReLU, with a clamp, in NCHW, or where cuDNN refuses."""
    plain = layer.act in ("linear", "lrelu") and layer.clamp < 0 and layer.up == 1
    if not plain or not is_channels_last(x) or not x.numel():
        return None
    shape = [len(x), t.weight.shape[0], *layer.out_size(t.x, t.weight)]
    make = functools.partial(torch.empty, shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    y, ys = make() if layer.plain else None, make() if t.next_styles is not None else None
    operands = _operands(t, layer, x)
    graph = _graph(operands, layer, y, ys)
    if not accepts(graph, x.device, "the library's convolution and a pass run"):
        return None
    run(graph, operands | {"y": y, "ys": ys})
    return tuple(x.new_empty(0) if t is None else t for t in (y, ys))
