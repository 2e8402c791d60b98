"""StyleGAN2 (skip generator, resnet discriminator) in plain torch.nn and torch.nn.functional: the baseline of
benchmarks.

The same mathematics under the same parameter names as gankern.models.stylegan2, so one state dict fits both; no
operator of gankern. Modulation scales the activations, which is faster on a CPU than a grouped convolution with a
weight a sample.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fir(x: Tensor, f: Tensor, padding: tuple[int, int, int, int], stride: int = 1) -> Tensor:
    """Depthwise filter with f [4, 4] (symmetric)."""
    c = x.shape[1]
    return F.conv2d(F.pad(x, padding), f.to(x.dtype).expand(c, 1, *f.shape), stride=stride, groups=c)


def upsample(x: Tensor, f: Tensor) -> Tensor:
    c = x.shape[1]
    return F.conv_transpose2d(x, (f * 4).to(x.dtype).expand(c, 1, *f.shape), stride=2, padding=1, groups=c)


class Linear(nn.Linear):
    def __init__(self, i: int, o: int, act: bool = False, lr: float = 1.0, bias_init: float = 0.0):
        super().__init__(i, o)
        self.act, self.lr, self.gain = act, lr, lr / math.sqrt(i)
        nn.init.normal_(self.weight, std=1 / lr)
        nn.init.constant_(self.bias, bias_init / lr)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight * self.gain, self.bias * self.lr)
        return F.leaky_relu(y, 0.2) * math.sqrt(2) if self.act else y


class Conv(nn.Conv2d):
    def __init__(self, i: int, o: int, k: int, bias: bool = True, act: bool = True, down: int = 1):
        super().__init__(i, o, k, bias=bias)
        self.act, self.down, self.gain = act, down, 1 / math.sqrt(i * k * k)
        f = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("resample_filter", torch.outer(f, f))
        nn.init.normal_(self.weight)
        if bias:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        k, w = self.weight.shape[-1], self.weight * self.gain
        if self.down == 2 and k == 1:
            y = F.conv2d(fir(x, self.resample_filter, (1, 1, 1, 1), stride=2), w, self.bias)
        elif self.down == 2:
            y = F.conv2d(fir(x, self.resample_filter, (2, 2, 2, 2)), w, self.bias, stride=2)
        else:
            y = F.conv2d(x, w, self.bias, padding=k // 2)
        y = F.leaky_relu(y, 0.2) * math.sqrt(2) if self.act else y
        return y * gain if gain != 1 else y


class ModulatedConv(nn.Module):
    def __init__(self, i: int, o: int, w_dim: int, resolution: int, up: int = 1):
        super().__init__()
        self.affine = Linear(w_dim, i, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(o, i, 3, 3))
        self.bias = nn.Parameter(torch.zeros(o))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        f = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("resample_filter", torch.outer(f, f))
        self.up, self.resolution = up, resolution

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        s = self.affine(w)
        d = (s.square() @ self.weight.square().sum([2, 3]).t() + 1e-8).rsqrt()
        x = x * s[:, :, None, None]
        if self.up == 2:
            x = F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2)
            x = fir(x, self.resample_filter * 4, (1, 1, 1, 1))
        else:
            x = F.conv2d(x, self.weight, padding=1)
        x = x * d[:, :, None, None] + noise.view(len(x), 1, *x.shape[2:]) * self.noise_strength
        return F.leaky_relu(x + self.bias[:, None, None], 0.2) * math.sqrt(2)


class ToRGB(nn.Module):
    def __init__(self, i: int, w_dim: int):
        super().__init__()
        self.affine = Linear(w_dim, i, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(3, i, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))
        self.gain = 1 / math.sqrt(i)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(x * (self.affine(w) * self.gain)[:, :, None, None], self.weight, self.bias)


class SynthesisBlock(nn.Module):
    def __init__(self, i: int, o: int, w_dim: int, resolution: int):
        super().__init__()
        f = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("resample_filter", torch.outer(f, f))
        if i == 0:
            self.const = nn.Parameter(torch.randn(o, resolution, resolution))
        else:
            self.conv0 = ModulatedConv(i, o, w_dim, resolution, up=2)
        self.conv1 = ModulatedConv(o, o, w_dim, resolution)
        self.torgb = ToRGB(o, w_dim)
        self.num_conv = 1 if i == 0 else 2

    def forward(self, x: Tensor | None, img: Tensor | None, ws: Tensor, noises: Iterator[Tensor]):
        w = iter(ws.unbind(1))
        start = self.const[None].expand(len(ws), -1, -1, -1) if x is None else None
        x = start if x is None else self.conv0(x, next(w), next(noises))
        x = self.conv1(x, next(w), next(noises))
        y = self.torgb(x, next(w))
        return x, y if img is None else y + upsample(img, self.resample_filter)


class Mapping(nn.Module):
    def __init__(self, z_dim: int, w_dim: int, num_ws: int, num_layers: int):
        super().__init__()
        self.num_ws, self.num_layers = num_ws, num_layers
        for n in range(num_layers):
            setattr(self, f"fc{n}", Linear(z_dim if n == 0 else w_dim, w_dim, act=True, lr=0.01))
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        z = z.to(self.w_avg.dtype)
        w = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for n in range(self.num_layers):
            w = getattr(self, f"fc{n}")(w)
        return w[:, None].expand(-1, self.num_ws, -1)


class Synthesis(nn.Module):
    def __init__(self, w_dim: int, channels: dict[int, int]):
        super().__init__()
        self.resolutions = sorted(channels)
        for r in self.resolutions:
            setattr(self, f"b{r}", SynthesisBlock(channels.get(r // 2, 0), channels[r], w_dim, r))

    def forward(self, ws: Tensor) -> Tensor:
        sizes = [len(ws) * r * r for r in self.resolutions for _ in range(getattr(self, f"b{r}").num_conv)]
        noises = iter(torch.randn(sum(sizes), device=ws.device).to(ws.dtype).split(sizes))
        x = img = None
        first = 0
        for r in self.resolutions:
            block = getattr(self, f"b{r}")
            x, img = block(x, img, ws[:, first : first + block.num_conv + 1], noises)
            first += block.num_conv
        return img


class Generator(nn.Module):
    """As gankern.models.stylegan2.Generator, unconditional."""

    def __init__(self, z_dim: int, w_dim: int, resolution: int, mapping_layers: int, base: int, top: int):
        super().__init__()
        channels = {2**i: min(base >> i, top) for i in range(2, resolution.bit_length())}
        self.num_ws = 2 * len(channels)
        self.synthesis = Synthesis(w_dim, channels)
        self.mapping = Mapping(z_dim, w_dim, self.num_ws, mapping_layers)


class DiscriminatorBlock(nn.Module):
    def __init__(self, i: int, o: int, first: bool):
        super().__init__()
        f = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("resample_filter", torch.outer(f, f))
        if first:
            self.fromrgb = Conv(3, i, 1)
        self.conv0 = Conv(i, i, 3)
        self.conv1 = Conv(i, o, 3, down=2)
        self.skip = Conv(i, o, 1, bias=False, act=False, down=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fromrgb(x) if hasattr(self, "fromrgb") else x
        return self.skip(x, math.sqrt(0.5)) + self.conv1(self.conv0(x), math.sqrt(0.5))


class Epilogue(nn.Module):
    def __init__(self, i: int, group: int):
        super().__init__()
        self.conv, self.fc, self.out = Conv(i + 1, i, 3), Linear(i * 16, i, act=True), Linear(i, 1)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        g = min(self.group, n)
        y = x.reshape(g, n // g, c, h, w)
        s = ((y - y.mean(0)).square().mean(0) + 1e-8).sqrt().mean([1, 2, 3])
        x = torch.cat([x, s.repeat(g)[:, None, None, None].expand(-1, 1, h, w)], 1)
        return self.out(self.fc(self.conv(x).flatten(1)))


class Discriminator(nn.Module):
    """As gankern.models.stylegan2.Discriminator, unconditional."""

    def __init__(self, resolution: int, base: int, top: int, group: int):
        super().__init__()
        channels = {2**i: min(base >> i, top) for i in range(2, resolution.bit_length())}
        self.resolutions = sorted(channels)[:0:-1]
        for r in self.resolutions:
            setattr(self, f"b{r}", DiscriminatorBlock(channels[r], channels[r // 2], r == resolution))
        self.b4 = Epilogue(channels[4], group)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        x = x.to(self.b4.fc.weight.dtype)
        for r in self.resolutions:
            x = getattr(self, f"b{r}")(x)
        return self.b4(x)
