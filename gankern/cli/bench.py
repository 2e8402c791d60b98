"""`gankern bench`: operators and training steps, counted and timed against plain PyTorch and others; tuning."""

import argparse
from pathlib import Path

from gankern.bench import account, cases, peer, report, run, select, steps, train, tune
from gankern.errors import InputError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds `bench traffic`, `train`, `ops`, `tune` and `select`."""
    parser = subparsers.add_parser("bench", help="count and time training steps and operators, or tune their kernels")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_traffic(actions)
    _add_train(actions)
    ops = actions.add_parser(
        "ops",
        help="check and time every operator at the shapes of real networks",
        description="Numbers are checked against float64 first; what is wrong isn't timed. Without a GPU: correctness "
        "in Triton's interpreter and what the compiler makes of each kernel.",
    )
    ops.set_defaults(func=run_ops)
    _shared(ops)
    ops.add_argument("--mode", default="forward,backward", metavar="LIST", help=",".join(cases.MODES))
    ops.add_argument("--providers", default="eager,compile,triton", metavar="LIST", help=",".join(run.PROVIDERS))
    ops.add_argument("--quick", action="store_true", help="only passes over 64 MB, fewer runs")
    ops.add_argument("--seconds", type=float, metavar="S", help="begin no further case after this time")
    ops.add_argument("--out", metavar="FILE", help="write the results as JSON")
    ops.add_argument("--plot", metavar="DIR", help="write plots (needs matplotlib)")
    settings = actions.add_parser("tune", help="find the fastest settings of every kernel on this GPU")
    settings.set_defaults(func=run_tune)
    _shared(settings)
    settings.add_argument("--out", metavar="FILE", help="table to rewrite (default: the package's settings.json)")
    choice = actions.add_parser(
        "select",
        help="choose each operator's implementation by results of `bench ops`",
        description="Writes into the table of settings which kernels run for which shapes, Triton's or csrc's, where "
        "the results hold both.",
    )
    choice.set_defaults(func=run_select)
    choice.add_argument("results", nargs="+", metavar="RESULTS", help="JSON files, or folders of ops_*.json")
    choice.add_argument("--out", metavar="FILE", help="table to rewrite (default: the package's settings.json)")


def _add_traffic(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "traffic",
        help="count a training step's launches, bytes, FLOPs and memory, without a GPU",
        description="An account on meta tensors, not a timing: each phase, Adam and the average, by operator, with "
        "the time at the limit of an H100.",
    )
    parser.set_defaults(func=run_traffic)
    _step(parser)
    parser.add_argument("--impl", choices=account.IMPLS, help="count one alone (default: all)")
    parser.add_argument("--json", metavar="FILE", help="write everything that was counted")


def _add_train(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "train",
        help="race: time a training step for each provider on this GPU",
        description="Times each phase, Adam and the average of the networks in plain eager, under torch.compile and "
        "fused, and the trainer's own updates as CUDA graphs; and the whole weighted step. With --peer-repo the "
        "StyleGAN3 repository's own loop too. Numbers are compared first; what is wrong isn't timed.",
    )
    parser.set_defaults(func=run_train)
    _step(parser)
    parser.add_argument("--providers", metavar="LIST", help=f"{','.join(train.PROVIDERS)} (default: the first four)")
    parser.add_argument("--peer-repo", metavar="PATH", help="a clone of the StyleGAN3 repository, to run as it is")
    parser.add_argument("--seconds", type=float, metavar="S", help="for the timing (default 60) and for the peer (600)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry look, no measurement")
    parser.add_argument("--out", metavar="FILE", help="write the results as JSON")
    parser.add_argument("--plot", metavar="DIR", help="write a plot (needs matplotlib)")


def _step(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=steps.MODEL_NAMES, default="stylegan2", help="default stylegan2")
    parser.add_argument("--resolution", type=int, required=True, metavar="R")
    parser.add_argument("--batch", type=int, required=True, metavar="N")
    parser.add_argument("--channel-base", type=int, metavar="N", help="default: the model's")
    parser.add_argument("--precision", choices=("bf16", "fp32", "fp16"), default="bf16", help="default bf16")


def _writable(option: str, name: str | None) -> Path | None:
    """A file to write; raises InputError where its folder isn't there."""
    if name is not None and not Path(name).parent.is_dir():
        raise InputError(f"{option} {name}: the folder {Path(name).parent} isn't there")
    return Path(name) if name else None


