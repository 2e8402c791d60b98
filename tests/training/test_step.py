"""One training step: accumulation of gradients, the order of the phases, style mixing, and what isn't finite."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from runs_util import differences

from gankern.training import NonFiniteError, Trainer
from gankern.training.config import resolve
from gankern.training.graphs import Replays
from gankern.training.recorder import Recorder
from gankern.training.update import Lane

SMALL = {"z_dim": 16, "w_dim": 16, "channel_base": 128, "mapping_layers": 2, "batch": 8, "data": "", "mbstd_group": 4}


class Recording(Trainer):
    """Notes (step, phase) of each update, and the warnings."""

    def __init__(self, config, sample_labels=None):
        self.seen, self.warnings = [], []
        no_labels = lambda n: torch.zeros(n, config.c_dim)  # noqa: E731
        super().__init__(config, "cpu", sample_labels or no_labels, self.warnings.append)

    def _update(self, update, real, labels, lanes):
        self.seen.append((self.steps, update.phase.name, lanes))
        super()._update(update, real, labels, lanes)


@pytest.fixture
def make_trainer():
    def make(c_dim=0, sample_labels=None, **options) -> Recording:
        torch.manual_seed(0)
        options = SMALL | {"preset": "stylegan2"} | options
        return Recording(resolve(options, resolution=16, c_dim=c_dim, identity=""), sample_labels)

    return make


def batch(trainer: Trainer, seed: int = 0):
    rng = torch.Generator().manual_seed(seed)
    n, c_dim = trainer.config.batch, trainer.config.c_dim
    real = torch.randint(256, (n, 3, 16, 16), generator=rng, dtype=torch.uint8)
    return real, torch.rand(n, c_dim, generator=rng)


def gradients(network) -> dict:
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("phase", ["D R1", "G"])
def test_accumulated_gradient_is_the_mean(make_trainer, phase, size):
    """Of a loss that draws nothing: the gradient of n micro-batches equals that of the whole batch."""
    trainer = make_trainer(mbstd_group=1)
    x = batch(trainer)[0] / 127.5 - 1
    ws = torch.randn(8, trainer.G.num_ws, 16)
    labels = torch.empty(8, 0)

    update = trainer.updates[phase]
    network, optimizer = update.phase.network, update.phase.optimizer
    whole_batch = ws if phase == "G" else x
    seen = []  # as the optimizer meets them: afterwards they are gone
    optimizer.step = lambda: seen.append({name: g.clone() for name, g in gradients(network).items()})

    def run(n: int) -> dict:
        if phase == "G":
            loss = lambda lane: trainer.G.synthesis(lane.real, "const").square().mean()  # noqa: E731
        else:
            loss = lambda lane: trainer.phases.d_r1(lane.real, lane.labels)  # noqa: E731
        update.phase = replace(update.phase, loss=loss, observed=None, keep=None)
        count = 8 // n
        lane = lambda i: (Lane(whole_batch[i::count], labels[i::count], labels[i::count]), lambda: None)  # noqa: E731
        update.run(count, lane, Replays(None, print))
        return seen.pop()

    whole, parts = run(8), run(size)
    assert whole.keys() == parts.keys()
    assert len(whole) > 5
    for name, g in whole.items():
        assert (g - parts[name]).abs().max() <= 2e-5 * max(g.abs().max(), 1e-6), name


def test_phases_run_at_their_steps(make_trainer):
    trainer = make_trainer(r1_interval=3, pl_interval=2, batch_gpu=4)
    for _ in range(4):
        trainer.step(*batch(trainer))
    expected = []
    for step in range(4):
        phases = ["G", *["G path length"] * (step % 2 == 0), "D", *["D R1"] * (step % 3 == 0)]
        expected += [(step, phase, 2) for phase in phases]
    assert trainer.seen == expected
    assert (trainer.nimg, trainer.steps) == (32, 4)


def test_no_regularisation(make_trainer):
    """Without them their phases don't run, and Adam keeps its settings."""
    trainer = make_trainer(gamma=0.0, pl_weight=0.0)
    trainer.step(*batch(trainer))
    assert [phase for _, phase, _ in trainer.seen] == ["G", "D"]
    for optimizer in (trainer.G_opt, trainer.D_opt):
        assert optimizer.param_groups[0]["lr"] == 0.002
        assert optimizer.param_groups[0]["betas"] == (0, 0.99)


