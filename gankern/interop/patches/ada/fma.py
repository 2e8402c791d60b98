"""Multiply and add in one pass, under the name that StyleGAN2-ADA gives it."""

import torch
from torch import Tensor


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a · b + c, broadcast, differentiable to any order."""
    return torch.addcmul(c, a, b)
