"""The trainer: losses, phases, schedule, moving average, checkpoints, the loop."""

from gankern.errors import NonFiniteError
from gankern.training.config import PRESETS, Config, resolve
from gankern.training.loop import train
from gankern.training.progan import ProGANTrainer
from gankern.training.rundir import RunDir
from gankern.training.step import Trainer

__all__ = ["PRESETS", "Config", "NonFiniteError", "ProGANTrainer", "RunDir", "Trainer", "resolve", "train"]
