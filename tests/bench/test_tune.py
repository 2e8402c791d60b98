"""Which settings win: the choice, the table that it's written to, and what is timed."""

import importlib
import json

import pytest
import torch

from gankern.bench import run, timing, tune
from gankern.bench.cases import Case, Site

without_gpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="kernels run in the interpreter, which a GPU leaves off"
)


def on_the_cpu(monkeypatch, spot, clock):
    """Makes `tune` measure this one spot in the interpreter with this clock."""
    monkeypatch.setattr(tune, "Clock", clock)
    for name, value in {"DEVICE": "cpu", "spots": lambda plan: [spot], "gate_batch": lambda spot: 2}.items():
        monkeypatch.setattr(run, name, value)


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


@without_gpu
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
    on_the_cpu(monkeypatch, spot, Clock)
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


# -- the modulated layer's one kernel ---------------------------------------------------------------------------------


@pytest.fixture
def duel(monkeypatch):
    """duel(ms) -> what tuning finds of a layer in the library's 1 ms, and its one kernel's: `ms` with the second of
    two settings, three times that with the first."""
    pytest.importorskip("triton")
    from gankern.ops import _triton
    from gankern.ops.modulated_conv2d import gemm

    importlib.import_module("gankern.ops.modulated_conv2d.kernels")
    ran, plain = [], gemm.forward
    for kernel, count in {"layer_forward": 1, "layer_backward": 1, "layer_gemm": 2}.items():
        monkeypatch.setitem(_triton.CONFIGS, kernel, _triton.CONFIGS[kernel][:count])

    def noted(*args):
        second = _triton._forced.get("layer_gemm") == _triton.CONFIGS["layer_gemm"][1]
        ran.append(1 if second else 3)
        return plain(*args)

    def find(ms, stale=None, wrong=1.0):
        class Clock:
            def time(self, steps):
                ran.clear()
                for step in steps:
                    step()
                return timing.quartiles([ms * ran[0] if ran else 1.0])

        monkeypatch.setattr(gemm, "measured", lambda *args: stale)
        monkeypatch.setattr(gemm, "forward", lambda *args: tuple(wrong * t for t in noted(*args)))
        on_the_cpu(monkeypatch, run.Spot(Case("modulated_conv2d", Site("conv1", 4, 4, 4)), 2, "fp32", "nhwc"), Clock)
        return tune.tune(run.Plan(ops=("modulated_conv2d",)), lambda line: None)

    return find


@without_gpu
@pytest.mark.parametrize(("ms", "wins"), [(0.5, 1), (0.98, 0), (2.0, 0)])
@pytest.mark.parametrize("stale", [None, 1])
def test_the_one_kernel_must_win_clearly_whatever_stood_in_the_table(duel, ms, stale, wins):
    found = duel(ms, stale)
    ((key, setting),) = found["layer_gemm"].items()
    assert setting == 1
    assert found["layer_gemm_wins"] == {key: wins}


@without_gpu
def test_wrong_numbers_never_win(duel):
    found = duel(0.5, wrong=1.5)
    assert "layer_gemm" not in found
    assert list(found["layer_gemm_wins"].values()) == [0]


@without_gpu
@pytest.mark.parametrize(("entry", "serves"), [(None, False), (0, False), (1, True)])
def test_the_entry_decides_what_runs(monkeypatch, entry, serves):
    pytest.importorskip("triton")
    from gankern.ops.modulated_conv2d import gemm

    asked, ran, plain = [], [], gemm.forward
    monkeypatch.setattr(gemm, "measured", lambda *args: asked.append(args) or entry)
    monkeypatch.setattr(gemm, "forward", lambda *args: ran.append(args) or plain(*args))
    case = Case("modulated_conv2d", Site("conv1", 4, 4, 4))
    tensors = case.tensors("fp32", "nhwc", 2, "cpu")
    case.call(tensors, "triton")
    assert bool(ran) is serves
    (name, key, _), *_ = asked
    assert name == tune.GEMM_WINS
    spot = run.Spot(case, 2, "fp32", "nhwc")
    assert tune.kernels_of(spot)[tune.GEMM][0] == key
