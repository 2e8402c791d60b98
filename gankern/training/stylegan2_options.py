"""StyleGAN2's own options, the published presets and Adam's correction for lazy regularisation."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from gankern.errors import InputError
from gankern.training.options import UNMEASURED, Config

ARCHITECTURES = ("skip", "orig", "resnet")


@dataclass
class StyleGAN2Config(Config):
    """Every option of a StyleGAN2 run."""

    w_dim: int = 512
    mapping_layers: int = 8
    g_architecture: str = "skip"
    d_architecture: str = "resnet"
    batch: int = 32
    r1_interval: int = 16
    pl_weight: float = 2.0
    pl_interval: int = 4
    pl_shrink: int = 2
    pl_decay: float = 0.01
    style_mixing: float = 0.9
    ema_kimg: float = 10.0
    ema_rampup: float | None = None
    start_from: str | None = None
    start_digest: str = ""
    freeze_d: int = 0
    recompute: int = 0

    @classmethod
    def given(cls, explicit: dict[str, Any]) -> dict[str, Any]:
        """As of any model; --batch-gpu 0 stands for the whole batch."""
        given = super().given(explicit)
        return {k: v for k, v in given.items() if (k, v) != ("batch_gpu", 0)}

    @classmethod
    def defaults(cls, given: dict[str, Any], resolution: int, num_gpus: int) -> dict[str, Any]:
        """The options that the preset gives."""
        options = preset_options(given.get("preset", "auto"), resolution, num_gpus, given.get("batch"))
        batch = options["batch"]
        return options | {"batch_gpu": max(batch // num_gpus, 1)}

    @property
    def images_at_once(self) -> int:
        """How many images a network is given at a time."""
        return min(self.share(self.batch), UNMEASURED) if self.batch_gpu == "auto" else self.batch_gpu

    def fits_mbstd(self, images: int) -> bool:
        return images % self.mbstd_group == 0

    def for_ranks(self, ranks: int) -> dict[str, Any]:
        if self.batch_gpu == "auto":
            return super().for_ranks(ranks)
        return {"ranks": ranks, "batch_gpu": max(min(self.batch_gpu, self.batch // ranks), 1)}

    def check(self) -> None:
        self.expect_batch_gpu(least=1)
        self.expect_counts("batch", "mbstd_group", "r1_interval", "pl_interval", "pl_shrink")
        self.expect_counts("mapping_layers", "w_dim")
        super().check()
        self.expect_not_negative("pl_weight", "ema_kimg", "ema_rampup", "freeze_d")
        if self.freeze_d and self.start_from is None:
            raise InputError(f"--freeze-d {self.freeze_d}: keeps what was learned before, expected --resume FILE")
        if not 0 < self.pl_decay <= 1:
            raise InputError(f"pl_decay {self.pl_decay}: expected a number in (0, 1]")
        if not 0 <= self.style_mixing <= 1:
            raise InputError(f"--style-mixing {self.style_mixing}: expected a probability in [0, 1]")
        self.expect_one_of(ARCHITECTURES, "g_architecture", "d_architecture")
        if self.resolution < 8:
            raise InputError(f"--data {self.data}: images are {self.resolution} px, expected 8 or more")
        if self.recompute and (self.recompute < 4 or self.recompute & (self.recompute - 1)):
            raise InputError(f"--recompute {self.recompute}: expected a power of two from 4, or 0 for none")
        if self.batch % self.ranks:
            raise InputError(f"--batch {self.batch}: not a multiple of the {self.ranks} ranks that torchrun started")
        share = self.share(self.batch)
        at_once = share if self.batch_gpu == "auto" else self.batch_gpu
        if share % at_once:
            each = self.each(self.batch)
            raise InputError(f"--batch {self.batch}{each}: not a multiple of --batch-gpu {self.batch_gpu}")
        if not self.fits_mbstd(at_once):
            of = "--batch-gpu" if at_once != self.batch else "--batch"
            raise InputError(
                f"{of} {at_once}: not a multiple of --mbstd-group {self.mbstd_group}, "
                "the samples that minibatch stddev compares"
            )


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


def adam_settings(lr: float, interval: int | None) -> dict[str, Any]:
    """Adam's arguments where a network is regularised every `interval` steps (None: never).

    m = n/(n+1) corrects learning rate and betas for the additional steps: lr·m, (0, 0.99)^m.
    Karras et al. 2020 (arXiv:1912.04958), appendix B.
    """
    m = 1.0 if interval is None else interval / (interval + 1)
    return {"lr": lr * m, "betas": (0.0, 0.99**m), "eps": 1e-8}
