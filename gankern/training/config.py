"""Options of a training run: the published presets, their resolution against a dataset, checks, and config.toml."""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gankern.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRECISIONS = ("fp32", "bf16", "fp16", "fp64")
ARCHITECTURES = ("skip", "orig", "resnet")


@dataclass
class Config:
    """Every option of a run, resolved: what config.toml holds. Images are counted in kimg (thousands of reals
    shown)."""

    # what is trained on what
    data: str
    resolution: int
    c_dim: int = 0
    mirror: bool = False
    max_images: int | None = None
    skip_bad: bool = False
    dataset_identity: str = ""
    preset: str = "auto"
    model: str = "stylegan2"
    seed: int = 0
    # networks
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 8
    channel_base: int = 32768
    channel_max: int = 512
    g_architecture: str = "skip"
    d_architecture: str = "resnet"
    mbstd_group: int = 4
    precision: str = "fp32"
    # optimisation
    batch: int = 32
    kimg: float = 25000.0
    g_lr: float = 0.002
    d_lr: float = 0.002
    gamma: float = 10.0
    r1_interval: int = 16
    pl_weight: float = 2.0
    pl_interval: int = 4
    pl_shrink: int = 2
    pl_decay: float = 0.01
    style_mixing: float = 0.9
    ema_kimg: float = 10.0
    ema_rampup: float | None = None
    # how it runs: these may change when a run is continued
    batch_gpu: int = 0
    tick: float = 4.0
    snap: int = 50
    checkpoint_minutes: float = 10.0
    keep: int = 2
    metric_images: int = 1024
    device: str = "auto"
    workers: int | None = None
    memory_gb: float | None = None
    max_skipped: int = 20


RUN_OPTIONS = {"kimg", "batch_gpu", "tick", "snap", "checkpoint_minutes", "keep", "metric_images", "device"}
RUN_OPTIONS |= {"workers", "memory_gb", "max_skipped"}
"""Options that may differ when a run is continued."""

COUNTS = ("batch", "batch_gpu", "mbstd_group", "r1_interval", "pl_interval", "pl_shrink", "snap", "keep", "max_skipped")
COUNTS += ("mapping_layers", "z_dim", "w_dim", "channel_base", "channel_max")


@dataclass(frozen=True)
class Preset:
    """A row of the published table; None is computed from resolution, GPUs and batch (`auto`)."""

    kimg: float
    batch: int | None
    mbstd_group: int | None
    fmaps: float | None
    lr: float | None
    gamma: float | None
    ema_kimg: float | None
    ema_rampup: float | None
    mapping_layers: int
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


_CIFAR = {"pl_weight": 0.0, "style_mixing": 0.0, "d_architecture": "orig"}
_TINY = {"channel_max": 128, "z_dim": 128, "w_dim": 128, "pl_weight": 0.0, "style_mixing": 0.0, "snap": 10, "tick": 2.0}

PRESETS: dict[str, Preset] = {
    "auto": Preset(25000, None, None, None, None, None, None, 0.05, 2),
    "stylegan2": Preset(25000, 32, 4, 1, 0.002, 10, 10, None, 8),
    "paper256": Preset(25000, 64, 8, 0.5, 0.0025, 1, 20, None, 8),
    "paper512": Preset(25000, 64, 8, 1, 0.0025, 0.5, 20, None, 8),
    "paper1024": Preset(25000, 32, 4, 1, 0.002, 2, 10, None, 8),
    "cifar": Preset(100000, 64, 32, 1, 0.0025, 0.01, 500, 0.05, 2, _CIFAR),
    "tiny": Preset(200, 16, 4, 1 / 64, 0.0025, 0.5, 2, 0.05, 2, _TINY),
}


