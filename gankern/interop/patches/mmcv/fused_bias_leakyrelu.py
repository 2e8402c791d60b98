"""Bias and leaky ReLU under mmcv's names."""

from torch import Tensor

from gankern.interop.patches.rosinality.fused_act import FusedLeakyReLU, fused_leaky_relu


def fused_bias_leakyrelu(input: Tensor, bias: Tensor, negative_slope: float = 0.2, scale: float = 2**0.5) -> Tensor:
    """scale · lrelu(input + bias); bias [C] along dimension 1. As `gankern.ops.bias_act`."""
    return fused_leaky_relu(input, bias, negative_slope, scale)


class FusedBiasLeakyReLU(FusedLeakyReLU):
    """`fused_bias_leakyrelu` with a bias of its own, [num_channels], zero at first."""

    def __init__(self, num_channels: int, negative_slope: float = 0.2, scale: float = 2**0.5):
        super().__init__(num_channels, True, negative_slope, scale)
