"""What a run's folder protects: its lock, other runs, foreign files, damaged and foreign checkpoints, a full disk."""

import errno
import json
import os
import resource
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from runs_util import differences

from gankern import files
from gankern.errors import InputError
from gankern.files import replacing, sweep
from gankern.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from gankern.training.pictures import save_curves
from gankern.training.rundir import RunDir

MORE = ["--kimg", "0.048"]


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run, at 32 images."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def two_checkpoints(run, cli):
    """A run with checkpoints at 32 and 48 images."""
    assert cli("train", "--resume", run, *MORE)[0] == 0
    assert len(list_checkpoints(run)) == 2
    return run


def contents(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# -- who may write where ----------------------------------------------------------------------------------------------


def test_two_runs_in_one_folder(run, refused):
    held = RunDir(run)
    refused("train", "--resume", run, *MORE, words=("--out", str(run), "another process is training in it"))
    held.close()


def test_the_lock_is_given_up(run, cli):
    RunDir(run).close()
    assert cli("train", "--resume", run)[0] == 0


OTHERS = {
    "gamma": ["--gamma", "3"],
    "batch": ["--batch", "16"],
    "preset": ["--preset", "auto"],
    "mirror": ["--mirror"],
    "seed": ["--seed", "1"],
    "resolution": ["--resolution", "8"],
    "cond": ["--cond"],
}


@pytest.mark.parametrize("option", OTHERS)
def test_another_run(option, run, images, tiny, refused):
    before = contents(run)
    command = ["train", "--data", images, "--out", run, *tiny, *OTHERS[option]]
    refused(*command, words=(str(run), "holds another run", f"--{option}".removesuffix("ition")))
    assert contents(run) == before


def test_other_data(run, make_folder, refused):
    refused("train", "--data", make_folder(3), "--out", run, words=("holds another run", "--data"))


def test_not_the_conditional_run(finished_cond, refused):
    refused("train", "--resume", finished_cond, "--no-cond", words=("holds another run", "--cond"))


def test_options_that_may_change(run, cli):
    code, _, err = cli("train", "--resume", run, *MORE, "--batch-gpu", "4", "--keep", "1", "--tick", "1")
    assert code == 0, err
    assert [p.name for p in list_checkpoints(run)] == ["checkpoint-00000.048"]
    assert "batch_gpu = 4" in (run / "config.toml").read_text()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["train", "dry run"])
def test_foreign_files(dry, tmp_path, images, tiny, refused):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/me.jpg").write_bytes(b"precious")
    command = ["train", "--data", images, "--out", tmp_path / "photos", *tiny, *dry]
    refused(*command, words=("--out", "not empty and not a run", "me.jpg"))
    assert contents(tmp_path / "photos") == {"me.jpg": b"precious"}


def test_out_is_a_file(tmp_path, images, tiny, refused):
    (tmp_path / "file").touch()
    refused("train", "--data", images, "--out", tmp_path / "file", *tiny, words=("--out", "file"))


def test_resume_without_a_run(tmp_path, refused):
    refused("train", "--resume", tmp_path / "none", words=("--resume", "holds no run"))
    assert not (tmp_path / "none").exists()


def test_resume_and_another_out(run, tmp_path, refused):
    refused("train", "--resume", run, "--out", tmp_path / "new", words=("--out", "--resume"))


def test_changed_dataset(tmp_path, images, tiny, cli, refused):
    data = shutil.copytree(images, tmp_path / "data")
    command = ["train", "--data", data, "--out", tmp_path / "run", *tiny, "--kimg", "0.008"]
    assert cli(*command)[0] == 0
    shutil.copy(data / "001.png", data / "012.png")
    refused(*command, *MORE, words=("--data", str(data), "images have changed"))


def test_changed_labels(tmp_path, labelled, tiny, cli, refused):
    data = shutil.copytree(labelled, tmp_path / "data")
    command = ["train", "--data", data, "--cond", "--out", tmp_path / "run", *tiny, "--kimg", "0.008"]
    assert cli(*command)[0] == 0
    labels = json.loads((data / "dataset.json").read_text())["labels"]
    (data / "dataset.json").write_text(json.dumps({"labels": [[name, i % 5] for i, (name, _) in enumerate(labels)]}))
    refused(*command, *MORE, words=("--data", "labels have 5 numbers, this run began with 3"))


# -- checkpoints ------------------------------------------------------------------------------------------------------

