"""StyleGAN2 networks from state dicts under the public StyleGAN2-ADA names, every dimension inferred from the
shapes."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gankern.errors import InputError
from gankern.models.files import build_fitting
from gankern.models.stylegan2 import Discriminator, Generator


def shape_of(sd: Mapping[str, Tensor], name: str, dims: int, names: str = "the public names") -> torch.Size:
    """An entry's shape; raises InputError where it isn't there, or of another number of dimensions."""
    if name not in sd:
        raise InputError(f"state dict lacks {name}: not a StyleGAN2 network under {names}")
    if sd[name].ndim != dims:
        raise InputError(f"{name} has shape {tuple(sd[name].shape)}, expected {dims} dimensions")
    return sd[name].shape


def _channels(sd: Mapping[str, Tensor], pattern: str, axis: int) -> dict[int, int]:
    """{resolution: channels} from the weights whose names match."""
    found = {}
    for name in sd:
        match = re.fullmatch(pattern, name)
        if match:
            found[int(match[1])] = shape_of(sd, name, 4)[axis]
    if not found:
        raise InputError(
            f"state dict has no weight named like {pattern}: not a StyleGAN2 network under the public names"
        )
    return found


def _base_and_max(channels: dict[int, int]) -> tuple[int, int]:
    """The channel_base and channel_max with which min(base/r, max) gives these channels."""
    top = max(channels.values())
    base = max(c * r for r, c in channels.items())  # each bounds it from below
    for r, c in channels.items():
        if min(base // r, top) != c:
            raise InputError(
                f"{c} channels at resolution {r} don't follow min(channel_base/r, channel_max): {channels}"
            )
    return base, top


def _count_layers(sd: Mapping[str, Tensor]) -> int:
    return sum(re.fullmatch(r"mapping\.fc\d+\.weight", name) is not None for name in sd)


def _build(kind: type[nn.Module], sd: Mapping[str, Tensor], **dimensions) -> nn.Module:
    """With every entry, refusing a missing, unknown or differently shaped one."""
    try:
        return build_fitting(kind, sd, **dimensions)
    except InputError:
        raise
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise InputError(f"state dict: its shapes make no {kind.__name__} ({str(error).splitlines()[0]})") from None


def generator_from_state_dict(
    sd: Mapping[str, Tensor], *, compute_dtype: torch.dtype = torch.float32, conv_clamp: float | None = None
) -> Generator:
    """A `Generator` with these weights; resolution, channels, architecture and dimensions come from the shapes.
    `conv_clamp`, which isn't in the weights, as of `Generator`.

    Raises InputError (a ValueError) where names or shapes aren't those of a StyleGAN2 generator.
    """
    channels = _channels(sd, r"synthesis\.b(\d+)\.conv1\.weight", 0)
    resolution = max(channels)
    base, top = _base_and_max(channels)
    last = f"synthesis.b{resolution}.torgb.weight"
    (w_dim,) = shape_of(sd, "mapping.w_avg", 1)
    c_dim = shape_of(sd, "mapping.embed.weight", 2)[1] if "mapping.embed.weight" in sd else 0
    architecture = "orig"
    if "synthesis.b8.skip.weight" in sd:
        architecture = "resnet"
    elif "synthesis.b4.torgb.weight" in sd:
        architecture = "skip"
    return _build(
        Generator,
        sd,
        z_dim=shape_of(sd, "mapping.fc0.weight", 2)[1] - (w_dim if c_dim else 0),
        c_dim=c_dim,
        w_dim=w_dim,
        img_resolution=resolution,
        img_channels=shape_of(sd, last, 4)[0],
        num_mapping_layers=_count_layers(sd),
        channel_base=base,
        channel_max=top,
        architecture=architecture,
        compute_dtype=compute_dtype,
        conv_clamp=conv_clamp,
    )


def discriminator_from_state_dict(
    sd: Mapping[str, Tensor],
    *,
    mbstd_group_size: int | None = 4,
    compute_dtype: torch.dtype = torch.float32,
    conv_clamp: float | None = None,
) -> Discriminator:
    """A `Discriminator` with these weights. The minibatch-stddev group isn't in the weights: `mbstd_group_size` gives
    it; `conv_clamp` likewise, as of `Discriminator`.

    Raises InputError (a ValueError) where names or shapes aren't those of a StyleGAN2 discriminator.
    """
    channels = _channels(sd, r"b(\d+)\.conv0\.weight", 0)
    resolution = max(channels)
    channels[4], last_in, _, _ = shape_of(sd, "b4.conv.weight", 4)
    if last_in < channels[4]:
        raise InputError(f"b4.conv.weight has shape {tuple(sd['b4.conv.weight'].shape)}, fewer channels in than out")
    base, top = _base_and_max(channels)
    c_dim = shape_of(sd, "mapping.embed.weight", 2)[1] if "mapping.embed.weight" in sd else 0
    architecture = "orig"
    if f"b{resolution}.skip.weight" in sd:
        architecture = "resnet"
    elif "b4.fromrgb.weight" in sd:
        architecture = "skip"
    return _build(
        Discriminator,
        sd,
        c_dim=c_dim,
        img_resolution=resolution,
        img_channels=shape_of(sd, f"b{resolution}.fromrgb.weight", 4)[1],
        num_mapping_layers=_count_layers(sd) if c_dim else 8,
        channel_base=base,
        channel_max=top,
        architecture=architecture,
        cmap_dim=shape_of(sd, "b4.out.weight", 2)[0] if c_dim else None,
        mbstd_group_size=mbstd_group_size,
        mbstd_num_channels=last_in - channels[4],
        compute_dtype=compute_dtype,
        conv_clamp=conv_clamp,
    )
