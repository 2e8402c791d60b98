"""`gankern bench ops`: every chosen case, checked and then timed on a GPU; without one, what can be known here."""

import functools
import importlib.util
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch._functorch.config as functorch_config

from gankern.bench import cases, check, compiled, report
from gankern.bench.cases import Case
from gankern.bench.report import Report, Row
from gankern.bench.timing import Clock, bandwidth, peak_bytes
from gankern.errors import InputError
from gankern.ops import _impl, _settings

PROVIDERS = ("eager", "compile", "triton", "triton_gemm", "cuda", "cudnn", "reference")
DEVICE = "cuda"
QUICK_BYTES = 64 * 2**20
ORDER = {"forward": 0, "backward": 1, "both": 1, "double": 2}


@dataclass(frozen=True)
class Plan:
    """What to benchmark. `quick`: only cases whose ideal forward pass moves over 64 MB, and fewer runs; `seconds`:
    when no further case is begun."""

    ops: tuple[str, ...]
    networks: tuple[str, ...] = ("config-f-1024",)
    batches: tuple[int, ...] = (8,)
    dtypes: tuple[str, ...] = ("bf16",)
    layouts: tuple[str, ...] = ("nhwc",)
    modes: tuple[str, ...] = ("forward", "backward")
    providers: tuple[str, ...] = ("eager", "compile", "triton")
    quick: bool = False
    seconds: float | None = None


@dataclass(frozen=True)
class Spot:
    """A case with its batch, dtype and layout."""

    case: Case
    batch: int
    dtype: str
    layout: str

    def __str__(self) -> str:
        return f"{self.case.op} {self.case.label} x{self.batch} {self.dtype} {self.layout}"

    def sizes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """x and y on the meta device."""
        tensors = self.case.tensors(self.dtype, self.layout, self.batch, "meta")
        with torch.no_grad():
            return tensors["x"], self.case.eager(tensors)


def check_names(option: str, text: str, known) -> tuple[str, ...]:
    """The names of a comma-separated option, or all of them; raises InputError for one that isn't known."""
    names = tuple(known) if text == "all" else tuple(dict.fromkeys(n for n in text.split(",") if n))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise InputError(f"{option} {text}: expected a list of {', '.join(known)}, or all")
    return names


def check_batches(text: str) -> tuple[int, ...]:
    """--batch; raises InputError."""
    if not all(n.isdigit() and int(n) > 0 for n in text.split(",")):
        raise InputError(f"--batch {text}: expected whole numbers >= 1, such as 8 or 1,8,32")
    return tuple(int(n) for n in text.split(","))


def spots(plan: Plan) -> list[Spot]:
    """Every case of a plan, each once, as they are run: of quick ones each operator's largest first."""
    found: dict[Spot, int] = {}
    for op, network in itertools.product(plan.ops, plan.networks):
        for case, batch, dtype, layout in itertools.product(
            cases.network_cases(op, network), plan.batches, plan.dtypes, plan.layouts
        ):
            if op == "minibatch_stddev" and batch > 4 and batch % 4:
                continue
            spot = Spot(case, batch, dtype, layout if case.has_layout else plan.layouts[0])
            found[spot] = case.least_bytes("forward", *spot.sizes())
    if not plan.quick:
        return list(found)
    large = sorted((spot for spot in found if found[spot] >= QUICK_BYTES), key=found.__getitem__, reverse=True)
    # the operators in turn, so that a limit on time leaves none of them out
    met: Counter[str] = Counter()
    place = {}
    for spot in large:
        place[spot] = met[spot.case.op]
        met[spot.case.op] += 1
    return sorted(large, key=place.__getitem__)


# -- on a GPU ---------------------------------------------------------------------------------------------------------


def on_gpu(plan: Plan, say: Callable[[str], None], save: Callable[[Report], None]) -> Report:
    """Checks and times every case on the current CUDA device; `save` is given the report after each of them."""
    if DEVICE == "cuda" and _impl.interpreting():
        raise InputError("TRITON_INTERPRET=1 is set: kernels would run on the CPU; unset it to time them")
    begun = time.monotonic()
    functorch_config.donated_buffer = False  # else a compiled backward can't be run twice
    result = Report(report.machine(), asdict(plan) | {"seed": int(time.time())})
    clock = Clock(budget=50.0 if plan.quick else 200.0)
    result.rates = {"copy_gbps": clock.copy_rate(), "matmul_tflops": clock.matmul_rate()}
    say(f"copy {result.rates['copy_gbps']:.0f} GB/s, bf16 matrix product {result.rates['matmul_tflops']:.0f} TFLOP/s")
    for i, spot in enumerate(spots(plan)):
        if plan.seconds is not None and time.monotonic() - begun > plan.seconds:
            result.left_out.append(str(spot))
            continue
        rows = list(_measure(spot, plan, clock, result.rates["copy_gbps"], result.settings["seed"] + i))
        result.rows += rows
        say(report.table(rows))
        save(result)
    if result.left_out:
        say(f"{len(result.left_out)} cases left out after {plan.seconds:.0f} s: {', '.join(result.left_out)}")
    return result


