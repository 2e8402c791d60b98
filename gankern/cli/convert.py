"""`gankern convert`: networks from one kind of file to another."""

import argparse

from gankern.interop.networks import PARTS
from gankern.interop.reading import read_networks
from gankern.interop.writing import FORMS, write_networks
from gankern.nn.layers import NOISE_MODES


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds `convert`."""
    forms = ", ".join(f"{suffix} ({what})" for suffix, what in FORMS.items())
    parser = subparsers.add_parser(
        "convert",
        help="networks from and to other projects' files",
        description="Reads snapshots of the StyleGAN2-ADA and StyleGAN3 repositories (.pkl), rosinality's checkpoints "
        "(.pt), state dicts under the public names, gankern's network files and checkpoint folders, and prints what "
        "they hold. Nothing in such a file is executed.",
        epilog=f"OUT's suffix says what is written: {forms}.",
    )
    parser.set_defaults(func=run)
    parser.add_argument("input", metavar="IN", help="a file, or a run's checkpoint folder")
    parser.add_argument("output", metavar="OUT", nargs="?", help="left out: only print what IN holds")
    parser.add_argument("--part", choices=PARTS, help="the network to write (default: the generator's average, G_ema)")
    parser.add_argument("--training", action="store_true", help="write G and D too, from which training can go on")
    parser.add_argument("--trunc", type=float, metavar="PSI", help="of an export: truncation psi (default 1: none)")
    parser.add_argument("--noise-mode", choices=NOISE_MODES[1:], help="of an export (default const)")


def run(args: argparse.Namespace) -> int:
    networks = read_networks(args.input)
    print(networks.describe())
    if args.output is not None:
        options = {"truncation_psi": args.trunc, "noise_mode": args.noise_mode}
        notes = write_networks(networks, args.output, part=args.part, training=args.training, **options)
        print(f"written: {args.output}" + "".join(f"\n  {note}" for note in notes))
    return 0
