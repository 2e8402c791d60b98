"""--recompute: the same gradients from less memory, in every phase, also at second order and with the same noise."""

import pytest
import torch

from gankern.bench.traffic import count
from gankern.ops import _impl, use_impl
from gankern.training import Trainer
from gankern.training.config import resolve
from gankern.training.memory import estimate
from gankern.training.update import Lane

SMALL = {
    "preset": "stylegan2",
    "data": "",
    "z_dim": 8,
    "w_dim": 8,
    "channel_base": 128,
    "mapping_layers": 1,
    "batch": 4,
}


def trainer_of(recompute: int, **options) -> Trainer:
    torch.manual_seed(0)
    config = resolve(SMALL | {"recompute": recompute} | options, resolution=16, c_dim=0, identity="")
    trainer = Trainer(config, "cpu", lambda n: torch.empty(n, 0))
    with torch.no_grad():
        for name, p in trainer.G.named_parameters():
            if name.endswith("noise_strength"):
                p.fill_(0.3)
    return trainer


def gradients(trainer: Trainer, phase: str) -> dict:
    update = trainer.updates[phase].phase
    real = torch.randint(256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    update.network.requires_grad_(True)
    torch.manual_seed(2)
    update.loss(Lane(real, torch.empty(4, 0), torch.empty(4, 0))).backward()
    update.network.requires_grad_(False)
    found = {name: p.grad for name, p in update.network.named_parameters() if p.grad is not None}
    update.network.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("architectures", [("skip", "resnet"), ("resnet", "skip")], ids=str)
def test_gradients_are_the_same(architectures):
    options = dict(zip(("g_architecture", "d_architecture"), architectures, strict=True))
    plain, again = trainer_of(0, **options), trainer_of(8, **options)
    for phase in plain.updates:
        expected, found = gradients(plain, phase), gradients(again, phase)
        assert len(expected) > 10
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].equal(value), (phase, name)


@pytest.mark.skipif(not _impl.interpreting(), reason="the interpreter is off where there is a GPU")
def test_gradients_are_the_same_on_fused_kernels(host_build):
    options = {"channel_max": 4, "precision": "fp64"}
    plain, again = trainer_of(0, **options), trainer_of(16, **options)
    with use_impl("cuda"):
        expected, found = gradients(plain, "G"), gradients(again, "G")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].equal(value), name


def test_it_saves_memory_on_fused_kernels():
    """Of what lives at the peak, by the account on meta tensors."""
    peaks = []
    for r in (0, 32):
        config = resolve(SMALL | {"recompute": r, "channel_base": 4096}, resolution=256, c_dim=0, identity="")
        with torch.device("meta"):
            trainer = Trainer(config, "meta", lambda n: torch.empty(n, 0, device="meta"))
        with use_impl("triton"):
            trainer.G.requires_grad_(True)
            peaks.append(count(lambda: trainer.phases.g_main(4).backward()).peak_bytes)  # noqa: B023
    assert peaks[1] < 0.85 * peaks[0]  # gradients and weights are there either way


def test_it_saves_memory():
    """What the main phases' graphs keep, by the estimate, which autograd's own hooks count."""
    options = {"pl_weight": 0.0, "gamma": 0.0}
    kept = [estimate(trainer_of(r, **options).config)["activations"] for r in (0, 16, 8)]
    assert kept[2] < 0.8 * kept[1] < 0.6 * kept[0]


def test_blocks_are_computed_again():
    """Those from the resolution on, and no others; without a gradient nothing is."""
    trainer, seen = trainer_of(16), []
    for network in (trainer.D, trainer.G.synthesis):
        for name, block in network.named_children():
            if hasattr(block, "conv1"):
                block.conv1.register_forward_pre_hook(lambda *_, n=name: seen.append(n))
    gradients(trainer, "G")
    # G's 4, 8 and 16 px, D's 16 and 8 px; then D's 16 px and G's again
    assert sorted(seen) == ["b16"] * 4 + ["b4"] + ["b8"] * 2
    seen.clear()
    with torch.no_grad():
        trainer.G(torch.randn(1, 8))
    assert seen == ["b4", "b8", "b16"]


@pytest.mark.parametrize(("options", "word"), [({"recompute": 12}, "--recompute 12: expected a power of two")])
def test_wrong_options(options, word):
    with pytest.raises(ValueError, match=word):
        resolve(SMALL | options, resolution=16, c_dim=0, identity="")


def test_progan_has_no_blocks_to_recompute():
    with pytest.raises(ValueError, match="--recompute: not an option of --model progan"):
        resolve({"model": "progan", "data": "", "recompute": 16}, resolution=16, c_dim=0, identity="")
