"""One training step of ProGAN: reals, losses at a stage, growth, accumulation, and what isn't finite."""

import copy
import math

import pytest
import torch
from runs_util import differences

from gankern.models.progan import downscale, upscale
from gankern.training import NonFiniteError, ProGANTrainer
from gankern.training.config import resolve

SMALL = {"model": "progan", "data": "", "z_dim": 8, "channel_base": 32, "channel_max": 8, "repeats": 1}
SMALL |= {"batch_schedule": "4:8,8-:4", "stable_kimg": 0.016, "fade_kimg": 0.016, "kimg": 1.0}
# steps of 8 at 4 px until 24 images, then of 4; 8 px fade in from 16, 16 px from 48, all is there at 64


@pytest.fixture
def make():
    def trainer(c_dim=0, **options) -> ProGANTrainer:
        torch.manual_seed(0)
        warnings = []
        no_labels = lambda n: torch.eye(c_dim)[torch.randint(c_dim, [n])] if c_dim else torch.zeros(n, 0)  # noqa: E731
        config = resolve(SMALL | options, resolution=16, c_dim=c_dim, identity="")
        made = ProGANTrainer(config, "cpu", no_labels, warnings.append)
        made.warnings = warnings
        return made

    return trainer


def step(trainer: ProGANTrainer, seed: int = 0) -> None:
    n, _ = trainer.prepare()
    rng = torch.Generator().manual_seed(seed)
    real = torch.randint(256, (n, 3, 16, 16), generator=rng, dtype=torch.uint8)
    classes = torch.randint(trainer.config.c_dim, [n], generator=rng) if trainer.config.c_dim else None
    trainer.step(real, torch.zeros(n, 0) if classes is None else torch.eye(trainer.config.c_dim)[classes])


def run_to(trainer: ProGANTrainer, nimg: int) -> ProGANTrainer:
    while trainer.nimg < nimg:
        step(trainer, trainer.steps)
    return trainer


def test_a_run_grows(make):
    """What each step trains, by its own account."""
    trainer, seen = make(), []
    while trainer.nimg < 80:
        n, r = trainer.prepare()
        seen.append((trainer.nimg, n, r, trainer.place.lod))
        step(trainer)
    sizes = [8] * 3 + [4] * 14
    assert [s[1] for s in seen] == sizes
    assert [(nimg, r, lod) for nimg, _, r, lod in seen[2:8]] == [
        *((16, 4, 2.0), (24, 8, 1.5), (28, 8, 1.25), (32, 8, 1.0), (36, 8, 1.0), (40, 8, 1.0)),
    ]
    assert [(r, lod) for _, _, r, lod in seen[-4:]] == [(16, 0.0)] * 4
    assert trainer.where() == "16x16 stable"


def test_the_schedule_is_looked_at_every_few_steps(make):
    """Between, neither batch nor lod change."""
    trainer, seen = make(repeats=4, fade_kimg=0.05), []
    while trainer.nimg < 120:
        seen.append((trainer.prepare()[0], trainer.place.lod))
        step(trainer)
    assert all(len(set(seen[i : i + 4])) == 1 for i in range(0, len(seen), 4))
    assert len(set(seen)) > 3


