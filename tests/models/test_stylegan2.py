"""StyleGAN2's networks: every architecture, conditioning, truncation, noise, compute types, arguments."""

import itertools

import pytest
import torch

from gankern.models.stylegan2 import ARCHITECTURES, Discriminator, Generator

SMALL = {"img_resolution": 16, "channel_base": 128, "channel_max": 16, "w_dim": 12, "num_mapping_layers": 2}
HALF = {torch.bfloat16: 2**-8, torch.float16: 2**-11}  # the type and its rounding error


def generator(**options) -> Generator:
    torch.manual_seed(0)
    return Generator(**{"z_dim": 8, **SMALL, **options})


def discriminator(**options) -> Discriminator:
    torch.manual_seed(1)
    options = {k: v for k, v in SMALL.items() if k != "w_dim"} | options
    return Discriminator(**options)


def inputs(n: int, c_dim: int = 0):
    rng = torch.Generator().manual_seed(2)
    return torch.randn(n, 8, generator=rng), torch.eye(max(c_dim, 1))[torch.arange(n) % max(c_dim, 1)][:, :c_dim]


@pytest.mark.parametrize(
    ("g", "d", "c_dim"), [(*gd, c) for gd in itertools.product(ARCHITECTURES, repeat=2) for c in (0, 3)], ids=str
)
def test_every_combination(g, d, c_dim):
    """Images and logits of the right shape, and a gradient for every parameter."""
    G, D = generator(architecture=g, c_dim=c_dim), discriminator(architecture=d, c_dim=c_dim)
    z, c = inputs(4, c_dim)
    images = G(z, c)
    logits = D(images, c)
    assert (images.shape, images.dtype) == ((4, 3, 16, 16), torch.float32)
    assert (logits.shape, logits.dtype) == ((4, 1), torch.float32)
    logits.square().mean().backward()
    for network in (G, D):
        for name, p in network.named_parameters():
            assert p.grad is not None, name
            assert p.grad.isfinite().all(), name
            assert p.grad.any(), name


RGB = {"torgb.weight", "torgb.bias", "torgb.affine.weight", "torgb.affine.bias"}


def blocks_with(network, suffix: str) -> list[str]:
    return [name.removesuffix("." + suffix) for name in network.state_dict() if name.endswith("." + suffix)]


def test_names_of_the_generators():
    """skip has an RGB output a block; orig and resnet the last one; resnet a skip in all blocks but the first."""
    every = ["synthesis.b4", "synthesis.b8", "synthesis.b16"]
    assert blocks_with(generator(architecture="skip"), "torgb.weight") == every
    for architecture in ("orig", "resnet"):
        assert blocks_with(generator(architecture=architecture), "torgb.weight") == every[-1:]
    assert blocks_with(generator(architecture="resnet"), "skip.weight") == every[1:]
    for architecture in ("orig", "skip"):
        assert blocks_with(generator(architecture=architecture), "skip.weight") == []
    skip, resnet = (set(generator(architecture=a).state_dict()) for a in ("skip", "resnet"))
    assert skip - resnet == {f"synthesis.b{r}.{name}" for r in (4, 8) for name in RGB}
    assert resnet - skip == {f"synthesis.b{r}.skip.{name}" for r in (8, 16) for name in ("weight", "resample_filter")}


def test_names_of_the_discriminators():
    """skip has an RGB input a block and the epilogue; orig and resnet the first; resnet a skip in all blocks."""
    assert blocks_with(discriminator(architecture="skip"), "fromrgb.weight") == ["b16", "b8", "b4"]
    for architecture in ("orig", "resnet"):
        assert blocks_with(discriminator(architecture=architecture), "fromrgb.weight") == ["b16"]
    assert blocks_with(discriminator(architecture="resnet"), "skip.weight") == ["b16", "b8"]
    assert {n for n in discriminator().state_dict() if n.startswith("b4.")} == {
        f"b4.{name}" for name in ("conv.weight", "conv.bias", "conv.resample_filter", "fc.weight", "fc.bias")
    } | {"b4.out.weight", "b4.out.bias"}


def test_conditional_names():
    assert {"mapping.embed.weight", "mapping.embed.bias"} <= set(generator(c_dim=3).state_dict())
    names = set(discriminator(c_dim=3).state_dict())
    assert {"mapping.embed.weight", "mapping.fc1.weight"} <= names
    assert "mapping.w_avg" not in names
    assert discriminator(c_dim=3).state_dict()["b4.out.weight"].shape == (16, 16)


def test_conditions_matter():
    G, D = generator(c_dim=3), discriminator(c_dim=3)
    z, _ = inputs(1)
    images = [G(z, torch.eye(3)[k : k + 1], noise_mode="const") for k in range(3)]
    assert not torch.allclose(images[0], images[1])
    x = images[0].expand(4, -1, -1, -1)
    assert D(x, torch.eye(3)[[0, 1, 2, 0]]).squeeze(1)[:3].unique().numel() == 3


def test_truncation():
    """psi interpolates from w_avg, in the layers below the cutoff only."""
    G = generator()
    G.mapping.w_avg.copy_(torch.randn(12))
    z, _ = inputs(3)
    ws = G.mapping(z)
    assert ws.shape == (3, G.num_ws, 12)
    assert (ws == ws[:, :1]).all()
    half = G.mapping(z, truncation_psi=0.5)
    torch.testing.assert_close(half, (ws + G.mapping.w_avg) / 2)
    cut = G.mapping(z, truncation_psi=0.5, truncation_cutoff=2)
    assert cut[:, :2].equal(half[:, :2])
    assert cut[:, 2:].equal(ws[:, 2:])
    assert G.mapping(z, truncation_psi=0).equal(G.mapping.w_avg.expand(3, G.num_ws, 12))


