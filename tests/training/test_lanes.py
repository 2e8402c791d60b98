"""Lanes: what a micro-batch holds and draws depends on its number in the whole job alone."""

import contextlib
import copy

import pytest
import torch

from gankern.training import ProGANTrainer, Trainer
from gankern.training.config import resolve
from gankern.training.distributed import World
from gankern.training.seeds import lane_seed, splitmix64

COMMON = {"data": "", "z_dim": 8, "channel_base": 64, "precision": "fp64", "mbstd_group": 2, "batch_gpu": 2}
STYLEGAN2 = {"preset": "stylegan2", "w_dim": 8, "mapping_layers": 1, "batch": 8}
PROGAN = {"model": "progan", "channel_max": 8, "batch_schedule": "4-:8", "grow": False, "kimg": 1.0}
KINDS = {"stylegan2": (Trainer, STYLEGAN2), "progan": (ProGANTrainer, PROGAN)}


class Unheard(World):
    """A rank that takes its own gradients for the mean, so that the test may form it."""

    def reducing(self, network, key=None):
        return contextlib.nullcontext()

    def mean_(self, *tensors): ...


def gradients(model: str, real: torch.Tensor, labels: torch.Tensor, world: World, **options) -> list[dict]:
    """Of each update of a first step, which changes nothing."""
    torch.manual_seed(0)
    kind, given = KINDS[model]
    config = resolve(COMMON | given | options, resolution=8, c_dim=3, identity="")
    trainer = kind(config, "cpu", lambda n: torch.eye(3)[torch.randint(3, [n])], world=world)
    seen = []
    for network, optimizer in ((trainer.G, trainer.G_opt), (trainer.D, trainer.D_opt)):
        grads = lambda n=network: {k: p.grad.clone() for k, p in n.named_parameters() if p.grad is not None}  # noqa: E731
        optimizer.step = lambda g=grads: seen.append(g())
    trainer.step(real[world.rank :: world.size], labels[world.rank :: world.size])
    seen.append(
        {
            name: torch.tensor(value, dtype=torch.float64)
            for name, value in trainer.pop_stats().items()
            if name != "pl_mean"
        }
    )
    return seen


@pytest.mark.parametrize("model", KINDS)
def test_ranks_do_not_matter(model):
    """The mean over two or four ranks, of gradients and of statistics, is what one rank has with as many lanes."""
    rng = torch.Generator().manual_seed(1)
    real = torch.randint(256, (8, 3, 8, 8), generator=rng, dtype=torch.uint8)
    labels = torch.eye(3)[torch.randint(3, [8], generator=rng)].double()
    alone = gradients(model, real, labels, World())
    for size in (2, 4):
        ranks = [gradients(model, real, labels, Unheard(rank, size)) for rank in range(size)]
        for update, *others in zip(alone, *ranks, strict=True):
            assert len(update) > 3
            for name, value in update.items():
                mean = sum(other[name] for other in others) / size
                torch.testing.assert_close(mean, value, rtol=1e-10, atol=1e-12, msg=name)
    again = gradients(model, real, labels, World())
    assert all(a[k].equal(b[k]) for a, b in zip(alone, again, strict=True) for k in a)
    other = gradients(model, real, labels, World(), seed=1)
    assert any(not alone[0][k].allclose(other[0][k]) for k in alone[0])


def test_a_lane_is_strided(monkeypatch):
    """Lane l of k has the images l, l + k, ..., as the data of ranks has."""
    kind, given = KINDS["stylegan2"]
    config = resolve(COMMON | given, resolution=8, c_dim=0, identity="")
    trainer, seen = kind(config, "cpu", lambda n: torch.empty(n, 0)), []
    reals = trainer.phases.reals
    monkeypatch.setattr(trainer.phases, "reals", lambda x: seen.append(x[:, 0, 0, 0].tolist()) or reals(x))
    real = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    trainer.step(copy.deepcopy(real), torch.empty(8, 0))
    assert seen == [[0, 4], [1, 5], [2, 6], [3, 7]] * 2  # D, D R1


def test_seeds_differ_in_every_place():
    found = {
        lane_seed(seed, step, phase, lane)
        for seed in (0, 1, 2**63 - 1)
        for step in range(20)
        for phase in ("G", "D", "D R1")
        for lane in range(20)
    }
    assert len(found) == 3 * 20 * 3 * 20
    assert len({seed & 0xFFFFFFFF for seed in found}) > 3595  # a CPU's generator takes up 32 bits
    assert all(0 <= seed < 2**64 for seed in found)
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # the published sequence's first number from state 0
