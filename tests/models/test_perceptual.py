"""The perceptual distance against VGG16 written as one list of functions, and the files that it comes from."""

import pickle
import zipfile

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from gankern.errors import InputError
from gankern.models.perceptual import load_perceptual


@pytest.fixture(scope="module")
def weights():
    """Random weights under torchvision's names, of a size that keeps the activations' scale."""
    torch.manual_seed(0)
    state, below = {}, 3
    for number, channels in zip(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6, strict=True
    ):
        state[f"features.{number}.weight"] = torch.randn(channels, below, 3, 3) * (2 / (9 * below)) ** 0.5
        state[f"features.{number}.bias"] = 0.1 * torch.randn(channels)
        below = channels
    return state | {"classifier.6.bias": torch.zeros(1000)}


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(weights, path)
    return path


def by_hand(state: dict, a: torch.Tensor, b: torch.Tensor, lins: list[torch.Tensor] | None = None) -> torch.Tensor:
    """The distance of images in [0, 1], float64, in the order of the paper's table."""
    state = {name: t.double() for name, t in state.items()}

    def layer(x, number):
        return torch.relu(F.conv2d(x, state[f"features.{number}.weight"], state[f"features.{number}.bias"], padding=1))

    def maps(x):
        mean, std = torch.tensor([0.485, 0.456, 0.406]).double(), torch.tensor([0.229, 0.224, 0.225]).double()
        x = (x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
        relu1_2 = layer(layer(x, 0), 2)
        relu2_2 = layer(layer(F.max_pool2d(relu1_2, 2), 5), 7)
        relu3_3 = layer(layer(layer(F.max_pool2d(relu2_2, 2), 10), 12), 14)
        relu4_3 = layer(layer(layer(F.max_pool2d(relu3_3, 2), 17), 19), 21)
        relu5_3 = layer(layer(layer(F.max_pool2d(relu4_3, 2), 24), 26), 28)
        return relu1_2, relu2_2, relu3_3, relu4_3, relu5_3

    total = torch.zeros(len(a), dtype=torch.float64)
    for k, (x, y) in enumerate(zip(maps(a), maps(b), strict=True)):
        x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
        lin = torch.ones(x.shape[1]) if lins is None else lins[k].flatten()
        total += torch.einsum("c,nchw->n", lin.double(), (x - y) ** 2) / (x.shape[2] * x.shape[3])
    return total


def images(n: int, channels: int, size: int, seed: int) -> torch.Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def measured(network, a, b):
    return network.distance(network(a * 2 - 1), network(b * 2 - 1))


def test_distance(file, weights, monkeypatch):
    a, b = images(2, 3, 16, 1), images(2, 3, 16, 2)
    network = load_perceptual(file)
    assert not any(p.requires_grad for p in network.parameters())
    expected = by_hand(weights, a.double(), b.double())
    with monkeypatch.context() as patch:  # a host's numbers would make a GPU's stream wait
        patch.setattr(torch.Tensor, "new_tensor", None)
        patch.setattr(torch, "tensor", None)
        network(a)
    assert expected.min() > 0.05
    torch.testing.assert_close(measured(network, a, b).double(), expected, rtol=1e-4, atol=1e-6)
    assert measured(network, a, a).tolist() == [0, 0]


def test_grey_and_large_images(file, weights):
    """One channel stands for three; 512 px are reduced to 256 by the means of 2x2 pixels."""
    network = load_perceptual(file)
    a, b = images(1, 1, 16, 1), images(1, 1, 16, 2)
    expected = by_hand(weights, a.double().expand(-1, 3, -1, -1), b.double().expand(-1, 3, -1, -1))
    torch.testing.assert_close(measured(network, a, b).double(), expected, rtol=1e-4, atol=1e-6)
    large = images(1, 3, 512, 3)
    halved = (large[..., ::2, ::2] + large[..., 1::2, ::2] + large[..., ::2, 1::2] + large[..., 1::2, 1::2]) / 4
    with torch.no_grad():
        whole, half = network(large * 2 - 1), network(halved * 2 - 1)
    assert whole[0].shape == (1, 64, 256, 256)
    for x, y in zip(whole, half, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4)


def test_gradient_reaches_the_image(file, weights):
    a, b = images(1, 3, 16, 1).requires_grad_(), images(1, 3, 16, 2)
    network = load_perceptual(file)
    (found,) = torch.autograd.grad(measured(network, a, b).sum(), a)
    (expected,) = torch.autograd.grad(by_hand(weights, a.double(), b.double()).sum(), a)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_safetensors_with_linear_weights(weights, tmp_path):
    """As LPIPS names them: lin0.model.1.weight [1, C, 1, 1]."""
    lins = [torch.rand(1, c, 1, 1, generator=torch.Generator().manual_seed(c)) for c in (64, 128, 256, 512, 512)]
    state = weights | {f"lin{k}.model.1.weight": lin for k, lin in enumerate(lins)}
    safetensors.torch.save_file(state, tmp_path / "vgg.safetensors")
    a, b = images(1, 3, 16, 4), images(1, 3, 16, 5)
    found = measured(load_perceptual(tmp_path / "vgg.safetensors"), a, b)
    torch.testing.assert_close(found.double(), by_hand(weights, a.double(), b.double(), lins), rtol=1e-4, atol=1e-6)


class Trap:
    fired = False

    def __reduce__(self):
        return setattr, (Trap, "fired", True)


BAD = {
    "lacks": (lambda w: {k: t for k, t in w.items() if k != "features.21.bias"}, "lacks features.21.bias"),
    "shape": (
        lambda w: w | {"features.5.weight": torch.zeros(4, 4, 3, 3)},
        r"features.5.weight has shape \[4, 4, 3, 3\]",
    ),
    "linear": (lambda w: w | {"lin2.weight": torch.zeros(7)}, r"lin2 has shape \[7\]"),
    "not tensors": (lambda w: dict.fromkeys(w, 1), "lacks features.0.weight"),
    "list": (lambda w: [1], "holds a list"),
    "module": (lambda w: Trap(), "can't be opened"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file(case, weights, tmp_path):
    change, named = BAD[case]
    torch.save(change(weights), tmp_path / "f.pth")
    with pytest.raises(InputError, match=f"--features {tmp_path}/f.pth: {named}"):
        load_perceptual(tmp_path / "f.pth")
    assert not Trap.fired


def test_no_file(tmp_path):
    for name, content in (
        ("a.pth", b"text"),
        ("b.pth", b""),
        ("c.safetensors", b"text"),
        ("d.pth", pickle.dumps(Trap())),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="can't be opened"):
            load_perceptual(tmp_path / name)
    assert not Trap.fired
    with pytest.raises(InputError, match="no such file"):
        load_perceptual(tmp_path / "nothing.pth")


def test_a_compressed_zip(file, tmp_path):
    """torch's loader would read it, and it may hold any multiple of its size."""
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(tmp_path / "v.pth", "w", zipfile.ZIP_DEFLATED, 1) as packed:
        for name in source.namelist():
            if "data.pkl" in name or "version" in name:
                packed.writestr(name, source.read(name))
    with pytest.raises(InputError, match=r"--features .*v\.pth: refused: a zip whose contents are larger"):
        load_perceptual(tmp_path / "v.pth")
