"""Builds a plugin when imported."""

raise ImportError("conv2d_gradfix needs a compiler")
