"""The ranks that train together: what they tell each other, and how they end when one of them dies. How they meet
stands in torchrun.py, what is reduced during the backward pass in buckets.py.

Tensors on a GPU travel by NCCL; those on the CPU, and whatever else is agreed on, by gloo: no GPU waits for it.
"""

import contextlib
import os
import sys
import threading
import time
import weakref
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gankern.errors import InputError, RankError
from gankern.training.buckets import GradientBuckets, answered

T = TypeVar("T")
TIMEOUT = 600.0  # seconds


@dataclass(frozen=True)
class World:
    """This rank, and how many there are: in all, and on this machine (`local_`). One rank alone has nobody to agree
    with, and everything here returns at once.

    RankError: another rank has died, or didn't answer within `timeout` seconds.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    timeout: float = TIMEOUT
    _buckets: weakref.WeakKeyDictionary = field(default_factory=weakref.WeakKeyDictionary, compare=False, repr=False)

    # -- tensors ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def reducing(self, network: nn.Module, key: Hashable = None) -> Iterator[None]:
        """Around the last backward pass of an update: after the block the gradients are means over the ranks.

        `key` tells passes apart that reach different parameters; for each, the first pass can't be captured in a CUDA
        graph.
        """
        if self.size == 1:
            yield
            return
        if network not in self._buckets:
            self._buckets[network] = GradientBuckets(network, self.size, self.told)
        with self._buckets[network].reducing(key):
            yield

    @torch.no_grad()
    def mean_(self, *tensors: Tensor) -> None:
        """Makes each tensor its mean over the ranks, in place. Small ones: they travel together."""
        if self.size == 1:
            return
        kinds = {(t.device, t.dtype): None for t in tensors}
        for kind in kinds:
            group = [t for t in tensors if (t.device, t.dtype) == kind]
            flat = torch.cat([t.reshape(-1) for t in group]).div_(self.size)
            with answered():
                dist.all_reduce(flat)
            for t, part in zip(group, flat.split([t.numel() for t in group]), strict=True):
                t.copy_(part.view_as(t))

    def share(self, n: int) -> slice:
        """Which of n things are this rank's to make."""
        return slice(*self._bounds(n, self.rank))

    def gather_(self, tensor: Tensor) -> None:
        """Rank 0 gets the others' rows of a CPU tensor, each the `share` of its length that is theirs."""
        for rank in range(1, self.size):
            rows = tensor[slice(*self._bounds(len(tensor), rank))]
            if self.rank in (0, rank) and rows.numel():
                move = dist.send if self.rank else dist.recv
                with answered():
                    move(rows.view(-1).view(torch.uint8), rank if self.rank == 0 else 0)

    def _bounds(self, n: int, rank: int) -> tuple[int, int]:
        return rank * n // self.size, (rank + 1) * n // self.size

    # -- agreement ----------------------------------------------------------------------------------------------------

    def told(self, value: T) -> T:
        """What rank 0 has; the others' value counts for nothing."""
        if self.size == 1:
            return value
        box = [value if self.rank == 0 else None]
        with answered():
            dist.broadcast_object_list(box, 0, device=torch.device("cpu"))
        return box[0]

    def most(self, *numbers: int) -> list[int]:
        """Of each number the largest that a rank has."""
        if self.size == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.int64)
        with answered():
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values.tolist()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Around what may fail on any rank: where it did the others leave too, silently, as nobody waits for them."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, RankError):
                with contextlib.suppress(RankError):
                    self.most(1)
            raise
        if self.most(0)[0]:
            raise SystemExit(1)

    def check_same(self, values: Mapping[str, Any], but: str) -> None:
        """Raises InputError on a rank whose values aren't rank 0's: `name value: rank 0 has other, <but>`."""
        with self.together():
            first = self.told(dict(values))
            for name in sorted(first.keys() | values.keys()):
                mine, other = values.get(name), first.get(name)
                if mine != other:
                    raise InputError(f"{name} {mine}: rank 0 has {other}, {but}")

    def check_replicas(self, tensors: Mapping[str, Tensor], when: str) -> None:
        """Raises RankError where a tensor isn't the same on all ranks, bit for bit."""
        if self.size == 1:
            return
        sums = torch.stack([_checksum(t) for t in tensors.values()]).cpu()
        both = torch.cat([sums, -sums])
        with answered():
            dist.all_reduce(both, dist.ReduceOp.MAX)
        most, least = both[: len(sums)], -both[len(sums) :]
        differing = [name for name, same in zip(tensors, (most == least).tolist(), strict=True) if not same]
        if differing:
            raise self.shared(
                RankError(
                    f"{when}: {differing[0]} and {len(differing) - 1} more tensors aren't the same on all ranks, as "
                    "they should be; nothing was saved. Continue from the last checkpoint"
                )
            )

    def shared(self, error: BaseException) -> BaseException:
        """What to raise for an error that every rank meets: rank 0 tells it, the others leave silently."""
        return error if self.rank == 0 else SystemExit(1)


