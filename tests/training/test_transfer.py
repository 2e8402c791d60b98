"""Runs that start from networks trained before, and discriminators of which the first layers stay as they are."""

import shutil

import pytest
import torch
from runs_util import differences, dying_process, final_state

from gankern.interop.networks import Networks
from gankern.interop.reading import read_networks
from gankern.interop.writing import write_networks
from gankern.models.files import save_network
from gankern.models.progan import Generator as ProGAN
from gankern.models.stylegan2 import Discriminator, Generator
from gankern.training.checkpoint import list_checkpoints
from gankern.training.config import resolve
from gankern.training.phases import build_networks
from gankern.training.transfer import layers_from_the_image, learning, start_networks, start_options

TINY_OTHERS = ["--batch", 8, "--kimg", "0.016", "--tick", "0.016", "--metric-images", 0, "--device", "cpu"]


@pytest.fixture(scope="module")
def before(finished, tmp_path_factory):
    """The networks of a finished run, as the files that hold them."""
    folder = tmp_path_factory.mktemp("before")
    (checkpoint,) = list_checkpoints(finished)
    networks = read_networks(checkpoint)
    write_networks(networks, folder / "all.safetensors", training=True)
    write_networks(networks, folder / "all.pt")
    write_networks(networks, folder / "average.pth")
    return {"checkpoint": checkpoint, "own": folder / "all.safetensors", "rosinality": folder / "all.pt"} | {
        "average": folder / "average.pth"
    }


def test_options_that_the_file_tells(tmp_path):
    """A snapshot's groups are the run's unless the user gives others; weights alone tell none."""
    sizes = {"img_resolution": 16, "channel_base": 64, "channel_max": 8}
    networks = Networks(
        D=Discriminator(**sizes, mbstd_group_size=2), G_ema=Generator(8, w_dim=8, **sizes, conv_clamp=256)
    )
    save_network(tmp_path / "n.safetensors", networks.G_ema, nimg=0, training={"D": networks.D})
    write_networks(networks, tmp_path / "n.pt")
    start = start_options(str(tmp_path / "n.safetensors"), 16, 0)
    assert start["mbstd_group"] == 2
    assert "mbstd_group" not in start_options(str(tmp_path / "n.pt"), 16, 0)
    shared = {"resolution": 16, "c_dim": 0, "identity": "", "start": start}
    assert resolve({"data": "d"}, **shared).mbstd_group == 2
    config = resolve({"data": "d", "mbstd_group": 4, "preset": "paper256"}, **shared)
    assert config.mbstd_group == 4
    said = start_networks(config, *build_networks(config, "cpu"), build_networks(config, "cpu")[0])
    assert "gankern's network, without its conv_clamp 256;" in said


def train(cli, images, out, *options):
    return cli("train", "--data", images, "--out", out, *TINY_OTHERS, *options)


@pytest.mark.parametrize("kind", ["checkpoint", "own", "rosinality"])
def test_begins_with_those_networks(kind, before, images, cli, tmp_path, monkeypatch):
    """Learning rates of almost nothing: what is trained is what was read, and so is its average."""
    rates = ["--g-lr", "1e-30", "--d-lr", "1e-30", "--r1-interval", 3]
    code, said, err = train(cli, images, tmp_path / "run", "--resume", before[kind], *rates)
    assert code == 0, err
    assert f"starting from {before[kind]}: G_ema, G, D of a" in said
    state, source = final_state(tmp_path / "run")["trainer"], read_networks(before["checkpoint"])
    for part, network in source.parts().items():
        for name, wanted in network.named_parameters():
            if part == "G_ema":  # has moved towards G
                far = (source.G.get_parameter(name) - wanted).abs() + 1e-7
                assert ((state[part][name] - wanted).abs() <= far).all()
            else:
                assert torch.equal(state[part][name], wanted)
    assert state["nimg"] == 16


def test_of_the_average_alone(before, images, cli, tmp_path):
    code, said, err = train(cli, images, tmp_path / "run", "--resume", before["average"])
    assert code == 0, err
    assert "starting from" in said
    assert "D anew (the file has none)" in said


def test_first_layers_stay(before, images, cli, tmp_path):
    """Bit for bit, over a continuation too; the others learn, and Adam holds nothing of the first."""
    for more in ([], ["--kimg", "0.032"]):
        code, _, err = train(cli, images, tmp_path / "run", "--resume", before["own"], "--freeze-d", 3, *more)
        assert code == 0, err
    state, D = final_state(tmp_path / "run")["trainer"], read_networks(before["own"]).D
    frozen = {id(p) for layer in layers_from_the_image(D)[:3] for p in layer.parameters()}
    moved = [name for name, p in D.named_parameters() if not torch.equal(state["D"][name], p)]
    kept = [name for name, p in D.named_parameters() if id(p) in frozen]
    assert kept == [f"b16.{layer}.{name}" for layer in ("fromrgb", "conv0", "conv1") for name in ("weight", "bias")]
    assert sorted(moved + kept) == sorted(name for name, _ in D.named_parameters())
    assert len(state["D_opt"]["param_groups"][0]["params"]) == len(moved)
    assert state["nimg"] == 32


