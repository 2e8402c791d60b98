"""ProGAN's networks: golden images and scores, what fading and fusing mean, derivatives to second order."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from gankern import ops
from gankern.errors import InputError
from gankern.interop import progan_discriminator_from_tf, progan_generator_from_tf
from gankern.models.progan import Conv, Discriminator, Generator, downscale, upscale

SMALL = {"img_resolution": 16, "channel_base": 32, "channel_max": 8}


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("progan_16")


def variables(arrays, which, fused):
    """The original's variables; what differs without fusing stands under sep/."""
    found = {k.removeprefix(f"{which}_vars/"): v for k, v in arrays.items() if k.startswith(f"{which}_vars/")}
    found.pop("lod")
    if not fused and which == "G":
        found = {k: v for k, v in found.items() if "Conv0_up" not in k}
        found |= {k.removeprefix("sep/G_vars/"): v for k, v in arrays.items() if k.startswith("sep/G_vars/")}
    return found if fused else {k.replace("Conv1_down", "Conv1"): v for k, v in found.items()}


def networks(arrays, fused, dtype):
    G = progan_generator_from_tf(variables(arrays, "G", fused), fused_scale=fused).to(dtype)
    D = progan_discriminator_from_tf(variables(arrays, "D", fused), fused_scale=fused).to(dtype)
    G.compute_dtype = D.compute_dtype = dtype
    return G, D


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
@pytest.mark.parametrize(("dtype", "prefix", "bound"), [(torch.float64, "f64/", 1e-12), (torch.float32, "", 1e-4)])
def test_golden_images_and_scores_at_whole_and_fractional_lod(arrays, fused, dtype, prefix, bound):
    G, D = networks(arrays, fused, dtype)
    prefix += "" if fused else "sep/"
    z, real = (torch.tensor(arrays[name], dtype=dtype) for name in ("latents", "images"))
    for i, lod in enumerate(arrays["lods"]):
        img, scores = G(z, lod=float(lod)), D(real, float(lod))
        assert (img - torch.tensor(arrays[prefix + "G_images"][i])).abs().max() < bound
        assert (scores - torch.tensor(arrays[prefix + "D_scores"][i])).abs().max() < bound


@pytest.mark.parametrize("lod", ["0", "0.3"])
def test_golden_gradients_of_the_wgan_gp_critic(arrays, lod):
    _, D = networks(arrays, True, torch.float32)
    at = f"wgangp_lod{lod}/"
    mixed = torch.tensor(arrays[at + "mixed_images"]).requires_grad_()
    scores = D(mixed, float(lod))
    (grads,) = torch.autograd.grad(scores.sum(), mixed, create_graph=True)
    norms = grads.square().sum([1, 2, 3]).sqrt()
    gp = 10 * (norms - 1).square().mean()
    gp.backward()
    for name, got in {"mixed_scores": scores, "mixed_grads": grads, "mixed_norms": norms, "gp_term": gp}.items():
        assert (got.detach() - torch.tensor(arrays[at + name])).abs().max() < 1e-4, name
    for name, want in progan_gradients(arrays, at + "gp_grad/").items():
        got = D.get_parameter(name).grad
        got = torch.zeros_like(want) if got is None else got
        assert (got - want).abs().max() < 1e-4 * max(1, want.abs().max()), name


def progan_gradients(arrays, prefix):
    """Golden gradients of the discriminator by our names: read by the interop itself, as if they were variables."""
    grads = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    return dict(progan_discriminator_from_tf(grads).named_parameters())


# -- fading -----------------------------------------------------------------------------------------------------------


def small(dtype=torch.float64, **options):
    torch.manual_seed(0)
    G, D = Generator(z_dim=8, **SMALL, **options), Discriminator(**SMALL, **options)
    for net in (G, D):
        for p in net.parameters():  # biases too
            p.data.copy_(torch.randn_like(p))
        net.to(dtype).compute_dtype = dtype
    return G, D, torch.randn(4, 8, dtype=dtype), torch.randn(4, 3, 16, 16, dtype=dtype)


