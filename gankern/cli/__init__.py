"""The command line: `gankern COMMAND ...`, one file a subcommand. Wrong input ends with one line and exit code 2."""

import argparse
import importlib
import os
import sys

from gankern._version import __version__
from gankern.errors import InputError, NonFiniteError, OutOfMemory, RankError, is_shortage

COMMANDS = ("train", "generate", "metrics", "convert", "bench", "data", "build", "env", "demo")

PATH = os.path.expanduser
"""The type of options that name a file or folder: a shell leaves the ~ of --out=~/x as it is."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = _Parser(prog="gankern", description="Train StyleGAN2 networks, sample them and score them.")
    parser.add_argument("--version", action="version", version=f"gankern {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name in COMMANDS:
        importlib.import_module(f"gankern.cli.{name}").add_parser(subparsers)
    return parser


def _check_environment() -> None:
    """Raises InputError where GANKERN_IMPL names what no operator has."""
    from gankern.ops import implementations

    wanted = os.environ.get("GANKERN_IMPL")
    available = sorted({name for row in implementations().values() for name in row["available"].split(", ")})
    if wanted and wanted not in available:
        raise InputError(f"GANKERN_IMPL={wanted}: no operator has it, expected one of {', '.join(available)}")


def _who() -> str:
    """Who speaks; among several ranks, which."""
    several = os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ
    return f"gankern: rank {os.environ['RANK']}" if several else "gankern"


def main(argv: list[str] | None = None) -> int:
    """Runs a command line (sys.argv where None) and returns its exit code."""
    try:
        args = build_parser().parse_args(argv)  # inside: Ctrl-C while torch is imported is one line too
        _check_environment()
        return args.func(args)
    except InputError as error:
        print(f"{_who()}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{_who()}: error: {error.filename or 'file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except (NonFiniteError, OutOfMemory, RankError) as error:
        print(f"{_who()}: error: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if not is_shortage(error):  # whose own text fills a screen
            raise
        print(f"{_who()}: error: out of memory; give a smaller --batch-gpu (or --batch)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{_who()}: interrupted", file=sys.stderr)
        return 130
