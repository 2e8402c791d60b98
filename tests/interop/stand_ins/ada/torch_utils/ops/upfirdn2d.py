"""Builds a plugin when imported."""

raise ImportError("upfirdn2d needs a compiler")
