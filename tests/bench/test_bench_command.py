"""`gankern bench` as a person types it, on a machine without a GPU."""

import json
import subprocess
import sys

import pytest
import torch

from gankern.bench import cases, compiled, run
from gankern.bench.report import Report
from gankern.bench.run import Plan

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="what is done without a GPU")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ops", "bias_akt"], ("--ops", "bias_akt", "bias_act")),
        (["--network", "config-g"], ("--network", "config-g", "config-f-1024")),
        (["--batch", "0"], ("--batch", "0")),
        (["--batch", "8,x"], ("--batch", "8,x")),
        (["--dtype", "int8"], ("--dtype", "int8", "bf16")),
        (["--layout", "hwc"], ("--layout", "hwc", "nhwc")),
        (["--mode", "sideways"], ("--mode", "sideways", "backward")),
        (["--providers", "jax"], ("--providers", "jax", "triton")),
        (["--ops", ""], ("--ops",)),
        (["--out", "/nowhere/at/all.json"], ("--out", "/nowhere/at")),
    ],
    ids=lambda value: "=".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_one_line(refused, options, words):
    refused("bench", "ops", *options, words=words)


def test_an_action_is_needed(refused):
    refused("bench", words=("ACTION",))


@no_gpu
def test_tuning_needs_a_gpu(refused, tmp_path):
    refused("bench", "tune", "--out", tmp_path / "s.json", words=("CUDA GPU",))
    refused("bench", "tune", "--out", tmp_path / "no" / "s.json", words=("--out",))
    assert not list(tmp_path.iterdir())


@no_gpu
def test_without_a_gpu_it_says_so_and_prints_what_it_can(cli, tmp_path):
    pytest.importorskip("triton")
    code, out, err = cli("bench", "ops", "--ops", "bias_act", "--network", "progan", "--out", tmp_path / "r.json")
    assert code == 0, err
    assert out.startswith("No CUDA GPU that torch can use: nothing is timed.")
    result = Report.load(tmp_path / "r.json")
    assert [(row.op, row.provider, row.ms, row.note) for row in result.rows] == [("bias_act", "triton", None, "right")]
    facts = result.settings["facts"]
    assert {fact["kernel"] for fact in facts} == {"bias_act_forward", "bias_act_backward", "bias_act_second"}
    assert {fact["arch"] for fact in facts} == set(compiled.ARCHITECTURES)
    for word in ("registers", "stack", "4x128", "bias_act_backward"):
        assert word in out
    assert "gpu" not in result.machine
    assert json.loads((tmp_path / "r.json").read_text())["machine"]["torch"] == torch.__version__


def test_the_command_line_needs_no_triton():
    script = "import sys; sys.modules['triton'] = None; from gankern.cli import main; main(['bench', 'ops', '--help'])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout.startswith("usage: gankern bench ops"), found.stderr


def test_a_failing_child_is_told_of():
    with pytest.raises(RuntimeError, match="KeyError"):
        compiled.facts(["no_such_operator"], None, processes=1)


def test_env_tells_the_driver_and_known_problems(cli):
    code, out, _ = cli("env")
    assert code == 0
    assert "driver" in out
    for op in cases.OPS:
        assert op in out


@pytest.mark.gpu
@pytest.mark.parametrize("op", cases.OPS)
def test_on_a_gpu_everything_right_is_timed(op):
    networks = ("progan",) if op.endswith(("pixel_norm", "instance_norm")) else ("config-f-256",)
    plan = Plan(ops=(op,), networks=networks, batches=(4,), modes=cases.MODES, providers=("eager", "triton"), seconds=2)
    result = run.on_gpu(plan, print, lambda report: None)
    rows = [row for row in result.rows if row.provider == "triton"]
    assert rows
    assert not [row for row in result.rows if row.ms is None]
    assert all(row.q1 <= row.ms <= row.q3 and row.error <= row.limit for row in rows)
