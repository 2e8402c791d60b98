"""What a benchmark writes down, and the arithmetic of its times."""

import json

import pytest
import torch

from gankern.bench import known, report, run, timing, tune
from gankern.bench.cases import Case, Site
from gankern.bench.known import Setup
from gankern.bench.report import Report, Row


def row(provider="triton", ms=2.0, **more):
    values = {"op": "bias_act", "case": "lrelu 32ch 1024²", "dtype": "bf16", "layout": "nhwc", "batch": 8}
    values |= {"mode": "forward", "provider": provider, "ms": ms, "q1": 1.9, "q3": 2.1, "runs": 10}
    return Row(**values | more)


def test_quartiles():
    found = timing.quartiles([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found.q1, found.median, found.q3, found.runs) == (2.0, 3.0, 4.0, 5)
    assert timing.quartiles([7.0]) == timing.Timing(7.0, 7.0, 7.0, 1)


def test_bandwidth_and_percent_of_copy():
    assert timing.bandwidth(3_000_000_000, 1.0) == pytest.approx(3000)
    assert report.percent_of(2760.0, 3000.0) == pytest.approx(92)
    assert report.percent_of(None, 3000.0) is None
    assert report.percent_of(10.0, None) is None


def test_runs_fit_the_budget():
    assert timing.repeats(once=4.0, budget=200.0) == 50
    assert timing.repeats(once=1000.0, budget=200.0) == timing.LEAST
    assert timing.repeats(once=0.0, budget=200.0) == timing.MOST


def test_json_round_trip(tmp_path):
    result = Report(report.machine(), {"ops": ["bias_act"]}, {"copy_gbps": 3000.0}, [row(), row(ms=None, note="no")])
    result.save(tmp_path / "r.json")
    again = Report.load(tmp_path / "r.json")
    assert again == result
    assert {"gankern", "commit", "torch", "triton", "cuda", "python"} <= again.machine.keys()


def test_table_shows_times_speed_over_eager_and_reasons():
    rows = [row("eager", 4.0), row("triton", 2.0, gbps=2700.0, percent=90.0, peak=2**21, error=1e-3)]
    rows.append(row("cuda", None, note="bias_act has no cuda implementation"))
    lines = report.table(rows).splitlines()
    assert len(lines) == 4
    assert "2.00x" in lines[2]
    assert "90%" in lines[2]
    assert "2700" in lines[2]
    assert "no cuda" in lines[3]


def test_summary_has_means_and_counts_losses():
    rows = [row("eager", 4.0), row("compile", 2.0), row("triton", 2.0, percent=90.0)]
    rows += [row("eager", 1.0, case="small"), row("compile", 1.0, case="small")]
    rows += [row("triton", 2.0, case="small", percent=40.0)]
    rows += [row("triton", None, case="other", note="WRONG: dx errs")]
    line = report.summary(rows).splitlines()[3].split()
    assert line == ["bias_act", "forward", "triton", "2", "65%", "40%", "1.00x", "0.71x", "2", "1"]


def test_columns_line_up():
    lines = report.columns(["a", "b"], [["long name", 1.0], ["x", None]]).splitlines()
    assert lines == ["a          b", "long name  1", "x          -"]


def test_plots(tmp_path):
    pytest.importorskip("matplotlib")
    result = Report({"gpu": "none"}, {}, {}, [row("eager", 4.0), row("triton", 2.0), row("cuda", None)])
    (path,) = report.plot(result, tmp_path / "plots")
    assert path.stat().st_size > 1000


# -- tuning -----------------------------------------------------------------------------------------------------------


def test_a_setting_wins_by_more_than_noise():
    assert tune.winner({0: 1.0, 1: 0.99, 2: 1.2}) == 0
    assert tune.winner({0: 1.0, 1: 0.9, 2: 0.8}) == 2
    assert tune.winner({1: 0.9, 2: 0.8}) == 2, "the default doesn't run or is wrong"


def test_the_table_keeps_other_gpus_and_classes(tmp_path):
    path = tmp_path / "settings.json"
    tune.write({"bias_act_forward": {"bfloat16 cols 64": 1}}, path, "GPU A")
    tune.write({"bias_act_forward": {"bfloat16 cols 32": 2}}, path, "GPU A")
    tune.write({"pixel_norm_forward": {"x": 0}}, path, "GPU B")
    assert json.loads(path.read_text()) == {
        "GPU A": {"bias_act_forward": {"bfloat16 cols 32": 2, "bfloat16 cols 64": 1}},
        "GPU B": {"pixel_norm_forward": {"x": 0}},
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run in the interpreter, which a GPU leaves off")
def test_tuning_with_a_clock_for_the_cpu(monkeypatch):
    """Each setting is checked and timed; the fastest wins, and one whose numbers are wrong can't."""
    pytest.importorskip("triton")
    from gankern.ops import _triton
    from gankern.ops.bias_act import kernels

    spot = run.Spot(Case("bias_act", Site("lrelu", 6, 4)), 2, "fp32", "nhwc")
    count = len(_triton.CONFIGS["bias_act_forward"])
    times = iter([3.0, 2.0, 1.0] + [1.0] * 20)

    class Clock:
        def time(self, steps):
            for step in steps:
                step()
            return timing.quartiles([next(times)])

    plain = kernels.forward

    def wrong_in_the_last(*args, **kwargs):
        last = _triton._forced.get("bias_act_forward") == _triton.CONFIGS["bias_act_forward"][-1]
        return plain(*args, **kwargs) * (1.5 if last else 1.0)

    monkeypatch.setattr(kernels, "forward", wrong_in_the_last)
    monkeypatch.setattr(tune, "Clock", Clock)
    for name, value in {"DEVICE": "cpu", "spots": lambda plan: [spot], "gate_batch": lambda spot: 2}.items():
        monkeypatch.setattr(run, name, value)
    lines = []
    found = tune.tune(run.Plan(ops=("bias_act",)), lines.append)
    (key,) = found["bias_act_forward"]
    assert count == 3
    assert found["bias_act_forward"][key] == 1
    assert "2.000" in lines[0]
    assert set(found) == {"bias_act_forward", "bias_act_backward"}


def test_every_kernel_is_tuned_in_the_mode_that_launches_it():
    found = tune.kernels_of(run.Spot(Case("bias_act", Site("tanh", 64, 64)), 8, "bf16", "nhwc"))
    modes = {kernel: mode for kernel, (_, _, mode) in found.items()}
    assert modes["bias_act_forward"] == "forward"
    assert modes["bias_act_backward"] == "backward"
    assert modes["bias_act_second"] == "double"


# -- known problems ---------------------------------------------------------------------------------------------------

GOOD = {"torch": (2, 13), "triton": (3, 7), "cuda_build": True, "capabilities": ((9, 0),), "platform": "linux"}


def test_a_good_machine_has_no_known_problem():
    assert known.problems(Setup(**GOOD, interpret=False)) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"torch": (2, 9)}, "2.10"),
        ({"triton": None}, "triton isn't installed"),
        ({"triton": (3, 5)}, "3.6"),
        ({"triton": (3, 6)}, "released with"),
        ({"capabilities": ((7, 5),)}, "sm_80"),
        ({"interpret": True}, "TRITON_INTERPRET"),
        ({"cuda_build": False, "capabilities": ()}, "without CUDA"),
        ({"platform": "darwin", "triton": None}, "no official build"),
        ({"triton": (3, 6), "torch": (2, 11), "compiler": False}, "no C compiler"),
    ],
)
def test_known_problems(change, word):
    assert word in " ".join(known.problems(Setup(**GOOD | {"interpret": False} | change)))


def test_versions():
    assert known.version("2.13.0+cpu") == (2, 13)
    assert known.version("3.6rc1") == (3, 6)
