"""Blocks whose activations are computed again in the backward pass instead of kept: less memory, the same numbers.

Their random numbers are kept, not drawn again: a noise map is small beside a block's activations, and a captured step
can't set a generator back. A gradient that is differentiated again keeps what was recomputed for it: R1 gains little,
path length nothing.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

RECOMPUTE_FROM = 64
"""The resolution from which a block's activations weigh more than its weights, unless another is asked for."""

DRAWS = {torch.randn, torch.rand, torch.randn_like, torch.rand_like}


def recompute_blocks(network: nn.Module, resolution: int) -> None:
    """Makes the blocks of `network` (its children with a `resolution`, from this one on) recompute."""
    for block in network.children():
        if getattr(block, "resolution", 0) >= resolution:
            for name in ("forward", "chained"):  # as it runs on plain operators, and on fused ones
                if hasattr(block, name):
                    setattr(block, name, partial(_recomputed, getattr(block, name)))


def _recomputed(forward: Callable, *args):
    if not torch.is_grad_enabled():
        return forward(*args)
    drawn: list[Tensor] = []
    contexts = lambda: (_Kept(drawn), _Again(drawn))  # noqa: E731
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


class _Kept(TorchFunctionMode):
    """Keeps what is drawn."""

    def __init__(self, drawn: list[Tensor]):
        super().__init__()
        self.drawn = drawn

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in DRAWS:
            self.drawn.append(result)
        return result


class _Again(TorchFunctionMode):
    """Gives it out once more; anew each time the block is recomputed."""

    def __init__(self, drawn: list[Tensor]):
        super().__init__()
        self.drawn = drawn

    def __enter__(self):
        self._next: Iterator[Tensor] = iter(self.drawn)
        return super().__enter__()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return next(self._next) if func in DRAWS else func(*args, **(kwargs or {}))
