"""StyleGAN2 under the names of rosinality's stylegan2-pytorch, both ways: checkpoints with the keys g, d, g_ema.

Each entry is one of ours, renamed and of another shape with the same numbers; its filters are kept times 4 where they
follow an upsampling. Only unconditional RGB networks of the published architecture (skip, resnet) have such names.
"""

import functools
import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from gankern.errors import InputError
from gankern.interop.stylegan2 import discriminator_from_state_dict, generator_from_state_dict, shape_of
from gankern.models.stylegan2 import FILTER, Discriminator, Generator
from gankern.ops import setup_filter

NAMES = {"G": "g", "D": "d", "G_ema": "g_ema"}
MOST_RESOLUTION = 8192
"""Noise maps that a file lacks are made: of no more than this."""
PUBLISHED_CHANNELS = {4: 512, 8: 512, 16: 512, 32: 512}
"""What its own code builds at these resolutions, whatever its channel multiplier."""


def is_rosinality(sd: Mapping) -> bool:
    """Whether these are a network's names of that kind."""
    return "conv1.conv.modulation.weight" in sd or "final_conv.0.weight" in sd


# -- the names --------------------------------------------------------------------------------------------------------


def _layer(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    """A modulated convolution's entries, (theirs, ours)."""
    yield f"{theirs}.conv.weight", f"{ours}.weight"
    yield f"{theirs}.conv.modulation.weight", f"{ours}.affine.weight"
    yield f"{theirs}.conv.modulation.bias", f"{ours}.affine.bias"


def _styled(theirs: str, ours: str, number: int) -> Iterator[tuple[str, str]]:
    yield from _layer(theirs, ours)
    yield f"{theirs}.noise.weight", f"{ours}.noise_strength"
    yield f"{theirs}.activate.bias", f"{ours}.bias"
    yield f"noises.noise_{number}", f"{ours}.noise_const"


def _generator_names(resolution: int, mapping_layers: int) -> Iterator[tuple[str, str]]:
    for i in range(mapping_layers):
        yield f"style.{i + 1}.weight", f"mapping.fc{i}.weight"
        yield f"style.{i + 1}.bias", f"mapping.fc{i}.bias"
    yield "input.input", "synthesis.b4.const"
    yield from _styled("conv1", "synthesis.b4.conv1", 0)
    for stage in range(resolution.bit_length() - 2):
        r, rgb = 4 << stage, f"to_rgbs.{stage - 1}" if stage else "to_rgb1"
        yield from _layer(rgb, f"synthesis.b{r}.torgb")
        yield f"{rgb}.bias", f"synthesis.b{r}.torgb.bias"
        if stage:
            first = 2 * (stage - 1)
            yield from _styled(f"convs.{first}", f"synthesis.b{r}.conv0", first + 1)
            yield from _styled(f"convs.{first + 1}", f"synthesis.b{r}.conv1", first + 2)
            yield f"convs.{first}.conv.blur.kernel", f"synthesis.b{r}.conv0.resample_filter"
            yield f"{rgb}.upsample.kernel", f"synthesis.b{r}.resample_filter"


def _discriminator_names(resolution: int) -> Iterator[tuple[str, str]]:
    yield "convs.0.0.weight", f"b{resolution}.fromrgb.weight"
    yield "convs.0.1.bias", f"b{resolution}.fromrgb.bias"
    for i in range(1, resolution.bit_length() - 2):
        theirs, ours = f"convs.{i}", f"b{resolution >> (i - 1)}"
        yield f"{theirs}.conv1.0.weight", f"{ours}.conv0.weight"
        yield f"{theirs}.conv1.1.bias", f"{ours}.conv0.bias"
        yield f"{theirs}.conv2.0.kernel", f"{ours}.conv1.resample_filter"
        yield f"{theirs}.conv2.1.weight", f"{ours}.conv1.weight"
        yield f"{theirs}.conv2.2.bias", f"{ours}.conv1.bias"
        yield f"{theirs}.skip.0.kernel", f"{ours}.skip.resample_filter"
        yield f"{theirs}.skip.1.weight", f"{ours}.skip.weight"
    for theirs, ours in (("final_conv.0.weight", "conv.weight"), ("final_conv.1.bias", "conv.bias")):
        yield theirs, f"b4.{ours}"
    for i, ours in enumerate(("fc", "out")):
        yield f"final_linear.{i}.weight", f"b4.{ours}.weight"
        yield f"final_linear.{i}.bias", f"b4.{ours}.bias"


def _upsampling(name: str) -> bool:
    """Whether the filter of this name is kept times 4."""
    return name.endswith((".blur.kernel", ".upsample.kernel"))


# -- in ---------------------------------------------------------------------------------------------------------------


def _stages(sd: Mapping[str, Tensor], pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in sd)


def _taken(
    sd: Mapping[str, Tensor], names: Iterator[tuple[str, str]], shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """Under our names, in our shapes; with the filters and noise maps that aren't in the file."""
    found = {name: setup_filter(FILTER, separable=False) for name in shapes if name.endswith("resample_filter")}
    known, seeded = set(), torch.Generator().manual_seed(0)
    for theirs, ours in names:
        known.add(theirs)
        if theirs not in sd:
            if theirs.startswith("noises."):
                found[ours] = torch.randn(shapes[ours], generator=seeded)
            elif not theirs.endswith(".kernel"):
                raise InputError(f"state dict lacks {theirs}: not a StyleGAN2 network under rosinality's names")
            continue
        value = sd[theirs].float()
        if ours in shapes and value.numel() == shapes[ours].numel():
            value = value.reshape(shapes[ours])
        found[ours] = value / 4 if _upsampling(theirs) else value
    unknown = sorted(set(sd) - known)
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise InputError(f"state dict has the unknown {unknown[0]}{more}")
    return found


def _shapes(kind: type[nn.Module], **sizes) -> dict[str, torch.Size]:
    """The shapes of a network's entries, of which nothing is made."""
    if not 8 <= sizes["img_resolution"] <= MOST_RESOLUTION:
        raise InputError(f"state dict: of {sizes['img_resolution']} px, expected 8 to {MOST_RESOLUTION}")
    with torch.device("meta"):
        return {name: value.shape for name, value in kind(**sizes).state_dict().items()}


_shape = functools.partial(shape_of, names="rosinality's names")


def _channels(widths: Mapping[int, int]) -> tuple[int, int]:
    return max(c * r for r, c in widths.items()), max(widths.values())


def lacks_noise(sd: Mapping[str, Tensor]) -> bool:
    """Whether a generator's noise maps, or some, aren't there and are made by `read_generator`."""
    return _stages(sd, r"noises\.noise_\d+") < _stages(sd, r".*\.noise\.weight")


def read_generator(sd: Mapping[str, Tensor], w_avg: Tensor | None) -> Generator:
    """From its names; `w_avg` [w_dim]: the mean latent, without which it is measured over 10,000 seeded ones."""
    layers, stages = _stages(sd, r"style\.\d+\.weight"), _stages(sd, r"convs\.\d+\.conv\.weight") // 2
    w_dim, z_dim = _shape(sd, "style.1.weight", 2)
    widths = {4: _shape(sd, "conv1.conv.weight", 5)[1]}
    widths |= {8 << i: _shape(sd, f"convs.{2 * i + 1}.conv.weight", 5)[1] for i in range(stages)}
    base, most = _channels(widths)
    sizes = {"img_resolution": 4 << stages, "num_mapping_layers": layers, "channel_base": base, "channel_max": most}
    found = _taken(sd, _generator_names(4 << stages, layers), _shapes(Generator, z_dim=z_dim, w_dim=w_dim, **sizes))
    found["mapping.w_avg"] = torch.zeros(w_dim) if w_avg is None else w_avg.float().reshape(-1)
    network = generator_from_state_dict(found)
    if w_avg is None:
        network.mapping.w_avg.copy_(mean_latent(network))
    return network


@torch.no_grad()
def mean_latent(network: Generator, samples: int = 10_000) -> Tensor:
    """The mean w of seeded latents [w_dim]."""
    z = torch.randn(samples, network.z_dim, generator=torch.Generator().manual_seed(0))
    return network.mapping(z, None)[:, 0].mean(0)


def read_discriminator(sd: Mapping[str, Tensor]) -> Discriminator:
    """From its names."""
    stages = _stages(sd, r"convs\.\d+\.conv1\.0\.weight")
    resolution = 4 << stages
    widths = {resolution >> i: _shape(sd, f"convs.{i + 1}.conv1.0.weight", 4)[0] for i in range(stages)}
    widths[4] = _shape(sd, "final_conv.0.weight", 4)[0]
    base, most = _channels(widths)
    shapes = _shapes(Discriminator, img_resolution=resolution, channel_base=base, channel_max=most)
    return discriminator_from_state_dict(_taken(sd, _discriminator_names(resolution), shapes))


# -- out --------------------------------------------------------------------------------------------------------------


def _five(weight: Tensor, name: str) -> Tensor:
    """In their shape: a modulated weight and the constant have a leading 1, noise [1, 1, r, r], to-RGB's bias too."""
    if name.endswith("conv.weight") or name == "input.input":
        return weight[None]
    if name.startswith("noises."):
        return weight[None, None]
    if name.startswith("to_rgb") and name.endswith(".bias") and "modulation" not in name:
        return weight.reshape(1, -1, 1, 1)
    return weight.reshape(1) if name.endswith("noise.weight") else weight


def _given(sd: Mapping[str, Tensor], names: Iterator[tuple[str, str]]) -> dict[str, Tensor]:
    found = {}
    for theirs, ours in names:
        value = sd[ours].detach().cpu()
        found[theirs] = _five(value * 4 if _upsampling(theirs) else value, theirs).clone()
    return found


def write(network: nn.Module) -> dict[str, Tensor]:
    """A network's state dict under rosinality's names. Raises InputError for one that has no such form."""
    generator = isinstance(network, Generator)
    if not isinstance(network, Generator | Discriminator):
        raise InputError(f"a {type(network).__module__} network has no form under rosinality's names: StyleGAN2 alone")
    config = network.config
    wanted = {"c_dim": 0, "img_channels": 3, "architecture": "skip" if generator else "resnet"}
    if not generator:
        wanted |= {"mbstd_num_channels": 1}
    for name, value in wanted.items():
        if config[name] != value:
            raise InputError(f"{name} {config[name]}: rosinality's names are for {name} {value} alone")
    sd = network.state_dict()
    if generator:
        return _given(sd, _generator_names(config["img_resolution"], config["num_mapping_layers"]))
    return _given(sd, _discriminator_names(config["img_resolution"]))


def unbuildable(network: nn.Module) -> str | None:
    """Why rosinality's own code can't build a network of these sizes, though the names are right; None if it can."""
    config, reasons = network.config, []
    for r, wide in PUBLISHED_CHANNELS.items():
        has = min(config["channel_base"] // r, config["channel_max"])
        if r <= config["img_resolution"] and has != wide:
            reasons.append(f"{has} channels at {r} px (its code builds {wide})")
            break
    if config["img_resolution"] > 32 and config["channel_base"] % 16384:
        reasons.append(f"channel_base {config['channel_base']} (its code has whole multiples of 16384)")
    if config.get("z_dim", 0) != config.get("w_dim", 0):
        reasons.append(f"z_dim {config['z_dim']} and w_dim {config['w_dim']} (its code has one number for both)")
    group = config.get("mbstd_group_size", 4)
    if group != 4:
        reasons.append(f"minibatch stddev in groups of {group or 'the whole batch'} (its code's are of 4)")
    if config.get("conv_clamp") is not None:
        reasons.append(f"activations clamped at {config['conv_clamp']:g}, which it doesn't do")
    return "; ".join(reasons) or None
