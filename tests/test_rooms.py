"""The house: each room of gankern imports only from the rooms above it."""

import ast
from pathlib import Path

import pytest

import gankern

ROOT = Path(gankern.__file__).parent
ROOMS = ["ops", "nn", "models", "interop", "data", "metrics", "training", "bench", "cli"]
BESIDE = {"errors", "files", "binary", "build", "_version"}  # modules that stand beside the rooms


def _imports(file: Path) -> set[str]:
    """The rooms and modules of gankern that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "gankern":
            names = [node.module] if "." in node.module else [f"gankern.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.startswith("gankern.")]
        found |= {name.split(".")[1] for name in names}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{file}: relative import"
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_from_above(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    above = set(ROOMS[: ROOMS.index(room) + 1])
    beside = {"binary"} if room == "ops" else BESIDE | {"__version__"}
    for file in files:
        wrong = _imports(file) - above - beside
        assert not wrong, f"{file.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


def test_every_folder_is_a_room():
    assert {p.name for p in ROOT.iterdir() if p.is_dir()} - {"__pycache__", "csrc"} == set(ROOMS)
