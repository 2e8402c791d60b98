"""Options that every model's run has, and their checks; those of one model are in stylegan2_options and
progan_options."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gankern.errors import InputError

PRECISIONS = ("fp32", "bf16", "fp16", "fp64")
IMPLS = ("auto", "reference", "fused", "cudnn")

UNMEASURED = 16
"""Images at a time outside of training, where --batch-gpu auto says nothing of them."""

RUN_OPTIONS = {"kimg", "batch_gpu", "tick", "snap", "checkpoint_minutes", "keep", "metric_images", "device"}
RUN_OPTIONS |= {"workers", "memory_gb", "max_skipped", "graph", "impl", "tune", "recompute", "ranks"}
"""Options that may differ when a run is continued."""


@dataclass
class Config:
    """Options of a run, resolved; with the model's own they are what config.toml holds. Images are counted in kimg
    (thousands of reals shown)."""

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
    channel_base: int = 32768
    channel_max: int = 512
    mbstd_group: int = 4
    precision: str = "fp32"
    # optimisation
    kimg: float = 25000.0
    g_lr: float = 0.002
    d_lr: float = 0.002
    gamma: float = 10.0
    # how it runs: these may change when a run is continued
    batch_gpu: int | str = 0
    tick: float = 4.0
    snap: int = 50
    checkpoint_minutes: float = 10.0
    keep: int = 2
    metric_images: int = 1024
    device: str = "auto"
    workers: int | None = None
    memory_gb: float | None = None
    max_skipped: int = 20
    ranks: int = 1  # torchrun's, never given as an option
    graph: bool = True
    impl: str = "auto"
    tune: bool = False

    @classmethod
    def given(cls, explicit: dict[str, Any]) -> dict[str, Any]:
        """The options that a person gave, None for not given, as fields of this class. Raises InputError for one that
        belongs to another model."""
        given = {k: v for k, v in explicit.items() if v is not None}
        for name in given:
            if name not in cls.__dataclass_fields__:
                raise InputError(f"{flag(name)}: not an option of --model {cls.model}")
        return given

    def check(self) -> None:
        """Raises InputError for options that can't work, naming the option."""
        self.expect_counts("snap", "keep", "max_skipped", "z_dim", "channel_base", "channel_max")
        self.expect_positive("kimg", "tick", "g_lr", "d_lr")
        self.expect_not_negative("gamma", "checkpoint_minutes", "metric_images", "memory_gb", "workers")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed {self.seed}: expected a whole number from 0 to 2^63 - 1")
        self.expect_one_of(PRECISIONS, "precision")
        self.expect_one_of(IMPLS, "impl")
        if self.impl == "cudnn" and (self.precision, self.model) != ("bf16", "stylegan2"):
            raise InputError(
                f"--impl cudnn: not with {self.model} in {self.precision}; expected StyleGAN2 and --precision bf16"
            )
        if self.tune and self.impl != "cudnn":
            raise InputError(f"--tune: times cuDNN's plans, and --impl is {self.impl}; expected --impl cudnn beside it")
        if self.channel_base // self.resolution < 1:
            raise InputError(f"--channel-base {self.channel_base}: no channels are left at {self.resolution} px")

    def for_ranks(self, ranks: int) -> dict[str, Any]:
        """What changes where a run goes on with another number of ranks."""
        return {"ranks": ranks}

    def share(self, batch: int) -> int:
        """The images of a batch that are one rank's."""
        return batch // self.ranks

    def each(self, batch: int) -> str:
        """What a message says of the shares of several ranks."""
        return f" ({self.share(batch)} on each of {self.ranks} ranks)" if self.ranks > 1 else ""

    def at_once(self, batch: int) -> int:
        """How many images of a rank's `batch` go through the networks at a time; all where that is to be found out."""
        return batch if self.batch_gpu in (0, "auto") else min(self.batch_gpu, batch)

    def fits_mbstd(self, images: int) -> bool:
        """Whether minibatch stddev can compare so many images."""
        return not self.mbstd_group or images % min(self.mbstd_group, images) == 0

    def expect_batch_gpu(self, least: int) -> None:
        if self.batch_gpu != "auto":
            if not isinstance(self.batch_gpu, int):
                raise InputError(f"--batch-gpu {self.batch_gpu}: expected a whole number or auto")
            self.expect_counts("batch_gpu", least=least)

    def expect_counts(self, *names: str, least: int = 1) -> None:
        for name in names:
            if getattr(self, name) < least:
                raise InputError(f"{flag(name)} {getattr(self, name)}: expected a whole number >= {least}")

    def expect_positive(self, *names: str) -> None:
        for name in names:
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{flag(name)} {getattr(self, name)}: expected a number > 0")

    def expect_not_negative(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):  # None: not set
                raise InputError(f"{flag(name)} {value}: expected a number >= 0")

    def expect_one_of(self, known: Iterable[str], *names: str) -> None:
        for name in names:
            if getattr(self, name) not in known:
                raise InputError(f"{flag(name)} {getattr(self, name)}: expected one of {', '.join(known)}")


def flag(name: str) -> str:
    """The command-line option of a field."""
    if name == "start_from":
        return "--resume"
    return "--" + name.replace("_", "-")
