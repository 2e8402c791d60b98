"""Latent projection: the w whose image is closest to a given one. Karras et al. 2020 (arXiv:1912.04958), section 5 and
appendix D.

Noise maps are optimised beside w, so that w needn't explain grain, and are dropped at the end: the network's own stand
in for them again, in this and in other programs, whenever an image of the w is drawn.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gankern.errors import NonFiniteError
from gankern.models.sampling import seed_latents

SAMPLES = 10_000
LEARNING_RATE, RAMP_UP, RAMP_DOWN = 0.1, 0.05, 0.25
W_NOISE, W_NOISE_UNTIL = 0.05, 0.75
NOISE_WEIGHT = 1e5
REPORTS = 100

Distance = Callable[[Tensor], Tensor]
"""Images [1, C, R, R] in [-1, 1] -> how far they are from the target, one number."""


@dataclass
class Projection:
    """ws [1, num_ws, w_dim], on the CPU, after `steps` steps."""

    ws: Tensor
    steps: int


def project(
    network: nn.Module,
    distance: Distance,
    steps: int,
    *,
    label: Tensor | None = None,
    seed: int = 0,
    report: Callable[[int, float], None] = lambda step, value: None,
) -> Projection:
    """Minimises `distance` over one w, the same for all layers, and over noise maps; the network stays as it is.

    `label` [1, c_dim]: whose w to begin with. `report(step, distance)` is called after the first step, the last and up
    to 99 between. Ctrl-C ends it with the w that was reached. Raises NonFiniteError where the distance isn't a number.
    """
    w_avg, w_std = w_statistics(network, label, seed)
    noises = {name: b.clone() for name, b in network.synthesis.named_buffers() if name.endswith("noise_const")}
    w = w_avg.clone()[None].requires_grad_()  # [1, w_dim]
    generator = torch.Generator().manual_seed(seed)
    blur = torch.cat([torch.randn(w.shape, generator=generator) for _ in range(steps)]).to(w.device)
    optimizer = torch.optim.Adam([w, *(n.requires_grad_() for n in noises.values())], lr=LEARNING_RATE)
    done = 0
    try:
        while done < steps:
            t = (done + 0.5) / steps
            optimizer.param_groups[0]["lr"] = learning_rate(t)
            spread = W_NOISE * w_std * max(0.0, 1 - t / W_NOISE_UNTIL) ** 2
            noisy = w + spread * blur[done]
            ws = noisy[:, None].expand(-1, network.num_ws, -1)
            images = torch.func.functional_call(network.synthesis, noises, (ws,), {"noise_mode": "const"})
            far = distance(images)
            loss = far + NOISE_WEIGHT * autocorrelation(list(noises.values()))
            optimizer.zero_grad()
            loss.backward()
            if done % math.ceil(steps / REPORTS) == 0 or done + 1 == steps:
                value = far.item()
                if not math.isfinite(value):
                    raise NonFiniteError(f"--project: the distance became {value} in step {done + 1}")
                report(done + 1, value)
            optimizer.step()
            for noise in noises.values():
                normalize_(noise)
            done += 1
    except KeyboardInterrupt:
        pass
    return Projection(w.detach().cpu()[:, None].repeat(1, network.num_ws, 1), done)


@torch.no_grad()
def w_statistics(network: nn.Module, label: Tensor | None, seed: int) -> tuple[Tensor, float]:
    """The mean [w_dim] of the w of 10,000 z, and the root mean square of their distance to it."""
    device = network.mapping.w_avg.device
    parts = []
    for z in seed_latents([seed], SAMPLES * network.z_dim).view(SAMPLES, -1).split(1000):
        c = None if label is None else label.to(device).expand(len(z), -1)
        parts.append(network.mapping(z.to(device), c)[:, 0])
    w = torch.cat(parts)
    mean = w.mean(0)
    return mean, (w - mean).square().sum(1).mean().sqrt().item()


def learning_rate(t: float) -> float:
    """At t in (0, 1): ramped up linearly over the first twentieth, down by a cosine over the last quarter."""
    down = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - t) / RAMP_DOWN))
    return LEARNING_RATE * down * min(1.0, t / RAMP_UP)


def autocorrelation(maps: Sequence[Tensor]) -> Tensor:
    """How much neighbours in noise maps [R, R] have to do with each other: squared mean products with the map shifted
    by a pixel each way, summed over the map and its halves down to 8 px."""
    total = maps[0].new_zeros([])
    for n in maps:
        while True:
            total = total + sum((n * n.roll(1, side)).mean().square() for side in (0, 1))
            if n.shape[-1] <= 8:
                break
            n = 2 * F.avg_pool2d(n[None], 2)[0]  # white noise keeps its variance
    return total


@torch.no_grad()
def normalize_(noise: Tensor) -> None:
    """To mean 0 and variance 1, in place."""
    noise.sub_(noise.mean())
    noise.mul_(noise.square().mean().clamp_min(1e-20).rsqrt())
