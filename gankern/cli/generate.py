"""`gankern generate`: images from a network file."""

import argparse
import math
from pathlib import Path

import torch

from gankern.errors import InputError
from gankern.models.files import load_network
from gankern.models.sampling import check_options, class_labels, parse_seeds, sample_images, seed_latents
from gankern.nn.layers import NOISE_MODES
from gankern.training.distributed import pick_device
from gankern.training.pictures import save_grid, save_png


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds `generate`."""
    parser = subparsers.add_parser(
        "generate",
        help="write images of a trained network",
        description="Writes DIR/seed0000.png and so on. The same seed gives the same picture as the public tools.",
    )
    parser.set_defaults(func=run)
    parser.add_argument("--network", required=True, metavar="FILE", help="network-*.safetensors")
    parser.add_argument("--seeds", required=True, metavar="LIST", help="such as 0-7,42")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--trunc", type=float, default=1.0, metavar="PSI", help="truncation psi (default 1: none)")
    parser.add_argument("--trunc-cutoff", type=int, metavar="N", help="truncate the first N layers only")
    parser.add_argument("--noise-mode", choices=NOISE_MODES, default="const")
    parser.add_argument("--class", dest="class_", type=int, metavar="K", help="of a conditional network")
    parser.add_argument("--grid", action="store_true", help="write grid.png with all of them as well")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="images at a time (default 16)")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")


def run(args: argparse.Namespace) -> int:
    seeds = parse_seeds(args.seeds)
    if args.batch < 1:
        raise InputError(f"--batch {args.batch}: expected a whole number >= 1")
    if not math.isfinite(args.trunc):
        raise InputError(f"--trunc {args.trunc}: expected a finite number")
    if args.trunc_cutoff is not None and args.trunc_cutoff < 0:
        raise InputError(f"--trunc-cutoff {args.trunc_cutoff}: expected a whole number >= 0")
    network, _ = load_network(args.network, pick_device(args.device))
    check_options(network, args.trunc, args.trunc_cutoff, args.noise_mode)
    labels = class_labels(network, args.class_, len(seeds))
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    options = {"truncation_psi": args.trunc, "truncation_cutoff": args.trunc_cutoff, "noise_mode": args.noise_mode}
    images = []
    # random noise belongs to the seed, so each image is drawn alone
    batch = 1 if args.noise_mode == "random" else args.batch
    latents = seed_latents(seeds, network.z_dim)
    for first in range(0, len(seeds), batch):
        part = slice(first, first + batch)
        torch.manual_seed(seeds[first])
        (pictures,) = sample_images(network, latents[part], labels[part], batch, **options)
        for seed, picture in zip(seeds[part], pictures.cpu().numpy(), strict=True):
            save_png(out / f"seed{seed:04d}.png", picture.transpose(1, 2, 0))
            if args.grid:
                images.append(picture)
    if args.grid:
        save_grid(out / "grid.png", images)
    print(f"{len(seeds)} images in {out}" + (", all in grid.png" if args.grid else ""))
    return 0
