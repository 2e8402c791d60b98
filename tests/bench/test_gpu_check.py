"""benchmarks/gpu_check.sh and `pytest benchmarks/`, as far as they go without a GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="what is done without a GPU")


def run(*command, **environment):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@no_gpu
def test_dry_run_passes_every_stage(tmp_path):
    pytest.importorskip("triton")
    found = run("bash", SCRIPT, tmp_path / "out", GPU_CHECK_DRY="1")
    log = (tmp_path / "out" / "log.txt").read_text()
    assert found.returncode == 0, found.stdout + log[-3000:]
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert summary.count(" ok\n") == 5
    assert "pixel_norm double" in summary
    assert "s/kimg" in summary
    assert found.stdout.endswith(summary)
    assert len(list((tmp_path / "out").iterdir())) <= 8


def test_precompile_knows_the_kernels_of_every_phase():
    pytest.importorskip("triton")
    code = "import precompile; precompile.RUNS = ((16, 128, 4, 'fp32'), (16, 128, 8, 'bf16'));"
    code += "print(*{launch.name for launch in precompile.launches()})"
    path = os.pathsep.join((str(ROOT), str(ROOT / "benchmarks")))
    found = run(sys.executable, "-c", code, PYTHONPATH=path, TRITON_INTERPRET="0")
    names = set(found.stdout.split())
    assert names >= {"layer_forward", "layer_backward", "layer_fir_forward", "layer_fir_backward"}, found.stderr
    assert names >= {"act_filter", "act_filter_backward", "act_filter_tangent", "upfirdn2d", "minibatch_stddev_second"}


@no_gpu
def test_without_a_gpu_it_says_so(tmp_path):
    found = run("bash", SCRIPT, tmp_path / "out", GPU_CHECK_DRY="0")
    assert found.returncode == 1
    assert "no CUDA GPU" in found.stderr


def test_stages_fit_nine_minutes_and_eight_files():
    text = SCRIPT.read_text()
    probe = int(re.search(r"gpu=\$\(timeout (\d+)", text)[1])
    text = text.split("else\n    spread=")[1]
    limits = [probe, *map(int, re.findall(r"^ *stage \S+ (\d+) ", text, re.MULTILINE))]
    assert len(limits) == 11
    assert sum(limits) + 20 + 10 <= 540
    assert len(re.findall(r"\$out/\w+_\$gpu\.json", text)) + 2 <= 8


@no_gpu
def test_speed_tests_are_skipped_with_their_reason():
    found = run(sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "benchmarks/")
    assert found.returncode == 0, found.stdout[-2000:]
    assert re.search(r"needs (a CUDA GPU|pytest-benchmark)", found.stdout)
    assert "failed" not in found.stdout
