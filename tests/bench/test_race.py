"""`gankern bench train`, as far as it goes without a GPU: a dry look, the gate before the clock, the peer's loop."""

import dataclasses
import json
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gankern.bench import peer, steps, train, trained
from gankern.bench.limit import limit
from gankern.data import open_dataset
from gankern.ops import use_impl

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="what is done without a GPU")
SMALL = ("--resolution", 8, "--batch", 4, "--channel-base", 32, "--precision", "fp32", "--seconds", 0.1)


def small(model="stylegan2", batch=4):
    return steps.settings(model, 8, batch, 32, "fp32", **({"mapping_layers": 2} if model == "stylegan2" else {}))


def race(providers, seconds=100.0, config=None):
    said = []
    found = train.run(train.Race(config or small(), providers, "cpu", seconds), said.append, None)
    return found, "\n".join(said)


@pytest.fixture
def few_runs(monkeypatch):
    monkeypatch.setattr(train, "MOST", train.LEAST)


@pytest.mark.parametrize("model", steps.MODEL_NAMES)
def test_a_dry_look_on_a_cpu(cli, tmp_path, model):
    options = ("--model", model, "--device", "cpu", "--out", tmp_path / "r.json", "--plot", tmp_path / "plots")
    code, out, err = cli("bench", "train", *SMALL, *options)
    assert code == 0, err
    assert "ON A CPU" in out
    found = json.loads((tmp_path / "r.json").read_text())
    row = found["providers"]["eager"]
    assert row["s_per_kimg"] == pytest.approx(sum(p["often"] * p["median"] for p in row["parts"].values()) / 4)
    assert all(0 < part["q1"] <= part["median"] <= part["q3"] for part in row["parts"].values())
    assert set(row["parts"]) == set(steps.build(small(model), "meta").parts)
    bound = limit(model, 8, 32)
    assert row["percent"] == pytest.approx(100 * bound.seconds * row["img_per_s"])
    assert row["tflops"] == pytest.approx(bound.flops * row["img_per_s"] / 1e12)
    assert found["machine"]["torch"] == torch.__version__
    assert [path.name for path in (tmp_path / "plots").iterdir()] == [f"train_{model}_8.png"]


def wrong_network(config, device):
    step = train.PROVIDERS["eager"](config, device)
    with torch.no_grad():
        next(step.D.parameters()).mul_(1.5)
    return step


def wrong_penalty(config, device):
    step = train.PROVIDERS["eager"](config, device)
    part = step.parts["G+PL"]
    step.parts["G+PL"] = dataclasses.replace(part, run=lambda: part.run() * 1.02)
    return step


def not_all_gradients(config, device):
    step = train.PROVIDERS["eager"](config, device)
    run = step.parts["D"].run

    def forget():
        loss = run()
        next(p for p in step.D.parameters() if p.grad is not None).grad.zero_()
        return loss

    step.parts["D"] = dataclasses.replace(step.parts["D"], run=forget)
    return step


@pytest.mark.parametrize("make", [wrong_network, wrong_penalty, not_all_gradients])
def test_what_is_wrong_is_not_timed(few_runs, monkeypatch, make):
    monkeypatch.setitem(train.PROVIDERS, "fused", make)
    found, said = race(("fused", "eager"))
    assert found["providers"]["fused"]["failure"].startswith("WRONG by")
    assert "parts" not in found["providers"]["fused"]
    assert train.wrong(found)
    assert "fused: WRONG" in said
    assert found["providers"]["eager"]["s_per_kimg"] > 0


def test_equal_numbers_pass_the_gate():
    for model in steps.MODEL_NAMES:
        assert train.difference(small(model, batch=8), "cpu", train.PROVIDERS["eager"]) == 0


@pytest.mark.parametrize(
    ("error", "words", "wrong"),
    [(torch.OutOfMemoryError("CUDA out of memory"), "out of memory", False), (KeyError("x"), "FAILED: KeyError", True)],
    ids=["memory", "bug"],
)
def test_a_provider_that_fails_leaves_the_others_their_turn(few_runs, monkeypatch, error, words, wrong):
    def fail(config, device):
        raise error

    monkeypatch.setitem(train.PROVIDERS, "fused", fail)
    found, said = race(("fused", "eager"))
    assert f"fused: {words}" in said
    assert train.wrong(found) is wrong
    assert found["providers"]["eager"]["s_per_kimg"] > 0


