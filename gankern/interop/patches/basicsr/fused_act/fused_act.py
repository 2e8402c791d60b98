"""Bias and leaky ReLU under BasicSR's names; the layer always has its bias."""

from gankern.interop.patches.rosinality import fused_act
from gankern.interop.patches.rosinality.fused_act import fused_leaky_relu

__all__ = ["FusedLeakyReLU", "fused_leaky_relu"]


class FusedLeakyReLU(fused_act.FusedLeakyReLU):
    """`fused_leaky_relu` with a bias of its own, [channel], zero at first."""

    def __init__(self, channel: int, negative_slope: float = 0.2, scale: float = 2**0.5):
        super().__init__(channel, True, negative_slope, scale)
