"""Pixel norm: the definition and registration in `op`, Triton kernels in `kernels`."""

from gankern.ops.pixel_norm.op import pixel_norm, pixel_norm_reference

__all__ = ["pixel_norm", "pixel_norm_reference"]
