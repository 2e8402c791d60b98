"""Weights as convolutions take them."""

from gankern.ops.prepare_weights.op import Weight, prepare_weights

__all__ = ["Weight", "prepare_weights"]
