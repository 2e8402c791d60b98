"""One training step of StyleGAN2: its phases (phases.py) in the order of the algorithm, on a batch of reals.

    G every step; G + path length every pl_interval steps, on batch/pl_shrink; D every step; D + R1 every r1_interval

A phase accumulates its gradient over micro-batches of batch_gpu images (the gradient is the mean over the whole batch),
then takes one optimizer step. A phase whose gradient isn't finite takes none.
"""

import copy
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from gankern.errors import NonFiniteError
from gankern.training.config import Config, adam_settings
from gankern.training.ema import ema_beta, update_ema
from gankern.training.phases import Phases, build_networks

W_AVG_DECAY = 0.995


class Trainer:
    """The networks, their optimizers and whatever else a step changes; `state_dict` holds all of it.

    `sample_labels(n)` draws conditions [n, c_dim] for the generator; `warn(text)` is told of skipped updates.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device | str,
        sample_labels: Callable[[int], Tensor],
        warn: Callable[[str], None] = print,
    ):
        self.config, self.device, self.warn = config, torch.device(device), warn
        self.G, self.D = build_networks(config, device)
        self.G.requires_grad_(False)
        self.D.requires_grad_(False)
        self.G_ema = copy.deepcopy(self.G).eval()
        self.G_opt = _adam(self.G, config.g_lr, config.pl_interval if config.pl_weight > 0 else None)
        self.D_opt = _adam(self.D, config.d_lr, config.r1_interval if config.gamma > 0 else None)
        self.phases = Phases(config, self.G, self.D, sample_labels)
        self.nimg = self.steps = self.skipped = 0
        self._skipped_in_a_row: dict[str, int] = {}  # by phase: one that always fails counts although others succeed

    def step(self, real: Tensor, labels: Tensor) -> None:
        """One step on reals uint8 [batch, C, R, R] and labels [batch, c_dim], both on the device.

        Raises NonFiniteError after `max_skipped` skipped updates of one phase in a row.
        """
        config, phases = self.config, self.phases
        real = real.to(torch.float32).div_(127.5).sub_(1)
        micro = list(zip(real.split(config.batch_gpu), labels.split(config.batch_gpu), strict=True))

        if self._update("G", self.G, self.G_opt, [partial(phases.g_main, len(x)) for x, _ in micro]):
            w_avg = self.G.mapping.w_avg
            w_avg.copy_(torch.stack(phases.observed_w).mean(0).lerp(w_avg, W_AVG_DECAY))

        if config.pl_weight > 0 and self.steps % config.pl_interval == 0:
            losses = [partial(phases.g_path_length, len(x)) for x, _ in micro]
            if self._update("G path length", self.G, self.G_opt, losses):
                phases.pl_mean.lerp_(torch.stack(phases.observed_lengths).mean(), config.pl_decay)

        self._update("D", self.D, self.D_opt, [partial(phases.d_main, x, c) for x, c in micro])

        if config.gamma > 0 and self.steps % config.r1_interval == 0:
            self._update("D R1", self.D, self.D_opt, [partial(phases.d_r1, x, c) for x, c in micro])

        update_ema(self.G_ema, self.G, ema_beta(config.batch, config.ema_kimg, self.nimg, config.ema_rampup))
        self.nimg += config.batch
        self.steps += 1

    # -- one optimizer update -----------------------------------------------------------------------------------------

    def _update(
        self, phase: str, network: nn.Module, optimizer: torch.optim.Optimizer, losses: list[Callable[[], Tensor]]
    ) -> bool:
        """Accumulates the gradient of the mean of `losses` and takes a step; False where it was skipped as
        non-finite."""
        self.phases.observed_w, self.phases.observed_lengths = [], []
        network.requires_grad_(True)
        for micro_loss in losses:
            (micro_loss() / len(losses)).backward()
        network.requires_grad_(False)
        gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        norms = torch.stack(torch._foreach_norm(list(gradients.values())))
        finite = bool(torch.isfinite(norms.sum()))
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
        where = f"{bad[0]} and {len(bad) - 1} more" if len(bad) > 1 else "".join(bad) or "their sum"
        text = f"step {self.steps}, phase {phase}: non-finite gradient of {where}"
        if in_a_row >= self.config.max_skipped:
            raise NonFiniteError(
                f"{text}, skipped {in_a_row} times in a row. The run has diverged, its last checkpoint is kept; begin "
                "another with a lower --g-lr and --d-lr, a higher --gamma, or --precision fp32 or bf16"
            )
        self.warn(f"{text}; update skipped")

    # -- state -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict:
        """All that `load_state_dict` needs to go on exactly, torch's random states included."""
        cuda = self.device.type == "cuda"
        return {
            "G": self.G.state_dict(),
            "D": self.D.state_dict(),
            "G_ema": self.G_ema.state_dict(),
            "G_opt": self.G_opt.state_dict(),
            "D_opt": self.D_opt.state_dict(),
            "pl_mean": self.phases.pl_mean,
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
        self.phases.pl_mean.copy_(state["pl_mean"])
        self.nimg, self.steps, self.skipped = state["nimg"], state["steps"], state["skipped"]
        self._skipped_in_a_row = dict(state["skipped_in_a_row"])
        self.phases.stats = {name: list(values.to(self.device)) for name, values in state["stats"].items()}
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda" and state["rng_cuda"] is not None:
            torch.cuda.set_rng_state(state["rng_cuda"], self.device)


def _adam(network: nn.Module, lr: float, interval: int | None) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), fused=True, **adam_settings(lr, interval))
