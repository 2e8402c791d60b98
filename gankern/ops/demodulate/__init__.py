"""The coefficient that gives every output channel of a modulated convolution unit variance again."""

from gankern.ops.demodulate.op import demodulate

__all__ = ["demodulate"]
