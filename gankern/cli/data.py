"""`gankern data prepare`: the command line of gankern.data.prepare."""

import argparse

from gankern.data.parallel import progress_bar
from gankern.data.prepare import TRANSFORMS, prepare


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds `data` with its subcommand `prepare`."""
    data = subparsers.add_parser("data", help="prepare datasets")
    parser = data.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "prepare",
        help="make a training set of a folder or zip of images, of CIFAR-10 or of MNIST",
        description="Writes RGB PNGs of one size, with labels where the source has them, to a zip or a folder.",
    )
    parser.set_defaults(func=run)
    parser.add_argument(
        "--source",
        required=True,
        metavar="PATH",
        help="folder or zip of PNG, JPEG or WebP; cifar-10-python.tar.gz; MNIST train-images-idx3-ubyte.gz",
    )
    parser.add_argument("--out", required=True, metavar="PATH", help="new zip (a name in .zip) or folder")
    parser.add_argument("--resolution", required=True, type=int, metavar="R", help="side in pixels, a power of two")
    parser.add_argument("--transform", choices=TRANSFORMS, help="what to do with images that aren't square")
    parser.add_argument("--max-images", type=int, metavar="N", help="take N images, evenly spread over the source")
    parser.add_argument("--skip-bad", action="store_true", help="leave out images that can't be used")
    parser.add_argument("--labels-from-folders", action="store_true", help="each top folder of the source is a class")
    parser.add_argument(
        "--pyramid",
        action="store_true",
        help="store the images at 4 px to R/2 as well, so that ProGAN's early stages have nothing to decode",
    )


def run(args: argparse.Namespace) -> int:
    with progress_bar("Preparing") as progress:
        report = prepare(
            args.source,
            args.out,
            resolution=args.resolution,
            transform=args.transform,
            max_images=args.max_images,
            skip_bad=args.skip_bad,
            labels_from_folders=args.labels_from_folders,
            pyramid=args.pyramid,
            progress=progress,
        )
    print(report.summary())
    return 0
