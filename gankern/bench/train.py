"""`gankern bench train`: the race. A training step's parts, timed for each provider on one card, one after another.

A provider is a function that makes a step (steps.py; the trainer's own: trained.py) whose parts run its way. Losses and
gradients are compared with plain eager's in float32 first, with one set of weights; what differs isn't timed.
"""

import contextlib
import dataclasses
import functools
import gc
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gankern.bench import peer, report, steps, trained
from gankern.bench.limit import Limit, limit
from gankern.bench.timing import Timing, quartiles
from gankern.errors import InputError, OutOfMemory
from gankern.files import replacing
from gankern.ops import _impl, use_impl
from gankern.training.options import Config

ALLOWED = 1e-2
"""Of the norm of all gradients, in float32: where rounding turns a leaky ReLU's sign a gradient jumps."""
SECONDS = 60.0
LEAST, MOST, WARM_UP = 5, 50, 2
CHECKED = 4  # images in the comparison, at most

Make = Callable[[Config, str], steps.Step]


def _under(impl: str | None, config: Config, device: str, compiled: bool = False) -> steps.Step:
    """A step whose parts run with one implementation of the operators, or with what is chosen by itself."""
    step = steps.build(config, device, compiled)

    def forced(run: Callable) -> Callable:
        def run_it() -> Tensor | None:
            with contextlib.nullcontext() if impl is None else use_impl(impl):
                return run()

        return run_it

    step.parts = {name: dataclasses.replace(part, run=forced(part.run)) for name, part in step.parts.items()}
    return step


PROVIDERS: dict[str, Make] = {
    "eager": functools.partial(_under, "reference"),
    "compile": functools.partial(_under, "reference", compiled=True),
    "fused": functools.partial(_under, None),
    "graphs": trained.step,
    "triton": functools.partial(_under, "triton"),
    "cuda": functools.partial(_under, "cuda"),
    "cudnn": functools.partial(_under, "cudnn"),
}
"""eager: operators in plain PyTorch. compile: those under torch.compile. fused: what is chosen on this GPU; graphs:
that in the trainer's own updates, as CUDA graphs; triton, cuda and cudnn: forced."""


@dataclass(frozen=True)
class Race:
    """What to time. `seconds`: for all the timing together, after which no provider is begun."""

    config: Config
    providers: tuple[str, ...]
    device: str = "cuda"
    seconds: float | None = None
    peer_repo: Path | None = None


def check(race: Race) -> None:
    """Raises InputError where it can't run on this machine."""
    if race.device == "cuda":
        if not torch.cuda.is_available():
            raise InputError("--device cuda: torch can use no CUDA GPU here; --device cpu takes a dry look")
        if _impl.interpreting():
            raise InputError("TRITON_INTERPRET=1 is set: kernels would run on the CPU; unset it to time them")
        return
    if race.peer_repo:
        raise InputError(f"--peer-repo {race.peer_repo}: it needs a CUDA GPU, not --device cpu")
    wanted = {"fused": None, "graphs": None, "triton": "triton", "cuda": "cuda", "cudnn": "cudnn"}
    for name in race.providers:
        impl = wanted.get(name, "reference")
        reason = "on a CPU it is eager" if impl is None else _impl.obstacle(impl, torch.device("cpu"))
        if reason:
            raise InputError(f"--providers {name}: can't run with --device cpu ({reason}), expected eager")


# -- numbers -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _math(tf32: bool, benchmark: bool) -> Iterator[None]:
    """PyTorch's settings for convolutions and matrix products, put back afterwards."""
    places = ((torch.backends.cudnn, "allow_tf32"), (torch.backends.cuda.matmul, "allow_tf32"))
    places += ((torch.backends.cudnn, "benchmark"),)
    before = [getattr(*place) for place in places]
    for (where, name), value in zip(places, (tf32, tf32, benchmark), strict=True):
        setattr(where, name, value)
    try:
        yield
    finally:
        for (where, name), value in zip(places, before, strict=True):
            setattr(where, name, value)


@contextlib.contextmanager
def _eager_random_numbers(name: str) -> Iterator[None]:
    """torch.compile draws other random numbers unless it is told not to."""
    if name != "compile":
        yield
        return
    from torch._inductor import config as inductor

    try:
        with inductor.patch(fallback_random=True):
            yield
    finally:
        torch._dynamo.reset()


def _for_comparing(config: Config) -> Config:
    """In float32, at most CHECKED images."""
    changed = {"precision": "fp32"}
    batch = min(CHECKED, steps.batch(config))
    if config.model == "progan":
        return dataclasses.replace(config, **changed, batch_schedule=f"4-:{batch}")
    return dataclasses.replace(
        config, **changed, batch=batch, batch_gpu=batch, mbstd_group=min(config.mbstd_group, batch)
    )


