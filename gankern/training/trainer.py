"""What the trainers of all models share: guarded updates, counters, and the state that a checkpoint holds.

A phase accumulates its gradient over micro-batches (the gradient is the mean over the whole batch), then takes one
optimizer step. A phase whose loss or gradient isn't finite takes none.
"""

import contextlib
import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gankern.errors import NonFiniteError
from gankern.training.distributed import World
from gankern.training.options import Config
from gankern.training.recorder import Recorder


class BaseTrainer:
    """Networks, average and counters. A model's trainer adds `G_opt`, `D_opt`, `phases`, `prepare` and `step`.

    `warn(text)` is told of skipped updates.
    """

    phases: Recorder
    G_opt: torch.optim.Optimizer
    D_opt: torch.optim.Optimizer

    def __init__(self, config: Config, G: nn.Module, D: nn.Module, warn: Callable[[str], None], world: World):
        self.config, self.warn, self.world, self.G, self.D = config, warn, world, G, D
        self.device = next(G.parameters()).device
        self.G.requires_grad_(False)
        self.D.requires_grad_(False)
        self.G_ema = copy.deepcopy(self.G).eval()
        self.nimg = self.steps = self.skipped = 0
        self._skipped_in_a_row: dict[str, int] = {}  # by phase: one that always fails counts although others succeed

    # -- what the loop asks -------------------------------------------------------------------------------------------

    def prepare(self) -> tuple[int, int]:
        """Settles what the next step does; returns how many images it takes, and the least resolution they need."""
        raise NotImplementedError

    def step(self, real: Tensor, labels: Tensor) -> None:
        """One step on reals uint8 [N, C, H, W] and labels [N, c_dim], both on the device, N from `prepare`.

        Raises NonFiniteError after `max_skipped` skipped updates of one phase in a row.
        """
        raise NotImplementedError

    @property
    def last_batch(self) -> int:
        """The images of the step that came before."""
        raise NotImplementedError

    def pop_stats(self) -> dict[str, float]:
        """Means of the statistics since the last call."""
        return self.phases.pop_stats()

    def where(self) -> str:
        """What the progress line says of the schedule."""
        return ""

    # -- one optimizer update -----------------------------------------------------------------------------------------

    def _update(
        self, phase: str, network: nn.Module, optimizer: torch.optim.Optimizer, losses: list[Callable[[], Tensor]]
    ) -> bool:
        """Accumulates the gradient of the mean of `losses` and takes a step; False where it was skipped as
        non-finite."""
        network.requires_grad_(True)
        total = torch.zeros([], device=self.device)
        for micro_loss in losses:
            value = micro_loss() / len(losses)
            with self.world.reducing(network, phase) if micro_loss is losses[-1] else contextlib.nullcontext():
                value.backward()
            total += value.detach()
        self.world.mean_(total)
        network.requires_grad_(False)
        gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        norms = torch.stack(torch._foreach_norm(list(gradients.values())))
        finite = bool(torch.isfinite(norms.sum() + total))  # of a loss that isn't, a gradient may be
        if finite:
            self._skipped_in_a_row[phase] = 0
            optimizer.step()
        else:
            bad = [name for name, norm in zip(gradients, norms.tolist(), strict=True) if not math.isfinite(norm)]
            self._skip(phase, bad)
        optimizer.zero_grad(set_to_none=True)  # else they take memory through the other network's phases
        return finite

    def _skip(self, phase: str, bad: list[str]) -> None:
        self.skipped += 1
        in_a_row = self._skipped_in_a_row[phase] = self._skipped_in_a_row.get(phase, 0) + 1
        where = f"{bad[0]} and {len(bad) - 1} more" if len(bad) > 1 else "".join(bad)
        text = f"step {self.steps}, phase {phase}: non-finite " + (f"gradient of {where}" if bad else "loss")
        if in_a_row >= self.config.max_skipped:
            raise NonFiniteError(
                f"{text}, skipped {in_a_row} times in a row. The run has diverged, its last checkpoint is kept; begin "
                "another with a lower --g-lr and --d-lr, a higher --gamma, or --precision fp32 or bf16"
            )
        self.warn(f"{text}; update skipped")

    # -- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict:
        """All that `load_state_dict` needs to go on exactly, torch's random states included."""
        cuda = self.device.type == "cuda"
        return {
            "G": self.G.state_dict(),
            "D": self.D.state_dict(),
            "G_ema": self.G_ema.state_dict(),
            "G_opt": self.G_opt.state_dict(),
            "D_opt": self.D_opt.state_dict(),
            "nimg": self.nimg,
            "steps": self.steps,
            "skipped": self.skipped,
            "skipped_in_a_row": dict(self._skipped_in_a_row),
            "stats": {name: torch.stack(values).cpu() for name, values in self.phases.stats.items()},
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continues from `state_dict()`'s result, which may lie on another device."""
        for name in ("G", "D", "G_ema", "G_opt", "D_opt"):
            getattr(self, name).load_state_dict(state[name])
        self.nimg, self.steps, self.skipped = state["nimg"], state["steps"], state["skipped"]
        self._skipped_in_a_row = dict(state["skipped_in_a_row"])
        self.phases.stats = {name: list(values.to(self.device)) for name, values in state["stats"].items()}
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda" and state["rng_cuda"] is not None:
            torch.cuda.set_rng_state(state["rng_cuda"], self.device)
