"""A run's folder: its lock, config.toml, log.txt, stats.jsonl and TensorBoard events. Pictures and checkpoints are
elsewhere."""

import fcntl
import json
import os
import sys
import time
from pathlib import Path

from gankern.errors import InputError
from gankern.files import replacing
from gankern.training.config import Config, read_toml, to_toml


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
        self._live = False
        self._board = None

    def close(self) -> None:
        """Ends the live line and gives up the lock."""
        self.end_live()
        if self._board is not None:
            self._board.close()
        os.close(self._lock)

    # -- config
    # ---------------------------------------------------------------------------------------------------------

    def saved_config(self) -> Config | None:
        """The config of the run that this folder holds, None for a new folder; InputError for a folder of other
        things."""
        file = self.path / "config.toml"
        if file.exists():
            return read_toml(file)
        others = sorted(p.name for p in self.path.iterdir() if p.name != ".lock")
        if others:
            raise InputError(f"--out {self.path}: not empty and not a run (it holds {others[0]}); give another --out")
        return None

    def write_config(self, config: Config) -> None:
        with replacing(self.path / "config.toml") as temporary:
            temporary.write_text(to_toml(config), encoding="utf-8")

    # -- what is said
    # ---------------------------------------------------------------------------------------------------

    def log(self, text: str) -> None:
        """Prints a line and appends it, with the time, to log.txt."""
        self.end_live()
        print(text, flush=True)
        with (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def live(self, text: str) -> None:
        """Rewrites the live line, on a terminal; elsewhere says nothing."""
        if sys.stdout.isatty():
            columns = os.get_terminal_size().columns
            print("\r\x1b[K" + text[: columns - 1], end="", flush=True)
            self._live = True

    def end_live(self) -> None:
        if self._live:
            print("\r\x1b[K", end="", flush=True)
            self._live = False

    # -- statistics
    # -----------------------------------------------------------------------------------------------------

    def write_stats(self, row: dict) -> None:
        """Appends a row to stats.jsonl and, where TensorBoard is installed, to its events."""
        with (self.path / "stats.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._board is None:
            self._board = _summary_writer(self.path)
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


class _NoBoard:
    def add_scalar(self, name: str, value: float, step: int) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def _summary_writer(path: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return _NoBoard()
    return SummaryWriter(str(path), purge_step=None)
