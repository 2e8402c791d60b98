"""Numbers of the method: published presets, Adam's correction for lazy regularisation, the moving average's decay."""

import math

import pytest
import torch

from gankern.errors import InputError
from gankern.training.config import Config, adam_settings, preset_options, read_toml, resolve, to_toml
from gankern.training.ema import ema_beta, update_ema
from gankern.training.pictures import grid_size

COLUMNS = ("kimg", "batch", "mbstd_group", "channel_base", "g_lr", "gamma", "ema_kimg", "ema_rampup", "mapping_layers")
PUBLISHED = {  # the table that came with StyleGAN2-ADA
    "stylegan2": (25000, 32, 4, 32768, 0.002, 10, 10, None, 8),
    "paper256": (25000, 64, 8, 16384, 0.0025, 1, 20, None, 8),
    "paper512": (25000, 64, 8, 32768, 0.0025, 0.5, 20, None, 8),
    "paper1024": (25000, 32, 4, 32768, 0.002, 2, 10, None, 8),
    "cifar": (100000, 64, 32, 32768, 0.0025, 0.01, 500, 0.05, 2),
}
AUTO = {  # (resolution, GPUs): batch max(min(n·min(4096/res, 32), 64), n) and what follows from it
    (32, 1): (25000, 32, 4, 16384, 0.0025, 0.0002 * 32**2 / 32, 10, 0.05, 2),
    (256, 1): (25000, 16, 4, 16384, 0.0025, 0.8192, 5, 0.05, 2),
    (512, 1): (25000, 8, 4, 32768, 0.0025, 6.5536, 2.5, 0.05, 2),
    (1024, 1): (25000, 4, 4, 32768, 0.002, 52.4288, 1.25, 0.05, 2),
    (256, 8): (25000, 64, 4, 16384, 0.0025, 0.2048, 20, 0.05, 2),
    (1024, 8): (25000, 32, 4, 32768, 0.002, 6.5536, 10, 0.05, 2),
    (1024, 128): (25000, 128, 1, 32768, 0.002, 1.6384, 40, 0.05, 2),
}


def small_config(**options) -> Config:
    return resolve({"data": "d", "batch": 8, **options}, resolution=16, c_dim=0, identity="")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_preset(name):
    options = preset_options(name, 256)
    assert tuple(options[c] for c in COLUMNS) == PUBLISHED[name]
    assert options["d_lr"] == options["g_lr"]


def test_cifar_leaves_out():
    options = preset_options("cifar", 32)
    assert (options["pl_weight"], options["style_mixing"], options["d_architecture"]) == (0, 0, "orig")


def test_what_all_presets_share():
    config = small_config(preset="stylegan2")
    assert (config.z_dim, config.w_dim, config.channel_max) == (512, 512, 512)
    assert (config.r1_interval, config.pl_interval, config.pl_weight, config.pl_decay) == (16, 4, 2, 0.01)
    assert (config.style_mixing, config.pl_shrink) == (0.9, 2)
    assert (config.g_architecture, config.d_architecture, config.precision) == ("skip", "resnet", "fp32")


@pytest.mark.parametrize(("resolution", "gpus"), AUTO, ids=lambda v: str(v))
def test_auto(resolution, gpus):
    options = preset_options("auto", resolution, gpus)
    assert [options[c] for c in COLUMNS] == pytest.approx(list(AUTO[resolution, gpus]))


def test_auto_follows_a_given_batch():
    options = preset_options("auto", 256, batch=2)
    assert (options["mbstd_group"], options["gamma"], options["ema_kimg"]) == (2, 0.0002 * 65536 / 2, 0.625)


def test_explicit_options_win():
    config = resolve({"data": "d", "preset": "paper256", "gamma": 3.0, "mbstd_group": None}, **_at(256))
    assert (config.gamma, config.mbstd_group, config.batch, config.batch_gpu) == (3, 8, 64, 64)


def _at(resolution: int) -> dict:
    return {"resolution": resolution, "c_dim": 0, "identity": ""}


def test_adam_of_the_generator():
    settings = adam_settings(0.002, 4)
    assert settings["lr"] == pytest.approx(0.0016)
    assert settings["betas"][0] == 0
    assert settings["betas"][1] == pytest.approx(0.99199, abs=5e-6)
    assert settings["eps"] == 1e-8


