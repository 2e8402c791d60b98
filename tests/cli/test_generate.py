"""`gankern generate` beyond seeds: mixed styles, animations, projection, ws of a file; each against the network
itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gankern.errors import InputError
from gankern.models import progan
from gankern.models.files import load_network, save_network
from gankern.models.projection import project
from gankern.models.stylegan2 import Generator, Synthesis
from gankern.training import animation, gallery
from gankern.training.gallery import Gallery, batch_that_fits


@pytest.fixture
def generate(cli, network, tmp_path):
    """generate(out, *options) -> {file name: pixels}"""

    def run(out: str, *options, file=network) -> dict[str, np.ndarray]:
        code, _, err = cli("generate", "--network", file, "--out", tmp_path / out, *options)
        assert (code, err) == (0, "")
        pictures = sorted((tmp_path / out).glob("*.png")) if (tmp_path / out).is_dir() else []
        return {p.name: np.asarray(Image.open(p)).astype(int) for p in pictures}

    return run


def drawn(network, ws: torch.Tensor) -> np.ndarray:
    """[H, W, C] as the definition says."""
    image = network.synthesis(ws, "const")[0].permute(1, 2, 0).numpy()
    return np.clip(np.floor(image * 127.5 + 128), 0, 255)


def w_of(network, seed: int, psi: float = 1.0) -> torch.Tensor:
    z = torch.from_numpy(np.random.RandomState(seed).randn(1, network.z_dim)).float()
    return network.mapping(z, None, psi)


@pytest.fixture(scope="module")
def network_progan(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("progan") / "progan.safetensors"
    save_network(path, progan.Generator(16, 0, 16, channel_base=64, channel_max=16), nimg=0)
    return path


# -- mixed styles -----------------------------------------------------------------------------------------------------


def test_style_mix(generate, network):
    G, _ = load_network(network)
    found = generate("a", "--style-mix", "3,12", "7-8", "1-2,4", "--trunc", "0.9")
    grid = found.pop("grid.png")
    assert list(found) == [f"mix{r}-{c}.png" for r in ("0003", "0012") for c in ("0007", "0008")]
    pure = generate("b", "--seeds", "3,7,8,12", "--trunc", "0.9")
    assert np.abs(grid[:16, 32:] - pure["seed0008.png"]).max() <= 1
    assert np.abs(grid[32:, :16] - pure["seed0012.png"]).max() <= 1
    assert not grid[:16, :16].any()
    for r, row in enumerate((3, 12)):
        for c, column in enumerate((7, 8)):
            ws = w_of(G, row, 0.9).clone()
            ws[:, [1, 2, 4]] = w_of(G, column, 0.9)[:, [1, 2, 4]]
            picture = found[f"mix{row:04d}-{column:04d}.png"]
            assert np.abs(picture - drawn(G, ws)).max() <= 1
            assert np.array_equal(grid[16 * r + 16 : 16 * r + 32, 16 * c + 16 : 16 * c + 32], picture)
            assert np.abs(picture - pure[f"seed{row:04d}.png"]).max() > 1


def test_ends_of_a_mix(generate, network):
    """All layers: the column's picture; with itself: the row's."""
    pure = generate("a", "--seeds", "1,2")
    last = load_network(network)[0].num_ws - 1
    every = generate("b", "--style-mix", "1", "2", f"0-{last}")["mix0001-0002.png"]
    itself = generate("c", "--style-mix", "1", "1", "0-2")["mix0001-0001.png"]
    assert np.abs(every - pure["seed0002.png"]).max() <= 1
    assert np.abs(itself - pure["seed0001.png"]).max() <= 1


# -- animations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["w", "z"])
@pytest.mark.parametrize("loop", [True, False])
def test_key_frames_are_the_seeds(space, loop, generate):
    pure = generate("a", "--seeds", "4,2,9", "--trunc", "0.8", "--batch", "1")
    options = ["--seeds", "4,2,9", "--trunc", "0.8", "--interpolate", "3", "--space", space, "--batch", "1"]
    found = list(generate("b", *options, *([] if loop else ["--no-loop"])).values())
    assert len(found) == (9 if loop else 7)
    for k, seed in enumerate((4, 2, 9)):
        assert np.array_equal(found[3 * k], pure[f"seed{seed:04d}.png"])
    steps = [np.abs(a - b).max() for a, b in zip(found, found[1:] + found[:1], strict=True)]
    assert min(steps) > 0


def test_between_the_keys(generate, network):
    """Halfway of a loop of two seeds: in w the spline runs through (a + b) / 2; in z the slerp turns by half."""
    G, _ = load_network(network)
    for space in ("w", "z"):
        frames = list(generate(space, "--seeds", "0,1", "--interpolate", "2", "--space", space).values())
        if space == "w":
            ws = (w_of(G, 0) + w_of(G, 1)) / 2
        else:
            a, b = (np.random.RandomState(s).randn(16) for s in (0, 1))
            ws = G.mapping(torch.from_numpy(a / np.linalg.norm(a) + b / np.linalg.norm(b))[None].float(), None)
        assert np.abs(frames[1] - drawn(G, ws)).max() <= 1
        assert np.array_equal(frames[1], frames[3])


@pytest.mark.parametrize(("name", "error"), [("a.webp", 0), ("a.gif", 2)])
def test_animated_files(name, error, generate, tmp_path):
    frames = list(generate("a", "--seeds", "0-2", "--interpolate", "4").values())
    generate(name, "--seeds", "0-2", "--interpolate", "4", "--fps", "10")
    with Image.open(tmp_path / name) as image:
        assert image.n_frames == len(frames) == 12
        for k, frame in enumerate(frames):
            image.seek(k)
            assert np.abs(np.asarray(image.convert("RGB")) - frame).max() <= error
            assert image.info["duration"] == 100


def test_cells(generate):
    """Each cell goes its own way, whatever is beside it and whatever the batch."""
    both = generate("a", "--seeds", "0-5", "--interpolate", "2", "--grid", "1x2", "--batch", "5")
    for k, seeds in enumerate(("0-2", "3-5")):
        alone = generate(f"b{k}", "--seeds", seeds, "--interpolate", "2")
        assert both.keys() == alone.keys()
        for name, frame in both.items():
            assert frame.shape == (16, 32, 3)
            assert np.abs(frame[:, 16 * k : 16 * k + 16] - alone[name]).max() <= 1


def test_progan_goes_through_z(generate, network_progan):
    pure = generate("a", "--seeds", "0,1", "--batch", "1", file=network_progan)
    frames = generate("b", "--seeds", "0,1", "--interpolate", "2", "--batch", "1", file=network_progan)
    assert len(frames) == 4
    assert np.array_equal(frames["frame00002.png"], pure["seed0001.png"])


def test_classes(generate, network_cond, tmp_path):
    """A class makes other pictures, in animations and mixes; a w holds its own."""
    for options in (("--seeds", "0,1", "--interpolate", "1"), ("--style-mix", "0", "1", "0-2")):
        a, b = (generate(k + options[0], *options, "--class", k, file=network_cond) for k in ("0", "2"))
        assert all(not np.array_equal(a[name], b[name]) for name in a)
    G, _ = load_network(network_cond)
    np.savez(tmp_path / "w.npz", w=G.mapping(torch.ones(1, 16), torch.eye(3)[2:]).numpy())
    (picture,) = generate("c", "--ws", tmp_path / "w.npz", file=network_cond).values()
    assert np.abs(picture - drawn(G, G.mapping(torch.ones(1, 16), torch.eye(3)[2:]))).max() <= 1


# -- ws and projections -----------------------------------------------------------------------------------------------


def test_ws(generate, network, tmp_path):
    G, _ = load_network(network)
    ws = torch.cat([w_of(G, 3), w_of(G, 5)])
    np.savez(tmp_path / "w.npz", w=ws.numpy())
    np.savez(tmp_path / "one.npz", w=ws[:, 0].numpy())
    pure = generate("a", "--seeds", "3,5")
    for file in ("w.npz", "one.npz"):
        found = generate(file[0], "--ws", tmp_path / file)
        assert list(found) == ["ws0000.png", "ws0001.png"]
        assert np.abs(found["ws0001.png"] - pure["seed0005.png"]).max() <= 1


def test_projection(cli, generate, network, tmp_path):
    """target.png is the middle of the image; projected.png is bit for bit what --ws draws of projected_w.npz."""
    picture = np.random.RandomState(0).randint(0, 256, (16, 24, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "image.png")
    command = ["generate", "--network", network, "--project", tmp_path / "image.png", "--project-steps", "30"]
    code, out, err = cli(*command, "--out", tmp_path / "p")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("no --features")
    assert [line.split(":")[0] for line in lines[1:-1]] == [
        f"step {k} of 30" for k in (3, 6, 9, 12, 15, 18, 21, 24, 27, 30)
    ]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "p/target.png")), picture[:, 4:20])
    with np.load(tmp_path / "p/projected_w.npz") as file:
        assert file["w"].shape == (1, load_network(network)[0].num_ws, 16)
        assert file["w"].dtype == np.float32
    (again,) = generate("q", "--ws", tmp_path / "p/projected_w.npz").values()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "p/projected.png")), again)
    assert cli(*command, "--out", tmp_path / "r")[1].splitlines()[1:-1] == lines[1:-1]
    assert cli(*command, "--out", tmp_path / "r", "--seed", "1")[1].splitlines()[1:-1] != lines[1:-1]


def test_perceptual_projection(cli, network_cond, labelled, tmp_path):
    """Of a class, by random features: the distance falls."""
    torch.manual_seed(0)
    features = {name: t for name, t in gallery.Perceptual().state_dict().items() if not name.startswith("lin")}
    torch.save(features, tmp_path / "vgg16.pth")
    image = next(labelled.glob("*.png"))
    command = ["generate", "--network", network_cond, "--project", image, "--features", tmp_path / "vgg16.pth"]
    code, out, err = cli(*command, "--class", "1", "--project-steps", "20", "--out", tmp_path / "p")
    assert (code, err) == (0, "")
    distances = [float(line.split()[-1]) for line in out.splitlines() if line.startswith("step ")]
    assert distances[-1] < distances[0]
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["projected.png", "projected_w.npz", "target.png"]


def test_interrupted_projection(cli, network, images, tmp_path, monkeypatch):
    """Exit code 130, all three files, and it says how far it came."""

    def cut(network, distance, steps, **options):
        calls = []

        def stops(images):
            calls.append(1)
            if len(calls) > 4:
                raise KeyboardInterrupt
            return distance(images)

        return project(network, stops, steps, **options)

    monkeypatch.setattr(gallery, "project", cut)
    image = next(images.glob("*.png"))
    code, out, _ = cli("generate", "--network", network, "--project", image, "--out", tmp_path / "p")
    assert code == 130
    assert "after 4 of 1000 steps" in out
    assert len(list((tmp_path / "p").iterdir())) == 3


# -- batches by memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("free", "batch"), [(0, 1), (5.5, 5), (1e6, 16)])
def test_batch_by_memory(free, batch, network, monkeypatch):
    G, _ = load_network(network)
    monkeypatch.setattr(gallery, "default_budget", lambda: int(free * gallery.image_bytes(G)))
    assert batch_that_fits(G) == batch
    sizes, synthesis = [], G.synthesis.forward
    monkeypatch.setattr(G.synthesis, "forward", lambda ws, mode: (sizes.append(len(ws)), synthesis(ws, mode))[1])
    for given in (None, 3):
        g = Gallery(G, batch=given)
        assert len(list(g.draw(g.of_seeds(range(20)), 20))) == 20
    assert sizes[0] == batch
    assert sizes[-7:] == [3, 3, 3, 3, 3, 3, 2]


# -- wrong input ------------------------------------------------------------------------------------------------------


SEEDS = "--seeds 0-3"
EMOJI = Path(__file__).parents[2] / "docs" / "demo.png"
MIX = "--style-mix 0 1"
BAD = {
    "nothing": ("", "--seeds"),
    "two things": (f"{SEEDS} {MIX} 0", "not allowed with"),
    "fps alone": (f"{SEEDS} --fps 30", "--fps 30: goes with --interpolate, not with --seeds"),
    "no loop alone": (f"{SEEDS} --no-loop", "--no-loop: goes with --interpolate"),
    "interpolated mix": (f"{MIX} 0 --interpolate 3", "--interpolate 3: goes with --seeds, not with --style-mix"),
    "truncated ws": ("--ws w.npz --trunc 0.5", "--trunc 0.5: goes with"),
    "class of ws": ("--ws w.npz --class 0", "--class 0: goes with"),
    "noise of a projection": ("--project i.png --noise-mode random", "--noise-mode random: goes with"),
    "batch of a projection": ("--project i.png --batch 4", "--batch 4: goes with"),
    "grid of a mix": (f"{MIX} 0 --grid", "--grid: goes with"),
    "features of seeds": (f"{SEEDS} --features f.pth", "--features f.pth: goes with --project"),
    "flicker": (f"{SEEDS} --interpolate 3 --noise-mode random", "--noise-mode random: would flicker"),
    "no frames": (f"{SEEDS} --interpolate 0", "--interpolate 0: expected a whole number >= 1"),
    "no speed": (f"{SEEDS} --interpolate 2 --fps 0", "--fps 0: expected a whole number >= 1"),
    "speed of a folder": (f"{SEEDS} --interpolate 2 --fps 9", "--fps 9: goes with FILE.gif, FILE.webp or FILE.mp4"),
    "fast gif": (f"{SEEDS} --interpolate 2 --fps 100 --out a.gif", "--fps 100: expected at most 50"),
    "one key": ("--seeds 3 --interpolate 2", "1 seeds, expected at least two"),
    "uneven cells": ("--seeds 0-4 --interpolate 2 --grid 1x2", "5 seeds, expected at least two in each of 2 cells"),
    "odd cells": (f"{SEEDS} --interpolate 2 --grid 2by2", "--grid 2by2: expected rows x columns"),
    "no cells": (f"{SEEDS} --interpolate 2 --grid", "--grid: expected rows x columns"),
    "cells of seeds": (f"{SEEDS} --grid 2x2", "--grid 2x2: rows and columns go with --interpolate"),
    "batch": (f"{SEEDS} --batch some", "--batch"),
    "batch of noise": (f"{SEEDS} --noise-mode random --batch 2", "--batch 2: pictures with --noise-mode random are"),
    "cutoff alone": (f"{SEEDS} --trunc-cutoff 2", "--trunc-cutoff 2: goes with --trunc"),
    "rows": ("--style-mix 0- 1 0", "--style-mix 0-: expected numbers"),
    "columns": ("--style-mix 0 x 0", "--style-mix x: expected numbers"),
    "layers": (f"{MIX} 3-99", "--style-mix: layers 3-99, expected numbers and ranges from 0 to 5"),
    "layer words": (f"{MIX} coarse", "--style-mix: layers coarse"),
    "no ws": ("--ws nothing.npz", "--ws nothing.npz: no such file"),
    "no image": ("--project nothing.png", "--project nothing.png: can't be read (No such file"),
    "no steps": ("--project i.png --project-steps 0", "--project-steps 0: expected a whole number >= 1"),
    "seed": ("--project i.png --seed -1", "--seed -1: expected a whole number >= 0"),
    "large seed": ("--project i.png --seed 4294967296", "--seed 4294967296: expected a whole number below 2^32"),
    "class": (f"{MIX} 0 --class 0", "--class 0: the network is not conditional"),
    "class in z": (f"{SEEDS} --interpolate 2 --space z --class 0 --out new/a.gif", "--class 0: the network is not"),
    "class of a projection": (f"--project {EMOJI} --class 0", "--class 0: the network is not conditional"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case, network, tmp_path, refused, monkeypatch):
    given, named = BAD[case]
    monkeypatch.chdir(tmp_path)
    refused("generate", "--network", network, "--out", "out", *given.split(), words=(named,))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "given", [f"{MIX} 0", "--ws w.npz", "--project i.png", f"{SEEDS} --interpolate 2 --space w"], ids=str.split
)
def test_a_progan_has_no_w(given, network_progan, tmp_path, refused):
    words = ("not an option of a ProGAN, which has no w",)
    refused("generate", "--network", network_progan, "--out", tmp_path / "out", *given.split(), words=words)
    assert not (tmp_path / "out").exists()


def test_sheets_larger_than_the_format(network, tmp_path, refused, monkeypatch):
    monkeypatch.setitem(animation.MAX_SIDE, ".webp", 40)
    command = ["generate", "--network", network, "--seeds", "0-5", "--interpolate", "2", "--out", tmp_path / "a.webp"]
    refused(*command, "--grid", "1x3", words=("--grid: frames of 48x16 px, expected at most 40 px a side",))
    refused(*command, "--grid", "3x1", words=("--grid: frames of 16x48 px",))


@pytest.mark.parametrize("channels", [2, 5])
def test_neither_grey_nor_colour(channels):
    G = Generator(8, 0, 8, 8, img_channels=channels, channel_base=64, channel_max=8, num_mapping_layers=1)
    with pytest.raises(InputError, match=f"--network: draws {channels} channels, expected 1 or 3"):
        Gallery(G)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (f"{SEEDS}", "out of memory, with one picture at a time"),
        (f"{SEEDS} --batch 4", "--batch 4: out of memory; give a smaller one"),
        (f"--project {EMOJI} --project-steps 1", "--project: out of memory, with one picture at a time"),
    ],
)
def test_out_of_memory(given, said, cli, network, tmp_path, monkeypatch):
    """One line by what was asked, of the host's memory as well."""

    def full(*args, **options):
        torch.empty(10**15)

    monkeypatch.setattr(Synthesis, "forward", full)
    code, _, err = cli("generate", "--network", network, "--out", tmp_path / "out", *given.split(), "--device", "cpu")
    assert (code, err) == (1, f"gankern: error: {said}\n")


def test_bad_target_and_features(network, images, tmp_path, refused):
    (tmp_path / "text.png").write_text("no image")
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "f.pth")
    command = ["generate", "--network", network, "--out", tmp_path / "out", "--project"]
    refused(*command, tmp_path / "text.png", words=("--project", "not a PNG, JPEG, WebP or GIF"))
    image = next(images.glob("*.png"))
    refused(*command, image, "--features", tmp_path / "f.pth", words=("lacks features.0.bias",))
    assert not (tmp_path / "out").exists()
