"""What was measured to be fastest, by GPU: `settings.json`.

Each kernel's settings by shape class (`gankern bench tune` writes them) and each operator's implementation
(`gankern bench select` writes them from committed results). Nothing is tuned while training runs.
"""

import functools
import json
import math
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from gankern.ops._layout import is_channels_last

SETTINGS_FILE = Path(__file__).with_name("settings.json")


@functools.cache
def table() -> dict:
    """{GPU name or sm_XX: {kernel: {shape class: index into CONFIGS}}}; `layer_gemm_wins` is 1 where it did, else 0;
    "impl OP" holds the implementation by shape class."""
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


def pow2(n: int) -> int:
    """The least power of two >= n."""
    return 1 << max(n - 1, 0).bit_length()


def size_class(n: int) -> int:
    """The power of two at or above n: neighbouring sizes share their settings."""
    return pow2(n)


def shape_class(x: Tensor) -> str:
    """What an implementation is chosen by: type, memory format, channels and pixels of x, whatever the batch."""
    dtype = str(x.dtype).removeprefix("torch.")
    if x.ndim < 3:
        return f"{dtype} {size_class(x.shape[-1] if x.ndim else 1)}"
    layout = "nhwc" if is_channels_last(x) else "nchw"
    return f"{dtype} {layout} {size_class(x.shape[1])} {size_class(math.prod(x.shape[2:]))}"


def implementation(op: str, x: Tensor) -> str | None:
    """The implementation of `op` that was measured to be fastest for x's shape class on its GPU."""
    if not torch.cuda.is_available():
        return None
    known = any(f"impl {op}" in table().get(name, {}) for name in gpu_names(x.device.index))
    return measured(f"impl {op}", shape_class(x), x) if known else None


def wins(op: str, index: int | None) -> dict[str, int]:
    """{implementation: in how many shape classes it was measured to be fastest} on a GPU."""
    merged = {}
    for name in reversed(gpu_names(index)):
        merged |= table().get(name, {}).get(f"impl {op}", {})
    return dict(Counter(merged.values()))
