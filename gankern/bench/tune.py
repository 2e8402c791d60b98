"""`gankern bench tune`: which of a kernel's settings is fastest for each shape class on the GPU at hand.

Every setting is timed inside the operator's own mode (the kernel's share of it is what differs), after its numbers are
checked; a setting replaces the default where it wins by more than noise. So does the modulated layer's one kernel
(`triton_gemm`) for the forward pass where it takes a layer.
"""

import contextlib
import functools
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
from gankern.ops import _impl, _settings

GAIN = 0.97
"""A setting wins with less than this of the default's time."""

GEMM, GEMM_WINS = "layer_gemm", "layer_gemm_wins"
"""The modulated layer's one kernel, and the table's entry of whether it runs where nobody asks for it."""


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


def _time(spot: Spot, impl: str, mode: str, clock: Clock, seed: int) -> float | None:
    """Milliseconds; None where the GPU can't run it or its numbers are wrong."""
    from triton.runtime.errors import OutOfResources

    call, found = check.provider(spot.case, impl), None
    with contextlib.suppress(OutOfResources):
        batch, order = run.gate_batch(spot), run.ORDER[mode]
        gate = check.Gate(spot.case, spot.dtype, spot.layout, batch, run.DEVICE, order, seed)
        right = gate.check(call, poison=True).ok
        del gate
        if right:
            tensors = [spot.case.tensors(spot.dtype, spot.layout, spot.batch, run.DEVICE) for _ in range(2)]
            found = clock.time([check.step(call, t, mode) for t in tensors]).median
    torch.cuda.empty_cache()
    return found


def _settings_times(spot: Spot, kernel: str, impl: str, mode: str, clock: Clock) -> dict[int, float]:
    """{index: milliseconds} of every setting that runs right."""
    from gankern.ops import _triton

    found = {}
    for i, settings in enumerate(_triton.CONFIGS[kernel]):
        with _triton.force_config(kernel, settings):
            found[i] = _time(spot, impl, mode, clock, seed=i)
    return {i: ms for i, ms in found.items() if ms is not None}


def _gemm_times(spot: Spot, chosen: dict[str, int], clock: Clock) -> dict[int, float]:
    """Milliseconds of the forward pass: {0: the library's convolution and a pass, 1: the one kernel}, each where it
    runs right, with the settings `chosen` for their kernels."""
    from gankern.ops import _triton

    with contextlib.ExitStack() as stack:
        for kernel, index in chosen.items():
            stack.enter_context(_triton.force_config(kernel, _triton.CONFIGS[kernel][index]))
        found = {i: _time(spot, impl, "forward", clock, seed=i) for i, impl in enumerate(("triton", "triton_gemm"))}
    return {i: ms for i, ms in found.items() if ms is not None}


def _table_aside() -> contextlib.AbstractContextManager:
    """What an earlier run made of `triton` where the one kernel won would be timed in place of what is asked for."""
    from gankern.ops.modulated_conv2d import gemm

    return gemm.assume_wins(False)


def _jobs(spot: Spot, found: dict, clock: Clock) -> Iterator[tuple[str, str, Callable[[], dict[int, float]]]]:
    """(entry, shape class, what times it) of everything in a spot that the table doesn't have yet; entries that are
    timed with others' settings come after those."""
    kernels = kernels_of(spot)
    for kernel, (key, impl, mode) in kernels.items():
        if key not in found.get(kernel, {}):
            yield kernel, key, functools.partial(_settings_times, spot, kernel, impl, mode, clock)
    if GEMM in kernels and kernels[GEMM][0] not in found.get(GEMM_WINS, {}):
        chosen = {name: found[name][key] for name, (key, _, _) in kernels.items() if key in found.get(name, {})}
        yield GEMM_WINS, kernels[GEMM][0], functools.partial(_gemm_times, spot, chosen, clock)


def tune(plan: Plan, say: Callable[[str], None]) -> dict[str, dict[str, int]]:
    """{kernel: {shape class: index of the fastest settings}}, and {GEMM_WINS: {shape class: 1 where it did}}.

    Raises InputError without a GPU.
    """
    if run.DEVICE == "cuda" and not torch.cuda.is_available():
        raise InputError("bench tune: needs a CUDA GPU, and torch can use none here")
    clock, found = Clock(), {}
    with _table_aside():
        for spot in run.spots(plan):
            for entry, key, measure in _jobs(spot, found, clock):
                try:
                    milliseconds = measure()
                except torch.OutOfMemoryError:
                    say(f"{spot}: out of memory, left out")
                    continue
                if milliseconds:
                    found.setdefault(entry, {})[key] = winner(milliseconds)
                    times = ", ".join(f"{i}: {ms:.3f}" for i, ms in milliseconds.items())
                    say(f"{entry} [{key}] {found[entry][key]}  ({times} ms)")
    return found


def write(found: dict[str, dict[str, int | str]], path: Path, gpu: str) -> None:
    """Puts these choices into the table of settings at `path`, under this GPU; other entries stay."""
    table = json.loads(path.read_text()) if path.exists() else {}
    mine = table.setdefault(gpu, {})
    for kernel, classes in found.items():
        mine[kernel] = dict(sorted((mine.get(kernel, {}) | classes).items()))
    table[gpu] = dict(sorted(mine.items()))
    with replacing(path) as file:
        Path(file).write_text(json.dumps(table, indent=1) + "\n")
    _settings.table.cache_clear()
