"""The training loop: from a config and a run folder to trained networks, stopping and continuing at any step."""

import contextlib
import dataclasses
import functools
import resource
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from gankern.data import BatchStream, DeviceFeed, ImageDataset, open_dataset
from gankern.data.pyramid import find_level
from gankern.errors import InputError, OutOfMemory
from gankern.training.checkpoint import newest_good_checkpoint, save_checkpoint
from gankern.training.config import RUN_OPTIONS, Config
from gankern.training.distributed import ALONE, Council, Watchdog, World, pick_device
from gankern.training.operators import use_operators
from gankern.training.progan import ProGANTrainer
from gankern.training.rundir import Onlooker, RunDir
from gankern.training.snapshot import Snapshots
from gankern.training.step import Trainer
from gankern.training.trainer import BaseTrainer

LIVE_SECONDS = 0.5
TRAINERS: dict[str, type[BaseTrainer]] = {"stylegan2": Trainer, "progan": ProGANTrainer}


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


def train(config: Config, run: RunDir | Onlooker, world: World = ALONE) -> int:
    """Trains until config.kimg or until a signal asks to stop; returns 0, or 128 + the signal's number.

    Continues from the newest good checkpoint in `run`. Raises InputError for what a person can mend, NonFiniteError
    for a diverged run and RankError where another rank has died.
    """
    device = pick_device(config.device, world)
    with world.together():
        dataset = open_data(config)
    run.log(dataset.summary())
    torch.manual_seed(config.seed)
    stop, watchdog = _StopSignals(), Watchdog(world)
    with (
        use_operators(config.impl, device, config.tune),
        _stream(config, dataset, device, run, world) as stream,
        stop,
        watchdog,
    ):
        trainer = TRAINERS[config.model](config, device, _label_sampler(dataset, config), run.log, world)
        snapshots = Snapshots(config, run, dataset, device, world)
        saves = _Checkpoints(config, run, trainer, stream, world)
        if not saves.restore():
            with world.together():
                run.rewind_stats(-1)  # of a process that was killed before its first checkpoint
                started = trainer.start()
                snapshots.save_reals()
            if started:
                run.log(started)
        if _snapshot_due(config, trainer) and not snapshots.taken(trainer.nimg):  # a stop cut it short
            stop.cut_short(world, functools.partial(snapshots.take, trainer))
        progress = _Progress(config, run, trainer)
        levels, feed = _levels(config, dataset), DeviceFeed(stream, device)
        council = Council(world, trainer.steps)
        stopped_by, _ = council.after(trainer.steps, stop.signal, False, last=True)

        while trainer.nimg < config.kimg * 1000 and not stopped_by:
            batch, resolution = trainer.prepare()
            stream.change(batch, levels(resolution))
            with watchdog.step():
                with saves.at_a_shortage():
                    trainer.step(*next(feed))
                progress.live()
                if _ticks_passed(config, trainer):
                    progress.tick()
            snapshot_due = _snapshot_due(config, trainer)
            last = trainer.nimg >= config.kimg * 1000
            stopped_by, save_due = council.after(trainer.steps, stop.signal, saves.due(), last=last)
            if snapshot_due or save_due:
                with watchdog.step():  # here too the host waits for the GPU, and the GPU for other ranks
                    saves.save()
            if snapshot_due:
                stop.cut_short(world, functools.partial(snapshots.take, trainer))
                stopped_by, _ = council.after(trainer.steps, stop.signal, False, last=True)

        if stopped_by and trainer.nimg != saves.saved_at:
            with watchdog.step():
                saves.save()
        trainer.forget_captures()  # before the ranks part: NCCL waits for the graphs that hold its calls
    if stopped_by:
        again = continue_command(run, world)
        run.log(f"stopped at {trainer.nimg / 1000:.1f} of {config.kimg:g} kimg; continue with: {again}")
        return 128 + stopped_by
    run.log(f"done: {trainer.nimg / 1000:.1f} kimg in {run.path}")
    return 0


def continue_command(run: RunDir, world: World = ALONE) -> str:
    """The command line that continues a run."""
    launcher = "gankern"
    if world.size > 1:
        machines = world.size // world.local_size
        launcher = f"torchrun {f'--nnodes={machines} ' * (machines > 1)}--nproc-per-node={world.local_size} -m gankern"
    return f"{launcher} train --resume {shlex.quote(str(run.path))}"


