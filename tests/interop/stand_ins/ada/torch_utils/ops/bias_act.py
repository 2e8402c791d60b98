"""Builds a plugin when imported."""

raise ImportError("bias_act needs a compiler")
