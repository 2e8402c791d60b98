"""Network files of both architectures: what a header says, and what is refused."""

import json

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from gankern.errors import InputError
from gankern.models import progan, stylegan2
from gankern.models.files import load_network, load_training_networks, save_network
from gankern.models.sampling import sample_images, seed_latents


@pytest.fixture
def network():
    torch.manual_seed(0)
    return progan.Generator(z_dim=8, c_dim=2, img_resolution=16, channel_base=32, pixel_norm=False, fused_from=8)


def test_progan(network, tmp_path):
    network.lod = 1.25
    save_network(tmp_path / "n.safetensors", network, nimg=5)
    loaded, header = load_network(tmp_path / "n.safetensors")
    assert (header["architecture"], header["config"], header["lod"]) == ("progan", network.config, 1.25)
    assert isinstance(loaded, progan.Generator)
    assert loaded.lod == 1.25
    assert not loaded.training
    for name, value in network.state_dict().items():
        assert value.equal(loaded.state_dict()[name]), name


@pytest.mark.parametrize("lod", [0.0, 0.5, 1.0, 2.0])
def test_samples_at_their_lod(network, lod):
    network.lod = lod
    z, c = seed_latents(range(3), 8), torch.eye(2)[[0, 1, 0]]
    with torch.no_grad():
        expected = network(z, c, lod)
    batches = list(sample_images(network, z, c, 2))
    assert [tuple(b.shape) for b in batches] == [(2, 3, 16, 16), (1, 3, 16, 16)]
    near = (expected * 127.5 + 128).clamp(0, 255)
    assert (torch.cat(batches) - near).abs().max() <= 1.001
    native = torch.cat(list(sample_images(network, z, c, 2, native=True)))
    assert native.shape[-1] == {0.0: 16, 0.5: 16, 1.0: 8, 2.0: 4}[lod]


@pytest.mark.parametrize(
    ("lod", "named"),
    [(3, "lod=3.0, expected 0 to 2"), (-1, "lod=-1.0"), ("x", "header can't be read"), (None, "header")],
)
def test_a_lod_that_it_does_not_have(network, tmp_path, lod, named):
    save_network(tmp_path / "n.safetensors", network, nimg=5)
    with safe_open(tmp_path / "n.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["gankern"]) | {"lod": lod}
    tensors = safetensors.torch.load_file(tmp_path / "n.safetensors")
    safetensors.torch.save_file(tensors, tmp_path / "n.safetensors", metadata={"gankern": json.dumps(header)})
    with pytest.raises(InputError, match=named):
        load_network(tmp_path / "n.safetensors")


HEADERS = {
    "nested": ("[" * 100_000, "truncated or not a safetensors file"),
    "a list": ("[1]", "no gankern header"),
    "an infinite format": ({"format": float("inf")}, "header can't be read"),
    "an infinite count": ({"nimg": float("inf")}, "header can't be read"),
    "an architecture that is a list": ({"architecture": []}, r"architecture '\[\]', expected"),
    "10^9 layers": ({"config": {"num_mapping_layers": 10**9}}, "num_mapping_layers 1000000000, of"),
    "training, a list": ({"training": [1]}, "training is no dict of configs"),
    "training, of lists": ({"training": {"G": []}}, "training is no dict of configs"),
    "training, another": ({"training": {"G_ema": {}}}, "training holds more than G and D"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_no_gankern_writes(case, tmp_path):
    change, named = HEADERS[case]
    G = stylegan2.Generator(8, w_dim=8, img_resolution=8, channel_base=64, channel_max=8, num_mapping_layers=1)
    save_network(tmp_path / "n.safetensors", G, nimg=5)
    with safe_open(tmp_path / "n.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["gankern"])
    text = change if isinstance(change, str) else json.dumps(header | change)
    tensors = safetensors.torch.load_file(tmp_path / "n.safetensors")
    safetensors.torch.save_file(tensors, tmp_path / "n.safetensors", metadata={"gankern": text})
    load = load_training_networks if "training" in case else load_network
    with pytest.raises(InputError, match=named):
        load(tmp_path / "n.safetensors")


def test_unknown_architecture(network, tmp_path):
    save_network(tmp_path / "n.safetensors", network, nimg=5, extra={"architecture": "biggan"})
    with pytest.raises(InputError, match="architecture 'biggan', expected 'stylegan2' or 'progan'"):
        load_network(tmp_path / "n.safetensors")
