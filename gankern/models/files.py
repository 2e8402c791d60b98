"""Network files: weights as safetensors with the network's config in the header. Nothing in them is executed."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from gankern._version import __version__
from gankern.errors import InputError
from gankern.files import replacing
from gankern.models import progan, stylegan2

FORMAT = 1
GENERATORS: dict[str, type[nn.Module]] = {"stylegan2": stylegan2.Generator, "progan": progan.Generator}


def save_network(
    path: Path,
    network: nn.Module,
    *,
    nimg: int,
    extra: dict | None = None,
    training: dict[str, nn.Module] | None = None,
) -> None:
    """Writes a network's weights and config as safetensors, whole or not at all. `training`: StyleGAN2's G and D as
    well, which generating images has no use for."""
    (architecture,) = (name for name, kind in GENERATORS.items() if isinstance(network, kind))
    header = {"format": FORMAT, "gankern": __version__, "architecture": architecture, "config": network.config}
    header |= {"nimg": nimg} | (extra or {})
    if architecture == "progan":
        header["lod"] = network.lod
    tensors = dict(network.state_dict())
    for part, other in (training or {}).items():
        header |= {"training": header.get("training", {}) | {part: other.config}}
        tensors |= {f"{part}/{name}": value.clone() for name, value in other.state_dict().items()}  # maybe shared
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with replacing(path) as temporary:  # save_file would make it unreadable for others, and hide a full disk's errno
        temporary.write_bytes(safetensors.torch.save(tensors, metadata={"gankern": json.dumps(header)}))


def load_network(
    path: str | Path, device: torch.device | str = "cpu", compute_dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, dict]:
    """The generator in a network file, in eval mode, and its header {architecture, config, nimg, ...}. ProGAN's has
    the `lod` that it is trained to.

    Raises InputError where the file is missing, truncated, not gankern's, of another architecture or of a newer
    version.
    """
    path = Path(path)
    header, tensors = _read(path, lambda name: "/" not in name)
    try:
        version, writer, architecture = int(header["format"]), str(header["gankern"]), str(header["architecture"])
        config, _, lod = dict(header["config"]), int(header["nimg"]), float(header.get("lod", 0))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"--network {path}: its gankern header can't be read ({error!r:.200})") from None
    if version > FORMAT:
        raise InputError(f"--network {path}: written by a newer gankern ({writer}); this is {__version__}")
    if architecture not in GENERATORS:
        known = " or ".join(map(repr, GENERATORS))
        raise InputError(f"--network {path}: architecture {architecture!r:.50}, expected {known}")
    with _fitting(path, architecture):
        network = build_fitting(GENERATORS[architecture], tensors, **config, compute_dtype=compute_dtype)
        if architecture == "progan":
            network.place(lod, None)  # refuses one that it doesn't have
            network.lod = lod
    return network.eval().requires_grad_(False).to(device), header


def load_training_networks(path: str | Path) -> dict[str, nn.Module]:
    """G and D of a network file that was written with them, by these names; else nothing. Errors as of
    `load_network`."""
    path, found = Path(path), {}
    header, tensors = _read(path, lambda name: "/" in name)
    configs, kinds = header.get("training", {}), {"G": stylegan2.Generator, "D": stylegan2.Discriminator}
    if not isinstance(configs, dict) or not all(isinstance(config, dict) for config in configs.values()):
        raise InputError(f"--network {path}: its gankern header can't be read (training is no dict of configs)")
    if configs.keys() - kinds.keys():
        raise InputError(f"--network {path}: its gankern header can't be read (training holds more than G and D)")
    for part, config in configs.items():
        with _fitting(path, part):
            own = {name.removeprefix(f"{part}/"): t for name, t in tensors.items() if name.startswith(f"{part}/")}
            found[part] = build_fitting(kinds[part], own, **config)
    return found


def build_fitting(kind: type[nn.Module], tensors: Mapping[str, Tensor], **config) -> nn.Module:
    """A network with these weights. Raises InputError for names or shapes that aren't its own, before anything of its
    size is made: a file's config could ask for any."""
    if config.get("num_mapping_layers", 0) > len(tensors):  # modules cost memory and time on meta too
        raise InputError(f"num_mapping_layers {config['num_mapping_layers']}, of {len(tensors)} tensors in all")
    with torch.device("meta"):
        own = kind(**config).state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unknown:
        word, names = ("lacks", missing) if missing else ("has the unknown", unknown)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise InputError(f"state dict {word} {names[0]}{more}")
    for name, value in tensors.items():
        if own[name].shape != value.shape:
            raise InputError(f"{name} has shape {tuple(value.shape)}, expected {tuple(own[name].shape)}")
    held = {storage._cdata: storage.nbytes() for storage in (value.untyped_storage() for value in tensors.values())}
    if sum(value.nbytes for value in tensors.values()) > 2 * sum(held.values()):  # a small file could ask for any size
        raise InputError("state dict: its tensors share their numbers, of which it holds far fewer")
    network = kind(**config)
    network.load_state_dict(tensors)
    return network


@contextlib.contextmanager
def _fitting(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, TypeError, ValueError, ArithmeticError) as error:
        first = str(error).strip().splitlines()
        reason = " ".join(first[:2])
        raise InputError(f"--network {path}: weights and config don't fit, architecture {what!r} ({reason})") from None


def _read(path: Path, wanted: Callable[[str], bool]) -> tuple[dict, dict[str, Tensor]]:
    """The header, and the tensors whose names are wanted."""
    if not path.is_file():
        raise InputError(f"--network {path}: no such file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys() if wanted(name)}  # noqa: SIM118
        header = json.loads(metadata["gankern"]) if "gankern" in metadata else None
    except (safetensors.SafetensorError, ValueError, OSError, RecursionError) as error:
        raise InputError(f"--network {path}: truncated or not a safetensors file ({error})") from None
    if not isinstance(header, dict):
        raise InputError(f"--network {path}: a safetensors file, but not a gankern network (it has no gankern header)")
    return header, tensors
