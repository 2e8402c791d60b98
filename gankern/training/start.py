"""Begins or continues a run: decides by what the output folder holds, and checks everything before anything is
written."""

from pathlib import Path
from typing import Any

from gankern.data import open_dataset
from gankern.errors import InputError
from gankern.training.checkpoint import list_checkpoints
from gankern.training.config import Config, continued, read_toml, resolve
from gankern.training.distributed import ALONE, World, pick_device
from gankern.training.memory import estimate
from gankern.training.operators import use_operators
from gankern.training.rundir import Onlooker, RunDir, refuse_foreign
from gankern.training.transfer import check_start, start_options


def configure(
    out: Path,
    explicit: dict[str, Any],
    *,
    labels: bool | None = None,
    must_exist: bool = False,
    world: World = ALONE,
) -> Config:
    """The config of the run that `out` holds, or of a new one in it, for the ranks there are; writes nothing. Rank 0
    looks, the others hear of it.

    `explicit`: the options that the user gave (names of Config's fields, None for not given). `labels`: train on the
    dataset's labels. `must_exist`: refuse to begin a new run. A run that has no checkpoint yet has learned nothing:
    given --data it begins anew, with whatever options. Raises InputError.
    """
    with world.together():
        config = None if world.rank else _configure(out, explicit, labels, must_exist, world.size)
    config = world.told(config)
    with world.together(), use_operators(config.impl, pick_device(config.device, world)):
        pass
    return config


def _configure(out: Path, explicit: dict[str, Any], labels: bool | None, must_exist: bool, num_gpus: int) -> Config:
    file = out / "config.toml"
    if file.exists() and (must_exist or explicit.get("data") is None or list_checkpoints(out)):
        config = continued(read_toml(file), explicit, out, num_gpus)
        if labels is not None and labels != (config.c_dim > 0):
            kind = "conditional (--cond)" if config.c_dim > 0 else "not conditional (no --cond)"
            raise InputError(f"{out} holds another run: it is {kind}; give another --out")
        return config
    if must_exist:
        raise InputError(f"--resume {out}: holds no run (no config.toml)")
    refuse_foreign(out)
    if explicit.get("data") is None:
        raise InputError("--data: expected a folder or zip of images")
    dataset = open_dataset(
        explicit["data"],
        resolution=explicit.get("resolution"),
        use_labels=bool(labels),
        max_images=explicit.get("max_images"),
        skip_bad=bool(explicit.get("skip_bad")),
    )
    options = {k: v for k, v in explicit.items() if k != "resolution"}
    options["data"] = str(Path(explicit["data"]).expanduser().resolve())
    start: dict[str, Any] = {}
    if explicit.get("start_from") is not None and explicit.get("model") != "progan":
        start = start_options(options.pop("start_from"), dataset.resolution, dataset.label_dim)
    labelled = {"c_dim": dataset.label_dim, "identity": dataset.identity}
    config = resolve(options, resolution=dataset.resolution, num_gpus=num_gpus, start=start, **labelled)
    if start:
        check_start(config)
    return config


def claim(out: Path, config: Config, world: World = ALONE) -> RunDir | Onlooker:
    """Locks `out` for this run and writes its config.toml, on rank 0 for all. Raises InputError where it isn't
    free."""
    with world.together():
        return Onlooker(out) if world.rank else _claim(out, config)


def _claim(out: Path, config: Config) -> RunDir:
    run = RunDir(out)
    try:
        run.saved_config()  # raises for a folder of other things
        run.write_config(config)
    except BaseException:
        run.close()
        raise
    return run


def describe(config: Config) -> str:
    """What --dry-run prints: every option, parameter counts and a memory estimate."""
    width = max(len(name) for name in vars(config))
    lines = [f"{name:<{width}}  {'-' if value is None else value}" for name, value in vars(config).items()]
    memory = estimate(config)
    weights, activations = memory["weights"] / 1e9, memory["activations"] / 1e9
    lines += [
        "",
        f"parameters: generator {memory['G_parameters']:,}, discriminator {memory['D_parameters']:,}",
        f"memory, estimated at {_costliest(config, memory)}: {weights + activations:.2f} GB = {weights:.2f} of "
        f"weights, gradients, Adam and EMA + {activations:.2f} of activations; work space of the libraries aside",
    ]
    return "\n".join(lines)


def _costliest(config: Config, memory: dict[str, int]) -> str:
    if config.model == "stylegan2":
        return f"batch_gpu {memory['images']}"
    r = memory["resolution"]
    return f"{memory['images']} images of {r}x{r}, the costliest stage"
