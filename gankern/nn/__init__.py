"""torch.nn.Module layers over the operators: equalized linear and convolution, modulated convolution, to-RGB,
mapping network, norms."""

from gankern.nn.layers import EqualizedConv2d, EqualizedLinear, ModulatedConv2d, ToRGB
from gankern.nn.mapping import Mapping
from gankern.nn.norms import AdaIN, InstanceNorm2d, MinibatchStddev, PixelNorm

__all__ = [
    "AdaIN",
    "EqualizedConv2d",
    "EqualizedLinear",
    "InstanceNorm2d",
    "Mapping",
    "MinibatchStddev",
    "ModulatedConv2d",
    "PixelNorm",
    "ToRGB",
]
