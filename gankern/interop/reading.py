"""Opens a file of networks, whoever wrote it, without executing anything in it: snapshots (.pkl), torch files (.pt)
under rosinality's or the public names, gankern's own network files and checkpoints, plain state dicts."""

import argparse
import contextlib
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from gankern.errors import InputError
from gankern.files import refuse_inflating
from gankern.interop import rosinality
from gankern.interop.networks import PARTS, Networks, printable
from gankern.interop.pickles import word
from gankern.interop.snapshots import read_snapshot
from gankern.interop.stylegan2 import discriminator_from_state_dict, generator_from_state_dict
from gankern.models.files import load_network, load_training_networks

PUBLIC = {"synthesis.b4.conv1.weight": generator_from_state_dict, "b4.out.weight": discriminator_from_state_dict}
"""A name by which a plain state dict is known."""
MOST_SAID = 1000
"""Of an error: the names in a file may be of any length."""


def read_networks(path: str | Path, option: str | None = None) -> Networks:
    """All networks in a file, or in a checkpoint folder. `option`: that which names it, for messages.

    Raises InputError for what isn't there, isn't networks, is damaged, or tries to run something when it is read.
    """
    try:
        return _read(Path(path))
    except InputError as error:
        said = printable(str(error).removeprefix("--network "))[: MOST_SAID + len(str(path))]
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


def open_generator(path: str | Path, device: torch.device | str = "cpu", option: str | None = None) -> nn.Module:
    """The generator that makes the best images in a file of any kind, in eval mode on `device`; `option` and errors as
    of `read_networks`."""
    return read_networks(path, option).generator(Path(path)).to(device)


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
            raise InputError(f"{path}: {what} holds {word(name)}, which is no tensor")
        there = value.untyped_storage().nbytes() if value.device.type == "cpu" else -1  # meta: a size alone
        if not value.is_floating_point() or value.nbytes > there:
            raise InputError(f"{path}: {what}: {name} is no tensor of stored numbers")
    return dict(content)


def _named(path: Path, content: Any) -> Networks:
    """By the names that the content has."""
    content = content if isinstance(content, Mapping) else {}
    with _naming(path):
        for names, read, origin in _forms(path, content):
            found = {part: read(part, content[key]) for part, key in names.items() if key in content}
            if found:
                return Networks(
                    **found, origin=origin, notes=_made_up(content, [content[names[part]] for part in found])
                )
        sd = _tensors(path, content, "it")
        if rosinality.is_rosinality(sd):
            part = "D" if "final_conv.0.weight" in sd else "G_ema"
            found, notes = {part: _rosinality(path, None)(part, sd)}, _made_up({}, [sd])
            return Networks(**found, origin="state dict, rosinality's names", notes=notes)
        for name, build in PUBLIC.items():
            if name in sd:
                part = "D" if build is discriminator_from_state_dict else "G_ema"
                return Networks(**{part: build(sd)}, origin="state dict, public names")
    keys = ", ".join(key[:50] if isinstance(key, str) else word(key) for key in list(content)[:5])
    raise InputError(f"{path}: no networks of a known form (keys {keys or 'none'})")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors within name the file."""
    try:
        yield
    except InputError as error:
        prefix = "" if str(error).startswith(str(path)) else f"{path}: "
        raise InputError(f"{prefix}{error}") from None


def _made_up(content: Mapping, parts: Iterable[Mapping]) -> list[str]:
    """What is made where a file of rosinality's lacks it."""
    generators, notes = [sd for sd in parts if "conv1.conv.weight" in sd], []
    if generators and "latent_avg" not in content:
        notes.append("the file has no mean latent: that of 10,000 seeded ones was taken")
    if any(map(rosinality.lacks_noise, generators)):
        notes.append("the file has no noise maps: they were drawn from a fixed seed")
    return notes


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


def _public(path: Path, group: int = 4) -> Callable[[str, Any], nn.Module]:
    """`group`: minibatch stddev's."""

    def read(part: str, content: Any) -> nn.Module:
        sd = _tensors(path, content, part)
        if part == "D":
            return discriminator_from_state_dict(sd, mbstd_group_size=group)
        return generator_from_state_dict(sd)

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
    parts = {"G_ema": network} | load_training_networks(path)
    return Networks(**parts, origin="gankern's network", nimg=int(header["nimg"]), options_told=True)


def _checkpoint(path: Path) -> Networks:
    """A StyleGAN2 run's checkpoint-<kimg>/."""
    if not (path / "meta.json").is_file() or not (path / "state.pt").is_file():
        raise InputError(f"{path}: a folder, but no checkpoint (meta.json and state.pt)")
    state = _torch_file(path / "state.pt")
    trainer, config = (_within(state, name) for name in ("trainer", "config"))
    parts = {part: _within(trainer, part) for part in PARTS}
    if "synthesis.b4.conv1.weight" not in parts["G_ema"]:
        raise InputError(f"{path}: no checkpoint of a StyleGAN2 run; a ProGAN's network-*.safetensors can be converted")
    nimg, group = trainer.get("nimg"), config.get("mbstd_group", 4)
    if type(nimg) is not int or type(group) is not int:
        raise InputError(f"{path}: a damaged checkpoint (nimg {word(nimg)}, mbstd_group {word(group)})")
    read = _public(path, group)
    with _naming(path):
        found = {part: read(part, content) for part, content in parts.items()}
    return Networks(**found, origin="gankern's checkpoint", nimg=nimg, options_told="mbstd_group" in config)


def _within(content: Any, name: str) -> Mapping:
    """What a dict holds under a name, where both are dicts."""
    found = content.get(name) if isinstance(content, Mapping) else None
    return found if isinstance(found, Mapping) else {}
