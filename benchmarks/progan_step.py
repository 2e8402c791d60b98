"""A critic and a generator step of ProGAN at every stage: gankern's networks against plain torch.nn, timed in turn; and
the launches and bytes an image of both, and of the fused kernels, counted on meta tensors.

    python benchmarks/progan_step.py [--resolution 64] [--channel-base 2048] [--batch 8] [--rounds 5] [--json FILE]

Losses and gradients are compared in float64 before anything is timed. On a GPU: --device cuda --precision bf16.
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
import plain_progan as plain
from data import commit, cpu_name

from gankern.bench import traffic
from gankern.ops import use_impl
from gankern.training.config import resolve
from gankern.training.progan_phases import ProGANPhases, build_networks

PHASES = ("D", "G")


def no_labels(n: int) -> torch.Tensor:
    return torch.empty(n, 0)


def pairs(config, device: str = "cpu") -> tuple[ProGANPhases, ProGANPhases]:
    """The phases of gankern's networks and of the plain ones, with the same weights."""
    networks = build_networks(config, device)
    sizes = config.resolution, config.channel_base, config.channel_max, config.fused_from
    with torch.device(device):
        baseline = plain.Generator(config.z_dim, *sizes), plain.Discriminator(*sizes, config.mbstd_group)
    for a, b in zip(baseline, networks, strict=True):
        a.to(next(b.parameters()).dtype)
        if device != "meta":
            a.load_state_dict(b.state_dict())
    return tuple(ProGANPhases(config, *pair, no_labels) for pair in (networks, baseline))


def run_phase(phases: ProGANPhases, name: str, real: torch.Tensor) -> torch.Tensor:
    """One forward and backward pass; its loss, which a GPU may still be computing."""
    trained = phases.G if name == "G" else phases.D
    for network in (phases.G, phases.D):
        network.requires_grad_(network is trained)
        network.zero_grad(set_to_none=True)
    labels = no_labels(len(real)).to(real.device)
    value = phases.g_main(len(real)) if name == "G" else phases.d_main(real, labels)
    value.backward()
    phases.stats.clear()
    return value.detach()


def reals(config, place, device: str) -> torch.Tensor:
    dtype = torch.float64 if config.precision == "fp64" else torch.float32
    return torch.rand(place.batch, 3, place.resolution, place.resolution, device=device, dtype=dtype) * 2 - 1


def stages(config) -> list:
    """A place in the stable part of every stage."""
    schedule = config.schedule()
    phase = schedule.stable + schedule.fade
    count = (config.resolution // schedule.start).bit_length()
    return [schedule.at(i * phase) for i in range(count)]


def check(config, place) -> float:
    """The largest relative difference of a loss or gradient between the two; raises where it isn't rounding."""
    exact, worst = dataclasses.replace(config, precision="fp64"), 0.0
    both = pairs(exact)
    real = reals(exact, place, "cpu")
    for name in PHASES:
        found = []
        for phases in both:
            phases.go_to(place)
            torch.manual_seed(1)
            value = run_phase(phases, name, real)
            network = phases.G if name == "G" else phases.D
            found.append({"loss": value} | {n: p.grad for n, p in network.named_parameters() if p.grad is not None})
        assert found[0].keys() == found[1].keys()
        for key, want in found[1].items():
            scale = want.abs().max().clamp(min=1e-6)
            worst = max(worst, ((found[0][key] - want).abs().max() / scale).item())
    if not worst < 1e-9:
        raise SystemExit(f"{place}: the two networks don't agree (relative difference {worst:.1e}): nothing is timed")
    return worst


def timed(config, place, rounds: int, device: str) -> dict[str, dict[str, float]]:
    """{provider: {phase: median seconds}}, the providers in turn."""
    both = dict(zip(("gankern", "torch.nn"), pairs(config, device), strict=True))
    real = reals(config, place, device)
    seconds = {provider: {name: [] for name in PHASES} for provider in both}
    for round_ in range(rounds + 1):
        for name in PHASES:
            for provider, phases in both.items():
                phases.go_to(place)
                begun = time.perf_counter()
                run_phase(phases, name, real)
                if device == "cuda":
                    torch.cuda.synchronize()
                if round_:  # the first warms up
                    seconds[provider][name].append(time.perf_counter() - begun)
    return {provider: {n: statistics.median(t) for n, t in times.items()} for provider, times in seconds.items()}


def counted(config, place) -> dict[str, dict[str, float]]:
    """{provider: {"launches", "MB"}} an image, critic and generator step together."""
    ours, theirs = pairs(config, "meta")
    real = reals(config, place, "meta")
    found = {}
    for provider, phases, impl in (
        ("torch.nn", theirs, "reference"),
        ("reference", ours, "reference"),
        ("fused", ours, "triton"),
    ):
        phases.go_to(place)
        with use_impl(impl):
            accounts = [traffic.count(lambda p=phases, n=name: run_phase(p, n, real)) for name in PHASES]
        calls, size = sum(len(a.calls) for a in accounts), sum(a.bytes for a in accounts)
        found[provider] = {"launches": calls, "MB": size / place.batch / 1e6}
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--channel-base", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="0: count only")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.manual_seed(0)
    options = {"model": "progan", "preset": "progan", "data": "", "batch": args.batch, "precision": args.precision}
    options |= {"channel_base": args.channel_base}
    config = resolve(options, resolution=args.resolution, c_dim=0, identity="")
    result = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": cpu_name(), "commit": commit()}
    result |= {k: v for k, v in vars(args).items() if k != "json"} | {"stages": {}}
    print(f"{'stage':<10}{'gankern s':>11}{'torch.nn s':>12}{'ratio':>8}   launches a step and MB an image")
    for place in stages(config):
        row = {"counted": counted(config, place)}
        line = f"{place.resolution:>4} px   "
        if args.rounds:
            row["difference"] = check(config, place)
            row["seconds"] = timed(config, place, args.rounds, args.device)
            ours, theirs = (sum(row["seconds"][name].values()) for name in ("gankern", "torch.nn"))
            row["ratio"] = theirs / ours
            line += f"{ours:>11.3f}{theirs:>12.3f}{row['ratio']:>8.2f}   "
        counts = (f"{name} {c['launches']}, {c['MB']:.1f}" for name, c in row["counted"].items())
        print(line + "; ".join(counts))
        result["stages"][place.resolution] = row
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
