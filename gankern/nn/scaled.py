"""Weights and biases of many layers, multiplied by their gains and cast at once."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gankern import ops
from gankern.nn.layers import EqualizedConv2d, EqualizedLinear
from gankern.ops import Weight

Scaled = dict[nn.Module, tuple[Tensor, Tensor | None]]


def scaled_layers(calls: Iterable[tuple[EqualizedLinear | EqualizedConv2d, float]], dtype: torch.dtype) -> Scaled:
    """Every layer's weight and bias in `dtype`, by their gains in a call with the gain beside it (1 for a linear one),
    all made at once."""
    parameters, how, layers = [], [], []
    for layer, gain in calls:
        layers.append(layer)
        of_weight, of_bias = layer.gains(gain) if isinstance(layer, EqualizedConv2d) else layer.gains()
        parameters.append(layer.weight)
        how.append(Weight(tuple(layer.weight.shape), of_weight))
        if layer.bias is not None:
            parameters.append(layer.bias)
            how.append(Weight(tuple(layer.bias.shape), of_bias))
    scaled = iter(ops.prepare_weights(parameters, how, dtype)[0])
    return {layer: (next(scaled), None if layer.bias is None else next(scaled)) for layer in layers}
