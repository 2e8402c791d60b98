"""Multi-scale structural similarity (MS-SSIM), and the diversity of a generator that it measures."""

from collections.abc import Iterable

import torch

from gankern.metrics._images import CHUNK_VALUES, Images, check_images, default_device, to_device

_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, finest first
_TAPS, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def ms_ssim(a: Images, b: Images, *, device: torch.device | str | None = None) -> float:
    """Mean MS-SSIM of the pairs (a[i], b[i]), in [0, 1]; 1 is identity. Wang et al. 2003.

    uint8 [N, C, H, W] both, H and W multiples of 16; channels are averaged. Where a scale is smaller than 11 pixels
    (images under 176), its Gaussian shrinks to min(11, H, W) taps with sigma in proportion, so values of different
    small sizes don't compare. Float64 on `device`; None is the GPU where there is one. ValueError for other input.
    """
    shape = check_images("a", a)
    if check_images("b", b) != shape:
        raise ValueError(f"a, b: expected one shape, got {list(shape)} and {list(b.shape)}")
    n, c, h, w = shape
    scale = 2 ** (len(_WEIGHTS) - 1)
    if 0 in shape or h % scale or w % scale:
        raise ValueError(f"a, b: expected at least one pair, height and width multiples of {scale}, got {list(shape)}")
    device = default_device(device)
    step = max(1, CHUNK_VALUES // (8 * c * h * w))  # five maps in float64
    total = 0.0
    for i in range(0, n, step):
        x, y = (to_device(v[i : i + step], device).double() for v in (a, b))
        total += _ms_ssim_pairs(x, y).sum().item()
    return total / n


def ms_ssim_diversity(batches: Iterable[Images], *, device: torch.device | str | None = None) -> float:
    """Mean MS-SSIM of the pairs (0, 1), (2, 3), ... of a stream of uint8 [n, C, H, W] batches: lower is more diverse.

    Pairs run on across batches; an odd last image is left out. Feed generated images, whose order is random, or
    shuffled reals: 20000 images make the 10000 pairs of Karras et al. 2018. ValueError for fewer than two images.
    """
    total, pairs, rest = 0.0, 0, None
    for batch in batches:
        check_images("batches", batch)
        images = to_device(batch, default_device(device))
        if rest is not None:
            images = torch.cat([rest, images])
        even = len(images) // 2 * 2
        if even:
            total += ms_ssim(images[0:even:2], images[1:even:2], device=device) * (even // 2)
            pairs += even // 2
        rest = images[even:]
    if not pairs:
        raise ValueError("batches: expected at least two images")
    return total / pairs


def _ms_ssim_pairs(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """MS-SSIM of each pair of float64 [N, C, H, W] in 0..255: [N]."""
    result = x.new_ones(len(x))
    for i, weight in enumerate(_WEIGHTS):
        luminance, contrast = _ssim_maps(x, y)
        last = i == len(_WEIGHTS) - 1
        value = (luminance * contrast if last else contrast).mean(dim=(1, 2, 3))
        result *= value.clamp(min=0) ** weight  # a negative correlation has no real power
        if not last:
            x, y = (torch.nn.functional.avg_pool2d(v, 2) for v in (x, y))
    return result


def _ssim_maps(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The luminance and the contrast-structure factor of SSIM wherever the window fits: [N, C, H', W'] each."""
    mx, my, mxx, myy, mxy = _blur(torch.stack([x, y, x * x, y * y, x * y]))
    luminance = (2 * mx * my + _C1) / (mx * mx + my * my + _C1)
    contrast = (2 * (mxy - mx * my) + _C2) / ((mxx - mx * mx) + (myy - my * my) + _C2)
    return luminance, contrast


def _blur(x: torch.Tensor) -> torch.Tensor:
    """Gaussian of at most 11 taps along the last two axes, without padding."""
    size = min(_TAPS, *x.shape[-2:])
    at = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    taps = torch.exp(-0.5 * (at / (_SIGMA * size / _TAPS)) ** 2)
    taps = (taps / taps.sum()).tolist()
    for dim in (-2, -1):
        length = x.shape[dim] - size + 1
        out = x.narrow(dim, 0, length) * taps[0]
        for i in range(1, size):
            out.add_(x.narrow(dim, i, length), alpha=taps[i])
        x = out
    return x