def test_adam_of_the_discriminator():
    settings = adam_settings(0.002, 16)
    assert settings["lr"] == pytest.approx(0.0018824, abs=5e-8)
    assert settings["betas"][1] == pytest.approx(0.990585, abs=5e-7)


def test_adam_without_regularisation():
    assert adam_settings(0.002, None) == {"lr": 0.002, "betas": (0, 0.99), "eps": 1e-8}


@pytest.mark.parametrize(
    ("nimg", "rampup", "half_life"),
    [(0, None, 10_000), (10**9, None, 10_000), (40_000, 0.05, 2000), (10**9, 0.05, 1e4)],
)
def test_ema_beta(nimg, rampup, half_life):
    beta = ema_beta(32, 10, nimg, rampup)
    assert beta ** (half_life / 32) == pytest.approx(0.5)


def test_ema_begins_with_the_network_itself():
    assert ema_beta(32, 10, 0, 0.05) == 0
    assert ema_beta(32, 0, 1000, None) == 0


def test_update_ema():
    a, b = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    with torch.no_grad():
        a.weight.fill_(2), b.weight.fill_(10), b.running_mean.fill_(5)
    update_ema(a, b, 0.75)
    assert a.weight.tolist() == [4, 4, 4]
    assert a.running_mean.tolist() == [5, 5, 5]


def test_grid_sizes():
    assert [grid_size(r) for r in (16, 64, 256, 1024)] == [(16, 9), (16, 9), (4, 3), (4, 3)]


@pytest.mark.parametrize("data", ["plain", 'with \\ and "', "ünïcödé 画像", "emoji 😀", "tab\tnew\nline"])
def test_config_file_round_trip(tmp_path, data):
    config = small_config(preset="cifar", mbstd_group=4, g_lr=1e-7, kimg=1e16)
    config.data = data
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    assert read_toml(tmp_path / "config.toml") == config


@pytest.mark.parametrize(
    "text",
    [
        "batch = ",
        "batch = 8",
        'data = "d"\nbatch_gpu = 8\nresolution = "x"',
        'data = "d"\nresolution = 16\nunheard_of = 1',
        "\xff",
    ],
    ids=["no toml", "options are missing", "a word for a number", "unknown option", "no utf-8"],
)
def test_damaged_config_file(tmp_path, text):
    file = tmp_path / "config.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"config\.toml: not a run's config"):
        read_toml(file)


BAD = {
    "batch": (0, -8),
    "batch_gpu": (-1, 3, 16),
    "mbstd_group": (0, 3, 16),
    "kimg": (0, -1, math.nan, math.inf),
    "tick": (0, -1, math.nan),
    "snap": (0, -1),
    "keep": (0, -1),
    "g_lr": (0, -0.1, math.nan, math.inf),
    "d_lr": (0, -0.1, math.nan, math.inf),
    "gamma": (-1, math.nan, math.inf),
    "r1_interval": (0, -1),
    "pl_weight": (-1, math.nan, math.inf),
    "pl_interval": (0,),
    "style_mixing": (-0.1, 1.1, math.nan),
    "ema_kimg": (-1, math.nan),
    "ema_rampup": (-1, math.nan),
    "checkpoint_minutes": (-1, math.nan),
    "metric_images": (-1,),
    "precision": ("fp8",),
    "g_architecture": ("progressive",),
    "d_architecture": ("progressive",),
    "mapping_layers": (0,),
    "z_dim": (0,),
    "w_dim": (0,),
    "channel_base": (0, 15),
    "channel_max": (0,),
    "seed": (-1, 2**63),
    "workers": (-1,),
    "memory_gb": (-1, math.nan, math.inf),
    "preset": ("papr256",),
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD.items() for v in values], ids=str)
def test_bad_option(name, value):
    flag = "--" + name.replace("_", "-")
    with pytest.raises(InputError, match=f"{flag}(-gpu)? {value}" if name != "mbstd_group" else flag):
        small_config(**{name: value})


def test_too_small_images():
    with pytest.raises(InputError, match="images are 4 px, expected 8 or more"):
        resolve({"data": "d"}, resolution=4, c_dim=0, identity="")
