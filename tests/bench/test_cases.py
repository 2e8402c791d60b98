"""What is benchmarked: shapes of real networks, plain PyTorch that computes the same, a gate that catches errors."""

import itertools

import pytest
import torch

from gankern.bench import cases, check, report, run, timing
from gankern.bench.cases import Case, Site
from gankern.bench.run import Plan

KINDS = [
    Case(op, site).shrunk(6, 6)
    for op in cases.OPS
    for site in {s.kind: s for s in cases.OPS[op].compile_sites}.values()
]


def test_config_f_has_the_papers_channels():
    levels = dict(reversed(level) for level in cases.NETWORKS["config-f-1024"].levels())
    assert levels == {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}
    levels = dict(reversed(level) for level in cases.NETWORKS["config-f-256"].levels())
    assert levels == {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64}
    assert cases.NETWORKS["progan"].channels(1024) == 16


def test_a_modulated_layer_at_every_place_of_the_generator():
    sites = [case.site for case in cases.network_cases("modulated_conv2d", "config-f-1024")]
    assert Site("conv0 up", 64, 512, 32) in sites
    assert Site("conv1", 32, 1024, 32) in sites
    assert Site("torgb", 32, 1024, 3) in sites
    assert len(sites) == 8 + 9 + 9


@pytest.mark.parametrize("op", cases.OPS)
def test_every_operator_is_timed_somewhere(op):
    assert any(cases.network_cases(op, network) for network in cases.NETWORKS)


def test_every_operator_of_the_package_has_cases():
    from gankern.ops import implementations

    assert set(implementations()) == set(cases.OPS)


def test_tensors_have_the_layout_and_type_asked_for():
    case = Case("bias_act", Site("lrelu", 6, 4))
    for dtype, layout in itertools.product(("bf16", "fp16", "fp32"), cases.LAYOUTS):
        x = case.tensors(dtype, layout, 3, "cpu")["x"]
        assert (x.shape, x.dtype, x.requires_grad) == ((3, 6, 4, 4), cases.DTYPES[dtype], True)
        assert x.is_contiguous() == (layout == "nchw")
    assert case.tensors("bf16", "nhwc", 3, "cpu")["bias"].dtype == torch.bfloat16


def test_least_bytes_count_each_pass():
    case = Case("bias_act", Site("lrelu", 6, 4))
    x = torch.empty(2, 6, 4, 4, dtype=torch.bfloat16)
    one = x.numel() * 2
    assert [case.least_bytes(mode, x, x) for mode in cases.MODES] == [2 * one, 3 * one, 5 * one, 3 * one]
    assert Case("modulated_conv2d", Site("conv1", 6, 4, 6)).least_bytes("double", x, x) is None


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("case", KINDS, ids=lambda case: f"{case.op}-{case.site.kind}")
def test_plain_pytorch_is_the_same_function(case, layout):
    """The baseline agrees with the operator's definition in value and both orders, so the comparison is fair."""
    verdict = check.Gate(case, "fp32", layout, 4, "cpu", order=2).check(check.provider(case, "reference"))
    assert verdict.ok, verdict


# -- the gate ---------------------------------------------------------------------------------------------------------


def _slightly_wrong(case):
    def call(tensors):
        y = case.eager(tensors)
        first = torch.zeros_like(y)
        first[0, 0, 0, 0] = 1
        return y + first

    return call


def _wrong_gradient(case):
    def call(tensors):
        y = case.eager(tensors)
        return y.detach() + 0.9 * (y - y.detach())

    return call


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("wrong", [_slightly_wrong, _wrong_gradient])
def test_the_gate_catches_a_wrong_provider(wrong, dtype):
    case = Case("bias_act", Site("lrelu", 6, 8))
    gate = check.Gate(case, dtype, "nhwc", 2, "cpu", order=1)
    assert gate.check(case.eager).ok
    assert not gate.check(wrong(case)).ok


def test_the_gate_catches_what_is_never_written():
    case = Case("bias_act", Site("lrelu", 6, 8))

    def half_written(tensors):
        y = case.eager(tensors)
        out = torch.empty_like(y)
        out[:1] = y.detach()[:1]
        return out + 0 * y

    assert not check.Gate(case, "fp32", "nchw", 2, "cpu", order=0).check(half_written, poison=True).ok


