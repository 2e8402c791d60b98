"""MS-SSIM: golden values, an independent definition for small images, pairs of a stream, errors."""

import numpy as np
import pytest
import torch

from gankern.metrics import _images, ms_ssim, ms_ssim_diversity, structural

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def definition(a, b):
    """One pair of float64 [H, W], window by window."""
    result = 1.0
    for scale, weight in enumerate(WEIGHTS):
        size = min(11, *a.shape)
        axis = (np.arange(size) - (size - 1) / 2) / (1.5 * size / 11)
        window = np.exp(-0.5 * (axis[:, None] ** 2 + axis[None] ** 2))
        window /= window.sum()
        terms = []
        for i in range(a.shape[0] - size + 1):
            for j in range(a.shape[1] - size + 1):
                x, y = a[i : i + size, j : j + size], b[i : i + size, j : j + size]
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                cov = (window * (x - mx) * (y - my)).sum()
                cs = (2 * cov + 7.65**2) / (vx + vy + 7.65**2)
                luminance = (2 * mx * my + 2.55**2) / (mx**2 + my**2 + 2.55**2)
                terms.append(cs * luminance if scale == 4 else cs)
        result *= max(np.mean(terms), 0) ** weight
        a, b = (v.reshape(v.shape[0] // 2, 2, v.shape[1] // 2, 2).mean((1, 3)) if scale < 4 else v for v in (a, b))
    return result


def test_golden(golden):
    arrays = golden("metrics")
    p, q = arrays["msssim_P"], arrays["msssim_Q"]
    assert ms_ssim(p, q, device="cpu") == pytest.approx(float(arrays["msssim"]), abs=1e-7)
    rolled = np.roll(p, 1, axis=0)
    assert ms_ssim(p, rolled, device="cpu") == pytest.approx(float(arrays["msssim_PB"]), abs=1e-8)


@pytest.mark.parametrize("resolution", [16, 32, 64])
def test_small_images_follow_the_definition(make_images, resolution):
    a = make_images(2, resolution, 1)
    b = (a * 0.6 + make_images(2, resolution, 1, seed=1) * 0.4).astype(np.uint8)
    expected = np.mean([definition(x[0].astype(float), y[0].astype(float)) for x, y in zip(a, b, strict=True)])
    assert ms_ssim(a, b, device="cpu") == pytest.approx(expected, abs=1e-9)
    assert 0.1 < expected < 0.99


def test_properties(make_images):
    a = torch.from_numpy(make_images(3, 64))
    b = a // 2 + torch.from_numpy(make_images(3, 64, seed=1)) // 2
    assert ms_ssim(a, a, device="cpu") == pytest.approx(1, abs=1e-12)
    assert ms_ssim(a, b, device="cpu") == ms_ssim(b, a, device="cpu")
    assert 0 <= ms_ssim(a, 255 - a, device="cpu") < ms_ssim(a, b, device="cpu") < 0.9


def test_mean_over_pairs_in_pieces(make_images, monkeypatch):
    a, b = make_images(5, 32), make_images(5, 32, seed=1)
    b[:2] = a[:2]
    each = [ms_ssim(a[i : i + 1], b[i : i + 1], device="cpu") for i in range(5)]
    assert ms_ssim(a, b, device="cpu") == pytest.approx(np.mean(each), abs=1e-12)
    monkeypatch.setattr(structural, "CHUNK_VALUES", 8 * 2 * 3 * 32 * 32)
    assert ms_ssim(a, b, device="cpu") == pytest.approx(np.mean(each), abs=1e-12)


def test_working_memory_does_not_grow_with_the_pairs(make_images, monkeypatch, largest_tensor):
    a = torch.from_numpy(make_images(32, 32))
    monkeypatch.setattr(structural, "CHUNK_VALUES", 8 * 3 * 32 * 32)  # one pair at a time
    with largest_tensor:
        ms_ssim(a, a.flip(0), device="cpu")
    assert largest_tensor.bytes <= max(5 * 3 * 32 * 32 * 8, a.numel())


@pytest.mark.parametrize("sizes", [[8], [1] * 8, [3, 5], [0, 7, 1, 1]])
def test_diversity_pairs_neighbours_across_batches(make_images, sizes):
    images = make_images(9, 32)
    batches = np.split(images[: sum(sizes)], np.cumsum(sizes)[:-1])
    expected = ms_ssim(images[0:8:2], images[1:8:2], device="cpu")
    assert ms_ssim_diversity(iter(batches), device="cpu") == pytest.approx(expected, abs=1e-12)


def test_diversity_tells_a_collapsed_generator(make_images):
    varied = make_images(8, 32)
    collapsed = varied[:1] // 2 + varied // 32
    low, high = (ms_ssim_diversity([images], device="cpu") for images in (varied, collapsed))
    assert low + 0.3 < high


@pytest.mark.gpu
def test_gpu_agrees_with_cpu(make_images):
    a, b = make_images(5, 64), make_images(5, 64, seed=1)
    assert ms_ssim(a, b, device="cuda") == pytest.approx(ms_ssim(a, b, device="cpu"), abs=1e-9)


def test_errors(make_images):
    images = make_images(4, 32)
    with pytest.raises(ValueError, match=r"\[4, 3, 32, 32\] and \[3, 3, 32, 32\]"):
        ms_ssim(images, images[:3])
    with pytest.raises(ValueError, match="multiples of 16"):
        ms_ssim(images[..., :24], images[..., :24])
    with pytest.raises(ValueError, match="at least one pair"):
        ms_ssim(images[:0], images[:0])
    with pytest.raises(ValueError, match="b: expected uint8 NCHW"):
        ms_ssim(images, images.astype(np.float32))
    for stream in ([], [images[:1]], [images[:0], images[:1]]):
        with pytest.raises(ValueError, match="at least two images"):
            ms_ssim_diversity(stream, device="cpu")
    assert _images.chunk_length(3, 4096, 4096) == 1
