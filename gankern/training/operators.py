"""--impl: which implementation of the operators a run takes."""

import contextlib

import torch

from gankern.errors import InputError
from gankern.ops import use_impl
from gankern.ops._impl import interpreting, obstacle


def use_operators(impl: str, device: torch.device) -> contextlib.AbstractContextManager:
    """Around a run: "auto" as the operators choose themselves, "reference" plain PyTorch, "fused" kernels (on a GPU
    those that were measured to be fastest). Raises InputError where there are none."""
    if impl == "auto":
        return contextlib.nullcontext()
    if impl == "reference":
        return use_impl("reference")
    reason = obstacle("triton", device)
    if reason:
        raise InputError(f"--impl fused: not possible on {device}: {reason.replace('x is', 'the run is')}")
    return use_impl("triton") if interpreting() and device.type == "cpu" else contextlib.nullcontext()
