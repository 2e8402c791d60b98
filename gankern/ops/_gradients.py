"""What is known of a backward pass beforehand: that weights' gradients aren't read, or that it is differentiated."""

import contextlib
from collections.abc import Iterator

_skip_weight_gradients = False
_twice = False


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


@contextlib.contextmanager
def differentiated_twice() -> Iterator[None]:
    """What runs inside the block will be differentiated with create_graph=True, as for R1 and path length.

    Right without it too: but an operator that holds a whole network would then run its layers once more.
    """
    global _twice
    before, _twice = _twice, True
    try:
        yield
    finally:
        _twice = before


def twice_ahead() -> bool:
    """True inside `differentiated_twice()`."""
    return _twice
