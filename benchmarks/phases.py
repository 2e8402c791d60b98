"""StyleGAN2's four training phases on a GPU: milliseconds each, seconds per thousand images, by implementation.

    python benchmarks/phases.py --resolution 1024 --channel-base 32768 --batch 8 [--impl reference,triton] [--json FILE]

Losses and gradients are compared in float32 first, with one set of weights; what differs isn't timed. A step is
G + D + (path length)/4 + (R1)/16, without optimizer, EMA and data. On a CPU only to see that it runs.
"""

import argparse
import dataclasses
import json
import math
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from train_cpu import WEIGHTS, run_phase

from gankern.bench import report
from gankern.ops import use_impl
from gankern.training.config import Config, resolve
from gankern.training.phases import Phases, build_networks

ALLOWED = 1e-2
"""Of the norm of all gradients, in float32: where rounding turns a leaky ReLU's sign a gradient jumps."""


def build(config: Config, device: str) -> Phases:
    torch.manual_seed(0)
    return Phases(config, *build_networks(config, device), lambda n: torch.empty(n, 0))


def difference(config: Config, device: str, impl: str) -> float:
    """The largest relative difference of a phase's loss or gradients from the reference's, in float32."""
    config = dataclasses.replace(config, precision="fp32", batch=4)
    phases, worst = build(config, device), 0.0
    real = torch.rand(4, 3, config.resolution, config.resolution, device=device) * 2 - 1
    for name in WEIGHTS:
        found = []
        for which in ("reference", impl):
            torch.manual_seed(1)
            with use_impl(which):
                loss = run_phase(phases, name, real)
            network = phases.G if name.startswith("G") else phases.D
            grads = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
            found.append((loss.double(), torch.cat(grads)))
        (a, ga), (b, gb) = found
        for apart in ((a - b).abs() / a.abs().clamp(min=1e-6), (ga - gb).norm() / ga.norm()):
            worst = max(worst, apart.item()) if apart.isfinite() else math.inf
    return worst


def timed(phases: Phases, name: str, real: torch.Tensor, impl: str, rounds: int) -> dict[str, float]:
    """Seconds (median, quartiles) and peak bytes of one phase."""
    gpu, seconds = real.is_cuda, []
    with use_impl(impl):
        for _ in range(2):
            run_phase(phases, name, real)
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(rounds):
            if gpu:
                torch.cuda.synchronize()
            begun = time.perf_counter()
            run_phase(phases, name, real)
            if gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begun)
    q1, median, q3 = statistics.quantiles(seconds, n=4, method="inclusive")
    peak = torch.cuda.max_memory_allocated() if gpu else None
    return {"median": median, "q1": q1, "q3": q3, "peak_bytes": peak}


def measured(phases: Phases, real: torch.Tensor, impl: str, args: argparse.Namespace) -> dict:
    """All phases of one implementation, and what they make of a step; or its failure."""
    try:
        rows = {name: timed(phases, name, real, impl, args.rounds) for name in WEIGHTS}
    except torch.OutOfMemoryError:
        return {"failure": "out of memory"}
    step = sum(WEIGHTS[name] * row["median"] for name, row in rows.items())
    return rows | {"s_per_kimg": step / args.batch * 1000}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--channel-base", type=int, default=16384)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--impl", default="reference,triton")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"preset": "stylegan2", "data": "", "batch": args.batch, "channel_base": args.channel_base}
    options |= {"precision": args.precision, "mapping_layers": 2 if device == "cpu" else 8}
    config = resolve(options, resolution=args.resolution, c_dim=0, identity="")
    result = {"machine": report.machine(), "settings": vars(args) | {"json": None}, "phases": {}}
    wrong = False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    # the reference last: it needs the most memory, and is the one to do without
    impls = sorted(args.impl.split(","), key=lambda impl: impl == "reference")
    errors = {impl: 0.0 if impl == "reference" else difference(config, device, impl) for impl in impls}
    if device == "cuda":
        torch.cuda.empty_cache()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    phases = build(config, device)
    real = torch.rand(args.batch, 3, args.resolution, args.resolution, device=device) * 2 - 1
    print(f"{'ms (median)':<14}" + "".join(f"{name:>10}" for name in WEIGHTS) + f"{'s/kimg':>10}{'peak GB':>10}")
    for impl, error in errors.items():
        row = measured(phases, real, impl, args) if error <= ALLOWED else {"failure": f"WRONG by {error:.1e}"}
        wrong |= error > ALLOWED
        result["phases"][impl] = row | {"difference": error}
        if "failure" in row:
            print(f"{impl:<14}{row['failure']}", flush=True)
        else:
            cells = "".join(f"{1000 * row[name]['median']:>10.2f}" for name in WEIGHTS)
            peak = max(row[name]["peak_bytes"] or 0 for name in WEIGHTS)
            print(f"{impl:<14}{cells}{row['s_per_kimg']:>10.3f}{peak / 1e9:>10.2f}", flush=True)
        if args.json:  # after each: a time limit may end the run
            args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
