"""The collector: patches are the pyramid's, wherever and however the images come in."""

import numpy as np
import pytest
import torch

from gankern.metrics import DescriptorCollector, _images, laplacian_pyramid
from gankern.metrics.descriptors import PATCHES_PER_IMAGE


def collect(images, batch=None, seed=0):
    n, channels, resolution, _ = images.shape
    collector = DescriptorCollector(resolution, channels, n, seed, device="cpu")
    for i in range(0, n, batch or n):
        collector.add(images[i : i + (batch or n)])
    return collector


@pytest.mark.parametrize(("resolution", "channels"), [(16, 3), (32, 1), (128, 3)])
def test_descriptors_are_patches_of_their_image_and_level(make_images, resolution, channels):
    images = make_images(3, resolution, channels)
    collector = collect(images, batch=2)
    for level in laplacian_pyramid(images):
        size = level.shape[-1]
        found = collector.level(size).float().reshape(len(images), PATCHES_PER_IMAGE, -1) / 128
        for image, patches in zip(level, found, strict=True):
            windows = image.unfold(1, 7, 1).unfold(2, 7, 1).permute(1, 2, 0, 3, 4).reshape((size - 6) ** 2, -1)
            nearest = torch.cdist(patches, windows, p=float("inf")).min(dim=1)
            assert nearest.values.max() < 0.01  # two roundings to 1/128 grey level
            assert nearest.indices.unique().numel() > 50


def test_every_position_is_drawn(make_images):
    images = make_images(40, 16)
    counts = torch.zeros(100)
    level = laplacian_pyramid(images)[0]
    windows = level.unfold(2, 7, 1).unfold(3, 7, 1).permute(0, 2, 3, 1, 4, 5).reshape(len(images), 100, -1)
    patches = collect(images).level(16).float().reshape(len(images), PATCHES_PER_IMAGE, -1) / 128
    for image, found in zip(windows, patches, strict=True):
        counts += torch.cdist(found, image, p=1).argmin(dim=1).bincount(minlength=100)
    expected = len(images) * PATCHES_PER_IMAGE / 100
    assert ((counts - expected).square() / expected).sum() < 160  # chi-squared, 99 degrees of freedom: mean 99, sd 14


def test_batches_of_any_size_give_the_same_bits(make_images, monkeypatch):
    images = make_images(7, 128)
    whole = collect(images)
    monkeypatch.setattr(_images, "CHUNK_VALUES", 2 * 3 * 128 * 128)
    for other in (collect(images), collect(images, batch=1), collect(images, batch=4)):
        for resolution in whole.resolutions:
            assert torch.equal(other.level(resolution), whole.level(resolution))


def test_seed_decides_the_positions(make_images):
    images = make_images(2, 32)
    assert torch.equal(collect(images, seed=3).level(32), collect(images, seed=3).level(32))
    assert not torch.equal(collect(images, seed=3).level(32), collect(images, seed=4).level(32))


@pytest.mark.parametrize("kind", ["memmap", "read-only", "tensor", "reversed"])
def test_kinds_of_input(make_images, tmp_path, kind, recwarn):
    images = make_images(4, 32)
    if kind == "memmap":
        given = np.memmap(tmp_path / "images", np.uint8, "w+", shape=images.shape)
        given[:] = images
    elif kind == "read-only":
        given = images.copy()
        given.flags.writeable = False
    elif kind == "tensor":
        given = torch.from_numpy(images)
    else:
        given = np.ascontiguousarray(images[..., ::-1])[..., ::-1]
    assert torch.equal(collect(given).level(16), collect(images).level(16))
    assert not recwarn


def test_working_memory_does_not_grow_with_the_batch(make_images, monkeypatch, largest_tensor):
    images = torch.from_numpy(make_images(32, 128))
    monkeypatch.setattr(_images, "CHUNK_VALUES", 2 * 3 * 128 * 128)
    collector = DescriptorCollector(128, 3, len(images), device="cpu")
    with largest_tensor:
        collector.add(images)
        held = [collector.level(resolution) for resolution in collector.resolutions]
    assert {level.element_size() for level in held} == {2}
    # Given and held, nothing larger: all in float32 would be 6 MB of pixels and 2.4 MB of patches a level.
    assert largest_tensor.bytes == images.numel() == 32 * 3 * 128 * 128


def test_errors(make_images):
    images = make_images(3, 32)
    for kwargs, text in (
        ({"resolution": 24}, "power of two of at least 16, got 24"),
        ({"channels": 4}, "channels: expected 1 or 3, got 4"),
        ({"num_images": 0}, "num_images: expected at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=text):
            DescriptorCollector(**{"resolution": 32, "channels": 3, "num_images": 2, **kwargs})
    collector = DescriptorCollector(32, 3, 2, device="cpu")
    with pytest.raises(ValueError, match=r"0 \+ 3 are more than num_images = 2"):
        collector.add(images)
    with pytest.raises(ValueError, match=r"expected \[3, 32, 32\] an image, got \[1, 32, 32\]"):
        collector.add(images[:, :1])
    with pytest.raises(ValueError, match="expected uint8 NCHW, got float32"):
        collector.add(images.astype(np.float32))
    collector.add(images[:1])
    with pytest.raises(ValueError, match="holds 1 images of num_images = 2"):
        collector.level(32)
