"""The memory estimate, counted on meta tensors, against what autograd keeps in a real step."""

import pytest
import torch

from gankern.training import ProGANTrainer, Trainer
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


@pytest.mark.parametrize("options", [{}, {"batch_gpu": 4}, {"loss": "logistic"}], ids=str)
@pytest.mark.parametrize("table", ["4:64,8:16,16:4", "4-:8"])
def test_progan(table, options):
    """The costliest of all stages, whichever that is."""
    options = options | {"data": "", "model": "progan", "channel_base": 64, "z_dim": 16, "batch_schedule": table}
    config = resolve(options | {"stable_kimg": 1.0, "fade_kimg": 1.0}, resolution=16, c_dim=0, identity="")
    trainer = ProGANTrainer(config, "cpu", lambda n: torch.empty(n, 0))
    costs = {}
    for nimg in (0, 1500, 3500):  # 4 px alone, then half into the fades of 8 px and of 16 px
        trainer.nimg, trainer.steps = nimg, 0
        n, r = trainer.prepare()
        costs[r] = measured(trainer, torch.randint(256, (n, 3, r, r), dtype=torch.uint8), torch.empty(n, 0))
    found = estimate(config)
    assert found["activations"] == pytest.approx(max(costs.values()), rel=0.1)
    assert costs[found["resolution"]] == max(costs.values())
    assert found["images"] == min(config.batch_gpu or 64, config.schedule().batches[found["resolution"]])
