"""What fits the GPU's memory: --batch-gpu auto, found by trying, and what is said where a phase doesn't fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gankern.errors import OutOfMemory, is_shortage
from gankern.training.distributed import World
from gankern.training.graphs import Replays
from gankern.training.update import Lane

if TYPE_CHECKING:
    from gankern.training.trainer import BaseTrainer

SHARE = 0.9
"""Of the GPU's memory, for what is tried: graphs hold a little more than eager steps, and snapshots need some."""

GAINS_NOTHING = ("G path length",)
"""What --recompute doesn't help: the second-order pass keeps all that is recomputed."""


def describe_shortage(phase: str, lanes: int, images: int, trainer: BaseTrainer) -> str:
    """One line: the phase, the memory, and the options that help."""
    size = images // lanes
    smaller = [d for d in range(size - 1, 0, -1) if images % d == 0 and trainer.config.fits_mbstd(d)]
    options = [f"--batch-gpu {smaller[0]}"] if smaller else ["a smaller --batch"]
    if smaller and trainer.config.batch_gpu != "auto":
        options.append("--batch-gpu auto")
    if getattr(trainer.config, "recompute", None) == 0 and phase not in GAINS_NOTHING:
        options.append("--recompute")
    memory = ""
    if trainer.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(trainer.device)
        own = torch.cuda.memory_allocated(trainer.device)
        memory = f"; {own / 1e9:.1f} GB in use by this run, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    at_once = f"{size} image{'s' * (size > 1)} at a time"
    return f"phase {phase}: out of memory with {at_once}{memory}; give {', or '.join(options)}"


def hardware(device: torch.device, world: World) -> str:
    """What decides how much fits, told alike on all ranks, as they must measure together or not at all: the kind of
    rank 0's GPU, and the memory of the smallest."""
    name, memory = device.type, 0
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        name, memory = gpu.name, gpu.total_memory
    (least,) = world.most(-memory)
    return f"{world.told(name)}, {-least / 1e9:.1f} GB"


def largest(trainer: BaseTrainer, real: Tensor, labels: Tensor, sizes: Sequence[int]) -> int:
    """The first of `sizes` with which every phase fits, on all ranks; the trainer's state is what it was.

    Raises OutOfMemory where none does.
    """
    before, world = _on_host(trainer.state_dict()), trainer.world
    try:
        _limit_memory(trainer.device, SHARE)
        for size in sizes:
            shortage = _try(trainer, real, labels, size)
            if not world.most(bool(shortage))[0]:
                break
        else:
            raise OutOfMemory(shortage or "--batch-gpu auto: another rank is out of memory")
    finally:
        trainer.load_state_dict(before)
        _limit_memory(trainer.device, 1.0)
    trainer.warn(f"--batch-gpu auto: {size} of {len(real)} images at a time at {real.shape[-1]} px")
    return size


def _limit_memory(device: torch.device, share: float) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(share, device)


def _try(trainer: BaseTrainer, real: Tensor, labels: Tensor, size: int) -> str:
    """Runs all phases on `size` images, twice where gradients will be accumulated; says what doesn't fit."""
    eager, lanes = Replays(None, trainer.warn), min(2, len(real) // size)
    conditions = torch.zeros(size, trainer.config.c_dim, device=trainer.device)
    lane = Lane(real[:size], labels[:size], conditions)
    for update in trainer.updates.values():
        before, update.world = update.world, World()  # a rank that fails must not be waited for
        try:
            update.run(lanes, lambda i: (lane, lambda: None), eager)
        except RuntimeError as error:
            if not is_shortage(error):
                raise
            shortage = describe_shortage(update.phase.name, len(real) // size, len(real), trainer)
        else:
            shortage = ""
        finally:
            update.world = before
        if shortage:
            update.give_up()
            torch.cuda.empty_cache()
            return shortage
    return ""


def _on_host(state: Any) -> Any:
    """A copy of a nested state that later steps don't change."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _on_host(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_on_host(value) for value in state)
    return state
