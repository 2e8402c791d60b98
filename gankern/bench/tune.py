"""`gankern bench tune`: which of a kernel's settings is fastest for each shape class on the GPU at hand.

Every setting is timed inside the operator's own mode (the kernel's share of it is what differs), after its numbers are
checked; a setting replaces the default where it wins by more than noise.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from gankern.bench import cases, check, run
from gankern.bench.run import Plan, Spot
from gankern.bench.timing import Clock
from gankern.errors import InputError
from gankern.files import replacing
from gankern.ops import _impl

GAIN = 0.97
"""A setting wins with less than this of the default's time."""


def kernels_of(spot: Spot) -> dict[str, tuple[str, str, str]]:
    """{kernel: (shape class, implementation, the first mode that launches it)}, recorded on meta tensors."""
    found: dict[str, tuple[str, str, str]] = {}
    implementations = [name for name in cases.available(spot.case.op) if name.startswith("triton")]
    for impl, mode in itertools.product(implementations, ("forward", "backward", "double")):
        tensors = spot.case.tensors(spot.dtype, spot.layout, spot.batch, "meta")
        with _impl.record() as launches:
            check.step(check.provider(spot.case, impl), tensors, mode)()
        for launch in launches:
            found.setdefault(launch.name, (launch.key, impl, mode))
    return found


def winner(milliseconds: dict[int, float]) -> int:
    """The index of the settings to use: the default (0) unless another beats it clearly."""
    best = min(milliseconds, key=milliseconds.__getitem__)
    return best if 0 not in milliseconds or milliseconds[best] < GAIN * milliseconds[0] else 0


def _times(spot: Spot, kernel: str, impl: str, mode: str, clock: Clock) -> Iterator[tuple[int, float]]:
    """(index, milliseconds) of every setting that the GPU can run and that gives right numbers."""
    from triton.runtime.errors import OutOfResources

    from gankern.ops import _triton

    call = check.provider(spot.case, impl)
    for i, settings in enumerate(_triton.CONFIGS[kernel]):
        with _triton.force_config(kernel, settings), contextlib.suppress(OutOfResources):
            batch, order = run.gate_batch(spot), run.ORDER[mode]
            gate = check.Gate(spot.case, spot.dtype, spot.layout, batch, run.DEVICE, order, seed=i)
            right = gate.check(call, poison=True).ok
            del gate
            if right:
                tensors = [spot.case.tensors(spot.dtype, spot.layout, spot.batch, run.DEVICE) for _ in range(2)]
                yield i, clock.time([check.step(call, t, mode) for t in tensors]).median
        torch.cuda.empty_cache()


def tune(plan: Plan, say: Callable[[str], None]) -> dict[str, dict[str, int]]:
    """{kernel: {shape class: index of the fastest settings}}. Raises InputError without a GPU."""
    if run.DEVICE == "cuda" and not torch.cuda.is_available():
        raise InputError("bench tune: needs a CUDA GPU, and torch can use none here")
    clock, found = Clock(), {}
    for spot in run.spots(plan):
        for kernel, (key, impl, mode) in kernels_of(spot).items():
            if key in found.get(kernel, {}):
                continue
            try:
                milliseconds = dict(_times(spot, kernel, impl, mode, clock))
            except torch.OutOfMemoryError:
                say(f"{spot}: out of memory, left out")
                continue
            if milliseconds:
                found.setdefault(kernel, {})[key] = winner(milliseconds)
                times = ", ".join(f"{i}: {ms:.3f}" for i, ms in milliseconds.items())
                say(f"{kernel} [{key}] {found[kernel][key]}  ({times} ms)")
    return found


def write(found: dict[str, dict[str, int]], path: Path, gpu: str) -> None:
    """Puts these choices into the table of settings at `path`, under this GPU; other entries stay."""
    table = json.loads(path.read_text()) if path.exists() else {}
    mine = table.setdefault(gpu, {})
    for kernel, classes in found.items():
        mine[kernel] = dict(sorted((mine.get(kernel, {}) | classes).items()))
    table[gpu] = dict(sorted(mine.items()))
    with replacing(path) as file:
        Path(file).write_text(json.dumps(table, indent=1) + "\n")
    from gankern.ops import _triton

    _triton.table.cache_clear()
