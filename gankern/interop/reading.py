"""Opens a file of networks, whoever wrote it, without executing anything in it: snapshots (.pkl), torch files (.pt)
under rosinality's or the public names, gankern's own network files and checkpoints, plain state dicts."""

import argparse
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from gankern.errors import InputError
from gankern.files import refuse_inflating
from gankern.interop import rosinality
from gankern.interop.networks import Networks
from gankern.interop.snapshots import read_snapshot
from gankern.interop.stylegan2 import discriminator_from_state_dict, generator_from_state_dict
from gankern.models.files import load_network, load_training_networks

PUBLIC = {"synthesis.b4.conv1.weight": generator_from_state_dict, "b4.out.weight": discriminator_from_state_dict}
"""A name by which a plain state dict is known."""


def read_networks(path: str | Path, option: str | None = None) -> Networks:
    """All networks in a file, or in a checkpoint folder. `option`: that which names it, for messages.

    Raises InputError for what isn't there, isn't networks, is damaged, or tries to run something when it is read.
    """
    try:
        return _read(Path(path))
    except InputError as error:
        said = str(error).removeprefix("--network ")
        said = "".join(c if c.isprintable() else repr(c)[1:-1] for c in said)  # names in the file may hold anything
        raise InputError(f"{option} {said}" if option else said) from None


def _read(path: Path) -> Networks:
    if path.is_dir():
        return _checkpoint(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(16)
    if start[:2] == b"PK" or _is_older_torch(start):
        return _named(path, _torch_file(path))
    if start[:1] == b"\x80" or path.suffix == ".pkl":
        return read_snapshot(path)
    return _safetensors(path)


def open_generator(
    path: str | Path,
    device: torch.device | str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
    option: str | None = None,
) -> nn.Module:
    """The generator that makes the best images in a file of any kind, in eval mode on `device`; `option` and errors as
    of `read_networks`."""
    network = read_networks(path, option).generator(Path(path))
    if compute_dtype != torch.float32:
        with torch.device(device):
            other = type(network)(**network.config, compute_dtype=compute_dtype)
        other.load_state_dict(network.state_dict())
        network = other.eval().requires_grad_(False)
    return network.to(device)


# -- torch's files ----------------------------------------------------------------------------------------------------


def _is_older_torch(start: bytes) -> bool:
    """Whether a pickle begins with the number with which torch's older format does."""
    return start.startswith(pickle.dumps(torch.serialization.MAGIC_NUMBER, 2)[:-1])


def _torch_file(path: Path) -> Any:
    """What torch's weights-only loader makes of a file. An argparse.Namespace in it, which training scripts save
    beside the weights, is data too."""
    refuse_inflating(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), path.open("rb") as file:  # a path's suffix counts
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file it raises whatever its stack comes to
        lines = str(error).splitlines() or [type(error).__name__]
        reason = next((line for line in lines if "GLOBAL" in line), lines[0])
        raise InputError(f"{path}: refused by torch's weights-only loader, or damaged ({reason[:300]})") from None


# -- dicts of tensors -------------------------------------------------------------------------------------------------


def _tensors(path: Path, content: Any, what: str) -> dict[str, Tensor]:
    """A state dict; raises InputError where it is anything else, or a tensor is larger than what it is stored in."""
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{path}: {what} is no state dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            raise InputError(f"{path}: {what} holds {name!r:.50}, which is no tensor")
        if not value.is_floating_point() or value.numel() * value.itemsize > value.untyped_storage().nbytes():
            raise InputError(f"{path}: {what}: {name} is no tensor of stored numbers")
    return dict(content)


def _named(path: Path, content: Any) -> Networks:
    """By the names that the content has."""
    content = content if isinstance(content, Mapping) else {}
    try:
        for names, read, origin in _forms(path, content):
            found = {part: read(part, content[key]) for part, key in names.items() if key in content}
            if found:
                return Networks(**found, origin=origin)
        sd = _tensors(path, content, "it")
        if rosinality.is_rosinality(sd):
            part = "D" if "final_conv.0.weight" in sd else "G_ema"
            return Networks(**{part: _rosinality(path, None)(part, sd)}, origin="state dict, rosinality's names")
        for name, build in PUBLIC.items():
            if name in sd:
                part = "D" if build is discriminator_from_state_dict else "G_ema"
                return Networks(**{part: build(sd)}, origin="state dict, public names")
    except InputError as error:
        prefix = "" if str(error).startswith(str(path)) else f"{path}: "
        raise InputError(f"{prefix}{error}") from None
    raise InputError(f"{path}: no networks of a known form (keys {', '.join(map(str, list(content)[:5])) or 'none'})")


def _forms(path: Path, content: Mapping):
    """The forms of several networks in a file: {part: key}, how one is read, what it is called."""
    yield rosinality.NAMES, _rosinality(path, content.get("latent_avg")), "rosinality's checkpoint"
    yield {part: part for part in rosinality.NAMES}, _public(path), "state dicts, public names"


def _rosinality(path: Path, w_avg: Any) -> Callable[[str, Any], nn.Module]:
    def read(part: str, content: Any) -> nn.Module:
        sd = _tensors(path, content, part)
        if part == "D":
            return rosinality.read_discriminator(sd)
        mean = None if w_avg is None else _tensors(path, {"latent_avg": w_avg}, "it")["latent_avg"]
        return rosinality.read_generator(sd, mean)

    return read


def _public(path: Path) -> Callable[[str, Any], nn.Module]:
    def read(part: str, content: Any) -> nn.Module:
        sd = _tensors(path, content, part)
        return discriminator_from_state_dict(sd) if part == "D" else generator_from_state_dict(sd)

    return read


# -- gankern's own ----------------------------------------------------------------------------------------------------


def _is_ours(path: Path) -> bool:
    """Whether a safetensors file has gankern's header; raises InputError for what is no such file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return "gankern" in (file.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: no file of networks, or truncated ({error})") from None


def _safetensors(path: Path) -> Networks:
    if not _is_ours(path):
        return _named(path, safetensors.torch.load_file(path))
    network, header = load_network(path)
    return Networks(G_ema=network, **load_training_networks(path), origin="gankern's network", nimg=header["nimg"])


def _checkpoint(path: Path) -> Networks:
    """A StyleGAN2 run's checkpoint-<kimg>/."""
    if not (path / "meta.json").is_file() or not (path / "state.pt").is_file():
        raise InputError(f"{path}: a folder, but no checkpoint (meta.json and state.pt)")
    state = _torch_file(path / "state.pt")
    trainer = state.get("trainer") if isinstance(state, Mapping) else None
    if not isinstance(trainer, Mapping) or "synthesis.b4.conv1.weight" not in trainer.get("G_ema", {}):
        raise InputError(f"{path}: no checkpoint of a StyleGAN2 run; a ProGAN's network-*.safetensors can be converted")
    read = _public(path)
    parts = {part: read(part, trainer[part]) for part in rosinality.NAMES}
    return Networks(**parts, origin="gankern's checkpoint", nimg=int(trainer["nimg"]))
