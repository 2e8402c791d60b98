"""Snapshots of the StyleGAN2-ADA and StyleGAN3 repositories (.pkl), read as data: nothing in them is executed.

Such a pickle is a dict of networks (G, D, G_ema) and of how they were trained. A network is its class's source text,
which is dropped here, and its module's state: `_parameters`, `_buffers`, `_modules`, and options as attributes.
"""

import math
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gankern.errors import InputError
from gankern.interop import pickles, tensors
from gankern.interop.networks import PARTS, Networks
from gankern.interop.pickles import Known, Refused
from gankern.interop.stylegan2 import discriminator_from_state_dict, generator_from_state_dict

MOST_DEEP, MOST_MODULES = 16, 10_000
"""Of modules within modules: a pickle may hold one within itself."""


@dataclass
class Foreign:
    """A module of a snapshot: the name of its class, and its attributes."""

    class_name: str
    state: dict[str, Any]

    def children(self) -> dict[str, "Foreign"]:
        """Its modules by name."""
        found = _dict(self.state, "_modules")
        for name, module in found.items():
            if not isinstance(module, Foreign | type(None)):
                raise Refused(f"its module {name!r:.50} is a {type(module).__name__}")
        return {name: module for name, module in found.items() if module is not None}

    def walk(self) -> Iterator[tuple[str, "Foreign"]]:
        """Each module within, itself first, by its path ("synthesis.b4.")."""
        waiting, count = [("", self, 0)], 0
        while waiting:
            path, module, depth = waiting.pop()
            count += 1
            if depth > MOST_DEEP or count > MOST_MODULES:
                raise Refused("its modules hold one another without end")
            yield path, module
            waiting += [(f"{path}{name}.", child, depth + 1) for name, child in module.children().items()]

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and buffers, as the module's own state_dict() would hold them."""
        found: dict[str, Tensor] = {}
        for path, module in self.walk():
            passing = module.state.get("_non_persistent_buffers_set", set())
            if not isinstance(passing, set):
                raise Refused("its _non_persistent_buffers_set is no set")
            for kind in ("_parameters", "_buffers"):
                for name, value in _dict(module.state, kind).items():
                    if value is None or (kind == "_buffers" and name in passing):
                        continue
                    if not isinstance(value, Tensor) or not value.is_floating_point():
                        raise Refused(f"its {path}{name} is no tensor of numbers")
                    found[f"{path}{name}"] = value
        return found


def _dict(state: dict, name: str) -> dict:
    found = state.get(name, {})
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise Refused(f"its {name} is no dict of names")
    return found


def _reconstruct(meta: Any) -> Foreign:
    """torch_utils.persistence's function, which would compile the class's source text."""
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise Refused("it holds a persistent object of an unknown form")
    name, state = meta.get("class_name"), meta.get("state")
    if not isinstance(name, str) or not isinstance(state, dict):
        raise Refused("it holds a persistent object of an unknown form")
    return Foreign(name, state)


def _set(items: Any = ()) -> set:
    if not isinstance(items, list | tuple | set | frozenset):
        raise Refused("it makes a set of what is no list")
    return {pickles.plain(item) for item in items}


def _missing(name: str) -> str:
    if re.match(r"(\w+\.)*dnnlib\.tflib\b|tensorflow\b", name):
        return (
            "it was written by a TensorFlow StyleGAN; convert it with stylegan2-ada-pytorch's legacy.py "
            "(--source and --dest) first, whose result this reads"
        )
    return f"it tries to use {name}"


_DICTS = ("collections.OrderedDict", "dnnlib.util.EasyDict", "dnnlib.EasyDict")
_RECONSTRUCT = "torch_utils.persistence._reconstruct_persistent_obj"
KNOWN = Known(
    calls=tensors.CALLS | {"builtins.set": _set, "__builtin__.set": _set, _RECONSTRUCT: _reconstruct},
    classes=dict.fromkeys(_DICTS, dict),
    values=tensors.VALUES,
    missing=_missing,
)


