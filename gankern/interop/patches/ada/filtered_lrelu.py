"""Filtered leaky ReLU under the signature of StyleGAN3's module of that name, of four operators one after the other.

    y = ↓down fd * clamp(gain · lrelu(up² · fu * pad(↑up (x + b))), ±clamp)

Karras et al. 2021, "Alias-Free Generative Adversarial Networks" (arXiv:2106.12423).
"""

import importlib
import math
from collections.abc import Sequence

from torch import Tensor

bias_act = importlib.import_module(".bias_act", __package__).bias_act
upfirdn2d = importlib.import_module(".upfirdn2d", __package__).upfirdn2d


def _init() -> bool:
    return True


def filtered_lrelu(
    x: Tensor,
    fu: Tensor | None = None,
    fd: Tensor | None = None,
    b: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    gain: float = math.sqrt(2),
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
    impl: str = "cuda",
) -> Tensor:
    """x [N, C, H, W] with bias b [C], enlarged through fu, activated and reduced through fd; `padding` is of the
    enlarged image. Differentiable twice."""
    x = x if b is None else bias_act(x, b, impl=impl)
    x = upfirdn2d(x, fu, up=up, padding=padding, flip_filter=flip_filter, gain=up**2, impl=impl)
    x = bias_act(x, act="lrelu", alpha=slope, gain=gain, clamp=clamp, impl=impl)
    return upfirdn2d(x, fd, down=down, flip_filter=flip_filter, impl=impl)
