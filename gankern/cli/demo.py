"""`gankern demo`: trains on the sample dataset."""

import argparse
from pathlib import Path

from gankern.training.demo import run_demo


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds `demo`."""
    parser = subparsers.add_parser(
        "demo",
        help="train a small network on the sample images: minutes on a CPU",
        description="Trains on 1,377 emoji: at 32x32 on a CPU, about ten minutes on two cores; at 64x64 on a GPU.",
    )
    parser.set_defaults(func=run)
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="default runs/demo")
    parser.add_argument("--kimg", type=float, metavar="KIMG", help="length, in thousands of images shown")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")


def run(args: argparse.Namespace) -> int:
    return run_demo(Path(args.out), device=args.device, kimg=args.kimg)
