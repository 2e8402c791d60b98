"""The training loop: from a config and a run folder to trained networks, stopping and continuing at any step."""

import contextlib
import dataclasses
import functools
import resource
import shlex
import signal
import time
from collections.abc import Callable, Iterator

import torch

from gankern.data import BatchStream, DeviceFeed, ImageDataset, open_dataset
from gankern.data.pyramid import find_level
from gankern.errors import InputError, OutOfMemory
from gankern.training.checkpoint import newest_good_checkpoint, save_checkpoint
from gankern.training.config import RUN_OPTIONS, Config
from gankern.training.operators import use_operators
from gankern.training.progan import ProGANTrainer
from gankern.training.rundir import RunDir
from gankern.training.snapshot import Snapshots
from gankern.training.step import Trainer
from gankern.training.trainer import BaseTrainer

LIVE_SECONDS = 0.5
TRAINERS: dict[str, type[BaseTrainer]] = {"stylegan2": Trainer, "progan": ProGANTrainer}


def pick_device(name: str) -> torch.device:
    """ "auto" is the GPU where there is one. Raises InputError for a device that isn't there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: unknown, expected auto, cpu, cuda or cuda:N") from None
    absent = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if device.type not in ("cpu", "cuda") or absent:
        raise InputError(f"--device {name}: not available here, expected cpu" + " or cuda" * torch.cuda.is_available())
    return device


def _open_at(config: Config, resolution: int) -> ImageDataset:
    return open_dataset(
        config.data,
        resolution=resolution,
        use_labels=config.c_dim > 0,
        max_images=config.max_images,
        skip_bad=config.skip_bad,
    )


def open_data(config: Config) -> ImageDataset:
    """The config's dataset; raises InputError where it isn't the one that the run began with."""
    dataset = _open_at(config, config.resolution)
    if dataset.identity != config.dataset_identity:
        raise InputError(f"--data {config.data}: its images have changed since this run began; give another --out")
    if dataset.label_dim != config.c_dim:
        raise InputError(
            f"--data {config.data}: its labels have {dataset.label_dim} numbers, this run began with {config.c_dim}; "
            "give another --out"
        )
    return dataset


def train(config: Config, run: RunDir) -> int:
    """Trains until config.kimg or until a signal asks to stop; returns 0, or 128 + the signal's number.

    Continues from the newest good checkpoint in `run`. Raises InputError for what a person can mend and NonFiniteError
    for a diverged run.
    """
    device = pick_device(config.device)
    dataset = open_data(config)
    run.log(dataset.summary())
    torch.manual_seed(config.seed)
    with use_operators(config.impl, device), _stream(config, dataset, device, run) as stream, _StopSignals() as stop:
        trainer = TRAINERS[config.model](config, device, _label_sampler(dataset, config), run.log)
        snapshots = Snapshots(config, run, dataset, device)
        if not _restore(run, trainer, stream):
            run.rewind_stats(-1)  # of a process that was killed before its first checkpoint
            snapshots.save_reals()
        saved_at, saved_time = trainer.nimg, time.monotonic()
        if _snapshot_due(config, trainer) and not snapshots.taken(trainer.nimg):  # a stop cut it short
            with stop.cutting_short():
                snapshots.take(trainer)
        progress = _Progress(config, run, trainer)
        levels, feed = _levels(config, dataset), DeviceFeed(stream, device)

        while trainer.nimg < config.kimg * 1000 and not stop.signal:
            batch, resolution = trainer.prepare()
            stream.change(batch, levels(resolution))
            before = stream.state_dict()
            try:
                trainer.step(*next(feed))
            except OutOfMemory:
                if trainer.nimg != saved_at:
                    _save(config, run, trainer, before)  # from within the step: it goes on with the phase that failed
                raise
            progress.live()
            if _ticks_passed(config, trainer):
                progress.tick()
            snapshot_due = _snapshot_due(config, trainer)
            minutes = (time.monotonic() - saved_time) / 60
            if snapshot_due or (config.checkpoint_minutes and minutes >= config.checkpoint_minutes):
                _save(config, run, trainer, stream.state_dict())
                saved_at, saved_time = trainer.nimg, time.monotonic()
            if snapshot_due:
                with stop.cutting_short():
                    snapshots.take(trainer)

        if stop.signal and trainer.nimg != saved_at:
            _save(config, run, trainer, stream.state_dict())
    if stop.signal:
        run.log(f"stopped at {trainer.nimg / 1000:.1f} of {config.kimg:g} kimg; continue with: {continue_command(run)}")
        return 128 + stop.signal
    run.log(f"done: {trainer.nimg / 1000:.1f} kimg in {run.path}")
    return 0


def continue_command(run: RunDir) -> str:
    """The command line that continues a run."""
    return f"gankern train --resume {shlex.quote(str(run.path))}"


def _stream(config: Config, dataset: ImageDataset, device: torch.device, run: RunDir) -> BatchStream:
    return BatchStream(
        dataset,
        config.images_at_once,  # the loop says for each batch how large it is
        seed=config.seed,
        mirror=config.mirror,
        memory_budget=None if config.memory_gb is None else int(config.memory_gb * 2**30),
        workers=config.workers,
        progress=lambda done, total: run.live(f"decoding images, once: {done:,} of {total:,}"),
    )


def _levels(config: Config, dataset: ImageDataset) -> Callable[[int], ImageDataset]:
    """level(r): the images at r px where the data's pyramid holds them, else the dataset itself."""

    @functools.cache
    def level(resolution: int) -> ImageDataset:
        stored = resolution < config.resolution and find_level(dataset.source, resolution)
        return _open_at(config, resolution) if stored else dataset

    return level


