"""Instance norm with a pluggable affine and activation: the definition in `op`, Triton kernels in `kernels`."""

from gankern.ops.instance_norm.op import instance_norm, instance_norm_reference

__all__ = ["instance_norm", "instance_norm_reference"]
