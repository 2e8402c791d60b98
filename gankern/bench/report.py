"""What a benchmark writes down: rows, the machine they were measured on, a table, JSON and plots."""

import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from gankern import __version__
from gankern.errors import InputError
from gankern.files import replacing


@dataclass(frozen=True)
class Row:
    """One provider's figures for one case; times in milliseconds, None where nothing was timed, `note` telling why.
    `key`: the shape class that the implementation is chosen by."""

    op: str
    case: str
    dtype: str
    layout: str
    batch: int
    mode: str
    provider: str
    ms: float | None = None
    q1: float | None = None
    q3: float | None = None
    runs: int = 0
    bytes: int | None = None
    gbps: float | None = None
    percent: float | None = None
    peak: int | None = None
    error: float | None = None
    limit: float | None = None
    note: str = ""
    key: str = ""


@dataclass
class Report:
    """A benchmark's rows with all that is needed to quote them."""

    machine: dict
    settings: dict
    rates: dict = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """As JSON, in one piece or not at all."""
        with replacing(path) as file:
            Path(file).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Report":
        """What `save` wrote."""
        data = json.loads(path.read_text())
        return cls(**data | {"rows": [Row(**row) for row in data["rows"]]})


def percent_of(gbps: float | None, copy: float | None) -> float | None:
    """How much of a copy's bandwidth."""
    return None if gbps is None or not copy else 100 * gbps / copy


def machine() -> dict:
    """GPU, driver, versions and commit, as a result needs them to be quoted."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    found = {"gankern": __version__, "commit": commit(), "torch": torch.__version__, "triton": triton_version}
    found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "python": platform.python_version()}
    if torch.cuda.is_available():
        p = torch.cuda.get_device_properties(None)
        found |= {"gpu": p.name, "arch": f"sm_{p.major}{p.minor}", "memory": p.total_memory, "driver": driver()}
    return found | {"system": platform.platform()}


def commit() -> str | None:
    """The commit of the source tree, with "-dirty" where it was changed; outside of one what GANKERN_COMMIT says."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # installed: a repository around it is another's
        return os.environ.get("GANKERN_COMMIT")
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


