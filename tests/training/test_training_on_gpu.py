"""Training steps on a GPU: every phase in every precision, CUDA graphs, memory, and a state that moves between
devices."""

import copy

import pytest
import torch
from runs_util import differences

from gankern.errors import OutOfMemory
from gankern.training import ProGANTrainer, Trainer
from gankern.training.config import resolve

pytestmark = pytest.mark.gpu

OPTIONS = {"preset": "stylegan2", "data": "", "batch": 8, "channel_base": 512, "mapping_layers": 2, "mbstd_group": 4}
OPTIONS |= {"r1_interval": 1, "pl_interval": 1}


def make(precision: str, device: str) -> Trainer:
    torch.manual_seed(0)
    config = resolve(OPTIONS | {"precision": precision}, resolution=32, c_dim=3, identity="")
    return Trainer(config, device, lambda n: torch.eye(3)[torch.randint(3, [n])])


def step(trainer: Trainer) -> dict:
    rng = torch.Generator().manual_seed(trainer.steps)
    real = torch.randint(256, (8, 3, 32, 32), generator=rng, dtype=torch.uint8)
    labels = torch.eye(3)[torch.randint(3, [8], generator=rng)]
    trainer.step(real.to(trainer.device), labels.to(trainer.device))
    return trainer.phases.pop_stats()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_steps_are_finite(precision):
    trainer = make(precision, "cuda")
    for _ in range(5):  # some of them eager, some replayed
        stats = step(trainer)
        assert all(torch.isfinite(torch.tensor(value)) for value in stats.values()), stats
    trainer.look()
    assert trainer.skipped == 0
    assert trainer.replays.backend is not None
    assert all(p.dtype == torch.float32 and p.device.type == "cuda" for p in trainer.G_ema.parameters())


def test_a_state_moves_to_another_device(tmp_path):
    trainer = make("fp32", "cuda")
    step(trainer)
    torch.save(trainer.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True)
    for device in ("cpu", "cuda"):
        other = make("fp32", device)
        other.load_state_dict(state)
        assert other.steps == 1
        step(other)
        assert other.skipped == 0


# -- CUDA graphs ------------------------------------------------------------------------------------------------------

PROGAN = {"model": "progan", "data": "", "z_dim": 16, "channel_base": 64, "channel_max": 16, "repeats": 1}
PROGAN |= {"batch_schedule": "4-:8", "stable_kimg": 0.032, "fade_kimg": 0.04, "kimg": 1.0, "mbstd_group": 4}


@pytest.fixture
def deterministic():
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def trained(model: str, steps: int, batch_gpu: int, graph: bool, spoil=None):
    """After steps on images that are overwritten after each; spoil(trainer) comes first."""
    torch.manual_seed(0)
    own = OPTIONS | {"r1_interval": 2, "pl_interval": 2} if model == "stylegan2" else PROGAN
    config = resolve(own | {"batch_gpu": batch_gpu, "graph": graph}, resolution=16, c_dim=3, identity="")
    kind, said = (Trainer if model == "stylegan2" else ProGANTrainer), []
    trainer = kind(config, "cuda", lambda n: torch.eye(3)[torch.randint(3, [n])], said.append)
    trainer.said = said
    if spoil:
        spoil(trainer)
    for _ in range(steps):
        n, _ = trainer.prepare()
        rng = torch.Generator().manual_seed(trainer.steps)
        real = torch.randint(256, (n, 3, 16, 16), generator=rng, dtype=torch.uint8).cuda()
        labels = torch.eye(3)[torch.randint(3, [n], generator=rng)].cuda()
        trainer.step(real, labels)
        real.zero_()
        labels.fill_(torch.nan)
    return trainer


def assert_alike(model: str, steps: int, batch_gpu: int, other) -> None:
    """Bit for bit, if two eager runs are; else to float tolerance."""
    eager, again = (trained(model, steps, batch_gpu, graph=False) for _ in range(2))
    a, b = eager.state_dict(), other.state_dict()
    if differences(a, again.state_dict()) == []:
        assert differences(a, b) == []
    for name in ("G", "D", "G_ema"):
        for key, value in a[name].items():
            torch.testing.assert_close(b[name][key], value, rtol=1e-3, atol=1e-4, msg=f"{name} {key}")


@pytest.mark.parametrize("batch_gpu", [8, 2])
@pytest.mark.parametrize(("model", "steps"), [("stylegan2", 10), ("progan", 18)])
def test_graphs_change_nothing(model, steps, batch_gpu, deterministic):
    """All phases; ProGAN through a fade and a change of resolution."""
    replayed = trained(model, steps, batch_gpu, graph=True)
    assert replayed.replays._replays
    assert replayed.said == []
    assert_alike(model, steps, batch_gpu, replayed)


@pytest.mark.parametrize("model", ["stylegan2", "progan"])
def test_a_capture_that_fails_on_a_gpu(model, deterministic):
    """The host waits within it, which CUDA doesn't take; the run goes on eagerly, and draws as it would have."""

    def spoil(trainer):
        loss = trainer.phases.d_main

        def waits(*args):
            value = loss(*args)
            if torch.cuda.is_current_stream_capturing():
                value.item()
            return value

        trainer.phases.d_main = waits

    failing = trained(model, 8, 4, graph=True, spoil=spoil)
    assert len(failing.said) == 1
    assert "CUDA graphs are off: D can't be captured" in failing.said[0]
    assert_alike(model, 8, 4, failing)


@pytest.mark.parametrize("model", ["stylegan2", "progan"])
@pytest.mark.parametrize("graph", [False, True])
def test_the_host_waits_for_nothing(model, graph):
    """In an eager step, and in one that is replayed; capturing waits."""
    at = (1, 5) if model == "stylegan2" else (1, 3)

    def spoil(trainer):
        step = trainer.step

        def watched(*args):
            torch.cuda.set_sync_debug_mode("error" if trainer.steps in at else "default")
            try:
                step(*args)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        trainer.step = watched

    trained(model, 6, 4, graph, spoil)


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def little_memory():
    """limit(gigabytes) for this process."""
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    yield lambda gb: torch.cuda.set_per_process_memory_fraction(gb * 1e9 / total)
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


LARGE = OPTIONS | {"batch": 64, "channel_base": 8192, "graph": False}


def large(**options) -> Trainer:
    torch.manual_seed(0)
    return Trainer(resolve(LARGE | options, resolution=128, c_dim=0, identity=""), "cuda", None)


def test_out_of_memory_changes_nothing(little_memory):
    trainer = large()
    before = copy.deepcopy(trainer.state_dict())
    little_memory(1.0)
    real = torch.zeros(64, 3, 128, 128, dtype=torch.uint8, device="cuda")
    with pytest.raises(OutOfMemory, match=r"phase G: out of memory with 64 .* GB free; give --batch-gpu 32, or"):
        trainer.step(real, torch.empty(64, 0, device="cuda"))
    assert differences(before, trainer.state_dict()) == []
    little_memory(20.0)
    trainer.step(real, torch.empty(64, 0, device="cuda"))
    assert trainer.nimg == 64


def test_auto_finds_what_fits_the_gpu(monkeypatch):
    """With little of it to use: less than the whole batch, and the step then fits."""
    from gankern.training import fit

    trainer = large(batch_gpu="auto")
    monkeypatch.setattr(fit, "SHARE", 3e9 / torch.cuda.mem_get_info()[1])
    trainer.step(torch.zeros(64, 3, 128, 128, dtype=torch.uint8, device="cuda"), torch.empty(64, 0, device="cuda"))
    (size,) = trainer.fitted.values()
    assert 4 <= size < 64
    assert trainer.nimg == 64