class _FirstOrderOnly(torch.autograd.Function):
    """pixel_norm whose gradient takes x for a constant."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return y.clone()

    @staticmethod
    def backward(ctx, dy):
        x, y = (t.detach() for t in ctx.saved_tensors)
        norm = torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)
        return norm * (dy - y * (dy * y).mean(1, keepdim=True)), None


def test_the_gate_catches_a_wrong_second_order():
    case = Case("pixel_norm", Site("image", 6, 4))

    def call(tensors):
        return _FirstOrderOnly.apply(tensors["x"], case.eager(tensors).detach())

    assert check.Gate(case, "fp32", "nchw", 2, "cpu", order=1).check(call).ok
    assert not check.Gate(case, "fp32", "nchw", 2, "cpu", order=2).check(call).ok


@pytest.mark.parametrize("mode", cases.MODES)
def test_a_step_can_run_again_and_again(mode):
    case = Case("bias_act", Site("tanh", 6, 4))
    step = check.step(case.eager, case.tensors("fp32", "nhwc", 2, "cpu"), mode)
    step()
    step()


def test_providers_that_cannot_run_say_why():
    case = Case("bias_act", Site("lrelu", 6, 4))
    assert check.missing(case, "eager", "double") is None
    assert check.missing(case, "triton", "double") is None
    assert "double backward" in check.missing(case, "compile", "double")
    assert check.missing(case, "cuda", "forward") is None
    norm = Case("instance_norm", Site("adain lrelu", 6, 4))
    assert "instance_norm has no cuda" in check.missing(norm, "cuda", "forward")


# -- plans ------------------------------------------------------------------------------------------------------------


def test_a_plan_names_each_spot_once():
    plan = Plan(ops=("bias_act",), networks=("config-f-1024", "config-f-256"), batches=(1, 8), layouts=cases.LAYOUTS)
    spots = run.spots(plan)
    assert len(spots) == len(set(spots))
    assert {spot.case.site.size for spot in spots} == {2**i for i in range(2, 11)}


def test_quick_keeps_what_moves_64_megabytes():
    spots = run.spots(Plan(ops=("bias_act",), quick=True))
    assert {spot.case.site.size for spot in spots} == {64, 128, 256, 512, 1024}
    assert not run.spots(Plan(ops=("minibatch_stddev",), quick=True))


class _Counts:
    """A clock for the CPU: it runs the steps and makes up a time."""

    def __init__(self, budget):
        self.budget = budget

    def time(self, steps):
        for step in [*steps, *steps]:
            step()
        return timing.quartiles([1.0, 2.0, 3.0])

    def copy_rate(self):
        return 1000.0

    def matmul_rate(self):
        return 100.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run in the interpreter, which a GPU leaves off")
def test_the_whole_run_with_a_clock_for_the_cpu(monkeypatch, tmp_path):
    """Checked, timed, told why not, and never timed where wrong; one provider's failure doesn't end the run."""
    spot = run.Spot(Case("bias_act", Site("lrelu", 6, 4)), 2, "fp32", "nhwc")
    plain = check.provider

    def provider(case, name):
        if name == "cuda":
            return lambda tensors: 1.01 * case.eager(tensors)
        if name == "reference":
            return lambda tensors: torch.ones(2) + torch.ones(3)
        return plain(case, "eager" if name == "compile" else name)

    for name, value in {"DEVICE": "cpu", "Clock": _Counts, "spots": lambda plan: [spot]}.items():
        monkeypatch.setattr(run, name, value)
    monkeypatch.setattr(run, "peak_bytes", lambda step: 2**20)
    monkeypatch.setattr(run, "gate_batch", lambda spot: spot.batch)
    monkeypatch.setattr(check, "provider", provider)
    monkeypatch.setattr(cases, "available", lambda op: ["triton", "cuda"])
    providers = ("eager", "compile", "triton", "cuda", "reference", "triton_gemm")
    lines = []
    plan = Plan(ops=("bias_act",), modes=cases.MODES, providers=providers)
    result = run.on_gpu(plan, lines.append, run.save_to(str(tmp_path / "r.json")))
    rows = {(row.provider, row.mode): row for row in result.rows}
    assert len(rows) == len(providers) * len(cases.MODES)
    for name in ("eager", "triton"):
        for mode in cases.MODES:
            row = rows[name, mode]
            assert (row.ms, row.q1, row.q3, row.peak) == (2.0, 1.5, 2.5, 2**20)
            assert row.percent == pytest.approx(row.bytes / 2e-3 / 1e9 / 1000 * 100)
            assert row.error <= row.limit
    assert "double backward" in rows["compile", "double"].note
    for mode in cases.MODES:
        assert rows["cuda", mode].note.startswith("WRONG: ")
        assert rows["reference", mode].note.startswith("FAILED: RuntimeError")
        assert "no triton_gemm" in rows["triton_gemm", mode].note
        assert rows["cuda", mode].ms is rows["reference", mode].ms is None
    assert report.Report.load(tmp_path / "r.json").rows == result.rows
    assert "1000 GB/s" in lines[0]


def test_no_case_is_begun_after_the_time_is_up(monkeypatch):
    spot = run.Spot(Case("bias_act", Site("lrelu", 6, 4)), 2, "fp32", "nhwc")
    for name, value in {"DEVICE": "cpu", "Clock": _Counts, "spots": lambda plan: [spot]}.items():
        monkeypatch.setattr(run, name, value)
    result = run.on_gpu(Plan(ops=("bias_act",), seconds=-1.0), print, lambda report: None)
    assert result.left_out == ["bias_act lrelu 6ch 4² x2 fp32 nhwc"]


def test_a_failure_is_one_line():
    assert run._failure(RuntimeError("first line\nsecond")) == "FAILED: RuntimeError: first line"
    assert run._failure(torch.OutOfMemoryError("much")) == "out of memory"
