"""What a run shows of itself at a snapshot: sample grid, network file, SWD against its floor, curves."""

import numpy as np
import torch

from gankern.data import ImageDataset
from gankern.metrics.evaluate import MIN_SWD_RESOLUTION, Evaluator, conditions
from gankern.models.files import save_network
from gankern.models.sampling import sample_images
from gankern.training.checkpoint import kimg_name
from gankern.training.config import Config
from gankern.training.pictures import grid_size, save_curves, save_grid
from gankern.training.rundir import RunDir
from gankern.training.trainer import BaseTrainer


class Snapshots:
    """The pictures and scores of one run, always of the same latents, labels and reals, so that they compare."""

    def __init__(self, config: Config, run: RunDir, dataset: ImageDataset, device: torch.device):
        self.config, self.run, self.dataset = config, run, dataset
        self.columns, self.rows = grid_size(config.resolution)
        count = min(config.metric_images, len(dataset) // 2)
        scored = count > 0 and config.resolution >= MIN_SWD_RESOLUTION
        self.evaluator = Evaluator(dataset, count, batch=config.images_at_once, device=device) if scored else None

    def save_reals(self) -> None:
        """reals.png: as many images, evenly spread over the dataset, as fakes-*.png shows."""
        picks = np.linspace(0, len(self.dataset) - 1, self.columns * self.rows).astype(int)
        save_grid(self.run.path / "reals.png", np.stack([self.dataset.image(i) for i in picks]), self.columns)

    def taken(self, nimg: int) -> bool:
        """Whether the snapshot at `nimg` was finished: its row is the last thing that it writes but the curves."""
        return any(row["nimg"] == nimg and "step" not in row for row in self.run.read_stats())

    def take(self, trainer: BaseTrainer) -> None:
        """Writes the grid, the network and a row with SWD, and redraws the curves."""
        name, network = kimg_name(trainer.nimg), trainer.G_ema
        inputs = conditions(self.dataset, network, self.columns * self.rows)
        images = torch.cat(list(sample_images(network, *inputs, self.config.images_at_once, native=True)))
        save_grid(self.run.path / f"fakes-{name}.png", images.cpu().numpy(), self.columns)
        save_network(self.run.path / f"network-{name}.safetensors", network, nimg=trainer.nimg)
        row = {"nimg": trainer.nimg, "kimg": trainer.nimg / 1000}
        if self.evaluator is not None:
            score = self.evaluator.swd(network)
            row |= {"swd": score.levels["avg"], "swd_floor": score.floor["avg"], "swd_images": score.num_images}
            self.run.log(f"kimg {trainer.nimg / 1000:.1f}: {score}")
        self.run.write_stats(row)
        save_curves(self.run.path / "curves.png", self.run.read_stats())
