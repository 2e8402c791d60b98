"""Minibatch standard deviation: the definition and registration in `op`, Triton kernels in `kernels`."""

from gankern.ops.minibatch_stddev.op import minibatch_stddev, minibatch_stddev_reference

__all__ = ["minibatch_stddev", "minibatch_stddev_reference"]
