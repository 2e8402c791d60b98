"""Which gradients a backward pass leaves out: those of weights, where only activations' are read."""

import contextlib
from collections.abc import Iterator

_skip_weight_gradients = False


@contextlib.contextmanager
def no_weight_gradients() -> Iterator[None]:
    """Inside the block a backward pass computes no weight, bias or noise gradients of gankern's operators.

    For gradients with respect to activations alone (R1, path length): `torch.autograd.grad(out, [x])` tells a custom
    operator that its weight needs a gradient even though nobody will read it. Parameters still receive the second-order
    gradients when the result is differentiated outside the block. (Where `modulated_conv2d` makes the demodulation by
    itself, what reaches its weight so is plain autograd, which computes it only where that weight is asked for.)
    """
    global _skip_weight_gradients
    before, _skip_weight_gradients = _skip_weight_gradients, True
    try:
        yield
    finally:
        _skip_weight_gradients = before


def weight_gradients_wanted() -> bool:
    """False inside `no_weight_gradients()`."""
    return not _skip_weight_gradients
