"""`gankern bench select`: which implementation of an operator runs for which shapes, from committed results.

For each GPU, operator and shape class: the sum of the median times of all modes of all cases that were timed with every
implementation. The default (Triton) stays unless another wins by more than noise.
"""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from gankern.bench.report import Report, Row
from gankern.bench.tune import GAIN
from gankern.errors import InputError

DEFAULT = "triton"
OTHERS = ("cuda",)


def _fastest(rows: list[Row]) -> str | None:
    """The implementation to run for one class; None where fewer than two were timed over the same cases."""
    cases: dict[tuple, dict[str, float]] = defaultdict(dict)
    for row in rows:
        cases[row.case, row.batch, row.mode][row.provider] = row.ms
    timed = {name: [case for case, ms in cases.items() if name in ms] for name in (DEFAULT, *OTHERS)}
    rivals = [name for name in OTHERS if timed[name]]
    common = [case for case in timed[DEFAULT] if all(name in cases[case] for name in rivals)]
    if not rivals or not common:
        return None
    total = {name: sum(cases[case][name] for case in common) for name in (DEFAULT, *rivals)}
    best = min(rivals, key=total.__getitem__)
    return best if total[best] < GAIN * total[DEFAULT] else DEFAULT


def select(reports: Iterable[Report]) -> dict[str, dict[str, dict[str, str]]]:
    """{GPU: {"impl OP": {shape class: implementation}}}; rows without a time or a class count for nothing."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for report in reports:
        for row in report.rows:
            if row.ms is not None and row.key and "gpu" in report.machine:
                groups[report.machine["gpu"], row.op, row.key].append(row)
    found: dict[str, dict[str, dict[str, str]]] = {}
    for (gpu, op, key), rows in groups.items():
        if best := _fastest(rows):
            found.setdefault(gpu, {}).setdefault(f"impl {op}", {})[key] = best
    return found


def load(paths: Iterable[Path]) -> list[Report]:
    """The reports of `gankern bench ops` among these files and the JSON files in these folders, oldest first: a newer
    time replaces an older one of the same case. InputError for a path that isn't there."""
    files = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: there is no such file or folder")
        files += sorted(path.glob("ops_*.json")) if path.is_dir() else [path]
    try:
        reports = [Report.load(file) for file in files]
        return sorted(reports, key=lambda report: report.settings["seed"])  # the time when it began
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{paths}: not results of gankern bench ops ({error})") from error
