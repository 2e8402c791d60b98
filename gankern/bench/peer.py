"""The public StyleGAN3 repository's own training loop, from a folder that the user has: run as its documentation says.

Nothing of it is here, and it is told nothing but the options of its command line. Its whole loop is timed, by itself:
data loading, Adam and the average included.
"""

import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gankern.data.writer import dataset_writer, encode_png
from gankern.errors import InputError
from gankern.training.options import Config

KIMG = 4
IMAGES = 128
WARM_UP = 2  # ticks: its first batch, and the thousand images in which kernels are built and chosen
SECONDS = 600.0
_LINE = re.compile(r"sec/kimg\s+([\d.]+)")


def check(repo: str | None, model: str) -> Path | None:
    """--peer-repo; raises InputError where it can't be run."""
    if repo is None:
        return None
    if model != "stylegan2":
        raise InputError(f"--peer-repo {repo}: it trains StyleGAN2, expected --model stylegan2, not {model}")
    if not (Path(repo) / "train.py").is_file():
        raise InputError(f"--peer-repo {repo}: no train.py there, expected a clone of the StyleGAN3 repository")
    return Path(repo).resolve()


def write_images(path: Path, resolution: int, count: int = IMAGES) -> None:
    """A dataset of random tiles, which decode fast."""
    random = np.random.RandomState(0)
    tiles = min(resolution, 16)
    with dataset_writer(path) as writer:
        for _ in range(count):
            small = Image.fromarray(random.randint(0, 256, (tiles, tiles, 3)).astype(np.uint8))
            writer.add(encode_png(small.resize((resolution, resolution), Image.Resampling.NEAREST)))


def command(config: Config, data: Path, out: Path) -> list[str]:
    """Its command line for the same networks, batch and losses, without augmentation."""
    options = {"outdir": out, "cfg": "stylegan2", "data": data, "gpus": 1, "batch": config.batch, "gamma": config.gamma}
    options |= {"cbase": config.channel_base, "cmax": config.channel_max, "map-depth": config.mapping_layers}
    options |= {"mbstd-group": config.mbstd_group, "aug": "noaug", "fp32": int(config.precision == "fp32")}
    options |= {"kimg": KIMG, "tick": 1, "snap": 1000, "metrics": "none"}
    return [sys.executable, "train.py", *(f"--{name}={value}" for name, value in options.items())]


def read(out: Path, log: str) -> tuple[list[float], float | None]:
    """Seconds per thousand images of each tick, and the most memory in GB where it tells; from its statistics, else
    from the lines that it printed."""
    found, memory = [], []
    for file in sorted(out.rglob("stats.jsonl")):
        for line in file.read_text().splitlines():
            with contextlib.suppress(ValueError):  # a line that is being written
                row = json.loads(line)
                found += _mean(row.get("Timing/sec_per_kimg"))
                memory += _mean(row.get("Resources/peak_gpu_mem_gb"))
    found = found or [float(value) for value in _LINE.findall(log)]
    return found, max(memory, default=None)


def _mean(value: dict | float | None) -> list[float]:
    value = value.get("mean") if isinstance(value, dict) else value
    return [] if value is None else [float(value)]


def _run(words: Sequence[str], cwd: Path, log: Path, limit: float) -> str:
    """How the command ended: "" or the reason. What it started ends with it."""
    with log.open("w") as file:
        process = subprocess.Popen(words, cwd=cwd, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"stopped after {limit:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return f"exit {code}" if code else ""


def race(config: Config, repo: Path, seconds: float | None) -> dict:
    """{"s_per_kimg": median of its ticks after warm-up, "ticks", "peak_bytes"}; or {"failure"}."""
    with tempfile.TemporaryDirectory(prefix="gankern-peer-") as folder:
        data, out, log = (Path(folder) / name for name in ("images.zip", "runs", "log.txt"))
        write_images(data, config.resolution)
        words = command(config, data, out)
        fate = _run(words, repo, log, seconds or SECONDS)
        text = log.read_text(errors="replace")
        ticks, memory = read(out, text)
    options = [word for word in words[1:] if not word.startswith(("--data=", "--outdir="))]
    told = {"command": " ".join(options), "ticks": ticks}
    if len(ticks) <= WARM_UP:
        last = (text.strip().splitlines() or ["it printed nothing"])[-1][:160]
        wanting = fate.startswith("stopped") or "out of memory" in last.lower()  # of time or memory: no fault
        fault = "" if wanting else "FAILED: "
        return told | {"failure": f"{fault}{len(ticks)} ticks ({fate or 'it ended'}): {last}"}
    found = {"s_per_kimg": statistics.median(ticks[WARM_UP:]), "peak_bytes": None if memory is None else memory * 2**30}
    return told | found | ({"note": fate} if fate else {})
