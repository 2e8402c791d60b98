"""What of several ranks one process can show: options, devices, the environment, buckets, the watchdog, agreement."""

import dataclasses
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gankern.errors import InputError, RankError
from gankern.training import fit
from gankern.training.buckets import GradientBuckets, cut
from gankern.training.config import continued, resolve
from gankern.training.distributed import Council, Watchdog, World, pick_device

STYLEGAN2 = {"data": "", "preset": "stylegan2", "batch": 32}
PROGAN = {"data": "", "model": "progan", "kimg": 1e4}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
TORCHRUN |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


def config(options: dict, ranks: int, resolution: int = 32):
    return resolve(options, resolution=resolution, c_dim=0, identity="", num_gpus=ranks)


# -- options ----------------------------------------------------------------------------------------------------------


def test_each_rank_takes_its_share():
    assert [config(STYLEGAN2, n).batch_gpu for n in (1, 2, 8)] == [32, 16, 4]
    assert [config(PROGAN, n).images_at_once for n in (1, 2, 8)] == [64, 32, 8]
    assert config(PROGAN | {"batch_gpu": 16}, 2).images_at_once == 16
    assert config(PROGAN | {"batch_gpu": 16}, 8).images_at_once == 8
    assert config(STYLEGAN2 | {"batch_gpu": "auto"}, 8).images_at_once == 4
    assert config(PROGAN, 8).batch_schedule.startswith("4:512")


