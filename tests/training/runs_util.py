"""Helpers for tests of whole runs: processes that kill themselves, and the comparison of two runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from gankern.training.checkpoint import list_checkpoints, load_checkpoint

TIMED = ("img_s", "memory_gb")  # in stats.jsonl: what differs from run to run

DIES = """
import os, signal, sys
from gankern import files
from gankern.cli import main
from gankern.training import checkpoint, loop, progan, step

calls = 0
original = {where}

def dies(*args, **kwargs):
    global calls
    calls += 1
    if calls == {call}:
        for _ in range({times}):
            os.kill(os.getpid(), signal.{signal})
    return original(*args, **kwargs)

{where} = dies
sys.exit(main(sys.argv[1:]))
"""


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def dying_process(
    where: str, call: int, argv: list, signal: str = "SIGKILL", times: int = 1
) -> subprocess.CompletedProcess:
    """Runs a command line in a process that sends itself a signal at the n-th call of a function."""
    script = DIES.format(where=where, call=call, signal=signal, times=times)
    command = [sys.executable, "-c", script, *map(str, argv)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)


def start(argv: list) -> subprocess.Popen:
    """A command line in a process of its own."""
    command = [sys.executable, "-m", "gankern", *map(str, argv)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def final_state(run: Path) -> dict:
    return load_checkpoint(list_checkpoints(run)[-1])


def stats(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMED} for row in rows]


def differences(a, b, where: str = "state") -> list[str]:
    """Where two nested states differ by a bit."""
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        return [] if same else [where]
    if isinstance(a, dict):
        if not isinstance(b, dict) or a.keys() != b.keys():
            return [where]
        return [d for k in a for d in differences(a[k], b[k], f"{where}.{k}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [where]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}[{i}]")]
    return [] if a == b else [where]


def assert_same_run(a: Path, b: Path) -> None:
    """The same final state, statistics, pictures and networks, bit for bit."""
    assert differences(final_state(a), final_state(b)) == []
    assert stats(a) == stats(b)
    names = lambda run: sorted(p.name for p in run.iterdir() if p.suffix in (".safetensors", ".png"))  # noqa: E731
    assert names(a) == names(b)
    for name in names(a):
        if name != "curves.png":
            assert (a / name).read_bytes() == (b / name).read_bytes(), name
