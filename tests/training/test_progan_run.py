"""Whole ProGAN runs: growth in one command, exact resume wherever it is killed, what a run leaves, what it refuses."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs_util import assert_same_run, dying_process, environment, final_state, stats

from gankern.cli import main
from gankern.data import prepare
from gankern.models.files import load_network
from gankern.models.progan import upscale
from gankern.training import ProGANTrainer
from gankern.training.config import read_toml

TINY = "--model progan --channel-base 32 --z-dim 8 --batch-schedule 4:8,8-:4 --stable-kimg 0.016 --fade-kimg 0.032"
TINY = (TINY + " --repeats 2 --kimg 0.104 --tick 0.016 --snap 2 --metric-images 4 --device cpu").split()
# 4 px by eights; looked at every other step, 8 px fade in from 32 images, by fours, and 16 px from 72; 96 see all
EACH_STEP = ["--checkpoint-minutes", "1e-9"]
VARIANTS = {"plain": [], "labels": ["--cond"], "workers": ["--memory-gb", "0", "--workers", "1"]}


@pytest.fixture(scope="module")
def grown(tmp_path_factory, images, one_thread_only):
    """The folder of a finished run; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "grown"
    assert main(["train", "--data", str(images), "--out", str(out), *TINY]) == 0
    return out


@pytest.fixture
def command(images, labelled, tmp_path):
    def make(out: str, variant: str = "plain") -> list:
        data = labelled if variant == "labels" else images
        return ["train", "--data", data, "--out", tmp_path / out, *TINY, *VARIANTS[variant], *EACH_STEP]

    return make


# in a fade and between two looks at the schedule; likewise just after a resolution was added; where batches change
@pytest.mark.parametrize(("variant", "step"), [("plain", 6), ("labels", 16), ("workers", 5)])
def test_killed_and_resumed(variant, step, command, cli, tmp_path, grown):
    """SIGKILL within a step, between the networks' updates and that of the average: ends like the run that never
    stopped."""
    whole = grown
    if variant == "labels":
        whole = tmp_path / "whole"
        assert cli(*command("whole", variant))[0] == 0
    killed = dying_process("progan.update_ema", step, command("killed", variant))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    code, out, err = cli(*command("killed", variant))
    assert code == 0, err
    assert "continuing from checkpoint-" in out
    assert_same_run(whole, tmp_path / "killed")


def test_the_line_shows_stage_and_fade(command, cli):
    _, out, _ = cli(*command("run"), "--tick", "0.004", "--snap", "100")
    shown = [line.split("  ")[1] for line in out.splitlines() if line.startswith("kimg") and "img/s" in line]
    assert shown[0] == "4x4 stable"
    assert "4x4 → 8x8 fade 50%" in shown
    assert "8x8 stable" in shown
    assert "8x8 → 16x16 fade 75%" in shown
    assert shown[-1] == "16x16 stable"


def test_what_a_run_leaves(grown):
    """Statistics with lod and batch; grids of the resolution that was trained; networks that know their lod."""
    rows = [row for row in stats(grown) if "step" in row]
    assert [row["nimg"] for row in rows] == [16, 32, 48, 64, 80, 96]
    assert [row["batch"] for row in rows] == [8, 8, 4, 4, 4, 4]
    assert [row["lod"] for row in rows] == [2, 2, 1.25, 1, 0.75, 0.25]
    assert rows[0].keys() >= {"loss/G", "loss/D", "gradient_penalty", "gradient_norm", "logits/real", "skipped"}
    sides = {0: 4, 32: 4, 64: 8, 96: 16, 104: 16}
    assert sorted(p.name for p in grown.glob("fakes-*")) == [f"fakes-00000.{n:03d}.png" for n in sides]
    for nimg, side in sides.items():
        with Image.open(grown / f"fakes-00000.{nimg:03d}.png") as grid:
            assert grid.size == (16 * side, 9 * side)
        G, header = load_network(grown / f"network-00000.{nimg:03d}.safetensors")
        assert (header["architecture"], header["lod"]) == ("progan", {0: 2, 32: 2, 64: 1, 96: 0.25, 104: 0}[nimg])
        assert G.lod == header["lod"]
    assert final_state(grown)["trainer"]["nimg"] == 104


def test_a_longer_run(grown, cli, tmp_path):
    shutil.copytree(grown, tmp_path / "run")
    code, out, err = cli("train", "--resume", tmp_path / "run", "--kimg", "0.112")
    assert code == 0, err
    assert "continuing from checkpoint-00000.104" in out
    assert final_state(tmp_path / "run")["trainer"]["nimg"] == 112


def test_ticks_and_snapshots_after_a_resume_are_those_of_the_batch(grown, cli, tmp_path):
    """A finished snapshot isn't taken again, whatever batch led there."""
    shutil.copytree(grown, tmp_path / "run")
    before = (grown / "stats.jsonl").read_text()
    assert cli("train", "--resume", tmp_path / "run")[0] == 0
    assert (tmp_path / "run/stats.jsonl").read_text() == before


# -- use --------------------------------------------------------------------------------------------------------------


