"""What `gankern generate` draws: pictures of seeds and of w, mixed styles, animations, projections. Each function
writes its files and says what it wrote."""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gankern.data.loader import default_budget
from gankern.data.parallel import progress_bar
from gankern.errors import InputError
from gankern.files import replacing
from gankern.models import progan
from gankern.models.latents import mix_styles, read_ws, slerp_curve, spline_curve
from gankern.models.perceptual import MIN_SIZE, Perceptual, load_perceptual
from gankern.models.projection import Distance, project
from gankern.models.sampling import check_options, class_labels, draw, image_bytes, parse_layers, seed_latents
from gankern.training.animation import DEFAULT_FPS, check_animation, save_animation
from gankern.training.pictures import read_target, save_grid, save_png

MAX_ON_CPU, MAX_ON_GPU = 16, 64
SHARE = 0.8
"""Of a GPU's free memory, for pictures."""


def batch_that_fits(network: nn.Module) -> int:
    """Pictures at a time by the memory that is free now, an estimate: at most 16 on a CPU, 64 on a GPU."""
    device = next(network.parameters()).device
    if device.type == "cpu":
        free, most = default_budget(), MAX_ON_CPU
    else:
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free, most = int(SHARE * (torch.cuda.mem_get_info(device)[0] + kept)), MAX_ON_GPU
    return max(1, min(most, free // image_bytes(network)))


@dataclass
class Gallery:
    """A network, the class of all its pictures, and how they are drawn. `batch` None: by memory.

    Raises InputError for options that the network doesn't have, and for one that doesn't draw grey or RGB.
    """

    network: nn.Module
    number: int | None = None
    truncation_psi: float = 1.0
    truncation_cutoff: int | None = None
    noise_mode: str = "const"
    batch: int | None = None

    def __post_init__(self):
        check_options(self.network, self.truncation_psi, self.truncation_cutoff, self.noise_mode)
        if self.network.img_channels not in (1, 3):
            raise InputError(f"--network: draws {self.network.img_channels} channels, expected 1 or 3")

    @property
    def label(self) -> Tensor:
        """[1, c_dim]."""
        return class_labels(self.network, self.number, 1)

    def has_w(self) -> bool:
        return not isinstance(self.network, progan.Generator)

    def need_w(self, option: str) -> None:
        """Raises InputError for a network without w."""
        if not self.has_w():
            raise InputError(f"{option}: not an option of a ProGAN, which has no w")

    @torch.no_grad()
    def latents(self, z: Tensor) -> Tensor:
        """z [N, z_dim] -> what is drawn, on the CPU: ws [N, num_ws, w_dim]; of a ProGAN z itself. One by one: a picture
        must not depend on those beside it."""
        if not self.has_w():
            return z
        device, label = self.network.mapping.w_avg.device, self.label.to(self.network.mapping.w_avg.device)
        cut = (self.truncation_psi, self.truncation_cutoff)
        return torch.cat([self.network.mapping(one.to(device), label, *cut).cpu() for one in z.split(1)])

    def of_seeds(self, seeds: Iterable[int]) -> Iterator[Tensor]:
        """The latents of each seed."""
        return (self.latents(seed_latents([seed], self.network.z_dim))[0] for seed in seeds)

    def draw(self, latents: Iterable[Tensor], count: int, seeds: Iterable[int] = ()) -> Iterator[np.ndarray]:
        """A picture [C, R, R] of each of `count` latents; `seeds`: of random noise. Shows how far it is."""
        batch = self.batch or batch_that_fits(self.network)
        options = {"noise_mode": self.noise_mode, "noise_seeds": seeds, "shrink": self.batch is None}
        label = None if self.has_w() else self.label
        with progress_bar("Drawing") as progress:
            for done, picture in enumerate(draw(self.network, latents, batch, label=label, **options), 1):
                progress(done, count)
                yield picture


def draw_seeds(gallery: Gallery, seeds: Sequence[int], out: Path, grid: bool) -> str:
    """seed0000.png and so on; `grid`: grid.png of all as well."""
    _ = gallery.label  # refuses a wrong class before anything is written
    out.mkdir(parents=True, exist_ok=True)
    images = []
    for seed, picture in zip(seeds, gallery.draw(gallery.of_seeds(seeds), len(seeds), seeds), strict=True):
        save_png(out / f"seed{seed:04d}.png", picture.transpose(1, 2, 0))
        if grid:
            images.append(picture)
    if grid:
        save_grid(out / "grid.png", images)
    return f"{len(seeds)} images in {out}" + (", all in grid.png" if grid else "")


def draw_ws(gallery: Gallery, file: Path, out: Path) -> str:
    """ws0000.png and so on, of the w in an .npz file. Random noise is that of the seeds 0, 1, ..."""
    gallery.need_w("--ws")
    ws = read_ws(file, gallery.network.num_ws, gallery.network.w_dim)
    out.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(gallery.draw(ws, len(ws), range(len(ws)))):
        save_png(out / f"ws{number:04d}.png", picture.transpose(1, 2, 0))
    return f"{len(ws)} images in {out}"


def draw_mixes(gallery: Gallery, rows: Sequence[int], columns: Sequence[int], layers: str, out: Path) -> str:
    """mix0003-0007.png and so on: of row 3's w with column 7's in `layers`; and grid.png, whose first row and column
    are the sources. Random noise is the row's."""
    gallery.need_w("--style-mix")
    chosen = parse_layers(layers, gallery.network.num_ws)
    row_ws, column_ws = (torch.stack(list(gallery.of_seeds(seeds))) for seeds in (rows, columns))
    out.mkdir(parents=True, exist_ok=True)
    latents, noise, names = list(column_ws), list(columns), [""] * len(columns)
    for row, w, mixed in zip(rows, row_ws, mix_styles(row_ws, column_ws, chosen), strict=True):
        latents += [w, *mixed]
        noise += [row] * (1 + len(columns))
        names += ["", *(f"mix{row:04d}-{column:04d}.png" for column in columns)]
    images = []
    for name, picture in zip(names, gallery.draw(latents, len(latents), noise), strict=True):
        images += [picture] if images else [np.zeros_like(picture), picture]
        if name:
            save_png(out / name, picture.transpose(1, 2, 0))
    save_grid(out / "grid.png", images, len(columns) + 1)
    return f"{len(rows) * len(columns)} images in {out}, all in grid.png"


def parse_cells(text: str | None) -> tuple[int, int]:
    """Rows and columns of "2x3", the --grid of an animation; (1, 1) for None. Raises InputError."""
    match = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", text or "1x1", re.ASCII)
    if text == "" or not match:
        raise InputError(f"--grid{' ' * bool(text)}{text}: expected rows x columns of an animation, such as 2x3")
    return int(match[1]), int(match[2])


def animate(
    gallery: Gallery,
    seeds: Sequence[int],
    frames: int,
    out: Path,
    *,
    space: str | None = None,
    looped: bool = True,
    fps: int | None = None,
    cells: tuple[int, int] = (1, 1),
) -> str:
    """A way from seed to seed with `frames` pictures for each step; back to the first where `looped`, else the last
    seed's picture ends it. space "w": along a cubic spline; "z": slerps; None: w where there is one.

    `cells`: rows and columns of ways that run side by side; the first takes the first seeds, and so on. `fps` None: 30.
    """
    _ = gallery.label  # refuses a wrong class before anything is drawn
    if space == "w":
        gallery.need_w("--space w")
    side_by_side = cells[0] * cells[1]
    keys, left = divmod(len(seeds), side_by_side)
    if left or keys < 2:
        each = f" in each of {side_by_side} cells, as many in each" if side_by_side > 1 else ""
        raise InputError(f"--interpolate: {len(seeds)} seeds, expected at least two{each}")
    side = gallery.network.img_resolution
    check_animation(out, fps, cells[0] * side, cells[1] * side)
    in_w = gallery.has_w() and space != "z"
    z = seed_latents(seeds, gallery.network.z_dim)
    ends = (gallery.latents(z) if in_w else z).unflatten(0, (side_by_side, keys)).transpose(0, 1)
    curve = (spline_curve if in_w else slerp_curve)(ends, looped)
    count = keys * frames if looped else (keys - 1) * frames + 1

    def latents() -> Iterator[Tensor]:
        for number in range(count):
            yield from curve(number / frames) if in_w else gallery.latents(curve(number / frames))

    drawn = gallery.draw(latents(), count * side_by_side)
    save_animation(out, _tiled(drawn, *cells), count, fps or DEFAULT_FPS, looped)
    return f"{count} frames in {out}"


def _tiled(pictures: Iterator[np.ndarray], rows: int, columns: int) -> Iterator[np.ndarray]:
    """Pictures [C, H, W], as they come, to sheets [rows · H, columns · W, C]."""
    for first in pictures:
        sheet = np.stack([first, *(next(pictures) for _ in range(rows * columns - 1))])
        _, c, h, w = sheet.shape
        yield sheet.reshape(rows, columns, c, h, w).transpose(0, 3, 1, 4, 2).reshape(rows * h, columns * w, c)


class _Steps:
    """A projection's progress: on the bar of a terminal, elsewhere a line for every tenth of it."""

    def __init__(self, bar: progress_bar, steps: int):
        self.bar, self.steps, self.said = bar, steps, 0

    def __call__(self, step: int, distance: float) -> None:
        self.bar.note(f"distance {distance:.4f}")
        self.bar(step, self.steps)
        if not sys.stderr.isatty() and (step == self.steps or step * 10 // self.steps > self.said):
            self.said = step * 10 // self.steps
            print(f"step {step} of {self.steps}: distance {distance:.4f}", flush=True)


def draw_projection(
    gallery: Gallery, image: Path, out: Path, *, steps: int = 1000, seed: int = 0, features: Path | None = None
) -> tuple[str, bool]:
    """target.png, what of the image the network is to match; projected_w.npz, the w that was found; projected.png, what
    `--ws` draws of it: the network's own noise, not the maps that were optimised beside w, which are dropped.

    The distance is perceptual with `features`, a file of VGG16's weights, else the mean squared difference of pixels.
    Returns what there is to say, and whether all steps were taken (else Ctrl-C came).
    """
    gallery.need_w("--project")
    network = gallery.network
    pixels = read_target(image, network.img_resolution, network.img_channels)
    label, device = gallery.label, network.mapping.w_avg.device
    target = torch.from_numpy(pixels).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1
    distance = _distance(network, target, features)
    out.mkdir(parents=True, exist_ok=True)
    save_png(out / "target.png", pixels)
    with progress_bar("Projecting", "step") as bar:
        found = project(network, distance, steps, label=label, seed=seed, report=_Steps(bar, steps))
    with replacing(out / "projected_w.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, w=found.ws.numpy())
    (picture,) = gallery.draw(found.ws, 1)
    save_png(out / "projected.png", picture.transpose(1, 2, 0))
    squared = (torch.from_numpy(picture.astype(np.float32)) / 127.5 - 1 - target[0].cpu()).square().mean().item()
    steps_taken = f"{found.steps}" + (f" of {steps}" if found.steps < steps else "")
    said = f"projected.png, target.png and projected_w.npz in {out} after {steps_taken} steps"
    return f"{said}; mean squared difference of the pixels {squared:.4f}", found.steps == steps


def _distance(network: nn.Module, target: Tensor, features: Path | None) -> Distance:
    if features is None:
        print("no --features: minimising the mean squared difference of the pixels", flush=True)
        return lambda images: (images - target).square().mean()
    if network.img_resolution < MIN_SIZE:
        raise InputError(f"--features: the network draws {network.img_resolution} px, expected {MIN_SIZE} or more")
    perceptual: Perceptual = load_perceptual(features).to(target.device)
    with torch.no_grad():
        wanted = perceptual(target)
    return lambda images: perceptual.distance(perceptual(images), wanted).sum()
