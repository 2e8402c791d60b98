"""StyleGAN2's modulated convolution as one fused layer: definition and registration in `op`."""

from gankern.ops.modulated_conv2d.op import demodulation, modulated_conv2d, modulated_conv2d_reference

__all__ = ["demodulation", "modulated_conv2d", "modulated_conv2d_reference"]
