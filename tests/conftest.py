"""Shared fixtures: golden arrays, deterministic threads, and the skip of GPU tests where there is no GPU."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"

os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def golden():
    """golden("ops") -> dict of every array of tests/golden/ops.npz."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
            return {key: file[key] for key in file.files}

    return load


@pytest.fixture(scope="session")
def golden_json():
    """golden_json("ops") -> the parsed tests/golden/ops.json."""
    return lambda name: json.loads((GOLDEN / f"{name}.json").read_text())
