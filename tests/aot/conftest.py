"""The stand-in for the driver, built once, and what cuDNN plans with it for each GPU."""

import functools
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
WHEELS = "nvidia-cudnn-frontend", "nvidia-cudnn-cu13"


def _missing() -> str | None:
    for wheel in WHEELS:
        try:
            importlib.metadata.version(wheel)
        except importlib.metadata.PackageNotFoundError:
            return f"{wheel} isn't installed"
    return None if shutil.which("gcc") else "gcc isn't installed"


def pytest_collection_modifyitems(items):
    if reason := _missing():
        skip = pytest.mark.skip(reason=f"plans without a GPU: {reason}")
        for item in items:
            if item.get_closest_marker("aot"):  # keywords hold the folders' names too
                item.add_marker(skip)


@pytest.fixture(scope="session")
def cudnn_version() -> tuple[int, ...]:
    return tuple(int(part) for part in importlib.metadata.version("nvidia-cudnn-cu13").split(".")[:2])


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    """That of a process which takes the stand-in for the driver, and the wheels' libraries."""
    stub = tmp_path_factory.mktemp("stub")
    library, source = stub / "libcuda.so.1", HERE / "stub_driver.c"
    flags = "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"
    subprocess.run(["gcc", *flags, library, source, "-ldl"], check=True)
    wheels = [Path(root) for root in importlib.util.find_spec("nvidia").submodule_search_locations]
    folders = [stub, *(lib for root in wheels for lib in sorted(root.glob("*/lib")))]
    return os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(map(str, folders))}


@pytest.fixture(scope="session")
def plans_on(environment, tmp_path_factory):
    """plans_on(90) -> a dict for each graph: what it is, its plan, its kernels. All of them where GANKERN_AOT=all."""

    @functools.cache
    def plan(capability: int) -> list[dict]:
        folder = tmp_path_factory.mktemp(f"sm_{capability}")
        argv = [sys.executable, HERE / "planner.py", str(capability), folder, os.environ.get("GANKERN_AOT", "some")]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    return plan


@pytest.fixture(scope="session")
def cuobjdump():
    """cuobjdump(option, image) -> what triton's prints."""
    triton = importlib.util.find_spec("triton")
    tool = triton and Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool or not tool.exists():
        pytest.skip("triton, which brings cuobjdump, isn't installed")
    return lambda *argv: subprocess.run([tool, *argv], capture_output=True, text=True, check=True).stdout
