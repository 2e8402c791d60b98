"""Fixtures of the operators' tests: one thread (the tensors are tiny), every implementation, outputs poisoned.

A module that sets `IMPLS` has each of its tests run once for every implementation named there; of the tests named in
its `INTERPRETED` only the cases listed there run in the interpreter, which is slow.
"""

import contextlib
import importlib

import pytest
import torch

from gankern.ops import _impl, use_impl
from gankern.ops._triton import CONFIGS, force_config


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_generate_tests(metafunc):
    marked = metafunc.definition.get_closest_marker
    impls = getattr(metafunc.module, "IMPLS", ["default"])
    impls = ["default"] if marked("unforced") else ["triton"] if marked("kernels") else impls
    metafunc.parametrize("impl", impls, indirect=True)


def pytest_collection_modifyitems(config, items):
    left_out = []
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        cases = getattr(item.module, "INTERPRETED", {}).get(item.originalname)
        if params.get("impl") == "triton" and cases is not None:
            left_out += [] if params.get("case", params.get("call")) in cases else [item]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def impl(request, monkeypatch):
    """The implementation that runs in this test, forced for every operator."""
    monkeypatch.delenv("GANKERN_IMPL", raising=False)
    if request.param == "default":
        yield request.param
        return
    if request.param != "reference" and not _impl.interpreting():
        pytest.skip("runs on the CPU in Triton's interpreter, which a process with a GPU leaves off")
    if request.param == "cuda":
        request.getfixturevalue("host_build")
    with use_impl(request.param):
        yield request.param


@pytest.fixture
def few_programs(impl):
    """Large tiles for the kernels that filter: each of their programs costs the interpreter a tenth of a second."""
    if impl != "triton":
        yield
        return
    for module in ("upfirdn2d.kernels", "fir_act.kernels", "modulated_conv2d.fir"):
        importlib.import_module(f"gankern.ops.{module}")  # kernels name their settings where they stand
    with contextlib.ExitStack() as stack:
        for name, configs in CONFIGS.items():
            if "BYTES" in configs[0]:
                stack.enter_context(force_config(name, configs[0] | {"BYTES": 32768, "ROWS": 4}))
        yield


@pytest.fixture(autouse=True)
def _poison(impl):
    """torch.empty gives NaN while a kernel is tested: what it doesn't write shows."""
    if impl in ("default", "reference"):
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


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
