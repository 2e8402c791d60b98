"""Builds a plugin when imported."""

raise ImportError("filtered_lrelu needs a compiler")
