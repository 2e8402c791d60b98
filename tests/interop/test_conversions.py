"""Networks from one kind of file to another and back, bit for bit; rosinality's names against a second definition."""

import argparse
import itertools
import pickle
import resource

import pytest
import rosinality_forward
import torch
from snapshot_writer import write_snapshot

from gankern.cli import main
from gankern.errors import InputError
from gankern.interop import generator_from_state_dict, rosinality
from gankern.interop.networks import Networks
from gankern.interop.reading import open_generator, read_networks
from gankern.interop.writing import write_networks
from gankern.models.files import load_network, save_network
from gankern.models.progan import Generator as ProGAN
from gankern.models.stylegan2 import Discriminator, Generator
from gankern.training.checkpoint import load_checkpoint, save_checkpoint

SMALL = {"img_resolution": 16, "channel_base": 128, "channel_max": 16, "num_mapping_layers": 2}


def trained(c_dim=0, **shared):
    """Two generators and a discriminator, none of whose numbers are those of a fresh network."""
    networks = [Generator(8, c_dim, 12, **SMALL, **shared) for _ in range(2)] + [Discriminator(c_dim, **SMALL)]
    for p in itertools.chain(*(network.parameters() for network in networks)):
        p.data.add_(torch.randn_like(p))
    for G in networks[:2]:
        G.mapping.w_avg.copy_(torch.arange(12.0).sqrt())  # a training step gives both the same, rosinality's files one
    return networks


def source(path, G, G_ema, D):
    """The same networks as each kind of file that is read."""
    parts = {"G": G.state_dict(), "D": D.state_dict(), "G_ema": G_ema.state_dict()}
    write_snapshot(path / "ada.pkl", **parts)
    torch.save(parts, path / "parts.pth")
    save_network(path / "own.safetensors", G_ema, nimg=1000, training={"G": G, "D": D})
    (path / "run").mkdir(exist_ok=True)
    state = {"trainer": parts | {"nimg": 5000, "other": 1}, "config": {"mbstd_group": 2}}
    return save_checkpoint(path / "run", state, 5000, keep=1)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", ["ada.pkl", "parts.pth", "own.safetensors", "checkpoint"])
def test_round_trips(kind, tmp_path):
    """From each kind of file to each, and on from there to each other."""
    G, G_ema, D = trained()
    checkpoint = source(tmp_path, G, G_ema, D)
    found = read_networks(checkpoint if kind == "checkpoint" else tmp_path / kind)
    assert found.nimg == {"own.safetensors": 1000, "checkpoint": 5000}.get(kind, 0)
    for first, second in itertools.permutations(("a.safetensors", "a.pt"), 2):
        for name in (first, second):
            write_networks(found, tmp_path / name, training=name.endswith("safetensors"))
            found = read_networks(tmp_path / name)
            assert same(found.G, G)
            assert same(found.G_ema, G_ema)
            assert same(found.D, D)
    for part, network in (("G", G), ("D", D), ("G_ema", G_ema)):
        write_networks(found, tmp_path / "one.pth", part=part)
        plain = torch.load(tmp_path / "one.pth", weights_only=True)
        assert plain.keys() == network.state_dict().keys()
        again = read_networks(tmp_path / "one.pth")
        assert same(again.D if part == "D" else again.G_ema, network)


def test_a_checkpoint_s_own_options(tmp_path):
    """Minibatch stddev's groups, which its weights don't tell."""
    found = read_networks(source(tmp_path, *trained()))
    assert found.options_told
    assert found.D.config["mbstd_group_size"] == 2


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("D", None, "D is no state dict"),
        ("G", {"a": torch.zeros(1)}, "state.pt|checkpoint-.*: state dict"),
        ("G_ema", [1], "no checkpoint of a StyleGAN2 run"),
        ("nimg", None, "a damaged checkpoint"),
        ("nimg", "5", "a damaged checkpoint"),
    ],
)
def test_damaged_checkpoints(name, value, message, tmp_path):
    path = source(tmp_path, *trained())
    state = load_checkpoint(path)
    state["trainer"][name] = value
    save_checkpoint(path.parent, state, 5000, keep=1)
    with pytest.raises(InputError, match=message):
        read_networks(path)