def preset_options(name: str, resolution: int, num_gpus: int = 1, batch: int | None = None) -> dict[str, Any]:
    """The options that a preset gives for images of `resolution`; `auto` looks at the number of GPUs and the batch
    too."""
    if name not in PRESETS:
        raise InputError(f"--preset {name}: unknown, expected one of {', '.join(PRESETS)}")
    p, n = PRESETS[name], num_gpus
    batch = batch or p.batch or max(min(n * min(4096 // resolution, 32), 64), n)
    fmaps = p.fmaps if p.fmaps is not None else (1 if resolution >= 512 else 0.5)
    lr = p.lr if p.lr is not None else (0.002 if resolution >= 1024 else 0.0025)
    options = {
        "kimg": float(p.kimg),
        "batch": batch,
        "mbstd_group": p.mbstd_group if p.mbstd_group is not None else max(min(batch // n, 4), 1),
        "channel_base": int(fmaps * 32768),
        "g_lr": lr,
        "d_lr": lr,
        "gamma": float(p.gamma) if p.gamma is not None else 0.0002 * resolution**2 / batch,
        "ema_kimg": float(p.ema_kimg) if p.ema_kimg is not None else batch * 10 / 32,
        "ema_rampup": p.ema_rampup,
        "mapping_layers": p.mapping_layers,
    }
    return options | p.extra


def resolve(explicit: dict[str, Any], *, resolution: int, c_dim: int, identity: str, num_gpus: int = 1) -> Config:
    """The config of a new run: the preset's options under those that the user gave (`explicit`), checked."""
    options = preset_options(explicit.get("preset", "auto"), resolution, num_gpus, explicit.get("batch"))
    options |= {k: v for k, v in explicit.items() if v is not None}
    config = Config(**options, resolution=resolution, c_dim=c_dim, dataset_identity=identity)
    config.batch_gpu = config.batch_gpu or config.batch // num_gpus
    check(config)
    return config


def check(config: Config) -> None:
    """Raises InputError for options that can't work, naming the option."""
    for name in COUNTS:
        if getattr(config, name) < 1:
            raise InputError(f"{_flag(name)} {getattr(config, name)}: expected a whole number >= 1")
    for name in ("kimg", "tick", "g_lr", "d_lr"):
        if not 0 < getattr(config, name) < float("inf"):
            raise InputError(f"{_flag(name)} {getattr(config, name)}: expected a number > 0")
    for name in ("gamma", "pl_weight", "ema_kimg", "checkpoint_minutes", "metric_images"):
        if not 0 <= getattr(config, name) < float("inf"):
            raise InputError(f"{_flag(name)} {getattr(config, name)}: expected a number >= 0")
    for name in ("ema_rampup", "memory_gb", "workers"):  # None: not set
        value = getattr(config, name)
        if value is not None and not 0 <= value < float("inf"):
            raise InputError(f"{_flag(name)} {value}: expected a number >= 0")
    if not 0 <= config.seed < 2**63:
        raise InputError(f"--seed {config.seed}: expected a whole number from 0 to 2^63 - 1")
    if config.model != "stylegan2":
        raise InputError(f"model {config.model!r}: expected 'stylegan2'")
    if not 0 < config.pl_decay <= 1:
        raise InputError(f"pl_decay {config.pl_decay}: expected a number in (0, 1]")
    if not 0 <= config.style_mixing <= 1:
        raise InputError(f"--style-mixing {config.style_mixing}: expected a probability in [0, 1]")
    if config.precision not in PRECISIONS:
        raise InputError(f"--precision {config.precision}: expected one of {', '.join(PRECISIONS)}")
    for name in ("g_architecture", "d_architecture"):
        if getattr(config, name) not in ARCHITECTURES:
            raise InputError(f"{_flag(name)} {getattr(config, name)}: expected one of {', '.join(ARCHITECTURES)}")
    if config.resolution < 8:
        raise InputError(f"--data {config.data}: images are {config.resolution} px, expected 8 or more")
    if config.batch % config.batch_gpu:
        raise InputError(f"--batch {config.batch}: not a multiple of --batch-gpu {config.batch_gpu}")
    if config.batch_gpu % config.mbstd_group:
        of = "--batch-gpu" if config.batch_gpu != config.batch else "--batch"
        raise InputError(
            f"{of} {config.batch_gpu}: not a multiple of --mbstd-group {config.mbstd_group}, "
            "the samples that minibatch stddev compares"
        )
    if config.channel_base // config.resolution < 1:
        raise InputError(f"--channel-base {config.channel_base}: no channels are left at {config.resolution} px")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def continued(saved: Config, explicit: dict[str, Any], where: Path) -> Config:
    """The config of a run that goes on: the saved one, with such explicit options as may change.

    Raises InputError naming an explicit option that contradicts what the run in `where` learns.
    """
    for name, value in explicit.items():
        if value is None or name in RUN_OPTIONS:
            continue
        old = getattr(saved, name)
        same = Path(old).resolve() == Path(value).expanduser().resolve() if name == "data" else old == value
        if not same:
            raise InputError(
                f"{where} holds another run: its {_flag(name)} is {old}, not {value}; give another --out, "
                "or leave the option out to continue it"
            )
    changes = {k: v for k, v in explicit.items() if v is not None and k in RUN_OPTIONS}
    config = dataclasses.replace(saved, **changes)
    check(config)
    return config


def to_toml(config: Config) -> str:
    """config.toml; an option that is None is left out."""
    lines = ["# All options of this run, resolved."]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is not None:
            lines.append(f"{field.name} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def read_toml(path: Path) -> Config:
    """The config in `path`; raises InputError where it can't be read or holds an unknown option."""
    try:
        options = tomllib.loads(path.read_text(encoding="utf-8"))
        config = Config(**options)
        check(config)  # it may have been edited
        return config
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, TypeError) as error:
        raise InputError(f"{path}: not a run's config ({error})") from None


def adam_settings(lr: float, interval: int | None) -> dict[str, Any]:
    """Adam's arguments where a network is regularised every `interval` steps (None: never).

    m = n/(n+1) corrects learning rate and betas for the additional steps: lr·m, (0, 0.99)^m.
    Karras et al. 2020 (arXiv:1912.04958), appendix B.
    """
    m = 1.0 if interval is None else interval / (interval + 1)
    return {"lr": lr * m, "betas": (0.0, 0.99**m), "eps": 1e-8}
