"""`gankern generate`: pictures and animations from a network file, and the w of a picture."""

import argparse
import math
from pathlib import Path

from gankern.cli import PATH
from gankern.errors import InputError, OutOfMemory, is_shortage
from gankern.interop.reading import open_generator
from gankern.models.sampling import parse_seeds
from gankern.nn.layers import NOISE_MODES
from gankern.training.distributed import pick_device
from gankern.training.gallery import (
    Gallery,
    animate,
    draw_mixes,
    draw_projection,
    draw_seeds,
    draw_ws,
    parse_cells,
)

SEEDS, ANIMATION, MIXES, WS, PROJECTION = "--seeds", "--interpolate", "--style-mix", "--ws", "--project"
GOES_WITH = {
    "--trunc": (SEEDS, ANIMATION, MIXES),
    "--trunc-cutoff": (SEEDS, ANIMATION, MIXES),
    "--noise-mode": (SEEDS, ANIMATION, MIXES, WS),
    "--class": (SEEDS, ANIMATION, MIXES, PROJECTION),
    "--grid": (SEEDS, ANIMATION),
    "--batch": (SEEDS, ANIMATION, MIXES, WS),
    "--space": (ANIMATION,),
    "--fps": (ANIMATION,),
    "--no-loop": (ANIMATION,),
    "--project-steps": (PROJECTION,),
    "--seed": (PROJECTION,),
    "--features": (PROJECTION,),
}
LEAST = {"interpolate": 1, "fps": 1, "project_steps": 1, "seed": 0, "trunc_cutoff": 0, "batch": 1}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds `generate`."""
    parser = subparsers.add_parser(
        "generate",
        help="write pictures and animations of a trained network",
        description="Writes DIR/seed0000.png and so on. The same seed gives the same picture as the public tools.",
    )
    parser.set_defaults(func=run)
    parser.add_argument(
        "--network",
        required=True,
        type=PATH,
        metavar="FILE",
        help="network-*.safetensors, or any that `gankern convert` reads",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seeds", metavar="LIST", help="such as 0-7,42")
    what.add_argument(
        "--style-mix",
        nargs=3,
        metavar=("ROWS", "COLS", "LAYERS"),
        help="a picture for each pair of seeds: the row's, with layers (such as 0-6) of the column's; and grid.png",
    )
    what.add_argument("--ws", type=PATH, metavar="FILE", help=".npz with an array w [N, num_ws, w_dim] or [N, w_dim]")
    what.add_argument("--project", type=PATH, metavar="IMAGE", help="find the w whose picture comes closest to IMAGE")
    parser.add_argument(
        "--out", required=True, type=PATH, metavar="DIR", help="or FILE.gif, .webp or .mp4 with --interpolate"
    )
    parser.add_argument("--trunc", type=float, metavar="PSI", help="truncation psi (default 1: none)")
    parser.add_argument("--trunc-cutoff", type=int, metavar="N", help="truncate the first N layers only, with --trunc")
    parser.add_argument("--noise-mode", choices=NOISE_MODES, help="(default const)")
    parser.add_argument("--class", dest="class_", type=int, metavar="K", help="of a conditional network")
    parser.add_argument(
        "--grid",
        nargs="?",
        const="",
        metavar="RxC",
        help="write grid.png with all of them as well; RxC with --interpolate: so many cells, each with its own seeds",
    )
    parser.add_argument("--batch", type=_batch, metavar="N", help="images at a time (default auto: by memory)")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    group = parser.add_argument_group("animation")
    group.add_argument("--interpolate", type=int, metavar="FRAMES", help="from each of --seeds to the next, and back")
    group.add_argument("--space", choices=("z", "w"), help="slerp in z, or a cubic spline in w (default w)")
    group.add_argument("--fps", type=int, metavar="N", help="frames a second (default 30) of a file")
    group.add_argument("--no-loop", action="store_true", default=None, help="end at the last seed")
    group = parser.add_argument_group("projection")
    group.add_argument("--project-steps", type=int, metavar="N", help="default 1000")
    group.add_argument("--seed", type=int, metavar="S", help="of its random numbers (default 0)")
    group.add_argument(
        "--features",
        type=PATH,
        metavar="FILE",
        help="torchvision's VGG16 weights: perceptual distance (default: of pixels)",
    )


def _batch(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.lstrip("-").isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number or auto")
    return int(text)


def _check(args: argparse.Namespace) -> None:
    """Raises InputError for values out of range and for options that don't go together."""
    given = {flag: getattr(args, flag[2:].replace("-", "_"), None) for flag in GOES_WITH} | {"--class": args.class_}
    modes = {SEEDS: args.seeds, MIXES: args.style_mix, WS: args.ws, PROJECTION: args.project}
    (mode,) = (flag for flag, value in modes.items() if value is not None)
    if args.interpolate is not None and mode != SEEDS:
        raise InputError(f"--interpolate {args.interpolate}: goes with --seeds, not with {mode}")
    mode = ANIMATION if args.interpolate is not None else mode
    for flag, value in given.items():
        if value is not None and mode not in GOES_WITH[flag]:
            shown = "" if value is True else f" {value}".rstrip()
            raise InputError(f"{flag}{shown}: goes with {' or '.join(GOES_WITH[flag])}, not with {mode}")
    for name, least in LEAST.items():
        value = getattr(args, name)
        if isinstance(value, int) and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value}: expected a whole number >= {least}")
    if args.seed is not None and args.seed >= 2**32:
        raise InputError(f"--seed {args.seed}: expected a whole number below 2^32")
    if args.trunc is not None and not math.isfinite(args.trunc):
        raise InputError(f"--trunc {args.trunc}: expected a finite number")
    if args.trunc_cutoff is not None and args.trunc is None:
        raise InputError(f"--trunc-cutoff {args.trunc_cutoff}: goes with --trunc, which isn't given")
    if args.noise_mode == "random" and isinstance(args.batch, int) and args.batch > 1:
        raise InputError(f"--batch {args.batch}: pictures with --noise-mode random are drawn one at a time")
    if mode == SEEDS and args.grid:
        raise InputError(f"--grid {args.grid}: rows and columns go with --interpolate")
    if mode == ANIMATION and args.noise_mode == "random":
        raise InputError("--noise-mode random: would flicker from frame to frame, expected const or none")