def _label_sampler(dataset: ImageDataset, config: Config):
    """Conditions for the generator, drawn from the dataset's labels with torch's random state."""

    def sample(n: int) -> torch.Tensor:
        if config.c_dim == 0:
            return torch.empty(n, 0)
        return torch.from_numpy(dataset.label_rows(torch.randint(len(dataset), [n]).numpy()))

    return sample


def _restore(run: RunDir, trainer: BaseTrainer, stream: BatchStream) -> bool:
    """Continues from the newest good checkpoint; False where there is none."""
    found = newest_good_checkpoint(run.path, run.log)
    if found is None:
        return False
    path, state = found
    own = _learned_options(trainer.config)
    other = {k: v for k, v in state.get("config", {}).items() if own.get(k) != v}
    if other:
        name, value = next(iter(other.items()))
        raise InputError(f"{path}: of another run: its {name} is {value}, not {own.get(name)}")
    try:
        stream.load_state_dict(state["data"])
        trainer.load_state_dict(state["trainer"])
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        first = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: doesn't fit this run's networks or data ({first})") from None
    run.rewind_stats(trainer.nimg)
    run.log(f"continuing from {path.name}")
    return True


def _learned_options(config: Config) -> dict:
    """The options that decide what a run learns."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in RUN_OPTIONS and k != "data"}


def _save(config: Config, run: RunDir, trainer: BaseTrainer, position: dict) -> None:
    state = {"trainer": trainer.state_dict(), "data": position, "config": _learned_options(config)}
    save_checkpoint(run.path, state, trainer.nimg, config.keep)


def _ticks_passed(config: Config, trainer: BaseTrainer) -> range:
    """The ticks that the last step ended: a function of the images alone, so that a continued run ticks alike."""
    length = config.tick * 1000
    return range(int((trainer.nimg - trainer.last_batch) // length) + 1, int(trainer.nimg // length) + 1)


def _snapshot_due(config: Config, trainer: BaseTrainer) -> bool:
    ends = trainer.nimg == 0 or trainer.nimg >= config.kimg * 1000
    return ends or any(tick % config.snap == 0 for tick in _ticks_passed(config, trainer))


class _Progress:
    """The live line and the ticks' rows: speed, time to go, losses, memory."""

    def __init__(self, config: Config, run: RunDir, trainer: BaseTrainer):
        self.config, self.run, self.trainer = config, run, trainer
        self.begun = self.last_live = time.monotonic()
        self.begun_nimg = trainer.nimg
        self.tick_time, self.tick_nimg = self.begun, trainer.nimg
        self.losses = ""

    def live(self) -> None:
        now = time.monotonic()
        if now - self.last_live >= LIVE_SECONDS:
            self.last_live = now
            self.run.live(self._line((self.trainer.nimg - self.begun_nimg) / (now - self.begun)))

    def tick(self) -> None:
        """Writes a row of statistics and a line of the log."""
        trainer, now = self.trainer, time.monotonic()
        stats = trainer.pop_stats()
        speed = (trainer.nimg - self.tick_nimg) / max(now - self.tick_time, 1e-9)
        self.losses = "".join(f"  {name} {stats[key]:.3f}" for name, key in _SHOWN.items() if key in stats)
        row = {"nimg": trainer.nimg, "kimg": trainer.nimg / 1000, "step": trainer.steps, "img_s": speed}
        row |= stats | {"skipped": trainer.skipped}
        row |= {"memory_gb": _memory_gb(trainer.device)}
        self.run.write_stats(row)
        self.run.log(self._line(speed))
        self.tick_time, self.tick_nimg = time.monotonic(), trainer.nimg

    def _line(self, speed: float) -> str:
        nimg, total = self.trainer.nimg, self.config.kimg * 1000
        left = max(total - nimg, 0) / max(speed, 1e-9)
        skipped = f"  skipped {self.trainer.skipped}" if self.trainer.skipped else ""
        where = self.trainer.where()
        memory = f"  {_memory_gb(self.trainer.device):.1f} GB"
        return (
            f"kimg {nimg / 1000:.1f}/{total / 1000:g}{where and '  ' + where}  {speed:.1f} img/s  ETA {_duration(left)}"
            f"{self.losses}{memory}{skipped}"
        )


_SHOWN = {"loss G": "loss/G", "D": "loss/D", "R1": "r1", "GP": "gradient_penalty"}


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    return f"{minutes}m{int(seconds % 60):02d}s"


def _memory_gb(device: torch.device) -> float:
    """The most memory in use so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class _CutShort(BaseException):
    """A signal came while `cutting_short`."""


class _StopSignals:
    """Turns the first SIGINT or SIGTERM into a wish (`signal`) that the loop honours after its step; a second one ends
    the process as usual."""

    def __init__(self):
        self.signal = 0
        self._cut = False

    @contextlib.contextmanager
    def cutting_short(self) -> Iterator[None]:
        """The first signal ends the block at once; for work whose loss changes nothing."""
        self._cut = True
        try:
            yield
        except _CutShort:
            pass
        finally:
            self._cut = False

    def __enter__(self) -> "_StopSignals":
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, number: int, frame) -> None:
        self.signal = number
        self._restore()
        if self._cut:
            raise _CutShort

    def __exit__(self, *exc_info) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