def driver() -> str | None:
    """The NVIDIA driver's version, where the system tells."""
    try:
        found = re.search(r"Module\D*?(?:for \S+)?\s+(\d+\.\d[\d.]*)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return found[1] if found else None


# -- tables -----------------------------------------------------------------------------------------------------------


def columns(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A plain table: the first column to the left, the others to the right."""
    cells = [list(header), *([_text(value) for value in row] for row in rows)]
    wide = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, wide, strict=True))
        )
        lines.append("  ".join([first, *rest]).rstrip())
    return "\n".join(lines)


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def table(rows: Sequence[Row]) -> str:
    """Times, bandwidth and the speed over eager, grouped by operator."""
    eager = {_place(row): row.ms for row in rows if row.provider == "eager" and row.ms}
    lines = []
    for row in rows:
        place = f"{row.op} {row.case} x{row.batch} {row.dtype} {row.layout} {row.mode}"
        if row.ms is None:
            lines.append([place, row.provider, *[None] * 6, row.note])
            continue
        over = f"{eager[_place(row)] / row.ms:.2f}x" if _place(row) in eager else None
        spread = f"{row.q1:.3f}-{row.q3:.3f}"
        peak = None if row.peak is None else round(row.peak / 2**20)
        gbps = None if row.gbps is None else round(row.gbps)
        percent = None if row.percent is None else f"{row.percent:.0f}%"
        lines.append([place, row.provider, f"{row.ms:.3f}", spread, gbps, percent, over, peak, row.note])
    header = ["case", "provider", "ms", "quartiles", "GB/s", "of copy", "over eager", "peak MB", ""]
    return columns(header, lines)


def _place(row: Row) -> tuple:
    return row.op, row.case, row.dtype, row.layout, row.batch, row.mode


def summary(rows: Sequence[Row]) -> str:
    """One line an operator, mode and provider: how near to a copy, and how often as fast as eager and torch.compile
    (geometric means); what is wrong and what is slower than either is counted."""
    times = {(_place(row), row.provider): row.ms for row in rows if row.ms}
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.op, row.mode, row.provider), []).append(row)
    lines = []
    for (op, mode, provider), mine in groups.items():
        timed = [row for row in mine if row.ms]
        percents = [row.percent for row in timed if row.percent is not None]
        over = [_ratios(timed, times, other) for other in ("eager", "compile")]
        slower = sum(ratio < 0.98 for ratios in over for ratio in ratios)
        means = [f"{statistics.geometric_mean(r):.2f}x" if r else None for r in over]
        near = [f"{statistics.median(percents):.0f}%", f"{min(percents):.0f}%"] if percents else [None, None]
        wrong = sum(row.note.startswith(("WRONG", "FAILED")) for row in mine)
        lines.append([f"{op} {mode}", provider, len(timed), *near, *means, slower, wrong])
    header = [
        "operator, mode",
        "provider",
        "cases",
        "of copy",
        "worst",
        "over eager",
        "over compile",
        "slower",
        "wrong",
    ]
    return columns(header, lines)


def _ratios(rows: Sequence[Row], times: dict, other: str) -> list[float]:
    return [times[_place(row), other] / row.ms for row in rows if (_place(row), other) in times]


def facts_table(facts: Sequence) -> str:
    """Compile-time facts, one line a kernel, case and architecture."""
    header = ["kernel, case", "setting", "sm", "registers", "stack", "shared", "loads", "stores", "MB moved"]
    lines = []
    for f in facts:
        if f.failure:
            lines.append(
                [f"{f.kernel}, {f.case} {f.dtype} {f.layout}", f.config, f.arch, "DOESN'T COMPILE", *[None] * 5]
            )
            continue
        widths = [" ".join(f"{n}x{bits}" for bits, n in sorted(w.items(), key=_bits)) for w in (f.loads, f.stores)]
        size = f"{f.bytes / 1e6:.1f}"
        place = f"{f.kernel}, {f.case} {f.dtype} {f.layout}"
        lines.append([place, f.config, f.arch, f.registers, f.stack, f.shared, *widths, size])
    return columns(header, lines)


def _bits(item: tuple[str, int]) -> int:
    return -int(item[0])


# -- plots ------------------------------------------------------------------------------------------------------------


def check_plots() -> None:
    """Raises InputError where nothing can be drawn: better before the benchmark than after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("--plot needs matplotlib: pip install 'gankern[bench]'")


def plot(report: Report, folder: Path) -> list[Path]:
    """One picture an operator, dtype, layout, batch and mode: milliseconds of each provider, case by case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[tuple, list[Row]] = {}
    for row in report.rows:
        if row.ms is not None:
            groups.setdefault((row.op, row.dtype, row.layout, row.batch, row.mode), []).append(row)
    written = []
    for (op, *rest), rows in groups.items():
        names = list(dict.fromkeys(row.case for row in rows))
        providers = list(dict.fromkeys(row.provider for row in rows))
        figure, axes = pyplot.subplots(figsize=(max(6, len(names)), 4), layout="constrained")
        for i, provider in enumerate(providers):
            mine = {row.case: row for row in rows if row.provider == provider}
            at = [names.index(case) + (i - (len(providers) - 1) / 2) * 0.8 / len(providers) for case in mine]
            axes.bar(at, [row.ms for row in mine.values()], 0.8 / len(providers), label=provider)
        axes.set(title=f"{op} {' '.join(map(str, rest))} on {report.machine.get('gpu')}", ylabel="ms", yscale="log")
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
        axes.legend()
        path = folder / f"{'_'.join(map(str, (op, *rest)))}.png"
        figure.savefig(path, dpi=120)
        pyplot.close(figure)
        written.append(path)
    return written
