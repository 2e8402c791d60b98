"""The swap: conv-bias-activation and norm-activation become one gankern operator each, in any tree of Sequentials.

Parameters keep their modules and names as far as they have any, so the weights move over by order.
"""

import torch
from torch import nn

from gankern import ops
from gankern.nn import InstanceNorm2d

ACTS = {nn.LeakyReLU: "lrelu", nn.ReLU: "relu", nn.Tanh: "tanh"}


class ConvBiasAct(nn.Module):
    """A convolution whose bias and activation are one pass after it; keeps only its input and its output."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, act: nn.Module):
        super().__init__()
        self.bias, conv.bias = conv.bias, None
        self.conv, self.act, self.alpha = conv, ACTS[type(act)], getattr(act, "negative_slope", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # gain 1: gankern's own gain of relu and lrelu is StyleGAN's sqrt(2)
        return ops.bias_act(self.conv(x), self.bias, act=self.act, alpha=self.alpha, gain=1)


def norm_act(norm: nn.InstanceNorm2d, act: nn.Module) -> InstanceNorm2d:
    """Norm, affine and activation in one operator, with the norm's own parameters."""
    alpha = getattr(act, "negative_slope", None)
    fused = InstanceNorm2d(norm.num_features, norm.eps, norm.affine, ACTS[type(act)], alpha, gain=1)
    fused.load_state_dict(norm.state_dict())
    return fused


def swap(network: nn.Module) -> nn.Module:
    """Replace, in place, every neighbouring pair of a Sequential that gankern has in one operator."""
    for module in network.modules():
        if not isinstance(module, nn.Sequential):
            continue
        layers = list(module)
        for first, second in zip(range(len(layers) - 1), range(1, len(layers)), strict=True):
            a, b = layers[first], layers[second]
            if type(b) not in ACTS:
                continue
            if isinstance(a, nn.InstanceNorm2d):
                layers[first], layers[second] = norm_act(a, b), nn.Identity()
            elif isinstance(a, (nn.Conv2d, nn.ConvTranspose2d)) and a.bias is not None:
                layers[first], layers[second] = ConvBiasAct(a, b), nn.Identity()
        for i, layer in enumerate(layers):
            module[i] = layer
    return network