def test_latents_are_normalised():
    G = generator()
    z, _ = inputs(3)
    torch.testing.assert_close(G.mapping(z), G.mapping(100 * z))


def test_noise_modes():
    G = generator()
    z, _ = inputs(2)
    ws = G.mapping(z)
    flat = G.synthesis(ws, "none")
    assert G.synthesis(ws, "random").equal(flat)  # its strength starts at 0
    with torch.no_grad():
        for name, p in G.named_parameters():
            if name.endswith("noise_strength"):
                p.fill_(1)
    const, random = G.synthesis(ws, "const"), G.synthesis(ws, "random")
    assert G.synthesis(ws, "none").equal(flat)
    assert G.synthesis(ws, "const").equal(const)
    assert not G.synthesis(ws, "random").allclose(random)
    assert not const.allclose(flat)
    before = torch.get_rng_state()
    G.synthesis(ws, "const"), G.synthesis(ws, "none")
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_types(dtype, architecture):
    """Activations in half precision, everything else in float32, results near those of float32."""
    options = {"architecture": architecture, "compute_dtype": dtype}
    G, D = generator(**options), discriminator(**options)
    G32, D32 = generator(architecture=architecture), discriminator(architecture=architecture)
    z, _ = inputs(4)
    seen = []
    G.synthesis.b16.conv1.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    D.b16.conv0.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    images, images32 = G(z, noise_mode="const"), G32(z, noise_mode="const")
    logits, logits32 = D(images32), D32(images32)
    assert seen == [dtype, dtype]
    assert {t.dtype for n in (G, D) for t in n.state_dict().values()} == {torch.float32}
    assert images.dtype == logits.dtype == torch.float32
    assert G.mapping(z).dtype == torch.float32
    bound = 20 * HALF[dtype]  # of the largest value, after a dozen rounded layers
    assert (images - images32).abs().max() <= bound * images32.abs().max()
    assert (logits - logits32).abs().max() <= bound * logits32.abs().max().clamp(min=1)
    logits.mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in D.parameters())


def test_fp16_runs_the_highest_four_resolutions():
    G = Generator(8, 0, 8, 128, channel_base=128, channel_max=4, compute_dtype=torch.float16)
    D = Discriminator(0, 128, channel_base=128, channel_max=4, compute_dtype=torch.float16)
    for network in (G.synthesis, D):
        types = {r: getattr(network, f"b{r}").dtype for r in (8, 16, 32, 64, 128)}
        assert types == {8: torch.float32} | dict.fromkeys((16, 32, 64, 128), torch.float16)
    G = Generator(8, 0, 8, 128, channel_base=128, channel_max=4, compute_dtype=torch.bfloat16)
    assert G.synthesis.b4.dtype == torch.bfloat16


def test_fp16_survives_large_weights():
    """Styles and weights that would overflow float16 stay finite, by normalisation and clamp."""
    G = generator(compute_dtype=torch.float16)
    with torch.no_grad():
        for name, p in G.named_parameters():
            if name.endswith(("conv0.weight", "conv1.weight", "affine.weight")):
                p.mul_(3000)
    assert G(inputs(2)[0]).isfinite().all()


def test_channels():
    G = Generator(8, 0, 8, 64, channel_base=1024, channel_max=64)
    assert [getattr(G.synthesis, f"b{r}").conv1.weight.shape[0] for r in (4, 8, 16, 32, 64)] == [64, 64, 64, 32, 16]


@pytest.mark.parametrize(("channels", "resolution"), [(1, 8), (4, 32)])
def test_other_images(channels, resolution):
    G = generator(img_channels=channels, img_resolution=resolution)
    D = discriminator(img_channels=channels, img_resolution=resolution)
    images = G(inputs(4)[0])
    assert images.shape == (4, channels, resolution, resolution)
    assert D(images).shape == (4, 1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: generator(architecture="dense"), "architecture='dense'"),
        (lambda: generator(img_resolution=24), "img_resolution=24"),
        (lambda: discriminator(img_resolution=4), "img_resolution=4"),
        (lambda: generator(compute_dtype=torch.int8), "compute_dtype=torch.int8"),
        (lambda: generator()(torch.zeros(2, 9)), r"z has shape \(2, 9\)"),
        (lambda: generator(c_dim=3)(torch.zeros(2, 8)), "c has shape None"),
        (lambda: generator(c_dim=3)(torch.zeros(2, 8), torch.zeros(2, 2)), r"c has shape \(2, 2\)"),
        (lambda: generator().synthesis(torch.zeros(2, 1, 12)), r"ws has shape \(2, 1, 12\)"),
        (lambda: generator()(torch.zeros(2, 8), noise_mode="loud"), "noise_mode='loud'"),
        (lambda: discriminator()(torch.zeros(4, 3, 8, 8)), r"img has shape \(4, 3, 8, 8\)"),
        (lambda: discriminator()(torch.zeros(6, 3, 16, 16)), "group"),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_parameters_are_refused(dtype):
    """A cast of the whole network, in place of `compute_dtype`."""
    sizes = {"img_resolution": 8, "channel_base": 64, "channel_max": 8}
    G, D = Generator(8, w_dim=8, num_mapping_layers=1, **sizes).to(dtype), Discriminator(**sizes).to(dtype)
    with pytest.raises(ValueError, match=f"parameters are {dtype}, expected float32; compute_dtype="):
        G.synthesis(torch.randn(1, G.num_ws, 8))
    with pytest.raises(ValueError, match=f"parameters are {dtype}, expected float32; compute_dtype="):
        D(torch.randn(4, 3, 8, 8))
