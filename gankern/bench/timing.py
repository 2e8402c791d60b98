"""Timing on a GPU: CUDA events around each run, the L2 cache flushed before it, median and quartiles.

Before each run the device waits for as long as the host needs to queue the run's launches (half a millisecond at
least): what is timed is the device's work, as in a training step whose host runs ahead or in a CUDA graph.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

FLUSH_BYTES = 256 * 2**20
COPY_BYTES = 2**30
WAIT_CYCLES = 1_000_000
HOST_CYCLES = 3e9  # of the device's clock, a second of the host's: more than any card has
SPIN = 0.5  # seconds
LEAST, MOST = 10, 100


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one run: median and quartiles over `runs`."""

    median: float
    q1: float
    q3: float
    runs: int


def quartiles(values: Sequence[float]) -> Timing:
    """Of at least one time in milliseconds."""
    if len(values) == 1:
        return Timing(values[0], values[0], values[0], 1)
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, q1, q3, len(values))


def repeats(once: float, budget: float) -> int:
    """How many runs of `once` milliseconds a budget of milliseconds allows, within LEAST and MOST."""
    return int(min(max(budget / max(once, 1e-3), LEAST), MOST))


def bandwidth(size: int, ms: float) -> float:
    """GB/s of `size` bytes in `ms` milliseconds."""
    return size / ms / 1e6


class Clock:
    """Times steps on the current CUDA device."""

    def __init__(self, budget: float = 200.0):
        self.budget = budget
        l2 = getattr(torch.cuda.get_device_properties(None), "L2_cache_size", 0)
        self.buffer = torch.empty(max(FLUSH_BYTES, 2 * l2), dtype=torch.int8, device="cuda")
        end = time.monotonic() + SPIN
        while time.monotonic() < end:  # an idle card runs at a fraction of its clock
            for _ in range(50):
                self.buffer.zero_()
            torch.cuda.synchronize()

    def time(self, steps: Sequence[Callable[[], object]]) -> Timing:
        """Runs the steps in turn, each on input of its own, after a warm-up of all of them."""
        for step in steps:
            step()
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for step in steps:
            step()
        cycles = max(WAIT_CYCLES, int(HOST_CYCLES * (time.perf_counter() - begun) / len(steps)))
        once = self._run([steps[i % len(steps)] for i in range(3)], cycles)
        return quartiles(self._run([steps[i % len(steps)] for i in range(repeats(min(once), self.budget))], cycles))

    def _run(self, steps: Sequence[Callable[[], object]], cycles: int) -> list[float]:
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in steps]
        torch.cuda.synchronize()
        for step, (begin, end) in zip(steps, events, strict=True):
            self.buffer.zero_()
            torch.cuda._sleep(cycles)
            begin.record()
            result = step()
            end.record()
            del result  # freed after the second event
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in events]

    def copy_rate(self) -> float:
        """GB/s of a large copy on the device, bytes read plus bytes written."""
        source = torch.randn(COPY_BYTES // 4, device="cuda")
        target = torch.empty_like(source)
        return bandwidth(2 * COPY_BYTES, self.time([lambda: target.copy_(source)]).median)

    def matmul_rate(self, n: int = 8192) -> float:
        """TFLOP/s of a bf16 matrix product of random numbers through torch's library."""
        a, b = (torch.randn(n, n, device="cuda").bfloat16() for _ in range(2))
        return 2 * n**3 / self.time([lambda: a @ b]).median / 1e9


def peak_bytes(step: Callable[[], object]) -> int:
    """Device memory that one run takes at its highest, above what was held before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
