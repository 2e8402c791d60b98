"""The patch: a finder at the front of sys.meta_path that answers for the modules which gankern provides, and its undo.

Nothing of the code base is imported, run or changed: its packages stay its own, and get our modules as submodules when
something imports them.
"""

import importlib.machinery
import os
import pkgutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from gankern.errors import InputError

_HERE = Path(__file__).parent
_ADA = ("bias_act", "upfirdn2d", "conv2d_resample", "conv2d_gradfix", "grid_sample_gradfix", "fma", "filtered_lrelu")
_MMCV = ("bias_act", "filtered_lrelu", "fused_bias_leakyrelu", "upfirdn2d")
_KNOWN = {*_ADA, *_MMCV, "fused_act"}  # the names of the family's operators, in whatever style


@dataclass(frozen=True)
class _Style:
    """How a code base is laid out. `files`: what we provide, by the name below the package ("": the package itself)."""

    package: str  # the usual one
    ending: str  # of a package's name that tells the style
    files: dict[str, str]
    whole: bool = True  # the package holds the family's operators only
    compiled: str = ""  # the package itself is ours only where this extension is missing beside it


_GRADFIX = {"conv2d_gradfix": "ada/conv2d_gradfix.py"}
STYLES = {
    "ada": _Style("torch_utils.ops", "torch_utils.ops", {name: f"ada/{name}.py" for name in _ADA}),
    "rosinality": _Style(
        "op",
        "op",
        {
            "": "rosinality/__init__.py",
            "fused_act": "rosinality/fused_act.py",
            "upfirdn2d": "rosinality/upfirdn2d.py",
            **_GRADFIX,
        },
    ),
    "mmcv": _Style(
        "mmcv.ops",
        "mmcv.ops",
        {"": "mmcv/__init__.py", **{name: f"mmcv/{name}.py" for name in _MMCV}, **_GRADFIX},
        whole=False,
        compiled="_ext",
    ),
    "basicsr": _Style(
        "basicsr.ops",
        "basicsr.ops",
        {
            "fused_act": "basicsr/fused_act/__init__.py",
            "fused_act.fused_act": "basicsr/fused_act/fused_act.py",
            "upfirdn2d": "basicsr/upfirdn2d/__init__.py",
            "upfirdn2d.upfirdn2d": "rosinality/upfirdn2d.py",
        },
        whole=False,
    ),
}


@dataclass(frozen=True, eq=False)
class _Finder:
    """A meta path finder of one package's patched modules."""

    package: str
    files: dict[str, Path]  # by full name
    theirs: dict[str, list[str]]  # the code base's own folders of those that are packages

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.files:
            return None
        return spec_from_file_location(
            fullname, self.files[fullname], submodule_search_locations=self.theirs.get(fullname)
        )

    def made(self, fullname: str, module: ModuleType | None) -> bool:
        """Whether `module` came from this finder."""
        spec = getattr(module, "__spec__", None)
        return fullname in self.files and spec is not None and spec.origin == str(self.files[fullname])

    def undo(self) -> None:
        if self not in sys.meta_path:
            return
        sys.meta_path.remove(self)
        ours = [name for name in self.files if self.made(name, sys.modules.get(name))]
        # a package of ours takes along what was imported below it, its own or the code base's
        below = tuple(f"{name}." for name in ours if name in self.theirs)
        for name in {*ours, *(n for n in sys.modules if below and n.startswith(below))}:
            module = sys.modules.pop(name)
            parent, _, child = name.rpartition(".")
            if parent in sys.modules and vars(sys.modules[parent]).get(child) is module:
                delattr(sys.modules[parent], child)


@dataclass
class Patch:
    """What one call of `patch_stylegan_ops` put in place; `undo()`, or leaving its `with` block, takes it away."""

    _finders: list[_Finder] = field(default_factory=list)

    @property
    def modules(self) -> tuple[str, ...]:
        """The full names of the modules that it provides."""
        return tuple(name for finder in self._finders for name in finder.files)

    def undo(self) -> None:
        """Remove our modules. What has imported functions from them keeps those. Harmless when done already."""
        for finder in self._finders:
            finder.undo()

    def __enter__(self) -> "Patch":
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def _active() -> list[_Finder]:
    return [finder for finder in sys.meta_path if isinstance(finder, _Finder)]


def _style_of(package: str, style: str | None) -> str:
    if style is not None and style not in STYLES:
        raise InputError(f"style={style!r}, expected one of {', '.join(STYLES)}")
    if style is not None:
        return style
    for name, known in STYLES.items():
        if f".{package}".endswith(f".{known.ending}"):
            return name
    raise InputError(f"package {package!r} doesn't tell its style: pass style=, one of {', '.join(STYLES)}")


