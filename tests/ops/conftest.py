"""Fixtures of the operators' tests: one thread (the tensors are tiny), and no implementation forced from outside."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _default_impl(monkeypatch):
    monkeypatch.delenv("GANKERN_IMPL", raising=False)


@pytest.fixture(scope="session")
def golden_cases(golden, golden_json):
    """golden_cases(op) -> [(case, {array: values})] of tests/golden/ops; every array of the op belongs to one case."""
    arrays, cases = golden("ops"), golden_json("ops")

    def load(op):
        found = [
            (case, {k.rsplit("/", 1)[1]: v for k, v in arrays.items() if k.rsplit("/", 1)[0] == case["name"]})
            for case in cases
            if case["op"] == op
        ]
        assert sum(len(a) for _, a in found) == sum(k.startswith(f"{op}/") for k in arrays) > 0
        return found

    return load