def test_a_grown_generator_begins_as_its_parent_and_ends_as_itself():
    G, _, z, _ = small()
    one, almost = G(z, lod=torch.tensor(1.0, dtype=z.dtype), stage=2), G(z, lod=1.0)
    assert torch.allclose(one, almost, atol=1e-12)  # nothing of the new resolution: the parent's image, upsampled
    assert torch.equal(almost, upscale(G(z, lod=1.0, native=True), 2))
    done = G(z, lod=torch.tensor(0.0, dtype=z.dtype), stage=2)
    assert torch.allclose(done, G(z), atol=1e-12)
    half = G(z, lod=0.5)
    assert torch.allclose(half, (one + done) / 2, atol=1e-12)


def test_a_grown_discriminator_begins_as_its_parent_and_ends_as_itself():
    _, D, _, x = small()
    lod = torch.zeros([], dtype=x.dtype)
    assert torch.allclose(D(x, lod + 1, stage=2), D(x, 1.0), atol=1e-12)
    assert torch.allclose(D(x, lod, stage=2), D(x), atol=1e-12)
    assert torch.allclose(D(downscale(x, 2), 1.0), D(x, 1.0), atol=1e-12)  # at its own resolution as well
    assert not torch.allclose(D(x, 0.5), D(x), atol=1e-3)


def test_lod_as_a_tensor_needs_no_look_at_its_value():
    G, D, z, x = small(torch.float32)
    with torch.device("meta"):
        lod = torch.zeros([])
    G, D, z, x = G.to("meta"), D.to("meta"), z.to("meta"), x.to("meta")
    assert G(z, lod=lod, stage=1).shape == (4, 3, 16, 16)
    assert G(z, lod=lod, stage=1, native=True).shape == (4, 3, 8, 8)
    assert D(x, lod, stage=1).shape == (4, 1)


# -- fusing -----------------------------------------------------------------------------------------------------------


def test_fused_upsampling_is_upsampling_then_convolving_with_the_kernel_flipped():
    torch.manual_seed(1)
    layer, x = Conv(5, 7, 3, 2**0.5, True, "up", fused=True), torch.randn(2, 5, 6, 6)
    y, _ = layer(x)
    w = (layer.weight * layer.scale).flip(2, 3)
    want = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), w, padding=1)
    assert (y - want).abs().max() < 1e-5


def test_fused_downsampling_is_convolving_then_averaging():
    torch.manual_seed(1)
    layer, x = Conv(5, 7, 3, 2**0.5, True, "down", fused=True), torch.randn(2, 5, 6, 6)
    y, _ = layer(x)
    assert (y - F.avg_pool2d(F.conv2d(x, layer.weight * layer.scale, padding=1), 2)).abs().max() < 1e-5


@pytest.mark.parametrize(("fused_from", "fused"), [(None, []), (8, [8, 16]), (16, [16])])
def test_the_threshold_of_fusing(fused_from, fused):
    G, D = Generator(z_dim=8, fused_from=fused_from, **SMALL), Discriminator(fused_from=fused_from, **SMALL)
    assert [r for r in (8, 16) if getattr(G, f"b{r}").conv0.fused] == fused
    assert [r for r in (8, 16) if getattr(D, f"b{r}").conv1.fused] == fused


# -- derivatives, parts, errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused_from", [None, 8], ids=["separate", "fused"])
def test_gradgradcheck_of_the_whole_critic(fused_from):
    torch.manual_seed(2)
    D = Discriminator(
        img_resolution=8, channel_base=4, channel_max=2, fused_from=fused_from, compute_dtype=torch.float64
    )
    D = D.double()
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    parameters = list(D.parameters())

    def critic(x, *parameters):
        return torch.func.functional_call(D, dict(zip(dict(D.named_parameters()), parameters, strict=True)), (x, 0.4))

    assert gradcheck(critic, (x, *parameters))
    assert gradgradcheck(critic, (x, *parameters), fast_mode=True)


def test_gradgradcheck_of_the_generator():
    torch.manual_seed(2)
    G = Generator(z_dim=3, img_resolution=8, channel_base=4, channel_max=2, fused_from=8, compute_dtype=torch.float64)
    z = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    G = G.double()
    assert gradcheck(lambda z: G(z, lod=0.4), (z,))
    assert gradgradcheck(lambda z: G(z, lod=0.4), (z,), fast_mode=True)