def test_conditional_networks_and_options(tmp_path):
    """What rosinality's names can't hold is refused; everything else keeps it."""
    G, G_ema, D = trained(c_dim=3, conv_clamp=256.0)
    source(tmp_path, G, G_ema, D)
    for name in ("ada.pkl", "own.safetensors"):
        found = read_networks(tmp_path / name)
        assert same(found.G, G)
        assert same(found.D, D)
        with pytest.raises(InputError, match="c_dim 3: rosinality's names are for c_dim 0 alone"):
            write_networks(found, tmp_path / "a.pt")
    assert read_networks(tmp_path / "own.safetensors").G_ema.config == G_ema.config
    assert not (tmp_path / "a.pt").exists()


def test_generate_is_given_the_average_alone(tmp_path):
    """A file with G and D beside it is a network file as ever."""
    G, G_ema, D = trained()
    save_network(tmp_path / "n.safetensors", G_ema, nimg=0, training={"G": G, "D": D})
    assert same(load_network(tmp_path / "n.safetensors")[0], G_ema)
    assert same(open_generator(tmp_path / "n.safetensors"), G_ema)


# -- rosinality -------------------------------------------------------------------------------------------------------


def test_rosinality_computes_the_golden_images(tmp_path, golden):
    """Our renaming, run by a second definition of what those names mean."""
    arrays = golden("stylegan2_32")
    parts = {p: {k[2:]: torch.tensor(v) for k, v in arrays.items() if k.startswith(f"{p}/")} for p in "GD"}
    torch.save({"G": parts["G"], "D": parts["D"], "G_ema": parts["G"]}, tmp_path / "in.pth")
    assert main(["convert", str(tmp_path / "in.pth"), str(tmp_path / "out.pt")]) == 0
    theirs = torch.load(tmp_path / "out.pt", weights_only=True)
    assert theirs.keys() == {"g", "d", "g_ema", "latent_avg"}
    images = rosinality_forward.generate(theirs["g_ema"], torch.tensor(arrays["z"]))
    torch.testing.assert_close(images, torch.tensor(arrays["img_const"]), rtol=1e-3, atol=1e-4)
    logits = rosinality_forward.discriminate(theirs["d"], torch.tensor(arrays["x"]))
    torch.testing.assert_close(logits, torch.tensor(arrays["logits"]), rtol=1e-3, atol=1e-4)


def test_rosinality_shapes(tmp_path):
    """As its checkpoints have them; a published network's sizes need no note."""
    G = Generator(z_dim=512, w_dim=512, img_resolution=64, channel_base=32768, num_mapping_layers=8)
    save_network(tmp_path / "n.safetensors", G, nimg=0)
    assert write_networks(read_networks(tmp_path / "n.safetensors"), tmp_path / "n.pt") == []
    sd = torch.load(tmp_path / "n.pt", weights_only=True)["g_ema"]
    shapes = {
        "style.8.weight": (512, 512),
        "input.input": (1, 512, 4, 4),
        "conv1.conv.weight": (1, 512, 512, 3, 3),
        "conv1.conv.modulation.bias": (512,),
        "conv1.noise.weight": (1,),
        "convs.6.conv.blur.kernel": (4, 4),
        "convs.7.conv.weight": (1, 512, 512, 3, 3),
        "to_rgbs.3.bias": (1, 3, 1, 1),
        "to_rgbs.3.conv.weight": (1, 3, 512, 1, 1),
        "to_rgbs.0.upsample.kernel": (4, 4),
        "noises.noise_8": (1, 1, 64, 64),
    }
    assert {name: tuple(sd[name].shape) for name in shapes} == shapes
    assert sd["convs.0.conv.blur.kernel"].sum() == 4


