"""A stream whose batches change size or resolution on the way goes on with the next image, cached or decoded."""

import numpy as np
import pytest
import torch

from gankern.data import BatchStream, open_dataset

MODES = {
    "cached": {"cache": "on"},
    "decoded here": {"cache": "off", "workers": 0},
    "workers": {"cache": "off", "workers": 2},
}
SIZES = [3, 3, 5, 1, 1, 4, 12, 2]


@pytest.fixture
def dataset(images):
    return open_dataset(images)


def take(stream: BatchStream, sizes: list[int]) -> torch.Tensor:
    batches = []
    for size in sizes:
        stream.change(size)
        batches.append(next(stream)[0])
        assert len(batches[-1]) == size
    return torch.cat(batches)


@pytest.mark.parametrize("mode", MODES)
def test_batches_of_another_size(mode, dataset):
    """The same images in the same order as without changes; from any position of it too."""
    with BatchStream(dataset, sum(SIZES), seed=3, mirror=True, cache="on") as whole:
        expected = next(whole)[0]
    with BatchStream(dataset, 7, seed=3, mirror=True, **MODES[mode]) as stream:
        assert take(stream, SIZES[:4]).equal(expected[: sum(SIZES[:4])])
        state = stream.state_dict()
    with BatchStream(dataset, 7, seed=3, mirror=True, **MODES[mode]) as stream:
        stream.load_state_dict(state)
        assert take(stream, SIZES[4:]).equal(expected[sum(SIZES[:4]) :])


@pytest.mark.parametrize("mode", MODES)
def test_another_resolution(mode, dataset, images):
    small = open_dataset(images, resolution=4)
    with BatchStream(dataset, 4, seed=3, **MODES[mode]) as stream:
        next(stream)
        position = stream.state_dict()["position"]
        stream.change(6, small)
        batch = next(stream)[0]
        assert batch.shape == (6, 3, 4, 4)
        stream.change(6, dataset)
        assert next(stream)[0].shape == (6, 3, 16, 16)
    with BatchStream(small, 6, seed=3, cache="on") as other:
        other.load_state_dict({"position": position, "seed": 3, "size": len(small)})
        assert next(other)[0].equal(batch)


def test_nothing_changes_where_nothing_does(dataset):
    with BatchStream(dataset, 4, cache="off", workers=0) as stream:
        next(stream)
        decoding = stream._decoded
        stream.change(4, dataset)
        assert stream._decoded is decoding


def test_bad_changes(dataset, make_folder):
    with BatchStream(dataset, 4, cache="on") as stream:
        with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
            stream.change(0)
        with pytest.raises(ValueError, match="expected the same 12 images, got 5"):
            stream.change(4, open_dataset(make_folder(5)))
        assert np.array_equal(next(stream)[0].shape, (4, 3, 16, 16))
