"""CUDA graphs: a function of tensors that stay where they are, recorded once and replayed with one launch.

Random numbers: torch takes up the default generator's seed and offset at each replay, so seeding before a replay does
what seeding before the function does. Nothing in a function may make the host wait, and what it computes on the host it
computes once.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Backend(Protocol):
    """What records."""

    def capture(self, fn: Callable[[], Any]) -> Callable[[], None]:
        """Records fn, which changes nothing yet; the result replays it, and keeps alive what fn returned."""

    def release(self) -> None:
        """Captures from now on share no memory with those before."""


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    kept: Any  # tensors in the graphs' memory that other graphs read

    def __call__(self) -> None:
        self.graph.replay()


class CudaGraphs:
    """CUDA graphs of one device, in one pool of memory: they must be replayed one after the other."""

    def __init__(self, device: torch.device):
        self.device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        self.stream = torch.cuda.Stream(self.device)
        self.release()

    def capture(self, fn: Callable[[], Any]) -> Callable[[], None]:
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        whole = False
        try:
            # thread_local: the threads that pin memory or decode may call what a capture forbids
            with (
                torch.cuda.device(self.device),
                torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"),
            ):
                kept = fn()
            whole = True
        finally:
            if not whole:
                self._recover(before)

        return _Captured(graph, kept)

    def release(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def _recover(self, before: torch.cuda.Stream) -> None:
        """Undoes what torch leaves behind where ending a broken capture raises: the capture's stream is current still,
        the allocator fills its pool, and the generator takes itself to be captured and refuses to draw."""
        torch.cuda.set_stream(before)
        with contextlib.suppress(RuntimeError, AttributeError):  # ended already; private to torch
            torch._C._cuda_endAllocateToPool(self.device.index, self.pool)
        generator = torch.cuda.default_generators[self.device.index]
        generator.graphsafe_set_state(torch.Generator(self.device).graphsafe_get_state())


class Replays:
    """Functions by name, captured when first run; where that fails, and where there is no backend, run as they are.

    `warn(text)` is told why nothing is captured any more.
    """

    def __init__(self, backend: Backend | None, warn: Callable[[str], None]):
        self.backend, self.warn = backend, warn
        self._replays: dict[tuple, Callable[[], None]] = {}
        self._inputs: list[Tensor] = []

    def run(
        self,
        key: tuple,
        fn: Callable[..., Any],
        inputs: Sequence[Tensor] = (),
        seed: Callable[[], None] = lambda: None,
        undo: Callable[[], None] = lambda: None,
    ) -> None:
        """fn(*inputs), seeded. fn works in place on tensors that stay; what it returns lives as long as its capture.

        `undo` takes back what a capture that failed has changed on the host. It may fail with any error: one that isn't
        the capture's fails again in fn as it is.
        """
        if self.backend is not None:
            inputs, reasons = self._hold(inputs), []
            try:
                if key not in self._replays:
                    self._replays[key] = self.backend.capture(lambda: _noting(reasons, fn, inputs))
            except Exception as error:
                self.backend = None
                reasons.append(_in_a_line(error))
            else:
                seed()
                return self._replays[key]()
            self.forget()
            undo()
            self.warn(f"CUDA graphs are off: {key[0]} can't be captured ({reasons[0]})")
        seed()
        fn(*inputs)

    def forget(self) -> None:
        """Drops all captures and their memory."""
        self._replays.clear()
        self._inputs = []
        if self.backend is not None:
            self.backend.release()

    def _hold(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Copies of the inputs where captured functions read them."""
        for i, value in enumerate(inputs):
            if i == len(self._inputs):
                self._inputs.append(torch.empty_like(value, memory_format=torch.contiguous_format))
            self._inputs[i].copy_(value, non_blocking=True)
        return self._inputs[: len(inputs)]


def _noting(reasons: list[str], fn: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
    """fn(*inputs); notes its own error, in place of which ending the broken capture may raise a general one. (As text:
    the error itself holds the activations.)"""
    try:
        return fn(*inputs)
    except Exception as error:
        reasons.append(_in_a_line(error))
        raise


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