def test_rosinality_without_what_old_files_lack(tmp_path):
    """No noise maps, filters or mean latent; a Namespace of options beside the weights; torch's older format."""
    G, G_ema, D = trained()
    save_network(tmp_path / "n.safetensors", G_ema, nimg=0, training={"G": G, "D": D})
    write_networks(read_networks(tmp_path / "n.safetensors"), tmp_path / "n.pt")
    content = torch.load(tmp_path / "n.pt", weights_only=True)
    del content["latent_avg"]
    for part in ("g", "g_ema"):
        content[part] = {k: v for k, v in content[part].items() if not k.startswith("noises.") and "kernel" not in k}
    content |= {"args": argparse.Namespace(size=16, lr=0.002), "g_optim": {"state": {}, "param_groups": []}}
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    found = read_networks(tmp_path / "old.pt")
    assert "no mean latent" in found.describe()
    assert "no noise maps" in found.describe()
    assert read_networks(tmp_path / "n.pt").notes == []
    z = torch.randn(2, 8)
    assert torch.equal(found.G_ema(z, noise_mode="none"), G_ema(z, noise_mode="none"))
    mean = G_ema.mapping(torch.randn(100_000, 8), None)[:, 0].mean(0)
    assert (found.G_ema.mapping.w_avg - mean).norm() < 0.05 * mean.norm()
    torch.save(content["g_ema"], tmp_path / "bare.pt")
    assert torch.equal(read_networks(tmp_path / "bare.pt").G_ema(z, noise_mode="none"), G_ema(z, noise_mode="none"))


def test_rosinality_that_does_not_fit(tmp_path):
    _, G_ema, _ = trained()
    save_network(tmp_path / "n.safetensors", G_ema, nimg=0)
    write_networks(read_networks(tmp_path / "n.safetensors"), tmp_path / "n.pt")
    sd = torch.load(tmp_path / "n.pt", weights_only=True)["g_ema"]
    for change, message in (
        (lambda sd: sd.pop("conv1.activate.bias"), "lacks conv1.activate.bias"),
        (lambda sd: sd.update(extra=torch.zeros(2)), "the unknown extra"),
        (lambda sd: sd.update({"style.1.weight": torch.zeros(3)}), "style.1.weight"),
        (lambda sd: sd.update({"to_rgb1.bias": torch.zeros(7)}), "torgb.bias has shape"),
    ):
        changed = dict(sd)
        change(changed)
        torch.save({"g_ema": changed}, tmp_path / "n.pt")
        with pytest.raises(InputError, match=message):
            read_networks(tmp_path / "n.pt")


# -- the command ------------------------------------------------------------------------------------------------------


def run(capsys, *args):
    code = main(["convert", *map(str, args)])
    out = capsys.readouterr()
    return code, out.out + out.err


def test_the_command_says_what_a_file_holds(tmp_path, capsys):
    G, G_ema, D = trained()
    source(tmp_path, G, G_ema, D)
    code, said = run(capsys, tmp_path / "ada.pkl")
    assert code == 0
    assert "D: Discriminator" in said
    assert "img_resolution 16" in said
    code, said = run(capsys, tmp_path / "ada.pkl", tmp_path / "new" / "n.safetensors")
    assert code == 0
    assert "G and D left out; --training writes G and D too" in said
    assert same(load_network(tmp_path / "new" / "n.safetensors")[0], G_ema)


