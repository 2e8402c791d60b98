"""The perceptual distance of two images: unit-normalised VGG16 features, squared differences. Zhang et al. 2018
(arXiv:1801.03924). The network's weights come from a file that the user has."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import safetensors
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gankern.errors import InputError
from gankern.files import refuse_inflating

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of VGG16's convolutions (Simonyan and Zisserman 2015, arXiv:1409.1556, D); 2x2 maxima between stages."""
MAX_SIZE, MIN_SIZE = 256, 16

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of images in [0, 1], as VGG16 was trained
_EPS = 1e-10


class Perceptual(nn.Module):
    """Images [N, 1 or 3, H, W] in [-1, 1] -> five maps of features, of length 1 at each pixel; images above 256 px are
    reduced to it by their area means. Parameters have torchvision's names; `lin0` ... `lin4` [C] weigh the channels,
    ones where a file has none."""

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        self.taps, below = [], 3
        for number, stage in enumerate(STAGES):
            layers += [nn.MaxPool2d(2)] if number else []
            for channels in stage:
                layers += [nn.Conv2d(below, channels, 3, padding=1), nn.ReLU()]
                below = channels
            self.taps.append(len(layers) - 1)
            self.register_buffer(f"lin{number}", torch.ones(below))
        self.features = nn.Sequential(*layers)
        for name, numbers in (("mean", _MEAN), ("std", _STD)):  # with values on the meta device, too: no file has them
            self.register_buffer(name, torch.tensor(numbers, device="cpu")[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = (images + 1) / 2
        if max(x.shape[2:]) > MAX_SIZE:
            x = F.interpolate(x, MAX_SIZE, mode="area")
        x = (x - self.mean) / self.std  # grey becomes three channels
        maps = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.taps:
                maps.append(x / (x.square().sum(1, keepdim=True).sqrt() + _EPS))
        return maps

    def distance(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """Of features, a number for each image [N]: means over pixels, summed over the maps."""
        weights = [getattr(self, f"lin{number}") for number in range(len(STAGES))]
        parts = [
            (w[:, None, None] * (x - y).square()).sum(1).mean((1, 2)) for w, x, y in zip(weights, a, b, strict=True)
        ]
        return torch.stack(parts).sum(0)


def load_perceptual(path: str | Path) -> Perceptual:
    """From a state dict of VGG16 under torchvision's names, .pth or .safetensors; with LPIPS's linear weights where the
    file holds them too (`lin0...`). Raises InputError naming the file and what it lacks; nothing in it is executed."""
    path = Path(path)
    found = _read(path)
    with torch.device("meta"):
        network = Perceptual()
    state = {}
    for name, wanted in network.state_dict().items():
        if name.startswith("lin"):  # LPIPS's own file has lin0.model.1.weight [1, C, 1, 1]
            given = next(
                (t.flatten() for key, t in found.items() if key.split(".")[0] == name), torch.ones(wanted.shape)
            )
        elif name in found:
            given = found[name]
        else:
            raise InputError(f"--features {path}: lacks {name}, expected a VGG16 under torchvision's names")
        if given.shape != wanted.shape:
            raise InputError(f"--features {path}: {name} has shape {list(given.shape)}, expected {list(wanted.shape)}")
        state[name] = given.float()
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"--features {path}: no such file")
    refuse_inflating(path, "--features ")
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys() if _is_read(name)}  # noqa: SIM118
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how a file that is refused was pickled
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on corrupt data an unpickler raises almost anything
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:100]
        raise InputError(f"--features {path}: can't be opened as weights alone ({first})") from None
    if not isinstance(found, dict):
        raise InputError(f"--features {path}: holds a {type(found).__name__}, expected a state dict")
    return {str(name): t for name, t in found.items() if isinstance(t, Tensor) and _is_read(str(name))}


def _is_read(name: str) -> bool:
    return name.startswith(("features.", "lin"))