@pytest.mark.parametrize("nimg", [0, 28, 36, 52, 64])
def test_reals_are_what_the_generator_makes(make, nimg):
    """At the stage's resolution, and while it fades in, blended with their own lower version; from images at full size
    and from images already reduced."""
    trainer = run_to(make(), nimg)
    trainer.prepare()
    place = trainer.place
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    x = downscale(images / 127.5 - 1, 16 // place.resolution)
    expected = x + (upscale(downscale(x, 2), 2) - x) * place.fade if place.fade else x
    assert (place.fade > 0) == (nimg in (28, 52))
    torch.testing.assert_close(trainer.phases.reals(images), expected)
    flat = images[:, :, :1, :1].expand(-1, -1, 16, 16)
    small = flat[:, :, : place.resolution, : place.resolution]
    torch.testing.assert_close(trainer.phases.reals(small), trainer.phases.reals(flat))
    fakes, _ = trainer.phases._fakes(2)
    assert fakes.shape[1:] == expected.shape[1:]


@pytest.mark.parametrize("loss", ["wgan-gp", "logistic"])
@pytest.mark.parametrize("nimg", [0, 28])
def test_the_critics_loss_is_that_of_images_at_full_size(make, loss, nimg):
    """The penalty of gradients too: written out at full size, with the same random numbers."""
    trainer = run_to(make(loss=loss, precision="fp64"), nimg)
    trainer.prepare()
    phases, at, lod = trainer.phases, trainer.phases._at(), trainer.place.lod
    x = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    real = phases.reals(x)
    torch.manual_seed(5)
    value = phases.d_main(real, torch.empty(4, 0))

    torch.manual_seed(5)
    z = torch.randn(4, 8)
    full = upscale(real, 16 // real.shape[-1])
    with torch.no_grad():
        fake = trainer.G(z, None, **at)
    assert fake.shape == full.shape == (4, 3, 16, 16)
    of = full
    if loss == "wgan-gp":
        factor = torch.rand(4, 1, 1, 1, dtype=real.dtype)
        of = full + (fake - full) * factor
    of.requires_grad_()
    (gradient,) = torch.autograd.grad(trainer.D(of, lod).sum(), of)
    square = gradient.square().sum([1, 2, 3])
    a, b = trainer.D(full, lod), trainer.D(fake, lod)
    if loss == "wgan-gp":
        expected = (b - a).mean() + 0.001 * a.square().mean() + 10 * (square.sqrt() - 1).square().mean()
    else:
        softplus = torch.nn.functional.softplus
        expected = softplus(b).mean() + softplus(-a).mean() + 5 * square.mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)


def test_what_is_not_reached_stays(make):
    """Stages above the one that is trained have neither changed nor any state of Adam's."""
    trainer = make()
    before = copy.deepcopy((trainer.G.state_dict(), trainer.D.state_dict()))
    run_to(trainer, 32)
    for network, optimizer, old in zip((trainer.G, trainer.D), (trainer.G_opt, trainer.D_opt), before, strict=True):
        for name, p in network.named_parameters():
            assert p.equal(old[name]) == name.startswith("b16"), name
            assert (p in optimizer.state) != name.startswith("b16"), name


def test_adam_begins_anew_with_a_resolution(make):
    """All of it, where it is; and only then: not where fading ends."""
    trainer = run_to(make(), 24)  # the next step is the first of 8 px
    weight = trainer.G.b4.conv.weight
    state = trainer.G_opt.state[weight]
    held = {name: value.data_ptr() for name, value in state.items()}
    assert state["step"] == 3
    assert state["exp_avg_sq"].any()
    trainer.prepare()
    for optimizer in (trainer.G_opt, trainer.D_opt):
        assert not any(value.any() for entry in optimizer.state.values() for value in entry.values())
    run_to(trainer, 48)
    assert {name: value.data_ptr() for name, value in state.items()} == held
    assert state["step"] == 6
    assert trainer.G_opt.state[trainer.G.b8.conv0.weight]["step"] == 6


def test_growing_allocates_no_parameters(make):
    trainer = make()
    held = [p.data_ptr() for net in (trainer.G, trainer.D, trainer.G_ema) for p in net.parameters()]
    lod = trainer.phases.lod
    run_to(trainer, 72)
    assert held == [p.data_ptr() for net in (trainer.G, trainer.D, trainer.G_ema) for p in net.parameters()]
    assert trainer.phases.lod is lod


def test_learning_rates_follow_the_resolution(make):
    trainer = make(lr_schedule="8:0.5", g_lr=0.1, d_lr=0.2)
    rates = lambda: [opt.param_groups[0]["lr"] for opt in (trainer.G_opt, trainer.D_opt)]  # noqa: E731
    assert rates() == [0.1, 0.2]
    run_to(trainer, 28)
    assert rates() == [0.5, 0.5]
    run_to(trainer, 80)
    assert rates() == [0.1, 0.2]


def test_the_average(make):
    trainer = make(ema_beta=0.75)
    before = trainer.G_ema.b4.conv.weight.clone()
    step(trainer)
    torch.testing.assert_close(trainer.G_ema.b4.conv.weight, before + (trainer.G.b4.conv.weight - before) / 4)


def test_accumulated_gradient_is_the_mean(make):
    """Of micro-batches: with no minibatch stddev and the same random numbers, that of the whole batch."""
    seen = []
    for batch_gpu in (0, 2):
        trainer = make(batch_gpu=batch_gpu, mbstd_group=0, gp_weight=0.0)
        latents = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
        draws = iter([*latents.split(batch_gpu or 8)] * 2)
        trainer.phases._fakes = lambda n, t=trainer, d=draws: (t.G(next(d), lod=2.0, native=True), None)
        for optimizer, network in ((trainer.D_opt, trainer.D), (trainer.G_opt, trainer.G)):
            optimizer.step = lambda n=network: seen.append(
                {k: p.grad.clone() for k, p in n.named_parameters() if p.grad is not None}
            )
        step(trainer)
    assert [len(grads) for grads in seen] == [8, 6] * 2
    for a, b in zip(seen[:2], seen[2:], strict=True):
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6)


