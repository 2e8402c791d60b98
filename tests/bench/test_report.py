"""What a benchmark writes down, and the arithmetic of its times."""

import pytest

from gankern.bench import known, report, timing
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
