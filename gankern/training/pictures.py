"""Pictures: grids of reals and samples, curves of a run's statistics; and a picture that a network is to match."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gankern.data.decode import BadImage, decode
from gankern.data.prepare import crop_and_resize
from gankern.errors import InputError
from gankern.files import replacing


def grid_size(resolution: int) -> tuple[int, int]:
    """Columns and rows of a grid: about 1000 px wide, from 4x3 to 16x9."""
    columns = min(max(1024 // resolution, 4), 16)
    return columns, max(columns * 9 // 16, 3)


def save_grid(path: Path, images: Sequence[np.ndarray], columns: int | None = None) -> None:
    """uint8 images [C, H, W] as one PNG, row by row (None: about twice as wide as high); a short last row ends
    black."""
    columns = columns or min(len(images), math.ceil(math.sqrt(2 * len(images))))
    rows = math.ceil(len(images) / columns)
    c, h, w = images[0].shape
    sheet = np.zeros((rows * h, columns * w, c), np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * h, i % columns * w
        sheet[y : y + h, x : x + w] = image.transpose(1, 2, 0)
    save_png(path, sheet)


def save_png(path: Path, pixels: np.ndarray) -> None:
    """uint8 [H, W, C] with 1 or 3 channels as PNG, whole or not at all."""
    image = to_image(pixels)
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def to_image(pixels: np.ndarray) -> Image.Image:
    """uint8 [H, W, C] with 1 or 3 channels."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def read_target(path: Path, resolution: int, channels: int) -> np.ndarray:
    """An image file as uint8 [R, R, C]: its middle square, resized as `gankern data` does. Raises InputError."""
    try:
        image = crop_and_resize(decode(path.read_bytes()), resolution, resolution)
    except OSError as error:
        raise InputError(f"--project {path}: can't be read ({error.strerror or error})") from None
    except BadImage as error:
        raise InputError(f"--project {path}: {error}") from None
    return np.array(image if channels == 3 else image.convert("L")).reshape(resolution, resolution, -1)


def save_curves(path: Path, rows: list[dict]) -> bool:
    """Losses, R1, path length and SWD over kimg as one PNG; False where matplotlib isn't installed or nothing is
    there."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    panels = {
        "loss": ("loss/G", "loss/D"),
        "discriminator output": ("logits/real", "logits/fake"),
        "R1": ("r1",),
        "gradient penalty": ("gradient_penalty",),
        "path length": ("path_length",),
        "lod": ("lod",),
        "SWD x 1000": ("swd", "swd_floor"),
    }
    known = {name for row in rows for name, value in row.items() if value is not None}
    shown = {title: [n for n in names if n in known] for title, names in panels.items()}
    shown = {title: names for title, names in shown.items() if names}
    if not shown:
        return False
    figure = Figure(figsize=(7, 2.2 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, names) in zip(axes, shown.items(), strict=True):
        for name in names:
            points = [(row["nimg"] / 1000, row[name]) for row in rows if row.get(name) is not None]
            axis.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 40 else None)
        axis.set_ylabel(title)
        axis.legend(loc="upper right", fontsize="small")
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("kimg")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    return True
