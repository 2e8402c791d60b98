"""The memory estimate, counted on meta tensors, against what autograd keeps in a real step."""

import pytest
import torch

from gankern.training import Trainer
from gankern.training.config import resolve
from gankern.training.memory import estimate

CASES = {
    "plain": {},
    "accumulated": {"batch_gpu": 4},
    "resnet and skip": {"g_architecture": "resnet", "d_architecture": "skip"},
    "no path length": {"pl_weight": 0.0},
    "no regularisation": {"pl_weight": 0.0, "gamma": 0.0},
    "bf16": {"precision": "bf16"},
}


class Kept:
    """A saved tensor; counts the bytes of its storage while it lives."""

    live: dict[int, list[int]]  # by address: users, bytes
    peak = 0

    def __init__(self, tensor):
        self.tensor, self.key = tensor, tensor.untyped_storage().data_ptr()
        entry = Kept.live.setdefault(self.key, [0, tensor.untyped_storage().nbytes()])
        entry[0] += 1
        Kept.peak = max(Kept.peak, sum(size for _, size in Kept.live.values()))

    def __del__(self):
        entry = Kept.live[self.key]
        entry[0] -= 1
        if entry[0] == 0:
            del Kept.live[self.key]


def measured(trainer: Trainer, real, labels) -> int:
    """The most bytes that the graphs of one step keep at a time, parameters aside."""
    Kept.live, Kept.peak = {}, 0
    parameters = [*trainer.G.parameters(), *trainer.D.parameters()]
    own = {p.untyped_storage().data_ptr() for p in parameters}
    pack = lambda t: t if t.untyped_storage().data_ptr() in own else Kept(t)  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor if isinstance(kept, Kept) else kept):
        trainer.step(real, labels)
    return Kept.peak


@pytest.mark.parametrize("case", CASES)
def test_activations(case):
    options = {"data": "", "z_dim": 16, "w_dim": 16, "channel_base": 512, "mapping_layers": 2, "batch": 8}
    config = resolve(options | CASES[case], resolution=32, c_dim=0, identity="")
    trainer = Trainer(config, "cpu", lambda n: torch.empty(n, 0))
    real = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    actual = measured(trainer, real, torch.empty(8, 0))
    assert estimate(config)["activations"] == pytest.approx(actual, rel=0.1)


def test_weights():
    """Both networks, the EMA, Adam's two moments, and the larger gradient."""
    options = {"data": "", "channel_base": 512, "batch": 8}
    config = resolve(options, resolution=32, c_dim=0, identity="")
    trainer = Trainer(config, "cpu", lambda n: torch.empty(n, 0))
    trainer.step(torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.empty(8, 0))
    held = [p.numel() for net in (trainer.G, trainer.D, trainer.G_ema) for p in net.parameters()]
    for optimizer in (trainer.G_opt, trainer.D_opt):
        held += [v.numel() for s in optimizer.state.values() for k, v in s.items() if k != "step"]
    held.append(max(sum(p.numel() for p in net.parameters()) for net in (trainer.G, trainer.D)))
    assert estimate(config)["weights"] == 4 * sum(held)