ALONE = World()


def _checksum(t: Tensor) -> Tensor:
    flat = t.detach().contiguous().view(-1)
    return flat.view(torch.int32 if t.element_size() % 4 == 0 else torch.uint8).sum(dtype=torch.int64)


def pick_device(name: str, world: World = ALONE) -> torch.device:
    """ "auto" is the GPU where there is one; of several ranks each takes its own. Raises InputError for a device that
    isn't there."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: unknown, expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= gpus):
        raise InputError(f"--device {name}: not available here, expected cpu" + " or cuda" * (gpus > 0))
    if world.size == 1 or device.type == "cpu":
        return device
    if device.index is not None:
        raise InputError(f"--device {name}: each rank takes a GPU of its own, expected auto, cuda or cpu")
    if world.local_size > gpus:
        raise InputError(
            f"torchrun started {world.local_size} ranks on this machine, which has {gpus} GPUs; "
            f"expected --nproc-per-node={gpus}, or --device cpu"
        )
    device = torch.device("cuda", world.local_rank)
    torch.cuda.set_device(device)
    return device


class Watchdog:
    """Ends the process, with a line, where a step takes longer than ranks wait for each other. A rank that dies leaves
    the others' GPUs within a replayed graph, of which NCCL's own time-out knows nothing."""

    def __init__(self, world: World, limit: float | None = None):
        self.world = world
        self.limit = limit or 1.1 * world.timeout + 5  # where a collective gives up by itself, its error says more
        self._until: float | None = None
        self._ended = threading.Event()
        if world.size > 1:
            threading.Thread(target=self._watch, daemon=True).start()

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        self._until = time.monotonic() + self.limit
        try:
            yield
        finally:
            self._until = None

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *exc_info) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self.limit / 10)):
            until = self._until
            if until is not None and time.monotonic() > until:
                line = f"gankern: rank {self.world.rank}: error: no step has ended for {self.limit:.0f} s"
                print(line + "; has another rank died?", file=sys.stderr, flush=True)
                os._exit(1)


class Council:
    """What the ranks do after a step: stop for a signal that reached any of them, save when rank 0's clock says so.

    They ask each other some four times a second, at steps that they settled the time before; between, nobody waits.
    """

    SECONDS = 0.25

    def __init__(self, world: World, step: int):
        self.world, self._next = world, step + 1
        self._last = (step, time.monotonic())

    def after(self, step: int, signal: int, save: bool, *, last: bool = False) -> tuple[int, bool]:
        """The signal to stop for, and whether to save. `last`: there is no step to put it off to."""
        if step < self._next and not last:
            return 0, False
        before, then = self._last
        self._last = (step, time.monotonic())
        pace = self.SECONDS * (step - before) / max(self._last[1] - then, 1e-6)  # no steps, no pace: asks at the next
        mine = [signal, save, min(max(int(pace), 1), 100)]
        signal, save, steps = self.world.most(*(mine if self.world.rank == 0 else [signal, 0, 0]))
        self._next = step + (steps if self.world.size > 1 else 1)
        return signal, bool(save)
