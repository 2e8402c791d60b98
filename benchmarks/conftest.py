"""`pytest benchmarks/`: the cases of `gankern bench ops` under pytest-benchmark, whose comparison of saved runs then
works. Needs a CUDA GPU and pytest-benchmark (the extra [bench])."""

import importlib.util

import pytest
import torch


def pytest_collection_modifyitems(items):
    reason = None if torch.cuda.is_available() else "needs a CUDA GPU"
    if importlib.util.find_spec("pytest_benchmark") is None:
        reason = "needs pytest-benchmark: pip install 'gankern[bench]'"
    for item in items if reason else ():
        item.add_marker(pytest.mark.skip(reason=reason))
