"""Checkpoints: a run's full state in a folder that is either whole or absent.

A checkpoint is written under a temporary name, synced and renamed; its meta.json holds a format version and the size
and CRC of the state, so that a truncated copy is told from a good one.
"""

import json
import re
import shutil
import zlib
from pathlib import Path

import torch

from gankern._version import __version__
from gankern.errors import InputError
from gankern.files import replacing, save_torch

FORMAT = 1
_NAME = re.compile(r"checkpoint-(\d+\.\d{3})")


def kimg_name(nimg: int) -> str:
    """Images shown, in thousands, as it stands in file names: 00012.544."""
    return f"{nimg / 1000:09.3f}"


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


def save_checkpoint(run: Path, state: dict, nimg: int, keep: int) -> Path:
    """Writes checkpoint-<kimg>/ with `state` and removes all but the newest `keep` up to it. Raises InputError on a
    full disk."""
    path = run / f"checkpoint-{kimg_name(nimg)}"
    with replacing(path) as temporary:
        temporary.mkdir()
        file = temporary / "state.pt"
        save_torch(state, file)
        meta = {"format": FORMAT, "gankern": __version__, "nimg": nimg, "size": file.stat().st_size, "crc": _crc(file)}
        (temporary / "meta.json").write_text(json.dumps(meta) + "\n")
    written = list_checkpoints(run)
    for old in written[: written.index(path) + 1][:-keep]:  # those after it were damaged, or it would not be written
        shutil.rmtree(old, ignore_errors=True)
    return path


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, the oldest first."""
    found = [(float(m[1]), p) for p in run.iterdir() if p.is_dir() and (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict:
    """The state in `path`. Raises InputError where it is truncated, damaged, or from a newer version of gankern."""
    try:
        meta = json.loads((path / "meta.json").read_text())
        version, size, crc = int(meta["format"]), int(meta["size"]), int(meta["crc"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a checkpoint (meta.json: {error})") from None
    if version > FORMAT:
        raise InputError(
            f"{path}: written by a newer gankern ({meta.get('gankern')}, checkpoint format {version}); "
            f"this is {__version__}, which reads format {FORMAT} and older"
        )
    file = path / "state.pt"
    actual = file.stat().st_size if file.exists() else 0
    if actual != size or _crc(file) != crc:
        what = f"{actual} of {size} bytes" if actual != size else "its checksum differs"
        raise InputError(f"{file}: truncated or damaged ({what})")
    return torch.load(file, map_location=device, weights_only=True)


def newest_good_checkpoint(run: Path, warn) -> tuple[Path, dict] | None:
    """The newest checkpoint that loads, with its state; `warn(text)` hears of each damaged one. None where none
    is there at all.

    Raises InputError where all are damaged: beginning anew would overwrite the run. A checkpoint of a newer version is
    an error too, never passed over.
    """
    paths = list_checkpoints(run)
    for path in reversed(paths):
        try:
            return path, load_checkpoint(path)
        except InputError as error:
            if "newer gankern" in str(error):
                raise
            warn(f"{error}; trying the one before")
    if paths:
        raise InputError(
            f"{run}: all of its checkpoints ({len(paths)}) are damaged; restore one, or give another --out"
        )
    return None
