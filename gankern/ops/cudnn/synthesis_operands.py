"""The operands of StyleGAN2's synthesis network, and the passes of our own that stand between its convolutions."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from gankern.ops.conv2d import transposed_padding
from gankern.ops.cudnn import merging
from gankern.ops.modulated_conv2d.layer import Operands

UP, MERGED, RGB = 1, 2, 4
"""What a layer is: upsampling, with the filter in its kernel, read by a to-RGB layer."""
TINY = 2.0**-60


@dataclass
class Chain:
    """The operands of all layers. styles[k]: of layer k's output, one fewer than layers; noises, strengths: all or
    none; matrix [N, 3, ΣC]: of the layers with RGB; kinds: flags of each layer."""

    x: Tensor
    styles: list[Tensor]
    weights: list[Tensor]
    d: list[Tensor]
    noises: list[Tensor]
    strengths: list[Tensor]
    biases: list[Tensor]
    matrix: Tensor
    f: Tensor
    kinds: list[int]
    alpha: float
    gain: float

    def __post_init__(self):
        self.count = len(self.weights)
        self.channels = [d.shape[1] for d in self.d]
        self.first = [0, *accumulate(self.channels)]
        of_rgb = [c if kind & RGB else 0 for c, kind in zip(self.channels, self.kinds, strict=True)]
        self.rgb_first = [0, *accumulate(of_rgb)]
        self.dtype = torch.promote_types(self.x.dtype, torch.float32)

    def up(self, k: int) -> bool:
        return bool(self.kinds[k] & UP)

    def merged(self, k: int) -> bool:
        return bool(self.kinds[k] & MERGED)

    def filtered(self, k: int) -> bool:
        """Whether a pass with the filter stands behind layer k's convolution."""
        return self.up(k) and not self.merged(k)

    def rgb(self, k: int) -> bool:
        return bool(self.kinds[k] & RGB)

    def size(self, k: int) -> list[int]:
        """Of layer k's output."""
        doublings = sum(map(self.up, range(k + 1)))
        return [v << doublings for v in self.x.shape[2:]]

    def noise(self, k: int) -> Tensor | None:
        if not self.noises:
            return None
        noise = self.noises[k]
        return noise.reshape([1] * (4 - noise.ndim) + list(noise.shape))

    def empty(self, channels: int, size: Sequence[int]) -> Tensor:
        shape = [self.x.shape[0], channels, *size]
        return torch.empty(shape, dtype=self.x.dtype, device=self.x.device, memory_format=torch.channels_last)

    def prepare(self) -> None:
        """The small operands of all layers in float32, the gain in them."""
        scale = torch.cat([d.reshape(-1) for d in self.d]).to(self.dtype) * self.gain
        self.scales = self._rows(scale, self.d)
        self.biases_ = (torch.cat(self.biases).to(self.dtype) * self.gain).split(self.channels)
        style = torch.cat([s.reshape(-1) for s in self.styles]).to(self.dtype)
        style = torch.where(style.abs() < TINY, TINY, style)
        self.styles_ = self._rows(style, self.styles)
        self.inverses = self._rows(style.reciprocal(), self.styles)
        if self.strengths:  # four of each, so that each begins at a multiple of 16 bytes
            self.strengths_ = (torch.stack(self.strengths).to(self.dtype) * self.gain).view(-1, 1).repeat(1, 4)
        self.matrix_ = self.matrix.to(self.dtype)
        self.taps = None
        if any(map(self.merged, range(self.count))):
            self.taps = merging.merge_matrix(self.f.to(self.dtype), True, 4.0).to(self.x.dtype)

    @staticmethod
    def _rows(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
        """What lies one after the other as contiguous [N, C], as `like`."""
        return [part.view(t.shape) for part, t in zip(flat.split([t.numel() for t in like]), like, strict=True)]

    def row(self, t: Tensor, k: int) -> Tensor:
        """Layer k's part [..., C] of what lies side by side."""
        return t[..., self.first[k] : self.first[k + 1]]

    def style_of(self, k: int) -> Tensor | None:
        return None if k == self.count - 1 else self.styles_[k]

    def strength_of(self, k: int) -> Tensor:
        return self.strengths_[k, 0]

    def matrices(self, k: int) -> Tensor:
        """[N, 3, C] of layer k's RGB."""
        return self.matrix_[:, :, self.rgb_first[k] : self.rgb_first[k + 1]]

    def pass_operands(self, k: int) -> Operands:
        """For the pass that runs as a kernel of our own."""
        noise, strength = (self.noises[k], self.strengths[k]) if self.noises else (None, None)
        style = self.style_of(k)
        return Operands(self.d[k], noise, strength, self.biases[k], style, ("lrelu", self.alpha, self.gain, -1.0))

    def fir(self) -> dict:
        return {"up": 1, "padding": transposed_padding(self.f, 3, 1), "gain": 4.0}


def filter_passes():
    from gankern.ops.modulated_conv2d import fir

    return fir


def pixels(x: Tensor) -> Tensor:
    """[N, C, H, W], channels_last, as [N, H·W, C]."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)
