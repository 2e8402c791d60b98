"""How fast training images arrive: 64x64 from the decoded cache, and 256x256 PNGs decoded by worker processes.

    python benchmarks/data.py [--json FILE] [--rounds 5]

The cache: images/s of a BatchStream over examples/emoji64.zip, and of the one cold decoding before it. The workers:
images/s of a BatchStream that decodes, against cores x a bare loop over the same files in one process that does
nothing but open, convert and copy to an array. The two take turns; on Linux a turn in which other programs used more
than a tenth of a core is thrown away and tried again, and the table says how many were.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

from gankern.data import BatchStream, ImageDataset, open_dataset
from gankern.data.parallel import available_cores
from gankern.data.writer import dataset_writer, encode_png

SAMPLE = Path(__file__).parents[1] / "examples" / "emoji64.zip"
SECONDS = 2.0  # a round
PNGS = 400
QUIET = 0.1  # cores
MAX_DISTURBED = 100
GOAL_CACHED = 3000  # images/s
GOAL_WORKERS = 0.85  # of cores x the bare loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GANKERN_CACHE"] = str(Path(folder) / "cache")
        rates = cached_rates(open_dataset(SAMPLE), args.rounds)
        decoding, disturbed = decoding_rates(make_pngs(Path(folder) / "png256"), args.rounds)
        rates |= decoding
    cores = available_cores()
    ratios = [w / (cores * b) for w, b in zip(rates["workers 256x256"], rates["bare loop 256x256"], strict=True)]
    show(rates, ratios, cores)
    print(f"turns thrown away because other programs ran: {disturbed}")
    if args.json:
        machine = {"commit": commit(), "cpu": cpu_name(), "cores": cores, "python": platform.python_version()}
        versions = {"torch": torch.__version__, "pillow": PIL.__version__, "numpy": np.__version__}
        result = {**machine, **versions, "images_per_second": rates, "workers_over_cores_x_bare": ratios}
        result["turns_thrown_away"] = disturbed
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def cached_rates(dataset: ImageDataset, rounds: int) -> dict[str, list[float]]:
    """Cold decodings into an empty cache folder, then batches of 64 with mirroring."""
    cold = []
    for _ in range(rounds):
        for file in Path(os.environ["GANKERN_CACHE"]).glob("*.npy"):
            file.unlink()
        start = time.perf_counter()
        stream = BatchStream(dataset, 64, mirror=True, cache="on")
        cold.append(len(dataset) / (time.perf_counter() - start))
    return {"cold decode 64x64": cold, "cached 64x64": [rate(lambda: len(next(stream)[0])) for _ in range(rounds)]}


def decoding_rates(folder: Path, rounds: int) -> tuple[dict[str, list[float]], int]:
    """The bare loop and the worker processes, in turns; and how many turns were disturbed. RuntimeError: nearly all."""
    dataset = open_dataset(folder)
    files = [folder / name for name in dataset.names]
    bare, workers, disturbed = [], [], 0
    while len(bare) < rounds:
        todo = iter(files * 100)
        bare_rate, bare_others = watched(lambda todo=todo: bare_decode(next(todo)))
        with BatchStream(dataset, 16, cache="off") as stream:
            for _ in range(16):  # the workers start, and what they decoded meanwhile is taken away
                next(stream)
            workers_rate, workers_others = watched(lambda stream=stream: len(next(stream)[0]))
        if max(bare_others, workers_others) < QUIET:
            bare.append(bare_rate)
            workers.append(workers_rate)
            continue
        disturbed += 1
        if disturbed > MAX_DISTURBED:
            raise RuntimeError("other programs keep the machine busy")
    return {"bare loop 256x256": bare, "workers 256x256": workers}, disturbed


def watched(step: Callable[[], int]) -> tuple[float, float]:
    """The rate, and how many cores other programs used meanwhile."""
    busy, own, start = machine_seconds(), own_seconds(), time.perf_counter()
    result = rate(step)
    return result, (machine_seconds() - busy - own_seconds() + own) / (time.perf_counter() - start)


def machine_seconds() -> float:
    """Seconds of all cores that any program has used since the machine started; 0 where the system doesn't tell."""
    if not Path("/proc/stat").exists():
        return 0.0
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Seconds that this process and all below it have used."""
    parent, seconds = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(path.parent.name)
        parent[pid], seconds[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def is_own(pid: int) -> bool:
        return pid == os.getpid() or (pid in parent and is_own(parent[pid]))

    return sum(value for pid, value in seconds.items() if is_own(pid))


def bare_decode(path: Path) -> int:
    with Image.open(path) as image:
        np.asarray(image.convert("RGB"))
    return 1


def rate(step: Callable[[], int]) -> float:
    """Images/s over a round; a step returns how many it made."""
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < SECONDS:
        count += step()
    return count / elapsed


def make_pngs(folder: Path) -> Path:
    """Pictures that compress like photographs (about 110 kB): four enlarged emoji under a little noise."""
    dataset = open_dataset(SAMPLE)
    random = np.random.RandomState(0)
    with dataset_writer(folder) as writer:
        for _ in range(PNGS):
            four = [dataset.image(i).transpose(1, 2, 0) for i in random.choice(len(dataset), 4)]
            tile = np.vstack([np.hstack(four[:2]), np.hstack(four[2:])])
            large = np.asarray(Image.fromarray(tile).resize((256, 256), Image.Resampling.BICUBIC), np.float32)
            noisy = large * 0.9 + random.normal(12, 2, large.shape)
            writer.add(encode_png(Image.fromarray(noisy.clip(0, 255).astype(np.uint8))))
    return folder


def show(rates: dict[str, list[float]], ratios: list[float], cores: int) -> None:
    print(f"{cpu_name()}, {cores} cores; images/s as median (least to most)")
    for name, values in rates.items():
        print(f"{name:>20} {statistics.median(values):>10,.0f}  ({min(values):,.0f} to {max(values):,.0f})")
    cached = statistics.median(rates["cached 64x64"])
    ratio = statistics.median(ratios)
    print(f"cached 64x64: goal {GOAL_CACHED:,}, {'reached' if cached >= GOAL_CACHED else 'MISSED'}")
    print(
        f"workers / ({cores} cores x bare loop): {ratio:.0%} ({min(ratios):.0%} to {max(ratios):.0%}), "
        f"goal {GOAL_WORKERS:.0%}, {'reached' if ratio >= GOAL_WORKERS else 'MISSED'}"
    )


def commit() -> str:
    """The commit that is measured, with "-dirty" where the tree differs from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
