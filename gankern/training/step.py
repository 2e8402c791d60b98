"""One training step of StyleGAN2: its phases (phases.py) in the order of the algorithm, on a batch of reals.

    G every step; G + path length every pl_interval steps, on batch/pl_shrink; D every step; D + R1 every r1_interval

What a phase's update is stands in update.py.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gankern.training.config import StyleGAN2Config, adam_settings
from gankern.training.distributed import World
from gankern.training.ema import ema_beta, update_ema
from gankern.training.phases import Phases, build_networks
from gankern.training.recompute import recompute_blocks
from gankern.training.trainer import BaseTrainer, fused_adam
from gankern.training.transfer import learning, start_networks
from gankern.training.update import Phase

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
        world: World = World(),  # noqa: B008 (frozen)
    ):
        super().__init__(config, build_networks(config, device), sample_labels, warn, world)
        self.pl_interval = config.pl_interval if config.pl_weight > 0 else None
        self.r1_interval = config.r1_interval if config.gamma > 0 else None
        self.G_opt = fused_adam(self.G.parameters(), **adam_settings(config.g_lr, self.pl_interval))
        self.D_opt = fused_adam(learning(self.D, config.freeze_d), **adam_settings(config.d_lr, self.r1_interval))
        if config.recompute:
            recompute_blocks(self.G.synthesis, config.recompute)
            recompute_blocks(self.D, config.recompute)
        phases = self.phases = Phases(config, self.G, self.D, self.conditions)
        every = {
            "G": lambda lane: phases.g_main(len(lane.real)),
            "G path length": lambda lane: phases.g_path_length(len(lane.real)),
            "D": lambda lane: phases.d_main(phases.reals(lane.real), lane.labels),
            "D R1": lambda lane: phases.d_r1(phases.reals(lane.real), lane.labels),
        }
        seen = {
            "G": (lambda: phases.observed_w[0], self._keep_w),
            "G path length": (lambda: phases.observed_lengths[0], self._keep_length),
        }
        parts = {"G": (self.G, self.G_opt), "D": (self.D, self.D_opt)}
        used = [name for name in every if self._interval(name)]
        self.updates = self.build_updates(*(Phase(n, *parts[n[0]], every[n], *seen.get(n, ())) for n in used))

    def start(self) -> str | None:
        if self.config.start_from is None:
            return None
        return start_networks(self.config, self.G, self.D, self.G_ema)

    def prepare(self) -> tuple[int, int]:
        return self.config.batch // self.world.size, self.config.resolution

    @property
    def last_batch(self) -> int:
        return self.config.batch

    def _interval(self, name: str) -> int | None:
        return {"G path length": self.pl_interval, "D R1": self.r1_interval}.get(name, 1)

    def due(self) -> Sequence[str]:
        return [name for name in self.updates if self.steps % self._interval(name) == 0]

    def average(self) -> None:
        config = self.config
        update_ema(self.G_ema, self.G, ema_beta(config.batch, config.ema_kimg, self.nimg, config.ema_rampup))

    def _keep_w(self, finite: Tensor, mean: Tensor) -> None:
        w_avg = self.G.mapping.w_avg
        w_avg.copy_(torch.where(finite, mean.lerp(w_avg, W_AVG_DECAY), w_avg))

    def _keep_length(self, finite: Tensor, mean: Tensor) -> None:
        pl_mean = self.phases.pl_mean
        pl_mean.copy_(torch.where(finite, pl_mean.lerp(mean[0], self.config.pl_decay), pl_mean))

    def pop_stats(self) -> dict[str, float]:
        return super().pop_stats() | {"pl_mean": self.phases.pl_mean.item()}

    def state_dict(self) -> dict:
        return super().state_dict() | {"pl_mean": self.phases.pl_mean}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.phases.pl_mean.copy_(state["pl_mean"])