def difference(config: Config, device: str, make: Make) -> float:
    """The largest relative difference of a part's loss or gradients from plain eager's, in float32; of the trainer's
    updates, from plain eager ones of its own, and of what Adam did."""
    config = _for_comparing(config)
    found = trained.pairs(config, device) if make is trained.step else _pairs(config, device, make)
    return max(_apart(a, b) for a, b in found)


def _apart(a: Tensor, b: Tensor) -> float:
    """Of b from a, relative to its norm."""
    if a.shape != b.shape:
        return math.inf
    apart = (a - b).norm() / a.norm().clamp(min=0 if a.dim() else 1e-6)
    return apart.item() if apart.isfinite() else math.inf


def _pairs(config: Config, device: str, make: Make) -> Iterable[tuple[Tensor, Tensor]]:
    """The losses and the gradients, in plain eager and of `make`."""
    found = []
    for one in (PROVIDERS["eager"], make):
        torch.manual_seed(0)
        step = one(config, device)
        values = []
        for name in step.losses:
            torch.manual_seed(1)
            loss = step.parts[name].run().double()
            values += [loss, torch.cat([g.flatten() for g in step.gradients(name)])]
            step.clear()
        found.append(values)
    return zip(*found, strict=True)


# -- times -------------------------------------------------------------------------------------------------------------


def _once(run: Callable[[], object], device: str) -> float:
    """Milliseconds of one run that the host begins with nothing to wait for: the host's time counts where it is the
    longer, as in a step without a graph."""
    if device == "cpu":
        begun = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - begun)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def timed(run: Callable[[], object], device: str, seconds: float) -> Timing:
    """Median and quartiles of as many runs as the time allows, at least LEAST, after a warm-up."""
    warm = [_once(run, device) for _ in range(WARM_UP)][-1]
    rounds = int(min(max(1000 * seconds / max(warm, 1e-3), LEAST), MOST))
    return quartiles([_once(run, device) for _ in range(rounds)])


def _measure(race: Race, make: Make, seconds: float) -> dict:
    """All parts of one provider, and what they make of a step."""
    if race.device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # before it is made: what captures take, they take then
    torch.manual_seed(0)
    step, parts = make(race.config, race.device), {}
    for name, part in step.parts.items():
        step.prepare(name)
        figures = timed(part.run, race.device, seconds / len(step.parts))
        parts[name] = {"often": part.often, **dataclasses.asdict(figures)}
    ms = sum(row["often"] * row["median"] for row in parts.values())
    peak = torch.cuda.max_memory_allocated() if race.device == "cuda" else None
    row = {"parts": parts, "step_ms": ms, "s_per_kimg": ms / step.batch, "peak_bytes": peak}
    return row | ({"not_replayed": "; ".join(step.said)} if step.said else {})


def _provider(race: Race, name: str, seconds: float) -> dict:
    """Checked, then timed; or its failure, after which the others still run."""
    make, told = PROVIDERS[name], {}
    if name == "compile":
        parts = " and ".join(steps.DOUBLE[race.config.model])
        told["note"] = f"{parts} in eager: torch.compile refuses double backward; gankern's operators stay whole in it"
    if name == "graphs":
        told["note"] = trained.NOTE
    try:
        if name != "eager":
            with _math(tf32=False, benchmark=False), _eager_random_numbers(name):
                told["difference"] = difference(race.config, race.device, make)
            if not told["difference"] <= ALLOWED:
                return told | {"failure": f"WRONG by {told['difference']:.1e}, allowed {ALLOWED:.0e}; not timed"}
            _free(race.device)
        with _math(tf32=True, benchmark=True):
            return told | _measure(race, make, seconds)
    except Exception as error:
        return told | _failure(error)
    finally:
        _free(race.device)


def _peer(race: Race) -> dict:
    """The peer's loop, or its failure: what the others took isn't lost."""
    try:
        return peer.race(race.config, race.peer_repo, race.seconds)
    except Exception as error:
        return _failure(error)


def _failure(error: Exception) -> dict:
    if isinstance(error, torch.OutOfMemoryError | OutOfMemory):
        return {"failure": "out of memory"}
    first = (str(error).strip().splitlines() or [""])[0]
    return {"failure": f"FAILED: {type(error).__name__}: {first}"[:200]}


