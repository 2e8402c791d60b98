"""Norm layers: parity with torch.nn, state dicts, StyleGAN's style convention, types, and how they print."""

import math

import pytest
import torch
import torch.nn.functional as F

from gankern.nn import AdaIN, InstanceNorm2d, MinibatchStddev, PixelNorm


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def backward(module, x, dy):
    x = x.clone().requires_grad_()
    y = module(x)
    return [y, *torch.autograd.grad(y, [x, *module.parameters()], dy)]


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_instance_norm_is_torchs(affine, eps):
    """torch.nn's state dict loads; values and every gradient are the same."""
    theirs = torch.nn.InstanceNorm2d(5, eps=eps, affine=affine)
    for p in theirs.parameters():
        p.data.normal_()
    ours = InstanceNorm2d(5, eps=eps, affine=affine)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x, dy = torch.randn(3, 5, 6, 7) * 4 + 2, torch.randn(3, 5, 6, 7)
    for got, want in zip(backward(ours, x, dy), backward(theirs, x, dy), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("act", "alpha", "plain"), [("relu", None, F.relu), ("lrelu", 0.2, F.leaky_relu)])
def test_instance_norm_with_an_activation(act, alpha, plain):
    theirs = torch.nn.InstanceNorm2d(4)
    x = torch.randn(2, 4, 5, 5)
    want = plain(theirs(x)) if alpha is None else plain(theirs(x), alpha)
    torch.testing.assert_close(InstanceNorm2d(4, act=act, alpha=alpha, gain=1)(x), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(InstanceNorm2d(4, act=act)(x), want * math.sqrt(2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("biased", [True, False])
def test_adain(biased):
    """(1 + γ, β) from the style: the result's mean is β, its deviation 1 + γ."""
    layer = AdaIN(4, 8, eps=0, biased=biased)
    x, w = torch.randn(3, 4, 9, 9) * 5 + 1, torch.randn(3, 8)
    gamma, beta = (w @ layer.affine.weight.t() / math.sqrt(8)).split(4, dim=1)
    y = layer(x, w)
    torch.testing.assert_close(y.mean([2, 3]), beta, rtol=1e-4, atol=1e-5)
    deviation = y.var([2, 3], unbiased=not biased).sqrt()
    torch.testing.assert_close(deviation, (1 + gamma).abs(), rtol=1e-4, atol=1e-5)
    grads = torch.autograd.grad(y.square().sum(), [layer.affine.weight, layer.affine.bias])
    assert all(g.abs().max() > 0 for g in grads)


def test_adain_takes_a_gradient_penalty():
    layer = AdaIN(3, 4, act="lrelu")
    x, w = torch.randn(2, 3, 5, 5, requires_grad=True), torch.randn(2, 4)
    (dx,) = torch.autograd.grad(layer(x, w).square().sum(), x, create_graph=True)
    dx.square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in layer.parameters())


def test_pixel_norm_and_minibatch_stddev():
    x = torch.randn(4, 6, 3, 3) * 7
    torch.testing.assert_close(PixelNorm()(x).square().mean(1), torch.ones(4, 3, 3), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(PixelNorm(-1)(x).square().mean(-1), torch.ones(4, 6, 3), rtol=1e-4, atol=1e-5)
    y = MinibatchStddev(2, 3)(x)
    assert y.shape == (4, 9, 3, 3)
    assert torch.equal(y[:, :6], x)
    assert torch.equal(y[0, 6:], y[2, 6:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_activations_keep_their_type(dtype):
    x, w = torch.randn(2, 4, 8, 8, dtype=dtype), torch.randn(2, 6)
    assert InstanceNorm2d(4, affine=True, act="relu")(x).dtype == dtype
    assert AdaIN(4, 6)(x, w).dtype == dtype
    assert PixelNorm()(x).dtype == MinibatchStddev(2)(x).dtype == dtype


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 4, 5)], ids=str)
def test_they_refuse_other_shapes(shape):
    with pytest.raises(ValueError, match=r"x has shape .*, expected \[N, 4, H, W\]"):
        InstanceNorm2d(4)(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"expected \[N, 4, H, W\]"):
        AdaIN(4, 6)(torch.zeros(shape), torch.zeros(2, 6))


def test_they_print_their_sizes():
    assert "4, eps=1e-05, affine=True, act=relu" in repr(InstanceNorm2d(4, affine=True, act="relu"))
    assert "4, eps=1e-05, act=linear, biased=True" in repr(AdaIN(4, 6))
    assert "dim=1, eps=1e-08" in repr(PixelNorm())
    assert "group_size=4, num_channels=1" in repr(MinibatchStddev())
