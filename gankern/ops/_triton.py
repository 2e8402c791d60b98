"""What the Triton kernels share: layouts, accumulator types, tile settings, and the one function that launches.

A kernel's settings are a short list of plain dicts, the default first. Which of them runs stands in `settings.json`,
by GPU, kernel and shape class (`gankern bench tune` rewrites it); nothing is tuned while training runs. Arguments that
grow with the batch aren't specialised, so another batch size compiles nothing anew.
"""

import contextlib
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import triton.language as tl
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._layout import around, cdiv, dense, dense_as, dense_like, empty, is_channels_last  # noqa: F401

SETTINGS_FILE = Path(__file__).with_name("settings.json")

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


def pow2(n: int) -> int:
    """The least power of two >= n."""
    return 1 << max(n - 1, 0).bit_length()


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


@functools.cache
def table() -> dict:
    """{GPU name or sm_XX: {kernel: {shape class: index into CONFIGS}}}; `layer_gemm_wins` is 1 where it did, else 0."""
    return json.loads(SETTINGS_FILE.read_text()) if SETTINGS_FILE.exists() else {}


@functools.cache
def gpu_names(index: int | None) -> tuple[str, str]:
    """The GPU's own name and its architecture, the two keys that the table is searched by."""
    major, minor = torch.cuda.get_device_capability(index)
    return torch.cuda.get_device_name(index), f"sm_{major}{minor}"


def measured(entry: str, key: str, x: Tensor) -> int | None:
    """What the table holds of `entry` for the shape class `key` on x's GPU; None where nothing was measured."""
    if x.device.type == "cuda" and torch.cuda.is_available():
        for name in gpu_names(x.device.index):
            found = table().get(name, {}).get(entry, {}).get(key)
            if found is not None:
                return found
    return None


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


def size_class(n: int) -> int:
    """The power of two at or above n: neighbouring sizes share their settings."""
    return pow2(n)


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
