"""WGAN-GP as ProGAN trains with it: the original's values and gradients, and what the penalties are taken of."""

import numpy as np
import pytest
import torch

from gankern.interop import progan_discriminator_from_tf, progan_generator_from_tf
from gankern.training import progan_loss as losses

LODS = ("0", "0.3")


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("progan_16")


def networks(arrays, dtype):
    def variables(which):
        found = {k.removeprefix(f"{which}_vars/"): v for k, v in arrays.items() if k.startswith(f"{which}_vars/")}
        return {k: v for k, v in found.items() if k != "lod"}

    G, D = progan_generator_from_tf(variables("G")).to(dtype), progan_discriminator_from_tf(variables("D")).to(dtype)
    G.compute_dtype = D.compute_dtype = dtype
    return G, D


def critic(arrays, D, fake, lod, dtype):
    """Every number of the critic's loss, on the golden reals, fakes and mixing factors."""
    real, factor = (torch.tensor(arrays[name], dtype=dtype) for name in ("images", "mixing_factors"))
    mixed = losses.mix(real, fake, factor)
    scores, real_scores, fake_scores = D(mixed, lod), D(real, lod), D(fake, lod)
    norms = losses.gradient_norms(scores, mixed)
    penalty = losses.gradient_penalty(norms, 1.0)
    gp = 10 * penalty.mean()
    return {
        "mixed_images": mixed,
        "mixed_scores": scores,
        "mixed_norms": norms,
        "gradient_penalty": penalty,
        "gp_term": gp,
        "real_scores": real_scores,
        "fake_scores": fake_scores,
        "D_loss_mean": losses.critic_loss(real_scores, fake_scores, 0.001) + gp,
        "G_loss_mean": losses.generator_loss(fake_scores),
    }


@pytest.mark.parametrize("lod", LODS)
@pytest.mark.parametrize(("dtype", "prefix", "bound"), [(torch.float64, "f64/", 1e-11), (torch.float32, "", 1e-4)])
def test_golden_losses(arrays, lod, dtype, prefix, bound):
    G, D = networks(arrays, dtype)
    with torch.no_grad():
        fake = G(torch.tensor(arrays["latents"], dtype=dtype), lod=float(lod))
    for name, got in critic(arrays, D, fake, float(lod), dtype).items():
        want = arrays[f"{prefix}wgangp_lod{lod}/{name}"]
        assert np.abs(got.detach().numpy() - want).max() < bound, name


def golden_gradients(arrays, prefix, read):
    """By our names: the interop reads them as if they were variables."""
    grads = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    return dict(read(grads).named_parameters())


def assert_gradients(network, want):
    for name, value in want.items():
        got = network.get_parameter(name).grad
        got = torch.zeros_like(value) if got is None else got
        assert (got - value).abs().max() < 1e-4 * max(1, value.abs().max()), name


@pytest.mark.parametrize("lod", LODS)
def test_golden_gradients(arrays, lod):
    at = f"wgangp_lod{lod}/"
    G, D = networks(arrays, torch.float32)
    fake = G(torch.tensor(arrays["latents"]), lod=float(lod))
    critic(arrays, D, fake.detach(), float(lod), torch.float32)["D_loss_mean"].backward()
    assert_gradients(D, golden_gradients(arrays, at + "D_loss_grad/", progan_discriminator_from_tf))
    losses.generator_loss(D(fake, float(lod))).backward()
    assert_gradients(G, golden_gradients(arrays, at + "G_loss_grad/", progan_generator_from_tf))


def test_penalty_at_another_target():
    norms = torch.tensor([0.0, 375.0, 750.0])
    assert losses.gradient_penalty(norms, 750.0).tolist() == [1, 0.25, 0]


def test_label_loss_is_cross_entropy():
    logits, classes = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    labels = torch.nn.functional.one_hot(classes, 3).float()
    assert losses.label_loss(logits, labels).item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, classes).item()
    )