def read_snapshot(path: Path) -> Networks:
    """The networks in a .pkl of the StyleGAN2-ADA or StyleGAN3 repository.

    Raises InputError for what isn't one, for one that tries to run something, and for another architecture.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            content = pickles.load(mapped, KNOWN, len(mapped))
        return _networks(content)
    except Refused as error:
        raise InputError(f"{path}: refused: {error}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:  # mmap of an empty file is a ValueError
        raise InputError(f"{path}: not a snapshot ({pickles.reason(error)})") from None


def _networks(content: Any) -> Networks:
    if isinstance(content, Foreign):
        content = {"G_ema": content}
    if not isinstance(content, dict) or not any(isinstance(content.get(part), Foreign) for part in PARTS):
        raise InputError("a pickle, but not a StyleGAN snapshot (a dict with G, D or G_ema)")
    found: dict[str, nn.Module] = {}
    for part in PARTS:
        module = content.get(part)
        if isinstance(module, Foreign):
            found[part] = _discriminator(module) if part == "D" else _generator(module)
    return Networks(**found, origin="snapshot of StyleGAN2-ADA's layout", notes=_notes(content), options_told=True)


# -- networks ---------------------------------------------------------------------------------------------------------


def _refuse_others(module: Foreign, modules: dict[str, Foreign], needed: str) -> None:
    """An InputError that says which architecture it is, where it isn't StyleGAN2's."""
    if any(m.class_name == "SynthesisInput" for m in modules.values()):
        raise InputError("a StyleGAN3 generator, which isn't supported yet")
    if needed not in modules:
        within = ", ".join(name[:50] for name in sorted(module.children())[:6]) or "no modules"
        raise InputError(f"a {module.class_name!r:.50} of {within}: not a StyleGAN2 network")


def _agreed(modules: dict[str, Foreign], names: str, attribute: str) -> Any:
    """An attribute that all modules whose path matches `names` have in common; None where none has it."""
    among = [m.state for path, m in modules.items() if re.fullmatch(names, path)]
    found = {pickles.plain(state[attribute]) for state in among if attribute in state}
    if len(found) > 1:
        raise InputError(f"its layers differ in {attribute}")
    return found.pop() if found else None


def _expect(modules: dict[str, Foreign], names: str, attribute: str, wanted: Any) -> None:
    value = _agreed(modules, names, attribute)
    same = math.isclose(value, wanted, rel_tol=1e-6) if isinstance(value, float) else value in (None, wanted)
    if not same:
        raise InputError(f"its layers have {attribute} {value!r:.50}, expected {wanted!r}")


def _conv_clamp(modules: dict[str, Foreign], names: str) -> float | None:
    value = _agreed(modules, names, "conv_clamp")
    if not isinstance(value, int | float | None):
        raise InputError(f"its layers have conv_clamp {value!r:.50}, expected a number")
    return value


def _generator(module: Foreign) -> nn.Module:
    modules = dict(module.walk())
    _refuse_others(module, modules, "synthesis.b4.")
    layers = r"synthesis\.b\d+\.conv[01]\."
    _expect(modules, layers, "activation", "lrelu")
    _expect(modules, r"mapping\.fc\d+\.", "activation", "lrelu")
    _expect(modules, r"mapping\.fc\d+\.", "bias_gain", 0.01)  # the learning-rate multiplier
    return generator_from_state_dict(module.state_dict(), conv_clamp=_conv_clamp(modules, layers))


def _discriminator(module: Foreign) -> nn.Module:
    modules = dict(module.walk())
    _refuse_others(module, modules, "b4.")
    layers = r"b\d+\.conv[01]?\."
    _expect(modules, layers, "activation", "lrelu")
    _expect(modules, r"mapping\.fc\d+\.", "bias_gain", 0.01)
    group = _agreed(modules, r"b4\.mbstd\.", "group_size") if "b4.mbstd." in modules else 4
    if not isinstance(group, int | None):
        raise InputError(f"its minibatch stddev has group_size {group!r:.50}, expected a whole number")
    clamp = _conv_clamp(modules, layers)
    return discriminator_from_state_dict(module.state_dict(), mbstd_group_size=group, conv_clamp=clamp)


def _notes(content: dict) -> list[str]:
    """What else the snapshot says of itself."""
    notes = []
    data = content.get("training_set_kwargs")
    if isinstance(data, dict):
        said = {k: data.get(k) for k in ("path", "resolution", "max_size", "use_labels", "xflip")}
        notes.append(
            "trained on " + ", ".join(f"{k} {str(v)[:200]}" for k, v in said.items() if isinstance(v, str | int))
        )
    pipe = content.get("augment_pipe")
    if isinstance(pipe, Foreign):
        p = _dict(pipe.state, "_buffers").get("p")
        if isinstance(p, Tensor) and p.numel() == 1:
            notes.append(f"adaptive augmentation at p = {p.item():.3f}, which isn't carried over")
    return notes
