"""`gankern build`: compiles the CUDA kernels, for the GPU at hand, into the cache folder."""

import argparse

from gankern import binary, build
from gankern.errors import InputError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds `build`."""
    parser = subparsers.add_parser(
        "build",
        help="compile the CUDA kernels for this machine's GPU",
        description="Needs nvcc and g++. The library lands in the cache folder ($GANKERN_CACHE, else ~/.cache/gankern) "
        "and is found there from then on. Without a GPU, --arch says what to build for.",
    )
    parser.set_defaults(func=run)
    parser.add_argument("--arch", metavar="LIST", help="such as '8.0;9.0+PTX' (default: the GPUs at hand)")
    parser.add_argument("--host", action="store_true", help="for CPU tensors, by g++ alone: for tests")
    parser.add_argument("--force", action="store_true", help="compile everything again")
    parser.add_argument("--verbose", action="store_true", help="show the compilers' commands and output")


def run(args: argparse.Namespace) -> int:
    if args.host and args.arch:
        raise InputError(f"--arch {args.arch}: --host builds for the CPU")
    try:
        mode, archs = ("host", None) if args.host else ("cuda", build.archs_for(args.arch))
        library = build.build(mode, archs, force=args.force, verbose=args.verbose)
        build.check_loads(library)
    except build.BuildError as error:
        raise InputError(str(error)) from error
    made = binary.record(library)
    what = f"for {', '.join(made['archs']) or 'CPU tensors'} by {made['compiler']} in {made['seconds']:.0f} s"
    print(f"{library}\nbuilt {made['date']} {what}")
    return 0
