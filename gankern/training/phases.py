"""The four losses of StyleGAN2's training, each the mean over one micro-batch, with their latents and statistics.

    G        mean softplus(−D(G(z)))
    G + PL   weight · interval · (path length − running mean)²
    D        mean softplus(D(G(z))) + mean softplus(−D(x))
    D + R1   interval · γ/2 · ‖∇D(x)‖²

What is done with their gradients stands in step.py and update.py.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gankern import ops
from gankern.models.stylegan2 import Discriminator, Generator
from gankern.training import loss
from gankern.training.config import StyleGAN2Config
from gankern.training.recorder import Recorder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


def build_networks(config: StyleGAN2Config, device: torch.device | str) -> tuple[Generator, Discriminator]:
    """Generator and discriminator of a config, freshly initialised from torch's random state."""
    shared = {
        "c_dim": config.c_dim,
        "img_resolution": config.resolution,
        "channel_base": config.channel_base,
        "channel_max": config.channel_max,
        "compute_dtype": DTYPES[config.precision],
    }
    with torch.device(device):
        G = Generator(
            z_dim=config.z_dim,
            w_dim=config.w_dim,
            num_mapping_layers=config.mapping_layers,
            architecture=config.g_architecture,
            **shared,
        )
        D = Discriminator(architecture=config.d_architecture, mbstd_group_size=config.mbstd_group, **shared)
    return (G.double(), D.double()) if config.precision == "fp64" else (G, D)


def joined(real: Tensor, fake: Tensor, group: int) -> Tensor:
    """[N, ...] and [N, ...] as one batch, in such an order that minibatch stddev in groups of `group`, which compares
    the samples i, i + 2N/group, ..., compares reals with reals and fakes with fakes."""
    return torch.cat([t.unflatten(0, (group, len(t) // group)) for t in (real, fake)], 1).flatten(0, 1)


def apart(both: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """The two halves of a batch of `joined`'s order."""
    real, fake = both.unflatten(0, (group, len(both) // group)).chunk(2, 1)
    return real.flatten(0, 1), fake.flatten(0, 1)


class Phases(Recorder):
    """The losses of a generator and a discriminator; what they observe is kept until taken.

    `sample_labels(n)` draws conditions [n, c_dim] for the generator. The running path length `pl_mean` is the
    caller's to update, from the last loss's `observed_lengths`; likewise w_avg from `observed_w`.
    """

    def __init__(self, config: StyleGAN2Config, G: nn.Module, D: nn.Module, sample_labels: Callable[[int], Tensor]):
        super().__init__()
        self.config, self.G, self.D, self.sample_labels = config, G, D, sample_labels
        parameter = next(G.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.pl_mean = torch.zeros([], device=self.device, dtype=self.dtype)
        self.observed_w: list[Tensor] = []
        self.observed_lengths: list[Tensor] = []

    def reals(self, images: Tensor) -> Tensor:
        """uint8 [N, C, R, R] in [-1, 1]."""
        return images.to(self.dtype).div_(127.5).sub_(1)

    def g_main(self, n: int) -> Tensor:
        """The generator's loss on n samples."""
        ws, c = self._latents(n)
        logits = self.D(self.G.synthesis(ws), c)
        value = loss.generator_loss(logits)
        self.record("loss/G", value)
        self.record("logits/fake", logits.mean())
        return value

    def g_path_length(self, n: int) -> Tensor:
        """Path-length regularisation on n/pl_shrink samples; the running mean counts as a constant."""
        config = self.config
        ws, _ = self._latents(max(n // config.pl_shrink, 1))
        with ops.differentiated_twice():
            img = self.G.synthesis(ws)
        noise = torch.randn(img.shape, device=img.device) / math.sqrt(img.shape[2] * img.shape[3])
        lengths = loss.path_lengths(img, ws, noise)
        length = lengths.detach().mean()
        self.observed_lengths = [length]
        penalty = (lengths - self.pl_mean.lerp(length, config.pl_decay)).square().mean()
        self.record("path_length", length)
        self.record("loss/path_length", penalty)
        return penalty * (config.pl_weight * config.pl_interval)

    def d_main(self, real: Tensor, labels: Tensor) -> Tensor:
        """The discriminator's loss on reals [N, C, R, R] in [-1, 1] and as many fakes."""
        with torch.no_grad():
            ws, c = self._latents(len(real))
            fake = self.G.synthesis(ws)
        real_logits, fake_logits = self._judge(real, labels, fake, c)
        value = loss.discriminator_loss(real_logits, fake_logits)
        self.record("loss/D", value)
        self.record("logits/real", real_logits.mean())
        return value

    def _judge(self, real: Tensor, labels: Tensor, fake: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [N, 1] of reals and fakes, which go through the discriminator as one batch."""
        group = min(self.config.mbstd_group, len(real))
        return apart(self.D(joined(real, fake, group), joined(labels, c, group)), group)

    def d_r1(self, real: Tensor, labels: Tensor) -> Tensor:
        """R1 regularisation on reals [N, C, R, R]."""
        real = real.detach().requires_grad_()
        with ops.differentiated_twice():
            logits = self.D(real, labels)
        penalty = loss.r1_penalty(logits, real).mean()
        self.record("r1", penalty)
        return penalty * (self.config.gamma / 2 * self.config.r1_interval)

    def _latents(self, n: int) -> tuple[Tensor, Tensor]:
        """ws [n, num_ws, w_dim] with style mixing, and the conditions [n, c_dim]."""
        c = self.sample_labels(n).to(self.device)
        mixing = self.config.style_mixing > 0
        z = torch.randn(2 * n if mixing else n, self.config.z_dim, device=self.device)
        ws, *others = self.G.mapping(z, c.repeat(2, 1) if mixing else c).split(n)
        self.observed_w = [ws[:, 0].detach().mean(0)]
        if mixing:
            (other,) = others
            cutoff = torch.randint(1, self.G.num_ws, [], device=self.device)
            mix = torch.rand([], device=self.device) < self.config.style_mixing
            layer = torch.arange(self.G.num_ws, device=self.device)
            ws = torch.where((mix & (layer >= cutoff))[None, :, None], other, ws)
        return ws, c
