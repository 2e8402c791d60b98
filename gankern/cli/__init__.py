"""The command line: `gankern COMMAND ...`, one file a subcommand. Wrong input ends with one line and exit code 2."""

import argparse
import importlib
import sys

from gankern._version import __version__
from gankern.errors import InputError, NonFiniteError

COMMANDS = ("train", "generate", "metrics", "data", "env", "demo")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; their modules import torch only when they run."""
    parser = _Parser(prog="gankern", description="Train ProGAN and StyleGAN networks on fused GPU kernels.")
    parser.add_argument("--version", action="version", version=f"gankern {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name in COMMANDS:
        importlib.import_module(f"gankern.cli.{name}").add_parser(subparsers)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs a command line (sys.argv where None) and returns its exit code."""
    try:
        args = build_parser().parse_args(argv)  # inside: Ctrl-C while torch is imported is one line too
        return args.func(args)
    except InputError as error:
        print(f"gankern: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"gankern: error: {error.filename or 'file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except NonFiniteError as error:
        print(f"gankern: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("gankern: interrupted", file=sys.stderr)
        return 130
