"""ProGAN's networks in plain torch.nn, as one would write them from the paper: the baseline of progan_step.py.

Parameters are named as in gankern.models.progan, whose state dicts load.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gankern.models.progan import channels_at


def pixel_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


def minibatch_stddev(x: Tensor, group: int) -> Tensor:
    n, _, h, w = x.shape
    group = min(group, n)
    y = x.reshape(group, n // group, *x.shape[1:])
    y = (y.var(0, unbiased=False) + 1e-8).sqrt().mean([1, 2, 3], keepdim=True)
    return torch.cat([x, y.repeat(group, 1, h, w)], 1)


class Layer(nn.Module):
    """Weight and bias with equalized learning rate; `resample` "up" or "down", inside the convolution where fused."""

    def __init__(self, shape: list[int], gain: float, bias: int, resample: str = "", fused: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.zeros(bias))
        self.scale, self.resample, self.fused = gain / math.sqrt(math.prod(shape[1:])), resample, fused

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight * self.scale
        if w.ndim == 2:
            return x @ w.t()
        b = self.bias[None, :, None, None]
        if self.fused:
            w = F.pad(w, [1, 1, 1, 1])
            w = w[:, :, 1:, 1:] + w[:, :, :-1, 1:] + w[:, :, 1:, :-1] + w[:, :, :-1, :-1]
            if self.resample == "up":
                return F.conv_transpose2d(x, w.transpose(0, 1), stride=2, padding=1) + b
            return F.conv2d(x, w / 4, stride=2, padding=1) + b
        x = F.interpolate(x, scale_factor=2) if self.resample == "up" else x
        return F.conv2d(x, w, padding=w.shape[-1] // 2) + b


def lrelu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


class Generator(nn.Module):
    def __init__(self, z_dim: int, resolution: int, base: int, most: int, fused_from: int):
        super().__init__()
        self.resolutions = [2**i for i in range(2, resolution.bit_length())]
        root2, below = math.sqrt(2), 0
        for r in self.resolutions:
            wide, block = channels_at(r, base, most), nn.Module()
            if r == 4:
                block.dense = Layer([wide * 16, z_dim], root2 / 4, wide)
                block.conv = Layer([wide, wide, 3, 3], root2, wide)
            else:
                block.conv0 = Layer([wide, below, 3, 3], root2, wide, "up", r >= fused_from)
                block.conv1 = Layer([wide, wide, 3, 3], root2, wide)
            block.torgb = Layer([3, wide, 1, 1], 1.0, 3)
            setattr(self, f"b{r}", block)
            below = wide

    def forward(self, z: Tensor, c=None, lod=0.0, *, stage=None, native: bool = True) -> Tensor:
        """At the resolution of a whole lod, a number."""
        z = pixel_norm(z.to(self.b4.dense.weight.dtype))
        x = self.b4.dense(z).unflatten(1, (-1, 4, 4)) + self.b4.dense.bias[None, :, None, None]
        x = pixel_norm(lrelu(x))
        for r in self.resolutions[: len(self.resolutions) - int(lod)]:
            block = getattr(self, f"b{r}")
            layers = [block.conv] if r == 4 else [block.conv0, block.conv1]
            for layer in layers:
                x = pixel_norm(lrelu(layer(x)))
        return block.torgb(x)


class Discriminator(nn.Module):
    def __init__(self, resolution: int, base: int, most: int, fused_from: int, group: int):
        super().__init__()
        self.resolutions, self.group = [2**i for i in range(2, resolution.bit_length())], group
        root2, below = math.sqrt(2), 0
        for r in self.resolutions:
            wide, block = channels_at(r, base, most), nn.Module()
            block.fromrgb = Layer([wide, 3, 1, 1], root2, wide)
            if r == 4:
                deep = min(base, most)
                block.conv = Layer([wide, wide + 1, 3, 3], root2, wide)
                block.dense0 = Layer([deep, wide * 16], root2, deep)
                block.dense1 = Layer([1, deep], 1.0, 1)
            else:
                block.conv0 = Layer([wide, wide, 3, 3], root2, wide)
                block.conv1 = Layer([below, wide, 3, 3], root2, below, "down", r >= fused_from)
            setattr(self, f"b{r}", block)
            below = wide

    def forward(self, img: Tensor, lod=0.0, *, stage=None) -> Tensor:
        """Of images at the resolution of a whole lod, a number."""
        used = self.resolutions[: len(self.resolutions) - int(lod)]
        x = lrelu(getattr(self, f"b{used[-1]}").fromrgb(img))
        for r in reversed(used[1:]):
            block = getattr(self, f"b{r}")
            x = lrelu(block.conv1(lrelu(block.conv0(x))))
            x = x if block.conv1.fused else F.avg_pool2d(x, 2)
        block = self.b4
        x = lrelu(block.conv(minibatch_stddev(x, self.group)))
        x = lrelu(block.dense0(x.flatten(1)) + block.dense0.bias)
        return block.dense1(x) + block.dense1.bias
