"""The Laplacian pyramid: golden levels, an independent definition, reconstruction, errors."""

import numpy as np
import pytest
import torch

from gankern.metrics import laplacian_pyramid

TAPS = np.array([1, 4, 6, 4, 1]) / 16


def blur(x, gain=1.0):
    """The 5 x 5 binomial filter with mirrored edges, in float64, by definition."""
    h, w = x.shape[2:]
    p = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    return sum(gain * TAPS[i] * TAPS[j] * p[:, :, i : i + h, j : j + w] for i in range(5) for j in range(5))


def upsample(x):
    y = np.zeros((*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]))
    y[:, :, ::2, ::2] = x
    return blur(y, gain=4)


def test_golden(golden):
    arrays = golden("metrics")
    levels = laplacian_pyramid(arrays["A"][:2])
    expected = [arrays[f"pyramid_{i}"] for i in range(2)]
    assert len(levels) == len(expected)
    for level, array in zip(levels, expected, strict=True):
        assert level.dtype == torch.float32
        np.testing.assert_array_equal(level.numpy(), array)


@pytest.mark.parametrize(("resolution", "channels"), [(16, 3), (64, 1), (128, 3)])
def test_definition(make_images, resolution, channels):
    images = make_images(3, resolution, channels)
    levels = laplacian_pyramid(torch.from_numpy(images))
    assert [level.shape[-1] for level in levels] == [r for r in (128, 64, 32, 16) if r <= resolution]
    x = images.astype(np.float64)
    for level in levels[:-1]:
        low = blur(x)[:, :, ::2, ::2]
        np.testing.assert_allclose(level.numpy(), x - upsample(low), atol=1e-4)
        x = low
    np.testing.assert_allclose(levels[-1].numpy(), x, atol=1e-4)


def test_levels_give_the_images_back(make_images):
    images = make_images(2, 64)
    *levels, x = (level.double().numpy() for level in laplacian_pyramid(images))
    for level in reversed(levels):
        x = upsample(x) + level
    np.testing.assert_allclose(x, images, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (1, 3, 48, 48), (1, 3, 32, 16), (3, 32, 32)])
def test_bad_shapes(shape):
    with pytest.raises(ValueError, match=r"resolution: expected a power of two|images: expected square"):
        laplacian_pyramid(np.zeros(shape, np.uint8))
