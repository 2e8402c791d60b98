"""Bias, activation and pixel norm in one pass: the definition and registration in `op`, Triton kernels in `kernels`."""

from gankern.ops.bias_act_pixel_norm.op import bias_act_pixel_norm, bias_act_pixel_norm_reference

__all__ = ["bias_act_pixel_norm", "bias_act_pixel_norm_reference"]
