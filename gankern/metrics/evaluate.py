"""Scores of a generator against a dataset, in bounded memory: what snapshots and `gankern metrics` share."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gankern.data import ImageDataset
from gankern.errors import InputError
from gankern.metrics._images import Images
from gankern.metrics.descriptors import DescriptorCollector
from gankern.metrics.floor import SWDScore, disjoint_halves, swd_with_floor
from gankern.metrics.structural import ms_ssim_diversity
from gankern.models.sampling import sample_images

MAX_IMAGES = 16384
MIN_SWD_RESOLUTION = 16
MIN_MS_SSIM_RESOLUTION = 16
_REAL_BATCH = 64


def conditions(dataset: ImageDataset, network: nn.Module, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Latents [n, z_dim], and labels [n, c_dim] drawn from the dataset: the same at every call.

    Raises InputError where the dataset's labels aren't what the network is conditioned on.
    """
    rng = np.random.RandomState(seed)
    latents = torch.from_numpy(rng.randn(n, network.z_dim)).float()
    if network.c_dim == 0:
        return latents, torch.empty(n, 0)
    if dataset.label_dim != network.c_dim:
        raise InputError(
            f"{dataset.name}: labels of {dataset.label_dim} numbers, but the network is conditioned on {network.c_dim}"
        )
    return latents, torch.from_numpy(dataset.label_rows(rng.randint(len(dataset), size=n)))


def check_resolution(dataset: ImageDataset, metric: str) -> None:
    """InputError for images that are too small for "swd" or "ms_ssim"."""
    least = {"swd": MIN_SWD_RESOLUTION, "ms_ssim": MIN_MS_SSIM_RESOLUTION}[metric]
    if dataset.resolution < least:
        raise InputError(f"{metric}: images are {dataset.resolution} px, expected {least} or more")


def decoded(dataset: ImageDataset, indices: np.ndarray) -> Iterator[np.ndarray]:
    """uint8 batches of the reals of those indices, in their order."""
    for part in np.array_split(indices, -(-len(indices) // _REAL_BATCH)):
        yield np.stack([dataset.image(i) for i in part])


def collect(
    batches: Iterable[Images], dataset: ImageDataset, count: int, seed: int, device: torch.device | str | None
) -> DescriptorCollector:
    """The patches of `count` images, reals or samples."""
    collector = DescriptorCollector(dataset.resolution, dataset.channels, count, seed, device=device)
    for images in batches:
        collector.add(images)
    return collector


class Ranks(Protocol):
    """Processes that make samples and descriptors together."""

    rank: int

    def share(self, n: int) -> slice:
        """Which of n images are this process's."""

    def gather_(self, tensor: Tensor) -> None:
        """Rank 0 gets the rows of the others' shares."""


class _Alone:
    rank = 0

    def share(self, n: int) -> slice:
        return slice(0, n)

    def gather_(self, tensor: Tensor) -> None: ...


class Evaluator:
    """Scores over `count` samples (default: half of the reals, at most 16384), always of the same latents, labels and
    reals, so that scores of several networks compare. `device` None: the GPU where there is one. Of SWD's images
    each of `ranks` makes its share.

    Raises InputError where the dataset has fewer than 2·count images.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        count: int | None = None,
        *,
        seed: int = 0,
        batch: int = 32,
        device: torch.device | str | None = None,
        ranks: Ranks | None = None,
    ):
        self.dataset, self.seed, self.batch, self.device = dataset, seed, batch, device
        self.ranks = ranks or _Alone()
        count = min(len(dataset) // 2, MAX_IMAGES) if count is None else count
        self.halves = disjoint_halves(len(dataset), count, seed)
        self.count = count
        self._reals: list[DescriptorCollector] | None = None

    def fakes(self, network: nn.Module, part: slice = slice(None)) -> Iterator[Tensor]:
        """uint8 batches of `count` samples with constant noise, or of a part of them."""
        latents, labels = conditions(self.dataset, network, self.count, self.seed)
        return sample_images(network, latents[part], labels[part], self.batch)

    def swd(self, network: nn.Module) -> SWDScore | None:
        """SWD of the network's samples, with the floor of as many reals against other reals; None on ranks but 0."""
        check_resolution(self.dataset, "swd")
        part = self.ranks.share(self.count)
        if self._reals is None:
            sets = [decoded(self.dataset, half[part]) for half in self.halves]
            self._reals = [self._collect(batches, self.seed + i) for i, batches in enumerate(sets)]
        fakes = self._collect(self.fakes(network, part), self.seed + 2)
        return None if self.ranks.rank else swd_with_floor(*self._reals, fakes, device=self.device)

    def ms_ssim(self, network: nn.Module) -> tuple[float, float]:
        """Mean MS-SSIM of pairs of samples, and of as many pairs of reals: lower means more diverse."""
        check_resolution(self.dataset, "ms_ssim")
        if self.count < 2:
            raise InputError(f"ms_ssim: pairs need 2 images a set or more, got {self.count}")
        shuffled = np.random.default_rng(self.seed).permutation(self.halves[0])  # neighbours may be of one kind
        return (
            ms_ssim_diversity(self.fakes(network), device=self.device),
            ms_ssim_diversity(decoded(self.dataset, shuffled), device=self.device),
        )

    def _collect(self, batches: Iterable[Images], seed: int) -> DescriptorCollector:
        """The patches of this rank's images; on rank 0 those of all."""
        collector = DescriptorCollector(
            self.dataset.resolution, self.dataset.channels, self.count, seed, device=self.device
        )
        part = self.ranks.share(self.count)
        if part.start < part.stop:
            collector.skip(part.start)
            for images in batches:
                collector.add(images)
        collector.complete(self.ranks.gather_)
        return collector
