"""Parts of the training loop: a tick's speed, what stands under the watchdog, and a signal at an awkward instant."""

import contextlib
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch

from gankern.training import loop
from gankern.training.distributed import World


def test_a_tick_ends_when_the_device_has(monkeypatch):
    """The host is at the tick at once and waits there: what it waits for is of this tick, not of none."""
    now, rows = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    trainer = SimpleNamespace(nimg=0, steps=0, skipped=0, device=torch.device("cpu"), where=str)

    def pop_stats() -> dict:
        now[0] += 3
        return {}

    trainer.pop_stats = pop_stats

    def write_stats(row: dict) -> None:
        now[0] += 1
        rows.append(row)

    config = SimpleNamespace(kimg=0.1)
    run = SimpleNamespace(write_stats=write_stats, log=lambda line: rows[-1].update(line=line))
    progress = loop._Progress(config, run, trainer)
    for _ in range(2):
        now[0] += 1  # queueing the steps
        trainer.nimg += 40
        progress.tick()
    assert [row["img_s"] for row in rows] == [10, 8]  # the second has the writing of the first
    assert "8.0 img/s  ETA 0m02s" in rows[1]["line"]


@pytest.fixture
def blocks(monkeypatch):
    """Which of "watchdog" and "together" the loop is within."""
    within = []

    def noting(name: str):
        @contextlib.contextmanager
        def block(self):
            within.append(name)
            try:
                yield
            finally:
                within.remove(name)

        return block

    monkeypatch.setattr(loop.Watchdog, "step", noting("watchdog"))
    monkeypatch.setattr(World, "together", noting("together"))
    return within


def test_ranks_that_wait_for_one_another(blocks, monkeypatch, images, tiny, cli, tmp_path):
    """A checkpoint waits for the device and so for other ranks; reals that rank 0 can't read end the others too."""
    seen = []

    def note(where, name: str) -> None:
        original = getattr(where, name)

        def noted(*args):
            seen.append((name, *blocks))
            if seen.count(("average", "watchdog")) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return original(*args)

        monkeypatch.setattr(where, name, noted)

    note(loop._Checkpoints, "save")
    note(loop.Snapshots, "save_reals")
    note(loop.Trainer, "average")
    monkeypatch.setattr(loop._Checkpoints, "due", lambda saves: saves.trainer.steps == 1)
    code, _, _ = cli("train", "--data", images, "--out", tmp_path / "run", *tiny, "--metric-images", "0")
    assert code == 130
    step, save = ("average", "watchdog"), ("save", "watchdog")
    assert seen == [("save_reals", "together"), step, save, step, save]  # the one that was due, and the last


class Awkward(loop._StopSignals):
    """The signal strikes when the work is done, and it isn't noted yet that it is."""

    armed = False

    def __setattr__(self, name, value):
        if self.armed and name == "_cut" and not value:
            self.armed = False
            os.kill(os.getpid(), signal.SIGINT)
        super().__setattr__(name, value)


def test_a_signal_at_the_end_of_what_can_be_cut_short():
    done = []
    with Awkward() as stop:
        stop.armed = True
        stop.cut_short(World(), lambda: done.append(0))
        assert not stop.armed
        assert (done, stop.signal) == ([0], signal.SIGINT)
    with loop._StopSignals() as stop:
        stop.cut_short(World(), lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(0), done.append(1)))
        assert (done, stop.signal) == ([0], signal.SIGINT)
    with loop._StopSignals() as stop:  # that another rank waits for
        stop.cut_short(World(0, 2), lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(0), done.append(2)))
        assert (done, stop.signal) == ([0, 2], signal.SIGINT)
