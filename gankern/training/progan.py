"""One training step of ProGAN: critic, generator, average, at the place that the schedule (schedule.py) has reached.

The networks hold all stages from the start: growing allocates nothing, and what isn't reached yet gets no gradient.
The losses are in progan_phases.py, what an update is in update.py.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gankern.training.distributed import World
from gankern.training.ema import update_ema
from gankern.training.progan_options import ProGANConfig
from gankern.training.progan_phases import ProGANPhases, build_networks
from gankern.training.schedule import Place
from gankern.training.trainer import BaseTrainer, fused_adam
from gankern.training.update import Phase


class ProGANTrainer(BaseTrainer):
    """The networks, their optimizers and where they are; `state_dict` holds all of it. Arguments as of `Trainer`."""

    def __init__(
        self,
        config: ProGANConfig,
        device: torch.device | str,
        sample_labels: Callable[[int], Tensor],
        warn: Callable[[str], None] = print,
        world: World = World(),  # noqa: B008 (frozen)
    ):
        super().__init__(config, build_networks(config, device), sample_labels, warn, world)
        adam = {"betas": (0.0, config.beta2), "eps": 1e-8}
        self.G_opt = fused_adam(self.G.parameters(), lr=config.g_lr, **adam)
        self.D_opt = fused_adam(self.D.parameters(), lr=config.d_lr, **adam)
        phases = self.phases = ProGANPhases(config, self.G, self.D, self.conditions)
        self.updates = self.build_updates(
            Phase("D", self.D, self.D_opt, lambda lane: phases.d_main(phases.reals(lane.real), lane.labels)),
            Phase("G", self.G, self.G_opt, lambda lane: phases.g_main(len(lane.real))),
        )
        self.schedule = config.schedule()
        self._scheduled = self._last_batch = 0  # the images at the last look at the schedule; of the last step
        self._go_to(self.schedule.at(0))

    @property
    def place(self) -> Place:
        """What the steps train now."""
        return self.phases.place

    def prepare(self) -> tuple[int, int]:
        """Looks at the schedule every `repeats` steps. Where a resolution is added, Adam begins anew."""
        if self.steps % self.config.repeats == 0:
            self._scheduled = self.nimg
        place, before = self.schedule.at(self._scheduled), self.place
        if place != before:
            if place.stage > before.stage:
                for optimizer in (self.G_opt, self.D_opt):
                    _begin_anew(optimizer)
            self._go_to(place)
        return place.batch // self.world.size, place.resolution

    def _go_to(self, place: Place) -> None:
        self.phases.go_to(place)
        self.G_ema.lod = place.lod
        for optimizer, lr in ((self.G_opt, self.config.g_lr), (self.D_opt, self.config.d_lr)):
            optimizer.param_groups[0]["lr"] = place.lr or lr

    @property
    def last_batch(self) -> int:
        return self._last_batch

    def due(self) -> Sequence[str]:
        return list(self.updates)

    def place_key(self) -> tuple:
        """The learning rate is the stage's, so it changes with it."""
        return self.place.stage, self.place.fade > 0

    def step(self, real: Tensor, labels: Tensor) -> None:
        super().step(real, labels)
        self._last_batch = self.place.batch

    def average(self) -> None:
        update_ema(self.G_ema, self.G, self.config.ema_beta)

    def where(self) -> str:
        return str(self.place)

    def pop_stats(self) -> dict[str, float]:
        return super().pop_stats() | {"lod": self.place.lod, "batch": self.place.batch}

    def state_dict(self) -> dict:
        return super().state_dict() | {"scheduled": self._scheduled, "last_batch": self._last_batch}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._scheduled, self._last_batch = state["scheduled"], state["last_batch"]
        self._go_to(self.schedule.at(self._scheduled))


def _begin_anew(optimizer: torch.optim.Optimizer) -> None:
    """Zeroes moments and counts where they are."""
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()
