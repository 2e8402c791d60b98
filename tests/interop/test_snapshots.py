"""Snapshots in the layout of the StyleGAN2-ADA and StyleGAN3 repositories: the networks in them, and what is said."""

import pickle

import pytest
import snapshot_writer
import torch
from snapshot_writer import EasyDict, StandIn, write_snapshot

from gankern.errors import InputError
from gankern.interop.reading import open_generator, read_networks
from gankern.models.stylegan2 import ARCHITECTURES, Discriminator, Generator

SMALL = {"img_resolution": 16, "channel_base": 128, "channel_max": 16, "num_mapping_layers": 2}


def weights_of(arrays, part):
    return {name[2:]: value for name, value in arrays.items() if name.startswith(part)}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["stylegan2_32", "stylegan2_cond_16"])
def test_images_and_logits_of_the_source_weights(name, protocol, tmp_path, golden, golden_json):
    arrays, facts = golden(name), golden_json(name)
    G, D = weights_of(arrays, "G/"), weights_of(arrays, "D/")
    write_snapshot(tmp_path / "n.pkl", protocol, G=G, D=D, G_ema=G)
    found = read_networks(tmp_path / "n.pkl")
    z, c = torch.tensor(arrays["z"]), torch.tensor(arrays["c"])
    for part in (found.G, found.G_ema):
        images = part(z, c, noise_mode="const")
        torch.testing.assert_close(images, torch.tensor(arrays["img_const"]), rtol=1e-4, atol=1e-4)
    truncated = found.G_ema(z, c, facts["truncation_psi"], facts["truncation_cutoff"], noise_mode="const")
    torch.testing.assert_close(truncated, torch.tensor(arrays["img_psi_const"]), rtol=1e-4, atol=1e-4)
    logits = found.D(torch.tensor(arrays["x"]), c)
    torch.testing.assert_close(logits, torch.tensor(arrays["logits"]), rtol=1e-4, atol=1e-4)
    for weights, part in ((G, found.G), (D, found.D)):
        assert all(torch.equal(part.state_dict()[k], torch.tensor(v)) for k, v in weights.items())


@pytest.mark.parametrize("c_dim", [0, 3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_dimension_and_option(architecture, c_dim, tmp_path):
    shared = {"c_dim": c_dim, "architecture": architecture} | SMALL
    G, D = Generator(8, w_dim=12, **shared), Discriminator(**shared, mbstd_group_size=2)
    parts = {"G": G.state_dict(), "D": D.state_dict(), "G_ema": G.state_dict()}
    write_snapshot(tmp_path / "n.pkl", **parts, conv_clamp=256, group_size=2)
    found = read_networks(tmp_path / "n.pkl")
    assert found.G_ema.config == G.config | {"conv_clamp": 256, "channel_base": found.G_ema.config["channel_base"]}
    said = {"mbstd_group_size": 2, "conv_clamp": 256, "architecture": architecture, "c_dim": c_dim}
    assert said.items() <= found.D.config.items()
    text = found.describe()
    for word in ("G_ema: Generator", "D: Discriminator", "conv_clamp 256", f"architecture {architecture}", "faces.zip"):
        assert word in text
    assert "p = 0.250" in text


def test_a_file_s_own_words_are_made_printable(tmp_path):
    data = EasyDict(path="\ud800\x1b[2J" + "x" * 10_000)
    write_snapshot(tmp_path / "n.pkl", G_ema=Generator(8, w_dim=8, **SMALL).state_dict(), training_set_kwargs=data)
    text = read_networks(tmp_path / "n.pkl").describe()
    assert r"trained on path \ud800\x1b[2Jxxx" in text
    assert all(line.isprintable() and len(line) < 500 for line in text.splitlines())


def test_the_clamp_bounds_activations(tmp_path):
    """As it did where the snapshot comes from, in float32 too."""
    G = Generator(8, w_dim=8, **SMALL)
    with torch.no_grad():
        G.synthesis.b16.torgb.bias.fill_(3.0)
    write_snapshot(tmp_path / "n.pkl", G_ema=G.state_dict(), conv_clamp=0.5)
    clamped = read_networks(tmp_path / "n.pkl").G_ema
    z = torch.randn(2, 8)
    assert not torch.allclose(clamped(z, noise_mode="none"), G(z, noise_mode="none"))
    (b4,) = (part for part in [clamped.synthesis.b4])
    assert b4.conv1.clamp == b4.torgb.clamp == 0.5


def test_one_network_and_parts_of_a_snapshot(tmp_path):
    G = Generator(8, w_dim=8, **SMALL)
    write_snapshot(tmp_path / "ema.pkl", G_ema=G.state_dict())
    found = read_networks(tmp_path / "ema.pkl")
    assert found.G is None
    assert found.D is None
    with snapshot_writer.stand_in_modules():
        alone = pickle.dumps(snapshot_writer.module_tree(G.state_dict(), "Generator"))
    (tmp_path / "alone.pkl").write_bytes(alone)
    z = torch.randn(1, 8)
    opened = open_generator(tmp_path / "alone.pkl")
    assert torch.equal(opened(z, noise_mode="const"), G(z, noise_mode="const"))


def _styleGAN3():
    root = StandIn("Generator")
    root.add_module("synthesis", StandIn("SynthesisNetwork"))
    root.synthesis.add_module("input", StandIn("SynthesisInput"))
    return {"G_ema": root}


def _other():
    root = StandIn("TriPlaneGenerator")
    root.add_module("backbone", StandIn("Backbone"))
    return {"G_ema": root}


def _changed(path, **attributes):
    def make():
        content = snapshot_writer.snapshot(G_ema=Generator(8, w_dim=8, **SMALL).state_dict())
        module = content["G_ema"]
        for name in path.split("."):
            module = module._modules[name]
        for name, value in attributes.items():
            setattr(module, name, value)
        return content

    return make


UNSUPPORTED = {
    "StyleGAN3": (_styleGAN3, "a StyleGAN3 generator, which isn't supported yet"),
    "another network": (_other, "'TriPlaneGenerator' of backbone: not a StyleGAN2 network"),
    "another activation": (_changed("synthesis.b8.conv0", activation="relu"), "layers differ in activation"),
    "another multiplier": (_changed("mapping.fc0", bias_gain=1.0), "layers differ in bias_gain"),
    "a list": (lambda: [1, 2], "not a StyleGAN snapshot"),
    "an empty dict": (EasyDict, "not a StyleGAN snapshot"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported(case, tmp_path):
    make, message = UNSUPPORTED[case]
    with snapshot_writer.stand_in_modules():
        (tmp_path / "n.pkl").write_bytes(pickle.dumps(make()))
    with pytest.raises(InputError, match=message):
        read_networks(tmp_path / "n.pkl")
