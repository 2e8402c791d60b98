"""--impl: a run on plain PyTorch or on fused kernels."""

import pytest
import torch
from runs_util import assert_same_run

from gankern.errors import InputError
from gankern.ops import _impl
from gankern.ops._impl import choose
from gankern.training import phases
from gankern.training.operators import use_operators

CPU = torch.device("cpu")


@pytest.mark.parametrize(("impl", "expected"), [("auto", "reference"), ("reference", "reference"), ("fused", "triton")])
def test_what_operators_choose(impl, expected):
    with use_operators(impl, CPU):
        assert choose("bias_act", None, torch.zeros(1)) == expected


def test_fused_needs_a_gpu(monkeypatch, images, refused, tmp_path):
    """Or the interpreter; refused before anything is written."""
    monkeypatch.delenv("TRITON_INTERPRET")
    given = ["train", "--data", images, "--out", tmp_path / "x", "--device", "cpu", "--impl", "fused"]
    refused(*given, words=("--impl fused", "cpu", "only under TRITON_INTERPRET=1"))
    assert not (tmp_path / "x").exists()
    with pytest.raises(InputError, match="--impl fused"):
        use_operators("fused", CPU)


def test_a_run_takes_it(monkeypatch, images, cli, tiny, tmp_path, finished):
    """Every loss of the run sees it; on a CPU the reference is what runs anyhow."""
    seen, loss = [], phases.Phases.d_main

    def noted(self, *args):
        seen.append(_impl._forced[-1:])
        return loss(self, *args)

    monkeypatch.setattr(phases.Phases, "d_main", noted)
    assert cli("train", "--data", images, "--out", tmp_path / "run", *tiny, "--impl", "reference")[0] == 0
    assert seen == [["reference"]] * 4
    assert _impl._forced == []
    assert_same_run(finished, tmp_path / "run")
