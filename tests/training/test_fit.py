"""Memory that doesn't suffice: --batch-gpu auto, what is said, and a run that isn't lost. Phases fail on purpose."""

import copy

import pytest
import torch
from runs_util import assert_same_run, differences

from gankern.errors import OutOfMemory, is_shortage
from gankern.training import ProGANTrainer, Trainer, fit
from gankern.training.checkpoint import list_checkpoints
from gankern.training.config import resolve
from gankern.training.phases import Phases

STYLEGAN2 = {"preset": "stylegan2", "w_dim": 8, "mapping_layers": 1, "batch": 8, "mbstd_group": 2}
PROGAN = {"model": "progan", "channel_max": 8, "batch_schedule": "4:16,8:8", "stable_kimg": 0.016, "fade_kimg": 0.016}
KINDS = {"stylegan2": (Trainer, STYLEGAN2), "progan": (ProGANTrainer, PROGAN | {"kimg": 1.0, "repeats": 1})}


def make(model: str, **options):
    torch.manual_seed(0)
    kind, given = KINDS[model]
    config = resolve({"data": "", "z_dim": 8, "channel_base": 64} | given | options, resolution=8, c_dim=0, identity="")
    trainer = kind(config, "cpu", lambda n: torch.empty(n, 0), said := [])
    trainer.warn, trainer.said = said.append, said
    return trainer


def step(trainer, steps: int = 1):
    for _ in range(steps):
        n, _ = trainer.prepare()
        rng = torch.Generator().manual_seed(trainer.steps)
        trainer.step(torch.randint(256, (n, 3, 8, 8), generator=rng, dtype=torch.uint8), torch.empty(n, 0))
    return trainer


