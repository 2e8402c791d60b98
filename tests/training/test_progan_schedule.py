"""ProGAN's schedule and options: growth by images shown, published tables, presets, and what can't be."""

import math

import pytest

from gankern.errors import InputError
from gankern.training.config import read_toml, resolve, to_toml
from gankern.training.schedule import BATCHES, RATES, lod_at, look_up, parse_table, resolutions, table_text

PUBLISHED = {  # GPUs: batches from 4 to 1024 px, learning rates from 128 to 1024 px
    1: ([128, 128, 128, 64, 32, 16, 8, 4, 4], [0.001, 0.001, 0.001, 0.0015]),
    2: ([256, 256, 128, 64, 32, 16, 8, 8, 8], [0.001, 0.001, 0.0015, 0.002]),
    4: ([512, 256, 128, 64, 32, 16, 16, 16, 16], [0.001, 0.0015, 0.002, 0.003]),
    8: ([512, 256, 128, 64, 32, 32, 32, 32, 32], [0.0015, 0.002, 0.003, 0.003]),
}


def config(resolution=1024, num_gpus=1, **options):
    options = {"data": "d", "model": "progan", **options}
    return resolve(options, resolution=resolution, c_dim=0, identity="", num_gpus=num_gpus)


@pytest.mark.parametrize(
    ("kimg", "lod"),
    [(0, 8), (600, 8), (601, 8 - 1 / 600), (900, 7.5), (1200, 7), (1800, 7), (2100, 6.5), (9600, 0), (10**6, 0)],
)
def test_lod(kimg, lod):
    """First a resolution alone, then the next one fades in."""
    assert lod_at(kimg * 1000, 8, 600e3, 600e3) == pytest.approx(lod, abs=1e-9)
    assert config().schedule().at(kimg * 1000).lod == pytest.approx(lod, abs=1e-9)


def test_lod_without_fading_or_standing_still():
    assert [lod_at(n, 2, 10, 0) for n in (0, 9, 10, 20, 99)] == [2, 2, 1, 0, 0]
    assert [lod_at(n, 2, 0, 10) for n in (0, 5, 10, 15, 20)] == [2, 1.5, 1, 0.5, 0]


@pytest.mark.parametrize("gpus", PUBLISHED)
def test_published_tables(gpus):
    """A resolution that fades in has its own batch and learning rate from the beginning of its fade."""
    for made in (config(schedule_gpus=gpus), config(num_gpus=gpus)):
        schedule = made.schedule()
        batches, rates = PUBLISHED[gpus]
        for i, r in enumerate(resolutions(4, 1024)):
            place = schedule.place(8 - i)
            assert (place.resolution, place.stage, place.batch) == (r, i, batches[i])
            fading = schedule.place(8 - i + 0.999) if i else place
            assert (fading.resolution, fading.stage, fading.batch) == (r, i, batches[i])
            assert (place.lr or made.g_lr) == (rates[i - 5] if r >= 128 else 0.001)


def test_what_the_line_says():
    schedule = config(32).schedule()
    assert str(schedule.at(0)) == "4x4 stable"
    assert str(schedule.at(3258_000)) == "16x16 → 32x32 fade 43%"
    assert str(schedule.at(3600_000)) == "32x32 stable"


def test_defaults():
    c = config()
    assert (c.loss, c.gp_weight, c.gp_target, c.drift, c.cond_weight) == ("wgan-gp", 10, 1, 0.001, 1)
    assert (c.g_lr, c.d_lr, c.beta2, c.ema_beta, c.repeats) == (0.001, 0.001, 0.99, 0.999, 4)
    assert (c.stable_kimg, c.fade_kimg, c.kimg, c.start_resolution) == (600, 600, 12000, 4)
    assert (c.channel_base, c.channel_max, c.z_dim, c.mbstd_group) == (8192, 512, 512, 4)
    assert (c.batch_schedule, c.lr_schedule) == (BATCHES[1], RATES[1])


@pytest.mark.parametrize("resolution", [4, 32, 256])
def test_auto_length(resolution):
    """Two phases at the full resolution, as at 1024."""
    growths = math.log2(resolution) - 2
    assert config(resolution).kimg == 1200 * growths + 2400
    assert config(resolution, stable_kimg=1.0, fade_kimg=2.0).kimg == 3 * growths + 6
    assert config(resolution, grow=False).kimg == 2400


def test_presets():
    celeba = config(preset="progan-celebahq-1024")
    assert celeba == config(preset="progan-celebahq-1024", model=None)
    assert (celeba.kimg, celeba.channel_base, celeba.batch_schedule) == (12000, 8192, BATCHES[1])
    cifar = config(32, preset="progan-cifar10")
    assert (cifar.gp_target, cifar.kimg) == (750, 12000)
    c = config(128, preset="progan-ablation-128")
    assert (c.channel_base, c.stable_kimg, c.fade_kimg, c.kimg) == (2048, 800, 800, 10000)
    assert set(c.schedule().batches.values()) == {16}
    assert set(config(128, preset="progan-ablation-128", batch=64).schedule().batches.values()) == {64}


