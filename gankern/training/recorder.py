"""Statistics of a step, summed on the device until somebody asks for their means."""

import torch
from torch import Tensor


class Recorder:
    """Values by name. What a loss has recorded lies in `stats` until it is taken, or until `pop_stats`."""

    def __init__(self):
        self.stats: dict[str, list[Tensor]] = {}
        self._sums: dict[tuple[str, ...], Tensor] = {}  # [n + 1], float64: of each name, and how many were added

    def record(self, name: str, value: Tensor) -> None:
        self.stats.setdefault(name, []).append(value.detach())

    def take(self) -> dict[str, Tensor]:
        """What was recorded since it was last taken, a mean each."""
        taken = {
            name: values[0] if len(values) == 1 else torch.stack(values).mean() for name, values in self.stats.items()
        }
        self.stats.clear()
        return taken

    def add(self, names: tuple[str, ...], values: Tensor) -> None:
        """Adds one value of each name, [n], to the sums, which stay where they are."""
        if names not in self._sums:
            self._sums[names] = torch.zeros(len(names) + 1, dtype=torch.float64, device=values.device)
        self._sums[names][:-1].add_(values)
        self._sums[names][-1].add_(1)

    def pop_stats(self) -> dict[str, float]:
        """Means of what was recorded since the last call; the host waits for the device here."""
        taken = self.take()
        if taken:
            self.add(tuple(taken), torch.stack(list(taken.values())))
        means = {}
        for names, sums in zip(self._sums, self._read(), strict=True):
            means |= {name: value / sums[-1] for name, value in zip(names, sums, strict=False) if sums[-1]}
        for sums in self._sums.values():
            sums.zero_()
        return dict(sorted(means.items()))

    def _read(self) -> list[list[float]]:
        if not self._sums:
            return []
        parts = iter(torch.cat(list(self._sums.values())).tolist())
        return [[next(parts) for _ in range(len(sums))] for sums in self._sums.values()]

    def state_dict(self) -> list[tuple[list[str], Tensor]]:
        return [(list(names), sums.cpu()) for names, sums in self._sums.items()]

    def load_state_dict(self, state: list[tuple[list[str], Tensor]], device: torch.device) -> None:
        self.stats.clear()
        self._sums = {tuple(names): sums.to(device, copy=True) for names, sums in state}
