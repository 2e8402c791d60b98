"""Builds a plugin when imported."""

raise ImportError("fused_act needs a compiler")
