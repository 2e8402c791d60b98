"""What a run shows of itself at a snapshot: sample grid, network file, SWD against its floor, curves."""

import numpy as np
import torch

from gankern.data import ImageDataset
from gankern.metrics.evaluate import MIN_SWD_RESOLUTION, Evaluator, conditions
from gankern.metrics.floor import SWDScore
from gankern.models.files import save_network
from gankern.models.sampling import sample_images
from gankern.training.checkpoint import kimg_name
from gankern.training.config import Config
from gankern.training.distributed import World
from gankern.training.pictures import grid_size, save_curves, save_grid
from gankern.training.rundir import Onlooker, RunDir
from gankern.training.trainer import BaseTrainer


class Snapshots:
    """The pictures and scores of one run, always of the same latents, labels and reals, so that they compare."""

    def __init__(
        self, config: Config, run: RunDir | Onlooker, dataset: ImageDataset, device: torch.device, world: World
    ):
        self.config, self.run, self.dataset, self.world = config, run, dataset, world
        self.columns, self.rows = grid_size(config.resolution)
        count = min(config.metric_images, len(dataset) // 2)
        scored = count > 0 and config.resolution >= MIN_SWD_RESOLUTION
        settings = {"batch": config.images_at_once, "device": device, "ranks": world}
        self.evaluator = Evaluator(dataset, count, **settings) if scored else None

    def save_reals(self) -> None:
        """reals.png: as many images, evenly spread over the dataset, as fakes-*.png shows."""
        if self.world.rank:
            return
        picks = np.linspace(0, len(self.dataset) - 1, self.columns * self.rows).astype(int)
        save_grid(self.run.path / "reals.png", np.stack([self.dataset.image(i) for i in picks]), self.columns)

    def taken(self, nimg: int) -> bool:
        """Whether the snapshot at `nimg` was finished: its row is the last thing that it writes but the curves."""
        rows = [] if self.world.rank else self.run.read_stats()
        return self.world.told(any(row["nimg"] == nimg and "step" not in row for row in rows))

    def take(self, trainer: BaseTrainer) -> None:
        """Writes the grid, the network and a row with SWD, and redraws the curves. All ranks score, rank 0 writes."""
        with self.world.together():
            if self.world.rank == 0:
                self._draw(trainer)
        score = None if self.evaluator is None else self.evaluator.swd(trainer.G_ema)
        with self.world.together():
            if self.world.rank == 0:
                self._note(trainer, score)

    def _draw(self, trainer: BaseTrainer) -> None:
        name, network = kimg_name(trainer.nimg), trainer.G_ema
        inputs = conditions(self.dataset, network, self.columns * self.rows)
        images = torch.cat(list(sample_images(network, *inputs, self.config.images_at_once, native=True)))
        save_grid(self.run.path / f"fakes-{name}.png", images.cpu().numpy(), self.columns)
        save_network(self.run.path / f"network-{name}.safetensors", network, nimg=trainer.nimg)

    def _note(self, trainer: BaseTrainer, score: SWDScore | None) -> None:
        row = {"nimg": trainer.nimg, "kimg": trainer.nimg / 1000}
        if score is not None:
            row |= {"swd": score.levels["avg"], "swd_floor": score.floor["avg"], "swd_images": score.num_images}
            self.run.log(f"kimg {trainer.nimg / 1000:.1f}: {score}")
        self.run.write_stats(row)
        save_curves(self.run.path / "curves.png", self.run.read_stats())