DAMAGE = {
    "truncated": lambda c: os.truncate(c / "state.pt", 1000),
    "flipped bit": lambda c: (c / "state.pt").write_bytes(
        bytes([*(d := (c / "state.pt").read_bytes())[:-1], d[-1] ^ 1])
    ),
    "no state": lambda c: (c / "state.pt").unlink(),
    "no meta": lambda c: (c / "meta.json").unlink(),
    "odd meta": lambda c: (c / "meta.json").write_text('{"format": "x", "size": 1, "crc": 2}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoint(damage, two_checkpoints, cli):
    """The one before is taken, loudly, and the run reaches the same end."""
    whole = load_checkpoint(two_checkpoints / "checkpoint-00000.048")
    DAMAGE[damage](two_checkpoints / "checkpoint-00000.048")
    code, out, err = cli("train", "--resume", two_checkpoints, "--keep", "1")
    assert code == 0, err
    assert "checkpoint-00000.048" in out.split("trying the one before")[0]
    assert "continuing from checkpoint-00000.032" in out
    again = load_checkpoint(two_checkpoints / "checkpoint-00000.048")
    assert differences(again["trainer"], whole["trainer"]) == []
    assert [p.name for p in list_checkpoints(two_checkpoints)] == ["checkpoint-00000.048"]


def test_all_checkpoints_damaged(two_checkpoints, refused):
    """Never begins anew over a run."""
    for checkpoint in list_checkpoints(two_checkpoints):
        DAMAGE["truncated"](checkpoint)
    before = contents(two_checkpoints)
    refused("train", "--resume", two_checkpoints, "--kimg", "1", words=(str(two_checkpoints), "2", "are damaged"))
    after = contents(two_checkpoints)
    for name in ("config.toml", "log.txt"):
        before.pop(name), after.pop(name)
    assert after == before


def test_newer_checkpoint(two_checkpoints, refused):
    meta = two_checkpoints / "checkpoint-00000.048/meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"format": 2, "gankern": "9.0"}))
    refused("train", "--resume", two_checkpoints, words=("checkpoint-00000.048", "newer gankern (9.0"))


def test_checkpoint_of_other_networks(run, finished_cond, refused):
    shutil.rmtree(run / "checkpoint-00000.032")
    shutil.copytree(finished_cond / "checkpoint-00000.016", run / "checkpoint-00000.016")
    refused("train", "--resume", run, words=("checkpoint-00000.016", "of another run", "c_dim"))


def test_checkpoint_of_other_options(run, refused):
    """The same networks, trained otherwise."""
    state = load_checkpoint(run / "checkpoint-00000.032")
    state["config"]["gamma"] = 5.0
    save_checkpoint(run, state, 32, 1)
    refused("train", "--resume", run, words=("checkpoint-00000.032", "its gamma is 5.0"))


def test_checkpoint_of_other_shapes(run, refused):
    state = load_checkpoint(run / "checkpoint-00000.032")
    state["trainer"]["G"]["mapping.w_avg"] = torch.zeros(3)
    save_checkpoint(run, state, 32, 1)
    refused("train", "--resume", run, words=("checkpoint-00000.032", "doesn't fit this run's networks"))


def test_checkpoint_of_other_data(run, refused):
    path = run / "checkpoint-00000.032"
    state = load_checkpoint(path)
    state["data"]["seed"] = 5
    save_checkpoint(run, state, 32, 1)
    refused("train", "--resume", run, words=("checkpoint-00000.032", "its seed is 5"))


def test_keep(tmp_path):
    for nimg in (1000, 2000, 3000):
        save_checkpoint(tmp_path, {"x": torch.zeros(1)}, nimg, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-00002.000", "checkpoint-00003.000"]


def test_a_later_damaged_checkpoint_does_not_count(tmp_path):
    """Else the only good one would be removed."""
    for nimg in (1000, 3000, 2000):
        save_checkpoint(tmp_path, {}, nimg, keep=1)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-00002.000", "checkpoint-00003.000"]


def test_checkpoints_are_ordered_by_number(tmp_path):
    for nimg in (99_999_000, 100_000_000):
        save_checkpoint(tmp_path, {}, nimg, keep=5)
    (tmp_path / "checkpoint-backup").mkdir()
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-99999.000", "checkpoint-100000.000"]


# -- leftovers and full disks -----------------------------------------------------------------------------------------


def test_leftovers_of_a_killed_process(run, cli):
    (run / ".fakes-00000.048.png.123.tmp").write_bytes(b"half")
    (run / ".checkpoint-00000.048.123.tmp").mkdir()
    os.rename(run / "checkpoint-00000.032", run / ".checkpoint-00000.032.123.old")  # as a kill between renames does
    code, out, _ = cli("train", "--resume", run, *MORE)
    assert code == 0
    assert "continuing from checkpoint-00000.032" in out
    assert not [p for p in run.iterdir() if p.name.startswith(".") and p.name != ".lock"]


def test_sweep_leaves_the_rest(tmp_path):
    for name in (".lock", ".a.tmp", "b.12.tmp", ".hidden.png", ".c.12.tmp", ".d.12.old", "d"):
        (tmp_path / name).write_text(name)
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.tmp", ".hidden.png", ".lock", "b.12.tmp", "d"]
    assert (tmp_path / "d").read_text() == "d"


def test_replacing_keeps_the_old_on_an_error(tmp_path):
    (tmp_path / "f").write_text("old")

    def write(error: Exception) -> None:
        with replacing(tmp_path / "f") as temporary:
            temporary.write_text("new")
            raise error

    with pytest.raises(ZeroDivisionError):
        write(ZeroDivisionError())
    with pytest.raises(InputError, match=r"f: could not be written \(No space left on device\)"):
        write(OSError(errno.ENOSPC, "No space left on device"))
    assert contents(tmp_path) == {"f": b"old"}


def test_replacing_a_folder(tmp_path):
    for text in ("old", "new"):
        with replacing(tmp_path / "d") as temporary:
            temporary.mkdir()
            (temporary / "f").write_text(text)
    assert contents(tmp_path) == {"d/f": b"new"}


@pytest.fixture
def largest_file():
    """largest_file(n): what would be longer than n bytes can't be written, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_for_a_checkpoint(run, refused, largest_file):
    """One line that names the file; the last good checkpoint stays and nothing half written."""
    before = contents(run / "checkpoint-00000.032")
    largest_file(150_000)
    refused("train", "--resume", run, *MORE, words=("checkpoint-00000.048", "could not be written"))
    largest_file(resource.RLIM_INFINITY)
    assert [p.name for p in list_checkpoints(run)] == ["checkpoint-00000.032"]
    assert contents(run / "checkpoint-00000.032") == before
    assert not list(run.glob(".*.tmp"))


@pytest.mark.parametrize(("what", "writer"), [("network", "safetensors.torch.save"), ("fakes", "PIL.Image.Image.save")])
def test_no_room_for_a_snapshot(what, writer, run, cli, refused, monkeypatch):
    """The checkpoint is written before the snapshot, so nothing is lost, and the snapshot is made up for."""

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writer, full)
        refused("train", "--resume", run, *MORE, words=(f"{what}-00000.048", "No space left on device"))
    assert [p.name for p in list_checkpoints(run)][-1] == "checkpoint-00000.048"
    assert not list(run.glob(".*.tmp"))
    assert cli("train", "--resume", run, *MORE)[0] == 0
    assert list(run.glob(f"{what}-00000.048*"))


def test_no_room_for_the_log(run, refused):
    (run / "log.txt").unlink()
    (run / "log.txt").symlink_to("/dev/full")
    refused("train", "--resume", run, *MORE, words=("log.txt", "No space left on device"))
    assert [p.name for p in list_checkpoints(run)] == ["checkpoint-00000.032"]


def test_no_room_for_statistics(tmp_path):
    run = RunDir(tmp_path)
    (tmp_path / "stats.jsonl").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"stats\.jsonl: could not be written \(No space left on device\)"):
        run.write_stats({"nimg": 1})
    run.close()


def test_statistics_are_strict_json(tmp_path):
    """What isn't finite is null; a plot passes over it."""
    run = RunDir(tmp_path)
    run.write_stats({"nimg": 0, "kimg": 0.0, "loss/G": float("nan"), "r1": float("inf"), "skipped": 1})
    run.close()
    text = (tmp_path / "stats.jsonl").read_text()
    row = json.loads(text, parse_constant=lambda word: pytest.fail(word))
    assert row == {"nimg": 0, "kimg": 0.0, "loss/G": None, "r1": None, "skipped": 1}
    assert not save_curves(tmp_path / "curves.png", [row])


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(size) -> the folder of a new file system of that size; skips where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: str):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("can't mount a small file system here")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


@pytest.mark.parametrize("size", ["100k", "400k", "1400k"])
def test_full_disk(size, small_disk, images, tiny, refused):
    """A real one: it fills up at the first network, the first checkpoint, the second checkpoint."""
    run = small_disk(size) / "run"
    refused("train", "--data", images, "--out", run, *tiny, "--checkpoint-minutes", "1e-9", words=("No space left",))
    assert len(list_checkpoints(run)) == (size == "1400k")
    for checkpoint in list_checkpoints(run):
        load_checkpoint(checkpoint)
    assert not list(run.glob(".*.tmp"))


def test_what_is_written_is_synced(tmp_path, monkeypatch):
    """The file before its rename, the folder after it."""
    synced = []
    monkeypatch.setattr(
        files.os, "fsync", lambda fd: synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
    )
    with replacing(tmp_path / "f") as temporary:
        temporary.write_text("x")
    assert synced == [f".f.{os.getpid()}.tmp", tmp_path.name]


def test_a_run_without_a_checkpoint_begins_anew(tmp_path, tiny, cli, refused):
    """Advice such as --skip-bad can be followed after a failure that came before anything was learned."""
    data = tmp_path / "data"
    data.mkdir()
    for i in range(12):
        pixels = np.random.RandomState(i).randint(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(data / f"{i:02d}.png")
    good = (data / "05.png").read_bytes()
    middle = len(good) // 2
    (data / "05.png").write_bytes(good[:middle] + bytes(8) + good[middle + 8 :])  # header and end stay whole
    command = ["train", "--data", data, "--out", tmp_path / "run", *tiny]
    refused(*command, words=("05.png", "--skip-bad"))
    code, _, err = cli(*command, "--skip-bad")
    assert code == 0, err
