"""The moving average of the generator's weights."""

import torch
from torch import nn


def ema_beta(batch: int, ema_kimg: float, nimg: int, rampup: float | None) -> float:
    """0.5^(batch / n): the decay of one step with a half-life of n = min(ema_kimg·1000, nimg·rampup) images."""
    half_life = ema_kimg * 1000
    if rampup is not None:
        half_life = min(half_life, nimg * rampup)
    return 0.5 ** (batch / max(half_life, 1e-8))


@torch.no_grad()
def update_ema(ema: nn.Module, network: nn.Module, beta: float) -> None:
    """ema <- beta·ema + (1 − beta)·network for parameters; buffers are copied."""
    torch._foreach_lerp_(list(ema.parameters()), list(network.parameters()), 1 - beta)
    if buffers := list(ema.buffers()):
        torch._foreach_copy_(buffers, list(network.buffers()))
