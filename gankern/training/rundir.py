"""A run's folder: its lock, config.toml, log.txt, stats.jsonl and TensorBoard events. Pictures and checkpoints are
elsewhere."""

import fcntl
import json
import math
import os
import sys
import time
from pathlib import Path

from gankern.errors import InputError
from gankern.files import is_leftover, replacing, sweep
from gankern.training.config import Config, read_toml, to_toml


def refuse_foreign(path: Path) -> None:
    """Raises InputError where `path` is a folder that holds other things than a run."""
    if not path.is_dir() or (path / "config.toml").exists():
        return
    others = sorted(p.name for p in path.iterdir() if p.name != ".lock" and not is_leftover(p))
    if others:
        raise InputError(f"--out {path}: not empty and not a run (it holds {others[0]}); give another --out")


class Onlooker:
    """A run as the ranks but the first have it: it says and writes nothing."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def close(self) -> None: ...
    def log(self, text: str) -> None: ...
    def live(self, text: str) -> None: ...
    def write_stats(self, row: dict) -> None: ...
    def rewind_stats(self, nimg: int) -> None: ...


class RunDir:
    """The folder of one run, locked against a second writer while this object lives (the lock dies with the
    process)."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InputError(f"--out {self.path}: can't be written ({error.strerror})") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise InputError(f"--out {self.path}: another process is training in it") from None
        sweep(self.path)
        self._live = False
        self._board = None

    def close(self) -> None:
        """Ends the live line and gives up the lock."""
        self.end_live()
        if self._board is not None:
            self._board.close()
        os.close(self._lock)

    # -- config ---------------------------------------------------------------------------------------------------

    def saved_config(self) -> Config | None:
        """The config of the run that this folder holds, None for a new folder; InputError for a folder of other
        things."""
        refuse_foreign(self.path)
        file = self.path / "config.toml"
        return read_toml(file) if file.exists() else None

    def write_config(self, config: Config) -> None:
        with replacing(self.path / "config.toml") as temporary:
            temporary.write_text(to_toml(config), encoding="utf-8")

    # -- what is said ---------------------------------------------------------------------------------------------

    def log(self, text: str) -> None:
        """Prints a line and appends it, with the time, to log.txt."""
        self.end_live()
        _say(text + "\n")
        self._append("log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def live(self, text: str) -> None:
        """Rewrites the live line, on a terminal; elsewhere says nothing."""
        if sys.stdout.isatty():
            columns = os.get_terminal_size().columns
            _say("\r\x1b[K" + text[: columns - 1])
            self._live = True

    def end_live(self) -> None:
        if self._live:
            _say("\r\x1b[K")
            self._live = False

    def _append(self, name: str, text: str) -> None:
        try:
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise InputError(f"{self.path / name}: could not be written ({error.strerror or error})") from error

    # -- statistics -----------------------------------------------------------------------------------------------

    def write_stats(self, row: dict) -> None:
        """Appends a row to stats.jsonl and, where TensorBoard is installed, to its events. What isn't finite becomes
        null: JSON has no word for it."""
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self._append("stats.jsonl", json.dumps(row) + "\n")
        if self._board is None:
            self._board = _summary_writer(self.path, row["nimg"])
        for name, value in row.items():
            if isinstance(value, int | float):
                self._board.add_scalar(name, value, row["nimg"])
        self._board.flush()

    def read_stats(self) -> list[dict]:
        """The rows of stats.jsonl; a last line cut short by a kill is left out."""
        file = self.path / "stats.jsonl"
        rows = []
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def rewind_stats(self, nimg: int) -> None:
        """Drops the rows past `nimg`: a continued run writes them again."""
        rows = [row for row in self.read_stats() if row["nimg"] <= nimg]
        if (self.path / "stats.jsonl").exists():
            with replacing(self.path / "stats.jsonl") as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _say(text: str) -> None:
    """Prints; a reader that is gone (Ctrl-C ends the `tee` behind a pipe as well) must not end the run."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


class _NoBoard:
    def add_scalar(self, name: str, value: float, step: int) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def _summary_writer(path: Path, nimg: int):
    """TensorBoard's writer; events from `nimg` on, of a run that was continued from before them, are dropped."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return _NoBoard()
    return SummaryWriter(str(path), purge_step=nimg)
