"""SWD and MS-SSIM at the settings of Karras et al. 2018, "Progressive Growing of GANs", laid out as its Table 1."""

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gankern.data import ImageDataset
from gankern.errors import InputError
from gankern.metrics import METRICS
from gankern.metrics.descriptors import DescriptorCollector
from gankern.metrics.distance import swd
from gankern.metrics.evaluate import check_resolution, collect, conditions, decoded
from gankern.metrics.floor import random_order, swd_with_floor
from gankern.metrics.structural import ms_ssim_diversity
from gankern.models.sampling import sample_images

IMAGES = 16384  # of SWD; 128 patches of 7 x 7 each at every Laplacian level down to 16 x 16, 4 x 128 directions
PAIRS = 10000  # of MS-SSIM

Levels = dict[str, float]  # SWD x 1000 by resolution, then "avg"


@dataclass(frozen=True)
class ProganScores:
    """A row of Table 1, and what reals score against other reals. None: not asked for, or too few reals for it."""

    images: int  # of SWD, in each set; 0 if it wasn't asked for
    pairs: int  # of MS-SSIM; 0 likewise
    reals: int  # that the dataset has
    swd: Levels | None = None
    swd_floor: Levels | None = None
    ms_ssim: float | None = None
    ms_ssim_real: float | None = None

    def table(self, label: str = "network") -> str:
        """A row for the network and one for reals under the columns of Table 1; then the number of images."""
        levels, floor = self.swd or {}, self.swd_floor or {}
        columns = [("Avg" if key == "avg" else key, _cell(levels[key], 2), _cell(floor.get(key), 2)) for key in levels]
        if self.pairs:
            columns.append(("MS-SSIM", _cell(self.ms_ssim, 4), _cell(self.ms_ssim_real, 4)))
        width = max(len(label), len("reals"))
        lines = [" " * width + "SWD x 10^3".center(9 * len(levels)).rstrip()] if levels else []
        for name, cells in zip(("", label, "reals"), zip(*columns, strict=True), strict=True):
            lines.append(name.ljust(width) + "".join(f"{cell:>9}" for cell in cells))
        return "\n".join([*lines, *self._notes()])

    def _notes(self) -> list[str]:
        counts = [(f"SWD of {self.images:,} images", self.images, IMAGES)] if self.images else []
        counts += [(f"MS-SSIM of {self.pairs:,} pairs", self.pairs, PAIRS)] if self.pairs else []
        text = ", ".join(text for text, _, _ in counts)
        if all(count == full for _, count, full in counts):
            notes = [f"{text}, as in the paper"]
        else:
            notes = [f"a trial: {text}; the paper takes {' and '.join(f'{full:,}' for *_, full in counts)}"]
        lacking = [f"SWD takes {2 * self.images:,}"] if self.images and not self.swd_floor else []
        lacking += [f"MS-SSIM takes {2 * self.pairs:,}"] if self.pairs and self.ms_ssim_real is None else []
        return notes + ([f"-: of reals, {' and '.join(lacking)}; the dataset has {self.reals:,}"] if lacking else [])


def progan_protocol(
    dataset: ImageDataset,
    network: nn.Module,
    *,
    num: int | None = None,
    metrics: Iterable[str] = METRICS,
    seed: int = 0,
    batch: int = 32,
    device: torch.device | str | None = None,
) -> ProganScores:
    """SWD between 16384 samples and as many reals, drawn without repetition; MS-SSIM of 10000 pairs of samples.

    `num`: of fewer images, for a trial. Both metrics see one stream of samples. Reals against other reals are scored
    too where the dataset has as many. Patches are collected batch by batch: two sets of 16384 images peak at 2.6 GiB of
    host memory at 32 px; each set adds 0.6 GB for each doubling past 64 px.
    InputError: fewer reals than SWD takes (an image drawn twice would make it another metric), images too small, a
    `num` out of range.
    """
    images, pairs = _counts(num, tuple(metrics), dataset)
    latents, labels = conditions(dataset, network, max(images, 2 * pairs), seed)
    samples = sample_images(network, latents, labels, batch)
    collector = None
    if images:
        collector = DescriptorCollector(dataset.resolution, dataset.channels, images, seed + 2, device=device)
        samples = _collecting(collector, samples)
    ms_ssim = ms_ssim_diversity(samples, device=device) if pairs else None
    deque(samples, maxlen=0)  # what MS-SSIM hasn't taken

    order = random_order(len(dataset), seed)
    levels, floor = _swd(dataset, order, collector, seed, device) if images else (None, None)
    ms_ssim_real = None
    if 0 < 2 * pairs <= len(dataset):
        ms_ssim_real = ms_ssim_diversity(decoded(dataset, order[: 2 * pairs]), device=device)
    return ProganScores(images, pairs, len(dataset), levels, floor, ms_ssim, ms_ssim_real)


def _counts(num: int | None, metrics: Collection[str], dataset: ImageDataset) -> tuple[int, int]:
    """Images of SWD and pairs of MS-SSIM, 0 for what isn't asked for. InputError where they can't be had."""
    num = 2 * PAIRS if num is None else num
    if not 1 <= num <= 2 * PAIRS:
        raise InputError(f"--num {num}: expected 1 to {2 * PAIRS}, more than --protocol progan takes there is none")
    for metric in metrics:
        check_resolution(dataset, metric)
    images = min(num, IMAGES) if "swd" in metrics else 0
    if images > len(dataset):
        raise InputError(
            f"--protocol progan: SWD takes {images:,} reals, and {dataset.name} has {len(dataset):,}; "
            f"--num {len(dataset)} makes a trial of fewer"
        )
    if "ms_ssim" in metrics and num < 2:
        raise InputError(f"--num {num}: a pair for MS-SSIM needs 2 images")
    return images, num // 2 if "ms_ssim" in metrics else 0


def _swd(
    dataset: ImageDataset,
    order: np.ndarray,
    fakes: DescriptorCollector,
    seed: int,
    device: torch.device | str | None,
) -> tuple[Levels, Levels | None]:
    """SWD of the fakes, and of as many other reals if there are."""
    n = fakes.num_images
    sets = [np.sort(order[first : first + n]) for first in (0, n) if first + n <= len(order)]
    reals = [collect(decoded(dataset, part), dataset, n, seed + i, device) for i, part in enumerate(sets)]
    if len(reals) == 1:
        return swd(*reals, fakes, device=device), None
    score = swd_with_floor(*reals, fakes, device=device)
    return score.levels, score.floor


def _collecting(collector: DescriptorCollector, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The batches as they come, the first of them into the collector until that is full."""
    for batch in batches:
        room = collector.num_images - collector.count
        if room:
            collector.add(batch[:room])
        yield batch


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
