"""ProGAN's own options and presets. Karras et al. 2018 (arXiv:1710.10196), appendix A."""

from dataclasses import dataclass
from typing import Any

from gankern.errors import InputError
from gankern.training.options import UNMEASURED, Config, flag
from gankern.training.schedule import BATCHES, RATES, Schedule, look_up, parse_table, resolutions, table_text

LOSSES = ("wgan-gp", "logistic")

_OF_LOSS = {"gp_weight": "wgan-gp", "gp_target": "wgan-gp", "drift": "wgan-gp", "gamma": "logistic"}

GULRAJANI = {"g_lr": 0.0001, "d_lr": 0.0001, "beta2": 0.9, "drift": 0.0, "normalize_latents": False}
"""What `revised=False` takes back: WGAN-GP's settings before the paper's (arXiv:1704.00028). Its batch and layer
normalisation and its five critic steps don't exist here."""


@dataclass
class ProGANConfig(Config):
    """Every option of a ProGAN run."""

    preset: str = "progan"
    model: str = "progan"
    channel_base: int = 8192
    kimg: float = 12000.0
    g_lr: float = 0.001
    d_lr: float = 0.001
    fused_from: int = 128
    equalized: bool = True
    pixel_norm: bool = True
    normalize_latents: bool = True
    loss: str = "wgan-gp"
    gp_weight: float = 10.0
    gp_target: float = 1.0
    drift: float = 0.001
    cond_weight: float = 1.0
    beta2: float = 0.99
    ema_beta: float = 0.999
    revised: bool = True
    grow: bool = True
    start_resolution: int = 4
    stable_kimg: float = 600.0
    fade_kimg: float = 600.0
    repeats: int = 4
    schedule_gpus: int = 1
    batch_schedule: str = BATCHES[1]
    lr_schedule: str = RATES[1]

    @classmethod
    def given(cls, explicit: dict[str, Any]) -> dict[str, Any]:
        """As of any model; --batch N is a schedule of one entry, and schedules have one form."""
        explicit = {k: v for k, v in explicit.items() if v is not None}
        batch = explicit.pop("batch", None)
        if batch is not None:
            if "batch_schedule" in explicit:
                raise InputError(f"--batch {batch}: --batch-schedule is given as well, leave one of them out")
            if batch < 1:
                raise InputError(f"--batch {batch}: expected a whole number >= 1")
            explicit["batch_schedule"] = f"4-:{batch}"
        for name, number in (("batch_schedule", int), ("lr_schedule", float)):
            if explicit.get(name):
                explicit[name] = table_text(parse_table(flag(name), explicit[name], number))
        return super().given(explicit)

    @classmethod
    def defaults(cls, given: dict[str, Any], resolution: int, num_gpus: int) -> dict[str, Any]:
        """The options that the preset gives; without a length of its own a run lasts two phases at the full
        resolution, as the paper's does."""
        loss = given.get("loss", cls.loss)
        for name, owner in _OF_LOSS.items():
            if name in given and loss != owner:
                raise InputError(f"{flag(name)}: not an option of --loss {loss}")
        gpus = given.get("schedule_gpus", max(n for n in BATCHES if n <= num_gpus))
        if gpus not in BATCHES:
            raise InputError(f"--schedule-gpus {gpus}: expected one of {', '.join(map(str, BATCHES))}")
        options = {"schedule_gpus": gpus, "batch_schedule": BATCHES[gpus], "lr_schedule": RATES[gpus]}
        if given.get("revised") is False:
            options |= GULRAJANI
        options |= PRESETS[given.get("preset", "progan")]
        if "kimg" not in options:
            whole = cls(**options | given | {"data": "", "resolution": resolution})
            phase = whole.stable_kimg + whole.fade_kimg
            growths = len(resolutions(whole.first_resolution, resolution)) - 1
            options["kimg"] = (growths + 2) * phase
        return options

    @property
    def first_resolution(self) -> int:
        return self.start_resolution if self.grow else self.resolution

    @property
    def images_at_once(self) -> int:
        """How many images a network is given at a time where it is largest."""
        share = self.share(self.schedule().batches[self.resolution])
        return min(share, UNMEASURED) if self.batch_gpu == "auto" else self.at_once(share)

    def schedule(self) -> Schedule:
        """The tables, looked up. Raises InputError where one has a hole."""
        wanted = resolutions(self.first_resolution, self.resolution)
        batches = look_up(parse_table("--batch-schedule", self.batch_schedule, int), wanted)
        holes = [r for r in wanted if r not in batches]
        if holes:
            raise InputError(f"--batch-schedule {self.batch_schedule}: no entry for {holes[0]} px")
        rates = parse_table("--lr-schedule", self.lr_schedule, float) if self.lr_schedule else []
        kimg = (1000 * self.stable_kimg, 1000 * self.fade_kimg)
        return Schedule(self.resolution, self.first_resolution, *kimg, batches, look_up(rates, wanted))

    def check(self) -> None:
        self.expect_batch_gpu(least=0)
        self.expect_counts("mbstd_group", "fused_from", least=0)
        self.expect_counts("repeats", "start_resolution")
        self.expect_not_negative("gp_weight", "drift", "cond_weight", "stable_kimg", "fade_kimg")
        self.expect_positive("gp_target")
        self.expect_one_of(LOSSES, "loss")
        for name in ("beta2", "ema_beta"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{flag(name)} {getattr(self, name)}: expected a number in [0, 1)")
        start = self.start_resolution
        if start < 4 or start & (start - 1) or start > self.resolution:
            raise InputError(f"--start-resolution {start}: expected a power of two from 4 to {self.resolution}")
        if self.stable_kimg + self.fade_kimg == 0:
            raise InputError("--stable-kimg 0: expected more than 0 where --fade-kimg is 0")
        super().check()
        self._check_schedule()

    def _check_schedule(self) -> None:
        schedule = self.schedule()
        for r, batch in schedule.batches.items():
            if batch % self.ranks:
                raise InputError(
                    f"--batch-schedule {self.batch_schedule}: at {r} px {batch} images, not a multiple of the "
                    f"{self.ranks} ranks that torchrun started"
                )
            at_once = self.at_once(self.share(batch))
            if self.share(batch) % at_once:
                of = f"the batch of {batch}{self.each(batch)} at {r} px"
                raise InputError(f"--batch-gpu {at_once}: {of} is not a multiple of it")
            if not self.fits_mbstd(at_once):
                raise InputError(
                    f"--batch-schedule {self.batch_schedule}: at {r} px {at_once} images, not a multiple of "
                    f"--mbstd-group {self.mbstd_group}, the samples that minibatch stddev compares"
                )
        if self.first_resolution < self.resolution and schedule.full >= 1000 * self.kimg:
            raise InputError(
                f"--kimg {self.kimg:g}: too short to reach {self.resolution} px, growing there takes "
                f"{schedule.full / 1000:g} kimg (from {schedule.start} px, --stable-kimg {self.stable_kimg:g}, "
                f"--fade-kimg {self.fade_kimg:g})"
            )


PRESETS: dict[str, dict[str, Any]] = {
    "progan": {},
    "progan-celebahq-1024": {"kimg": 12000.0},
    # the target: the paper's appendix on CIFAR-10; what else it doesn't say is as elsewhere
    "progan-cifar10": {"kimg": 12000.0, "gp_target": 750.0},
    "progan-ablation-128": {
        "channel_base": 2048,
        "stable_kimg": 800.0,
        "fade_kimg": 800.0,
        "kimg": 10000.0,
        "batch_schedule": "4-:16",
    },
}
ROWS = (
    "g, none; f, --no-pixel-norm; e, also --no-equalized; d, also --no-mbstd; c, also --no-revised; b, also --batch "
    "64; a, also --no-grow. Row h, the converged run, is g with a longer --kimg. Rows a to c lack the batch and layer "
    "normalisation that the paper's have."
)
"""The rows of the paper's Table 1: options that --preset progan-ablation-128 takes for each."""
