"""The two losses of ProGAN's training, each the mean over one micro-batch, at the place of the schedule where the run
is.

    D   WGAN-GP with drift, or logistic with R1; with labels their cross entropy for reals and fakes
    G   −mean D(G(z)), or mean softplus(−D(G(z))); with labels their cross entropy for fakes

Images are kept at the resolution of the stage. The penalties' gradients count as with respect to images at full size,
as the paper's networks take them: there each pixel of the stage is a block of f x f, which divides its norm by f.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gankern.models.progan import Discriminator, Generator, downscale, upscale
from gankern.training import loss, progan_loss
from gankern.training.phases import DTYPES, apart, joined
from gankern.training.progan_options import ProGANConfig
from gankern.training.recorder import Recorder
from gankern.training.schedule import Place


def build_networks(config: ProGANConfig, device: torch.device | str) -> tuple[Generator, Discriminator]:
    """Generator and discriminator of a config, with all their stages, freshly initialised from torch's random state."""
    shared = {
        "c_dim": config.c_dim,
        "img_resolution": config.resolution,
        "channel_base": config.channel_base,
        "channel_max": config.channel_max,
        "fused_from": config.fused_from or None,
        "equalized": config.equalized,
        "compute_dtype": DTYPES[config.precision],
    }
    with torch.device(device):
        own = {"normalize_latents": config.normalize_latents, "pixel_norm": config.pixel_norm}
        G = Generator(z_dim=config.z_dim, **own, **shared)
        D = Discriminator(group_size=config.mbstd_group, **shared)
    return (G.double(), D.double()) if config.precision == "fp64" else (G, D)


class ProGANPhases(Recorder):
    """The losses of a growing generator and discriminator; what they observe is kept until taken.

    `sample_labels(n)` draws conditions [n, c_dim] for the generator. `go_to` comes before the first loss.
    """

    def __init__(self, config: ProGANConfig, G: Generator, D: Discriminator, sample_labels: Callable[[int], Tensor]):
        super().__init__()
        self.config, self.G, self.D, self.sample_labels = config, G, D, sample_labels
        parameter = next(G.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.lod = torch.zeros([], device=self.device, dtype=self.dtype)  # on the device: fading waits for nothing
        self.place: Place | None = None

    def go_to(self, place: Place) -> None:
        self.place = place
        self.lod.fill_(place.lod)

    def reals(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W], at full size or reduced, as a network of this stage would make them: in [-1, 1], at the
        stage's resolution, blended with the resolution below as the fakes are."""
        place = self.place
        factor = images.shape[-1] // place.resolution
        parts = images.split(16 if factor > 1 else len(images))  # few at a time: full size is large in float
        x = torch.cat([downscale(part.to(self.dtype).div_(127.5).sub_(1), factor) for part in parts])
        if not place.fade:
            return x
        return x + (upscale(downscale(x, 2), 2) - x) * (self.lod - int(place.lod))

    def g_main(self, n: int) -> Tensor:
        """The generator's loss on n samples."""
        fake, c = self._fakes(n)
        scores, logits = self._judge(fake)
        wgan = self.config.loss == "wgan-gp"
        value = progan_loss.generator_loss(scores) if wgan else loss.generator_loss(scores)
        if logits is not None:
            value = value + self.config.cond_weight * progan_loss.label_loss(logits, c)
        self.record("loss/G", value)
        self.record("logits/fake", scores.mean())
        return value

    def d_main(self, real: Tensor, labels: Tensor) -> Tensor:
        """The discriminator's loss on `reals` and as many fakes."""
        config = self.config
        with torch.no_grad():
            fake, c = self._fakes(len(real))
        wgan = config.loss == "wgan-gp"
        real = real if wgan else real.detach().requires_grad_()
        (real_scores, real_logits), (fake_scores, fake_logits) = self._judge_both(real, fake, together=wgan)
        if wgan:
            value = progan_loss.critic_loss(real_scores, fake_scores, config.drift)
            value = value + config.gp_weight * self._gradient_penalty(real, fake)
        else:
            value = loss.discriminator_loss(real_scores, fake_scores)
            penalty = loss.r1_penalty(real_scores, real).mean() / self._pixel_side**2
            self.record("r1", penalty)
            value = value + config.gamma / 2 * penalty
        if real_logits is not None:
            labelled = progan_loss.label_loss(real_logits, labels) + progan_loss.label_loss(fake_logits, c)
            self.record("loss/labels", labelled)
            value = value + config.cond_weight * labelled
        self.record("loss/D", value)
        self.record("logits/real", real_scores.mean())
        return value

    def _gradient_penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        factor = torch.rand([len(real), 1, 1, 1], device=real.device, dtype=real.dtype)
        mixed = progan_loss.mix(real, fake, factor)
        norms = progan_loss.gradient_norms(self._judge(mixed)[0], mixed) / self._pixel_side
        penalty = progan_loss.gradient_penalty(norms, self.config.gp_target).mean()
        self.record("gradient_norm", norms.mean())
        self.record("gradient_penalty", penalty)
        return penalty

    @property
    def _pixel_side(self) -> int:
        """f: the side, at full size, of a pixel of the stage."""
        return self.config.resolution // self.place.resolution

    def _at(self) -> dict:
        """How the networks are told where they are; where nothing fades, by a number, so that nothing is blended."""
        return {"lod": self.lod, "stage": self.place.stage} if self.place.fade else {"lod": self.place.lod}

    def _fakes(self, n: int) -> tuple[Tensor, Tensor]:
        """Images of n samples at the stage's resolution, and their conditions [n, c_dim]."""
        c = self.sample_labels(n).to(self.device)
        z = torch.randn(n, self.config.z_dim, device=self.device)
        return self.G(z, c, **self._at(), native=True), c

    def _judge_both(self, real: Tensor, fake: Tensor, together: bool) -> list[tuple[Tensor, Tensor | None]]:
        """What the discriminator says of each; `together`: as one batch, where that leaves minibatch stddev its groups
        of reals alone and fakes alone. (R1 differentiates through the reals alone.)"""
        group = min(self.config.mbstd_group or 1, len(real))
        if not together or len(real) % group or self.config.mbstd_group > len(real):
            return [self._judge(real), self._judge(fake)]
        parts = zip(*(apart(t, group) for t in self._judge(joined(real, fake, group)) if t is not None), strict=True)
        return [part if len(part) == 2 else (*part, None) for part in parts]

    def _judge(self, img: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores [N, 1] and, with labels, their logits [N, c_dim]."""
        out = self.D(img, **self._at())
        return out if self.config.c_dim else (out, None)
