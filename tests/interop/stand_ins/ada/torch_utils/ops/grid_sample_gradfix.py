"""Builds a plugin when imported."""

raise ImportError("grid_sample_gradfix needs a compiler")
