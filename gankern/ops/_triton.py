"""What the Triton kernels share: layouts, accumulator types, tile settings, and the one function that launches.

A kernel's settings are a short list of plain dicts, the default first. Which of them runs stands in `settings.json`,
by GPU, kernel and shape class (`gankern bench tune` rewrites it); nothing is tuned while training runs. Arguments that
grow with the batch aren't specialised, so another batch size compiles nothing anew.
"""

import contextlib
import functools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import triton.language as tl
from torch import Tensor

from gankern.ops import _impl

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


# -- types and layouts -------------------------------------------------------------------------------------------------


def accumulator(dtype: torch.dtype) -> tl.constexpr:
    """The type to compute in: float64 for float64 (in the interpreter), else float32."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def is_channels_last(x: Tensor) -> bool:
    """Whether x [N, C, H, W] lies in memory as [N, H, W, C] and not as [N, C, H, W] (a single channel is both)."""
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def dense(x: Tensor) -> Tensor:
    """x itself where it fills its memory as NCHW or channels_last, else a contiguous copy."""
    return x if x.is_contiguous() or is_channels_last(x) else x.contiguous()


def dense_as(t: Tensor, channels_last: bool) -> Tensor:
    """t as NCHW or channels_last: itself where it lies so, else a copy."""
    return t.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def dense_like(t: Tensor, like: Tensor) -> Tensor:
    """t in the memory format of `like`, a dense tensor of the same shape: itself where it has it, else a copy."""
    return t if t.stride() == like.stride() else dense_as(t, is_channels_last(like))


def empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A new tensor of this shape in the memory format, on the device and (unless given) of the dtype of `like`."""
    memory_format = torch.channels_last if is_channels_last(like) else torch.contiguous_format
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=memory_format)


def around(x: Tensor, dim: int) -> tuple[int, int]:
    """(outer, inner): how many elements of a dense x stand outside and inside of `dim` in memory."""
    order = [0, 2, 3, 1] if is_channels_last(x) else list(range(x.ndim))
    place = order.index(dim)
    return math.prod(x.shape[i] for i in order[:place]), math.prod(x.shape[i] for i in order[place + 1 :])


def pow2(n: int) -> int:
    """The least power of two >= n."""
    return 1 << max(n - 1, 0).bit_length()


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


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
    """{GPU name or sm_XX: {kernel: {shape class: index into CONFIGS}}}; `layer_gemm_wins` holds 1 where it did."""
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
