"""Wrong options: exit code 2 and one line that names them; and what the other commands say."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from gankern.cli import COMMANDS, build_parser
from gankern.training import loss
from gankern.training.checkpoint import list_checkpoints, load_checkpoint

BAD_TRAIN = {  # what is given, what the line names
    "batch and group": ("--batch 6", "--batch 6: not a multiple of --mbstd-group 4"),
    "batch-gpu and group": ("--batch-gpu 2", "--batch-gpu 2: not a multiple of --mbstd-group 4"),
    "batch and batch-gpu": ("--batch-gpu 3", "--batch 8: not a multiple of --batch-gpu 3"),
    "preset": ("--preset papr256", "papr256"),
    "resolution": ("--resolution 12", "resolution 12: expected a power of two"),
    "larger resolution": ("--resolution 32", "smaller than resolution 32"),
    "tiny resolution": ("--resolution 4", "images are 4 px, expected 8 or more"),
    "word for a number": ("--batch many", "--batch"),
    "gamma": ("--gamma nan", "--gamma nan"),
    "seed": ("--seed -1", "--seed -1"),
    "workers": ("--workers -1", "--workers -1"),
    "memory": ("--memory-gb nan", "--memory-gb nan"),
    "max-images": ("--max-images 0", "--max-images"),
    "device": ("--device tpu", "--device tpu"),
    "missing device": ("--device cuda:77", "--device cuda:77"),
    "precision": ("--precision fp8", "--precision"),
    "labels": ("--cond", "has no labels"),
    "unknown option": ("--learning-rate 1", "--learning-rate"),
}


@pytest.mark.parametrize("case", BAD_TRAIN)
def test_bad_training_option(case, images, tiny, tmp_path, refused):
    given, named = BAD_TRAIN[case]
    refused("train", "--data", images, "--out", tmp_path / "run", *tiny, *given.split(), words=(named,))
    assert not (tmp_path / "run").exists() or not list_checkpoints(tmp_path / "run")


@pytest.mark.parametrize("what", ["missing", "empty", "no images", "not given"])
def test_bad_data(what, tmp_path, refused):
    folder = tmp_path / "data"
    if what != "missing":
        folder.mkdir()
    if what == "no images":
        (folder / "a.txt").touch()
    data = [] if what == "not given" else ["--data", folder]
    refused("train", *data, "--out", tmp_path / "run", words=("--data" if what == "not given" else str(folder),))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("argv", [[], ["trane"], ["data"], ["generate"], ["metrics", "--network", "x"]], ids=str)
def test_usage(argv, refused):
    refused(*argv, words=("gankern",))


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, cli):
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert out.startswith(f"usage: gankern {command}")


def test_version_and_env(cli):
    assert cli("--version")[1].startswith("gankern ")
    code, out, _ = cli("env")
    assert code == 0
    for word in ("torch", "modulated_conv2d", "reference", "cudnn graphs"):
        assert word in out


# -- network files ----------------------------------------------------------------------------------------------------


def rewrite(source, target, **changes):
    """A copy of a network file with another header; None leaves an entry out."""
    with safe_open(source, framework="pt") as file:
        header = json.loads(file.metadata()["gankern"]) | changes
    header = {k: v for k, v in header.items() if v is not None}
    safetensors.torch.save_file(safetensors.torch.load_file(source), target, metadata={"gankern": json.dumps(header)})


BAD_NETWORKS = {
    "missing": (None, "no such file"),
    "truncated": (lambda src, dst: dst.write_bytes(src.read_bytes()[:5000]), "truncated"),
    "empty": (lambda src, dst: dst.touch(), "truncated"),
    "a pickle": (lambda src, dst: torch.save({"a": 1}, dst), "holds 'a', which is no tensor"),
    "foreign": (lambda src, dst: safetensors.torch.save_file({"a": torch.ones(1)}, dst), "no networks of a known form"),
    "newer": (lambda src, dst: rewrite(src, dst, format=2, gankern="9.1"), "newer gankern (9.1)"),
    "architecture": (lambda src, dst: rewrite(src, dst, architecture="progan"), "architecture 'progan'"),
    "config": (lambda src, dst: rewrite(src, dst, config={"z_dim": 8}), "weights and config don't fit"),
    "odd config": (lambda src, dst: rewrite(src, dst, config=["z_dim"]), "header can't be read"),
    "unknown config": (lambda src, dst: rewrite(src, dst, config={"depth": 8}), "weights and config don't fit"),
    "no format": (lambda src, dst: rewrite(src, dst, format=None), "header can't be read"),
    "no nimg": (lambda src, dst: rewrite(src, dst, nimg=None), "header can't be read"),
}


@pytest.mark.parametrize("case", BAD_NETWORKS)
def test_bad_network(case, network, images, tmp_path, refused):
    make, named = BAD_NETWORKS[case]
    file = tmp_path / "net.safetensors"
    if make:
        make(network, file)
    words = ("--network", str(file), named)
    refused("generate", "--network", file, "--seeds", "0", "--out", tmp_path / "out", words=words)
    refused("metrics", "--network", file, "--data", images, words=words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", ["train --out --data --resume", "generate --network --out --ws --features"])
def test_home(options, monkeypatch):
    """A shell leaves the ~ of --out=~/x as it is; whose home isn't known keeps it."""
    monkeypatch.setenv("HOME", "/home/someone")
    command, *names = options.split()
    for path, found in (("~/x.y", "/home/someone/x.y"), ("~nobody.here/x", "~nobody.here/x")):
        args = vars(build_parser().parse_args([command, *(f"{name}={path}" for name in names)]))
        assert {args[name[2:]] for name in names} == {found}