def test_optimizers_are_corrected_for_laziness(make_trainer):
    trainer = make_trainer()
    g, d = (o.param_groups[0] for o in (trainer.G_opt, trainer.D_opt))
    assert (g["lr"], d["lr"]) == pytest.approx((0.0016, 0.0018824), abs=5e-8)
    assert (g["betas"][1], d["betas"][1]) == pytest.approx((0.99199, 0.990585), abs=5e-6)


def test_means_are_tracked(make_trainer):
    """w_avg moves by 0.005 of the mean of w, the path-length mean by 0.01 of the length."""
    trainer = make_trainer(batch_gpu=4)
    trainer.step(*batch(trainer))
    stats = trainer.phases.pop_stats()
    assert trainer.phases.pl_mean.item() == pytest.approx(0.01 * stats["path_length"], rel=1e-5)
    assert 0 < trainer.G.mapping.w_avg.norm() < 0.005 * 16**0.5 * 3
    assert trainer.G_ema.mapping.w_avg.equal(trainer.G.mapping.w_avg)


def test_the_average_follows_ema_beta(make_trainer):
    trainer = make_trainer(ema_kimg=0.008)
    before = trainer.G_ema.synthesis.b4.const.clone()
    trainer.step(*batch(trainer))
    expected = (before + trainer.G.synthesis.b4.const) / 2  # a half-life of one batch
    torch.testing.assert_close(trainer.G_ema.synthesis.b4.const.data, expected.data, rtol=0, atol=1e-6)


def test_style_mixing(make_trainer):
    """Layers from a cutoff in [1, num_ws) on come from a second latent; the first never does."""
    trainer = make_trainer(style_mixing=1.0)
    cutoffs = set()
    for _ in range(60):
        ws, _ = trainer.phases._latents(3)
        changes = (ws[:, 1:] != ws[:, :-1]).any(2)  # [N, num_ws - 1]
        assert (changes.sum(1) == 1).all()
        assert (changes == changes[0]).all()  # one cutoff for the batch
        cutoffs.add(int(changes[0].nonzero()) + 1)
    assert cutoffs == set(range(1, trainer.G.num_ws))


def test_no_style_mixing(make_trainer):
    trainer = make_trainer(style_mixing=0.0)
    ws, _ = trainer.phases._latents(3)
    assert (ws == ws[:, :1]).all()


# -- what isn't finite ------------------------------------------------------------------------------------------------


def with_moments(trainer: Recording) -> Recording:
    """After a step, about to take one of all phases again: Adam's state is there, and nothing is recorded."""
    trainer.step(*batch(trainer))
    assert trainer.skipped == trainer.steps - 1 == 0
    trainer.pop_stats()
    trainer.steps = 0
    trainer.seen.clear()
    return trainer


def test_poisoned_labels_skip_the_discriminator(make_trainer):
    trainer = with_moments(make_trainer(c_dim=3))
    real, labels = batch(trainer)
    before = copy.deepcopy(trainer.state_dict())
    trainer.step(real, labels.fill_(math.nan))
    after = trainer.state_dict()
    assert differences(before["D"], after["D"]) == []
    assert differences(before["D_opt"], after["D_opt"]) == []
    assert differences(before["G"], after["G"])
    assert trainer.skipped == 2
    assert [w.split(":")[0] for w in trainer.warnings] == ["step 0, phase D", "step 0, phase D R1"]
    for warning in trainer.warnings:
        assert "non-finite gradient of b16." in warning
        assert warning.endswith("update skipped")
    trainer.step(*batch(trainer))
    assert trainer.skipped == 2


def test_poisoned_latents_change_nothing(make_trainer):
    """Conditions that aren't finite reach every phase but R1: networks, averages and means stay as they were."""
    poison = []
    trainer = make_trainer(c_dim=3, gamma=0.0, sample_labels=lambda n: torch.full((n, 3), sum(poison)))
    with_moments(trainer)
    trainer.G_ema.load_state_dict(trainer.G.state_dict())  # else it moves towards them
    poison.append(math.inf)
    before = copy.deepcopy(trainer.state_dict())
    trainer.step(*batch(trainer))
    after = trainer.state_dict()
    same = ("G", "D", "G_ema", "G_opt", "D_opt", "pl_mean")
    assert [d for k in same for d in differences(before[k], after[k], k)] == []
    assert trainer.skipped == 3
    assert math.isnan(trainer.phases.pop_stats()["loss/G"])


