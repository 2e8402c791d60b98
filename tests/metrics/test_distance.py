"""Sliced Wasserstein distance: golden runs, an independent definition, properties, bounded memory, errors."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from gankern.metrics import DescriptorCollector, _images, distance, sliced_wasserstein, swd


def collect(images, seed):
    n, channels, resolution, _ = images.shape
    collector = DescriptorCollector(resolution, channels, n, seed, device="cpu")
    collector.add(images)
    return collector


def assert_same_mean(runs, expected, sigmas=4):
    """The two samples' means agree within their standard errors, and their spreads within a factor of 3."""
    error = np.sqrt(runs.var(0, ddof=1) / len(runs) + expected.var(0, ddof=1) / len(expected))
    np.testing.assert_array_less(np.abs(runs.mean(0) - expected.mean(0)), sigmas * error)
    np.testing.assert_array_less(runs.std(0), 3 * expected.std(0))
    np.testing.assert_array_less(expected.std(0), 3 * runs.std(0))


def test_golden_swd(golden):
    arrays = golden("metrics")
    scores = [swd(arrays["A"], arrays["B"], seed, device="cpu") for seed in range(8)]
    assert list(scores[0]) == ["32", "16", "avg"]
    assert_same_mean(np.array([list(score.values()) for score in scores]), arrays["swd_x1e3_runs"])


def test_golden_sliced_wasserstein(golden):
    arrays = golden("metrics")
    runs = [sliced_wasserstein(arrays["X"], arrays["Y"], seed=seed, device="cpu") for seed in range(16)]
    assert_same_mean(np.array(runs), arrays["sliced_wasserstein_runs"])


def test_one_dimension_is_exact():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 1000, 1)).astype(np.float32)
    expected = np.abs(np.sort(x, axis=0) - np.sort(y, axis=0)).mean()
    assert sliced_wasserstein(x, y, device="cpu") == pytest.approx(expected, rel=1e-5)


def test_shift_is_the_mean_length_of_its_projection():
    x = torch.randn(200, 30, generator=torch.Generator().manual_seed(0))
    shift = torch.zeros(30)
    shift[7] = 5.0
    lengths = [sliced_wasserstein(x, x + shift, seed=seed, device="cpu") for seed in range(8)]
    # E|cos| between a fixed and a uniform direction in 30 dimensions
    expected = 5 * torch.exp(torch.lgamma(torch.tensor(15.0)) - torch.lgamma(torch.tensor(15.5))) / np.pi**0.5
    assert np.mean(lengths) == pytest.approx(expected.item(), rel=0.05)


