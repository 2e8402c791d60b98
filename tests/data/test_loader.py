"""Batch streams: one sequence whatever the path, exact resume, and caches that are never half written."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from gankern.data import BatchStream, cache, open_dataset, workers
from gankern.errors import InputError

PATHS = {
    "cache": {"cache": "on"},
    "in process": {"cache": "off", "workers": 0},
    "one worker": {"cache": "off", "workers": 1},
    "two workers": {"cache": "off", "workers": 2},
}


@pytest.fixture
def labelled(folder):
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    (folder / "dataset.json").write_text(json.dumps({"labels": [[name, i] for i, name in enumerate(names)]}))
    return open_dataset(folder, use_labels=True)


def take(stream, count):
    return [next(stream) for _ in range(count)]


def assert_same(batches, others):
    assert len(batches) == len(others)
    for (images, labels), (other_images, other_labels) in zip(batches, others, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def damage(dataset, index):
    path = dataset.source.path / dataset.names[index]
    data = bytearray(path.read_bytes())
    middle = data.index(b"IDAT") + 20
    data[middle : middle + 8] = b"\xff" * 8
    path.write_bytes(data)


def test_batches_are_the_images_with_their_labels(labelled):
    images, labels = next(BatchStream(labelled, 24, mirror=True))
    assert (images.dtype, images.shape, labels.dtype, labels.shape) == (
        torch.uint8,
        (24, 3, 16, 16),
        torch.float32,
        (24, 12),
    )
    seen = []
    for image, label in zip(images.numpy(), labels.numpy(), strict=True):
        index = int(label.argmax())
        plain = labelled.image(index)
        mirrored = not np.array_equal(image, plain)
        assert np.array_equal(image, plain[:, :, ::-1] if mirrored else plain)
        seen.append((index, mirrored))
    assert len(set(seen)) == 24  # each image plain and mirrored once


def test_every_path_gives_the_same_batches_and_resumes(labelled):
    expected = take(BatchStream(labelled, 5, seed=3, mirror=True), 9)
    state = BatchStream(labelled, 5, seed=3, mirror=True)
    take(state, 4)
    for options in PATHS.values():
        with BatchStream(labelled, 5, seed=3, mirror=True, **options) as stream:
            assert_same(take(stream, 4), expected[:4])
            assert stream.state_dict() == state.state_dict()  # not what workers have prefetched
            take(stream, 2)
            stream.load_state_dict(state.state_dict())
            assert_same(take(stream, 5), expected[4:])


def test_ranks_part_the_sequence(labelled):
    whole = torch.cat([images for images, _ in take(BatchStream(labelled, 6), 2)])
    for rank in range(3):
        images, _ = next(BatchStream(labelled, 4, rank=rank, world_size=3))
        assert torch.equal(images, whole[rank::3])


def test_without_labels_they_are_empty(folder):
    assert next(BatchStream(open_dataset(folder), 3))[1].shape == (3, 0)


def test_budget_decides(folder):
    dataset = open_dataset(folder)
    assert BatchStream(dataset, 2, memory_budget=dataset.nbytes).cached
    assert not BatchStream(dataset, 2, memory_budget=dataset.nbytes - 1).cached
    with pytest.raises(ValueError, match="batch_size"):
        BatchStream(dataset, 0)
    with pytest.raises(ValueError, match="cache"):
        BatchStream(dataset, 2, cache="maybe")


@pytest.mark.parametrize("options", PATHS.values(), ids=PATHS)
def test_damage_found_late_is_one_clear_error(options, labelled):
    damage(labelled, 2)
    damage(labelled, 9)
    with pytest.raises(InputError, match=r"img0000000[29]\.png") as caught:
        take(BatchStream(labelled, 12, **options), 1)
    assert "\n" not in str(caught.value)
    assert "2 of 12 images" in str(caught.value)


# --- the cache


def test_cache_is_decoded_once_and_shared(labelled, cache_folder, monkeypatch):
    calls = []
    expected = take(BatchStream(labelled, 4, progress=lambda *args: calls.append(args)), 2)
    assert calls[-1] == (12, 12)
    assert [path.suffix for path in cache_folder.iterdir() if path.suffix != ".lock"] == [".npy"]
    monkeypatch.setattr(cache, "decode_batches", None)  # decoding again would fail
    assert_same(take(BatchStream(labelled, 4), 2), expected)


@pytest.mark.parametrize("content", [b"", b"not an array", None], ids=["empty", "other", "cut"])
def test_broken_cache_file_is_replaced(content, labelled, cache_folder):
    expected = take(BatchStream(labelled, 4), 1)
    (path,) = cache_folder.glob("*.npy")
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    assert_same(take(BatchStream(labelled, 4), 1), expected)


def test_leftovers_and_locks_of_the_dead_do_no_harm(labelled, cache_folder):
    BatchStream(labelled, 4)
    (path,) = cache_folder.glob("*.npy")
    leftover = path.with_name(path.name + ".host-1.tmp")
    path.rename(leftover)
    path.with_suffix(".lock").touch()
    BatchStream(labelled, 4)
    assert path.exists()
    assert not leftover.exists()


def test_full_disk_is_said_and_leaves_no_cache(labelled, cache_folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.raises(InputError, match=r"no room.*GANKERN_CACHE"):
        BatchStream(labelled, 4)
    assert [path.suffix for path in cache_folder.iterdir()] == [".lock"]


def test_unusable_folder_falls_back_to_memory(labelled, cache_folder, caplog):
    expected = take(BatchStream(labelled, 4, cache="off", workers=0), 1)
    cache_folder.write_text("a file where the folder should be")
    stream = BatchStream(labelled, 4)
    assert_same(take(stream, 1), expected)
    assert "stay in memory" in caplog.text


DECODE = """
import sys, time
from gankern.data import BatchStream, open_dataset
def slowly(done, total):
    print("decoded", flush=True)
    time.sleep(1)
