"""One optimizer update of a phase: lanes (micro-batches) accumulate the gradient of their mean loss, then it is applied
where everything in it is finite. The host waits for nothing; what is static here can be captured (graphs.py).
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gankern.training.distributed import World
from gankern.training.graphs import Replays
from gankern.training.guard import Guard
from gankern.training.recorder import Recorder


class Lane(NamedTuple):
    """A micro-batch: reals uint8 [n, C, H, W], their labels [n, c_dim], conditions of the fakes [n, c_dim]."""

    real: Tensor
    labels: Tensor
    conditions: Tensor


@dataclass(frozen=True)
class Phase:
    """What an update minimises: `loss` of a lane, which draws its random numbers on the device.

    `observed` gives what that loss has seen of itself; `keep(finite, mean)` is given its mean over all lanes.
    """

    name: str
    network: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Lane], Tensor]
    observed: Callable[[], Tensor] | None = None
    keep: Callable[[Tensor, Tensor], None] | None = None


class Update:
    """The update of one phase, and what it counts."""

    def __init__(self, phase: Phase, recorder: Recorder, world: World, device: torch.device):
        self.phase, self.recorder, self.world = phase, recorder, world
        self.guard = Guard(device)
        self.parameters = [p for group in phase.optimizer.param_groups for p in group["params"]]
        self.warm = 0  # updates since something changed that a capture holds fast
        self._names: tuple[str, ...] = ()
        self._seen = torch.zeros(0)  # means over the lanes: the loss, the statistics of `_names`, what was observed

    def run(self, count: int, lane: Callable[[int], tuple[Lane, Callable[[], None]]], replays: Replays) -> None:
        """Takes the update over `count` lanes; lane(i) gives the i-th and what seeds its random numbers."""
        name = self.phase.name
        for i in range(count):
            ends = (i == 0, i == count - 1)
            inputs, seed = lane(i)
            held = [p.grad for p in self.parameters]
            accumulate = partial(self._accumulate, *ends, count)
            replays.run((name, *ends), accumulate, inputs, seed, undo=partial(self._put_back, held))
        held = [p.grad for p in self.parameters]
        replays.run((name, "apply"), self._apply, undo=partial(self._put_back, held))
        self.warm += 1

    def give_up(self) -> None:
        """After an error in `run`: the gradients and what was recorded are dropped."""
        self._learn(False)
        self.phase.optimizer.zero_grad(set_to_none=True)
        self.recorder.stats.clear()

    def _put_back(self, gradients: Sequence[Tensor | None]) -> None:
        self.give_up()
        for p, gradient in zip(self.parameters, gradients, strict=True):
            p.grad = gradient

    def _accumulate(self, first: bool, last: bool, count: int, *inputs: Tensor) -> None:
        if first:
            self.phase.optimizer.zero_grad(set_to_none=True)  # so that backward's own tensors become the gradients
        self._learn(True)
        value = self.phase.loss(Lane(*inputs))
        with self.world.reducing(self.phase.network, self.phase.name) if last else contextlib.nullcontext():
            (value / count).backward()
        self._learn(False)
        self._note(value.detach(), first, count)

    def _learn(self, on: bool) -> None:
        for p in self.parameters:
            p.requires_grad_(on)

    def _note(self, loss: Tensor, first: bool, count: int) -> None:
        taken = self.recorder.take()
        self._names = tuple(taken)
        parts = [loss, *taken.values(), *([self.phase.observed()] if self.phase.observed else [])]
        seen = torch.cat([part.reshape(-1) for part in parts]) / count
        if self._seen.shape != seen.shape or self._seen.device != seen.device:
            self._seen = torch.zeros_like(seen)
        if first:
            self._seen.copy_(seen)
        else:
            self._seen.add_(seen)

    @torch.no_grad()
    def _apply(self) -> list[Tensor]:
        """The gradients, which a capture of this must keep: those of the lanes write them."""
        phase = self.phase
        named = {name: p.grad for name, p in phase.network.named_parameters() if p.grad is not None}
        self.world.mean_(self._seen)
        finite = self.guard.check(self._seen[0], list(named), list(named.values()))
        phase.optimizer.found_inf = self.guard.found_inf
        phase.optimizer.step()
        phase.optimizer.zero_grad(set_to_none=True)  # else they take memory through the other network's phases
        after = 1 + len(self._names)
        if phase.keep is not None:
            phase.keep(finite, self._seen[after:])
        self.recorder.add(self._names, self._seen[1:after], finite)
        return list(named.values())
