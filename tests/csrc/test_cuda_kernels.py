"""csrc/ through nvcc, which needs no GPU: it compiles without a warning, spills nothing, moves 16 bytes at a time."""

import re

import cuda_facts
import pytest

from gankern import binary, build

ARCHS = ["8.0", "9.0", "10.0", "12.0"]
VECTOR = {"float": 4, "__half": 8, "__nv_bfloat16": 8}
ONLY_SUMS = ("sum_parts",)
"""Kernels that read and write a few partial sums."""


def _missing() -> str | None:
    try:
        build.toolchain("cuda", ARCHS)
    except build.BuildError as error:
        return str(error)
    return None if cuda_facts.sass_tool() else "no cuobjdump"


pytestmark = pytest.mark.skipif(_missing() is not None, reason=_missing() or "")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return cuda_facts.all_kernels(ARCHS, tmp_path_factory.mktemp("cubins"))


def vectors(kernel) -> bool:
    """Whether a kernel is the instance for 16-byte vectors: its template begins with <type, elements of a vector, or
    with a tile of the filters, which always takes them."""
    match = re.search(r"<(float|__half|__nv_bfloat16), (\d+)", kernel.name)
    return "Tile<" in kernel.name or (bool(match) and int(match[2]) == VECTOR[match[1]])


def test_every_source_compiles_for_every_architecture_without_a_warning(kernels):
    sources = {path.name for path in binary.csrc_dir().glob("*.cu")} - {"library.cu"}
    for arch in ARCHS:
        assert {kernel.source for kernel in kernels if kernel.arch == arch} == sources


def test_nothing_spills(kernels):
    spilled = [f"{k}: {k.registers} registers, stack {k.stack}" for k in kernels if k.stack or k.spilled]
    assert not spilled, "\n".join(spilled)
    local = [str(k) for k in kernels if any(key.startswith(("LDL", "STL")) for key in k.widths)]
    assert not local, "\n".join(local)


def test_main_paths_move_sixteen_bytes_at_a_time(kernels):
    main = [k for k in kernels if vectors(k) and not any(name in k.name for name in ONLY_SUMS)]
    assert len({k.source for k in main}) == len({k.source for k in kernels})
    narrow = [f"{k}: {k.widths}" for k in main if not (k.widths.get("LDG.128") and k.widths.get("STG.128"))]
    assert not narrow, "\n".join(narrow)
