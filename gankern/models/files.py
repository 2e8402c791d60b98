"""Network files: weights as safetensors with the network's config in the header. Nothing in them is executed."""

import json
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from gankern._version import __version__
from gankern.errors import InputError
from gankern.files import replacing
from gankern.models import stylegan2

FORMAT = 1


def save_network(path: Path, network: nn.Module, *, nimg: int, extra: dict | None = None) -> None:
    """Writes a network's weights and config as safetensors, whole or not at all."""
    header = {"format": FORMAT, "gankern": __version__, "architecture": "stylegan2", "config": network.config}
    header |= {"nimg": nimg} | (extra or {})
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with replacing(path) as temporary:  # save_file would make it unreadable for others, and hide a full disk's errno
        temporary.write_bytes(safetensors.torch.save(tensors, metadata={"gankern": json.dumps(header)}))


def load_network(
    path: str | Path, device: torch.device | str = "cpu", compute_dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, dict]:
    """The generator in a network file, in eval mode, and its header {architecture, config, nimg, ...}.

    Raises InputError where the file is missing, truncated, not gankern's, of another architecture or of a newer
    version.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"--network {path}: no such file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = safetensors.torch.load_file(path)
        header = json.loads(metadata["gankern"]) if "gankern" in metadata else None
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise InputError(f"--network {path}: truncated or not a safetensors file ({error})") from None
    if header is None:
        raise InputError(f"--network {path}: a safetensors file, but not a gankern network (it has no gankern header)")
    try:
        version, writer, architecture = int(header["format"]), header["gankern"], header["architecture"]
        config, _ = dict(header["config"]), int(header["nimg"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"--network {path}: its gankern header can't be read ({error!r})") from None
    if version > FORMAT:
        raise InputError(f"--network {path}: written by a newer gankern ({writer}); this is {__version__}")
    if architecture != "stylegan2":
        raise InputError(f"--network {path}: architecture {architecture!r}, expected 'stylegan2'")
    try:
        network = stylegan2.Generator(**config, compute_dtype=compute_dtype)
        network.load_state_dict(tensors)
    except (RuntimeError, TypeError, ValueError, ArithmeticError) as error:
        first = str(error).strip().splitlines()
        raise InputError(f"--network {path}: weights and config don't fit ({' '.join(first[:2])})") from None
    return network.eval().requires_grad_(False).to(device), header
