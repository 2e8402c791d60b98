"""Steps that are captured and replayed (on recorded operators here, see graphs_util) against steps that are not."""

import copy

import pytest
import torch
from graphs_util import NoReads, RecordedGraphs
from runs_util import differences

from gankern.training import ProGANTrainer, Trainer
from gankern.training.config import resolve
from gankern.training.graphs import Replays

STYLEGAN2 = {"z_dim": 8, "w_dim": 8, "channel_base": 32, "mapping_layers": 1, "batch": 4, "mbstd_group": 1}
STYLEGAN2 |= {"preset": "stylegan2", "data": "", "r1_interval": 2, "pl_interval": 2}
PROGAN = {"model": "progan", "data": "", "z_dim": 4, "channel_base": 8, "channel_max": 4, "repeats": 1}
PROGAN |= {"batch_schedule": "4-:4", "stable_kimg": 0.016, "fade_kimg": 0.02, "kimg": 1.0, "lr_schedule": "8:0.01"}
RESOLUTION = {"stylegan2": 8, "progan": 8}


def make(model: str, graphs: RecordedGraphs | None = None, c_dim: int = 2, **options):
    torch.manual_seed(0)
    warnings = []
    given = (STYLEGAN2 if model == "stylegan2" else PROGAN) | options
    config = resolve(given, resolution=RESOLUTION[model], c_dim=c_dim, identity="")
    kind = Trainer if model == "stylegan2" else ProGANTrainer
    trainer = kind(config, "cpu", lambda n: torch.eye(c_dim)[torch.randint(c_dim, [n])], warnings.append)
    trainer.replays.backend, trainer.warnings = graphs, warnings
    return trainer


def run(trainer, steps: int, labels_at: dict | None = None):
    """Steps on fresh tensors, which are overwritten afterwards: a replay must not read them."""
    for _ in range(steps):
        n, _ = trainer.prepare()
        rng = torch.Generator().manual_seed(trainer.steps)
        real = torch.randint(256, (n, 3, *[RESOLUTION[trainer.config.model]] * 2), generator=rng, dtype=torch.uint8)
        labels = torch.eye(trainer.config.c_dim)[torch.randint(trainer.config.c_dim, [n], generator=rng)]
        if labels_at and trainer.steps in labels_at:
            labels.fill_(labels_at[trainer.steps])
        trainer.step(real, labels)
        real.fill_(0)
        labels.fill_(float("nan"))
    return trainer


@pytest.mark.parametrize(("model", "lanes"), [("stylegan2", 1), ("stylegan2", 4), ("progan", 1), ("progan", 2)])
def test_replayed_steps_equal_eager_ones(model, lanes):
    """Bit for bit, all phases, through a fade and a change of resolution, with a skipped update among them."""
    steps = 8 if model == "stylegan2" else 16
    graphs = RecordedGraphs()
    poison = {steps - 2: float("inf")}
    eager = run(make(model, batch_gpu=4 // lanes), steps, poison)
    replayed = run(make(model, graphs, batch_gpu=4 // lanes), steps, poison)
    assert str(eager.pop_stats()) == str(replayed.pop_stats())  # as text: some are NaN
    assert differences(eager.state_dict(), replayed.state_dict()) == []
    assert eager.warnings == replayed.warnings
    assert eager.skipped >= 1
    each = min(lanes, 3) + 1  # first, middle, last, apply
    if model == "stylegan2":
        assert graphs.captures == 4 * each
        assert graphs.releases == 1
    else:
        assert graphs.captures == 3 * 2 * each  # 4 px, 8 px fading in, 8 px
        assert graphs.releases == 3
    assert graphs.replays > graphs.captures


@pytest.mark.parametrize(("model", "fail_at"), [*(("stylegan2", n) for n in (1, 2, 3, 4)), ("progan", 2)])
def test_a_capture_that_fails(model, fail_at):
    """Wherever in an update it is, the run goes on without graphs as it would have, and says so once."""
    graphs = RecordedGraphs(fail_at)
    eager = run(make(model, batch_gpu=2), 5)
    failing = run(make(model, graphs, batch_gpu=2), 5)
    assert differences(eager.state_dict(), failing.state_dict()) == []
    assert eager.pop_stats() == failing.pop_stats()
    assert graphs.captures == fail_at
    name = "G" if model == "stylegan2" and fail_at < 4 else "D"
    reason = "operation not permitted when stream is capturing"
    assert failing.warnings == [f"CUDA graphs are off: {name} can't be captured ({reason})"]


class Broken:
    """A backend of which ending a capture that broke raises too, as torch's does where CUDA has seen the break."""

    def __init__(self, ends: bool):
        self.ends = ends

    def capture(self, fn):
        try:
            fn()
        finally:
            if self.ends:
                raise RuntimeError("capture_end: the capture was invalidated")

    def release(self):
        pass


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_why_a_capture_fails(kind, ends):
    """By what the function itself said, whatever kind of error it is; what else fails does so without graphs too."""
    said, calls, fails = [], [], [True, False, True, True, False, False]

    def fn(x: torch.Tensor) -> None:
        calls.append(x)
        if fails.pop(0):
            try:
                {}["a cache's key"]  # which isn't why
            except KeyError:
                raise kind("at 7:1:\n  x isn't known") from None

    def run_with(backend: Broken) -> None:
        Replays(backend, said.append).run(("D", True), fn, [torch.ones(2)], undo=lambda: calls.append("undone"))

    run_with(Broken(ends))
    assert said == ["CUDA graphs are off: D can't be captured (at 7:1: x isn't known)"]
    assert calls[1] == "undone"
    assert len(calls) == 3
    with pytest.raises(kind, match="x isn't known"):
        run_with(Broken(ends))
    run_with(Broken(ends=True))
    assert said[-1] == "CUDA graphs are off: D can't be captured (capture_end: the capture was invalidated)"


def test_a_loaded_state_is_captured_anew():
    """Adam's tensors are others then."""
    graphs = RecordedGraphs()
    eager = run(make("progan"), 5)
    replayed = run(make("progan", graphs), 5)
    before = graphs.captures
    for trainer in (eager, replayed):
        trainer.load_state_dict(copy.deepcopy(trainer.state_dict()))
        run(trainer, 5)
    assert differences(eager.state_dict(), replayed.state_dict()) == []
    assert graphs.captures > before


@pytest.mark.parametrize("model", ["stylegan2", "progan"])
def test_a_step_reads_nothing(model):
    """Where the host looks at ticks alone, no step makes it wait for the device: not even one that is skipped."""
    trainer = make(model, batch_gpu=2)
    trainer.looks_at_once = False
    with NoReads() as counted:
        run(trainer, 6, {3: float("nan")})
        in_steps = list(counted.reads)
        trainer.pop_stats()
    assert in_steps == []
    assert counted.reads or trainer.skipped  # the counter counts
    assert trainer.skipped >= 1
    assert "updates skipped up to step 6" in trainer.warnings[0]
