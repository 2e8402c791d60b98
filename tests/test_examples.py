"""The examples run, and what they say is so."""

import importlib
import re
from pathlib import Path

import pytest

DROP_IN = Path(__file__).parents[1] / "examples" / "drop_in"


@pytest.fixture
def compare(monkeypatch, one_thread_only):
    monkeypatch.syspath_prepend(str(DROP_IN))
    return importlib.import_module("compare")


def test_drop_in(compare, capsys):
    compare.main()  # asserts that outputs and gradients are equal
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == len(compare.NETWORKS)
    for line in lines:
        kept, kept_after, moved, moved_after = (float(v) for v in re.findall(r"[\d.]+", line)[-4:])
        assert kept_after <= kept
        assert moved_after < 0.9 * moved


def test_a_broken_swap_is_noticed(compare, monkeypatch):
    swapped = importlib.import_module("swapped")
    monkeypatch.setattr(swapped.ops, "bias_act", lambda x, bias, **kwargs: x + bias.sum())
    with pytest.raises(AssertionError, match="changed"):
        compare.main()