@pytest.mark.parametrize("architecture", ["resnet", "skip", "orig"])
def test_layers_in_their_order(architecture):
    D = Discriminator(img_resolution=16, channel_base=64, channel_max=8, architecture=architecture)
    layers = layers_from_the_image(D)
    assert sum(len(list(layer.parameters())) for layer in layers) == len(list(D.parameters()))
    names = {id(module): name for name, module in D.named_modules()}
    order = [names[id(layer)] for layer in layers]
    assert order[0] == "b16.fromrgb"
    assert order[-2:] == ["b4.fc", "b4.out"]
    assert order.index("b8.conv0") > order.index("b16.conv1")
    assert len(learning(D, 0)) == len(list(D.parameters()))


def test_killed_before_its_first_checkpoint(before, images, cli, tmp_path):
    """Both ways to go on begin with those networks again: the unbroken run's bits."""
    options = ["--data", images, *TINY_OTHERS, "--resume", before["own"]]
    assert cli("train", "--out", tmp_path / "whole", *options)[0] == 0
    for name, again in (
        ("same", ["--out", tmp_path / "same", *options]),
        ("folder", ["--resume", tmp_path / "folder"]),
    ):
        died = dying_process("step.Trainer.step", 2, ["train", "--out", tmp_path / name, *options])
        assert died.returncode == -9, died.stderr
        assert not list_checkpoints(tmp_path / name)
        assert cli("train", *again)[0] == 0
        assert differences(final_state(tmp_path / name), final_state(tmp_path / "whole")) == []


def test_continued_by_the_same_command(before, images, cli, tmp_path, refused):
    options = ["--data", images, "--out", tmp_path / "run", *TINY_OTHERS]
    assert cli("train", *options, "--resume", before["own"])[0] == 0
    code, said, _ = cli("train", *options, "--resume", before["own"], "--kimg", "0.024")
    assert code == 0
    assert "continuing from checkpoint" in said
    refused("train", *options, "--resume", before["rosinality"], words=("holds another run: its --resume is",))
    assert cli("train", *options, "--kimg", "0.032")[0] == 0


def test_a_file_that_has_changed(before, images, cli, tmp_path, refused):
    shutil.copy(before["own"], tmp_path / "n.safetensors")
    options = ["--data", images, "--out", tmp_path / "run", *TINY_OTHERS, "--resume", tmp_path / "n.safetensors"]
    assert dying_process("step.Trainer.step", 1, ["train", *options]).returncode == -9
    shutil.copy(before["average"], tmp_path / "n.safetensors")
    refused("train", "--resume", tmp_path / "run", words=("n.safetensors", "has changed since the run was begun"))
    (tmp_path / "n.safetensors").unlink()
    refused("train", "--resume", tmp_path / "run", words=("no longer there", "no checkpoint yet"))


WRONG = {
    "no such file": (["--resume", "nothing.pkl"], ("nothing.pkl: no such file",)),
    "larger images": (["--resume", "own", "--resolution", "8"], ("its img_resolution is 16, the images' 8",)),
    "other sizes": (["--resume", "own", "--channel-max", 4], ("is (16,)", "the options make it (4,)")),
    "other layers": (["--resume", "own", "--mapping-layers", 3], ("mapping.fc2", "missing")),
    "too many frozen": (["--resume", "own", "--freeze-d", 99], ("--freeze-d 99: the discriminator has 10 layers",)),
    "frozen and new": (["--freeze-d", 1], ("--freeze-d 1", "expected --resume FILE")),
    "of another model": (["--model", "progan", "--resume", "own"], ("--resume: not an option of --model progan",)),
    "a ProGAN": (["--resume", "progan"], ("of a ProGAN, expected StyleGAN2 networks",)),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused(case, before, images, tmp_path, refused):
    options, words = WRONG[case]
    save_network(tmp_path / "p.safetensors", ProGAN(8, img_resolution=16, channel_base=64, channel_max=8), nimg=0)
    files = {key: str(path) for key, path in before.items()} | {"progan": str(tmp_path / "p.safetensors")}
    given = [files.get(str(option), option) for option in options]
    if "progan" in options and "--model" in options:
        given[1] = "progan"
    refused("train", "--data", images, "--out", tmp_path / "run", *given, words=words)
    assert not (tmp_path / "run").exists()


def test_labels_that_it_does_not_have(before, labelled, tmp_path, refused):
    words = ("its c_dim is 0, the images' 3",)
    refused("train", "--data", labelled, "--cond", "--out", tmp_path / "r", "--resume", before["own"], words=words)