BAD_GENERATE = {
    "seeds": ("--seeds 1-", "--seeds 1-"),
    "seed words": ("--seeds first", "--seeds first"),
    "backward seeds": ("--seeds 7-3", "--seeds 7-3"),
    "negative seeds": ("--seeds=-1", "--seeds -1"),
    "large seeds": ("--seeds 4294967296", "--seeds 4294967296"),
    "empty seeds": ("--seeds=", "--seeds"),
    "class": ("--class 0", "--class 0: the network is not conditional"),
    "batch": ("--batch 0", "--batch 0"),
    "trunc": ("--trunc nan", "--trunc nan"),
    "cutoff": ("--trunc-cutoff -1", "--trunc-cutoff -1"),
    "noise": ("--noise-mode loud", "--noise-mode"),
}


@pytest.mark.parametrize("case", BAD_GENERATE)
def test_bad_generate_option(case, network, tmp_path, refused):
    given, named = BAD_GENERATE[case]
    refused(
        *("generate", "--network", network, "--seeds", "0", "--out", tmp_path / "out", *given.split()), words=(named,)
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("given", "named"), [([], "--class"), (["--class", "3"], "--class 3"), (["--class=-1"], "-1")])
def test_bad_class(given, named, network_cond, tmp_path, refused):
    command = ["generate", "--network", network_cond, "--seeds", "0", "--out", tmp_path / "out", *given]
    refused(*command, words=(named, "from 0 to 2"))


def test_generate_out_is_a_file(network, refused):
    refused("generate", "--network", network, "--seeds", "0", "--out", network, words=(str(network),))


BAD_METRICS = {
    "metric": ("--metrics fid", "'fid'"),
    "no metric": ("--metrics ,", "no metric"),
    "num": ("--num 0", "--num 0"),
    "many": ("--num 100", "100 images need 200 reals: found 12"),
    "one pair": ("--num 1 --metrics ms_ssim", "ms_ssim"),
    "batch": ("--batch 0", "--batch 0"),
}


@pytest.mark.parametrize("case", BAD_METRICS)
def test_bad_metrics_option(case, network, images, refused):
    given, named = BAD_METRICS[case]
    refused("metrics", "--network", network, "--data", images, *given.split(), words=(named,))


def test_metrics_of_other_data(network, network_cond, images, make_folder, refused):
    refused("metrics", "--network", network, "--data", make_folder(4, size=8), words=("smaller than resolution 16",))
    refused("metrics", "--network", network_cond, "--data", images, words=("has no labels",))
    four = make_folder(classes=4)
    refused("metrics", "--network", network_cond, "--data", four, words=("labels of 4", "conditioned on 3"))


# -- a run that diverges ----------------------------------------------------------------------------------------------


def test_divergence(finished, tmp_path, cli, monkeypatch):
    """One line that says what happened, exit code 1; the last good checkpoint stays and continues."""
    run = shutil.copytree(finished, tmp_path / "run")
    config = run / "config.toml"
    config.write_text(config.read_text().replace("max_skipped = 20", "max_skipped = 2"))
    monkeypatch.setattr(loss, "generator_loss", lambda logits: logits.sum() * float("nan"))
    code, out, err = cli("train", "--resume", run, "--kimg", "0.096")
    assert code == 1
    assert err.startswith("gankern: error: step 5, phase G: non-finite gradient of synthesis.b4.const and ")
    assert "diverged" in err
    assert err.count("\n") == 1
    assert "step 4, phase G: non-finite gradient" in out
    assert [p.name for p in list_checkpoints(run)] == ["checkpoint-00000.032"]
    load_checkpoint(list_checkpoints(run)[0])
    monkeypatch.undo()
    assert cli("train", "--resume", run, "--kimg", "0.048")[0] == 0


def test_unknown_implementation(monkeypatch, refused):
    monkeypatch.setenv("GANKERN_IMPL", "nonsense")
    refused("env", words=("GANKERN_IMPL", "nonsense", "reference"))


def test_out_of_gpu_memory_is_one_line(monkeypatch, cli):
    class OutOfMemoryError(RuntimeError):
        pass

    def full(args):
        raise OutOfMemoryError("CUDA out of memory, and much more")

    monkeypatch.setattr("gankern.cli.env.run", full)
    code, _, err = cli("env")
    assert (code, err.count("\n")) == (1, 1)
    assert "--batch-gpu" in err