WRONG = {
    "another suffix": (["n.zip"], "expected a name that ends in .safetensors"),
    "a part that isn't there": (["n.pth", "--part", "D"], "--part D: not in the file, which holds G_ema"),
    "no training networks": (["n.safetensors", "--training"], "holds no G and no D"),
    "a part of rosinality's": (["n.pt", "--part", "G_ema"], "--part: not an option of a .pt file"),
    "truncation of weights": (["n.pth", "--trunc", "0.5"], "--trunc: not an option of a .pth file"),
    "G and D in a state dict": (["n.pth", "--training"], "--training: not an option of a .pth file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options(case, tmp_path, capsys):
    options, message = WRONG[case]
    save_network(tmp_path / "in.safetensors", Generator(8, w_dim=8, **SMALL), nimg=0)
    code, said = run(capsys, tmp_path / "in.safetensors", tmp_path / "new" / options[0], *options[1:])
    assert (code, message in said) == (2, True), said
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["n.pth", "n.pt", "n.safetensors", "n.pt2"])
def test_a_folder_of_that_name_stays(name, tmp_path, capsys):
    save_network(tmp_path / "in.safetensors", Generator(8, w_dim=8, **SMALL), nimg=0)
    (tmp_path / name).mkdir()
    (tmp_path / name / "precious").touch()
    code, said = run(capsys, tmp_path / "in.safetensors", tmp_path / name)
    assert (code, f"{name}: a folder, expected a file's name" in said) == (2, True), said
    with pytest.raises(InputError, match="a folder"):
        save_network(tmp_path / name, Generator(8, w_dim=8, **SMALL), nimg=0)
    assert (tmp_path / name / "precious").exists()


@pytest.mark.parametrize("name", ["n.pth", "n.pt", "n.safetensors"])
def test_no_room(name, tmp_path, capsys):
    save_network(tmp_path / "in.safetensors", Generator(8, w_dim=8, **SMALL), nimg=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        code, said = run(capsys, tmp_path / "in.safetensors", tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (code, f"{name}: could not be written (File too large)" in said) == (2, True), said
    assert [p.name for p in tmp_path.iterdir()] == ["in.safetensors"]


def test_what_is_lost_is_told(tmp_path):
    sizes = {"img_resolution": 64, "channel_base": 20480, "channel_max": 512, "conv_clamp": 256.0}
    with torch.device("meta"):
        G, D = Generator(8, w_dim=12, **sizes), Discriminator(**sizes, mbstd_group_size=8)
    for words in ("channel_base 20480", "z_dim 8 and w_dim 12", "clamped at 256"):
        assert words in rosinality.unbuildable(G)
    assert "in groups of 8" in rosinality.unbuildable(D)
    G, G_ema, D = trained(conv_clamp=256.0)
    networks = Networks(G, Discriminator(**SMALL, mbstd_group_size=2, conv_clamp=256.0), G_ema)
    assert write_networks(networks, tmp_path / "n.pth", part="D") == [
        "conv_clamp 256 left out: a state dict is weights alone",
        "mbstd_group_size 2 left out: a state dict is weights alone",
    ]
    notes = write_networks(networks, tmp_path / "n.safetensors", part="G", training=True)
    assert notes == ["G_ema left out"]


def test_a_progan(tmp_path, capsys):
    """Its own names: a state dict, but not rosinality's."""
    network = ProGAN(z_dim=8, img_resolution=8, channel_base=64, channel_max=8)
    save_network(tmp_path / "p.safetensors", network, nimg=0)
    assert run(capsys, tmp_path / "p.safetensors", tmp_path / "p.pth")[0] == 0
    assert torch.load(tmp_path / "p.pth", weights_only=True).keys() == network.state_dict().keys()
    code, said = run(capsys, tmp_path / "p.safetensors", tmp_path / "p.pt")
    assert code == 2
    assert "StyleGAN2 alone" in said


def test_a_plain_safetensors_file(tmp_path):
    import safetensors.torch

    _, G_ema, _ = trained()
    safetensors.torch.save_file(G_ema.state_dict(), tmp_path / "n.safetensors")
    assert same(open_generator(tmp_path / "n.safetensors"), G_ema)
    assert same(generator_from_state_dict(G_ema.state_dict()), G_ema)
    (tmp_path / "n.safetensors").write_bytes(pickle.dumps([1], 0))
    with pytest.raises(InputError):
        open_generator(tmp_path / "n.safetensors")