print(next(BatchStream(open_dataset(sys.argv[1]), 2, progress=slowly))[0].shape)
"""


def test_processes_at_once_decode_once(folder):
    group = [run_python("-c", DECODE, str(folder)) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0] for process in group]
    assert [process.returncode for process in group] == [0] * 3
    assert "".join(outputs).count("decoded") == 1


# --- workers


SCRIPT = """
import sys, time
from gankern.data import BatchStream, open_dataset
stream = BatchStream(open_dataset(sys.argv[1]), 2, cache="off", workers=2)  # no guard around it, on purpose
next(stream)
print("ready", flush=True)
while True:
    next(stream)
    time.sleep(0.01)
"""


@pytest.fixture
def script(folder, tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    process = run_python(str(path), str(folder))
    assert process.stdout.readline() == "ready\n"
    yield process
    for pid in members(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.communicate()


def run_python(*arguments):
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def members(session):
    """Processes of a session: the script, its fork server, the workers."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry))
    return found


def wait_until_gone(session, seconds):
    end = time.monotonic() + seconds
    while members(session) and time.monotonic() < end:
        time.sleep(0.1)
    return members(session)


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")


@needs_proc
def test_interrupt_leaves_no_worker_and_no_noise_of_theirs(script):
    assert len(members(script.pid)) >= 4
    os.killpg(script.pid, signal.SIGINT)  # as a terminal does
    _, errors = script.communicate(timeout=20)
    assert errors.count("Traceback") == 1
    assert "script.py" in errors
    assert wait_until_gone(script.pid, 10) == []


@needs_proc
def test_workers_end_with_a_killed_parent(script):
    script.kill()
    script.wait()
    assert wait_until_gone(script.pid, 20) == []


def test_killed_worker_is_a_clear_error(labelled):
    with BatchStream(labelled, 4, cache="off", workers=1) as stream:
        next(stream)
        (worker,) = multiprocessing.active_children()
        worker.kill()
        with pytest.raises(InputError, match="worker process that decodes images died"):
            take(stream, 50)


def test_small_shared_memory_is_said_beforehand(labelled, monkeypatch):
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda _: type("usage", (), {"free": 5000}))
    with pytest.raises(InputError, match="shared memory"):
        next(BatchStream(labelled, 4, cache="off", workers=2))
