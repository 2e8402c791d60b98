"""Numbers before speed: a provider's value and gradients against plain PyTorch in float64.

A provider may err at most twice as far from the truth as plain PyTorch in the same dtype does, or one unit of
rounding. Also what `forward`, `backward`, `both` and `double` mean, as functions that a clock can run.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from gankern.bench import cases
from gankern.bench.cases import Case, Tensors
from gankern.ops import _impl

SANE = {"bf16": 0.05, "fp16": 0.02, "fp32": 0.01, "fp64": 1e-9}
"""How far plain PyTorch itself may be from float64 before something is wrong with the case."""

ROUNDING = {"bf16": 2**-8, "fp16": 2**-11, "fp32": 1e-6, "fp64": 1e-12}
"""What any provider may err: one rounding of the output; in float32 the rounding of a few sums."""

KINK = 0.1
"""Where |y| is less, no gradient arrives and none is compared: a leaky ReLU's slope jumps, and rounding decides the
side."""

FEW = 16
"""A sum that cancels may be tiny: the error of so few numbers is measured by dy at least."""

Call = Callable[[Tensors], Tensor]


def provider(case: Case, name: str) -> Call:
    """What to call: plain PyTorch ("eager"), the same compiled ("compile"), or one of the operator's
    implementations."""
    if name == "eager":
        return case.eager
    if name == "compile":
        torch._dynamo.reset()  # every case is a new shape of one function, which dynamo gives up on after eight
        eager, site = cases.OPS[case.op].eager, case.site
        return torch.compile(lambda tensors: eager(site, tensors), dynamic=False)
    return lambda tensors: case.call(tensors, name)


def missing(case: Case, name: str, mode: str) -> str | None:
    """Why a provider can't run a mode; None where it can."""
    if name == "compile":
        return "torch.compile has no double backward" if mode == "double" else None
    if name not in ("eager", "reference", *cases.available(case.op)):
        return f"{case.op} has no {name} implementation"
    if name != "eager" and torch.cuda.is_available():
        return _impl.obstacle(name, torch.device("cuda", torch.cuda.current_device()))
    return None


# -- modes ------------------------------------------------------------------------------------------------------------


