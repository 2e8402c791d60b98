"""The Laplacian pyramid whose levels the sliced Wasserstein distance compares.

Burt & Adelson 1983, "The Laplacian Pyramid as a Compact Image Code", with the binomial filter [1, 4, 6, 4, 1] / 16.
"""

import torch
from torch.nn.functional import pad

from gankern.metrics._images import Images, to_device

MIN_RESOLUTION = 16  # the coarsest level


def pyramid_resolutions(resolution: int) -> list[int]:
    """The levels' resolutions, finest first: 128 -> [128, 64, 32, 16]. ValueError unless a power of two >= 16."""
    if resolution < MIN_RESOLUTION or resolution & (resolution - 1):
        raise ValueError(f"resolution: expected a power of two of at least {MIN_RESOLUTION}, got {resolution}")
    return [resolution >> i for i in range(resolution.bit_length() - MIN_RESOLUTION.bit_length() + 1)]


def laplacian_pyramid(images: Images) -> list[torch.Tensor]:
    """Laplacian pyramid of images [N, C, R, R], R a power of two >= 16, finest level first, down to 16 x 16.

    Float32 on the images' device and in their units (0..255 for uint8). The last level is the low-pass rest; adding
    the upsampled levels gives the images back. ValueError for another shape.
    """
    x = to_device(images, images.device if isinstance(images, torch.Tensor) else torch.device("cpu")).float()
    if x.ndim != 4 or x.shape[2] != x.shape[3]:
        raise ValueError(f"images: expected square images [N, C, R, R], got shape {tuple(x.shape)}")
    levels = []
    for _ in pyramid_resolutions(x.shape[2])[1:]:
        level, x = split_level(x)
        levels.append(level)
    return [*levels, x]


def split_level(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of the pyramid: the Laplacian level [N, C, R, R] and the low-pass rest [N, C, R/2, R/2]."""
    low = _down(x)
    return x - _up(low), low


def _down(x: torch.Tensor) -> torch.Tensor:
    """Low-pass and decimate: mirrored edges, even samples kept. [N, C, R, R] -> [N, C, R/2, R/2]."""
    for _ in range(2):  # rows, then, transposed, columns
        p = pad(x, (0, 0, 2, 2), mode="reflect")
        a, b, c, d, e = (p[..., i : i + x.shape[2] : 2, :] for i in range(5))
        x = ((a + e) + 4 * (b + d) + 6 * c).mul_(1 / 16).transpose(2, 3)
    return x.contiguous()


def _up(x: torch.Tensor) -> torch.Tensor:
    """Zero-insert and low-pass with gain 2 an axis: [N, C, R, R] -> [N, C, 2R, 2R].

    An even sample sees three of the inputs, an odd one two. Mirroring the zero-inserted signal means a mirrored first
    and a repeated last input.
    """
    for _ in range(2):
        n, c, h, w = x.shape
        p = torch.cat([x[:, :, 1:2], x, x[:, :, -1:]], dim=2)
        y = x.new_empty(n, c, 2 * h, w)
        y[:, :, 0::2] = (p[:, :, :-2] + p[:, :, 2:] + 6 * x).mul_(1 / 8)
        y[:, :, 1::2] = (x + p[:, :, 2:]).mul_(1 / 2)
        x = y.transpose(2, 3)
    return x.contiguous()
