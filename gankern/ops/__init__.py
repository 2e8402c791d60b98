"""Fused operators; each is twice differentiable and needs nothing else of gankern.

An operator is a folder: `op` has its equations, reference, registration and gradients, `kernels` its Triton kernels,
which the first call that needs them imports. `conv2d` and `conv_act`, whose convolution is the
library's, are files.
"""

from gankern.ops._gradients import differentiated_twice, no_weight_gradients
from gankern.ops._impl import implementations, runs_fused, use_impl
from gankern.ops.bias_act import bias_act, bias_act_reference, default_gain
from gankern.ops.bias_act_pixel_norm import bias_act_pixel_norm, bias_act_pixel_norm_reference
from gankern.ops.conv2d import conv2d, conv2d_resample, downsample_padding, upsample_padding
from gankern.ops.conv_act import conv2d_bias_act
from gankern.ops.demodulate import demodulate
from gankern.ops.fir_act import bias_act_upfirdn2d, upfirdn2d_bias_act
from gankern.ops.grid_sample import grid_sample
from gankern.ops.instance_norm import instance_norm, instance_norm_reference
from gankern.ops.minibatch_stddev import minibatch_stddev, minibatch_stddev_reference
from gankern.ops.modulated_conv2d import demodulation, modulated_conv2d, modulated_conv2d_reference
from gankern.ops.pixel_norm import pixel_norm, pixel_norm_reference
from gankern.ops.prepare_weights import Weight, prepare_weights
from gankern.ops.residual import residual_branches
from gankern.ops.upfirdn2d import downsample2d, setup_filter, upfirdn2d, upfirdn2d_reference, upsample2d

__all__ = [
    "Weight",
    "bias_act",
    "bias_act_pixel_norm",
    "bias_act_pixel_norm_reference",
    "bias_act_reference",
    "bias_act_upfirdn2d",
    "conv2d",
    "conv2d_bias_act",
    "conv2d_resample",
    "default_gain",
    "demodulate",
    "demodulation",
    "differentiated_twice",
    "downsample2d",
    "downsample_padding",
    "grid_sample",
    "implementations",
    "instance_norm",
    "instance_norm_reference",
    "minibatch_stddev",
    "minibatch_stddev_reference",
    "modulated_conv2d",
    "modulated_conv2d_reference",
    "no_weight_gradients",
    "pixel_norm",
    "pixel_norm_reference",
    "prepare_weights",
    "residual_branches",
    "runs_fused",
    "setup_filter",
    "upfirdn2d",
    "upfirdn2d_bias_act",
    "upfirdn2d_reference",
    "upsample2d",
    "upsample_padding",
    "use_impl",
]
