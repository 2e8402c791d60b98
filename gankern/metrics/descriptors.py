"""Random patches of every pyramid level of a set of images, collected batch by batch in bounded memory."""

from collections.abc import Callable

import numpy as np
import torch

from gankern.metrics._images import Images, check_images, chunk_length, default_device, to_device
from gankern.metrics.pyramid import laplacian_pyramid, pyramid_resolutions, split_level

PATCH = 7
PATCHES_PER_IMAGE = 128

_STEPS = 128  # levels lie in [-255, 255], so int16 holds them in steps of 1/128 grey level, in half of float32's memory
_PIXELS_UP_TO = 64  # below, an image's pixels take less room than its 128 patches of every level: hold those instead


class DescriptorCollector:
    """128 patches of 7 x 7 x C at each Laplacian level of each image: what `swd` compares.

    Feed `num_images` images with `add`, in batches of any size; the batches' size changes nothing. Positions are
    uniform over the image, drawn from `seed`: give the two sets of a comparison different seeds. 16384 RGB images take
    0.4 GB of host memory up to 64 x 64, and 0.6 GB more for each doubling.
    """

    def __init__(
        self,
        resolution: int,
        channels: int,
        num_images: int,
        seed: int = 0,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        """`device` does the arithmetic: None is the GPU where there is one. ValueError for sizes that cannot be."""
        self.resolutions = pyramid_resolutions(resolution)
        if channels not in (1, 3):
            raise ValueError(f"channels: expected 1 or 3, got {channels}")
        if num_images < 1:
            raise ValueError(f"num_images: expected at least 1, got {num_images}")
        self.channels, self.num_images, self.seed = channels, num_images, seed
        self.count = 0  # images taken so far
        self.device = default_device(device)
        # Images at a time: a chunk's patches in float32 may be larger than its pixels.
        of_pixels, of_patches = (resolution, resolution), (PATCHES_PER_IMAGE, PATCH**2)
        self._step = min(chunk_length(channels, *size) for size in (of_pixels, of_patches))
        size = min(resolution, _PIXELS_UP_TO)
        self._pixels = torch.empty(num_images, channels, size, size, dtype=torch.int16)
        self._patches = {r: self._empty() for r in self.resolutions if r > _PIXELS_UP_TO}
        self._corners = {r: self._draw_corners(r) for r in self.resolutions}

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the whole set of images: (N, C, R, R)."""
        return self.num_images, self.channels, self.resolutions[0], self.resolutions[0]

    def add(self, images: Images) -> None:
        """Take the next images, uint8 [n, C, R, R]. ValueError for other shapes or more than `num_images` in all."""
        n, *shape = check_images("images", images)
        expected = list(self.shape[1:])
        if shape != expected:
            raise ValueError(f"images: expected {expected} an image, got {shape}")
        if self.count + n > self.num_images:
            raise ValueError(f"images: {self.count} + {n} are more than num_images = {self.num_images}")
        for i in range(0, n, self._step):
            self._add_chunk(to_device(images[i : i + self._step], self.device))

    def skip(self, n: int) -> None:
        """Leave the next n images to another process's collector of the same set."""
        self.count += n

    def complete(self, gather: Callable[[torch.Tensor], None]) -> None:
        """Take what such collectors have: `gather` gets tensors with a row for each image of the set, in which the
        skipped ones' are missing, and fills them in."""
        for rows in (self._pixels, *(patches.view(self.num_images, -1) for patches in self._patches.values())):
            gather(rows)
        self.count = self.num_images

    def level(self, resolution: int) -> torch.Tensor:
        """Descriptors of one level, int16 [num_images * 128, C * 49], channel by channel, in steps of 1/128 grey level.

        ValueError while images are missing.
        """
        if self.count != self.num_images:
            raise ValueError(f"collector: holds {self.count} images of num_images = {self.num_images}")
        if resolution in self._patches:
            return self._patches[resolution]
        out = self._empty()
        for i in range(0, self.num_images, self._step):
            x = self._pixels[i : i + self._step].to(self.device).float() / _STEPS
            level = laplacian_pyramid(x)[(x.shape[-1] // resolution).bit_length() - 1]
            self._cut(level, i, out)
        return out

    def _add_chunk(self, images: torch.Tensor) -> None:
        x = images.float()
        while x.shape[-1] > _PIXELS_UP_TO:
            level, x = split_level(x)
            self._cut(level, self.count, self._patches[level.shape[-1]])
        self._pixels[self.count : self.count + len(x)] = _encode(x).cpu()
        self.count += len(x)

    def _cut(self, level: torch.Tensor, first: int, out: torch.Tensor) -> None:
        """Write the patches of images `first`, `first + 1`, ... of a level [n, C, r, r] to their rows of `out`."""
        n = len(level)
        y, x = torch.from_numpy(self._corners[level.shape[-1]][:, first : first + n].astype(np.int64)).to(level.device)
        windows = level.unfold(2, PATCH, 1).unfold(3, PATCH, 1).permute(0, 2, 3, 1, 4, 5)  # [n, y, x, C, 7, 7]
        patches = windows[torch.arange(n, device=level.device)[:, None], y, x]  # [n, 128, C, 7, 7]
        rows = slice(first * PATCHES_PER_IMAGE, (first + n) * PATCHES_PER_IMAGE)
        out[rows] = _encode(patches).reshape(n * PATCHES_PER_IMAGE, -1).cpu()

    def _empty(self) -> torch.Tensor:
        return torch.empty(self.num_images * PATCHES_PER_IMAGE, self.channels * PATCH**2, dtype=torch.int16)

    def _draw_corners(self, resolution: int) -> np.ndarray:
        """(y, x) of every patch of a level: [2, num_images, 128]."""
        rng = np.random.default_rng([self.seed, resolution])
        shape = (2, self.num_images, PATCHES_PER_IMAGE)
        return rng.integers(resolution - PATCH + 1, size=shape, dtype=np.int16)


def _encode(x: torch.Tensor) -> torch.Tensor:
    return (x * _STEPS).round_().to(torch.int16)
