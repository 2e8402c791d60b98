"""Pictures in batches: in order, none lost where the memory doesn't suffice, the same whatever the batch."""

import numpy as np
import pytest
import torch

from gankern.models import progan
from gankern.models.sampling import draw, image_bytes, seed_latents, to_uint8
from gankern.models.stylegan2 import Generator


@pytest.fixture
def network():
    torch.manual_seed(0)
    G = Generator(8, 0, 8, 8, channel_base=64, channel_max=8, num_mapping_layers=2).eval().requires_grad_(False)
    for name, p in G.named_parameters():
        if name.endswith("noise_strength"):
            p.fill_(0.5)
    return G


class Small:
    """Memory of so many pictures, a GPU's or the host's: synthesis of more is out of it."""

    def __init__(self, synthesis, room: int, host: bool = False):
        self.synthesis, self.room, self.host, self.tried = synthesis, room, host, []

    def __call__(self, ws, noise_mode):
        self.tried.append(len(ws))
        if len(ws) > self.room and self.host:
            torch.empty(10**15)
        if len(ws) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.synthesis(ws, noise_mode)


@pytest.mark.parametrize("host", [False, True])
def test_shrinks_without_losing_pictures(host, network, monkeypatch):
    ws = network.mapping(seed_latents(range(11), 8))
    alone = [to_uint8(network.synthesis(w[None], "const"))[0].numpy() for w in ws]
    small = Small(network.synthesis.forward, 2, host)
    monkeypatch.setattr(network.synthesis, "forward", small)
    found = list(draw(network, iter(ws), 8, shrink=True))
    assert small.tried == [8, 4, 2, 2, 2, 2, 2, 1]
    assert len(found) == 11
    for a, b in zip(found, alone, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1


@pytest.mark.parametrize(("room", "shrink", "tried"), [(2, False, [8]), (0, True, [8, 4, 2, 1])])
def test_out_of_memory_in_the_end(room, shrink, tried, network, monkeypatch):
    small = Small(network.synthesis.forward, room)
    monkeypatch.setattr(network.synthesis, "forward", small)
    with pytest.raises(torch.OutOfMemoryError):
        list(draw(network, network.mapping(seed_latents(range(8), 8)), 8, shrink=shrink))
    assert small.tried == tried


def test_other_errors_end_it(network, monkeypatch):
    def broken(ws, noise_mode):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(network.synthesis, "forward", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        next(draw(network, network.mapping(seed_latents(range(2), 8)), 2, shrink=True))


def test_reads_only_what_it_draws(network):
    """Latents are asked for a batch at a time."""
    taken = []

    def latents():
        for k, w in enumerate(network.mapping(seed_latents(range(9), 8))):
            taken.append(k)
            yield w

    pictures = draw(network, latents(), 4)
    next(pictures)
    assert taken == [0, 1, 2, 3]
    assert len(list(pictures)) == 8


def test_random_noise_belongs_to_its_seed(network):
    ws = network.mapping(seed_latents([1, 1, 2], 8))
    a, b, c = draw(network, ws, 3, noise_mode="random", noise_seeds=[7, 8, 7])
    (again,) = draw(network, ws[:1], 1, noise_mode="random", noise_seeds=[7])
    (other,) = draw(network, ws[2:], 5, noise_mode="random", noise_seeds=[7])
    assert np.array_equal(a, again)
    assert np.array_equal(c, other)
    assert not np.array_equal(a, b)


def test_progan():
    torch.manual_seed(0)
    G = progan.Generator(8, 2, 8, channel_base=64, channel_max=8).eval().requires_grad_(False)
    z, label = seed_latents(range(3), 8), torch.tensor([[0.0, 1.0]])
    expected = to_uint8(G(z, label.expand(3, -1), 0.0)).numpy()
    assert np.abs(np.stack(list(draw(G, z, 2, label=label))).astype(int) - expected).max() <= 1
    assert image_bytes(G) == 8 * 4 * 8 * 64


def test_estimate_grows_with_channels_and_pixels():
    sizes = [image_bytes(Generator(8, 0, 8, r, channel_base=b)) for r, b in ((64, 512), (128, 512), (64, 1024))]
    assert sizes == [8 * 4 * 16 * 64**2, 8 * 4 * 8 * 128**2, 8 * 4 * 32 * 64**2]