def test_a_compiled_network_that_fails_leaves_nothing_compiled(monkeypatch):
    reset = []
    monkeypatch.setattr(torch._dynamo, "reset", lambda: reset.append(True))
    with pytest.raises(KeyError), train._eager_random_numbers("compile"):
        raise KeyError
    assert reset


def test_after_its_seconds_no_provider_is_begun(few_runs):
    found, said = race(("eager", "compile"), seconds=0.001)
    assert found["providers"]["eager"]["s_per_kimg"] > 0
    assert "compile: left out after 0.001 s" in said
    assert not train.wrong(found)


@pytest.mark.parametrize("model", steps.MODEL_NAMES)
def test_what_differentiates_twice_is_not_compiled(monkeypatch, model):
    called = []

    class Compiled(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *args, **kwargs):
            called.append(self.module)
            return self.module(*args, **kwargs)

    monkeypatch.setattr(torch, "compile", Compiled)
    step = steps.build(small(model), "cpu", compiled=True)
    for name in step.losses:
        called.clear()
        with use_impl("reference"):
            step.parts[name].run()
        assert bool(called) == (name not in steps.DOUBLE[model]), name


class Names(TorchDispatchMode):
    """Of the operators that run, in their order."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def test_adam_is_counted_as_the_trainer_takes_it():
    """Its part on meta tensors runs the operators of the trainer's own, which also adds to statistics."""
    config = small("progan")
    step, racer = steps.build(config, "meta"), trained.Racer(config, "cpu", graph=False)
    step.prepare("Adam D")
    with Names() as counted:
        step.parts["Adam D"].run()
    racer.update("D")
    update = racer.trainer.updates["D"]
    for p in update.phase.optimizer.state:  # what has had a gradient
        p.grad = torch.zeros_like(p)
    with Names() as applied:
        update._apply()
    counted, applied = (Counter(n for n in names.seen if n.startswith("aten::")) for names in (counted, applied))
    assert counted["aten::_fused_adam_"] == 1
    assert not counted - applied
    sums = {"aten::select.int", "aten::slice.Tensor", "aten::add_.Tensor", "aten::masked_fill.Scalar"}
    assert set(applied - counted) <= sums | {"aten::bitwise_not"}


# -- the trainer's own updates -----------------------------------------------------------------------------------------