def _folders(package: str) -> list[str] | None:
    """Where a package lies, found without running anything of it; None where there is none."""
    path, name = None, ""
    for part in package.split("."):
        name = f"{name}.{part}" if name else part
        path = _folders_below(name, path)
        if path is None:
            return None
    return path


def _folders_below(name: str, path: list[str] | None) -> list[str] | None:
    """`_folders` of a package whose parent's are `path` (None: sys.path)."""
    if name in sys.modules:
        found = getattr(sys.modules[name], "__path__", None)
        return None if found is None else list(found)
    for finder in sys.meta_path:
        try:
            spec = None if isinstance(finder, _Finder) else finder.find_spec(name, path)
            if spec is not None:
                found = spec.submodule_search_locations
                return None if found is None else list(found)
        except KeyError:  # a namespace package asks for its parent in sys.modules
            below = [os.path.join(folder, name.rpartition(".")[2]) for folder in path or sys.path]
            return [folder for folder in below if os.path.isdir(folder)]
    return None


def _modules_in(folders: list[str] | None) -> set[str]:
    return {info.name for info in pkgutil.iter_modules(folders)} if folders else set()


def _finder_for(package: str, style_name: str, leave: frozenset[str]) -> _Finder:
    style = STYLES[style_name]
    parent = package.rpartition(".")[0]
    folders = _folders(package)
    if folders is None and ("" not in style.files or style.compiled or (parent and _folders(parent) is None)):
        raise InputError(f"package {package!r} isn't found: sys.path must hold the code base's folder")
    theirs = _modules_in(folders)
    provided = {name for name in style.files if name and name.split(".")[0] not in leave}
    covered = {name.split(".")[0] for name in provided}
    lacking = sorted(
        name for name in theirs - covered - leave if not name.startswith("__") and (style.whole or name in _KNOWN)
    )
    if lacking:
        raise InputError(
            f"{package} holds {', '.join(lacking)}, which gankern doesn't provide in style {style_name!r}: "
            f"leave={tuple(lacking)!r} keeps the code base's own"
        )
    if "" in style.files and not (style.compiled and style.compiled in _modules_in(_folders(parent))):
        provided.add("")
    files = {f"{package}.{name}" if name else package: _HERE / style.files[name] for name in sorted(provided)}
    packages = [name for name, file in files.items() if file.name == "__init__.py"]
    return _Finder(package, files, {name: _folders(name) or [] for name in packages})


def _check_leave(leave: Iterable[str], packages: dict[str, str]) -> frozenset[str]:
    names = leave if isinstance(leave, str) else tuple(leave)
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"leave={names!r}, expected names of modules, as in leave=('fma',)")
    ours = {file.split(".")[0] for style in packages.values() for file in STYLES[style].files}
    for name in names:
        if name not in ours and not any(name in _modules_in(_folders(package)) for package in packages):
            raise InputError(f"leave={name!r}: no such module in {', '.join(packages)}")
    return frozenset(names)


def patch_stylegan_ops(*packages: str, style: str | None = None, leave: Iterable[str] = ()) -> Patch:
    """Give an existing StyleGAN code base gankern's operators under the names of its own.

    Call it before the code base imports its operators. `packages`: where it keeps them ("torch_utils.ops", "op",
    "models.stylegan2.op", "mmcv.ops", "basicsr.ops"; by default the usual one of `style`, else "torch_utils.ops").
    `style`: "ada" (StyleGAN2-ADA, StyleGAN3), "rosinality", "mmcv" or "basicsr", where the name doesn't tell. `leave`:
    modules that stay the code base's own. A package that is patched already stays as it is. Undone by
    `Patch.undo()`, by leaving `with patch_stylegan_ops(...):`, or for all by `unpatch_stylegan_ops()`.

    Raises InputError, with nothing changed, for a package that isn't found, one that holds operators which gankern
    doesn't provide, and modules that were imported before.
    """
    names = packages or ((STYLES[style].package,) if style in STYLES else ("torch_utils.ops",))
    for name in names:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise InputError(f"package {name!r}, expected a dotted name such as 'torch_utils.ops'")
    styles = {name: _style_of(name, style) for name in names}
    left = _check_leave(leave, styles)
    before = {finder.package: finder for finder in _active()}
    finders = []
    for name, its in styles.items():
        finder = _finder_for(name, its, left)
        if name in before:
            if before[name].files != finder.files:
                raise InputError(f"{name} is patched already, with other style= or leave=: undo that first")
            continue
        early = [module for module in finder.files if module in sys.modules]
        if early:
            raise InputError(
                f"{early[0]} is imported already: call patch_stylegan_ops before the code base is imported"
            )
        finders.append(finder)
    sys.meta_path[:0] = finders
    return Patch(finders)


def unpatch_stylegan_ops() -> None:
    """Undo every `patch_stylegan_ops` that is in place."""
    for finder in _active():
        finder.undo()
