"""Upsample, FIR-filter, downsample: the definition and registration in `op`, Triton kernels in `kernels`."""

from gankern.ops.upfirdn2d.op import (
    check_filter,
    downsample2d,
    setup_filter,
    upfirdn2d,
    upfirdn2d_adjoint,
    upfirdn2d_reference,
    upsample2d,
)

__all__ = [
    "check_filter",
    "downsample2d",
    "setup_filter",
    "upfirdn2d",
    "upfirdn2d_adjoint",
    "upfirdn2d_reference",
    "upsample2d",
]
