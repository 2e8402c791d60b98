"""One training step of StyleGAN2: its phases (phases.py) in the order of the algorithm, on a batch of reals.

    G every step; G + path length every pl_interval steps, on batch/pl_shrink; D every step; D + R1 every r1_interval

What a phase's update is stands in trainer.py.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from gankern.training.config import StyleGAN2Config, adam_settings
from gankern.training.distributed import ALONE, World
from gankern.training.ema import ema_beta, update_ema
from gankern.training.phases import Phases, build_networks
from gankern.training.trainer import BaseTrainer

W_AVG_DECAY = 0.995


class Trainer(BaseTrainer):
    """The networks, their optimizers and whatever else a step changes; `state_dict` holds all of it.

    `sample_labels(n)` draws conditions [n, c_dim] for the generator; `warn(text)` is told of skipped updates.
    """

    def __init__(
        self,
        config: StyleGAN2Config,
        device: torch.device | str,
        sample_labels: Callable[[int], Tensor],
        warn: Callable[[str], None] = print,
        world: World = ALONE,
    ):
        super().__init__(config, *build_networks(config, device), warn, world)
        self.G_opt = _adam(self.G, config.g_lr, config.pl_interval if config.pl_weight > 0 else None)
        self.D_opt = _adam(self.D, config.d_lr, config.r1_interval if config.gamma > 0 else None)
        self.phases = Phases(config, self.G, self.D, sample_labels)

    def prepare(self) -> tuple[int, int]:
        return self.config.batch, self.config.resolution

    @property
    def last_batch(self) -> int:
        return self.config.batch

    def step(self, real: Tensor, labels: Tensor) -> None:
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

    def _update(
        self, phase: str, network: nn.Module, optimizer: torch.optim.Optimizer, losses: list[Callable[[], Tensor]]
    ) -> bool:
        self.phases.observed_w, self.phases.observed_lengths = [], []
        return super()._update(phase, network, optimizer, losses)

    def pop_stats(self) -> dict[str, float]:
        return super().pop_stats() | {"pl_mean": self.phases.pl_mean.item()}

    def state_dict(self) -> dict:
        return super().state_dict() | {"pl_mean": self.phases.pl_mean}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.phases.pl_mean.copy_(state["pl_mean"])


def _adam(network: nn.Module, lr: float, interval: int | None) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), fused=True, **adam_settings(lr, interval))