@pytest.fixture
def racer(monkeypatch):
    """racer(spoil=None, fail_at=0): trainers' graphs are recorded operators, and those with graphs are given to
    spoil(trainer, backend); returns the backends."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "training")
    from graphs_util import RecordedGraphs

    def install(spoil=None, fail_at=0):
        backends = []

        class Recorded(trained.Racer):
            def __init__(self, config, device, graph=True):
                super().__init__(config, device, graph)
                if graph:
                    self.trainer.replays.backend = RecordedGraphs(fail_at)
                    backends.append(self.trainer.replays.backend)
                    if spoil:
                        spoil(self.trainer, backends[-1])

        monkeypatch.setattr(trained, "Racer", Recorded)
        return backends

    return install


@pytest.fixture
def one_run(monkeypatch):
    for name in ("WARM_UP", "LEAST", "MOST"):
        monkeypatch.setattr(train, name, 1)


@pytest.mark.parametrize(("model", "providers"), [("stylegan2", ("graphs",)), ("progan", ("graphs", "eager"))])
def test_the_trainers_updates_race_as_replays(one_run, racer, model, providers):
    backends = racer()
    config = small(model)
    found, said = race(providers, config=config)
    row = found["providers"]["graphs"]
    assert row["difference"] < train.ALLOWED / 5
    often = {name: part["often"] for name, part in row["parts"].items()}
    separate = steps.build(config, "meta").parts
    assert often == {name: part.often for name, part in separate.items() if not name.startswith("Adam")}
    phases = len(often) - 1
    compared, timed = backends
    assert compared.captures == timed.captures == 2 * phases  # of each its lane and its Adam
    assert compared.replays == 2 * 2 * phases
    assert timed.replays == 2 * phases * 3  # the first, a warm-up, one that is timed
    assert "Adam within" in row["note"]
    assert f"graphs: {row['note']}" in said
    line = next(line for line in said.splitlines() if line.startswith("graphs "))
    assert line.split().count("-") == (1 if providers == ("graphs",) else 3)  # the memory; Adam's columns, if any
    assert row["s_per_kimg"] == pytest.approx(sum(p["often"] * p["median"] for p in row["parts"].values()) / 4)


def another_rate(trainer, backend):
    trainer.D_opt.param_groups[0]["lr"] *= 1.02


def another_loss(trainer, backend):
    loss = trainer.phases.g_main
    trainer.phases.g_main = lambda n: loss(n) * 1.02


def another_gradient(trainer, backend):
    loss = trainer.phases.d_main

    def scaled(*args):
        value = loss(*args)
        return value.detach() + 1.02 * (value - value.detach())

    trainer.phases.d_main = scaled


def replays_of_nothing(trainer, backend):
    capture = backend.capture
    backend.capture = lambda fn: capture(fn) and (lambda: None)


def skipped(trainer, backend):
    trainer.looks_at_once = False
    next(iter(trainer.updates.values())).guard.check = lambda loss, names, gradients: torch.tensor(False)
    next(iter(trainer.updates.values())).guard.state[0] = 1


@pytest.mark.parametrize("spoil", [another_rate, another_loss, another_gradient, replays_of_nothing, skipped])
def test_updates_that_are_wrong_are_not_timed(racer, spoil):
    racer(spoil)
    found, _ = race(("graphs",), config=small("progan"))
    assert found["providers"]["graphs"].get("failure", "").startswith("WRONG by")
    assert train.wrong(found)


def test_what_cannot_be_captured_is_not_told_as_graphs(one_run, racer):
    racer(fail_at=2)
    found, said = race(("graphs",), config=small("progan"))
    row = found["providers"]["graphs"]
    assert row["not_replayed"].startswith("CUDA graphs are off: D can't be captured")
    assert "\ngraphs, not replayed  " in said
    assert f"graphs: {row['not_replayed']}" in said
    assert not train.wrong(found)


# -- what is refused ---------------------------------------------------------------------------------------------------


@no_gpu
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ("--device cuda", "CUDA GPU", "--device cpu")),
        (["--device", "cpu", "--providers", "fused"], ("--providers fused", "CPU", "eager")),
        (["--device", "cpu", "--providers", "graphs"], ("--providers graphs", "CPU", "eager")),
        (["--device", "cpu", "--providers", "jax"], ("--providers jax", "eager")),
        (["--seconds", "0"], ("--seconds 0",)),
        (["--peer-repo", "."], ("--peer-repo .", "train.py")),
        (["--peer-repo", ".", "--model", "progan"], ("--peer-repo", "stylegan2")),
        (["--out", "/nowhere/at/all.json"], ("--out", "/nowhere/at")),
        (["--resolution", "12"], ("--resolution 12",)),
    ],
    ids=lambda value: "=".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_one_line(refused, options, words):
    refused("bench", "train", *SMALL, *options, words=words)


# -- the peer ----------------------------------------------------------------------------------------------------------

STANDS_IN = """
import json, pathlib, sys, time
options = dict(word[2:].split("=") for word in sys.argv[1:])
assert (options["cfg"], options["gpus"], options["metrics"], options["aug"]) == ("stylegan2", "1", "none", "noaug")
assert (options["batch"], options["cbase"], options["fp32"]) == ("4", "32", "1")
assert pathlib.Path(options["data"]).is_file()
run = pathlib.Path(options["outdir"]) / "00000"
run.mkdir(parents=True)
"""
TICKS = [90.0, 30.0, 11.0, 10.0, 12.0]


def repository(tmp_path, code):
    (tmp_path / "train.py").write_text(STANDS_IN + code)
    return tmp_path


def test_the_peers_time_is_the_median_of_its_ticks_after_warm_up(tmp_path):
    code = f"with (run / 'stats.jsonl').open('w') as f:\n    for t in {TICKS}:\n"
    code += "        row = {'Timing/sec_per_kimg': {'mean': t}, 'Resources/peak_gpu_mem_gb': {'mean': 2.5}}\n"
    code += "        print(json.dumps(row), file=f)\n"
    found = peer.race(small(), repository(tmp_path, code), None)
    assert found["s_per_kimg"] == 11
    assert found["ticks"] == TICKS
    assert found["peak_bytes"] == 2.5 * 2**30
    assert "--cfg=stylegan2" in found["command"]
    assert str(tmp_path) not in found["command"]


def test_without_statistics_the_lines_that_it_prints_serve_and_too_long_a_run_is_stopped(tmp_path):
    code = (
        f"for t in {TICKS}:\n    print(f'tick 1  kimg 1.0  sec/tick 9.9  sec/kimg {{t:.2f}}  gpumem 2.5', flush=True)\n"
    )
    begun = time.monotonic()
    found = peer.race(small(), repository(tmp_path, code + "time.sleep(60)\n"), 2)
    assert time.monotonic() - begun < 30
    assert (found["s_per_kimg"], found["note"]) == (11, "stopped after 2 s")


@pytest.mark.parametrize(
    ("code", "words", "wrong"),
    [
        ("raise SystemExit('no kernel image')", "FAILED: 0 ticks (exit 1): no kernel image", True),
        ("print('Error: --batch')", "FAILED: 0 ticks (it ended): Error: --batch", True),
        ("raise SystemExit('CUDA out of memory')", "0 ticks (exit 1): CUDA out of memory", False),
        ("time.sleep(60)", "0 ticks (stopped after 1 s): it printed nothing", False),
    ],
    ids=["crash", "words", "memory", "time"],
)
def test_a_peer_that_fails_is_told_of(tmp_path, code, words, wrong):
    found = peer.race(small(), repository(tmp_path, code), 1 if code.startswith("time") else None)
    assert found["failure"] == words
    assert train.wrong({"providers": {"stylegan3": found}}) is wrong


def test_a_peer_that_cannot_be_run_costs_the_others_nothing(few_runs, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(peer, "write_images", full)
    race = train.Race(small(), ("eager",), "cpu", 0.1, tmp_path)
    said = []
    found = train.run(race, said.append, None)
    assert found["providers"]["eager"]["s_per_kimg"] > 0
    assert "stylegan3: FAILED: OSError: No space left on device" in said[-1]
    assert train.wrong(found)


def test_the_peer_has_its_line(tmp_path, monkeypatch):
    code = f"for t in {TICKS}: print(f'sec/kimg {{t}}')"
    config = small()
    found = train.run(
        train.Race(config, ("eager",), "cpu", 0.1, repository(tmp_path, code)), lambda text: None, tmp_path / "r.json"
    )
    row = json.loads((tmp_path / "r.json").read_text())["providers"]["stylegan3"]
    assert row["img_per_s"] == pytest.approx(1000 / 11)
    line = next(line for line in train.table(found).splitlines() if line.startswith("stylegan3"))
    assert "11.000" in line
    assert line.split()[1:8] == ["-"] * 7
    assert train.plot(found, tmp_path).is_file()


def test_the_images_are_a_dataset(tmp_path):
    peer.write_images(tmp_path / "images.zip", 32, count=3)
    dataset = open_dataset(tmp_path / "images.zip")
    assert (len(dataset), dataset.resolution) == (3, 32)


@pytest.mark.gpu
@pytest.mark.parametrize("model", steps.MODEL_NAMES)
def test_the_race_on_a_gpu(model):
    config = steps.settings(model, 64, 8, 4096, "bf16")
    found = train.run(train.Race(config, ("graphs", "eager", "triton", "fused"), seconds=4), print, None)
    assert not [row for row in found["providers"].values() if "failure" in row]
    assert "not_replayed" not in found["providers"]["graphs"]
    assert all(row["peak_bytes"] > 0 and 0 < row["percent"] < 100 for row in found["providers"].values())
