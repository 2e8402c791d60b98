"""Bias, activation, gain and clamp: the definition and registration in `op`, Triton kernels in `kernels`."""

from gankern.ops.bias_act.op import (
    ACTIVATIONS,
    activation_args,
    bias_act,
    bias_act_backward,
    bias_act_reference,
    check_bias,
    check_residual,
    default_gain,
)

__all__ = [
    "ACTIVATIONS",
    "activation_args",
    "bias_act",
    "bias_act_backward",
    "bias_act_reference",
    "check_bias",
    "check_residual",
    "default_gain",
]
