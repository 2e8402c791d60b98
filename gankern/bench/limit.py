"""The least time that a training step can take: rates of one card, and the convolutions of a network at those rates.

The rates were measured on an H100 SXM (bf16 matrix product; a copy, bytes read plus bytes written). At the limit each
convolution reads and writes each activation once, in 2 bytes an element (RGB sums 4), and nothing else runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

FLOPS = 798e12
BYTES = 3.0e12
FEATURES = 512  # at most, in a layer

PASSES = {"stylegan2": (4 + 5 / 8, 8 + 5 / 16), "progan": (4, 8 + 5)}
"""How many times an image goes through the generator and the discriminator, a gradient of a convolution counting as a
pass. Main phases: three passes of G and, for D's fakes, one more; two of D for G's gradient, and three each for reals
and fakes. A regularised phase makes five: path length every 4 steps on half a batch, R1 every 16, WGAN-GP always."""


def seconds(flops: float, size: float) -> float:
    """The limit's time for so many FLOPs and bytes in one kernel."""
    return max(flops / FLOPS, size / BYTES)


@dataclass(frozen=True)
class Limit:
    """An image's share of a training step at the limit."""

    flops: float
    bytes: float
    seconds: float


@dataclass(frozen=True)
class _Convolution:
    """Channels and sides of the input and output; `taps` multiply-adds a pixel of the smaller of the two."""

    inputs: int
    outputs: int
    side_in: int
    side_out: int
    taps: int

    @property
    def flops(self) -> int:
        return 2 * self.inputs * self.outputs * self.taps * min(self.side_in, self.side_out) ** 2

    @property
    def bytes(self) -> int:
        wide = 4 if self.outputs == 3 else 2
        return 2 * self.inputs * self.side_in**2 + wide * self.outputs * self.side_out**2


def _stylegan2(resolution: int, channel_base: int) -> tuple[list[_Convolution], list[_Convolution]]:
    """The skip generator's convolutions and the resnet discriminator's."""
    width = {r: min(channel_base // r, FEATURES) for r in _sides(resolution)}
    C = _Convolution
    G, D = [], [C(3, width[resolution], resolution, resolution, 1)]
    for r in _sides(resolution):
        G += [C(width[r // 2], width[r], r // 2, r, 9)] if r > 4 else []
        G += [C(width[r], width[r], r, r, 9), C(width[r], 3, r, r, 1)]
        if r > 4:
            to = width[r // 2], r, r // 2
            D += [C(width[r], width[r], r, r, 9), C(width[r], *to, 9), C(width[r], *to, 1)]
    return G, [*D, C(width[4] + 1, width[4], 4, 4, 9)]


def _progan(resolution: int, channel_base: int) -> tuple[list[_Convolution], list[_Convolution]]:
    """Both networks at a stage, resampling in the convolution: a kernel of 4x4 with stride 2."""
    width = {r: min(2 * channel_base // r, FEATURES) for r in _sides(resolution)}
    C = _Convolution
    G, D = [], [C(3, width[resolution], resolution, resolution, 1)]
    for r in _sides(resolution):
        G += [C(width[r // 2], width[r], r // 2, r, 16)] if r > 4 else []
        G += [C(width[r], width[r], r, r, 9)]
        D += [C(width[r], width[r], r, r, 9), C(width[r], width[r // 2], r, r // 2, 16)] if r > 4 else []
    return [*G, C(width[resolution], 3, resolution, resolution, 1)], [*D, C(width[4] + 1, width[4], 4, 4, 9)]


def _sides(resolution: int) -> Iterator[int]:
    return (2**i for i in range(2, resolution.bit_length()))


def limit(model: str, resolution: int, channel_base: int) -> Limit:
    """Of the published architecture with lazy regularisation; for ProGAN of a stage, with WGAN-GP."""
    networks = {"stylegan2": _stylegan2, "progan": _progan}[model](resolution, channel_base)
    convolutions = [(n, c) for n, network in zip(PASSES[model], networks, strict=True) for c in network]
    return Limit(
        sum(n * c.flops for n, c in convolutions),
        sum(n * c.bytes for n, c in convolutions),
        sum(n * seconds(c.flops, c.bytes) for n, c in convolutions),
    )
