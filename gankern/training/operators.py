"""--impl and --tune: which implementation of the operators a run takes, and whether cuDNN's plans are timed."""

import contextlib
from collections.abc import Iterator

import torch

from gankern.errors import InputError
from gankern.ops import use_impl
from gankern.ops._impl import interpreting, obstacle


def use_operators(impl: str, device: torch.device, tune: bool = False) -> contextlib.AbstractContextManager:
    """Around a run: "auto" as the operators choose themselves, "reference" plain PyTorch, "fused" kernels (on a GPU
    those that were measured to be fastest), "cudnn" those of its fused convolutions, with `tune` the fastest of each.
    Raises InputError where there are none."""
    if impl == "cudnn":
        reason = obstacle("cudnn", device)
        if reason:
            raise InputError(f"--impl cudnn: not possible on {device}: {reason.replace('x is', 'the run is')}")
        return _fused_convolutions(tune)
    if impl == "auto":
        return contextlib.nullcontext()
    if impl == "reference":
        return use_impl("reference")
    reason = obstacle("triton", device)
    if reason:
        raise InputError(f"--impl fused: not possible on {device}: {reason.replace('x is', 'the run is')}")
    return use_impl("triton") if interpreting() and device.type == "cpu" else contextlib.nullcontext()


@contextlib.contextmanager
def _fused_convolutions(tune: bool) -> Iterator[None]:
    from gankern.ops.cudnn import plans

    with use_impl("cudnn"), plans.timed_builds() if tune else contextlib.nullcontext():
        yield
