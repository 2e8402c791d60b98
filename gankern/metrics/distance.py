"""Sliced Wasserstein distance (SWD) between two sets of images.

Karras et al. 2018, "Progressive Growing of GANs", section 5: 7 x 7 patches of every Laplacian level, normalised per
colour channel, compared by the Wasserstein-1 distance of their projections on 4 x 128 random directions.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from gankern.metrics._images import Images, check_images, default_device
from gankern.metrics.descriptors import PATCH, DescriptorCollector

Source: TypeAlias = Images | DescriptorCollector  # a set of images, or the patches collected from one

_PROJECTIONS_BYTES = 2**28  # of one set: decides how many directions are projected and sorted at a time
_ROWS = 32768  # descriptors in float32 at a time, 19 MB: fewer, and threads spend their time meeting each other


def swd(
    real: Source,
    fake: Source,
    seed: int = 0,
    *,
    device: torch.device | str | None = None,
    num_repeats: int = 4,
    num_directions: int = 128,
) -> dict[str, float]:
    """SWD x 1000 of every level, {"128": ..., "64": ..., ..., "16": ..., "avg": ...}: Karras et al. 2018.

    `real` and `fake` are uint8 [N, C, R, R], C 1 or 3, R a power of two >= 16: arrays, memory maps, tensors, or full
    `DescriptorCollector`s. Deterministic for a seed on one device; `device` None is the GPU where there is one. At
    small N the distance of two sets of reals is far from 0: see `swd_with_floor`. ValueError for sets that don't match.
    """
    return compare_sets({"real": real, "fake": fake}, seed, device, num_repeats * num_directions)[0]


def sliced_wasserstein(
    x: np.ndarray | torch.Tensor,
    y: np.ndarray | torch.Tensor,
    *,
    num_repeats: int = 4,
    num_directions: int = 128,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> float:
    """Mean Wasserstein-1 distance of the projections of x and y [N, D] on num_repeats * num_directions directions.

    Nothing is normalised here. Rabin et al. 2011. ValueError unless both are [N, D] of one shape.
    """
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    if x.ndim != 2 or x.shape != y.shape or 0 in x.shape:
        raise ValueError(f"x, y: expected two sets [N, D] of one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    device = default_device(device)
    sets = [_Descriptors(v.to(device), torch.ones(x.shape[1]), torch.zeros(x.shape[1])) for v in (x, y)]
    return _distances(sets[0], sets[1:], _draw_directions(num_repeats * num_directions, x.shape[1], seed))[0]


def compare_sets(
    sources: dict[str, Source], seed: int, device: torch.device | str | None, num_directions: int
) -> list[dict[str, float]]:
    """What `swd` returns, between the first of at most three named sources and each of the others."""
    device = default_device(device)
    _check_same_size(sources)
    collectors = [
        source if isinstance(source, DescriptorCollector) else _collect(source, 3 * seed + i, device)
        for i, source in enumerate(sources.values())
    ]
    directions = _draw_directions(num_directions, collectors[0].channels * PATCH**2, seed)
    scores = [{} for _ in collectors[1:]]
    for resolution in collectors[0].resolutions:
        distances = _level_distances(collectors, resolution, directions, device)
        for score, distance in zip(scores, distances, strict=True):
            score[str(resolution)] = 1000 * distance
    for score in scores:
        score["avg"] = sum(score.values()) / len(score)
    return scores


def _level_distances(
    collectors: list[DescriptorCollector], resolution: int, directions: torch.Tensor, device: torch.device
) -> list[float]:
    first, *others = (_Descriptors.normalised(c.level(resolution).to(device), c.channels) for c in collectors)
    return _distances(first, others, directions)


@dataclass
class _Descriptors:
    """Descriptors x * scale - offset, kept as x [N, D], whatever its type; scale and offset are [D]."""

    x: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor

    @classmethod
    def normalised(cls, x: torch.Tensor, channels: int) -> "_Descriptors":
        """Every channel of integers [N, C * 49] to mean 0 and deviation 1 over the set; a constant channel to 0."""
        total, squares = [torch.zeros(channels, dtype=torch.int64, device=x.device) for _ in range(2)]
        for rows in x.split(_ROWS):
            rows = rows.int().unflatten(1, (channels, -1))
            total += rows.sum(dim=(0, 2))
            squares += rows.square().sum(dim=(0, 2))
        n = x.numel() // channels
        # Exact in Python's integers, so that it can't depend on the order of the images.
        variance = [(n * q - t * t) / n**2 for t, q in zip(total.tolist(), squares.tolist(), strict=True)]
        scale = torch.tensor([v**-0.5 if v > 0 else 0.0 for v in variance], dtype=torch.float64)
        offset = scale * total.cpu() / n
        each = x.shape[1] // channels
        return cls(x, scale.repeat_interleave(each), offset.repeat_interleave(each))

    def sorted_projections(self, directions: torch.Tensor) -> torch.Tensor:
        """Projections on directions [K, D], each sorted: float32 [K, N] on the device of x."""
        weight = (directions * self.scale).float().to(self.x.device)
        shift = -(directions @ self.offset.to(directions)).float().to(self.x.device)[:, None]
        out = torch.empty(len(directions), len(self.x), device=self.x.device)
        for i in range(0, len(self.x), _ROWS):
            out[:, i : i + _ROWS] = torch.addmm(shift, weight, self.x[i : i + _ROWS].float().T)
        return _sort_rows(out)


def _distances(first: _Descriptors, others: Sequence[_Descriptors], directions: torch.Tensor) -> list[float]:
    """Mean absolute difference of sorted projections between `first` and each of `others`."""
    totals = [0.0] * len(others)
    for chunk in directions.split(max(1, _PROJECTIONS_BYTES // (4 * len(first.x)))):
        p = first.sorted_projections(chunk)
        for i, other in enumerate(others):
            gaps = other.sorted_projections(chunk).sub_(p).abs_()
            totals[i] += gaps.mean(dim=1).double().sum().item()
    return [total / len(directions) for total in totals]


def _sort_rows(x: torch.Tensor) -> torch.Tensor:
    if x.is_cuda:
        return x.sort(dim=1).values
    # On the CPU torch.sort makes 64-bit indices too; NumPy sorts in place, twice as fast, and lets threads run.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(np.ndarray.sort, x.numpy()))
    return x


def _draw_directions(count: int, dim: int, seed: int) -> torch.Tensor:
    """Uniform on the unit sphere: float64 [count, dim]."""
    if count < 1:
        raise ValueError(f"num_repeats * num_directions: expected at least 1, got {count}")
    directions = torch.from_numpy(np.random.default_rng(seed).standard_normal((count, dim)))
    return directions / directions.norm(dim=1, keepdim=True)


def _check_same_size(sources: dict[str, Source]) -> None:
    """ValueError, naming every source, unless all have as many images of one size."""
    sizes = {
        name: source.shape if isinstance(source, DescriptorCollector) else check_images(name, source)
        for name, source in sources.items()
    }
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {list(size)}" for name, size in sizes.items())
        raise ValueError(f"expected as many images of one size in each set, got {listed}")


def _collect(images: Images, seed: int, device: torch.device) -> DescriptorCollector:
    n, channels, height, width = images.shape
    if height != width:
        raise ValueError(f"images: expected square ones, got {height} x {width}")
    collector = DescriptorCollector(height, channels, n, seed, device=device)
    collector.add(images)
    return collector
