"""`gankern metrics`: scores of a network file against a dataset."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from gankern.cli import PATH
from gankern.data import ImageDataset, open_dataset
from gankern.errors import InputError
from gankern.interop.reading import read_networks
from gankern.metrics import METRICS, check_metric_names
from gankern.metrics.evaluate import Evaluator
from gankern.metrics.protocol import progan_protocol
from gankern.training.distributed import pick_device


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds `metrics`."""
    parser = subparsers.add_parser(
        "metrics",
        help="score a network against images",
        description="SWD stands beside its floor, the distance of as many reals to other reals; MS-SSIM of pairs of "
        "samples beside that of pairs of reals.",
    )
    parser.set_defaults(func=run)
    parser.add_argument("--network", required=True, type=PATH, metavar="FILE", help="network-*.safetensors")
    parser.add_argument("--data", required=True, metavar="PATH", help="folder or zip of images")
    parser.add_argument("--metrics", default=",".join(METRICS), metavar="LIST", help="default " + ",".join(METRICS))
    parser.add_argument(
        "--protocol",
        choices=["progan"],
        help="at the settings of the progressive GAN's paper, as its Table 1: SWD of 16384 images, MS-SSIM of 10000 "
        "pairs (--num lowers both, for a trial)",
    )
    parser.add_argument("--num", type=int, metavar="N", help="images a set (default: half of the reals, at most 16384)")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="images at a time (default 32)")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    names = check_metric_names(args.metrics)
    for name in ("num", "batch"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)}: expected a whole number >= 1")
    device = pick_device(args.device)
    found = read_networks(args.network, "--network")
    network = found.generator(Path(args.network)).to(device)
    dataset = open_dataset(args.data, resolution=network.img_resolution, use_labels=network.c_dim > 0)
    score = _progan if args.protocol == "progan" else _score
    scores = score(args, names, dataset, network, device)
    if args.json:
        print(json.dumps({"network": args.network, "kimg": found.nimg / 1000, "data": args.data} | scores))
    return 0


def _score(
    args: argparse.Namespace, names: Sequence[str], dataset: ImageDataset, network: nn.Module, device: torch.device
) -> dict:
    evaluator = Evaluator(dataset, args.num, seed=args.seed, batch=args.batch, device=device)
    result = {"images": evaluator.count}
    if "swd" in names:
        score = evaluator.swd(network)
        result |= {"swd": score.levels, "swd_floor": score.floor}
        if not args.json:
            print(score.table())
    if "ms_ssim" in names:
        result["ms_ssim"], result["ms_ssim_real"] = evaluator.ms_ssim(network)
        if not args.json:
            print(f"MS-SSIM of pairs of samples {result['ms_ssim']:.4f}, of reals {result['ms_ssim_real']:.4f}")
    return result


def _progan(
    args: argparse.Namespace, names: Sequence[str], dataset: ImageDataset, network: nn.Module, device: torch.device
) -> dict:
    options = {"num": args.num, "metrics": names, "seed": args.seed, "batch": args.batch, "device": device}
    scores = progan_protocol(dataset, network, **options)
    if not args.json:
        print(scores.table(Path(args.network).stem))
    return {"protocol": "progan", **asdict(scores)}
