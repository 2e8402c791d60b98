"""Filtered leaky ReLU under mmcv's signature."""

import math
from collections.abc import Sequence

from torch import Tensor

from gankern.interop.patches.ada import filtered_lrelu as ada


def filtered_lrelu(
    input: Tensor,
    filter_up: Tensor | None = None,
    filter_down: Tensor | None = None,
    bias: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    gain: float = math.sqrt(2),
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
    use_custom_op: bool = True,
) -> Tensor:
    """StyleGAN3's; `use_custom_op=False` is eager PyTorch."""
    rest = up, down, padding, gain, slope, clamp, flip_filter
    return ada.filtered_lrelu(input, filter_up, filter_down, bias, *rest, "cuda" if use_custom_op else "ref")
