"""Layers: initial values, run-time gains, resampling, and how they print."""

import math

import pytest
import torch

from gankern.nn import EqualizedConv2d, EqualizedLinear, Mapping, ModulatedConv2d, ToRGB


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("act", ["linear", "lrelu"])
@pytest.mark.parametrize("lr", [1.0, 0.01])
def test_linear(lr, act):
    """Weights start at N(0, 1)/lr; lr/√in and lr are applied at run time; leaky ReLU has slope 0.2 and gain √2."""
    layer = EqualizedLinear(200, 300, act=act, lr_multiplier=lr, bias_init=0.5)
    assert (layer.weight * lr).std().item() == pytest.approx(1, abs=0.02)
    assert layer.bias.unique().tolist() == pytest.approx([0.5 / lr])
    x = torch.randn(2, 5, 200)
    y = x @ layer.weight.t() * (lr / math.sqrt(200)) + 0.5
    if act == "lrelu":
        y = torch.where(y < 0, 0.2 * y, y) * math.sqrt(2)
    torch.testing.assert_close(layer(x), y, rtol=1e-4, atol=1e-5)


def test_linear_without_bias():
    layer = EqualizedLinear(3, 4, bias=False, act="lrelu")
    assert layer.bias is None
    assert layer(torch.randn(2, 3)).shape == (2, 4)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("gain", [1.0, math.sqrt(0.5)])
def test_conv(bias, gain):
    """1/√(I·k²) at run time; the gain of a call multiplies the result."""
    layer = EqualizedConv2d(6, 4, 3, bias=bias)
    if bias:
        layer.bias.data.normal_()
    x = torch.randn(2, 6, 8, 8)
    y = torch.nn.functional.conv2d(x, layer.weight / math.sqrt(6 * 9), layer.bias, padding=1)
    torch.testing.assert_close(layer(x, gain=gain), y * gain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("up", "down", "size"), [(2, 1, 16), (1, 2, 4), (1, 1, 8)])
def test_conv_resamples(kernel, up, down, size):
    layer = EqualizedConv2d(3, 5, kernel, bias=False, up=up, down=down)
    layer.weight.data.fill_(1)
    y = layer(torch.ones(1, 3, 8, 8))
    assert y.shape == (1, 5, size, size)
    inside = y[:, :, 2:-2, 2:-2] if size > 4 else y[:, :, 1:-1, 1:-1]
    expected = 3 * kernel**2 / math.sqrt(3 * kernel**2)  # resampling keeps a constant
    torch.testing.assert_close(inside, torch.full_like(inside, expected))


def test_clamp_is_scaled_by_the_gain():
    layer = EqualizedConv2d(3, 4, 1, act="lrelu", clamp=0.5)
    y = layer(100 * torch.randn(1, 3, 8, 8), gain=0.5)
    assert y.abs().max() == 0.25


def test_modulated_conv_has_unit_variance():
    """Demodulation: unit-variance input and leaky ReLU's gain keep the size of activations, whatever the style."""
    layer = ModulatedConv2d(64, 64, 16, 16)
    x, w = torch.randn(4, 64, 16, 16), 10 * torch.randn(4, 16)
    assert layer(x, w).square().mean().sqrt().item() == pytest.approx(1, abs=0.15)
    assert layer.affine.bias.unique().tolist() == [1]
    assert layer.noise_strength == 0
    assert layer.noise_const.shape == (16, 16)


def test_noise_of_a_modulated_conv():
    """One picture of noise a sample, shared by the channels; constant noise is shared by the samples too."""
    layer = ModulatedConv2d(4, 3, 8, 8, act="linear")
    layer.noise_strength.data.fill_(0.5)
    x, w = torch.randn(2, 4, 8, 8), torch.randn(2, 8)
    flat = layer(x, w, "none")
    const = layer(x, w, "const") - flat
    torch.testing.assert_close(const, (0.5 * layer.noise_const).expand(2, 3, 8, 8), rtol=1e-4, atol=1e-5)
    torch.manual_seed(3)
    random = layer(x, w, "random") - flat
    torch.testing.assert_close(random, random[:, :1].expand_as(random), rtol=1e-4, atol=1e-5)
    assert not random[0].allclose(random[1], atol=0.1)


def test_an_unknown_noise_mode_is_refused():
    layer = ModulatedConv2d(4, 3, 6, 8)
    with pytest.raises(ValueError, match="noise_mode='konst', expected one of random, const, none"):
        layer(torch.randn(2, 4, 8, 8), torch.randn(2, 6), "konst")


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"num_layers": 0}, "num_layers=0, expected >= 1"),
        ({"z_dim": 0}, "z_dim=0 and c_dim=0, expected one of them > 0"),
    ],
    ids=["layers", "inputs"],
)
def test_mappings_of_nothing_are_refused(sizes, words):
    with pytest.raises(ValueError, match=words):
        Mapping(**{"z_dim": 8, "c_dim": 0, "w_dim": 8, "num_ws": 4} | sizes)


def test_to_rgb_does_not_demodulate():
    """Twice the style is twice the picture; the weight's gain is 1/√I."""
    layer = ToRGB(16, 3, 8)
    layer.affine.weight.data.zero_()
    x, w = torch.randn(2, 16, 4, 4), torch.randn(2, 8)
    expected = torch.nn.functional.conv2d(x, layer.weight / 4)
    torch.testing.assert_close(layer(x, w), expected, rtol=1e-4, atol=1e-5)
    layer.affine.bias.data.fill_(2)
    torch.testing.assert_close(layer(x, w), 2 * expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_activations_keep_their_type(dtype):
    x, w = torch.randn(2, 4, 8, 8, dtype=dtype), torch.randn(2, 6)
    assert EqualizedLinear(8, 3, act="lrelu")(x).dtype == dtype
    assert EqualizedConv2d(4, 3, 3, act="lrelu", down=2)(x).dtype == dtype
    assert ModulatedConv2d(4, 3, 6, 16, up=2)(x, w).dtype == dtype
    assert ToRGB(4, 3, 6)(x, w).dtype == dtype


def test_they_print_their_sizes():
    assert "4, 3, kernel_size=3, act=lrelu, up=1, down=2" in repr(EqualizedConv2d(4, 3, 3, act="lrelu", down=2))
    assert "8, 3, act=linear, lr_multiplier=0.01" in repr(EqualizedLinear(8, 3, lr_multiplier=0.01))
    assert "4, 3, kernel_size=3, up=2, resolution=16" in repr(ModulatedConv2d(4, 3, 6, 16, up=2))
    assert "4, 3" in repr(ToRGB(4, 3, 6))


def test_a_loaded_filter_runs_in_its_separable_form():
    layer, other = EqualizedConv2d(2, 3, 1, down=2), EqualizedConv2d(2, 3, 1, down=2, resample_filter=(1, 2, 5, 2))
    assert layer.resample_taps.shape == (4,)
    assert "resample_taps" not in layer.state_dict()
    layer.load_state_dict(other.state_dict())
    torch.testing.assert_close(layer.resample_taps, other.resample_taps)
    state = other.state_dict() | {"resample_filter": torch.tensor([[0.5, 0.0], [0.0, 0.5]])}  # no outer product
    layer.resample_filter = torch.zeros(2, 2)
    layer.load_state_dict(state)
    assert torch.equal(layer.resample_taps, state["resample_filter"])
