"""Signals: a run that is asked to stop leaves a checkpoint and the line that continues it."""

import shlex
import signal
import time

import pytest
from runs_util import assert_same_run, dying_process, start

from gankern.training.checkpoint import list_checkpoints


@pytest.fixture
def command(images, tmp_path, tiny):
    return ["train", "--data", images, "--out", tmp_path / "a run", *tiny]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_stop_and_go_on(name, command, cli, tmp_path, finished):
    """The signal strikes within the second step, which is finished; the printed line continues the run exactly."""
    stopped = dying_process("step.update_ema", 2, command, signal=name)
    assert stopped.returncode == 128 + getattr(signal, name)
    assert stopped.stderr == ""
    last = stopped.stdout.splitlines()[-1]
    assert last.startswith("stopped at 0.0 of 0.032 kimg; continue with: gankern train --resume ")
    assert [p.name for p in list_checkpoints(tmp_path / "a run")] == ["checkpoint-00000.016"]
    code, out, err = cli(*shlex.split(last.split("continue with: gankern ")[1]))
    assert code == 0, err
    assert "continuing from checkpoint-00000.016" in out
    assert_same_run(finished, tmp_path / "a run")


def test_ctrl_c_is_prompt(command, tmp_path):
    """From the terminal's signal to the end: well within the time of the run that it stops."""
    process = start([*command, "--kimg", "1000"])
    while "loss G" not in process.stdout.readline():
        assert process.poll() is None
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - begun < 15
    assert process.returncode == 130
    assert err == ""
    assert "continue with: gankern train --resume" in out.splitlines()[-1]
    assert list_checkpoints(tmp_path / "a run")


def test_a_second_ctrl_c_ends_at_once(command, tmp_path):
    """Even while the second checkpoint is written: the first stays, nothing half written does."""
    each_step = [*command, "--checkpoint-minutes", "1e-9"]
    stopped = dying_process("checkpoint._crc", 2, each_step, signal="SIGINT", times=2)
    assert stopped.returncode == 130
    assert stopped.stderr == "gankern: interrupted\n"
    assert [p.name for p in list_checkpoints(tmp_path / "a run")] == ["checkpoint-00000.008"]
    assert not list((tmp_path / "a run").glob(".*.tmp"))


def test_ctrl_c_while_images_are_read(command):
    stopped = dying_process("loop.open_data", 1, command, signal="SIGINT")
    assert stopped.returncode == 130
    assert stopped.stderr == "gankern: interrupted\n"


def test_ctrl_c_in_the_first_snapshot(command, cli, tmp_path, finished):
    """Before the first step there is nothing to save; the same command begins anew."""
    stopped = dying_process("loop.Snapshots.take", 1, command, signal="SIGINT")
    assert stopped.returncode == 130
    assert stopped.stdout.splitlines()[-1].startswith("stopped at 0.0")
    assert cli(*command)[0] == 0
    assert_same_run(finished, tmp_path / "a run")


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
@pytest.mark.parametrize("where", ["loop.Snapshots.take", "checkpoint.save_checkpoint"])
def test_stopped_in_the_last_snapshot(name, where, command, cli, tmp_path, finished):
    """A snapshot is cut short, never lost: what is missing of it is made up for."""
    stopped = dying_process(where.replace("checkpoint.", "loop."), 2 if "take" in where else 1, command, signal=name)
    assert stopped.returncode in (130, -9)
    assert cli(*command)[0] == 0
    assert_same_run(finished, tmp_path / "a run")


def test_a_reader_that_is_gone(command, cli, tmp_path, finished):
    """Ctrl-C ends the `tee` behind a pipe as well: the run still writes its checkpoint."""
    process = start(command)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == ""
    assert_same_run(finished, tmp_path / "a run")