def test_labels():
    G, D = Generator(z_dim=8, c_dim=3, **SMALL), Discriminator(c_dim=3, **SMALL)
    z, c = torch.randn(4, 8), F.one_hot(torch.tensor([0, 1, 2, 0]), 3).float()
    img = G(z, c)
    scores, logits = D(img)
    assert (img.shape, scores.shape, logits.shape) == ((4, 3, 16, 16), (4, 1), (4, 3))
    assert not torch.equal(G(z, c.roll(1, 0)), img)


def test_the_parts_of_the_ablation():
    z = torch.randn(4, 8)
    whole = Generator(z_dim=8, **SMALL)
    plain = Generator(z_dim=8, pixel_norm=False, normalize_latents=False, equalized=False, **SMALL)
    assert whole.b8.conv1.weight.std() > 0.5
    assert plain.b8.conv1.weight.std() < 0.3
    assert plain.b8.conv1.scale == 1.0
    assert not torch.equal(plain(z * 2), plain(z))
    assert torch.allclose(whole(z * 2), whole(z), atol=1e-5)  # only a latent's direction counts
    D = Discriminator(group_size=0, **SMALL)
    img = torch.randn(4, 3, 16, 16)
    assert torch.allclose(D(img), torch.cat([D(img[:2]), D(img[2:])]), atol=1e-5)  # samples don't see each other


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_stay_near(dtype):
    G, D, z, x = small(torch.float32, fused_from=8)
    want, scores = G(z, lod=0.3), D(x, 0.3)
    G.compute_dtype = D.compute_dtype = dtype
    assert G(z, lod=0.3).dtype == D(x, 0.3).dtype == torch.float32
    assert (G(z, lod=0.3) - want).norm() < 0.05 * want.norm()
    assert (D(x, 0.3) - scores).norm() < 0.05 * scores.norm().clamp(min=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda G, D: G(torch.zeros(2, 7)), r"z has shape \(2, 7\), expected \[N, 8\]"),
        (lambda G, D: G(torch.zeros(2, 8), lod=2.5), "lod=2.5, expected 0 to 2"),
        (lambda G, D: G(torch.zeros(2, 8), lod=torch.zeros([])), "expected its stage beside it"),
        (lambda G, D: G(torch.zeros(2, 8), stage=3), "stage=3, expected 0 to 2"),
        (lambda G, D: D(torch.zeros(2, 3, 8, 8)), r"img has shape \(2, 3, 8, 8\), expected \[N, 3, 16, 16\]"),
        (lambda G, D: Generator(img_resolution=12), "img_resolution=12, expected a power of two"),
    ],
    ids=["z", "lod", "tensor", "stage", "img", "resolution"],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(Generator(z_dim=8, **SMALL), Discriminator(**SMALL))


def test_foreign_variables_that_make_no_network(arrays):
    fused = variables(arrays, "G", True)
    with pytest.raises(InputError, match="lack 4x4/Dense/weight"):
        progan_generator_from_tf({k: v for k, v in fused.items() if k != "4x4/Dense/weight"})
    with pytest.raises(InputError, match=r"fused_scale=False, but 8x8/Conv0_up/weight is a fused"):
        progan_generator_from_tf(fused, fused_scale=False)
    with pytest.raises(InputError, match=r"lack 8x8/Conv0_up/weight: pass fused_scale=False"):
        progan_generator_from_tf(variables(arrays, "G", False))
    with pytest.raises(InputError, match="ToRGB_lod1/bias has shape"):
        progan_generator_from_tf(fused | {"ToRGB_lod1/bias": fused["ToRGB_lod1/weight"]})
    with pytest.raises(InputError, match="label_size=32"):
        progan_generator_from_tf(fused, label_size=32)


def test_one_pass_after_each_convolution_of_the_generator(monkeypatch):
    """The fusing that the generator is there for: bias, leaky ReLU and pixel norm never run apart."""
    seen = []
    monkeypatch.setattr(ops, "bias_act_pixel_norm", lambda x, b, **args: seen.append(x.shape) or x)
    Generator(z_dim=8, **SMALL)(torch.randn(2, 8))
    assert len(seen) == 6


def test_autocast_changes_nothing():
    torch.manual_seed(0)
    G, D = Generator(z_dim=8, **SMALL), Discriminator(**SMALL)
    z, found = torch.randn(4, 8), []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            images = G(z)
            found.append((images, D(images)))
    assert all(a.equal(b) for a, b in zip(*found, strict=True))
