"""Known problems of a combination of torch, Triton, GPU and settings: what `gankern env` warns of."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gankern.ops._impl import MIN_CAPABILITY

TRITON_OF_TORCH = {(2, 10): (3, 6), (2, 11): (3, 6), (2, 12): (3, 7), (2, 13): (3, 7)}
"""The Triton that each torch was released with."""


@dataclass(frozen=True)
class Setup:
    """What a problem depends on; (major, minor) versions and compute capabilities."""

    torch: tuple[int, int]
    triton: tuple[int, int] | None
    cuda_build: bool
    capabilities: tuple[tuple[int, int], ...]
    platform: str
    interpret: bool
    compiler: bool = True


PROBLEMS: tuple[tuple[Callable[[Setup], bool], str], ...] = (
    (lambda s: s.torch < (2, 10), "torch before 2.10 isn't supported"),
    (lambda s: s.triton is None and s.platform == "linux", "triton isn't installed: every operator runs in eager"),
    (lambda s: s.platform != "linux", "Triton has no official build here: every operator runs in eager PyTorch"),
    (
        lambda s: s.triton is not None and s.triton < (3, 6),
        "triton before 3.6 isn't supported",
    ),
    (
        lambda s: s.triton is not None and s.triton != TRITON_OF_TORCH.get(s.torch, s.triton),
        "triton isn't the one that this torch was released with: torch.compile may fail",
    ),
    (lambda s: bool(s.capabilities) and s.interpret, "TRITON_INTERPRET=1 beside a GPU: kernels run on the CPU, slowly"),
    (
        lambda s: any(c < MIN_CAPABILITY for c in s.capabilities),
        "a GPU older than sm_80: the kernels don't run on it, eager PyTorch does",
    ),
    (
        lambda s: bool(s.capabilities) and s.triton is not None and s.triton < (3, 7) and not s.compiler,
        "no C compiler: triton 3.6 builds its launcher with one at a kernel's first launch (install gcc or set CC)",
    ),
    (lambda s: not s.cuda_build and not s.capabilities, "this torch was built without CUDA: it uses no GPU"),
)


def version(text: str) -> tuple[int, int]:
    """(major, minor) of a version such as 2.13.0+cpu or 3.6rc1."""
    major, minor = re.match(r"(\d+)\.(\d+)", text).groups()
    return int(major), int(minor)


def setup() -> Setup:
    """This machine's."""
    triton = None
    if importlib.util.find_spec("triton"):
        triton = version(importlib.metadata.version("triton"))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Setup(
        torch=version(torch.__version__),
        triton=triton,
        cuda_build=torch.version.cuda is not None,
        capabilities=tuple(torch.cuda.get_device_capability(i) for i in range(count)),
        platform=sys.platform,
        interpret=os.environ.get("TRITON_INTERPRET") == "1",
        compiler=any(shutil.which(name) for name in (os.environ.get("CC") or "gcc", "clang")),
    )


def problems(of: Setup) -> list[str]:
    """What is known to go wrong, one line each."""
    return [text for applies, text in PROBLEMS if applies(of)]
