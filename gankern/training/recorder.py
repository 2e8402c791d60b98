"""Statistics of a step, summed on the device until somebody asks for their means."""

import math

import torch
from torch import Tensor


class Recorder:
    """Values by name. What a loss has recorded lies in `stats` until it is taken; what is added is summed."""

    def __init__(self):
        self.stats: dict[str, list[Tensor]] = {}
        self._sums: dict[tuple[str, ...], Tensor] = {}  # [n + 2], float64: of each name; how many were added, left out

    def record(self, name: str, value: Tensor) -> None:
        self.stats.setdefault(name, []).append(value.detach())

    def take(self) -> dict[str, Tensor]:
        """What was recorded since it was last taken, a mean each."""
        taken = {
            name: values[0] if len(values) == 1 else torch.stack(values).mean() for name, values in self.stats.items()
        }
        self.stats.clear()
        return taken

    def add(self, names: tuple[str, ...], values: Tensor, finite: Tensor) -> None:
        """Adds one value of each name, [n], to the sums, which stay where they are; leaves them out where `finite`, a
        bool [], says so."""
        if names not in self._sums:
            self._sums[names] = torch.zeros(len(names) + 2, dtype=torch.float64, device=values.device)
        sums, left_out = self._sums[names], ~finite
        sums[:-2].add_(values.masked_fill(left_out, 0))
        sums[-2].add_(finite)
        sums[-1].add_(left_out)

    def pop_stats(self) -> dict[str, float]:
        """Means of what was added since the last call, NaN where all of it was left out; the host waits for the device
        here."""
        totals: dict[str, tuple[float, float]] = {}
        for names, (*sums, added, left_out) in zip(self._sums, self._read(), strict=True):
            for name, value in zip(names, sums, strict=True):
                if added or left_out:
                    before, count = totals.get(name, (0.0, 0.0))
                    totals[name] = before + value, count + added
        for sums in self._sums.values():
            sums.zero_()
        return {name: value / count if count else math.nan for name, (value, count) in sorted(totals.items())}

    def _read(self) -> list[list[float]]:
        if not self._sums:
            return []
        parts = iter(torch.cat(list(self._sums.values())).tolist())
        return [[next(parts) for _ in range(len(sums))] for sums in self._sums.values()]

    def state_dict(self) -> list[tuple[list[str], Tensor]]:
        return [(list(names), sums.cpu()) for names, sums in self._sums.items()]

    def load_state_dict(self, state: list[tuple[list[str], Tensor]], device: torch.device) -> None:
        self.stats.clear()
        self._sums = {}
        for names, sums in state:  # older ones don't say how many were left out
            padded = torch.nn.functional.pad(sums, (0, len(names) + 2 - len(sums)))
            self._sums[tuple(names)] = padded.to(device, copy=True)
