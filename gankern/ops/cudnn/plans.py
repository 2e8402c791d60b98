"""Plans: what cuDNN compiled for a graph on a GPU, remembered in the process and on disk, and how it runs.

A plan is known by its graph (shapes, strides and types are in it), the versions of frontend and cuDNN, and the GPU. It
is built when a network is first called, never during graph capture, and never twice: it lies in the cache as well.
"""

import contextlib
import functools
import hashlib
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gankern import binary
from gankern.ops import _impl
from gankern.ops.cudnn import frontend
from gankern.ops.cudnn.graph import Graph

MOST_TIMED = 12
"""How many of a graph's plans are timed against each other."""


class Refused(RuntimeError):
    """cuDNN has no kernel for a graph on a GPU."""


@dataclass(frozen=True)
class Planned:
    """One launch as recorded in a dry run."""

    graph: Graph
    args: tuple[Tensor, ...]

    @property
    def name(self) -> str:
        return self.graph.name

    @property
    def flops(self) -> int:
        return self.graph.flops


@dataclass(frozen=True)
class Plan:
    """One compiled graph; `engine`: cuDNN's name of the kernel."""

    g: object
    index: int | None
    workspace: int
    engine: str

    def __call__(self, tensors: list[Tensor], handle: int) -> None:
        """tensors: inputs, then outputs."""
        device = tensors[0].device
        space = torch.empty(max(self.workspace, 1), dtype=torch.uint8, device=device)
        pointers = {uid: t.data_ptr() for uid, t in enumerate(tensors, 1)}
        if self.index is None:
            self.g.execute(pointers, space, handle=handle)
        else:
            self.g.execute_plan_at_index(pointers, space, self.index, handle=handle)


# -- what can run ------------------------------------------------------------------------------------------------------


def problem(device: torch.device) -> str | None:
    """Why fused convolutions can't run on tensors of `device`; None where they can."""
    if device.type != "cuda":
        return f"x is on {device}, expected a CUDA tensor"
    found = frontend.module()
    return found if isinstance(found, str) else _impl.obstacle("triton", device)


_handles: dict[int, int] = {}


def _handle(device: torch.device) -> int:
    """cuDNN's handle of a device, on its current stream."""
    index = torch.cuda.current_device() if device.index is None else device.index
    cudnn = frontend.module()
    with torch.cuda.device(index):
        if index not in _handles:
            _handles[index] = cudnn.create_handle()
        cudnn.set_stream(handle=_handles[index], stream=torch.cuda.current_stream(index).cuda_stream)
    return _handles[index]


# -- building ----------------------------------------------------------------------------------------------------------


_plans: dict[tuple[str, int], Plan | Refused] = {}
_timing: list[bool] = []


@contextlib.contextmanager
def timed_builds() -> Iterator[None]:
    """Inside the block plans are timed against each other, not taken as cuDNN ranks them; once, as the cache keeps."""
    _timing.append(True)
    try:
        yield
    finally:
        _timing.pop()


@functools.cache
def _folder(index: int) -> Path:
    p = torch.cuda.get_device_properties(index)
    gpu = hashlib.sha256(f"{p.name} {p.multi_processor_count}".encode()).hexdigest()[:8]
    how = binary.digest(Path(frontend.__file__).read_bytes())[:8]  # a graph is described to cuDNN
    return binary.cache_dir() / "cudnn" / f"sm_{p.major}{p.minor}-{gpu}-{frontend.versions()}-{how}"


def plan(graph: Graph, device: torch.device) -> Plan:
    """The plan of a graph on a GPU: remembered, read or built. Raises Refused where cuDNN has none."""
    index = torch.cuda.current_device() if device.index is None else device.index
    key = graph.key, index
    if key not in _plans:
        with torch.cuda.device(index):
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError(f"{graph.name}: its cuDNN plan isn't built, and can't be during graph capture")
            _plans[key] = _read(graph, index) or _built(graph, index)
    found = _plans[key]
    if isinstance(found, Refused):
        raise found
    return found


def _file(graph: Graph, index: int, kind: str = "plan") -> Path:
    return _folder(index) / f"{graph.key}.{kind}"


def _read(graph: Graph, index: int) -> Plan | Refused | None:
    """From the cache; None where there is none, one that this cuDNN doesn't take, or one that is to be timed yet."""
    with contextlib.suppress(OSError):
        return Refused(_file(graph, index, "refused").read_text())
    try:
        engine, how, data = _file(graph, index).read_bytes().split(b"\n", 2)
        if _timing and how != b"timed":
            return None
        g = frontend.module().pygraph(handle=_handle(torch.device("cuda", index)))
        g.deserialize(list(data))
        return Plan(g, None, g.get_workspace_size(), engine.decode())
    except FileNotFoundError:
        return None
    except Exception:  # of a damaged file anything: it is built and written anew
        return None


def _built(graph: Graph, index: int) -> Plan | Refused:
    device = torch.device("cuda", index)
    try:
        g, names = frontend.candidates(graph, handle=_handle(device))
    except ValueError as error:
        return _refused(graph, index, str(error))
    built = (i for i in range(len(names)) if frontend.build(g, i))
    timed = list(itertools.islice(built, MOST_TIMED if _timing else 1))
    chosen = _fastest(graph, g, timed, device) if _timing else next(iter(timed), None)
    if chosen is None:
        return _refused(graph, index, f"none of {len(names)} plans builds")
    _write(graph, index, g, chosen, names[chosen])
    if _timing and (alone := _read(graph, index)):  # g holds all that were built
        return alone
    return Plan(g, chosen, g.get_workspace_size_plan_at_index(chosen), names[chosen])


