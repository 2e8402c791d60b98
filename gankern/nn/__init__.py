"""torch.nn.Module layers over the operators: equalized linear and convolution, modulated convolution, to-RGB."""

from gankern.nn.layers import EqualizedConv2d, EqualizedLinear, ModulatedConv2d, ToRGB

__all__ = ["EqualizedConv2d", "EqualizedLinear", "ModulatedConv2d", "ToRGB"]
