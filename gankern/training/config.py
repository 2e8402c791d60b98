"""The config of a run: which model's options it has, its presets, continuation, and config.toml."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from gankern.errors import InputError
from gankern.training.options import IMPLS, PRECISIONS, RUN_OPTIONS, Config, flag
from gankern.training.progan_options import PRESETS as PROGAN_PRESETS
from gankern.training.progan_options import ProGANConfig
from gankern.training.stylegan2_options import ARCHITECTURES, StyleGAN2Config, adam_settings, preset_options
from gankern.training.stylegan2_options import PRESETS as STYLEGAN2_PRESETS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["ARCHITECTURES", "IMPLS", "MODELS", "PRECISIONS", "PRESETS", "RUN_OPTIONS", "Config", "ProGANConfig"]
__all__ += ["StyleGAN2Config", "adam_settings", "continued", "preset_options", "read_toml", "resolve", "to_toml"]

MODELS: dict[str, type[Config]] = {"stylegan2": StyleGAN2Config, "progan": ProGANConfig}

PRESETS = STYLEGAN2_PRESETS | PROGAN_PRESETS


def _model(explicit: dict[str, Any]) -> type[Config]:
    """The class of the model that is asked for by name or by preset."""
    preset, model = explicit.get("preset"), explicit.get("model")
    if preset is not None and preset not in PRESETS:
        raise InputError(f"--preset {preset}: unknown, expected one of {', '.join(PRESETS)}")
    if model is not None and model not in MODELS:
        raise InputError(f"--model {model}: expected one of {', '.join(MODELS)}")
    of_preset = "progan" if preset in PROGAN_PRESETS else "stylegan2"
    if preset is not None and model not in (None, of_preset):
        raise InputError(f"--preset {preset}: of --model {of_preset}, not {model}")
    return MODELS[model or of_preset]


def resolve(
    explicit: dict[str, Any],
    *,
    resolution: int,
    c_dim: int,
    identity: str,
    num_gpus: int = 1,
    start: dict[str, Any] | None = None,
) -> Config:
    """The config of a new run: the preset's options, under those of the networks that it starts from (`start`), under
    those that the user gave (`explicit`), checked."""
    kind = _model(explicit)
    given = kind.given(explicit)
    options = kind.defaults(given, resolution, num_gpus) | (start or {}) | given | {"ranks": num_gpus}
    config = kind(**options, resolution=resolution, c_dim=c_dim, dataset_identity=identity)
    config.check()
    return config


def continued(saved: Config, explicit: dict[str, Any], where: Path, num_gpus: int = 1) -> Config:
    """The config of a run that goes on: the saved one, with such explicit options as may change, on as many ranks as
    there are now.

    Raises InputError naming an explicit option that contradicts what the run in `where` learns.
    """
    model = explicit.get("model")
    given = type(saved).given(explicit if model in (None, saved.model) else {"model": model})
    for name, value in given.items():
        if name in RUN_OPTIONS:
            continue
        old = getattr(saved, name)
        same = old == value
        if name in ("data", "start_from") and old is not None:
            same = Path(old).resolve() == Path(value).expanduser().resolve()
        if not same:
            raise InputError(
                f"{where} holds another run: its {flag(name)} is {old}, not {value}; give another --out, "
                "or leave the option out to continue it"
            )
    changed = saved.for_ranks(num_gpus) | {k: v for k, v in given.items() if k in RUN_OPTIONS}
    config = dataclasses.replace(saved, **changed)
    config.check()
    return config


def to_toml(config: Config) -> str:
    """config.toml; an option that is None is left out."""
    lines = ["# All options of this run, resolved."]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is not None:
            lines.append(f"{field.name} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def read_toml(path: Path) -> Config:
    """The config in `path`; raises InputError where it can't be read or holds an unknown option."""
    try:
        options = tomllib.loads(path.read_text(encoding="utf-8"))
        model = options.get("model", "stylegan2")
        if model not in MODELS:
            raise InputError(f"{path}: model {model!r}, expected one of {', '.join(MODELS)}")
        config = MODELS[model](**options)
        config.check()  # it may have been edited
        return config
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a run's config ({error})") from None
