"""The endless stream of training batches: gathered from the decoded array where it fits memory, else from workers."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from gankern.data.cache import load_array
from gankern.data.dataset import ImageDataset
from gankern.data.parallel import Progress, available_cores
from gankern.data.sampler import EndlessSampler
from gankern.data.workers import Decoded, decode_batches

MAX_BUDGET = 8 << 30
MAX_WORKERS = 16


class Batch(NamedTuple):
    """uint8 [B, C, R, R], labels [B, label_dim], and which of the images are yet to be mirrored, bool [B]."""

    images: torch.Tensor
    labels: torch.Tensor
    mirrored: torch.Tensor


class BatchStream:
    """Endless batches of a dataset: `images, labels = next(stream)`.

    Images are uint8 [B, C, R, R], labels float32 [B, label_dim]. The same state gives the same next batch, whether
    images come from the cache or from any number of workers.

    `mirror`: each image counts twice, once mirrored. `cache`: "auto" decodes all images once, into the cache folder,
    if they fit `memory_budget` bytes (default: half of the free memory, at most 8 GiB); "on" always, "off" never.
    `workers`: processes that decode where there is no cache, 0 for none (default: the cores of this rank, at most 16).
    `progress(done, total)` follows the decoding into the cache. For batches on a GPU see feed.py.

    InputError: an image that can't be decoded, no room for the cache, a worker that died. Close the stream, or use it
    in a `with`, to end its workers.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        mirror: bool = False,
        cache: Literal["auto", "on", "off"] = "auto",
        memory_budget: int | None = None,
        workers: int | None = None,
        progress: Progress | None = None,
    ):
        _check_batch_size(batch_size)
        if cache not in ("auto", "on", "off"):
            raise ValueError(f"cache: expected 'auto', 'on' or 'off', got {cache!r}")
        self.batch_size = batch_size
        self._sampler = EndlessSampler((1 + mirror) * len(dataset), seed=seed, rank=rank, world_size=world_size)
        self._decoded: Iterator[Decoded] | None = None
        self._cache, self._budget, self._wanted_workers, self._progress = cache, memory_budget, workers, progress
        self._open(dataset)

    def _open(self, dataset: ImageDataset) -> None:
        self.dataset = dataset
        self._array: np.ndarray | None = None
        budget = default_budget() if self._budget is None else self._budget
        self.cached = self._cache == "on" or (self._cache == "auto" and dataset.nbytes <= budget)
        if self.cached:
            self._array = load_array(dataset, self._wanted_workers, self._progress)
            self.workers = 0
        else:
            self.workers = default_workers() if self._wanted_workers is None else self._wanted_workers

    def __iter__(self) -> "BatchStream":
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels, mirrored = self.take()
        if mirrored.any():
            rows, now = images.numpy(), mirrored.numpy()
            rows[now] = rows[now, :, :, ::-1]
        return images, labels

    def take(self, allocate: Callable[[tuple[int, ...]], torch.Tensor] | None = None) -> Batch:
        """The next batch, of which some images have yet to be mirrored; they may lie in what `allocate(shape)` gives, a
        uint8 tensor."""
        if self._array is None:
            images = self._next_decoded()
            items = self._sampler.take(self.batch_size)
            mirrored = np.zeros(len(items), bool)  # the workers have done that
        else:
            items = self._sampler.take(self.batch_size)
            shape = (len(items), *self._array.shape[1:])
            images = torch.empty(shape, dtype=torch.uint8) if allocate is None else allocate(shape)
            self._gather(items, images.numpy())
            mirrored = items >= len(self.dataset)
        labels = torch.from_numpy(self.dataset.label_rows(items % len(self.dataset)))
        return Batch(images, labels, torch.from_numpy(mirrored))

    def change(self, batch_size: int, dataset: ImageDataset | None = None) -> None:
        """Goes on with the next image in batches of another size; with `dataset`, the same images at another
        resolution. Costs nothing where nothing changes; else workers begin anew."""
        _check_batch_size(batch_size)
        if dataset is not None and dataset is not self.dataset:
            if len(dataset) != len(self.dataset):
                raise ValueError(f"dataset: expected the same {len(self.dataset)} images, got {len(dataset)}")
            self.close()
            self._open(dataset)
        if batch_size != self.batch_size:
            self.close()
            self.batch_size = batch_size

    def state_dict(self) -> dict[str, int]:
        """The position after the last batch handed out; of all ranks together, and free of their number."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on from another stream's state. InputError if it drew from other data or with another seed."""
        self.close()
        self._sampler.load_state_dict(state)

    def close(self) -> None:
        """Ends the workers; the next batch starts them again."""
        if self._decoded is not None:
            self._decoded.close()
            self._decoded = None

    def __enter__(self) -> "BatchStream":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def _gather(self, items: np.ndarray, rows: np.ndarray) -> None:
        np.take(self._array, items % len(self.dataset), axis=0, out=rows, mode="clip")  # "raise" would copy twice

    def _next_decoded(self) -> torch.Tensor:
        if self._decoded is None:
            self._decoded = decode_batches(
                self.dataset,
                _plan(self._sampler.copy(), self.batch_size),
                self.batch_size,
                workers=self.workers,
            )
        try:
            images, bad = next(self._decoded)
            if bad:
                raise self.dataset.bad(bad)
        except BaseException:
            self.close()
            raise
        return images


def _check_batch_size(value: int) -> None:
    if value < 1:
        raise ValueError(f"batch_size: expected at least 1, got {value}")


def default_workers() -> int:
    """The cores that this rank may count as its own, at most 16."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun
    return min(MAX_WORKERS, max(1, available_cores() // ranks_here))


def default_budget() -> int:
    """Half of the memory that is free now, at most 8 GiB."""
    return min(MAX_BUDGET, _free_memory() // 2)


def _free_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _plan(sampler: EndlessSampler, batch_size: int) -> Iterator[list[int]]:
    while True:
        yield sampler.take(batch_size).tolist()
