"""A StyleGAN2 training step on the CPU: gankern's networks against the same networks in plain torch.nn, timed in turn.

    python benchmarks/train_cpu.py [--resolution 64] [--channel-base 4096] [--batch 8] [--rounds 7] [--json FILE]

Both compute the four losses and their gradients with the trainer's own phases and one set of weights; numbers are
compared before anything is timed. The step is weighted by the lazy intervals: G + D + (path length)/4 + (R1)/16.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import plain_stylegan2 as plain
from data import commit, cpu_name

from gankern.training.config import Config, resolve
from gankern.training.phases import Phases, build_networks


def reals(config: Config) -> torch.Tensor:
    return torch.rand(config.batch, 3, config.resolution, config.resolution) * 2 - 1


def pairs(config: Config) -> tuple[Phases, Phases]:
    """The phases of gankern's networks and of the plain ones, with the same weights."""
    networks = build_networks(config, "cpu")
    base, top = config.channel_base, config.channel_max
    baseline = (
        plain.Generator(config.z_dim, config.w_dim, config.resolution, config.mapping_layers, base, top),
        plain.Discriminator(config.resolution, base, top, config.mbstd_group),
    )
    for a, b in zip(baseline, networks, strict=True):
        state = b.state_dict()
        a.to(next(b.parameters()).dtype).load_state_dict({name: state[name] for name in a.state_dict()})
    return tuple(Phases(config, *pair, lambda n: torch.empty(n, 0)) for pair in (networks, baseline))


def run_phase(phases: Phases, name: str, real: torch.Tensor) -> torch.Tensor:
    """One forward and backward pass of a phase; its loss, which a GPU may still be computing."""
    trained = phases.G if name.startswith("G") else phases.D
    for network in (phases.G, phases.D):
        network.requires_grad_(network is trained)
        network.zero_grad(set_to_none=True)
    labels = torch.empty(len(real), 0, device=real.device)
    value = {
        "G": lambda: phases.g_main(len(real)),
        "G+PL": lambda: phases.g_path_length(len(real)),
        "D": lambda: phases.d_main(real, labels),
        "D+R1": lambda: phases.d_r1(real, labels),
    }[name]()
    value.backward()
    phases.observed_w.clear()
    phases.observed_lengths.clear()
    phases.stats.clear()
    return value.detach()


def check(ours: Phases, theirs: Phases, real: torch.Tensor) -> float:
    """The largest relative difference of any loss or gradient between the two; raises where it isn't rounding."""
    worst = 0.0
    for name in WEIGHTS:
        results = []
        for phases in (ours, theirs):
            torch.manual_seed(1)
            value = run_phase(phases, name, real).item()
            network = phases.G if name.startswith("G") else phases.D
            results.append((value, {n: p.grad for n, p in network.named_parameters() if p.grad is not None}))
        (a, grads_a), (b, grads_b) = results
        worst = max(worst, abs(a - b) / max(abs(b), 1e-6))
        for key, g in grads_b.items():
            scale = g.abs().max().clamp(min=1e-6)
            worst = max(worst, ((grads_a.get(key, torch.zeros_like(g)) - g).abs().max() / scale).item())
    if worst > 1e-9:
        raise SystemExit(f"the two networks don't agree (relative difference {worst:.1e}): nothing is timed")
    return worst


WEIGHTS = {"G": 1.0, "G+PL": 1 / 4, "D": 1.0, "D+R1": 1 / 16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--channel-base", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    options = {"preset": "auto", "data": "", "batch": args.batch, "channel_base": args.channel_base}
    config = resolve(options, resolution=args.resolution, c_dim=0, identity="")
    # in float64: in float32 an activation that rounds to the other side of zero changes a gradient visibly
    exact = pairs(dataclasses.replace(config, precision="fp64"))
    print(f"numbers agree to {check(*exact, reals(config).double()):.1e} relative in float64")
    ours, theirs = pairs(config)
    real = reals(config)

    seconds = {"gankern": {n: [] for n in WEIGHTS}, "torch.nn": {n: [] for n in WEIGHTS}}
    for _ in range(args.rounds):
        for name in WEIGHTS:
            for provider, phases in (("gankern", ours), ("torch.nn", theirs)):
                begun = time.perf_counter()
                run_phase(phases, name, real)
                seconds[provider][name].append(time.perf_counter() - begun)

    result = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": cpu_name(), "commit": commit()}
    result |= {"resolution": args.resolution, "channel_base": args.channel_base, "batch": args.batch}
    print(f"{'seconds (median)':<18}" + "".join(f"{name:>10}" for name in [*WEIGHTS, "step"]))
    for provider, phases in seconds.items():
        medians = {name: statistics.median(values) for name, values in phases.items()}
        medians["step"] = sum(WEIGHTS[name] * medians[name] for name in WEIGHTS)
        result[provider] = medians
        print(f"{provider:<18}" + "".join(f"{value:>10.3f}" for value in medians.values()))
    result["ratio"] = result["torch.nn"]["step"] / result["gankern"]["step"]
    print(f"torch.nn / gankern: {result['ratio']:.2f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
