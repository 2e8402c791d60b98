"""Decodes batches of a dataset in worker processes, ahead of their use and in order."""

import logging
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from gankern.data.dataset import ImageDataset
from gankern.data.decode import BadImage
from gankern.errors import InputError

SHARED_MEMORY = Path("/dev/shm")
PREFETCH = 2  # batches that a worker keeps ready

log = logging.getLogger(__name__)


class Decoded(NamedTuple):
    """uint8 [B, C, R, R], and (name, reason) of the images that couldn't be decoded and are blank in it."""

    images: torch.Tensor
    bad: list[tuple[str, str]]


def decode_batches(
    dataset: ImageDataset, batches: Iterable[Sequence[int]], batch_size: int, *, workers: int
) -> Iterator[Decoded]:
    """Decodes each list of at most `batch_size` items, in order; `batches` may be endless.

    Items 0..N-1 are the images, items N..2N-1 the same mirrored. `workers=0` decodes in this process.
    InputError: a worker died, or shared memory is too small for one batch. Closing the generator ends the workers.
    """
    shape = (batch_size, dataset.channels, dataset.resolution, dataset.resolution)
    if workers == 0:
        for items in batches:
            images = torch.empty((len(items), *shape[1:]), dtype=torch.uint8)
            yield Decoded(images, _decode_into(images.numpy(), dataset, items))
        return
    slots = _workers_that_fit(workers, math.prod(shape)) * PREFETCH + 1  # what is on its way, and the one being read
    ring = torch.empty((slots, *shape), dtype=torch.uint8).share_memory_()
    jobs = ((number % slots, items) for number, items in enumerate(batches))
    for slot, count, bad in _run_workers(_RingDecoder(dataset, ring), jobs, slots // PREFETCH):
        images = torch.empty((count, *shape[1:]), dtype=torch.uint8)
        np.copyto(images.numpy(), ring[slot, :count].numpy())  # torch would wake its threads for this
        yield Decoded(images, bad)


def _decode_into(out: np.ndarray, dataset: ImageDataset, items: Sequence[int]) -> list[tuple[str, str]]:
    bad = []
    for row, item in zip(out, items, strict=True):
        index = item % len(dataset)
        try:
            image = dataset.decode(index)
            row[:] = image if item < len(dataset) else image[:, :, ::-1]
        except BadImage as error:
            row[:] = 0
            bad.append((dataset.names[index], str(error)))
    return bad


class _RingDecoder(Dataset):
    """Runs in the workers: decodes into a slot of shared memory, which costs far less than sending new tensors."""

    def __init__(self, dataset: ImageDataset, ring: torch.Tensor):
        self.dataset, self.ring = dataset, ring  # ring: [slots, B, C, R, R]

    def __getitems__(self, job: tuple[int, Sequence[int]]) -> tuple[int, int, list[tuple[str, str]]]:
        slot, items = job
        return slot, len(items), _decode_into(self.ring[slot, : len(items)].numpy(), self.dataset, items)


def _run_workers(decoder: _RingDecoder, jobs: Iterable[tuple], workers: int) -> Iterator[tuple]:
    loader = DataLoader(
        decoder,
        batch_sampler=jobs,
        num_workers=workers,
        collate_fn=_as_is,
        prefetch_factor=PREFETCH,
        multiprocessing_context=_clean_context(),
        worker_init_fn=_follow_parent,
        generator=torch.Generator(),  # else each start draws a seed from torch's random state, which a run owns
    )
    with _apart_from_main(), _interrupt_held_back():
        iterator = iter(loader)
    try:
        yield from iterator
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            f"{decoder.dataset.source.path}: a worker process that decodes images died, most likely for lack of "
            f"memory; use fewer workers ({str(error).splitlines()[0]})"
        ) from error


def _workers_that_fit(wanted: int, batch_bytes: int) -> int:
    if not SHARED_MEMORY.is_dir():
        return wanted
    free = shutil.disk_usage(SHARED_MEMORY).free
    fit = (free // batch_bytes - 1) // PREFETCH
    if fit < 1:
        raise InputError(
            f"{SHARED_MEMORY}: {free / 2**20:.0f} MiB of shared memory free, one worker's batches need "
            f"{(PREFETCH + 1) * batch_bytes / 2**20:.0f}; enlarge it (docker run --shm-size) or use no workers"
        )
    if fit < wanted:
        log.warning("%s has room for the batches of %d workers, not %d", SHARED_MEMORY, fit, wanted)
    return min(wanted, fit)


def _clean_context() -> multiprocessing.context.BaseContext:
    # Never fork this process: it may hold CUDA. A fork server imports torch once and its children start at once.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@contextmanager
def _apart_from_main() -> Iterator[None]:
    """Processes started here don't import the main script: they need nothing of it, and it may lack a guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _interrupt_held_back() -> Iterator[None]:
    """Processes started here never see Ctrl-C; this one sees it when the block ends."""
    resource_tracker.ensure_running()  # else it starts within the block and lifts the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow_parent(_worker: int) -> None:
    """In a worker: only the parent decides when to end, and its end is the worker's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for a fork server that somebody else started

    def end_with_parent() -> None:  # torch watches the fork server instead, which lives as long as its workers
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _as_is(result: tuple) -> tuple:
    return result
