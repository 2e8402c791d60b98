"""Images from a generator: seeds to latents, batches of uint8."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gankern.errors import InputError, is_shortage
from gankern.models import progan

MOST = 10_000_000
"""Seeds in a list."""


def parse_seeds(text: str, option: str = "--seeds") -> list[int]:
    """ "0-7,42" -> [0, ..., 7, 42]. Raises InputError for anything else; seeds lie in [0, 2^32)."""
    wrong = f"{option} {text:.60}: expected numbers and ranges below 2^32, such as 0-7,42, {MOST:,} of them at most"
    return _numbers(text, 2**32, wrong)


def parse_layers(text: str, num_ws: int) -> list[int]:
    """ "0-6" -> [0, ..., 6]. Raises InputError for anything else, and for layers that a network hasn't."""
    expected = f"expected numbers and ranges from 0 to {num_ws - 1}, such as 0-{num_ws // 2}"
    return _numbers(text, num_ws, f"--style-mix: layers {text:.60}, {expected}")


def _numbers(text: str, end: int, wrong: str) -> list[int]:
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})(?:-(\d{1,10}))?\s*", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < end or len(numbers) + last - first >= MOST:
            raise InputError(wrong)
        numbers.extend(range(first, last + 1))
    return numbers


def seed_latents(seeds: Sequence[int], z_dim: int) -> Tensor:
    """z [N, z_dim] as every StyleGAN tool draws it: numpy's RandomState(seed).randn(1, z_dim) for each seed."""
    return torch.from_numpy(np.concatenate([np.random.RandomState(s).randn(1, z_dim) for s in seeds])).float()


def to_uint8(images: Tensor) -> Tensor:
    """[N, C, H, W] in [-1, 1] -> uint8 on the same device, clipped; 0 and 255 stand for -1 and 1."""
    return (images.float() * 127.5 + 128).clamp_(0, 255).to(torch.uint8)


@torch.no_grad()
def sample_images(
    network: nn.Module,
    latents: Tensor,
    labels: Tensor,
    batch: int,
    *,
    truncation_psi: float = 1,
    truncation_cutoff: int | None = None,
    noise_mode: str = "const",
    native: bool = False,
) -> Iterator[Tensor]:
    """uint8 batches [n <= batch, C, R, R] on the network's device; no random numbers are drawn unless noise is
    random. A ProGAN draws at the lod that it is trained to; `native`: at that resolution, not enlarged to R.

    Raises InputError for options that the network doesn't have.
    """
    check_options(network, truncation_psi, truncation_cutoff, noise_mode)
    device = next(network.parameters()).device
    for z, c in zip(latents.split(batch), labels.split(batch), strict=True):
        z, c = z.to(device), c.to(device)
        if isinstance(network, progan.Generator):
            yield to_uint8(network(z, c, network.lod, native=native))
        else:
            yield to_uint8(network(z, c, truncation_psi, truncation_cutoff, noise_mode))


@torch.no_grad()
def draw(
    network: nn.Module,
    latents: Iterable[Tensor],
    batch: int,
    *,
    label: Tensor | None = None,
    noise_mode: str = "const",
    noise_seeds: Iterable[int] = (),
    shrink: bool = False,
) -> Iterator[np.ndarray]:
    """A uint8 picture [C, R, R] of each latent, in order and as they come: ws [num_ws, w_dim], or of a ProGAN z
    [z_dim] with `label` [1, c_dim].

    Random noise belongs to a picture: `noise_seeds` holds the seed of each, and each is drawn alone. `batch` latents
    are drawn at a time; with `shrink`, half as many from where the memory didn't suffice.
    """
    device = next(network.parameters()).device
    latents, noise_seeds = iter(latents), iter(noise_seeds)
    batch = 1 if noise_mode == "random" else batch
    waiting = list(itertools.islice(latents, batch))
    while waiting:
        part = waiting[:batch]
        if noise_mode == "random":
            torch.manual_seed(next(noise_seeds))
        try:
            pictures = to_uint8(_images(network, torch.stack(part).to(device), label, noise_mode)).cpu().numpy()
        except RuntimeError as error:
            if not is_shortage(error) or not shrink or len(part) == 1:
                raise
            pictures = None
        if pictures is None:  # past the handler, whose error holds the tensors
            batch = len(part) // 2
            torch.cuda.empty_cache()
            continue
        yield from pictures
        waiting = waiting[batch:]
        waiting += itertools.islice(latents, max(0, batch - len(waiting)))


def _images(network: nn.Module, latents: Tensor, label: Tensor | None, noise_mode: str) -> Tensor:
    if isinstance(network, progan.Generator):
        c = None if label is None else label.to(latents.device).expand(len(latents), -1)
        return network(latents, c, network.lod)
    return network.synthesis(latents, noise_mode)


def image_bytes(network: nn.Module) -> int:
    """About what the memory of one more picture in a batch is: eight activations of the last resolution, as measured
    on StyleGAN2 and ProGAN of 64 to 256 px (4.5 to 8)."""
    resolution, config = network.img_resolution, network.config
    channels = min(2 * config["channel_base"] // resolution, config["channel_max"])
    return 8 * 4 * max(channels, 1) * resolution**2


def check_options(network: nn.Module, truncation_psi: float, truncation_cutoff: int | None, noise_mode: str) -> None:
    """Raises InputError for truncation or noise of a network that has none."""
    if not isinstance(network, progan.Generator):
        return
    asked = {"--trunc": truncation_psi != 1, "--trunc-cutoff": truncation_cutoff is not None}
    asked["--noise-mode"] = noise_mode == "random"
    for name, given in asked.items():
        if given:
            raise InputError(f"{name}: not an option of a ProGAN, which has neither truncation nor noise")


def class_labels(network: nn.Module, number: int | None, n: int) -> Tensor:
    """One-hot conditions [n, c_dim] of a class; [n, 0] for an unconditional network. Raises InputError naming
    --class."""
    if network.c_dim == 0:
        if number is not None:
            raise InputError(f"--class {number}: the network is not conditional")
        return torch.empty(n, 0)
    if number is None:
        raise InputError(f"--class: the network is conditional, expected a class from 0 to {network.c_dim - 1}")
    if not 0 <= number < network.c_dim:
        raise InputError(f"--class {number}: expected a class from 0 to {network.c_dim - 1}")
    return torch.nn.functional.one_hot(torch.full([n], number), network.c_dim).float()
