"""ProGAN's schedule: which resolution a run is at, how far it has faded in, and the batch and learning rate there.

    lod = log2(R / start) − phase − max(shown in the phase − stable, 0) / fade,  at least 0

A phase lasts stable + fade images: it trains a resolution, then fades the next one in. Karras et al. 2018
(arXiv:1710.10196), appendix A. Pure functions of the images shown; what acts on them is in progan.py.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from gankern.errors import InputError

BATCHES = {
    1: "4-16:128,32:64,64:32,128:16,256:8,512-:4",
    2: "4-8:256,16:128,32:64,64:32,128:16,256-:8",
    4: "4:512,8:256,16:128,32:64,64:32,128-:16",
    8: "4:512,8:256,16:128,32:64,64-:32",
}
RATES = {
    1: "1024:0.0015",
    2: "512:0.0015,1024:0.002",
    4: "256:0.0015,512:0.002,1024:0.003",
    8: "128:0.0015,256:0.002,512-1024:0.003",
}
"""The published tables, by the number of GPUs."""


def lod_at(nimg: int, top_lod: int, stable: float, fade: float) -> float:
    """The level of detail after `nimg` images, from top_lod at the start to 0; a phase is `stable` + `fade` images."""
    phase, within = divmod(nimg, stable + fade)
    return max(top_lod - phase - (max(within - stable, 0) / fade if fade else 0), 0.0)


@dataclass(frozen=True)
class Place:
    """What a step trains: the resolution (`stage` 0 is 4x4) that `lod` stands for, and its settings.

    `lr` None: no entry in the table, so the run's own.
    """

    lod: float
    stage: int
    resolution: int
    batch: int
    lr: float | None = None

    @property
    def fade(self) -> float:
        """How much of the resolution below is blended in, in [0, 1)."""
        return self.lod - math.floor(self.lod)

    def __str__(self) -> str:
        now = f"{self.resolution}x{self.resolution}"
        if not self.fade:
            return f"{now} stable"
        below = self.resolution // 2
        return f"{below}x{below} → {now} fade {100 * (1 - self.fade):.0f}%"


@dataclass(frozen=True)
class Schedule:
    """Growth from `start` to `resolution`; batches and rates by resolution, lengths in images."""

    resolution: int
    start: int
    stable: float
    fade: float
    batches: dict[int, int]
    rates: dict[int, float]

    @property
    def full(self) -> float:
        """Images after which the full resolution is trained alone."""
        return (self.stable + self.fade) * math.log2(self.resolution // self.start)

    def at(self, nimg: int) -> Place:
        """The place of a step that begins after `nimg` images."""
        lod = lod_at(nimg, int(math.log2(self.resolution // self.start)), self.stable, self.fade)
        return self.place(lod)

    def place(self, lod: float) -> Place:
        r = self.resolution >> math.floor(lod)
        return Place(lod, r.bit_length() - 3, r, self.batches[r], self.rates.get(r))


def resolutions(start: int, last: int) -> list[int]:
    """Powers of two, both ends among them."""
    return [2**i for i in range(start.bit_length() - 1, last.bit_length())]


_ENTRY = re.compile(r"(\d+)(?:(-)(\d*))?:([^:]+)")


def parse_table(name: str, text: str, number: Callable[[str], Any]) -> list[tuple[int, float, Any]]:
    """ "4-16:128,32:64,64-:32" -> [(4, 16, 128), (32, 32, 64), (64, inf, 32)], sorted. Raises InputError naming the
    option for anything else."""
    rows = []
    for part in text.split(","):
        match = _ENTRY.fullmatch(part.strip())
        try:
            first = int(match[1])
            last = first if not match[2] else int(match[3]) if match[3] else math.inf
            value = number(match[4])
        except (TypeError, ValueError):
            raise InputError(f"{name} {text}: expected entries such as 4-16:128,32:64,64-:32") from None
        for end in (first, last):
            if end != math.inf and (end < 4 or end & (end - 1)):
                raise InputError(f"{name} {text}: {end} is no resolution, expected powers of two from 4")
        if not 0 < value < math.inf or last < first:
            raise InputError(f"{name} {text}: {part.strip()} can't be, expected RESOLUTION:NUMBER with a number > 0")
        rows.append((first, last, value))
    rows.sort()
    for (_, last, _), (first, _, _) in pairwise(rows):
        if first <= last:
            raise InputError(f"{name} {text}: two entries for {first} px")
    return rows


def table_text(rows: list[tuple[int, float, Any]]) -> str:
    """What `parse_table` reads, always of the same form."""
    ends = ("" if first == last else "-" if last == math.inf else f"-{last}" for first, last, _ in rows)
    return ",".join(f"{first}{end}:{value}" for (first, _, value), end in zip(rows, ends, strict=True))


def look_up(rows: list[tuple[int, float, Any]], wanted: list[int]) -> dict[int, Any]:
    """The table's values at these resolutions; those without an entry are left out."""
    return {r: value for r in wanted for first, last, value in rows if first <= r <= last}
