"""Small image folders made on the spot, and a cache folder of each test's own."""

import numpy as np
import pytest
from PIL import Image


def random_picture(seed: int, width: int = 16, height: int = 16) -> Image.Image:
    """Smooth colours, so that resizing keeps them recognisable."""
    coarse = np.random.RandomState(seed).randint(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """Where this test's decoded arrays go."""
    monkeypatch.setenv("GANKERN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def picture():
    return random_picture


@pytest.fixture
def folder(tmp_path):
    """Twelve 16x16 RGB PNGs in two subfolders."""
    root = tmp_path / "images"
    for seed in range(12):
        path = root / f"{seed // 6:05d}" / f"img{seed:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        random_picture(seed).save(path)
    return root
