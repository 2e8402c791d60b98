"""Seeds to latents, images to bytes, networks to files and back."""

import json
import os
import stat

import numpy as np
import pytest
import torch

from gankern.errors import InputError
from gankern.models.files import load_network, save_network
from gankern.models.sampling import class_labels, parse_seeds, sample_images, seed_latents, to_uint8
from gankern.models.stylegan2 import Generator


@pytest.mark.parametrize(
    ("text", "seeds"), [("0", [0]), ("0-3", [0, 1, 2, 3]), ("0-1,42, 7", [0, 1, 42, 7]), ("4294967295", [2**32 - 1])]
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


BAD = ["", ",", "1,", "a", "1.5", "-1", "3-1", "1-2-3", "4294967296", "0-4294967295", "0-9999999,3", "1" * 5000]


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:20])
def test_bad_seeds(text):
    with pytest.raises(InputError, match=f"--seeds {text[:60]}: expected numbers and ranges below"):
        parse_seeds(text)


def test_latents_are_the_public_tools():
    """Of seed 0: the first numbers that RandomState(0) is known for."""
    z = seed_latents([0, 42], 512)
    assert z.shape == (2, 512)
    assert z[0, :2].tolist() == pytest.approx([1.764052, 0.400157], abs=1e-6)
    np.testing.assert_array_equal(z[1:].numpy(), np.random.RandomState(42).randn(1, 512).astype(np.float32))


def test_bytes():
    x = torch.tensor([-2, -1, -127 / 127.5, 0, 1, 2.0])
    assert to_uint8(x).tolist() == [0, 0, 1, 128, 255, 255]


@pytest.fixture
def network():
    return Generator(8, 3, 8, 8, channel_base=64, channel_max=8, num_mapping_layers=2)


def test_network_file(network, tmp_path):
    save_network(tmp_path / "n.safetensors", network, nimg=5, extra={"note": "x"})
    loaded, header = load_network(tmp_path / "n.safetensors")
    assert (header["nimg"], header["note"], header["config"]) == (5, "x", network.config)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    for name, value in network.state_dict().items():
        assert value.equal(loaded.state_dict()[name]), name
    mode = stat.S_IMODE((tmp_path / "n.safetensors").stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    assert mode == 0o666 & ~umask
    json.dumps(header)
    half, _ = load_network(tmp_path / "n.safetensors", compute_dtype=torch.bfloat16)
    assert half.compute_dtype == torch.bfloat16


def test_samples_come_in_batches(network):
    z, c = seed_latents(range(5), 8), class_labels(network, 1, 5)
    batches = list(sample_images(network, z, c, 2))
    assert [tuple(b.shape) for b in batches] == [(2, 3, 8, 8), (2, 3, 8, 8), (1, 3, 8, 8)]
    assert batches[0].dtype == torch.uint8
    assert c.tolist() == [[0, 1, 0]] * 5
