"""`gankern metrics --protocol progan`: the paper's counts, its table, and the same scores as the parts give."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gankern.cli import metrics as cli
from gankern.data import open_dataset
from gankern.errors import InputError
from gankern.interop.networks import Networks
from gankern.metrics import ms_ssim_diversity, protocol, swd
from gankern.metrics.evaluate import Evaluator
from gankern.metrics.protocol import ProganScores, progan_protocol
from gankern.models.sampling import sample_images


class Painter(nn.Module):
    """A generator in its interface alone: latents to pictures, and it counts them."""

    img_channels, z_dim = 3, 8

    def __init__(self, resolution: int = 32, c_dim: int = 0):
        super().__init__()
        self.img_resolution, self.c_dim, self.drawn = resolution, c_dim, 0
        self.to_pixels = nn.Parameter(torch.randn(8, 48, generator=torch.Generator().manual_seed(0)))

    def forward(self, z, c, *_):
        self.drawn += len(z)
        images = (z @ self.to_pixels).tanh().reshape(-1, 3, 4, 4)
        return nn.functional.interpolate(images, size=self.img_resolution, mode="bilinear")


@pytest.fixture
def reals(make_images, tmp_path):
    """reals(n, resolution) -> a dataset."""

    def make(n: int, resolution: int = 32):
        (tmp_path / "reals").mkdir()
        for i, image in enumerate(make_images(n, resolution)):
            Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "reals" / f"{i:03d}.png")
        return open_dataset(tmp_path / "reals")

    return make


def test_the_papers_counts(reals, monkeypatch):
    """16384 images and 10000 pairs unless told otherwise; here of a hundredth of that."""
    assert (protocol.IMAGES, protocol.PAIRS) == (16384, 10000)
    monkeypatch.setattr(protocol, "IMAGES", 16)
    monkeypatch.setattr(protocol, "PAIRS", 10)
    network, dataset = Painter(), reals(20)
    scores = progan_protocol(dataset, network, device="cpu")
    assert (scores.images, scores.pairs, network.drawn) == (16, 10, 20)
    assert scores.swd_floor is None  # 32 reals would be needed
    assert scores.ms_ssim_real is not None
    assert "SWD of 16 images, MS-SSIM of 10 pairs, as in the paper" in scores.table()
    assert scores.swd == progan_protocol(dataset, network, num=16, batch=3, device="cpu").swd  # the first 16 samples
    with pytest.raises(InputError, match="--num 21: expected 1 to 20"):
        progan_protocol(None, network, num=21)


def test_scores_are_those_of_the_parts(reals):
    dataset, network = reals(24), Painter()
    scores = progan_protocol(dataset, network, num=12, seed=5, batch=5, device="cpu")
    evaluator = Evaluator(dataset, 12, seed=5, batch=5, device="cpu")
    expected = evaluator.swd(network)
    assert (scores.swd, scores.swd_floor) == (expected.levels, expected.floor)
    assert scores.ms_ssim == pytest.approx(evaluator.ms_ssim(network)[0], rel=1e-12)

    z = torch.from_numpy(np.random.RandomState(5).randn(12, 8)).float()
    fakes = torch.cat(list(sample_images(network, z, torch.empty(12, 0), 32)))
    assert scores.ms_ssim == pytest.approx(ms_ssim_diversity([fakes], device="cpu"), rel=1e-12)
    a, _ = evaluator.halves
    real = np.stack([dataset.image(i) for i in a])
    assert scores.swd["avg"] == pytest.approx(swd(real, fakes, device="cpu")["avg"], rel=0.1)  # other patches


def test_fewer_reals_for_what_reals_score(reals):
    """The network's row needs `num` reals, the reals' row twice as many."""
    dataset = reals(15)
    scores = progan_protocol(dataset, Painter(), num=9, device="cpu")
    assert scores.swd is not None
    assert scores.swd_floor is None
    assert scores.ms_ssim_real is not None
    alone = Evaluator(dataset, 7, seed=3, device="cpu")
    assert progan_protocol(dataset, Painter(), num=7, seed=3, device="cpu").swd == alone.swd(Painter()).levels
    with pytest.raises(InputError, match=r"SWD takes 16,384 reals, and reals has 15; --num 15"):
        progan_protocol(dataset, Painter(), device="cpu")
    with pytest.raises(InputError, match="--num 0"):
        progan_protocol(dataset, Painter(), num=0)
    with pytest.raises(InputError, match="--num 1: a pair"):
        progan_protocol(dataset, Painter(), num=1)


def test_one_metric_alone(reals):
    dataset, network = reals(8), Painter()
    scores = progan_protocol(dataset, network, num=6, metrics=["swd"], device="cpu")
    assert (scores.ms_ssim, scores.pairs, network.drawn) == (None, 0, 6)
    assert "MS-SSIM" not in scores.table()
    network = Painter()
    scores = progan_protocol(dataset, network, num=21, metrics=["ms_ssim"], device="cpu")  # needs no reals
    assert (scores.swd, scores.images, scores.pairs, network.drawn) == (None, 0, 10, 20)
    assert "SWD" not in scores.table()
    assert "-: of reals, MS-SSIM takes 20; the dataset has 8" in scores.table()


def test_small_images(reals):
    with pytest.raises(InputError, match="swd: images are 8 px"):
        progan_protocol(reals(8, 8), Painter(8), num=4)


@pytest.mark.parametrize("metrics", [["swd"], ["swd", "ms_ssim"]])
def test_samples_are_taken_as_they_come(metrics, reals, monkeypatch):
    """Never more than a batch and the odd image of a pair are held."""
    network, waiting, add = Painter(), [], protocol.DescriptorCollector.add

    def watched(collector, images):
        if not network.done:
            waiting.append(network.drawn - collector.count)
        add(collector, images)

    monkeypatch.setattr(protocol.DescriptorCollector, "add", watched)
    network.done = False
    monkeypatch.setattr(protocol, "random_order", lambda n, seed: setattr(network, "done", True) or np.arange(n))
    progan_protocol(reals(20), network, num=20, batch=3, metrics=metrics, device="cpu")
    assert waiting == [3] * 6 + [2]


TABLE = """\
                           SWD x 10^3
               128       64       32       16      Avg  MS-SSIM
