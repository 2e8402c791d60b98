"""Latent projection: its schedule and regulariser against the paper's words, and that it finds a network's own w."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gankern.errors import NonFiniteError
from gankern.models.projection import autocorrelation, learning_rate, normalize_, project, w_statistics
from gankern.models.stylegan2 import Generator


@pytest.fixture(scope="module")
def network():
    """A generator whose images follow w: layers of full learning rate, some noise."""
    torch.manual_seed(3)
    G = Generator(8, 2, 8, 16, channel_base=256, channel_max=16, num_mapping_layers=2).eval().requires_grad_(False)
    for name, p in G.named_parameters():
        if name.endswith("noise_strength"):
            p.fill_(0.1)
    return G


LABEL = torch.tensor([[0.0, 1.0]])


def test_statistics(network):
    """Of the 10,000 w themselves, by numpy."""
    z = torch.from_numpy(np.random.RandomState(5).randn(10_000, 8)).float()
    w = network.mapping(z, LABEL.expand(len(z), -1))[:, 0].double().numpy()
    mean, std = w_statistics(network, LABEL, 5)
    np.testing.assert_allclose(mean.numpy(), w.mean(0), atol=1e-5)
    assert std == pytest.approx(math.sqrt(((w - w.mean(0)) ** 2).sum(1).mean()), rel=1e-4)


def test_learning_rate():
    """Of 1000 steps: up over 50, down over the last 250 with half of it gone at 875."""
    rates = {step: learning_rate(step / 1000) for step in (1, 25, 50, 500, 750, 875, 999)}
    assert rates == pytest.approx({1: 0.002, 25: 0.05, 50: 0.1, 500: 0.1, 750: 0.1, 875: 0.05, 999: 0.0}, abs=1e-5)


def test_autocorrelation():
    """Of one map of 32 px by numpy, down to 8; of small maps alone; a checkerboard has all of it."""
    n = np.random.RandomState(0).randn(32, 32)
    expected, m = 0.0, n
    while True:
        size = len(m)
        across = sum(m[y, x] * m[y, x - 1] for y in range(size) for x in range(size)) / size**2
        along = sum(m[y, x] * m[y - 1, x] for y in range(size) for x in range(size)) / size**2
        expected += across**2 + along**2
        if size == 8:
            break
        m = 2 * m.reshape(size // 2, 2, size // 2, 2).mean((1, 3))
    assert float(autocorrelation([torch.from_numpy(n)])) == pytest.approx(expected, rel=1e-9)
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 2)
    assert float(autocorrelation([board])) == 2
    assert float(autocorrelation([board, torch.from_numpy(n)])) == pytest.approx(2 + expected)


def test_normalised():
    n = 3 + 5 * torch.randn(16, 16)
    normalize_(n)
    assert float(n.mean()) == pytest.approx(0, abs=1e-5)
    assert float(n.square().mean()) == pytest.approx(1, rel=1e-5)


def own_image(network):
    w = network.mapping(torch.from_numpy(np.random.RandomState(1).randn(1, 8)).float(), LABEL)
    return network.synthesis(w, "const")


def pixels(target):
    return lambda images: (images - target).square().mean()


def test_finds_an_own_image(network):
    """The pixel loss of a picture that the network made falls by a factor of 100 at least, drawn with the network's own
    noise (measured: by 367); the network isn't touched."""
    before = {name: t.clone() for name, t in network.state_dict().items()}
    target = own_image(network)
    far, said = pixels(target), []
    with torch.no_grad():
        start = far(network.synthesis(w_statistics(network, LABEL, 0)[0].expand(1, network.num_ws, -1), "const")).item()
    found = project(network, far, 150, label=LABEL, report=lambda *args: said.append(args))
    assert found.ws.shape == (1, network.num_ws, 8)
    assert found.ws.equal(found.ws[:, :1].expand_as(found.ws))
    with torch.no_grad():
        end = far(network.synthesis(found.ws, "const")).item()
    assert end < start / 100, (start, end)
    assert found.steps == 150
    assert said[0][0] == 1
    assert said[-1][0] == 150
    assert len(said) == 76
    assert all(t.equal(before[name]) for name, t in network.state_dict().items())
    assert not any(t.requires_grad for t in (*network.parameters(), *network.buffers()))


