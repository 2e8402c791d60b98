"""SWD beside its floor, the distance between two disjoint sets of reals of the same size."""

from dataclasses import dataclass

import numpy as np
import torch

from gankern.errors import InputError
from gankern.metrics.distance import Source, compare_sets


@dataclass(frozen=True)
class SWDScore:
    """SWD x 1000 of fakes and, the floor, of other reals from the same reals; keys: resolutions, then "avg"."""

    levels: dict[str, float]
    floor: dict[str, float]
    num_images: int  # in each of the sets

    def __str__(self) -> str:
        """One line, every figure with its floor."""
        levels = ", ".join(f"{k}: {v:.2f} ({self.floor[k]:.2f})" for k, v in self.levels.items() if k != "avg")
        average = f"{self.levels['avg']:.2f} (floor {self.floor['avg']:.2f}, {self.num_images} images)"
        return f"SWD x 1000: {average}; {levels}"

    def table(self) -> str:
        """Three lines: levels, fakes, floor."""
        rows = [
            (f"SWD x 1000, {self.num_images} images", list(self.levels)),
            ("fake to real", [f"{v:.2f}" for v in self.levels.values()]),
            ("real to real (floor)", [f"{v:.2f}" for v in self.floor.values()]),
        ]
        return "\n".join(f"{label:<26}" + "".join(f"{cell:>9}" for cell in cells) for label, cells in rows)


def swd_with_floor(
    real_a: Source, real_b: Source, fake: Source, seed: int = 0, *, device: torch.device | str | None = None
) -> SWDScore:
    """SWD from `real_a` to `fake` and, the floor, to `real_b`, along the same directions; inputs as for `swd`.

    `real_a` and `real_b` share no image (`disjoint_halves`) and have as many as `fake`. ValueError for sets that don't
    match.
    """
    sources = {"real_a": real_a, "fake": fake, "real_b": real_b}
    levels, floor = compare_sets(sources, seed, device, 4 * 128)
    return SWDScore(levels, floor, real_a.shape[0])


def random_order(num_reals: int, seed: int = 0) -> np.ndarray:
    """Indices of all reals, shuffled: every draw of reals takes the first ones of it."""
    return np.random.default_rng(seed).permutation(num_reals)


def disjoint_halves(num_reals: int, count: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices of two random disjoint sets of `count` of `num_reals` images, each sorted; None: as many as there are.

    InputError if there are fewer than 2 * count images.
    """
    count = num_reals // 2 if count is None else count
    if count < 1 or 2 * count > num_reals:
        raise InputError(f"SWD and its floor over {count} images need {2 * max(count, 1)} reals: found {num_reals}")
    order = random_order(num_reals, seed)
    return np.sort(order[:count]), np.sort(order[count : 2 * count])
