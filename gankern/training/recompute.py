"""Blocks whose activations are computed again in the backward pass instead of kept: less memory, the same numbers.

A block draws nothing: its noise is given to it, and a captured step couldn't set a generator back. A gradient that is
differentiated again keeps what was recomputed for it: R1 gains little, path length nothing.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

RECOMPUTE_FROM = 64
"""The resolution from which a block's activations weigh more than its weights, unless another is asked for."""


def recompute_blocks(network: nn.Module, resolution: int) -> None:
    """Makes the blocks of `network` (its children with a `resolution`, from this one on) recompute."""
    for block in network.children():
        if getattr(block, "resolution", 0) >= resolution:
            block.recomputed = True
            for name in ("forward", "chained"):  # as it runs on plain operators, and on fused ones
                if hasattr(block, name):
                    setattr(block, name, partial(_recomputed, getattr(block, name)))


def _recomputed(forward: Callable, *args):
    if not torch.is_grad_enabled():
        return forward(*args)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False)
