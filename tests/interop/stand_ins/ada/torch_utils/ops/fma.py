"""Builds a plugin when imported."""

raise ImportError("fma needs a compiler")
