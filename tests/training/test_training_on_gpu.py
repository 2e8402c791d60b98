"""Training steps on a GPU: every phase in every precision, and a state that moves between devices."""

import pytest
import torch

from gankern.training import Trainer
from gankern.training.config import resolve

pytestmark = pytest.mark.gpu

OPTIONS = {"preset": "stylegan2", "data": "", "batch": 8, "channel_base": 512, "mapping_layers": 2, "mbstd_group": 4}
OPTIONS |= {"r1_interval": 1, "pl_interval": 1}


def make(precision: str, device: str) -> Trainer:
    torch.manual_seed(0)
    config = resolve(OPTIONS | {"precision": precision}, resolution=32, c_dim=3, identity="")
    return Trainer(config, device, lambda n: torch.eye(3)[torch.randint(3, [n])])


def step(trainer: Trainer) -> dict:
    rng = torch.Generator().manual_seed(trainer.steps)
    real = torch.randint(256, (8, 3, 32, 32), generator=rng, dtype=torch.uint8)
    labels = torch.eye(3)[torch.randint(3, [8], generator=rng)]
    trainer.step(real.to(trainer.device), labels.to(trainer.device))
    return trainer.phases.pop_stats()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_steps_are_finite(precision):
    trainer = make(precision, "cuda")
    for _ in range(2):
        stats = step(trainer)
        assert all(torch.isfinite(torch.tensor(value)) for value in stats.values()), stats
    assert trainer.skipped == 0
    assert all(p.dtype == torch.float32 and p.device.type == "cuda" for p in trainer.G_ema.parameters())


def test_a_state_moves_to_another_device(tmp_path):
    trainer = make("fp32", "cuda")
    step(trainer)
    torch.save(trainer.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True)
    for device in ("cpu", "cuda"):
        other = make("fp32", device)
        other.load_state_dict(state)
        assert other.steps == 1
        step(other)
        assert other.skipped == 0