def run(args: argparse.Namespace) -> int:
    _check(args)
    try:
        return _run(args)
    except RuntimeError as error:
        if not is_shortage(error):
            raise
    raise OutOfMemory(_shortage(args))


def _shortage(args: argparse.Namespace) -> str:
    """One line: what doesn't fit, and what helps."""
    if isinstance(args.batch, int) and args.batch > 1:
        return f"--batch {args.batch}: out of memory; give a smaller one"
    what = "--project: out of memory" if args.project is not None else "out of memory"
    on_gpu = pick_device(args.device).type != "cpu"
    return f"{what}, with one picture at a time" + "; give --device cpu" * on_gpu


def _run(args: argparse.Namespace) -> int:
    seeds = parse_seeds(args.seeds) if args.seeds is not None else []
    rows, columns = (parse_seeds(text, "--style-mix") for text in (args.style_mix or ["0", "0"])[:2])
    network = open_generator(args.network, pick_device(args.device), option="--network")
    gallery = Gallery(
        network,
        args.class_,
        1.0 if args.trunc is None else args.trunc,
        args.trunc_cutoff,
        args.noise_mode or "const",
        None if args.batch in (None, "auto") else args.batch,
    )
    out, finished = Path(args.out), True
    if args.style_mix:
        said = draw_mixes(gallery, rows, columns, args.style_mix[2], out)
    elif args.ws is not None:
        said = draw_ws(gallery, Path(args.ws), out)
    elif args.project is not None:
        options = {"steps": args.project_steps or 1000, "seed": args.seed or 0}
        features = None if args.features is None else Path(args.features)
        said, finished = draw_projection(gallery, Path(args.project), out, features=features, **options)
    elif args.interpolate is not None:
        options = {"space": args.space, "looped": not args.no_loop, "fps": args.fps}
        said = animate(gallery, seeds, args.interpolate, out, cells=parse_cells(args.grid), **options)
    else:
        said = draw_seeds(gallery, seeds, out, args.grid is not None)
    print(said)
    return 0 if finished else 130
