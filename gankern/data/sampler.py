"""The order in which images are drawn: endless, seeded, shared by all ranks, and resumable at any position."""

from collections.abc import Mapping

import numpy as np

from gankern.errors import InputError


class EndlessSampler:
    """Draws items 0..size-1 without end, each once an epoch, in an order that depends on the seed alone.

    Position p of the global sequence is element p mod size of a permutation seeded by (seed, p // size). Rank r of W
    takes the positions p = r mod W, so the sequence is the same whatever the number of ranks.
    """

    def __init__(self, size: int, *, seed: int = 0, rank: int = 0, world_size: int = 1):
        if size < 1:
            raise ValueError(f"size: expected at least 1, got {size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected 0 to {world_size - 1}, got {rank}")
        self.size, self.seed, self.rank, self.world_size = size, seed, rank, world_size
        self.position = 0  # of the global sequence: consumed by all ranks together
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def take(self, count: int) -> np.ndarray:
        """The next `count` items of this rank, int64; the other ranks are taken to draw as many."""
        positions = self.position + self.rank + self.world_size * np.arange(count)
        self.position += self.world_size * count
        epochs, offsets = np.divmod(positions, self.size)
        items = np.empty(count, np.int64)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            items[now] = self._permutation(int(epoch))[offsets[now]]
        return items

    def copy(self) -> "EndlessSampler":
        """An independent sampler at the same position."""
        other = EndlessSampler(self.size, seed=self.seed, rank=self.rank, world_size=self.world_size)
        other.position = self.position
        return other

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position, "seed": self.seed, "size": self.size}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on where the other sampler stood, also if it had another number of ranks.

        InputError: it drew from another number of items or with another seed.
        """
        for key, mine in (("size", self.size), ("seed", self.seed)):
            if state[key] != mine:
                raise InputError(f"can't go on with the saved data order: its {key} is {state[key]}, not {mine}")
        self.position = int(state["position"])

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            # RandomState over a SeedSequence: both streams are frozen across numpy versions.
            bits = np.random.MT19937(np.random.SeedSequence([self.seed, epoch]))
            self._epoch, self._order = epoch, np.random.RandomState(bits).permutation(self.size)
        return self._order
