"""Batches on a device: the stream's own, mirrored there; and who waits for whom, on a stand-in for torch.cuda."""

import contextlib

import pytest
import torch

from gankern.data import BatchStream, DeviceFeed, open_dataset
from gankern.data.feed import SLOTS


class FakeCuda:
    """Notes what is asked of streams and events, in order."""

    def __init__(self):
        self.log, cuda = [], self

        class Event:
            def synchronize(self):
                cuda.log.append(("host waits", self))

            def record(self, stream):
                cuda.log.append(("recorded", self, stream.name))

        class Stream:
            def __init__(self, name):
                self.name = str(name)

            def wait_event(self, event):
                cuda.log.append(("stream waits", event, self.name))

            def wait_stream(self, other):
                cuda.log.append(("stream waits for stream", other.name, self.name))

        self.Event, self.Stream = Event, Stream
        self.main = Stream("main")

    def current_stream(self, _device):
        return self.main

    @contextlib.contextmanager
    def stream(self, stream):
        self.log.append(("on", stream.name))
        yield
        self.log.append(("off", stream.name))


@pytest.fixture
def dataset(labelled):
    return open_dataset(labelled, use_labels=True)


@pytest.mark.parametrize("cache", ["on", "off"])
def test_the_streams_own_batches(dataset, cache):
    """In the same order, through changes of the batch, and never overwritten."""
    options = {"seed": 3, "mirror": True, "cache": cache, "workers": 0}
    with BatchStream(dataset, 5, **options) as direct, BatchStream(dataset, 5, **options) as stream:
        feed, expected, found = DeviceFeed(stream, torch.device("cpu"), FakeCuda()), [], []
        for i in range(3 * SLOTS):
            for each in (direct, stream):
                each.change(5 if i < 4 else 3)
            expected.append(next(direct))
            found.append(next(feed))
            assert stream.state_dict() == direct.state_dict()
    for (images, labels), (a, b) in zip(expected, found, strict=True):
        assert images.dtype == a.dtype == torch.uint8
        assert a.equal(images)
        assert b.equal(labels)
    assert any(not a[i].equal(a[i].flip(2)) for a, _ in found for i in range(len(a)))


def test_who_waits_for_whom(dataset):
    """The host for the last copy out of a slot's pinned memory; the copy for the last read of the slot; the read for
    the copy."""
    cuda = FakeCuda()
    with BatchStream(dataset, 4, cache="on") as stream:
        feed = DeviceFeed(stream, torch.device("cpu"), cuda)
        for _ in range(SLOTS):
            next(feed)
        for slot in [*feed.slots, feed.slots[0]]:
            cuda.log.clear()
            next(feed)
            assert cuda.log == [
                ("host waits", slot.copied),
                ("stream waits", slot.read, "cpu"),
                ("on", "cpu"),
                ("recorded", slot.copied, "cpu"),
                ("off", "cpu"),
                ("stream waits", slot.copied, "main"),
                ("recorded", slot.read, "main"),
            ]


def test_new_memory_is_not_written_early(dataset):
    """Memory from torch's allocator may still be read by what was launched before."""
    cuda = FakeCuda()
    with BatchStream(dataset, 4, cache="on") as stream:
        next(DeviceFeed(stream, torch.device("cpu"), cuda))
    assert cuda.log.index(("stream waits for stream", "main", "cpu")) < cuda.log.index(("on", "cpu"))


def test_on_a_cpu_nothing_is_copied(dataset):
    with BatchStream(dataset, 4, cache="on") as stream:
        images, _ = next(DeviceFeed(stream, torch.device("cpu")))
    assert images.shape == (4, 3, 16, 16)


@pytest.mark.gpu
@pytest.mark.parametrize("mirror", [False, True])
def test_on_a_gpu(dataset, mirror):
    options = {"seed": 3, "mirror": mirror, "cache": "on"}
    with BatchStream(dataset, 5, **options) as direct, BatchStream(dataset, 5, **options) as stream:
        feed = DeviceFeed(stream, torch.device("cuda"))
        found = [next(feed) for _ in range(20)]  # the host runs ahead
        for images, labels in found:
            expected = next(direct)
            assert images.is_cuda
            assert images.cpu().equal(expected[0])
            assert labels.cpu().equal(expected[1])
