"""What the trainers of all models share: the step from phase to phase, counters, and the state that a checkpoint holds.

What a phase's update is stands in update.py; what its random numbers are, in seeds.py.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from gankern.errors import NonFiniteError, OutOfMemory, is_shortage
from gankern.training import fit
from gankern.training.distributed import World
from gankern.training.graphs import CudaGraphs, Replays
from gankern.training.options import Config
from gankern.training.recorder import Recorder
from gankern.training.seeds import lane_seed
from gankern.training.update import Lane, Phase, Update

WARM_UPS = 2
"""Updates of each phase before any is captured: the first compiles and tunes kernels, and allocates Adam's state."""


class BaseTrainer:
    """Networks, average and counters. A model's trainer adds `G_opt`, `D_opt`, `phases`, `updates` and what else raises
    NotImplementedError here.

    `sample_labels(n)` draws conditions [n, c_dim] for the generator; `warn(text)` is told of skipped updates.
    """

    phases: Recorder
    G_opt: torch.optim.Optimizer
    D_opt: torch.optim.Optimizer
    updates: dict[str, Update]

    def __init__(
        self,
        config: Config,
        networks: tuple[nn.Module, nn.Module],
        sample_labels: Callable[[int], Tensor],
        warn: Callable[[str], None],
        world: World,
    ):
        self.config, self.warn, self.world = config, warn, world
        self.G, self.D = networks
        self.device = next(self.G.parameters()).device
        self.G.requires_grad_(False)
        self.D.requires_grad_(False)
        self.G_ema = copy.deepcopy(self.G).eval()
        self.nimg = self.steps = self.skipped = 0
        self.done: list[str] = []  # phases of a step that was begun
        self.fitted: dict[str, int] = {}  # what --batch-gpu auto found, by what was tried and where
        self.looks_at_once = self.device.type == "cpu"  # where it costs nothing: on a GPU at the next tick
        gpu = self.device.type == "cuda"
        self.measures = gpu  # for --batch-gpu auto, which on a CPU is the whole batch
        self.replays = Replays(CudaGraphs(self.device) if gpu and config.graph else None, warn)
        self._eager = Replays(None, warn)
        self._captured: tuple = ()
        self._sample_labels = sample_labels
        self._conditions: Tensor | None = None

    # -- what the loop asks -------------------------------------------------------------------------------------------

    def start(self) -> str | None:
        """Begins a run: gives the networks weights that they have from elsewhere, and says which; None for none."""
        return None

    def prepare(self) -> tuple[int, int]:
        """Settles what the next step does; returns how many images this rank gives it, and the least resolution they
        need."""
        raise NotImplementedError

    def step(self, real: Tensor, labels: Tensor) -> None:
        """One step on reals uint8 [N, C, H, W] and labels [N, c_dim], both on the device, N from `prepare`.

        Raises NonFiniteError after `max_skipped` skipped updates of one phase in a row, where the host looks (see
        `look`), and OutOfMemory for a phase that doesn't fit; after that the step can be taken again, here or from a
        state that was saved, and goes on where it stopped.
        """
        n, _ = self.prepare()
        if len(real) != n:
            raise ValueError(f"real has {len(real)} images, expected {n}")
        lanes = n // self.lane_size(real, labels)
        place = (self.place_key(), lanes, tuple(real.shape))
        if place != self._captured:
            self.forget_captures()
            self._captured = place
        for name in self.due():
            if name not in self.done:
                self._update(self.updates[name], real, labels, lanes)
                self.done.append(name)
        self.average()
        self.nimg += n * self.world.size
        self.steps += 1
        self.done = []

    def due(self) -> Sequence[str]:
        """The phases of this step, in their order."""
        raise NotImplementedError

    def average(self) -> None:
        """Moves G_ema."""
        raise NotImplementedError

    def place_key(self) -> tuple:
        """What captures hold fast, besides the reals' shape."""
        return ()

    @property
    def last_batch(self) -> int:
        """The images of the step that came before, of all ranks; before any step it counts for nothing."""
        raise NotImplementedError

    def pop_stats(self) -> dict[str, float]:
        """Means of the statistics since the last call."""
        self.look()
        return self.phases.pop_stats()

    def where(self) -> str:
        """What the progress line says of the schedule."""
        return ""

    # -- one update ---------------------------------------------------------------------------------------------------

    def lane_size(self, real: Tensor, labels: Tensor) -> int:
        """Images of this rank that go through the networks at a time."""
        size = self.config.at_once(len(real))
        if self.config.batch_gpu == "auto" and self.measures:
            run = f"--recompute {getattr(self.config, 'recompute', 0)}, --impl {self.config.impl}"
            key = f"{len(real)} of {real.shape[-1]} px, {self.place_key()}, {run}, {self._hardware}"
            if key not in self.fitted:
                sizes = [d for d in range(len(real), 0, -1) if len(real) % d == 0 and self.config.fits_mbstd(d)]
                self.fitted[key] = fit.largest(self, real, labels, sizes)
            size = self.fitted[key]
        if len(real) % size:
            raise ValueError(f"real has {len(real)} images, not a multiple of batch_gpu {size}")
        return size

    @functools.cached_property
    def _hardware(self) -> str:
        return fit.hardware(self.device, self.world)

    def _update(self, update: Update, real: Tensor, labels: Tensor, lanes: int) -> None:
        name = update.phase.name

        def lane(i: int) -> tuple[Lane, Callable[[], None]]:
            number = self.world.rank + self.world.size * i
            mine = real[i::lanes]
            conditions = self._draw_conditions(f"labels of {name}", number, len(mine))
            seed = lane_seed(self.config.seed, self.steps, name, number)
            return Lane(mine.contiguous(), labels[i::lanes].contiguous(), conditions), lambda: torch.manual_seed(seed)

        warm = min(u.warm for u in self.updates.values()) >= WARM_UPS  # of all: eager memory is given back only then
        try:
            update.run(lanes, lane, self.replays if warm else self._eager)
        except RuntimeError as error:
            if not is_shortage(error):
                raise
            shortage = fit.describe_shortage(name, lanes, len(real), self)
        else:
            shortage = ""
        if shortage:  # not within the handler: the error holds the activations
            update.give_up()
            raise OutOfMemory(shortage)
        if self.looks_at_once:
            self.look()

    def _draw_conditions(self, name: str, number: int, n: int) -> Tensor:
        if self.config.c_dim == 0:
            return torch.empty(n, 0, device=self.device)
        torch.manual_seed(lane_seed(self.config.seed, self.steps, name, number))
        drawn = self._sample_labels(n)
        return drawn.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else drawn

    def conditions(self, n: int) -> Tensor:
        """The first n conditions of the lane that is computed; outside of one they are drawn."""
        return self._sample_labels(n) if self._conditions is None else self._conditions[:n]

    def build_updates(self, *phases: Phase) -> dict[str, Update]:
        """By name, with losses that find their lane's conditions."""
        ready = [dataclasses.replace(phase, loss=self._conditioned(phase.loss)) for phase in phases]
        return {phase.name: Update(phase, self.phases, self.world, self.device) for phase in ready}

    def _conditioned(self, loss: Callable[[Lane], Tensor]) -> Callable[[Lane], Tensor]:
        def conditioned(lane: Lane) -> Tensor:
            self._conditions = lane.conditions
            try:
                return loss(lane)
            finally:
                self._conditions = None

        return conditioned

    def forget_captures(self) -> None:
        """Before something changes that they hold fast; the phases are warmed up anew."""
        self.replays.forget()
        for update in self.updates.values():
            update.warm = 0

    # -- what isn't finite --------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Waits for the device and tells of the updates that were skipped since the last look.

        Raises NonFiniteError for the streak that a phase is in; one that a good update has ended is only warned of.
        """
        guards = {name: update.guard for name, update in self.updates.items()}
        states = torch.stack([guard.state for guard in guards.values()]).tolist()
        for (name, guard), (_, skipped, in_a_row) in zip(guards.items(), states, strict=True):
            if skipped:
                guard.looked()
                self.skipped += int(skipped)
                self._tell(name, guard.why(), int(skipped), int(in_a_row))

    def _tell(self, phase: str, why: str, skipped: int, in_a_row: int) -> None:
        text = f"step {self.steps}, phase {phase}: {why}" if self.looks_at_once else f"phase {phase}: {why}"
        if in_a_row >= self.config.max_skipped:
            raise NonFiniteError(
                f"{text}, skipped {in_a_row} times in a row. The run has diverged, its last checkpoint is kept; begin "
                "another with a lower --g-lr and --d-lr, a higher --gamma, or --precision fp32 or bf16"
            )
        since = "update skipped" if self.looks_at_once else f"{skipped} updates skipped up to step {self.steps}"
        self.warn(f"{text}; {since}")

    # -- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict:
        """All that `load_state_dict` needs to go on exactly, from within a step too."""
        self.look()
        return {
            "G": self.G.state_dict(),
            "D": self.D.state_dict(),
            "G_ema": self.G_ema.state_dict(),
            "G_opt": self.G_opt.state_dict(),
            "D_opt": self.D_opt.state_dict(),
            "nimg": self.nimg,
            "steps": self.steps,
            "done": list(self.done),
            "fitted": dict(self.fitted),
            "skipped": self.skipped,
            "skipped_in_a_row": {name: int(u.guard.state[2]) for name, u in self.updates.items()},
            "sums": self.phases.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continues from `state_dict()`'s result, which may lie on another device."""
        for name in ("G", "D", "G_ema", "G_opt", "D_opt"):
            getattr(self, name).load_state_dict(state[name])
        for optimizer in (self.G_opt, self.D_opt):
            optimizer.param_groups[0]["capturable"] = self.device.type == "cuda"
        self.nimg, self.steps, self.skipped = state["nimg"], state["steps"], state["skipped"]
        self.done, self.fitted = list(state.get("done", [])), dict(state.get("fitted", {}))
        for name, update in self.updates.items():
            update.guard.set_in_a_row(state["skipped_in_a_row"].get(name, 0))
        self.phases.load_state_dict(state.get("sums", []), self.device)
        self.forget_captures()  # they hold Adam's tensors of before


def fused_adam(parameters: Iterable[nn.Parameter], **settings) -> torch.optim.Adam:
    """Adam in one launch, with its counts on the device."""
    parameters = list(parameters)
    capturable = parameters[0].device.type == "cuda"
    return torch.optim.Adam(parameters, fused=True, capturable=capturable, **settings)
