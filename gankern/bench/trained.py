"""The trainer itself in the race: a part is one update of a phase as `gankern train` takes it, loss, gradients, guard
and Adam together, captured as CUDA graphs and replayed.

Its numbers are compared with those of the same trainer in plain eager, without graphs; train.py does the timing.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gankern.bench import steps
from gankern.ops import use_impl
from gankern.training.loop import TRAINERS
from gankern.training.options import Config
from gankern.training.trainer import WARM_UPS
from gankern.training.update import Update

NOTE = "a phase is an update as gankern train takes it, guard and Adam within it"
PARTS = {"G path length": "G+PL", "D R1": "D+R1"}
"""The race's names for phases that the trainer calls otherwise."""


class Racer:
    """A fresh trainer at its full resolution, with a batch of random reals. What it warns of is in `said`."""

    def __init__(self, config: Config, device: str, graph: bool = True):
        self.said: list[str] = []
        config = dataclasses.replace(config, graph=graph)
        self.trainer = TRAINERS[config.model](config, device, steps.no_labels(device), self.said.append)
        if config.model == "progan":
            self.trainer.nimg = math.ceil(config.schedule().full)
        self.batch, r = self.trainer.prepare()
        self._real = torch.randint(256, (self.batch, 3, r, r), dtype=torch.uint8, device=device)
        self._labels = torch.empty(self.batch, 0, device=device)
        self._lanes = self.batch // self.trainer.lane_size(self._real, self._labels)

    def update(self, phase: str) -> None:
        self.trainer._update(self.trainer.updates[phase], self._real, self._labels, self._lanes)

    def warm_up(self) -> None:
        """After this every phase is captured, where it can be."""
        for _ in range(WARM_UPS + 1):
            for phase in self.trainer.updates:
                self.update(phase)


def step(config: Config, device: str) -> steps.Step:
    """The step whose parts are the trainer's updates, ready to be replayed."""
    racer = Racer(config, device)
    trainer, often = racer.trainer, {"G+PL": "pl_interval", "D+R1": "r1_interval"}
    made = steps.Step({}, trainer.G, trainer.D, racer.batch, racer.said)
    for phase in trainer.updates:
        name = PARTS.get(phase, phase)
        every = getattr(config, often[name]) if name in often else 1
        made.parts[name] = steps.Part(1 / every, _run(racer, phase), name[0])
    made.parts["EMA"] = steps.Part(1.0, trainer.average, "G")
    racer.warm_up()
    return made


def _run(racer: Racer, phase: str) -> Callable[[], None]:
    return lambda: racer.update(phase)


# -- numbers -----------------------------------------------------------------------------------------------------------


def pairs(config: Config, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """What each phase's first update should give and what its replay gives: the loss, the gradients, and what Adam
    makes of these gradients."""
    with use_impl("reference"):
        expected = _first_updates(config, device, graph=False)
    found = _first_updates(config, device, graph=True)
    for phase, first in expected.items():
        got = found[phase]
        yield first.loss, got.loss
        yield first.gradients, got.gradients
        yield _adams_first_step(first, got.gradients), got.change  # not first.change: it has the gradients' signs


@dataclass(frozen=True)
class _First:
    """A phase's first update: what it saw, how it changed the weights, Adam's settings."""

    loss: Tensor
    gradients: Tensor
    change: Tensor
    lr: float
    eps: float


def _adams_first_step(first: _First, g: Tensor) -> Tensor:
    """−lr·g / (|g| + ε): after one step the corrected moments are g and g². Kingma & Ba 2015 (arXiv:1412.6980)."""
    return -first.lr * g / (g.abs() + first.eps)


def _first_updates(config: Config, device: str, graph: bool) -> dict[str, _First]:
    """Of each phase, always from the same weights; `graph`: as replays."""
    torch.manual_seed(0)
    racer = Racer(config, device, graph)
    updates = racer.trainer.updates
    seen = {phase: _watch(update) for phase, update in updates.items()}
    state = _state(racer)
    before = [t.detach().clone() for t in state]
    if graph:
        racer.warm_up()
    found: dict[str, _First] = {}
    for phase, update in updates.items():
        _begin_anew(racer, state, before)
        network = update.phase.network
        weights = {name: p.detach().clone() for name, p in network.named_parameters()}
        racer.update(phase)
        loss, *gradients = (t.clone() for t in seen[phase].values())
        moved = [network.get_parameter(name).detach() - weights[name] for name in list(seen[phase])[1:]]
        settings = update.phase.optimizer.param_groups[0]
        found[phase] = _First(loss.double(), _joined(gradients), _joined(moved), settings["lr"], settings["eps"])
    return found


def _watch(update: Update) -> dict[str, Tensor]:
    """Where the loss and the gradients of the last update are, by name, once it is done: copied on the device before
    the guard sees them, in a replay too."""
    check, seen = update.guard.check, {}

    def watched(loss: Tensor, names: list[str], gradients: list[Tensor]) -> Tensor:
        values = [loss, *gradients]
        if not seen:
            seen.update(zip(("loss", *names), (torch.empty_like(v) for v in values), strict=True))
        for kept, value in zip(seen.values(), values, strict=True):
            kept.copy_(value)
        return check(loss, names, gradients)

    update.guard.check = watched
    return seen


def _state(racer: Racer) -> list[Tensor]:
    """What updates change besides Adam's moments."""
    trainer = racer.trainer
    networks = [t for network in (trainer.G, trainer.D) for t in (*network.parameters(), *network.buffers())]
    return networks + [t for t in vars(trainer.phases).values() if isinstance(t, Tensor)]


@torch.no_grad()
def _begin_anew(racer: Racer, state: list[Tensor], before: list[Tensor]) -> None:
    """In place, since captures hold the tensors fast."""
    for t, value in zip(state, before, strict=True):
        t.copy_(value)
    for optimizer in (racer.trainer.G_opt, racer.trainer.D_opt):
        for moments in optimizer.state.values():
            for value in moments.values():
                value.zero_()


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])