REFUSED = {
    "batch": (STYLEGAN2, 3, "--batch 32: not a multiple of the 3 ranks that torchrun started"),
    "fewer images than ranks": (STYLEGAN2 | {"batch": 4}, 8, "--batch 4: not a multiple of the 8 ranks"),
    "batch_gpu": (
        STYLEGAN2 | {"batch_gpu": 12},
        2,
        "--batch 32 (16 on each of 2 ranks): not a multiple of --batch-gpu 12",
    ),
    "schedule": (PROGAN, 3, "at 4 px 256 images, not a multiple of the 3 ranks that torchrun started"),
    "micro-batch": (PROGAN | {"batch_gpu": 24}, 2, "--batch-gpu 24: the batch of 256 (128 on each of 2 ranks) at 4 px"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_shares_that_dont_work_out(case):
    options, ranks, message = REFUSED[case]
    with pytest.raises(InputError) as error:
        config(options, ranks)
    assert message in str(error.value)


def test_a_run_goes_on_with_other_ranks():
    """As many images at a time as before, so that it learns the same, where there are as many."""
    saved = config(STYLEGAN2 | {"batch_gpu": 4}, 4)
    for ranks, at_a_time in ((1, 4), (2, 4), (8, 4)):
        now = continued(saved, {}, Path("run"), ranks)
        assert now == dataclasses.replace(saved, ranks=ranks, batch_gpu=at_a_time)
    assert continued(config(STYLEGAN2, 1), {}, Path("run"), 2).batch_gpu == 16
    assert continued(saved, {"batch_gpu": 8}, Path("run"), 2).batch_gpu == 8
    with pytest.raises(InputError, match="not a multiple of the 5 ranks"):
        continued(saved, {}, Path("run"), 5)


# -- devices and the environment --------------------------------------------------------------------------------------


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_rank_takes_its_own_gpu(four_gpus, name):
    assert pick_device(name, World(6, 8, 2, 4)) == torch.device("cuda:2")
    assert four_gpus == [torch.device("cuda:2")]


def test_devices_of_ranks_that_cant_be(four_gpus):
    with pytest.raises(InputError, match="--device cuda:1: each rank takes a GPU of its own"):
        pick_device("cuda:1", World(0, 2, 0, 2))
    with pytest.raises(InputError, match="8 ranks on this machine, which has 4 GPUs; expected --nproc-per-node=4"):
        pick_device("auto", World(0, 8, 0, 8))
    assert pick_device("cpu", World(0, 8, 0, 8)) == torch.device("cpu")
    assert pick_device("cuda:1") == torch.device("cuda:1")


BROKEN = {
    "a variable is missing": ({"LOCAL_RANK": None}, (), "LOCAL_RANK: not set though RANK is"),
    "not a number": ({"LOCAL_RANK": "x"}, (), "LOCAL_RANK=x, LOCAL_WORLD_SIZE=2: expected numbers"),
    "time-out": ({}, ("--dist-timeout", "0"), "--dist-timeout 0: expected a number of seconds > 0, at most 10,000,000"),
    "long time-out": ({}, ("--dist-timeout", "1e20"), "--dist-timeout 1e+20: expected a number of seconds > 0"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_environment_that_isnt_torchruns(case, refused, monkeypatch, images):
    """One line, which names the rank."""
    changes, options, message = BROKEN[case]
    for name, value in (TORCHRUN | changes).items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    refused("train", "--data", images, *options, words=("gankern: rank 1: error: ", message))


def test_ranks_that_dont_come(cli, monkeypatch, images):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    begun = time.monotonic()
    code, _, err = cli("train", "--data", images, "--dist-timeout", "0.5")
    assert code == 1
    assert time.monotonic() - begun < 20
    assert "gankern: rank 1: error: the 2 ranks didn't meet at localhost:1 within 0.5 s (" in err


# -- buckets, watchdog, agreement -------------------------------------------------------------------------------------


def test_buckets_are_cut():
    """At most the limit, or one parameter; never two types in one; the order stays."""
    sizes = [(3, "float32"), (4, "float32"), (40, "float32"), (1, "float32"), (1, "float64"), (1, "float64")]
    parameters = [torch.zeros(n, dtype=getattr(torch, kind)) for n, kind in sizes]
    assert [[len(p) for p in bucket] for bucket in cut(parameters, 28)] == [[3, 4], [40], [1], [1, 1]]
    assert cut([], 28) == []


def test_ranks_that_run_different_code():
    """Other parameters have a gradient on rank 0: one line, as for every rank that can't go on."""
    network = torch.nn.Linear(2, 2)
    buckets = GradientBuckets(network, 2, lambda mine: mine[:1])
    with pytest.raises(RankError, match="the ranks run different code"), buckets.reducing("G"):
        network(torch.ones(1, 2)).sum().backward()


def test_a_step_that_doesnt_end(monkeypatch, capsys):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with Watchdog(World(3, 8), limit=0.2) as watchdog:
        with watchdog.step():
            pass
        time.sleep(0.4)  # between two steps it may take its time
        assert not codes
        with watchdog.step():
            time.sleep(0.5)
    assert codes[0] == 1
    assert "gankern: rank 3: error: no step has ended for 0 s; has another rank died?\n" in capsys.readouterr().err


class Heard(World):
    """A world whose other ranks say what the test does."""

    def most(self, *numbers: int) -> list[int]:
        asked.append(numbers)
        return [max(pair) for pair in zip(numbers, others, strict=True)]


asked, others = [], [0, 0, 0]


def test_ranks_ask_each_other_four_times_a_second(monkeypatch):
    """At steps that rank 0 sets; a signal reaches all at the same one, and only rank 0's clock saves."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for rank in (0, 1):
        asked.clear()
        others[:] = [0, 0, 0 if rank == 0 else 5]
        council = Council(Heard(rank, 2), 10)
        for step in range(11, 22):
            now[0] += 0.05
            assert council.after(step, 0, True) == ((0, rank == 0) if step in (11, 16, 21) else (0, False))
        assert len(asked) == 3
        assert asked[-1] == ((0, True, 5) if rank == 0 else (0, 0, 0))
        others[0] = 15
        assert council.after(22, 0, False) == (0, False)
        assert council.after(26, 2, False) == (15, False)
        assert council.after(27, 0, False, last=True)[0] == 15


def test_ranks_ask_each_other_after_the_first_step():
    """Before it nobody knows how long steps take: a signal, and rank 0's clock, don't have to wait for a hundred."""
    asked.clear()
    others[:] = [0, 0, 0]
    council = Council(Heard(0, 2), 10)
    council.after(10, 0, False, last=True)
    others[0] = 15
    assert council.after(11, 0, True) == (15, True)
    assert asked[0] == (0, False, 1)


class Smaller(World):
    """A world whose other rank has a GPU of 40 GB; rank 0 has a B200."""

    def most(self, *numbers: int) -> list[int]:
        return [max(number, -40 * 10**9) for number in numbers]

    def told(self, value):
        return value if self.rank == 0 else "B200"


def test_ranks_agree_on_their_hardware(monkeypatch):
    """By which --batch-gpu auto knows what it measured: where they didn't, one rank would measure alone."""
    gpus = {0: ("B200", 180 * 10**9), 1: ("A100", 40 * 10**9)}
    for rank, (name, memory) in gpus.items():
        gpu = SimpleNamespace(name=name, total_memory=memory)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, gpu=gpu: gpu)
        assert fit.hardware(torch.device("cuda", rank), Smaller(rank, 2)) == "B200, 40.0 GB"
    assert fit.hardware(torch.device("cuda"), World()) == "A100, 40.0 GB"


def test_alone_every_step_counts():
    council = Council(World(), 0)
    assert [council.after(step, 2 * (step == 3), step == 2) for step in (1, 2, 3)] == [
        (0, False),
        (0, True),
        (2, False),
    ]