def _free(device: str) -> None:
    """Gives memory back; a step and its parts know each other, so that only the collector ends them."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _rated(row: dict, bound: Limit) -> dict:
    """A provider's seconds as images, FLOPs of the limit's account and share of the limit."""
    if "s_per_kimg" not in row:
        return row
    image = row["s_per_kimg"] / 1000
    rates = {"img_per_s": 1 / image, "tflops": bound.flops / image / 1e12, "percent": 100 * bound.seconds / image}
    return row | rates


def run(race: Race, say: Callable[[str], None], path: Path | None) -> dict:
    """Times every provider and prints a table; `path` is written after each of them, since a limit may end the run."""
    config = race.config
    bound = limit(config.model, config.resolution, config.channel_base)
    settings = dataclasses.asdict(config)
    result = {"machine": report.machine(), "device": race.device, "settings": settings, "providers": {}}
    result |= {"limit_per_image": dataclasses.asdict(bound), "seconds": race.seconds, "batch": steps.batch(config)}
    say(f"{config.model}, {config.resolution} px, channel_base {config.channel_base}, {config.precision}.")
    say("The parts of a step, without the data path; numbers are compared in float32 before anything is timed.")
    if race.device == "cpu":
        say("ON A CPU: a dry look, these times tell nothing of a GPU.")
    budget, begun = race.seconds or SECONDS, time.monotonic()
    # at the end those that take long: eager, and torch.compile, which compiles for minutes
    for name in sorted(race.providers, key=("eager", "compile").__contains__):
        if time.monotonic() - begun > budget:
            result["providers"][name] = {"failure": f"left out after {budget:g} s"}
        else:
            row = _provider(race, name, budget / len(race.providers))
            result["providers"][name] = _rated(row, bound)
        _save(result, path)
    if race.peer_repo:
        result["providers"]["stylegan3"] = _rated(_peer(race), bound)
        _save(result, path)
    say(table(result))
    return result


def wrong(result: dict) -> bool:
    """Whether a provider's numbers were wrong or it failed; want of time or memory isn't that."""
    return any(row.get("failure", "").startswith(("WRONG", "FAILED")) for row in result["providers"].values())


def _save(result: dict, path: Path | None) -> None:
    if path:
        with replacing(path) as file:
            Path(file).write_text(json.dumps(result, indent=1) + "\n")


# -- table and plot ----------------------------------------------------------------------------------------------------


def table(result: dict) -> str:
    """A line a provider: milliseconds of each part (median), then the weighted step; and what is to be said of them."""
    names = list(dict.fromkeys(part for row in result["providers"].values() for part in row.get("parts", {})))
    rows, notes = [], []
    for provider, row in result["providers"].items():
        notes += [f"{provider}: {row[key]}" for key in ("failure", "not_replayed", "note") if key in row]
        if "s_per_kimg" not in row:
            continue
        parts = row.get("parts", {})
        cells = [f"{parts[name]['median']:.2f}" if name in parts else None for name in names]
        figures = [
            f"{row['s_per_kimg']:.3f}",
            f"{row['img_per_s']:.1f}",
            f"{row['tflops']:.1f}",
            f"{row['percent']:.1f}%",
        ]
        peak = None if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.2f}"
        rows.append([f"{provider}, not replayed" if "not_replayed" in row else provider, *cells, *figures, peak])
    header = ["ms (median)", *names, "s/kimg", "img/s", "TFLOP/s", "of the limit", "peak GB"]
    if "stylegan3" in result["providers"]:
        notes.append("stylegan3: its own whole loop by its own clock, the data path included")
    return "\n".join([report.columns(header, rows), *notes])


def plot(result: dict, folder: Path) -> Path:
    """Seconds per thousand images, stacked by part, with the limit as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    timed_rows = {name: row for name, row in result["providers"].items() if "s_per_kimg" in row}
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    names = list(dict.fromkeys(part for row in timed_rows.values() for part in row.get("parts", {"whole loop": 0})))
    below = dict.fromkeys(timed_rows, 0.0)
    for name in names:
        heights = [_height(row, name) for row in timed_rows.values()]
        axes.bar(list(timed_rows), heights, 0.6, bottom=list(below.values()), label=name)
        below = {provider: below[provider] + h for provider, h in zip(timed_rows, heights, strict=True)}
    settings, bound = result["settings"], result["limit_per_image"]
    axes.axhline(1000 * bound["seconds"], color="black", linestyle="--", label="limit (H100)")
    where = result["machine"].get("gpu", "a CPU")
    axes.set(
        ylabel="s/kimg", title=f"{settings['model']} {settings['resolution']} px, {settings['precision']} on {where}"
    )
    axes.legend(fontsize=8)
    path = folder / f"train_{settings['model']}_{settings['resolution']}.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _height(row: dict, part: str) -> float:
    """A part's share of the seconds per thousand images."""
    if "parts" not in row:
        return row["s_per_kimg"] if part == "whole loop" else 0.0
    found = row["parts"].get(part)
    return row["s_per_kimg"] * found["often"] * found["median"] / row["step_ms"] if found else 0.0
