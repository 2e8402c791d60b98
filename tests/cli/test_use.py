"""generate, metrics, --dry-run and what a run leaves to look at."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from gankern.models.files import load_network, save_network
from gankern.training.config import read_toml
from gankern.training.phases import build_networks


@pytest.fixture
def generate(cli, network, tmp_path):
    """generate(out, *options) -> {file name: pixels}"""

    def run(out: str, *options, file=network) -> dict[str, np.ndarray]:
        code, _, err = cli("generate", "--network", file, "--out", tmp_path / out, *options)
        assert code == 0, err
        return {p.name: np.asarray(Image.open(p)).astype(int) for p in sorted((tmp_path / out).iterdir())}

    return run


def test_names_and_sizes(generate):
    pictures = generate("a", "--seeds", "0-2,42,12345")
    assert list(pictures) == [f"seed{s}.png" for s in ("0000", "0001", "0002", "0042", "12345")]
    assert {p.shape for p in pictures.values()} == {(16, 16, 3)}
    assert not np.array_equal(pictures["seed0000.png"], pictures["seed0001.png"])


def test_a_seed_is_its_latent(generate, network):
    """z = RandomState(seed).randn(1, z_dim), noise const, 0 and 255 for -1 and 1."""
    G, header = load_network(network)
    assert header["nimg"] == 32
    z = torch.from_numpy(np.random.RandomState(42).randn(1, 16)).float()
    image = G(z, None, 0.7, None, "const")[0].permute(1, 2, 0)
    expected = np.clip(np.floor(image.numpy() * 127.5 + 128), 0, 255)
    actual = generate("a", "--seeds", "42", "--trunc", "0.7")["seed0042.png"]
    assert np.abs(actual - expected).max() <= 1  # a float on the edge of two


@pytest.mark.parametrize("mode", ["const", "random", "none"])
def test_a_seed_stands_alone(generate, mode, network, tmp_path):
    """Its picture depends neither on the batch nor on the other seeds, in any noise mode."""
    noisy, _ = load_network(network)
    for name, p in noisy.named_parameters():
        if name.endswith("noise_strength"):
            p.fill_(0.3)
    save_network(tmp_path / "noisy.safetensors", noisy, nimg=0)
    generate = partial(generate, file=tmp_path / "noisy.safetensors")
    alone = generate("a", "--seeds", "5", "--noise-mode", mode)["seed0005.png"]
    batches = ("1", "auto") if mode == "random" else ("1", "3", "16")
    for out, *options in ((f"b{batch}", "--batch", batch) for batch in batches):
        among = generate(out, "--seeds", "0-7", "--noise-mode", mode, *options)["seed0005.png"]
        assert np.abs(alone - among).max() <= 1
    again = generate("a", "--seeds", "5", "--noise-mode", mode)["seed0005.png"]
    assert np.array_equal(alone, again)
    other = generate("e", "--seeds", "5", "--noise-mode", "none" if mode != "none" else "const")["seed0005.png"]
    assert np.abs(alone - other).max() > 1


def test_truncation(generate, network):
    """psi 0 is the mean image whatever the seed; a cutoff of 0 layers leaves it be."""
    mean = generate("a", "--seeds", "0,1", "--trunc", "0")
    assert np.array_equal(mean["seed0000.png"], mean["seed0001.png"])
    full, cut = generate("b", "--seeds", "0"), generate("c", "--seeds", "0", "--trunc", "0", "--trunc-cutoff", "0")
    assert np.array_equal(full["seed0000.png"], cut["seed0000.png"])
    assert not np.array_equal(full["seed0000.png"], mean["seed0000.png"])


def test_grid(generate):
    pictures = generate("a", "--seeds", "0-6", "--grid")
    grid = pictures.pop("grid.png")
    assert grid.shape == (2 * 16, 4 * 16, 3)
    assert np.array_equal(grid[:16, 16:32], pictures["seed0001.png"])
    assert np.array_equal(grid[16:, 32:48], pictures["seed0006.png"])
    assert not grid[16:, 48:].any()


def test_classes(generate, network_cond):
    a, b = (generate(k, "--seeds", "0", "--class", k, file=network_cond)["seed0000.png"] for k in ("0", "2"))
    assert not np.array_equal(a, b)


def test_metrics_json(cli, network, images):
    code, out, err = cli("metrics", "--network", network, "--data", images, "--metrics", "swd,ms_ssim", "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["swd"].keys() == result["swd_floor"].keys() == {"16", "avg"}
    assert result["swd"]["avg"] > 0
    assert result["images"] == 6
    assert result["kimg"] == 0.032
    assert 0 <= result["ms_ssim"] <= 1
    assert 0 <= result["ms_ssim_real"] <= 1
    assert json.loads(cli("metrics", "--network", network, "--data", images, "--json")[1]) == result


def test_metrics_table(cli, network_cond, labelled):
    code, out, _ = cli("metrics", "--network", network_cond, "--data", labelled, "--num", "4")
    assert code == 0
    assert "real to real (floor)" in out
    assert "MS-SSIM of pairs of samples" in out


def test_dry_run(cli, images, tiny, tmp_path):
    """Writes nothing, names every option, and counts the parameters that the networks have."""
    command = ["train", "--data", images, "--out", tmp_path / "run", *tiny]
    code, out, _ = cli(*command, "--dry-run")
    assert code == 0
    assert not (tmp_path / "run").exists()
    assert cli(*command)[0] == 0
    config = read_toml(tmp_path / "run/config.toml")
    for name, value in vars(config).items():
        assert any(line.split()[:1] == [name] for line in out.splitlines()), name
        assert value is None or str(value) in out
    g, d = (sum(p.numel() for p in net.parameters()) for net in build_networks(config, "cpu"))
    assert f"parameters: generator {g:,}, discriminator {d:,}" in out
    before = sorted(p.name for p in (tmp_path / "run").iterdir())
    assert cli(*command, "--dry-run")[0] == 0
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == before


def test_what_a_run_leaves(finished):
    """Pictures of the expected sizes, a network a snapshot, one row of statistics a tick."""
    sizes = {p.name: _check_png(p) for p in finished.glob("*.png")}
    assert sizes.pop("curves.png")[0] == 700
    grid = (16 * 16, 9 * 16)
    assert sizes == {"reals.png": grid, "fakes-00000.000.png": grid, "fakes-00000.032.png": grid}
    assert len(list(finished.glob("network-*.safetensors"))) == 2
    rows = [json.loads(line) for line in (finished / "stats.jsonl").read_text().splitlines()]
    assert [row["nimg"] for row in rows] == [0, 16, 32, 32]
    assert rows[1].keys() >= {"loss/G", "loss/D", "r1", "path_length", "pl_mean", "img_s", "memory_gb", "skipped"}
    assert rows[3].keys() >= {"swd", "swd_floor", "swd_images"}
    assert "done: " in (finished / "log.txt").read_text()
    assert list(finished.glob("events.out.tfevents.*"))
    assert not list(finished.glob(".*.tmp"))


def _check_png(path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return image.size


@pytest.mark.parametrize("cond", [False, True], ids=["unconditional", "conditional"])
def test_eight_pixels(cond, cli, make_folder, tiny, tmp_path):
    """The smallest networks train; SWD needs 16 px and is left out."""
    data = make_folder(size=8, classes=2 if cond else 0)
    command = ["train", "--data", data, "--out", tmp_path / "run", *tiny, "--kimg", "0.016", *["--cond"] * cond]
    code, out, err = cli(*command)
    assert code == 0, err
    assert "SWD" not in out
    (file,) = (tmp_path / "run").glob("network-*16.safetensors")
    for metric in ("swd", "ms_ssim"):
        code, _, err = cli("metrics", "--network", file, "--data", data, "--metrics", metric)
        assert (code, err.count("\n")) == (2, 1)
        assert "8 px, expected 16" in err


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_runs(precision, cli, images, tiny, tmp_path):
    command = ["train", "--data", images, "--out", tmp_path / "run", *tiny, "--kimg", "0.008"]
    code, out, err = cli(*command, "--precision", precision)
    assert code == 0, err
    assert "skipped" not in out