network-1     4.62     2.64     3.78     6.06     4.28   0.2838
reals         2.10     1.20     0.98     0.70     1.25        -
a trial: SWD of 500 images, MS-SSIM of 9,000 pairs; the paper takes 16,384 and 10,000
-: of reals, MS-SSIM takes 18,000; the dataset has 1,200"""


def test_table_is_the_papers():
    keys = ("128", "64", "32", "16", "avg")
    fakes, floor = (4.62, 2.64, 3.78, 6.06, 4.28), (2.1, 1.2, 0.98, 0.7, 1.25)
    levels = [dict(zip(keys, values, strict=True)) for values in (fakes, floor)]
    assert ProganScores(500, 9000, 1200, *levels, 0.2838).table("network-1") == TABLE
    full = ProganScores(16384, 10000, 40000, *levels, 0.2838, 0.3).table("network-1").splitlines()
    assert full[:3] == TABLE.splitlines()[:3]
    assert full[3].endswith("0.3000")
    assert full[4:] == ["SWD of 16,384 images, MS-SSIM of 10,000 pairs, as in the paper"]


def test_command_line(reals, tmp_path, monkeypatch, capsys):
    dataset = reals(12)
    monkeypatch.setattr(cli, "read_networks", lambda *_: Networks(G_ema=Painter(), nimg=4000))
    parser = argparse.ArgumentParser()
    cli.add_parser(parser.add_subparsers())
    command = f"metrics --network a/network-4.safetensors --data {dataset.source.path} --device cpu --protocol progan"

    def run(*more):
        args = parser.parse_args([*command.split(), *more])
        assert args.func(args) == 0
        return capsys.readouterr().out

    lines = run("--num", "6").splitlines()
    assert lines[1].split() == ["32", "16", "Avg", "MS-SSIM"]
    assert lines[2].startswith("network-4 ")
    assert lines[4].startswith("a trial: SWD of 6 images, MS-SSIM of 3 pairs")
    result = json.loads(run("--num", "6", "--json"))
    assert (result["protocol"], result["kimg"], result["images"], result["pairs"]) == ("progan", 4, 6, 3)
    assert list(result["swd"]) == list(result["swd_floor"]) == ["32", "16", "avg"]
    assert f"{result['swd']['avg']:.2f}" == lines[2].split()[3]
    with pytest.raises(InputError, match="takes 16,384 reals"):
        run()
