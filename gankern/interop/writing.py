"""Writes networks in the forms that others read: gankern's network files, rosinality's checkpoints, state dicts."""

from pathlib import Path

from torch import nn

from gankern.errors import InputError
from gankern.files import replacing, save_torch
from gankern.interop import rosinality
from gankern.interop.export import export_generator
from gankern.interop.networks import PARTS, Networks
from gankern.models.files import save_network
from gankern.models.stylegan2 import Discriminator, Generator

FORMS = {
    ".safetensors": "gankern's network file",
    ".pt": "rosinality's checkpoint",
    ".pth": "state dict, public names",
    ".pt2": "torch.export program",
    ".onnx": "ONNX",
}


def write_networks(
    networks: Networks,
    path: str | Path,
    *,
    part: str | None = None,
    training: bool = False,
    truncation_psi: float | None = None,
    noise_mode: str | None = None,
) -> list[str]:
    """Writes to `path` in the form that its suffix says (`FORMS`); returns notes for a person.

    `part`: the network of a form that holds one (default: the generator that makes the best images). `training`: G
    and D too, in gankern's own. `truncation_psi`, `noise_mode`: of an export. Raises InputError for what the form
    can't hold.
    """
    path = Path(path)
    if path.suffix not in FORMS:
        forms = ", ".join(f"{suffix} ({what})" for suffix, what in FORMS.items())
        raise InputError(f"{path}: expected a name that ends in {forms}")
    if path.is_dir():
        raise InputError(f"{path}: a folder, expected a file's name")
    exported = path.suffix in (".pt2", ".onnx")
    _only(path, "--part", part is not None, path.suffix in (".safetensors", ".pth") or exported)
    _only(path, "--training", training, path.suffix == ".safetensors")
    _only(path, "--trunc", truncation_psi is not None, exported)
    _only(path, "--noise-mode", noise_mode is not None, exported)
    if path.suffix == ".pt":
        return _rosinality(networks, path)
    network = _chosen(networks, path, part)
    if path.suffix == ".pth":
        _torch_file({name: value.cpu() for name, value in network.state_dict().items()}, path)
        return _options_left(network)
    if network is networks.D:
        raise InputError(f"--part D: {path.suffix} is for generators alone; .pth and .pt hold a discriminator")
    if path.suffix == ".safetensors":
        return _own(networks, network, path, training)
    options = {"truncation_psi": 1.0 if truncation_psi is None else truncation_psi, "noise_mode": noise_mode or "const"}
    difference, names = export_generator(network, path, **options)
    return [f"run with batches of 1, 2 and 3: images differ by {difference:.1e} at most; inputs {', '.join(names)}"]


def _only(path: Path, option: str, given: bool, served: bool) -> None:
    if given and not served:
        raise InputError(f"{option}: not an option of a {path.suffix} file ({FORMS[path.suffix]})")


def _chosen(networks: Networks, path: Path, part: str | None) -> nn.Module:
    there = networks.parts()
    if part is None:
        part = next((name for name in PARTS if name in there), None)
    if part not in there:
        raise InputError(f"--part {part}: not in the file, which holds {', '.join(there) or 'no networks'}")
    return there[part]


def _own(networks: Networks, network: nn.Module, path: Path, training: bool) -> list[str]:
    others = {name: getattr(networks, name) for name in ("G", "D")} if training else {}
    missing = [name for name, other in others.items() if other is None]
    if missing:
        raise InputError(f"--training: the file holds no {' and no '.join(missing)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_network(path, network, nimg=networks.nimg, training=others)
    left = [name for name, other in networks.parts().items() if other is not network and name not in others]
    if not left:
        return []
    return [f"{' and '.join(left)} left out" + ("" if training else "; --training writes G and D too")]


def _options_left(network: nn.Module) -> list[str]:
    """What a StyleGAN2 network's weights under public names don't say, where it isn't what their readers take."""
    notes, config = [], network.config
    if isinstance(network, Generator | Discriminator) and config["conv_clamp"] is not None:
        notes.append(f"conv_clamp {config['conv_clamp']:g} left out: a state dict is weights alone")
    if isinstance(network, Discriminator) and config["mbstd_group_size"] != 4:
        notes.append(f"mbstd_group_size {config['mbstd_group_size']} left out: a state dict is weights alone")
    return notes


def _rosinality(networks: Networks, path: Path) -> list[str]:
    state, notes = {}, []
    for part, network in networks.parts().items():
        state[rosinality.NAMES[part]] = rosinality.write(network)
        why = rosinality.unbuildable(network)
        if why:
            notes.append(f"{part}: {why}: rosinality's own code won't reproduce it")
    generator = networks.G_ema if networks.G_ema is not None else networks.G
    if isinstance(generator, Generator):
        state["latent_avg"] = generator.mapping.w_avg.clone().cpu()
    _torch_file(state, path)
    return notes


def _torch_file(content: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_torch(content, temporary)
