"""Exported generators, run as their users would: images of the network, whatever the batch, nothing of ours needed."""

import subprocess
import sys

import pytest
import torch

from gankern.cli import main
from gankern.errors import InputError
from gankern.interop import export
from gankern.interop.export import export_generator
from gankern.models.files import save_network
from gankern.models.progan import Generator as ProGAN
from gankern.models.stylegan2 import Generator

SMALL = {"img_resolution": 8, "channel_base": 64, "channel_max": 8, "num_mapping_layers": 1}

RUN = """
import sys, torch
program = torch.export.load(sys.argv[1])
assert "gankern" not in sys.modules and "gankern" not in str(program.graph)
inputs = torch.load(sys.argv[2])
torch.save([program.module()(*i) for i in inputs], sys.argv[3])
"""


def network(kind):
    torch.manual_seed(0)
    if kind == "ProGAN":
        G = ProGAN(z_dim=8, img_resolution=16, channel_base=64, channel_max=8)
        G.lod = 0.5
        return G
    G = Generator(8, 3 if kind == "conditional" else 0, 12, **SMALL)
    G.mapping.w_avg.normal_()
    for block in G.synthesis.blocks():
        for conv in block.convolutions():
            conv.noise_strength.data.fill_(0.3)
    return G


def inputs(G):
    z = [torch.randn(n, 8) for n in (1, 2, 5)]
    return [(x, torch.eye(3)[torch.arange(len(x)) % 3]) for x in z] if G.c_dim else [(x,) for x in z]


def images(G, args, psi=1.0):
    if isinstance(G, ProGAN):
        return G(args[0], None, G.lod)
    return G(args[0], args[1] if len(args) > 1 else None, psi, None, "const")


def test_a_program_without_gankern(tmp_path, capsys):
    """By the command, run in a process of its own that has no gankern."""
    G = network("plain")
    save_network(tmp_path / "n.safetensors", G, nimg=0)
    assert main(["convert", str(tmp_path / "n.safetensors"), str(tmp_path / "g.pt2"), "--trunc", "0.7"]) == 0
    assert "inputs z" in capsys.readouterr().out
    given = inputs(G)
    torch.save(given, tmp_path / "in.pt")
    subprocess.run([sys.executable, "-c", RUN, "g.pt2", "in.pt", "out.pt"], cwd=tmp_path, check=True)
    for args, found in zip(given, torch.load(tmp_path / "out.pt"), strict=True):
        torch.testing.assert_close(found, images(G, args, 0.7), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["conditional", "ProGAN"])
def test_onnx(kind, tmp_path):
    """Run by onnxruntime, outside of the exporter's own check."""
    runtime = pytest.importorskip("onnxruntime", reason="the extra [export]")
    G = network(kind)
    worst, names = export_generator(G, tmp_path / "g.onnx", noise_mode="const")
    assert worst < 1e-4
    assert names == (["z", "c"] if kind == "conditional" else ["z"])
    session = runtime.InferenceSession(tmp_path / "g.onnx", providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_outputs()] == ["images"]
    for args in inputs(G):
        names = [i.name for i in session.get_inputs()]
        (found,) = session.run(None, dict(zip(names, (a.numpy() for a in args), strict=True)))
        torch.testing.assert_close(torch.from_numpy(found), images(G, args), rtol=1e-3, atol=1e-4)


class Grey(torch.nn.Module):
    def forward(self, z):
        return torch.zeros(z.shape[0], 3, 8, 8) * z.sum()


def test_wrong_images_are_not_written(tmp_path, monkeypatch):
    shapes = ({0: torch.export.Dim("batch")},)
    grey = torch.export.export(Grey(), (torch.zeros(2, 8),), dynamic_shapes=shapes)
    monkeypatch.setattr(export, "_plain_program", lambda *_: grey)
    with pytest.raises(InputError, match=r"images differ by 1.0e\+00; nothing was written"):
        export_generator(network("plain"), tmp_path / "g.pt2")
    assert not list(tmp_path.iterdir())


def test_nor_images_that_are_no_numbers(tmp_path, monkeypatch):
    """In the batch of one alone, amid good ones."""
    differences = iter([0.0, float("nan"), 0.0])
    monkeypatch.setattr(export, "_difference", lambda *_: next(differences))
    monkeypatch.setattr(export, "_plain_program", lambda *_: None)
    monkeypatch.setattr(export, "_write_pt2", lambda _, path: path.touch())
    with pytest.raises(InputError, match="images differ by nan"):
        export_generator(network("plain"), tmp_path / "g.pt2")


def test_what_can_not_be_exported(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="--noise-mode random"):
        export_generator(network("plain"), tmp_path / "g.pt2", noise_mode="random")
    with pytest.raises(InputError, match="--trunc nan: expected a finite number"):
        export_generator(network("plain"), tmp_path / "g.pt2", truncation_psi=float("nan"))
    with pytest.raises(InputError, match="--trunc: not an option of a ProGAN"):
        export_generator(network("ProGAN"), tmp_path / "g.pt2", truncation_psi=0.5)
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"onnxruntime: pip install gankern\[export\]"):
        export_generator(network("plain"), tmp_path / "g.onnx")