def short_of_memory(monkeypatch, trainer, phase: str, most: int) -> list:
    """The loss of a phase fails with more than `most` images; the sizes that it was given."""
    loss, seen = getattr(trainer.phases, phase), []

    def fails(*args):
        seen.append(args[0] if isinstance(args[0], int) else len(args[0]))
        if seen[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")
        return loss(*args)

    monkeypatch.setattr(trainer.phases, phase, fails)
    return seen


@pytest.mark.parametrize(
    ("model", "phase"), [("stylegan2", "g_path_length"), ("stylegan2", "d_r1"), ("progan", "g_main")]
)
def test_auto_finds_what_fits(model, phase, monkeypatch):
    """The largest divisor; and training is then as if nobody had tried."""
    expected = step(make(model, batch_gpu=4), 2)
    trainer = make(model, batch_gpu="auto")
    trainer.measures = True
    seen = short_of_memory(monkeypatch, trainer, phase, 5)
    step(trainer, 2)
    assert seen[: 2 if model == "stylegan2" else 3] == ([8, 4] if model == "stylegan2" else [16, 8, 4])
    assert [size for size in seen if size > 5] == seen[: 1 if model == "stylegan2" else 2]  # tried once
    state, fitted = trainer.state_dict(), trainer.state_dict().pop("fitted")
    assert list(fitted.values()) == [4]
    assert differences(expected.state_dict() | {"fitted": fitted}, state) == []
    images = 8 if model == "stylegan2" else 16
    assert trainer.said == [f"--batch-gpu auto: 4 of {images} images at a time at 8 px"]


def test_auto_is_measured_for_each_stage_and_kept(monkeypatch):
    """Each batch that the schedule has, and a fade, is tried once; a continued run takes what was found."""
    trainer = make("progan", batch_gpu="auto", fade_kimg=0.032)
    trainer.measures = True
    short_of_memory(monkeypatch, trainer, "d_main", 8)
    step(trainer, 6)
    assert list(trainer.fitted.values()) == [8, 8, 8]  # 4 px; 8 px fading in; 8 px
    other = make("progan", batch_gpu="auto", fade_kimg=0.032)
    other.measures = True
    other.load_state_dict(copy.deepcopy(trainer.state_dict()))
    assert step(other).said == []


@pytest.mark.parametrize("change", ["recompute", "impl", "memory", "nothing"])
def test_a_run_that_goes_on_elsewhere_measures_anew(change, monkeypatch):
    """What fitted there needn't fit here."""
    trainer = make("stylegan2", batch_gpu="auto")
    trainer.measures = True
    step(trainer)
    options = {"recompute": {"recompute": 8}, "impl": {"impl": "reference"}}.get(change, {})
    other = make("stylegan2", batch_gpu="auto", **options)
    other.measures = True
    other.load_state_dict(copy.deepcopy(trainer.state_dict()))
    if change == "memory":
        monkeypatch.setattr(fit, "hardware", lambda device, world: "another GPU, 8.0 GB")
    short_of_memory(monkeypatch, other, "d_main", 5)
    if change == "nothing":
        with pytest.raises(OutOfMemory, match=r"with 8 images at a time; give --batch-gpu 4, or --recompute$"):
            step(other)
    else:
        assert step(other).said == ["--batch-gpu auto: 4 of 8 images at a time at 8 px"]


SHORTAGES = ["CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in ...", "CUBLAS_STATUS_ALLOC_FAILED"]
SHORTAGES += [
    "Triton Error [CUDA]: out of memory",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't",
]


@pytest.mark.parametrize("text", SHORTAGES)
def test_shortages_outside_of_torchs_allocator(text):
    assert is_shortage(RuntimeError(text))
    assert not is_shortage(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_on_a_cpu_auto_is_the_whole_batch():
    whole, auto = step(make("stylegan2")), step(make("stylegan2", batch_gpu="auto"))
    assert differences(whole.state_dict(), auto.state_dict()) == []


def test_nothing_fits(monkeypatch):
    """The message is that of the smallest size; the state is what it was."""
    trainer = make("stylegan2", batch_gpu="auto")
    trainer.measures = True
    short_of_memory(monkeypatch, trainer, "d_main", 1)
    before = copy.deepcopy(trainer.state_dict())
    with pytest.raises(OutOfMemory, match="phase D: out of memory with 2 images at a time; give a smaller --batch"):
        step(trainer)
    assert differences(before, trainer.state_dict()) == []


@pytest.mark.parametrize(("model", "lane"), [("stylegan2", 2), ("progan", 1)])
def test_a_step_goes_on_where_memory_failed(model, lane, monkeypatch):
    """From the state that is saved then, the run is that of one without the error, bit for bit."""
    whole = step(make(model, batch_gpu=4), 3)
    trainer = step(make(model, batch_gpu=4))
    images = trainer.prepare()[0]
    phase = "d_main" if model == "stylegan2" else "g_main"
    loss, calls = getattr(trainer.phases, phase), []

    def fails(*args):
        calls.append(0)
        if len(calls) == lane:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(*args)

    monkeypatch.setattr(trainer.phases, phase, fails)
    name = phase[0].upper()
    with pytest.raises(OutOfMemory) as found:
        step(trainer)
    say = f"phase {name}: out of memory with 4 images at a time; give --batch-gpu 2, or --batch-gpu auto"
    assert str(found.value) == say + (", or --recompute" if model == "stylegan2" else "")
    assert images // 4 >= lane
    state = copy.deepcopy(trainer.state_dict())
    assert state["done"] == ["G" if model == "stylegan2" else "D"]
    assert state["steps"] == 1
    other = make(model, batch_gpu=4)
    other.load_state_dict(state)
    assert differences(whole.state_dict(), step(other, 2).state_dict()) == []
    assert differences(whole.state_dict(), step(trainer, 2).state_dict()) == []


def test_other_errors_are_left_alone(monkeypatch):
    trainer = make("stylegan2")

    def breaks(*args):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(trainer.phases, "d_main", breaks)
    with pytest.raises(RuntimeError, match="shapes differ"):
        step(trainer)


def test_a_run_is_not_lost(monkeypatch, images, tiny, cli, tmp_path, finished):
    """Exit code 1 and one line; the checkpoint is of within the step, and the continued run ends as it would have."""
    command = ["train", "--data", images, "--out", tmp_path / "run", *tiny]
    calls, loss = [], Phases.d_main

    def fails(self, *args):
        calls.append(0)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(self, *args)

    monkeypatch.setattr(Phases, "d_main", fails)
    code, _, err = cli(*command)
    assert code == 1
    assert err.startswith("gankern: error: phase D: out of memory with 8 images at a time; give --batch-gpu 4")
    assert err.count("\n") == 1
    assert [p.name for p in list_checkpoints(tmp_path / "run")] == ["checkpoint-00000.016"]
    assert cli(*command)[0] == 0
    assert_same_run(finished, tmp_path / "run")


def test_options(images, refused, tmp_path):
    given = ["train", "--data", images, "--out", tmp_path / "x"]
    refused(*given, "--batch-gpu", "some", words=("--batch-gpu", "expected a whole number or auto"))
    with pytest.raises(ValueError, match="--batch-gpu many: expected a whole number or auto"):
        resolve({"preset": "stylegan2", "data": "", "batch_gpu": "many"}, resolution=8, c_dim=0, identity="")
