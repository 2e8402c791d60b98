"""A filter with bias and activation after or before it, in one pass: definition in `op`, kernels beside it."""

from gankern.ops.fir_act.op import bias_act_upfirdn2d, upfirdn2d_bias_act

__all__ = ["bias_act_upfirdn2d", "upfirdn2d_bias_act"]
