"""The trainer on fused kernels (Triton's interpreted, csrc's emulated) trains as the one on the reference does."""

import importlib

import pytest
import torch

from gankern.ops import _impl, use_impl
from gankern.ops._triton import CONFIGS, force_config
from gankern.training import Trainer
from gankern.training.config import resolve
from gankern.training.progan import ProGANTrainer

STEPS = 20
SMALL = {"z_dim": 8, "channel_base": 64, "channel_max": 4, "precision": "fp64", "data": "", "mbstd_group": 2}
pytestmark = pytest.mark.skipif(not _impl.interpreting(), reason="the interpreter is off where there is a GPU")


@pytest.fixture
def large_tiles():
    """Each program costs the interpreter: few that do much."""
    for module in ("modulated_conv2d.fir", "fir_act.kernels"):
        importlib.import_module(f"gankern.ops.{module}")
    forced = [force_config(k, c[0] | {"BYTES": 16384}) for k, c in CONFIGS.items() if "BYTES" in c[0]]
    for context in forced:
        context.__enter__()
    yield
    for context in reversed(forced):
        context.__exit__(None, None, None)


def stylegan2():
    options = SMALL | {"preset": "stylegan2", "w_dim": 8, "mapping_layers": 1, "batch": 2, "r1_interval": 9}
    config = resolve(options | {"pl_interval": 9, "pl_shrink": 1}, resolution=16, c_dim=0, identity="")
    return Trainer(config, "cpu", lambda n: torch.empty(n, 0))


def progan():
    """4 px, the fade to 8 px, 8 px."""
    options = SMALL | {"preset": "progan", "stable_kimg": 0.012, "fade_kimg": 0.012, "kimg": 0.1, "batch": 2}
    options |= {"fused_from": 8, "repeats": 1}
    config = resolve(options, resolution=8, c_dim=0, identity="")
    return ProGANTrainer(config, "cpu", lambda n: torch.empty(n, 0))


def trained(make, impl):
    """The statistics of every step, and the weights after the last."""
    torch.manual_seed(0)
    trainer, rng, rows = make(), torch.Generator().manual_seed(1), []
    with use_impl(impl):
        for _ in range(STEPS):
            n, _ = trainer.prepare()
            r = trainer.config.resolution
            trainer.step(torch.randint(256, (n, 3, r, r), generator=rng, dtype=torch.uint8), torch.empty(n, 0))
            rows.append(trainer.pop_stats())
    weights = {f"{net} {k}": t for net in ("G", "D", "G_ema") for k, t in getattr(trainer, net).state_dict().items()}
    return rows, weights


CASES = [
    pytest.param(progan, "triton", id="progan-triton"),
    pytest.param(stylegan2, "cuda", id="stylegan2-cuda"),
    pytest.param(stylegan2, "triton", id="stylegan2-triton", marks=pytest.mark.slow),  # a quarter of an hour
]


@pytest.mark.parametrize(("make", "impl"), CASES)
def test_equals_the_reference(make, impl, large_tiles, host_build):
    """Over 20 steps, losses and weights. (What csrc has no kernel for runs on Triton's.)"""
    (want_rows, want), (rows, got) = (trained(make, name) for name in ("reference", impl))
    names = set().union(*want_rows)
    assert {"loss/G", "loss/D"} < names
    assert {"path_length", "r1"} < names if make is stylegan2 else {"gradient_penalty"} < names
    for step, (row, other) in enumerate(zip(want_rows, rows, strict=True)):
        assert row == pytest.approx(other, rel=1e-6, abs=1e-9), step
    assert not want["G b8.conv0.weight" if make is progan else "G synthesis.b8.conv0.weight"].equal(
        make().G.state_dict()["b8.conv0.weight" if make is progan else "synthesis.b8.conv0.weight"]
    )
    for name, t in want.items():
        torch.testing.assert_close(got[name], t, rtol=1e-6, atol=1e-6 * t.abs().max().item(), msg=name)
