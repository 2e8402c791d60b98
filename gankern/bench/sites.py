"""Where operators are called: networks, the places in them, and the random tensors that flow there."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gankern import ops

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
CLAMP = 256.0
SQRT2 = math.sqrt(2)
LAYOUTS = ("nchw", "nhwc")
FILTER = (1.0, 3.0, 3.0, 1.0)
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Network:
    """Channels min(channel_base / resolution, 512) at each resolution from 4 up, as in ProGAN and StyleGAN2."""

    resolution: int
    channel_base: int
    kind: str = "stylegan2"

    def levels(self, least: int = 4) -> list[tuple[int, int]]:
        """[(channels, resolution)] from `least` up."""
        count = int(math.log2(self.resolution)) + 1
        return [(self.channels(2**i), 2**i) for i in range(2, count) if 2**i >= least]

    def channels(self, resolution: int) -> int:
        return min(self.channel_base // resolution, 512)


NETWORKS = {
    "config-f-1024": Network(1024, 32768),
    "config-f-256": Network(256, 16384),
    "progan": Network(1024, 16384, "progan"),
}


@dataclass(frozen=True)
class Site:
    """A place in a network: x is [N, channels, size, size], or [N, channels] where size is 0; `kind` tells the call."""

    kind: str
    channels: int
    size: int
    out: int = 0


@dataclass(frozen=True)
class Make:
    """Draws an operator's tensors: standard normal, in the case's dtype and layout."""

    dtype: torch.dtype
    layout: str
    batch: int
    device: torch.device | str
    generator: torch.Generator | None = None

    def __call__(self, *shape: int, grad: bool = True, dtype: torch.dtype | None = None) -> Tensor:
        dtype = torch.promote_types(dtype or self.dtype, self.dtype)
        t = torch.randn(shape, dtype=torch.float32, device=self.device, generator=self.generator).to(dtype)
        if self.layout == "nhwc" and len(shape) == 4:
            t = t.contiguous(memory_format=torch.channels_last)
        return t.requires_grad_(grad)

    def image(self, site: Site, more: int = 0) -> Tensor:
        """x of a site, `more` pixels larger."""
        size = (site.size + more,) * 2 if site.size else ()
        return self(self.batch, site.channels, *size)

    def fir(self, taps: int = 4, whole: bool = False) -> Tensor:
        """The 4-tap filter in float32, as one list (so the networks run it) or `whole`; or 12 taps like it."""
        f = FILTER if taps == 4 else range(1, taps + 1)
        return ops.setup_filter(list(f), separable=not whole).to(self.device)

    def filters(self) -> Tensors:
        """The filter as gankern runs it, and whole for plain convolutions."""
        return {"f": self.fir(), "whole": self.fir(whole=True)}


# -- what plain PyTorch has in an operator's place -------------------------------------------------------------------


def plain_act(u: Tensor, clamp: float = CLAMP) -> Tensor:
    return (F.leaky_relu(u, 0.2) * SQRT2).clamp(-clamp, clamp)


def along(b: Tensor, x: Tensor) -> Tensor:
    return b.reshape(-1, *[1] * (x.ndim - 2))


def plain_fir(x: Tensor, f: Tensor, padding: int, stride: int = 1) -> Tensor:
    c = x.shape[1]
    return F.conv2d(x, f.to(x.dtype).expand(c, 1, *f.shape), padding=padding, stride=stride, groups=c)
