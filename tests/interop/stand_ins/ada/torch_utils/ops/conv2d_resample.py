"""Builds a plugin when imported."""

raise ImportError("conv2d_resample needs a compiler")
