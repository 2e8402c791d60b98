"""Bias and leaky ReLU under rosinality's names."""

import torch
from torch import Tensor, nn

from gankern import ops


def fused_leaky_relu(
    input: Tensor, bias: Tensor | None = None, negative_slope: float = 0.2, scale: float = 2**0.5
) -> Tensor:
    """scale · lrelu(input + bias); bias [C] along dimension 1. As `gankern.ops.bias_act`."""
    bias = None if bias is None else bias.to(input.dtype)
    return ops.bias_act(input, bias, act="lrelu", alpha=negative_slope, gain=scale)


class FusedLeakyReLU(nn.Module):
    """`fused_leaky_relu` with a bias of its own, [channel], zero at first."""

    def __init__(self, channel: int, bias: bool = True, negative_slope: float = 0.2, scale: float = 2**0.5):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channel)) if bias else None
        self.negative_slope, self.scale = negative_slope, scale

    def forward(self, input: Tensor) -> Tensor:
        return fused_leaky_relu(input, self.bias, self.negative_slope, self.scale)