def test_a_skipped_update_spoils_no_means(make_trainer):
    """They are those of the updates that were taken."""
    trainer = with_moments(make_trainer(c_dim=3))
    trainer.step(*batch(trainer))
    expected = trainer.pop_stats()
    other = with_moments(make_trainer(c_dim=3))
    other.step(*batch(other))
    other.load_state_dict(copy.deepcopy(other.state_dict()))  # the sums of a tick that is under way
    real, labels = batch(other)
    other.steps = 0
    other.step(real, labels.fill_(math.nan))  # D, with and without R1; the generator's updates are taken
    found = other.pop_stats()
    assert other.skipped == 2
    assert found.keys() == expected.keys()
    for name in ("loss/D", "logits/real", "r1"):
        assert found[name] == expected[name], name
    assert found["loss/G"] not in (expected["loss/G"], math.nan)
    assert not any(math.isnan(value) for value in found.values())


def test_means_of_names_that_several_record():
    """Of all their values, whoever recorded them; also of states that didn't count what was left out."""
    recorder, yes, no = Recorder(), torch.tensor(True), torch.tensor(False)
    recorder.add(("a", "b"), torch.tensor([1.0, 2.0]), yes)
    recorder.add(("b", "c"), torch.tensor([math.inf, math.nan]), no)
    other = Recorder()
    older = [(names, sums[:-1]) if names == ["a", "b"] else (names, sums) for names, sums in recorder.state_dict()]
    other.load_state_dict(older, torch.device("cpu"))
    for one in (recorder, other):
        one.add(("b", "a"), torch.tensor([6.0, 2.0]), yes)
        assert str(one.pop_stats()) == str({"a": 1.5, "b": 4.0, "c": math.nan})
        assert one.pop_stats() == {}


def test_poisoned_weights_are_named(make_trainer):
    trainer = make_trainer(pl_weight=0.0)  # which doesn't pass through the discriminator
    with torch.no_grad():
        trainer.D.b8.conv0.bias[0] = math.nan
    weights = copy.deepcopy(trainer.G.state_dict())
    trainer.step(*batch(trainer))
    assert differences(weights, trainer.G.state_dict()) == []
    assert trainer.skipped == len(trainer.seen) == 3
    assert trainer.warnings[0].startswith("step 0, phase G: non-finite gradient of synthesis.b4.const and ")


def test_one_phase_that_always_fails_stops_the_run(make_trainer):
    """Though the others succeed in between."""
    trainer = make_trainer(c_dim=3, max_skipped=3, r1_interval=100)
    real, labels = batch(trainer)
    poisoned = labels.clone().fill_(math.nan)
    trainer.step(real, labels)
    trainer.step(real, poisoned)
    trainer.step(real, poisoned)
    with pytest.raises(NonFiniteError, match=r"phase D: .* skipped 3 times in a row\. The run has diverged"):
        trainer.step(real, poisoned)


def test_a_good_update_resets_the_count(make_trainer):
    trainer = make_trainer(c_dim=3, max_skipped=2, r1_interval=100)
    real, labels = batch(trainer)
    trainer.step(real, labels)
    for _ in range(3):
        trainer.step(real, labels.clone().fill_(math.nan))
        trainer.step(real, labels)
    assert trainer.skipped == 3


def test_the_count_survives_a_checkpoint(make_trainer):
    trainer = make_trainer(c_dim=3, max_skipped=2, r1_interval=100)
    real, labels = batch(trainer)
    trainer.step(real, labels)
    trainer.step(real, labels.clone().fill_(math.nan))
    other = make_trainer(c_dim=3, max_skipped=2, r1_interval=100)
    other.load_state_dict(copy.deepcopy(trainer.state_dict()))
    with pytest.raises(NonFiniteError):
        other.step(real, labels.clone().fill_(math.nan))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("architecture", ["skip", "orig", "resnet"])
def test_every_network_trains(make_trainer, precision, architecture):
    """A step of every phase is finite and moves every parameter; weights and gradients stay float32."""
    trainer = make_trainer(g_architecture=architecture, d_architecture=architecture, precision=precision)
    before = copy.deepcopy((trainer.G.state_dict(), trainer.D.state_dict()))
    trainer.step(*batch(trainer))
    assert trainer.skipped == 0
    for network, old in zip((trainer.G, trainer.D), before, strict=True):
        for name, p in network.named_parameters():
            assert p.dtype == torch.float32
            assert not p.equal(old[name]), name
    assert all(math.isfinite(v) for v in trainer.phases.pop_stats().values())
