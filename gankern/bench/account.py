"""`gankern bench traffic`: launches, bytes, FLOPs, memory and time at the limit of a training step, counted."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gankern.bench import report, steps
from gankern.bench.limit import BYTES, FLOPS, Limit, limit
from gankern.bench.traffic import Account, count
from gankern.files import replacing
from gankern.ops import use_impl
from gankern.training.options import Config

IMPLS = {"reference": "reference", "fused": "triton", "cudnn": "cudnn"}
"""What `--impl` names, and what it forces."""
TOP = 14
FIELDS = ("launches", "bytes", "flops", "seconds")


@dataclass(frozen=True)
class Counted:
    """The accounts of a step's parts, and how often each is in a step."""

    batch: int
    parts: dict[str, tuple[float, Account]]

    def operators(self, name: str | None = None) -> dict[str, dict[str, float]]:
        """{operator: {launches, bytes, flops, seconds}} of a part, or of the weighted step; the slowest first."""
        found: dict[str, Counter] = {}
        for part, (often, account) in self.parts.items():
            if name not in (None, part):
                continue
            weight = often if name is None else 1
            for call in account.calls:
                row = found.setdefault(call.name, Counter())
                for key, value in zip(FIELDS, (1, call.bytes, call.flops, call.seconds), strict=True):
                    row[key] += weight * value
        return {op: dict(row) for op, row in sorted(found.items(), key=lambda item: -item[1]["seconds"])}

    def total(self, name: str | None = None) -> dict[str, float]:
        """The sums of a part, or of the weighted step, and the most memory."""
        operators = self.operators(name).values()
        peaks = [account.peak_bytes for part, (_, account) in self.parts.items() if name in (None, part)]
        return {key: sum(row[key] for row in operators) for key in FIELDS} | {"peak_bytes": max(peaks)}


def counted(step: steps.Step, impl: str) -> Counted:
    """The account of a step whose networks lie on the meta device."""
    parts = {}
    with use_impl(IMPLS[impl]):
        for name, part in step.parts.items():
            step.prepare(name)
            parts[name] = part.often, count(part.run)
    return Counted(step.batch, parts)


def _stages(config: Config) -> Iterator[tuple[int, Callable[[], steps.Step]]]:
    """(resolution, its step), the last stage at the end."""
    if config.model == "stylegan2":
        yield config.resolution, partial(steps.stylegan2, config, "meta")
        return
    for resolution in config.schedule().batches:
        yield resolution, partial(steps.progan, config, "meta", resolution=resolution)


def run(config: Config, impls: tuple[str, ...], say: Callable[[str], None], path: Path | None) -> dict:
    """Counts every stage with each implementation, prints tables and returns (and writes) all of it."""
    say(f"{config.model}, {config.resolution} px, channel_base {config.channel_base}, {config.precision}.")
    say("An account on meta tensors, not a timing: what PyTorch and our kernels launch and move, by their shapes;")
    say(f"time is at the limit, {FLOPS / 1e12:.0f} TFLOP/s or {BYTES / 1e12:.1f} TB/s, launch by launch.")
    result = {"machine": report.machine(), "settings": dataclasses.asdict(config), "stages": {}}
    rates = {"flops": FLOPS, "bytes": BYTES}
    result |= {"account": "counted on meta tensors, not timed", "rates_per_second": rates}
    rows = []
    for resolution, make in _stages(config):
        bound = limit(config.model, resolution, config.channel_base)
        found = {impl: counted(make(), impl) for impl in impls}
        batch = next(iter(found.values())).batch
        result["stages"][resolution] = {"batch": batch, "limit_per_image": dataclasses.asdict(bound)} | {
            impl: _as_json(this, bound) for impl, this in found.items()
        }
        rows += _step_rows(resolution, found, bound)
    say("\nthe weighted step")
    say(report.columns(_STEP, rows))
    say(f"\nits parts at {resolution} px, and how often each runs in a step")
    say(_parts_table(found))
    for impl, this in found.items():
        say(f"\nthe weighted step by operator, {impl}: the {TOP} that take longest at the limit")
        say(_operators_table(this))
    if path:
        with replacing(path) as file:
            Path(file).write_text(json.dumps(result, indent=1) + "\n")
    return result


def _as_json(this: Counted, bound: Limit) -> dict:
    parts = {
        name: {"often": often, **this.total(name), "operators": this.operators(name)}
        for name, (often, _) in this.parts.items()
    }
    step, n = this.total(), this.batch
    per_image = {key: step[key] / n for key in ("bytes", "flops", "seconds", "peak_bytes")}
    ratio = {key: per_image[key] / getattr(bound, key) for key in ("bytes", "flops", "seconds")}
    return {"parts": parts, "step": step, "per_image": per_image, "times_the_limit": ratio}


# -- tables ------------------------------------------------------------------------------------------------------------


_STEP = ("", "batch", "launches", "GB/img", "TFLOP/img", "s/kimg at the limit", "x bytes", "x time", "peak GB/img")


def _step_rows(resolution: int, found: dict[str, Counted], bound: Limit) -> list[list]:
    """A line an implementation, and the limit's. Beside bytes and time: how many times the limit's they are."""
    rows = []
    for impl, this in found.items():
        step, n = this.total(), this.batch
        size, time = step["bytes"] / n, step["seconds"] / n
        row = [f"{resolution} px {impl}", n, round(step["launches"]), f"{size / 1e9:.2f}"]
        row += [f"{step['flops'] / n / 1e12:.2f}", f"{1000 * time:.2f}"]
        rows.append(
            [*row, f"{size / bound.bytes:.1f}", f"{time / bound.seconds:.1f}", f"{step['peak_bytes'] / n / 1e9:.2f}"]
        )
    least = [f"{bound.bytes / 1e9:.2f}", f"{bound.flops / 1e12:.2f}", f"{1000 * bound.seconds:.2f}"]
    return [*rows, [f"{resolution} px limit", None, None, *least, 1, 1, None]]


def _parts_table(found: dict[str, Counted]) -> str:
    rows = []
    for name in next(iter(found.values())).parts:
        for impl, this in found.items():
            often, _ = this.parts[name]
            total, n = this.total(name), this.batch
            figures = [f"{total['bytes'] / n / 1e9:.3f}", f"{total['flops'] / n / 1e12:.3f}"]
            figures += [f"{1000 * total['seconds'] / n:.3f}", f"{total['peak_bytes'] / n / 1e9:.2f}"]
            rows.append([f"{name} {impl}", f"{often:g}", total["launches"], *figures])
    return report.columns(["", "often", "launches", "GB/img", "TFLOP/img", "ms/img", "peak GB/img"], rows)


def _operators_table(this: Counted) -> str:
    rows, n = [], this.batch
    operators = list(this.operators().items())
    rest = Counter()
    for _, row in operators[TOP:]:
        rest.update(row)
    for name, row in [*operators[:TOP], *([(f"{len(operators) - TOP} more", rest)] if rest else [])]:
        figures = [
            f"{row['bytes'] / n / 1e9:.3f}",
            f"{row['flops'] / n / 1e12:.3f}",
            f"{1000 * row['seconds'] / n:.3f}",
        ]
        rows.append([name, f"{row['launches']:.0f}", *figures])
    return report.columns(["", "launches", "GB/img", "TFLOP/img", "ms/img"], rows)
