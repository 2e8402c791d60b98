"""The ranks that train together."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """This rank, and how many there are. One rank alone has nobody to agree with."""

    rank: int = 0
    size: int = 1

    @contextlib.contextmanager
    def reducing(self, network: nn.Module) -> Iterator[None]:
        """Around the last backward pass of an update: after the block the gradients are means over the ranks."""
        yield

    def mean_(self, *tensors: Tensor) -> None:
        """Makes each tensor its mean over the ranks, in place."""
