"""A compiled library that can't be loaded: gankern is imported and works, and says what is wrong."""

import os
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.unforced

CODE = """
import torch
from gankern.cli import main
from gankern.ops import bias_act
print(bias_act(torch.zeros(2, 3)).shape)
raise SystemExit(main(["env"]))
"""


def env_with(library) -> str:
    """What a process prints that finds this library: one call of an operator, then `gankern env`."""
    environment = os.environ | {"GANKERN_CUDA_LIB": str(library), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "torch.Size([2, 3])" in run.stdout
    assert "Traceback" not in run.stdout + run.stderr
    return next(line for line in run.stdout.splitlines() if line.startswith("cuda kernels"))


def test_a_file_that_is_no_library(tmp_path):
    file = tmp_path / "_cuda.abi3.so"
    file.write_text("nothing")
    line = env_with(file)
    assert f"GANKERN_CUDA_LIB={file}; can't be loaded" in line
    assert "too short" in line or "invalid ELF" in line


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_a_library_with_a_missing_symbol(tmp_path):
    library = tmp_path / "_cuda.abi3.so"
    source = "void gankern_missing(void); __attribute__((constructor)) void use(void) { gankern_missing(); }"
    command = ["g++", "-x", "c", "-shared", "-fPIC", "-", "-o", library]
    subprocess.run(command, input=source, text=True, check=True)
    assert "can't be loaded" in (line := env_with(library))
    assert "undefined symbol: gankern_missing" in line


def test_a_library_that_is_not_there(tmp_path):
    assert "no such file" in env_with(tmp_path / "none.so")
