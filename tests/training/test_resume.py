"""Exact resume: a run that is killed and started again ends like one that never stopped, bit for bit."""

import json
import shutil
import signal
import time

import pytest
from runs_util import assert_same_run, differences, dying_process, final_state, start, stats

from gankern.training.checkpoint import list_checkpoints

EACH_STEP = ["--checkpoint-minutes", "1e-9"]
VARIANTS = {
    "plain": [],
    "accumulated": ["--batch-gpu", "4"],
    "mirror": ["--mirror"],
    "labels": ["--cond"],
    "workers": ["--memory-gb", "0", "--workers", "1"],
}
STATE = {"G", "D", "G_ema", "G_opt", "D_opt", "pl_mean", "nimg", "steps", "done", "sums", "skipped"}


@pytest.fixture
def command(images, labelled, tmp_path, tiny):
    """command(variant, out) -> the command line of a run of four steps."""

    def make(variant: str, out: str) -> list:
        data = labelled if variant == "labels" else images
        return ["train", "--data", data, "--out", tmp_path / out, *tiny, *VARIANTS[variant], *EACH_STEP]

    return make


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_in_a_step(variant, command, cli, tmp_path, finished):
    """SIGKILL within the last of four steps, between the update of the networks and that of the average. The
    checkpoint before it falls between two ticks."""
    whole = finished
    if variant != "plain":
        whole = tmp_path / "whole"
        assert cli(*command(variant, "whole"))[0] == 0
    killed = dying_process("step.update_ema", 4, command(variant, "killed"))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [p.name for p in list_checkpoints(tmp_path / "killed")][-1] == "checkpoint-00000.024"
    code, out, err = cli(*command(variant, "killed"))
    assert code == 0, err
    assert "continuing from checkpoint-00000.024" in out
    assert_same_run(whole, tmp_path / "killed")


def test_the_state_is_all_there(finished):
    state = final_state(finished)
    assert state["data"]["position"] == 32
    assert state["trainer"].keys() >= STATE
    assert state["trainer"]["pl_mean"] > 0
    assert state["trainer"]["G_opt"]["state"][0]["step"] == 6  # four updates and two of path length


KILLS = {
    "checkpoint half written": ("checkpoint._crc", 3),
    "checkpoint before its rename": ("files.os.replace", 10),
    "first checkpoint": ("checkpoint._crc", 1),
    "config": ("files._sync", 1),
}


@pytest.mark.parametrize("when", KILLS)
def test_killed_while_writing(when, command, cli, tmp_path, finished):
    """SIGKILL while files are written: the one before stays good, leftovers go away, and the run ends alike."""
    killed = dying_process(*KILLS[when], command("plain", "killed"))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list((tmp_path / "killed").glob(".*.tmp"))  # the kill struck where it should
    assert cli(*command("plain", "killed"))[0] == 0
    assert_same_run(finished, tmp_path / "killed")
    assert not list((tmp_path / "killed").glob(".*.tmp"))


def test_killed_from_outside(command, cli, tmp_path, finished):
    """SIGKILL at whatever moment it is."""
    process = start(command("plain", "killed"))
    while not list((tmp_path / "killed").glob("checkpoint-*")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert cli(*command("plain", "killed"))[0] == 0
    assert_same_run(finished, tmp_path / "killed")


def test_workers_and_cache_train_alike(command, cli, tmp_path, finished):
    """The worker processes draw nothing from the run's random state."""
    assert cli(*command("workers", "workers"))[0] == 0
    assert_same_run(finished, tmp_path / "workers")


def test_snapshots_change_nothing(command, cli, tmp_path, finished):
    """A run that stops, scores and draws every tick learns what one without does."""
    assert cli(*command("plain", "snaps"), "--snap", "1")[0] == 0
    assert len(list((tmp_path / "snaps").glob("fakes-*.png"))) == 3
    a, b = final_state(finished), final_state(tmp_path / "snaps")
    assert differences(a["trainer"], b["trainer"]) == []


def test_longer(finished, cli, tmp_path, tiny):
    """A finished run goes on with a larger --kimg, also by --resume, and says so."""
    shutil.copytree(finished, tmp_path / "run")
    code, out, err = cli("train", "--resume", tmp_path / "run", "--kimg", "0.048")
    assert code == 0, err
    assert "continuing from checkpoint-00000.032" in out
    assert final_state(tmp_path / "run")["trainer"]["nimg"] == 48
    assert [row["nimg"] for row in stats(tmp_path / "run")] == [0, 16, 32, 32, 48, 48]


def test_a_torn_row_of_statistics(finished, cli, tmp_path):
    """A kill can cut the last row short; rows past the checkpoint are written again."""
    shutil.copytree(finished, tmp_path / "run")
    with (tmp_path / "run/stats.jsonl").open("a") as file:
        file.write(json.dumps({"nimg": 40, "kimg": 0.04}) + '\n{"nimg": 48, "ki')
    assert cli("train", "--resume", tmp_path / "run", "--kimg", "0.048")[0] == 0
    assert [row["nimg"] for row in stats(tmp_path / "run")] == [0, 16, 32, 32, 48, 48]
