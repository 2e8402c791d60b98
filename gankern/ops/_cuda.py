"""The compiled kernels of csrc/: found and loaded when first asked for, and why they aren't there where they aren't.

Their operators stand in torch.ops.gankern_cuda and write into tensors that the launch functions here in Python
allocate; autograd and fakes are those of gankern.ops. The tests' host build registers the same operators for CPU
tensors.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import torch

from gankern import binary
from gankern.ops import _impl

ACTS = ("linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish")
"""In the order of csrc/activations.cuh."""

_host: list[Path] = []


class Launch(NamedTuple):
    """One call as recorded in a dry run."""

    name: str
    args: tuple


def launch(name: str, *args) -> None:
    """Calls torch.ops.gankern_cuda's operator of that name; in a recorded dry run notes it instead."""
    recorded = _impl.recorder()
    if recorded is not None:
        recorded.append(Launch(name, args))
    else:
        getattr(torch.ops.gankern_cuda, name)(*args)


def activation(act: str, alpha: float, gain: float, clamp: float) -> tuple[int, float, float, float]:
    """The arguments that every kernel with an activation ends in."""
    return ACTS.index(act), alpha, gain, clamp


def load_host(path: Path) -> None:
    """Loads a host build, for CPU tensors. For tests: it emulates a GPU's threads one after the other."""
    if path not in _host:
        torch.ops.load_library(path)
        _host.append(path)


@functools.cache
def trouble_loading(library: Path) -> str | None:
    """Loads a binary; says what is wrong where that fails. Once for each."""
    if _host:
        return "not loaded, since the tests' host build is"
    try:
        torch.ops.load_library(library)
    except (OSError, RuntimeError) as error:
        return f"can't be loaded: {str(error.__cause__ or error).splitlines()[0]}"
    return None


@functools.cache
def _found(index: int | None) -> str | None:
    """What is wrong with the binary for the GPU of that number; None once it is loaded."""
    library, where = binary.search(torch.cuda.get_device_capability(index))
    trouble = trouble_loading(library) if library else where
    return f"{library} {trouble}" if library and trouble else trouble


@torch.compiler.assume_constant_result  # torch.compile would trace into the search; and through functools.cache
def _trouble(index: int | None) -> str | None:
    return _found(index)


def problem(device: torch.device) -> str | None:
    """Why the kernels can't run on tensors of `device`, None where they can."""
    if device.type == "cpu":
        return None if _host else "x is on the CPU, where the CUDA kernels run only in the tests' host build"
    if device.type != "cuda":
        return f"x is on {device}, expected a CUDA tensor"
    return _trouble(device.index) if torch.cuda.is_available() else None  # a fake tensor where there is no GPU