def test_seed(network):
    a, b, c = (project(network, pixels(own_image(network)), 5, label=LABEL, seed=s).ws for s in (1, 1, 2))
    assert a.equal(b)
    assert not a.equal(c)


@pytest.fixture
def steps(monkeypatch):
    """[(ws, noise maps)] of each step of the projections that follow."""
    taken, original = [], torch.func.functional_call

    def watched(module, noises, args, kwargs):
        taken.append((args[0].detach().clone(), {name: n.detach().clone() for name, n in noises.items()}))
        return original(module, noises, args, kwargs)

    monkeypatch.setattr(torch.func, "functional_call", watched)
    return taken


def test_noise_is_optimised_and_dropped(network, steps):
    """Noise maps reach the images that are compared, start as the network's own, and stay normalised."""
    project(network, pixels(own_image(network)), 3, label=LABEL)
    (_, first), *_, (_, last) = steps
    own = {name: b for name, b in network.synthesis.named_buffers() if name.endswith("noise_const")}
    assert first.keys() == own.keys()
    assert len(own) == 5
    for name, noise in first.items():
        assert noise.equal(own[name])
        assert not noise.equal(last[name])
        assert float(last[name].square().mean()) == pytest.approx(1, rel=1e-4)


def test_noise_becomes_white(network, steps):
    """Where nothing else is asked of it."""
    project(network, lambda images: 0 * images.sum(), 40, label=LABEL)
    before, after = (float(autocorrelation(list(noises.values()))) for _, noises in (steps[0], steps[-1]))
    assert after < before / 20


def test_w_is_blurred_at_first(network, steps):
    """Where w stays, it is seen with the noise of the paper: 0.05 of its spread, times (1 - t/0.75)²."""
    project(network, lambda images: 0 * images.sum(), 20, label=LABEL, seed=9)
    mean, std = w_statistics(network, LABEL, 9)
    generator = torch.Generator().manual_seed(9)
    for step, (ws, _) in enumerate(steps):
        fades = max(0, 1 - (step + 0.5) / 20 / 0.75) ** 2
        expected = mean + 0.05 * std * fades * torch.randn(1, 8, generator=generator)
        torch.testing.assert_close(ws, expected[:, None].expand(-1, network.num_ws, -1), rtol=1e-5, atol=1e-6)
    assert steps[-1][0][0, 0].equal(mean)


def test_draws_nothing_on_the_host_while_it_steps(network):
    """Each copy of such numbers to a GPU would wait for the steps before."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(func)
            return func(*args, **(kwargs or {}))

    def distance(images):
        called.append("a step")
        return far(images)

    called, far = [], pixels(own_image(network))
    with Watch():
        project(network, distance, 2, label=LABEL)
    steps = called[called.index("a step") :]
    assert steps.count("a step") == 2
    assert torch.ops.aten.mm.default in steps
    assert torch.ops.aten.randn.generator not in steps


def test_interrupted(network):
    """Ctrl-C leaves the w of the steps that were taken."""
    far, calls = pixels(own_image(network)), []

    def distance(images):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return far(images)

    found = project(network, distance, 100, label=LABEL)
    assert found.steps == 7
    assert found.ws.isfinite().all()
    assert not found.ws[0, 0].allclose(w_statistics(network, LABEL, 0)[0])


def test_not_finite(network):
    with pytest.raises(NonFiniteError, match="--project: the distance became nan"):
        project(network, lambda images: images.sum() * math.nan, 10, label=LABEL)
