"""The trainer: losses, phases, schedule, moving average, checkpoints, the loop."""

from gankern.training.config import PRESETS, Config, resolve
from gankern.training.loop import train
from gankern.training.rundir import RunDir
from gankern.training.step import NonFiniteError, Trainer

__all__ = ["PRESETS", "Config", "NonFiniteError", "RunDir", "Trainer", "resolve", "train"]