def noise_like(t: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal, in t's dtype and memory format."""
    return torch.empty_like(t).normal_(generator=generator)


def step(call: Call, tensors: Tensors, mode: str, generator: torch.Generator | None = None) -> Callable[[], object]:
    """What is timed, on these tensors: what a mode needs beforehand is computed here, once."""
    wrt = cases.wanted(tensors)
    if mode == "forward":
        return lambda: call(tensors)
    y = call(tensors)
    dy = noise_like(y.detach(), generator)
    if mode == "backward":
        return lambda: torch.autograd.grad(y, wrt, dy, retain_graph=True)
    if mode == "both":
        del y
        return lambda: torch.autograd.grad(call(tensors), wrt, dy)
    dy.requires_grad_()
    first = torch.autograd.grad(y, wrt, dy, create_graph=True)
    v = [noise_like(g.detach(), generator) for g in first]
    return lambda: torch.autograd.grad(first, [dy, *wrt], v, retain_graph=True, allow_unused=True)


# -- the gate ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """The worst of a provider's outputs: its relative error, what was allowed, and which it is."""

    ok: bool
    error: float
    limit: float
    what: str


class Gate:
    """Fresh random tensors of a case, the truth about them in float64, and how far plain PyTorch is from it."""

    def __init__(self, case: Case, dtype: str, layout: str, batch: int, device, order: int = 1, seed: int = 0):
        generator = torch.Generator(device).manual_seed(seed)
        self.case, self.dtype, self.order = case, dtype, order
        self.tensors = case.tensors(dtype, layout, batch, device, generator)
        exact = {k: t.detach().double().requires_grad_(t.requires_grad) for k, t in self.tensors.items()}
        with torch.no_grad():
            y = case.eager(self.tensors)
            self.keep = case.eager(exact).abs() >= KINK
        self.dy = noise_like(y, generator).mul_(self.keep)
        self.v = [noise_like(t.detach(), generator) for t in cases.wanted(self.tensors)]
        self.truth = self._outputs(case.eager, exact, self.dy.double(), [v.double() for v in self.v])
        self.allowed = self._errors(self._outputs(case.eager, self.tensors, self.dy, self.v))

    def check(self, call: Call, poison: bool = False) -> Verdict:
        """Whether a provider's numbers are right. `poison`: what it doesn't write must show."""
        with _poisoned() if poison else contextlib.nullcontext():
            errors = self._errors(self._outputs(call, self.tensors, self.dy, self.v))
        floor = ROUNDING[self.dtype]
        limits = {name: max(2 * self.allowed.get(name, 0.0), floor) for name in errors}
        worst = max(errors, key=lambda name: errors[name] / limits[name] if errors[name] >= 0 else float("inf"))
        error, limit = errors[worst], limits[worst]
        return Verdict(0 <= error <= limit and max(self.allowed.values()) <= SANE[self.dtype], error, limit, worst)

    def _outputs(self, call: Call, tensors: Tensors, dy: Tensor, v: list[Tensor]) -> dict[str, Tensor]:
        names = [k for k, t in tensors.items() if t.requires_grad]
        wrt = cases.wanted(tensors)
        y = call(tensors)
        found = {"y": y.detach()}
        if self.order == 0:
            return found
        # without a graph, as training runs it: under create_graph other kernels make the same gradients
        first = torch.autograd.grad(y, wrt, dy.detach(), retain_graph=self.order == 2)
        found |= {f"d{k}": g.detach() for k, g in zip(names, first, strict=True)}
        if self.order == 2:
            dy = dy.detach().requires_grad_()
            first = torch.autograd.grad(y, wrt, dy, create_graph=True)
            second = torch.autograd.grad(first, [dy, *wrt], v, allow_unused=True)
            found |= {f"dd{k}": g for k, g in zip(["y", *names], second, strict=True) if g is not None}
            found["ddy"] = found["ddy"] * self.keep
        return found

    def _errors(self, found: dict[str, Tensor]) -> dict[str, float]:
        """‖found − truth‖ / ‖truth‖ of each output; -1 where it isn't finite. A zero may be left out; what differs from
        it is measured by dy."""
        errors = {}
        for name in self.truth.keys() | found.keys():
            got, want = found.get(name), self.truth.get(name)
            want = torch.zeros_like(got, dtype=torch.float64) if want is None else want
            got = torch.zeros_like(want) if got is None else got
            if got.shape != want.shape:
                raise ValueError(f"{self.case.op}: {name} has shape {tuple(got.shape)}, expected {tuple(want.shape)}")
            scale = want.norm()
            if got.numel() <= FEW or not scale:
                scale = torch.maximum(scale, self.dy.detach().double().norm())
            error = ((got.double() - want).norm() / scale).item() if got.numel() else 0.0
            errors[name] = error if error < float("inf") else -1.0
        return errors


@contextlib.contextmanager
def _poisoned() -> Iterator[None]:
    """torch.empty gives NaN: what a kernel doesn't write shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


# -- in the interpreter -----------------------------------------------------------------------------------------------


def _print_interpreted(names: list[str], networks: list[str], dtypes: list[str], layouts: list[str]) -> None:
    """Verdicts over a tiny version of each kind of case, to second order, as JSON lines; in a process of its own."""
    from gankern.bench.interpreter import mend

    mend()
    for op in names:
        kinds = {case.site.kind: case for network in networks for case in cases.network_cases(op, network)}
        for case in (case.shrunk() for case in kinds.values()):
            for dtype in dtypes:
                for layout in layouts if case.has_layout else layouts[:1]:
                    verdict = Gate(case, dtype, layout, 4, "cpu", order=2).check(provider(case, "triton"), poison=True)
                    row = {"op": op, "case": case.label, "dtype": dtype, "layout": layout, "batch": 4}
                    print(json.dumps(row | asdict(verdict)), flush=True)


if __name__ == "__main__":
    _print_interpreted(*json.loads(sys.argv[1]))
