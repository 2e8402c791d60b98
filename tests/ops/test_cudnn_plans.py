"""Plans of cuDNN's graphs: built once, timed, kept on disk, refused; by a frontend that only takes notes."""

import contextlib
import importlib.metadata
import sys
import types
import warnings

import pytest
import torch
from cudnn_notes import Event, Frontend

from gankern.ops import _impl
from gankern.ops.cudnn import discriminator, frontend, layers, plans
from gankern.ops.cudnn.graph import spec

pytestmark = pytest.mark.unforced
CUDA = torch.device("cuda", 0)


@pytest.fixture
def cudnn(monkeypatch, tmp_path):
    """The frontend that takes notes, with a GPU that isn't there and an empty cache."""
    fake = Frontend()
    gpu = types.SimpleNamespace(name="Card", multi_processor_count=132, major=9, minor=0)
    monkeypatch.setattr(frontend, "module", lambda: fake)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.26.0")
    monkeypatch.setenv("GANKERN_CACHE", str(tmp_path))
    for name, value in {
        "device": lambda index: contextlib.nullcontext(),
        "current_device": lambda: 0,
        "get_device_properties": lambda index: gpu,
        "current_stream": lambda index: types.SimpleNamespace(cuda_stream=5),
        "is_current_stream_capturing": lambda: False,
        "Event": lambda enable_timing: Event(fake),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    operands = plans._operands
    monkeypatch.setattr(plans, "_operands", lambda graph, device: operands(graph, torch.device("cpu")))
    restart(monkeypatch)
    return fake


def restart(monkeypatch):
    """As in a process that begins."""
    monkeypatch.setattr(plans, "_plans", {})
    monkeypatch.setattr(plans, "_handles", {})
    plans._folder.cache_clear()


def tensors(size=4, dtype=torch.bfloat16):
    x, w, y = (torch.zeros(2, 3, size, size), torch.zeros(5, 3, 3, 3), torch.zeros(2, 5, size, size))
    x, w, y = (t.to(dtype).contiguous(memory_format=torch.channels_last) for t in (x, w, y))
    return {"x": x, "w": w, "b": torch.zeros(5, dtype=dtype), "y": y}


def graph_of(size=4):
    t = tensors(size)
    return layers.plain(*(spec(t[k]) for k in ("x", "w", "b")), None, spec(t["y"]), 1, 1, 0.2)


def cached(tmp_path):
    return [p for p in tmp_path.rglob("*") if p.is_file()]


# -- plans -------------------------------------------------------------------------------------------------------------


def test_built_once(cudnn):
    plan = plans.plan(graph_of(), CUDA)
    assert plan.engine == "slow"  # the first that cuDNN proposes
    assert plans.plan(graph_of(), CUDA) is plan
    assert plans.plan(graph_of(), torch.device("cuda")) is plan
    assert len(cudnn.graphs) == 1
    assert plans.plan(graph_of(8), CUDA) is not plan
    assert len(cudnn.graphs) == 2


def test_what_does_not_build_is_passed_over(cudnn):
    cudnn.engines = [("broken", None), ("works", 1), ("too", 1)]
    assert plans.plan(graph_of(), CUDA).engine == "works"
    assert 2 not in cudnn.graphs[0].built


def test_runs_on_its_operands_and_the_current_stream(cudnn, monkeypatch):
    monkeypatch.setattr(plans, "_handle", lambda device, handle=plans._handle: handle(CUDA))
    monkeypatch.setattr(plans, "plan", lambda graph, device, plan=plans.plan: plan(graph, CUDA))
    t = tensors()
    cudnn.engines = [("broken", None), ("works", 1)]
    plans.run(graph_of(), t | {"unread": None})
    plans.run(graph_of(), t)
    want = {uid: t[name].data_ptr() for uid, name in enumerate(["x", "w", "b", "y"], 1)}
    assert cudnn.ran == [(want, 101, 1, 42)] * 2
    assert cudnn.streams[-2:] == [(42, 5)] * 2


def test_refusals_are_remembered(cudnn):
    cudnn.refuses = "no engine for it"
    for _ in range(2):
        with pytest.raises(plans.Refused, match=r"^conv 2x3x4x4 5x3x3x3: no engine for it$"):
            plans.plan(graph_of(), CUDA)
    assert len(cudnn.graphs) == 1


def test_a_graph_of_which_no_plan_builds(cudnn, tmp_path):
    cudnn.engines = [("one", None), ("two", None)]
    for context in (contextlib.nullcontext(), plans.timed_builds()):
        with context, pytest.raises(plans.Refused, match="none of 2 plans builds"):
            plans.plan(graph_of(), CUDA)
        plans._plans.clear()
    (kept,) = cached(tmp_path)  # so that no start asks again
    assert kept.read_text() == "conv 2x3x4x4 5x3x3x3: none of 2 plans builds"
    assert len(cudnn.graphs) == 1


def test_nothing_is_built_during_capture(cudnn, monkeypatch):
    plans.plan(graph_of(), CUDA)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    plans.plan(graph_of(), CUDA)
    with pytest.raises(RuntimeError, match="conv: its cuDNN plan isn't built, and can't be during graph capture"):
        plans.plan(graph_of(8), CUDA)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    plans.plan(graph_of(8), CUDA)


def test_timed_against_each_other(cudnn):
    cudnn.engines = [("slow", 3), ("fast", 1), ("broken", None), ("middling", 2)]
    with plans.timed_builds():
        assert plans.plan(graph_of(), CUDA).engine == "fast"
    assert {index for *_, index, _ in cudnn.ran} == {0, 1, 3}
    assert plans.plan(graph_of(8), CUDA).engine == "slow"


def test_only_so_many_are_timed(cudnn):
    cudnn.engines = [(f"engine {i}", 100 - i) for i in range(plans.MOST_TIMED + 5)]
    with plans.timed_builds():
        assert plans.plan(graph_of(), CUDA).engine == f"engine {plans.MOST_TIMED - 1}"


# -- on disk -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timed", [False, True])
def test_a_second_start_builds_nothing(cudnn, monkeypatch, tmp_path, timed):
    cudnn.engines = [("slow", 3), ("fast", 1), ("middling", 2)]  # the fastest isn't the last that is built
    with plans.timed_builds() if timed else contextlib.nullcontext():
        engine = plans.plan(graph_of(), CUDA).engine
    assert engine == ("fast" if timed else "slow")
    (file,) = cached(tmp_path)
    assert file.parent.name.startswith("sm_90-")
    assert "-1.26.0-9.24.0-" in file.parent.name
    cudnn.graphs.clear()
    restart(monkeypatch)
    plan = plans.plan(graph_of(), CUDA)
    assert plan.engine == engine
    assert [g.read for g in cudnn.graphs] == [b"plan 1" if timed else b"plan 0"]
    cudnn.ran.clear()
    plan([torch.zeros(1)], 42)
    assert [(space, index) for _, space, index, _ in cudnn.ran] == [(7, None)]


@pytest.mark.parametrize("data", [b"", b"slow", b"slow\n", b"slow\ngarbage", b"\xff\nplan 0"])
def test_a_damaged_file_is_written_anew(cudnn, monkeypatch, tmp_path, data):
    plans.plan(graph_of(), CUDA)
    (file,) = cached(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(data)
    restart(monkeypatch)
    assert plans.plan(graph_of(), CUDA).engine == "slow"
    assert file.read_bytes() == whole
    assert cached(tmp_path) == [file]


@pytest.mark.parametrize("what", ["cudnn", "frontend", "gpu"])
def test_plans_of_other_versions_and_gpus_are_not_read(cudnn, monkeypatch, tmp_path, what):
    plans.plan(graph_of(), CUDA)
    restart(monkeypatch)
    if what == "cudnn":
        cudnn.version = 92800
    elif what == "frontend":
        monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.27.0")
    else:
        gpu = types.SimpleNamespace(name="Card", multi_processor_count=114, major=9, minor=0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    plans.plan(graph_of(), CUDA)
    assert len(cached(tmp_path)) == 2


def test_a_cache_that_cannot_be_written(cudnn, monkeypatch, tmp_path):
    (tmp_path / "cudnn").write_text("a file in the folder's place")
    assert plans.plan(graph_of(), CUDA).engine == "slow"
    assert [p.name for p in cached(tmp_path)] == ["cudnn"]


# -- ahead of a network ------------------------------------------------------------------------------------------------


def test_graphs_of_a_call():
    """Each once, from tensors without memory."""
    img = torch.empty(2, 3, 4, 4, device="meta").contiguous(memory_format=torch.channels_last)
    w = [torch.empty(3, 3, k, k, device="meta").contiguous(memory_format=torch.channels_last) for k in (1, 3, 3, 1)]
    b, f = [torch.empty(3, device="meta") for _ in range(3)], torch.empty(4, device="meta")
    call = lambda: discriminator.discriminator(img, w, b, f, [discriminator.MERGED], 0.2)  # noqa: E731
    once, twice = plans.graphs_of(call, CUDA), plans.graphs_of(lambda: [call(), call()], CUDA)
    assert [g.name for g in once] == ["conv"] * 4
    assert [g.key for g in once] == [g.key for g in twice]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_on_a_terminal(cudnn, monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert plans.prepare(iter([graph_of(), graph_of(8)]), CUDA) is None
    shown = capsys.readouterr().err
    assert shown == ("\rcuDNN plans: 0/2\r\033[K\rcuDNN plans: 1/2\r\033[K" if terminal else "")
    assert len(cudnn.graphs) == 2


def test_the_first_refusal_ends_it(cudnn):
    cudnn.refuses = "no engine"
    assert plans.prepare([graph_of(), graph_of(8)], CUDA) == "conv 2x3x4x4 5x3x3x3: no engine"
    assert len(cudnn.graphs) == 1


def test_one_layer_that_is_refused_is_said_once(cudnn, monkeypatch):
    _impl.warn_once.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cudnn.refuses = "no engine"
    assert not plans.accepts(graph_of(), CUDA)
    with pytest.warns(UserWarning, match="no kernel, a pass runs instead: conv 2x3x4x4 5x3x3x3: no engine"):
        assert not plans.accepts(graph_of(), CUDA, "a pass runs")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not plans.accepts(graph_of(), CUDA, "a pass runs")
