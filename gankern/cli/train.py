"""`gankern train`: begins or continues a run."""

import argparse
from pathlib import Path

import torch

from gankern._version import __version__
from gankern.cli import PATH
from gankern.errors import InputError, NonFiniteError
from gankern.training.config import ARCHITECTURES, IMPLS, MODELS, PRECISIONS, PRESETS
from gankern.training.distributed import TIMEOUT, World
from gankern.training.loop import train
from gankern.training.options import flag
from gankern.training.progan_options import LOSSES, ROWS
from gankern.training.recompute import RECOMPUTE_FROM
from gankern.training.schedule import BATCHES
from gankern.training.start import claim, configure, describe
from gankern.training.torchrun import join
from gankern.training.transfer import is_start

NOT_CONFIG = ("command", "func", "out", "resume", "dry_run", "cond", "dist_timeout")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds `train`."""
    parser = subparsers.add_parser(
        "train",
        help="train a network; the same command again continues",
        description="Trains StyleGAN2 or ProGAN on a folder or zip of square images. Running the same command again, "
        "or --resume DIR, continues where the run stopped. An option that isn't given comes from the preset.",
        epilog=f"Rows of the ablation in the ProGAN paper, as --preset progan-ablation-128 with options: {ROWS}",
    )
    parser.set_defaults(func=run)
    _what(parser.add_argument_group("what"))
    _networks(parser.add_argument_group("networks"))
    _optimisation(parser.add_argument_group("optimisation"))
    _progan(parser.add_argument_group("ProGAN alone"))
    _running(parser.add_argument_group("running (may change when a run is continued)"))


def _flag(group, name: str, text: str) -> None:
    group.add_argument(name, action=argparse.BooleanOptionalAction, default=None, help=text)


def _what(group) -> None:
    group.add_argument(
        "--data", type=PATH, metavar="PATH", help="folder or zip of square images of one power-of-two size"
    )
    group.add_argument("--out", type=PATH, metavar="DIR", help="the run's folder (default runs/<data>-<preset>)")
    group.add_argument(
        "--resume",
        type=PATH,
        nargs="?",
        const="",
        metavar="DIR|FILE",
        help="continue the run in DIR (or --out) and refuse a new one; or begin one from the networks in FILE: a "
        "snapshot .pkl, rosinality's .pt, a network or checkpoint of gankern's",
    )
    group.add_argument("--freeze-d", type=int, metavar="N", help="keep D's first N layers as they are in that FILE")
    group.add_argument("--model", choices=MODELS, help="default stylegan2, or the preset's")
    group.add_argument("--preset", choices=PRESETS, help="published hyperparameters (default auto, or progan)")
    group.add_argument("--resolution", type=int, metavar="R", help="reduce the images to this size (a power of two)")
    _flag(group, "--mirror", "show each image mirrored as well")
    _flag(group, "--cond", "condition on the dataset's labels")
    group.add_argument("--max-images", type=int, metavar="N", help="use N of the images, evenly spread")
    _flag(group, "--skip-bad", "leave out images that can't be decoded")
    group.add_argument("--seed", type=int, metavar="S", help="of all random numbers (default 0)")
    group.add_argument("--dry-run", action="store_true", help="print options, sizes and a memory estimate, and stop")


def _networks(group) -> None:
    group.add_argument("--channel-base", type=int, metavar="N", help="channels at resolution r: min(N/r, channel max)")
    group.add_argument("--channel-max", type=int, metavar="N")
    group.add_argument("--z-dim", type=int, metavar="N")
    group.add_argument("--w-dim", type=int, metavar="N")
    group.add_argument("--mapping-layers", type=int, metavar="N")
    group.add_argument("--g-architecture", choices=ARCHITECTURES, help="generator (default skip)")
    group.add_argument("--d-architecture", choices=ARCHITECTURES, help="discriminator (default resnet)")
    group.add_argument("--mbstd-group", type=int, metavar="N", help="samples that minibatch stddev compares, 0: none")
    group.add_argument("--precision", choices=PRECISIONS, help="of the activations (default fp32)")


def _optimisation(group) -> None:
    group.add_argument("--batch", type=int, metavar="N", help="images a step")
    group.add_argument("--gamma", type=float, metavar="G", help="weight of R1")
    group.add_argument("--g-lr", type=float, metavar="LR", help="generator's learning rate")
    group.add_argument("--d-lr", type=float, metavar="LR", help="discriminator's learning rate")
    group.add_argument("--r1-interval", type=int, metavar="STEPS", help="steps between R1 regularisations (default 16)")
    group.add_argument("--pl-weight", type=float, metavar="W", help="weight of path length, 0 for none (default 2)")
    group.add_argument("--pl-shrink", type=int, metavar="N", help="path length on 1/N of the batch (default 2)")
    group.add_argument("--pl-interval", type=int, metavar="STEPS", help="steps between path lengths (default 4)")
    group.add_argument("--style-mixing", type=float, metavar="P", help="probability of style mixing (default 0.9)")
    group.add_argument("--ema-kimg", type=float, metavar="KIMG", help="half-life of the generator's moving average")
    group.add_argument("--ema-rampup", type=float, metavar="R", help="limits the half-life to R times the images shown")


def _progan(group) -> None:
    group.add_argument("--loss", choices=LOSSES, help="logistic comes with R1 (--gamma) (default wgan-gp)")
    group.add_argument("--gp-weight", type=float, metavar="W", help="weight of the gradient penalty (default 10)")
    group.add_argument("--gp-target", type=float, metavar="G", help="norm that it asks for (default 1)")
    group.add_argument("--drift", type=float, metavar="W", help="weight of D(real) squared (default 0.001)")
    group.add_argument("--cond-weight", type=float, metavar="W", help="weight of the labels' cross entropy (default 1)")
    group.add_argument("--beta2", type=float, metavar="B", help="Adam's (default 0.99)")
    group.add_argument("--ema-beta", type=float, metavar="B", help="of the moving average, a step (default 0.999)")
    group.add_argument("--start-resolution", type=int, metavar="R", help="where growing begins (default 4)")
    group.add_argument("--stable-kimg", type=float, metavar="KIMG", help="at a resolution alone (default 600)")
    group.add_argument("--fade-kimg", type=float, metavar="KIMG", help="fading the next one in (default 600)")
    group.add_argument("--repeats", type=int, metavar="STEPS", help="between looks at the schedule (default 4)")
    group.add_argument("--schedule-gpus", type=int, choices=BATCHES, help="whose published tables (default 1)")
    group.add_argument("--batch-schedule", metavar="LIST", help=f"batch by resolution (default {BATCHES[1]})")
    group.add_argument("--lr-schedule", metavar="LIST", help="learning rate by resolution, where not --g-lr and --d-lr")
    group.add_argument(
        "--fused-from", type=int, metavar="R", help="resample within convolutions from R px on; 0: nowhere"
    )
    _flag(group, "--grow", "grow from --start-resolution (default); else train the full resolution at once")
    _flag(group, "--equalized", "equalized learning rate (default)")
    _flag(group, "--pixel-norm", "pixel norm in the generator (default)")
    _flag(group, "--normalize-latents", "pixel norm of the latents (default)")
    _flag(group, "--revised", "the paper's settings (default); else WGAN-GP's: learning rate, beta2, drift, latents")
    for name, value, text in (("--mbstd", 4, "minibatch stddev, groups of 4 (default)"), ("--no-mbstd", 0, "none")):
        group.add_argument(name, dest="mbstd_group", action="store_const", const=value, help=text)


def _running(group) -> None:
    group.add_argument("--kimg", type=float, metavar="KIMG", help="length of the run, in thousands of images shown")
    group.add_argument(
        "--batch-gpu", type=_batch_gpu, metavar="N", help="images at a time, accumulated to --batch; auto: what fits"
    )
    group.add_argument(
        "--recompute",
        type=int,
        nargs="?",
        const=RECOMPUTE_FROM,
        metavar="R",
        help=f"recompute StyleGAN2's blocks from R px on (default {RECOMPUTE_FROM}) in backward: less memory; 0: none",
    )
    _flag(group, "--graph", "replay training steps as CUDA graphs (default, where that is possible)")
    group.add_argument("--impl", choices=IMPLS, help="of the operators: fused kernels or plain PyTorch (default auto)")
    _flag(group, "--tune", "with --impl cudnn: time the kernels that cuDNN proposes, once for each GPU (default no)")
    group.add_argument("--tick", type=float, metavar="KIMG", help="between two lines of statistics (default 4)")
    group.add_argument("--snap", type=int, metavar="TICKS", help="between two snapshots (default 50)")
    group.add_argument("--checkpoint-minutes", type=float, metavar="M", help="between checkpoints besides (default 10)")
    group.add_argument("--max-skipped", type=int, metavar="N", help="skipped updates in a row that end it (default 20)")
    group.add_argument("--keep", type=int, metavar="N", help="checkpoints to keep (default 2)")
    group.add_argument("--metric-images", type=int, metavar="N", help="images of each snapshot's SWD, 0 for none")
    group.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    group.add_argument(
        "--dist-timeout", type=float, default=TIMEOUT, metavar="SECONDS", help="how long ranks wait for each other"
    )
    group.add_argument("--workers", type=int, metavar="N", help="processes that decode images which don't fit memory")
    group.add_argument("--memory-gb", type=float, metavar="GB", help="decode all images once if they fit this much")


def _batch_gpu(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.lstrip("-").isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number or auto")
    return int(text)


def run(args: argparse.Namespace) -> int:
    with join(args.dist_timeout) as world:
        try:
            return _run(args, world)
        except NonFiniteError as error:
            raise world.shared(error) from None


def _run(args: argparse.Namespace, world: World) -> int:
    explicit = {k: v for k, v in vars(args).items() if k not in NOT_CONFIG and v is not None}
    start = args.resume if args.resume and is_start(args.resume) else None
    resume = None if start else args.resume
    if start:
        explicit["start_from"] = start
    if resume and args.out and Path(resume).resolve() != Path(args.out).resolve():
        raise InputError(f"--out {args.out}: --resume {resume} continues in its own folder; leave one of them out")
    preset = args.preset or ("progan" if args.model == "progan" else "auto")
    out = resume or args.out or f"runs/{Path(args.data or 'data').stem}-{preset}"
    given = {flag(k): v for k, v in vars(args).items() if k != "func"}
    versions = {"gankern": __version__, "torch": torch.__version__}
    world.check_same(given | versions, "expected the same command and versions on every rank")
    config = configure(Path(out), explicit, labels=args.cond, must_exist=resume is not None, world=world)
    if args.dry_run:
        if world.rank == 0:
            print(describe(config))
        return 0
    folder = claim(Path(out), config, world)
    try:
        return train(config, folder, world)
    finally:
        folder.close()