def _measure(spot: Spot, plan: Plan, clock: Clock, copy: float, seed: int) -> Iterator[Row]:
    """The rows of one case: every provider is checked, then timed in every mode."""
    place = {"op": spot.case.op, "case": spot.case.label, "dtype": spot.dtype, "layout": spot.layout}
    place |= {"batch": spot.batch, "key": _settings.shape_class(spot.sizes()[0])}
    calls = {name: check.provider(spot.case, name) for name in plan.providers}
    verdicts = _verdicts(spot, calls, plan.modes, seed)
    for name, mode in itertools.product(plan.providers, plan.modes):
        row = functools.partial(Row, **place, mode=mode, provider=name)
        if check.missing(spot.case, name, mode):
            yield row(note=check.missing(spot.case, name, mode))
            continue
        verdict = verdicts[name]
        if isinstance(verdict, str):
            yield row(note=verdict)
            continue
        row = functools.partial(row, error=verdict.error, limit=verdict.limit)
        if not verdict.ok:
            note = f"WRONG: {verdict.what} errs by {verdict.error:.2g}, allowed {verdict.limit:.2g}; not timed"
            yield row(note=note)
            continue
        try:
            yield row(**_timed(spot, calls[name], mode, clock, copy, seed))
        except Exception as error:
            yield row(note=_failure(error))
        torch.cuda.empty_cache()


def _failure(error: Exception) -> str:
    """A provider's exception as a row tells it: the others still run."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"FAILED: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]


def _verdicts(spot: Spot, calls: dict, modes: tuple[str, ...], seed: int) -> dict[str, check.Verdict | str]:
    """The gate's verdict on each provider that runs, to the highest order that is timed; or what it raised."""
    orders = {n: [ORDER[mode] for mode in modes if not check.missing(spot.case, n, mode)] for n in calls}
    orders = {name: max(found) for name, found in orders.items() if found}
    verdicts, gate = {}, None
    for name, order in sorted(orders.items(), key=lambda item: item[1]):
        try:
            if gate is None or gate.order != order:
                gate = None  # frees the one before
                gate = check.Gate(spot.case, spot.dtype, spot.layout, gate_batch(spot), DEVICE, order, seed)
            # plain PyTorch isn't poisoned: in another mode of torch another function would be compiled
            verdicts[name] = gate.check(calls[name], poison=name not in ("eager", "compile"))
        except Exception as error:
            verdicts[name] = _failure(error)
        torch.cuda.empty_cache()
    return verdicts


def gate_batch(spot: Spot) -> int:
    """The batch to check at: the case's own where a dozen float64 copies of x fit, else half of it, and so on."""
    batch, numel = spot.batch, max(t.numel() for t in spot.sizes())
    free = torch.cuda.mem_get_info()[0]
    while batch > 4 and 12 * 8 * numel * batch // spot.batch > free:
        batch //= 2
    return batch


def _timed(spot: Spot, call: check.Call, mode: str, clock: Clock, copy: float, seed: int) -> dict:
    """The figures of one row."""
    generator = torch.Generator(DEVICE).manual_seed(seed + 1)
    x, y = spot.sizes()
    large = x.numel() * x.element_size() > 2**28
    steps = []
    for _ in range(2 if large else 4):
        tensors = spot.case.tensors(spot.dtype, spot.layout, spot.batch, DEVICE, generator)
        steps.append(check.step(call, tensors, mode, generator))
    timing = clock.time(steps)
    size = spot.case.least_bytes(mode, x, y)
    gbps = None if size is None else bandwidth(size, timing.median)
    found = {"ms": timing.median, "q1": timing.q1, "q3": timing.q3, "runs": timing.runs, "bytes": size, "gbps": gbps}
    return found | {"percent": report.percent_of(gbps, copy), "peak": peak_bytes(steps[0])}


# -- without one ------------------------------------------------------------------------------------------------------


def without_gpu(plan: Plan, say: Callable[[str], None]) -> Report:
    """Correctness in Triton's interpreter on tiny shapes, then compile-time facts; each in a process of its own."""
    result = Report(report.machine(), asdict(plan))
    if importlib.util.find_spec("triton") is None:
        say("triton isn't installed: there are no kernels to check or compile.")
        return result
    ops = [op for op in plan.ops if "triton" in cases.available(op)]
    job = json.dumps([ops, plan.networks, plan.dtypes, plan.layouts])
    process = compiled.child("gankern.bench.check", job, interpret=True)
    out, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the kernels failed in the interpreter:\n{errors[-2000:]}")
    for line in out.splitlines():
        found = json.loads(line)
        place = {k: found[k] for k in ("op", "case", "dtype", "layout", "batch")}
        note = "right" if found["ok"] else f"WRONG: {found['what']}"
        accuracy = {"error": found["error"], "limit": found["limit"]}
        result.rows.append(Row(**place, mode="double", provider="triton", note=note, **accuracy))
    say("Correctness in the interpreter, value to second order (error of the worst output, and what is allowed):")
    header = ["case", "error", "allowed", ""]
    say(
        report.columns(
            header, [[f"{r.op} {r.case} {r.dtype} {r.layout}", r.error, r.limit, r.note] for r in result.rows]
        )
    )
    say("\nWhat the compiler makes of the kernels (stack: spills, in bytes; loads and stores: count x bits):")
    facts = compiled.facts(ops, (plan.dtypes, plan.layouts), processes=2)
    say(report.facts_table(facts))
    result.settings["facts"] = [asdict(fact) for fact in facts]
    return result


def save_to(path: str | None) -> Callable[[Report], None]:
    """A function that saves a report there, if anywhere; raises InputError where that can't work."""
    if path is None:
        return lambda result: None
    if not Path(path).parent.is_dir():
        raise InputError(f"--out {path}: the folder {Path(path).parent} isn't there")
    return lambda result: result.save(Path(path))