def test_unrevised():
    """What goes back to WGAN-GP's own settings, under explicit options."""
    c = config(128, preset="progan-ablation-128", revised=False, grow=False, g_lr=0.5)
    assert (c.g_lr, c.d_lr, c.beta2, c.drift, c.normalize_latents) == (0.5, 0.0001, 0.9, 0, False)
    assert c.schedule().at(0).resolution == 128


def test_config_file_round_trip(tmp_path):
    c = config(64, preset="progan-ablation-128", batch_schedule=" 64:16, 4-32:8", lr_schedule="")
    assert c.batch_schedule == "4-32:8,64:16"
    (tmp_path / "config.toml").write_text(to_toml(c))
    assert read_toml(tmp_path / "config.toml") == c


# -- tables -----------------------------------------------------------------------------------------------------------


def test_table():
    rows = parse_table("--x", "64-:2, 4-16:128,32:64", int)
    assert rows == [(4, 16, 128), (32, 32, 64), (64, math.inf, 2)]
    assert parse_table("--x", table_text(rows), int) == rows
    assert look_up(rows, [4, 8, 32, 4096]) == {4: 128, 8: 128, 32: 64, 4096: 2}


TABLES = {
    "no number": ("4:many", "expected entries such as"),
    "no entry": ("", "expected entries such as"),
    "no colon": ("4-8", "expected entries such as"),
    "two colons": ("4:8:16", "expected entries such as"),
    "fraction": ("4:1.5", "expected entries such as"),
    "trailing comma": ("4:8,", "expected entries such as"),
    "zero": ("4:0", "expected RESOLUTION:NUMBER with a number > 0"),
    "backward": ("16-4:8", "16-4:8 can't be"),
    "no power of two": ("4-12:8", "12 is no resolution"),
    "too small": ("2:8", "2 is no resolution"),
    "twice": ("4-16:8,16:4", "two entries for 16 px"),
}


@pytest.mark.parametrize("case", TABLES)
def test_bad_table(case):
    text, named = TABLES[case]
    with pytest.raises(InputError, match=f"--batch-schedule {text}: .*{named}"):
        config(batch_schedule=text)


BAD = {
    "hole": ({"batch_schedule": "4-16:8,64-:4"}, "--batch-schedule 4-16:8,64-:4: no entry for 32 px"),
    "starts late": ({"batch_schedule": "8-:4"}, "no entry for 4 px"),
    "ends early": ({"batch_schedule": "4-32:4"}, "no entry for 64 px"),
    "too short": ({"kimg": 4800.0}, "--kimg 4800: too short to reach 64 px, growing there takes 4800 kimg"),
    "bad rate": ({"lr_schedule": "64:nan"}, "--lr-schedule 64:nan"),
    "group": ({"batch": 6}, "at 4 px 6 images, not a multiple of --mbstd-group 4"),
    "batch and table": ({"batch": 8, "batch_schedule": "4-:4"}, "--batch 8: --batch-schedule is given as well"),
    "no batch": ({"batch": 0}, "--batch 0"),
    "micro-batch": ({"batch_gpu": 24}, "--batch-gpu 24: the batch of 128 at 4 px is not a multiple of it"),
    "start": ({"start_resolution": 128}, "--start-resolution 128: expected a power of two from 4 to 64"),
    "odd start": ({"start_resolution": 12}, "--start-resolution 12"),
    "no phase": ({"stable_kimg": 0.0, "fade_kimg": 0.0}, "--stable-kimg 0"),
    "negative": ({"fade_kimg": -1.0}, "--fade-kimg -1.0"),
    "gpus": ({"schedule_gpus": 3}, "--schedule-gpus 3: expected one of 1, 2, 4, 8"),
    "repeats": ({"repeats": 0}, "--repeats 0"),
    "loss": ({"loss": "hinge"}, "--loss hinge: expected one of wgan-gp, logistic"),
    "target": ({"gp_target": 0.0}, "--gp-target 0.0"),
    "beta": ({"ema_beta": 1.0}, "--ema-beta 1.0"),
    "channels": ({"channel_base": 32}, "--channel-base 32"),
    "another model's": ({"pl_weight": 1.0}, "--pl-weight: not an option of --model progan"),
    "another loss's": ({"gamma": 1.0}, "--gamma: not an option of --loss wgan-gp"),
    "the other loss's": ({"loss": "logistic", "drift": 1.0}, "--drift: not an option of --loss logistic"),
    "another preset": ({"preset": "paper256"}, "--preset paper256: of --model stylegan2, not progan"),
    "no model": ({"model": "stylegan9"}, "--model stylegan9"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_option(case):
    options, named = BAD[case]
    with pytest.raises(InputError, match=named):
        config(64, **options)


def test_options_of_progan_are_not_stylegan2s():
    with pytest.raises(InputError, match="--fade-kimg: not an option of --model stylegan2"):
        resolve({"data": "d", "fade_kimg": 3.0}, resolution=16, c_dim=0, identity="")
