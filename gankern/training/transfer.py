"""Starting from networks that were trained before, here or elsewhere (`--resume FILE`), and freezing some of them."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gankern.errors import InputError
from gankern.interop.networks import Networks
from gankern.interop.reading import read_networks
from gankern.models.stylegan2 import Discriminator, Generator
from gankern.training.phases import build_networks
from gankern.training.stylegan2_options import StyleGAN2Config


def is_start(path: str) -> bool:
    """Whether a path is of networks to start from, not of a run's folder to continue in."""
    named = Path(path).suffix in (".pkl", ".pt", ".pth", ".safetensors") and not Path(path).is_dir()
    return named or Path(path).is_file() or (Path(path) / "state.pt").is_file()


def digest(path: Path) -> str:
    """Of the file's contents, or of a checkpoint's."""
    found = hashlib.sha256()
    with (path / "state.pt" if path.is_dir() else path).open("rb") as file:
        while block := file.read(1 << 22):
            found.update(block)
    return found.hexdigest()


def start_options(path: str, resolution: int, c_dim: int) -> dict[str, Any]:
    """The options of a run on images of `resolution` with labels of `c_dim` numbers that starts from the networks in
    `path`: their dimensions, and no ramp-up of the average, which begins with theirs. Raises InputError where they
    don't go with the images."""
    networks = read_networks(path, "--resume")
    G = networks.generator(Path(path))
    if not isinstance(G, Generator):
        raise InputError(f"--resume {path}: a {networks.origin} of a ProGAN, expected StyleGAN2 networks")
    for name, has, wants in (("img_resolution", "px", resolution), ("c_dim", "labels", c_dim), ("img_channels", "", 3)):
        if G.config[name] != wants:
            more = "; --resolution reduces the images" if name == "img_resolution" and G.config[name] < wants else ""
            raise InputError(f"--resume {path}: its {name} is {G.config[name]}, the images' {wants} {has}{more}")
    same = {"z_dim": "z_dim", "w_dim": "w_dim", "channel_base": "channel_base", "channel_max": "channel_max"}
    same |= {"mapping_layers": "num_mapping_layers", "g_architecture": "architecture"}
    options = {ours: G.config[theirs] for ours, theirs in same.items()}
    if networks.D is not None:
        options["d_architecture"] = networks.D.config["architecture"]
        if networks.options_told and networks.D.config["mbstd_group_size"]:
            options["mbstd_group"] = networks.D.config["mbstd_group_size"]
    where = Path(path).expanduser().resolve()
    return options | {"ema_rampup": None, "start_from": str(where), "start_digest": digest(where)}


def check_start(config: StyleGAN2Config) -> None:
    """Raises InputError where a run's options make other networks than those that it starts from, or freeze them
    all."""
    _states(config, read_networks(config.start_from, "--resume"))
    learning(build_networks(config, "meta")[1], config.freeze_d)


def _states(config: StyleGAN2Config, networks: Networks) -> dict[str, dict[str, torch.Tensor]]:
    """The state of each network that the file has, and G's or its average's from the other where it has one of them."""
    G, D = build_networks(config, "meta")
    parts = networks.parts()
    average = networks.generator(Path(config.start_from))
    parts |= {"G": parts.get("G", average), "G_ema": average}
    states = {}
    for part, network in parts.items():
        state, own = network.state_dict(), (D if part == "D" else G).state_dict()
        for name in sorted(own.keys() | state.keys()):
            shapes = [tuple(sd[name].shape) if name in sd else "missing" for sd in (state, own)]
            if shapes[0] != shapes[1]:
                raise InputError(
                    f"--resume {config.start_from}: {part}'s {name} is {shapes[0]}, the options make it {shapes[1]}"
                )
        states[part] = state
    return states


def start_networks(config: StyleGAN2Config, G: nn.Module, D: nn.Module, G_ema: nn.Module) -> str:
    """Gives the networks the weights that the run starts from; returns a line that says which. Raises InputError where
    the file isn't the one that the run was begun with."""
    path = Path(config.start_from)
    if not path.exists():
        raise InputError(f"--resume {path}: no longer there, and the run has no checkpoint yet")
    if digest(path) != config.start_digest:
        raise InputError(f"--resume {path}: has changed since the run was begun; give another --out")
    networks = read_networks(path, "--resume")
    states = _states(config, networks)
    for part, network in (("G", G), ("D", D), ("G_ema", G_ema)):
        if part in states:
            network.load_state_dict(states[part])
    new = "" if "D" in states else ", D anew (the file has none)"
    clamps = {network.config["conv_clamp"] for network in networks.parts().values()} - {None}
    new += "".join(f", without its conv_clamp {clamp:g}" for clamp in sorted(clamps))
    return f"starting from {path}: {', '.join(states)} of a {networks.origin}{new}; optimizers and counters begin anew"


def layers_from_the_image(D: Discriminator) -> list[nn.Module]:
    """D's layers in the order in which an image passes them: of each resolution from-RGB, conv0, conv1, skip; then
    those of the last stage."""
    layers = [getattr(block, name, None) for block in D.blocks() for name in ("fromrgb", "conv0", "conv1", "skip")]
    layers += [getattr(D.b4, name, None) for name in ("fromrgb", "conv", "fc", "out")]
    return [layer for layer in layers if layer is not None]


def learning(D: Discriminator, frozen: int) -> list[nn.Parameter]:
    """D's parameters without those of its first `frozen` layers, which keep what they have learned: Mo et al. 2020
    (arXiv:2002.10964). Raises InputError where nothing would be left of them."""
    layers = layers_from_the_image(D)
    if frozen >= len(layers):
        raise InputError(f"--freeze-d {frozen}: the discriminator has {len(layers)} layers, expected fewer")
    kept = {id(p) for layer in layers[:frozen] for p in layer.parameters()}
    return [p for p in D.parameters() if id(p) not in kept]
