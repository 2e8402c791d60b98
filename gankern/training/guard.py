"""Which updates of a phase are skipped because something in them isn't finite: decided and counted on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Guard:
    """The device decides (`check`), the host asks later (`state`, `bad`)."""

    def __init__(self, device: torch.device):
        self.state = torch.zeros(3, device=device)  # skipped now (0 or 1); since the host looked; in a row
        self.names: tuple[str, ...] = ()
        self._bad = torch.zeros(0, dtype=torch.bool, device=device)  # by name, of the last update that was skipped

    @property
    def found_inf(self) -> Tensor:
        """1 where the update must be skipped, else 0, as torch's fused optimizers take it."""
        return self.state[0]

    @torch.no_grad()
    def check(self, loss: Tensor, names: Sequence[str], gradients: Sequence[Tensor]) -> Tensor:
        """Whether loss and gradients are finite, a bool []. Of a loss that isn't, a gradient may be."""
        if tuple(names) != self.names:
            self.names = tuple(names)
            self._bad = torch.zeros(len(self.names), dtype=torch.bool, device=loss.device)
        norms = torch.stack(torch._foreach_norm(list(gradients)))
        finite = torch.isfinite(norms.sum() + loss)
        self.state[0].copy_(~finite)
        self.state[1].add_(self.state[0])
        self.state[2].add_(1).mul_(self.state[0])
        self._bad.copy_(torch.where(finite, self._bad, ~torch.isfinite(norms)))
        return finite

    def why(self) -> str:
        """What wasn't finite in the last update that was skipped; the host waits for the device."""
        bad = [name for name, is_bad in zip(self.names, self._bad.tolist(), strict=True) if is_bad]
        where = f"{bad[0]} and {len(bad) - 1} more" if len(bad) > 1 else "".join(bad)
        return "non-finite " + (f"gradient of {where}" if bad else "loss")

    def set_in_a_row(self, count: int) -> None:
        """As of a saved state: so many skipped in a row, all told."""
        self.state.zero_()
        self.state[2] = count

    def looked(self) -> None:
        """Forgets the updates that the host has been told of, but not how many were skipped in a row."""
        self.state[1].zero_()
