"""Two foreign networks in plain PyTorch: a DCGAN critic and generator, and pix2pix's U-Net generator."""

from itertools import pairwise

import torch
from torch import nn


def norm_act(channels: int, negative_slope: float) -> list[nn.Module]:
    """Instance norm, and a leaky ReLU in place (ReLU for slope 0)."""
    act = nn.LeakyReLU(negative_slope, inplace=True) if negative_slope else nn.ReLU(inplace=True)
    return [nn.InstanceNorm2d(channels, affine=True), act]


class Critic(nn.Module):
    """DCGAN's discriminator with instance norm, as WGAN-GP needs it: images [N, 3, 64, 64] -> scores [N, 1]."""

    def __init__(self, width: int = 64):
        super().__init__()
        w = width
        self.body = nn.Sequential(
            nn.Conv2d(3, w, 4, 2, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(w, 2 * w, 4, 2, 1, bias=False),
            *norm_act(2 * w, 0.2),
            nn.Conv2d(2 * w, 4 * w, 4, 2, 1, bias=False),
            *norm_act(4 * w, 0.2),
            nn.Conv2d(4 * w, 8 * w, 4, 2, 1, bias=False),
            *norm_act(8 * w, 0.2),
            nn.Conv2d(8 * w, 1, 4),
        )

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return self.body(img).flatten(1)


class Generator(nn.Module):
    """DCGAN's generator: z [N, 100, 1, 1] -> images [N, 3, 64, 64]."""

    def __init__(self, width: int = 64):
        super().__init__()
        w = width
        self.body = nn.Sequential(
            nn.ConvTranspose2d(100, 8 * w, 4, bias=False),
            *norm_act(8 * w, 0),
            nn.ConvTranspose2d(8 * w, 4 * w, 4, 2, 1, bias=False),
            *norm_act(4 * w, 0),
            nn.ConvTranspose2d(4 * w, 2 * w, 4, 2, 1, bias=False),
            *norm_act(2 * w, 0),
            nn.ConvTranspose2d(2 * w, w, 4, 2, 1, bias=False),
            *norm_act(w, 0),
            nn.ConvTranspose2d(w, 3, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.body(z)


class UNet(nn.Module):
    """pix2pix's generator (Isola et al. 2017, arXiv:1611.07004): images [N, 3, R, R] -> images [N, 3, R, R]."""

    def __init__(self, width: int = 64, depth: int = 5):
        super().__init__()
        channels = [min(width * 2**i, 8 * width) for i in range(depth)]
        self.first = nn.Sequential(nn.Conv2d(3, channels[0], 4, 2, 1), nn.LeakyReLU(0.2, inplace=True))
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 4, 2, 1, bias=False), *norm_act(o, 0.2)) for i, o in pairwise(channels)
        )
        self.up = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(i * (1 if n == 0 else 2), o, 4, 2, 1, bias=False), *norm_act(o, 0))
            for n, (i, o) in enumerate(zip(channels[:0:-1], channels[-2::-1], strict=True))
        )
        self.last = nn.Sequential(nn.ConvTranspose2d(2 * channels[0], 3, 4, 2, 1), nn.Tanh())

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        skips = [self.first(img)]
        for layer in self.down:
            skips.append(layer(skips[-1]))
        x = skips.pop()
        for layer in self.up:
            x = torch.cat([layer(x), skips.pop()], 1)
        return self.last(x)