def _refused(graph: Graph, index: int, why: str) -> Refused:
    sizes = " ".join("x".join(map(str, s.shape)) for _, s in graph.inputs[:2])
    refused = Refused(f"{graph.name} {sizes}: {why}")
    _keep(_file(graph, index, "refused"), lambda: str(refused).encode())
    return refused


def _write(graph: Graph, index: int, g, chosen: int, engine: str) -> None:
    """Into the cache."""

    def contents() -> bytes:
        # what is serialised is the plan that was built last
        data = bytes(g.serialize()) if frontend.build(g, chosen) else b""
        return b"\n".join((engine.encode(), b"timed" if _timing else b"ranked", data)) if data else b""

    _keep(_file(graph, index), contents)


def _keep(file: Path, contents: Callable[[], bytes]) -> None:
    """Into the cache, where it can be written, and there is something."""
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        if data := contents():
            file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            partial.replace(file)
    except Exception:  # a full or read-only disk, an engine that isn't serialised: built again next time
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _operands(graph: Graph, device: torch.device) -> list[Tensor]:
    """Random operands, for timing."""
    specs = [s for _, s in graph.inputs] + [s for _, _, s in graph.outputs]
    sizes = [1 + sum((n - 1) * stride for n, stride in zip(s.shape, s.strides, strict=True)) for s in specs]
    return [torch.randn(n, device=device).to(s.dtype) for n, s in zip(sizes, specs, strict=True)]


def _fastest(graph: Graph, g, indices: list[int], device: torch.device, rounds: int = 5) -> int | None:
    """The plan that ran fastest, each timed alone, the median of some rounds after two unmeasured ones; one that can't
    run, for want of memory too, is none."""
    operands, handle, times = _operands(graph, device), _handle(device), {}
    for i in indices:
        this = Plan(g, i, g.get_workspace_size_plan_at_index(i), "")
        took = []
        with contextlib.suppress(RuntimeError):
            for _ in range(rounds + 2):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                this(operands, handle)
                end.record()
                end.synchronize()
                took.append(begin.elapsed_time(end))
            times[i] = sorted(took[2:])[rounds // 2]
    return min(times, key=times.get) if times else None


FORMS = ("gradient", "conv")
"""How an input gradient can be asked for, the better first: as that, or as a convolution with the turned kernel."""

_target: list[torch.device] = []


def target(device: torch.device) -> torch.device:
    """`device`, or in a dry run that for which it is made."""
    return _target[-1] if _target else device


def accepts(graph: Graph, device: torch.device, instead: str | None = None) -> bool:
    """Whether cuDNN has a plan for a graph on a GPU, in a dry run on that for which it is made. `instead`: what runs
    where it hasn't; a warning says so once."""
    device = target(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        return True
    try:
        plan(graph, device)
    except Refused as refused:
        if instead is not None:
            _impl.warn_once(f"cuDNN has no kernel, {instead} instead: {refused}")
        return False
    return True


# -- ahead of a network ------------------------------------------------------------------------------------------------


def graphs_of(fn: Callable[[], object], device: torch.device) -> list[Graph]:
    """The graphs that `fn()` would run on a device; its tensors are on the meta device. Each once."""
    _target.append(device)
    try:
        with _impl.record([]) as launches, _impl.use_impl("cudnn"):
            fn()
    finally:
        _target.pop()
    found = {launch.graph.key: launch.graph for launch in launches if isinstance(launch, Planned)}
    return list(found.values())


def prepare(graphs: Iterable[Graph], device: torch.device) -> str | None:
    """Builds the graphs' plans, with a line of progress on a terminal; the first refusal, None where there is none."""
    graphs = list(graphs)
    show = sys.stderr.isatty()
    for done, graph in enumerate(graphs):
        if show:
            print(f"\rcuDNN plans: {done}/{len(graphs)}", end="", file=sys.stderr, flush=True)
        try:
            plan(graph, device)
        except Refused as refused:
            return str(refused)
        finally:
            if show:
                print("\r\033[K", end="", file=sys.stderr, flush=True)
    return None


# -- running -----------------------------------------------------------------------------------------------------------


def run(graph: Graph, tensors: dict[str, Tensor | None]) -> None:
    """Compute the graph's results into the tensors of their names, on the current stream; where a sum goes must be
    zero. Names that the graph doesn't have don't matter."""
    names = [name for name, _ in graph.inputs] + [name for name, _, _ in graph.outputs]
    given = [tensors[name] for name in names]
    if (recorded := _impl.recorder()) is not None:
        recorded.append(Planned(graph, tuple(given)))
    elif _impl.launching():
        execute(graph, given)


def execute(graph: Graph, given: list[Tensor]) -> None:
    """The graph on its operands and results, as cuDNN runs it."""
    device = given[0].device
    with torch.cuda.device(device):
        plan(graph, device)(given, _handle(device))