def _stream(
    config: Config, dataset: ImageDataset, device: torch.device, run: RunDir | Onlooker, world: World
) -> BatchStream:
    return BatchStream(
        dataset,
        config.images_at_once,  # the loop says for each batch how large it is
        seed=config.seed,
        rank=world.rank,
        world_size=world.size,
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


def _learned_options(config: Config) -> dict:
    """The options that decide what a run learns."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in RUN_OPTIONS and k != "data"}


class _Checkpoints:
    """Restores and saves a run; rank 0 reads and writes for all."""

    def __init__(self, config: Config, run: RunDir | Onlooker, trainer: BaseTrainer, stream: BatchStream, world: World):
        self.config, self.run, self.trainer, self.stream, self.world = config, run, trainer, stream, world
        self.saved_at, self._saved_time = trainer.nimg, time.monotonic()

    def restore(self) -> bool:
        """Continues from the newest good checkpoint; False where there is none."""
        with self.world.together():
            found = None if self.world.rank else newest_good_checkpoint(self.run.path, self.run.log)
        found = self.world.told(found)
        if found is not None:
            with self.world.together():
                self._load(*found)
        self._check_replicas()
        self.saved_at, self._saved_time = self.trainer.nimg, time.monotonic()
        return found is not None

    def _load(self, path: Path, state: dict) -> None:
        own = _learned_options(self.config)
        other = {k: v for k, v in state.get("config", {}).items() if own.get(k) != v}
        if other:
            name, value = next(iter(other.items()))
            raise InputError(f"{path}: of another run: its {name} is {value}, not {own.get(name)}")
        try:
            self.stream.load_state_dict(state["data"])
            self.trainer.load_state_dict(state["trainer"])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            first = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: doesn't fit this run's networks or data ({first})") from None
        self.run.rewind_stats(self.trainer.nimg)
        self.run.log(f"continuing from {path.name}")

    def due(self) -> bool:
        """Whether the last one is `checkpoint_minutes` old."""
        minutes = (time.monotonic() - self._saved_time) / 60
        return self.config.checkpoint_minutes > 0 and minutes >= self.config.checkpoint_minutes

    def save(self) -> None:
        self._check_replicas()
        with self.world.together():
            if self.world.rank == 0:
                self._write(self.stream.state_dict())
        self.saved_at, self._saved_time = self.trainer.nimg, time.monotonic()

    def _write(self, position: dict) -> None:
        state = {"trainer": self.trainer.state_dict(), "data": position, "config": _learned_options(self.config)}
        save_checkpoint(self.run.path, state, self.trainer.nimg, self.config.keep)

    @contextlib.contextmanager
    def at_a_shortage(self) -> Iterator[None]:
        """Around a step: where memory runs out rank 0 saves from within it, to go on with the phase that failed."""
        before = self.stream.state_dict()
        try:
            yield
        except OutOfMemory:
            if self.world.rank == 0 and self.trainer.nimg != self.saved_at:
                self._write(before)
            raise

    def _check_replicas(self) -> None:
        trainer = self.trainer
        networks = (("G", trainer.G), ("D", trainer.D), ("G_ema", trainer.G_ema))
        tensors = {f"{name}.{k}": t for name, network in networks for k, t in network.state_dict().items()}
        self.world.check_replicas(tensors, f"kimg {trainer.nimg / 1000:.3f}")


def _ticks_passed(config: Config, trainer: BaseTrainer) -> range:
    """The ticks that the last step ended: a function of the images alone, so that a continued run ticks alike."""
    length = config.tick * 1000
    return range(int((trainer.nimg - trainer.last_batch) // length) + 1, int(trainer.nimg // length) + 1)


def _snapshot_due(config: Config, trainer: BaseTrainer) -> bool:
    ends = trainer.nimg == 0 or trainer.nimg >= config.kimg * 1000
    return ends or any(tick % config.snap == 0 for tick in _ticks_passed(config, trainer))


class _Progress:
    """The live line and the ticks' rows: speed, time to go, losses, memory."""

    def __init__(self, config: Config, run: RunDir | Onlooker, trainer: BaseTrainer):
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
        trainer = self.trainer
        stats = trainer.pop_stats()  # waits for the device: what it still had to do is of this tick
        now = time.monotonic()
        speed = (trainer.nimg - self.tick_nimg) / max(now - self.tick_time, 1e-9)
        self.losses = "".join(f"  {name} {stats[key]:.3f}" for name, key in _SHOWN.items() if key in stats)
        row = {"nimg": trainer.nimg, "kimg": trainer.nimg / 1000, "step": trainer.steps, "img_s": speed}
        row |= stats | {"skipped": trainer.skipped}
        row |= {"memory_gb": _memory_gb(trainer.device)}
        self.run.write_stats(row)
        self.run.log(self._line(speed))
        self.tick_time, self.tick_nimg = now, trainer.nimg

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
    """A signal came during `cut_short`."""


class _StopSignals:
    """Turns the first SIGINT or SIGTERM into a wish (`signal`) that the loop honours after its step; a second one ends
    the process as usual."""

    def __init__(self):
        self.signal = 0
        self._cut = False

    def cut_short(self, world: World, work: Callable[[], None]) -> None:
        """work(), which the first signal ends at once; for what can be lost without a change, and that no other rank
        waits for."""
        try:
            try:
                self._cut = world.size == 1
                work()
            finally:
                self._cut = False  # a signal can still strike before this
        except _CutShort:
            pass

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
