"""Statistics of a step, kept on the device until somebody asks for their means."""

import torch
from torch import Tensor


class Recorder:
    """Values by name, kept until `pop_stats`."""

    def __init__(self):
        self.stats: dict[str, list[Tensor]] = {}

    def record(self, name: str, value: Tensor) -> None:
        self.stats.setdefault(name, []).append(value.detach())

    def pop_stats(self) -> dict[str, float]:
        """Means of what was recorded since the last call; the one place where the host waits for them."""
        means = {name: torch.stack(values).float().mean() for name, values in sorted(self.stats.items())}
        self.stats = {}
        if not means:
            return {}
        return dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))
