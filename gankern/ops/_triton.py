"""What the Triton kernels share: accumulator types, tile settings, and the one function that launches.

A kernel's settings are a short list of plain dicts, the default first; `_settings` knows which of them runs. Arguments
that grow with the batch aren't specialised, so another batch size compiles nothing anew.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._settings import measured

CONFIGS: dict[str, tuple[dict, ...]] = {}
"""Every kernel's settings: {kernel: ({"TILE": elements, "num_warps": n, ...}, ...)}, the default first."""

_forced: dict[str, dict] = {}


@dataclass(frozen=True)
class Launch:
    """One launch as recorded in a dry run: what `triton.compile` needs, and the shape class that chose the settings."""

    kernel: object
    name: str
    key: str
    args: tuple
    constants: dict
    config: dict


# -- types and sizes ---------------------------------------------------------------------------------------------------


def accumulator(dtype: torch.dtype) -> tl.constexpr:
    """The type to compute in: float64 for float64 (in the interpreter), else float32."""
    return tl.float64 if dtype == torch.float64 else tl.float32


@functools.cache
def _sm_count(index: int | None) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def programs(x: Tensor, waves: int) -> int:
    """How many programs `waves` per multiprocessor make. On a CPU a few, so that tests see programs loop over tiles."""
    if x.device.type == "cuda" and torch.cuda.is_available():
        return waves * _sm_count(x.device.index)
    return 3 if x.device.type == "cpu" else 132 * waves


@functools.cache
def as_held(number: float, dtype: torch.dtype) -> float:
    """A clamp as `dtype` rounds it: what a clamped value in a tensor is equal to."""
    return float(torch.tensor(number, dtype=torch.float64, device="cpu").to(dtype))


# -- settings ----------------------------------------------------------------------------------------------------------


def config(kernel: str, key: str, x: Tensor) -> dict:
    """The settings of `kernel` for the shape class `key` on x's GPU; its first where nothing is measured."""
    if kernel in _forced:
        return _forced[kernel]
    index = measured(kernel, key, x) or 0
    return CONFIGS[kernel][min(index, len(CONFIGS[kernel]) - 1)]


@contextlib.contextmanager
def force_config(kernel: str, settings: dict) -> Iterator[None]:
    """Run `kernel` with these settings inside the block, whatever the table says: for tuning and tests."""
    before = _forced.get(kernel)
    _forced[kernel] = settings
    try:
        yield
    finally:
        _forced.pop(kernel)
        if before is not None:
            _forced[kernel] = before


# -- launching ---------------------------------------------------------------------------------------------------------


def launch(kernel, name: str, key: str, grid: tuple[int, ...], args: tuple, constants: dict, settings: dict) -> None:
    """Launch on the current stream of the tensors' device; in a recorded dry run note it instead.

    `settings`: of CONFIGS[name]; its num_warps and num_stages go to the compiler, the rest has become `constants`.
    """
    options = {k: settings[k] for k in ("num_warps", "num_stages") if k in settings}
    recorded = _impl.recorder()
    if recorded is not None:
        recorded.append(Launch(kernel, name, key, args, constants, options))
        return
    if min(grid) == 0:
        return
    device = next(a for a in args if isinstance(a, Tensor)).device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*args, **constants, **options)
    else:
        kernel[grid](*args, **constants, **options)
