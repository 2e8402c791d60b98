"""Which implementation runs where nobody says: what was measured to be faster, Triton, the rest, the reference."""

import json
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gankern.ops import _impl, _settings

pytestmark = pytest.mark.unforced


def image(dtype=torch.bfloat16, channels_last=True):
    """[8, 32, 64, 64] on a GPU that isn't there."""
    with FakeTensorMode():
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        return torch.empty(8, 32, 64, 64, dtype=dtype, device="cuda", memory_format=memory_format)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """gpu(table, missing={}) -> a GPU of type "Card" with this table of settings, on which the implementations named in
    `missing` can't run, for the reason given."""

    def make(table: dict, missing: dict[str, str] | None = None):
        file = tmp_path / "settings.json"
        file.write_text(json.dumps(table))
        monkeypatch.setattr(_settings, "SETTINGS_FILE", file)
        monkeypatch.setattr(_settings, "gpu_names", lambda index: ("Card", "sm_90"))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(_impl, "obstacle", lambda impl, device: (missing or {}).get(impl))
        _settings.table.cache_clear()

    yield make
    _settings.table.cache_clear()


def test_triton_where_nothing_was_measured(gpu):
    gpu({})
    assert _impl.choose("bias_act", None, image()) == "triton"


def test_what_was_measured_wins_for_its_class_alone(gpu):
    gpu({"Card": {"impl bias_act": {"bfloat16 nhwc 32 4096": "cuda"}}})
    assert _impl.choose("bias_act", None, image()) == "cuda"
    assert _impl.choose("bias_act", None, image(channels_last=False)) == "triton"
    assert _impl.choose("bias_act", None, image(torch.float16)) == "triton"
    assert _impl.choose("pixel_norm", None, image()) == "triton"
    assert _impl.choose("bias_act", "reference", image()) == "reference"


def test_the_card_counts_before_its_architecture(gpu):
    classes = {"bfloat16 nhwc 32 4096": "cuda"}
    gpu({"sm_90": {"impl bias_act": classes}})
    assert _impl.choose("bias_act", None, image()) == "cuda"
    gpu({"sm_90": {"impl bias_act": classes}, "Card": {"impl bias_act": dict.fromkeys(classes, "triton")}})
    assert _impl.choose("bias_act", None, image()) == "triton"


def test_what_cannot_run_is_passed_over(gpu):
    gpu({"Card": {"impl bias_act": {"bfloat16 nhwc 32 4096": "cuda"}}}, missing={"cuda": "not built"})
    assert _impl.choose("bias_act", None, image()) == "triton"
    gpu({}, missing={"triton": "triton isn't installed"})
    assert _impl.choose("bias_act", None, image()) == "cuda"
    gpu({}, missing={"triton": "triton isn't installed", "cuda": "not built"})
    _impl.warn_once.cache_clear()
    with pytest.warns(UserWarning, match="eager PyTorch instead of triton: triton isn't installed"):
        assert _impl.choose("bias_act", None, image()) == "reference"


def test_an_unknown_name_in_the_table_does_no_harm(gpu):
    gpu({"Card": {"impl bias_act": {"bfloat16 nhwc 32 4096": "cutlass"}}})
    assert _impl.choose("bias_act", None, image()) == "triton"


def test_float64_is_the_references(gpu):
    gpu({})
    assert _impl.choose("bias_act", None, image(torch.float64)) == "reference"
    with pytest.raises(ValueError, match=r"impl='cuda': bias_act can't run so: x is torch\.float64.*float16"):
        _impl.choose("bias_act", "cuda", image(torch.float64))


def test_env_tells_of_the_choice(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    gpu({"Card": {"impl bias_act": {"a": "cuda", "b": "cuda", "c": "triton"}}})
    row = _impl.implementations()["bias_act"]
    assert row["choice"] == "triton"
    assert "cuda in 2 shape classes" in row["why"]


def test_shape_classes():
    x = torch.empty(3, 33, 5, 7, device="meta", dtype=torch.float16)
    assert _settings.shape_class(x) == "float16 nchw 64 64"
    assert _settings.shape_class(x.contiguous(memory_format=torch.channels_last)) == "float16 nhwc 64 64"
    assert _settings.shape_class(torch.empty(8, 512)) == "float32 512"
    assert _settings.shape_class(torch.empty(())) == "float32 1"


def test_the_packages_table_is_what_the_committed_results_say():
    from gankern.bench import select

    results = Path(__file__).parents[2] / "benchmarks" / "results"
    wanted = select.select(select.load([results]))
    table = json.loads(_settings.SETTINGS_FILE.read_text()) if _settings.SETTINGS_FILE.exists() else {}
    have = {
        gpu: {name: classes for name, classes in entries.items() if name.startswith("impl ")}
        for gpu, entries in table.items()
    }
    assert {gpu: found for gpu, found in have.items() if found} == wanted