def _config(args: argparse.Namespace):
    return steps.settings(args.model, args.resolution, args.batch, args.channel_base, args.precision)


def run_traffic(args: argparse.Namespace) -> int:
    path, config = _writable("--json", args.json), _config(args)
    account.run(config, (args.impl,) if args.impl else tuple(account.IMPLS), print, path)
    return 0


def run_train(args: argparse.Namespace) -> int:
    default = "eager,compile,fused,graphs" if args.device == "cuda" else "eager"
    if args.seconds is not None and not 0 < args.seconds < float("inf"):
        raise InputError(f"--seconds {args.seconds}: expected a number > 0")
    race = train.Race(
        config=_config(args),
        providers=run.check_names("--providers", args.providers or default, train.PROVIDERS),
        device=args.device,
        seconds=args.seconds,
        peer_repo=peer.check(args.peer_repo, args.model),
    )
    path = _writable("--out", args.out)
    if args.plot:
        report.check_plots()
    train.check(race)
    result = train.run(race, print, path)
    if args.plot:
        print(f"wrote {train.plot(result, Path(args.plot))}")
    return 1 if train.wrong(result) else 0


def _shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ops", default="all", metavar="LIST", help=",".join(cases.OPS))
    parser.add_argument("--network", default="config-f-1024,progan", metavar="LIST", help=",".join(cases.NETWORKS))
    parser.add_argument("--batch", default="8", metavar="LIST", help="default 8")
    parser.add_argument("--dtype", default="bf16", metavar="LIST", help="bf16,fp16,fp32")
    parser.add_argument("--layout", default="nhwc", metavar="LIST", help="nchw,nhwc")


def _plan(args: argparse.Namespace, **more) -> run.Plan:
    return run.Plan(
        ops=run.check_names("--ops", args.ops, cases.OPS),
        networks=run.check_names("--network", args.network, cases.NETWORKS),
        batches=run.check_batches(args.batch),
        dtypes=run.check_names("--dtype", args.dtype, ("bf16", "fp16", "fp32")),
        layouts=run.check_names("--layout", args.layout, cases.LAYOUTS),
        **more,
    )


def run_ops(args: argparse.Namespace) -> int:
    import torch

    modes = run.check_names("--mode", args.mode, cases.MODES)
    providers = run.check_names("--providers", args.providers, run.PROVIDERS)
    plan = _plan(args, modes=modes, providers=providers, quick=args.quick, seconds=args.seconds)
    save = run.save_to(args.out)
    if args.plot:
        report.check_plots()
    if torch.cuda.is_available():
        result = run.on_gpu(plan, print, save)
    else:
        print("No CUDA GPU that torch can use: nothing is timed.\n")
        result = run.without_gpu(plan, print)
    save(result)
    if args.plot:
        for path in report.plot(result, Path(args.plot)):
            print(f"wrote {path}")
    return 1 if any(row.note.startswith(("WRONG", "FAILED")) for row in result.rows) else 0


def _table(out: str | None) -> Path:
    from gankern.ops._settings import SETTINGS_FILE

    path = Path(out) if out else SETTINGS_FILE
    if not path.parent.is_dir():
        raise InputError(f"--out {path}: the folder {path.parent} isn't there")
    return path


def run_select(args: argparse.Namespace) -> int:
    path = _table(args.out)
    found = select.select(select.load([Path(name) for name in args.results]))
    for gpu, operators in found.items():
        tune.write(operators, path, gpu)
        for op, classes in operators.items():
            for key, name in sorted(classes.items()):
                print(f"{gpu}: {op.removeprefix('impl ')} [{key}] {name}")
    if not found:
        raise InputError(f"{', '.join(args.results)}: no case was timed with both triton and cuda")
    print(f"wrote {path}")
    return 0


def run_tune(args: argparse.Namespace) -> int:
    import torch

    path = _table(args.out)
    found = tune.tune(_plan(args), print)
    tune.write(found, path, torch.cuda.get_device_name())
    print(f"wrote {path}")
    return 0