@pytest.mark.parametrize("channels", [1, 3])
def test_swd_is_the_distance_of_normalised_descriptors(make_images, channels):
    a, b = (make_images(20, 128, channels, seed) for seed in (0, 1))
    sets = collect(a, 5), collect(b // 2, 6)
    score = swd(*sets, seed=7, device="cpu")
    assert list(score) == ["128", "64", "32", "16", "avg"]
    for resolution in (128, 64, 32, 16):
        x, y = (s.level(resolution).double().reshape(-1, channels, 49) for s in sets)
        x, y = ((v - v.mean((0, 2), keepdim=True)) / v.std((0, 2), correction=0, keepdim=True) for v in (x, y))
        expected = 1000 * sliced_wasserstein(x.flatten(1), y.flatten(1), seed=7, device="cpu")
        assert score[str(resolution)] == pytest.approx(expected, rel=1e-4)
    assert score["avg"] == pytest.approx(np.mean([score[str(r)] for r in (128, 64, 32, 16)]))


def test_symmetry(make_images):
    a, b = collect(make_images(20, 32), 0), collect(make_images(20, 32, seed=1), 1)
    assert swd(a, b, device="cpu") == swd(b, a, device="cpu")


def test_same_images(make_images):
    images = make_images(50, 32)
    blocks = make_images(50, 8, seed=1).repeat(4, 2).repeat(4, 3)
    same_patches = swd(collect(images, 0), collect(images, 0), device="cpu")
    assert set(same_patches.values()) == {0.0}
    other_patches = swd(images, images, device="cpu")
    assert all(0 < other_patches[k] < v / 2 for k, v in swd(images, blocks, device="cpu").items())


def test_contrast_of_a_channel_does_not_count(make_images):
    images = make_images(30, 32)
    doubled = images // 2
    doubled[:, 1] = doubled[:, 1] // 2 * 2
    quarter = doubled.copy()
    quarter[:, 1] //= 2
    score = swd(collect(doubled, 0), collect(quarter, 0), device="cpu")
    assert max(score.values()) < 0.5  # the rounding of the descriptors; the channel's share would be hundreds


def test_constant_images_are_finite(make_images):
    images = make_images(4, 32)
    flat = np.full_like(images, 90)
    assert all(0 < v < 2000 for v in swd(images, flat, device="cpu").values())
    assert set(swd(flat, flat, device="cpu").values()) == {0.0}


def test_seed(make_images):
    a, b = make_images(10, 32), make_images(10, 32, seed=1)
    assert swd(a, b, seed=3, device="cpu") == swd(a, torch.from_numpy(b), seed=3, device="cpu")
    assert swd(a, b, seed=3, device="cpu") != swd(a, b, seed=4, device="cpu")
    held = collect(a, 0), collect(b, 1)
    assert swd(*held, seed=3, device="cpu") != swd(*held, seed=4, device="cpu")


def test_chunks_of_directions_change_nothing(make_images, monkeypatch):
    a, b = collect(make_images(10, 32), 0), collect(make_images(10, 32, seed=1), 1)
    whole = swd(a, b, device="cpu")
    monkeypatch.setattr(distance, "_PROJECTIONS_BYTES", 100 * 4 * 1280)  # 100 directions at a time
    monkeypatch.setattr(distance, "_ROWS", 700)
    assert swd(a, b, device="cpu") == pytest.approx(whole, rel=1e-5)


def test_working_memory_does_not_grow_with_directions(make_images, monkeypatch, largest_tensor):
    monkeypatch.setattr(_images, "CHUNK_VALUES", 2**18)
    monkeypatch.setattr(distance, "_PROJECTIONS_BYTES", 2**20)
    monkeypatch.setattr(distance, "_ROWS", 1000)
    a, b = collect(make_images(40, 16), 0), collect(make_images(40, 16, seed=1), 1)
    with largest_tensor:
        swd(a, b, num_repeats=1, num_directions=512, device="cpu")
    descriptors = 40 * 128 * 147 * 2  # 1.5 MB; in float32 they would be 3 MB, all projections 10 MB
    assert largest_tensor.bytes <= descriptors


# VmHWM, since a child's ru_maxrss starts from its parent's.
PEAK = """
import re, numpy as np, torch
from gankern.metrics import distance, swd
torch.set_num_threads(1)
distance._PROJECTIONS_BYTES = 2**20
images = np.random.default_rng(0).integers(0, 256, (2, 32, 3, 16, 16), np.uint8)
peaks = []
for directions in (64, 4096):
    swd(*images, num_repeats=1, num_directions=directions, device="cpu")
    peaks.append(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]))
print(peaks[1] - peaks[0])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_of_the_process_does_not_grow_with_directions():
    # All projections at once would be 2 x 67 MB; the directions themselves, in float64, are 5 MB.
    run = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, timeout=120)
    assert int(run.stdout) < 40_000


@pytest.mark.gpu
def test_gpu_agrees_with_cpu(make_images):
    a, b = make_images(50, 128), make_images(50, 128, seed=1)
    assert swd(a, b, device="cuda") == pytest.approx(swd(a, b, device="cpu"), rel=1e-3)


def test_errors(make_images):
    images = make_images(4, 32)
    for bad, text in (
        (images[:3], r"real \[4, 3, 32, 32\], fake \[3, 3, 32, 32\]"),
        (images[:, :1], r"real \[4, 3, 32, 32\], fake \[4, 1, 32, 32\]"),
        (images.astype(np.int16), "fake: expected uint8 NCHW, got int16"),
        (images.tolist(), "fake: expected a uint8 NCHW array or tensor, got list"),
        (DescriptorCollector(32, 3, 5), r"fake \[5, 3, 32, 32\]"),
    ):
        with pytest.raises(ValueError, match=text):
            swd(images, bad, device="cpu")
    for shape, text in (
        ((2, 3, 32, 16), "square"),
        ((2, 3, 8, 8), "power of two"),
        ((2, 2, 32, 32), "channels: expected 1 or 3, got 2"),
        ((0, 3, 32, 32), "num_images: expected at least 1"),
    ):
        empty = np.zeros(shape, np.uint8)
        with pytest.raises(ValueError, match=text):
            swd(empty, empty, device="cpu")
    with pytest.raises(ValueError, match="expected at least 1, got 0"):
        swd(images, images, num_repeats=0, device="cpu")
    with pytest.raises(ValueError, match=r"\(5, 4\) and \(6, 4\)"):
        sliced_wasserstein(np.zeros((5, 4)), np.zeros((6, 4)))