def test_labels(make):
    """The critic's scores of labels are trained by reals and fakes, the generator by the labels that it was given."""
    trainer = make(c_dim=3)
    step(trainer)
    assert trainer.skipped == 0
    stats = trainer.pop_stats()
    assert stats["loss/labels"] == pytest.approx(2 * math.log(3), rel=0.9)
    plain = make(c_dim=3, cond_weight=0.0)
    step(plain)
    assert not plain.D.b4.dense1.weight.equal(trainer.D.b4.dense1.weight)
    assert not plain.G.b4.dense.weight.equal(trainer.G.b4.dense.weight)


SWITCHES = {
    "all off": {"equalized": False, "pixel_norm": False, "mbstd_group": 0, "normalize_latents": False},
    "not grown": {"grow": False},
    "fused": {"fused_from": 8},
    "bf16": {"precision": "bf16"},
    "logistic": {"loss": "logistic"},
}


@pytest.mark.parametrize("case", SWITCHES)
def test_every_network_trains(make, case):
    """Through a fade to the full resolution, each parameter that is in use moves and stays finite."""
    trainer = make(**SWITCHES[case])
    before = copy.deepcopy((trainer.G.state_dict(), trainer.D.state_dict()))
    run_to(trainer, 72 if trainer.config.grow else 8)
    assert trainer.skipped == 0
    for network, old in zip((trainer.G, trainer.D), before, strict=True):
        for name, p in network.named_parameters():
            assert p.dtype == torch.float32
            unused = not trainer.config.grow and ("rgb" in name and not name.startswith("b16"))
            assert p.equal(old[name]) == unused, name
    assert all(math.isfinite(v) for v in trainer.pop_stats().values())


# -- what isn't finite; state -----------------------------------------------------------------------------------------


def test_poisoned_weights_skip_updates_and_stop_the_run(make):
    trainer = make(max_skipped=2)
    with torch.no_grad():
        trainer.D.b4.dense0.bias[0] = math.nan
    weights = copy.deepcopy(trainer.G.state_dict())
    step(trainer)
    assert differences(weights, trainer.G.state_dict()) == []
    assert [w.split(":")[0] for w in trainer.warnings] == ["step 0, phase D", "step 0, phase G"]
    assert (
        trainer.warnings[1] == "step 0, phase G: non-finite loss; update skipped"
    )  # its gradient happens to be finite
    assert trainer.nimg == 8
    with pytest.raises(NonFiniteError, match=r"phase D: .* skipped 2 times in a row"):
        step(trainer)


@pytest.mark.parametrize("nimg", [8, 24, 28, 52, 60])
def test_the_state_is_all(make, nimg):
    """From wherever it is taken, also between two looks at the schedule, the run goes on alike."""
    whole = run_to(make(repeats=2), nimg)
    state = copy.deepcopy(whole.state_dict())
    run_to(whole, 100)
    other = make(repeats=2)
    other.load_state_dict(state)
    assert other.last_batch in (4, 8)
    assert str(other.place) == other.where()
    run_to(other, 100)
    assert differences(whole.state_dict(), other.state_dict()) == []


def test_a_batch_of_another_size_is_refused(make):
    with pytest.raises(ValueError, match="real has 3 images, expected 8"):
        make().step(torch.zeros(3, 3, 16, 16, dtype=torch.uint8), torch.zeros(3, 0))