def test_generate(grown, cli, tmp_path):
    """Full size at the lod of the file: here of a fade, and of a stage below."""
    for nimg in (64, 96):
        file, out = grown / f"network-00000.{nimg:03d}.safetensors", tmp_path / str(nimg)
        code, _, err = cli("generate", "--network", file, "--seeds", "3-6", "--out", out, "--grid")
        assert code == 0, err
        G, header = load_network(file)
        z = torch.from_numpy(np.random.RandomState(5).randn(1, 8)).float()
        image = G(z, lod=header["lod"])
        assert image.shape == (1, 3, 16, 16)
        if nimg == 64:
            assert image.equal(upscale(G(z, lod=1.0, native=True), 2))
        expected = np.clip(np.floor(image[0].permute(1, 2, 0).numpy() * 127.5 + 128), 0, 255)
        actual = np.asarray(Image.open(out / "seed0005.png")).astype(int)
        assert np.abs(actual - expected).max() <= 1


@pytest.mark.parametrize("option", ["--trunc 0.7", "--trunc-cutoff 3", "--noise-mode random", "--class 0"])
def test_what_a_progan_does_not_have(option, grown, refused, tmp_path):
    command = ["generate", "--network", max(grown.glob("network-*")), "--seeds", "0", "--out", tmp_path / "out"]
    refused(*command, *option.split(), words=(option.split()[0],))
    assert not (tmp_path / "out").exists()


def test_metrics(grown, images, cli):
    file = grown / "network-00000.096.safetensors"
    code, out, err = cli("metrics", "--network", file, "--data", images, "--num", "4", "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["swd"]["avg"] > 0
    assert [row["swd"] for row in stats(grown) if row["nimg"] == 96 and "swd" in row] == pytest.approx(
        [result["swd"]["avg"]], rel=1e-6
    )


def test_dry_run(grown, cli, images, tmp_path):
    """Every option, the parameters of all stages, and the costliest stage."""
    code, out, _ = cli("train", "--data", images, "--out", tmp_path / "run", *TINY, "--dry-run")
    assert code == 0
    assert not (tmp_path / "run").exists()
    for name, value in vars(read_toml(grown / "config.toml")).items():
        assert any(line.split() == [name, *("-" if value is None else str(value)).split()] for line in out.splitlines())
    state = final_state(grown)["trainer"]
    g, d = (sum(v.numel() for v in state[name].values()) for name in "GD")
    assert f"parameters: generator {g:,}, discriminator {d:,}" in out
    assert "at 4 images of 16x16, the costliest stage" in out


# -- data -------------------------------------------------------------------------------------------------------------


def test_a_pyramid_is_read(images, cli, tmp_path, monkeypatch):
    """Stages below the full resolution take their images from it."""
    prepare(images, tmp_path / "data.zip", resolution=16, pyramid=True)
    seen, original = [], ProGANTrainer.step

    def step(trainer, real, labels):
        seen.append(real.shape[-1])
        original(trainer, real, labels)

    monkeypatch.setattr(ProGANTrainer, "step", step)
    code, _, err = cli("train", "--data", tmp_path / "data.zip", "--out", tmp_path / "run", *TINY)
    assert code == 0, err
    assert sorted(set(seen)) == [4, 8, 16]
    assert seen == sorted(seen)


def test_the_example(tmp_path):
    """From any folder; its options go together."""
    script = Path(__file__).parents[2] / "examples/progan_32.sh"
    command = ["bash", script, "run", "--dry-run"]
    env = environment() | {"PYTHON": sys.executable}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "kimg                38.0\n" in done.stdout


# -- what is refused --------------------------------------------------------------------------------------------------

REFUSED = {
    "too short": ("--kimg 0.096", "--kimg 0.096: too short to reach 16 px"),
    "hole": ("--batch-schedule 4:8,16:4", "--batch-schedule 4:8,16:4: no entry for 8 px"),
    "another model's": ("--pl-weight 2", "--pl-weight: not an option of --model progan"),
    "batch": ("--batch 4", "--batch 4: --batch-schedule is given as well"),
    "preset": ("--preset paper256", "--preset paper256: of --model stylegan2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, images, tmp_path, refused):
    given, named = REFUSED[case]
    refused("train", "--data", images, "--out", tmp_path / "run", *TINY, *given.split(), words=(named,))
    assert not (tmp_path / "run").exists()


OTHERS = {
    "batches": ("--batch-schedule 4-:4", "--batch-schedule is 4:8,8-:4, not 4-:4"),
    "one batch": ("--batch 4", "--batch-schedule"),
    "fade": ("--fade-kimg 0.02", "its --fade-kimg is 0.032, not 0.02"),
    "no growth": ("--no-grow", "its --grow is True, not False"),
    "mbstd": ("--no-mbstd", "its --mbstd-group is 4, not 0"),
    "model": ("--model stylegan2", "its --model is progan, not stylegan2"),
    "another model's": ("--gamma 3 --pl-weight 2", "--pl-weight: not an option of --model progan"),
    "length": ("--kimg 0.096", "--kimg 0.096: too short"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_resuming_with_another_schedule(case, grown, refused):
    given, named = OTHERS[case]
    refused("train", "--resume", grown, *given.split(), words=(named,))


def test_the_same_schedule_written_otherwise(grown, cli, tmp_path):
    run = shutil.copytree(grown, tmp_path / "run")
    assert cli("train", "--resume", run, "--batch-schedule", "8-:4, 4:8", "--grow", "--mbstd")[0] == 0


def test_stylegan2_does_not_grow(images, tiny, tmp_path, refused):
    command = ["train", "--data", images, "--out", tmp_path / "run", *tiny]
    refused(*command, "--fade-kimg", "3", words=("--fade-kimg: not an option of --model stylegan2",))


def test_a_stylegan2_run_does_not_go_on_as_a_progan(finished, refused):
    refused("train", "--resume", finished, *TINY, words=("its --model is stylegan2, not progan",))
