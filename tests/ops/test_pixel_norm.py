"""pixel_norm: values, derivatives along every dimension, half types, arguments."""

import pytest
import torch
from ops_util import assert_close, assert_half_error, assert_same_derivatives, check_gradients, is_format, rand

from gankern.ops import pixel_norm, pixel_norm_reference


def truth(x, dim=1, eps=1e-8):
    """Each vector divided by its root mean square, in x's own dtype."""
    return x / torch.sqrt((x * x).sum(dim, keepdim=True) / x.shape[dim] + eps)


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
@pytest.mark.parametrize("eps", [1e-8, 0.3])
def test_gradcheck(dim, eps):
    check_gradients(lambda x: pixel_norm(x, dim, eps), rand(3, 4, 2, 3, grad=True), fast=False)


@pytest.mark.parametrize(
    ("shape", "dim"),
    [((5,), 0), ((3, 512), 1), ((1, 1, 1, 1), 1), ((2, 63, 3, 1), 1), ((1, 3, 123, 2), 1), ((2, 3, 5), -1)],
    ids=str,
)
def test_parity(shape, dim):
    inputs = {"x": rand(*shape, grad=True)}
    assert_same_derivatives(lambda x: pixel_norm(x, dim), lambda x: truth(x, dim), inputs)
    assert_close(pixel_norm_reference(inputs["x"], dim), truth(inputs["x"], dim), 1e-14)


def test_unit_root_mean_square():
    y = pixel_norm(rand(4, 16, 3, 3) * 100)
    assert_close(y.square().mean(1), torch.ones(4, 3, 3, dtype=torch.float64), 1e-9)


def test_zeros_stay_finite():
    x = torch.zeros(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    y = pixel_norm(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert y.abs().max() == 0
    assert_close(dx, torch.full_like(dx, 1e4))


@pytest.mark.parametrize("shape", [(4, 33, 9, 7), (16, 512)], ids=str)
@pytest.mark.parametrize("scale", [0.1, 1, 30])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half(shape, scale, dtype):
    assert_half_error(pixel_norm, truth, {"x": rand(*shape) * scale}, dtype)


def test_float16_squares_stay_in_range():
    x = torch.full((1, 8), 3000.0, dtype=torch.float16)
    assert torch.equal(pixel_norm(x), torch.ones_like(x))


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_keeps_the_memory_format(channels_last):
    x = rand(2, 3, 5, 4, channels_last=channels_last, grad=True)
    y = pixel_norm(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert is_format(y, channels_last)
    assert is_format(dx, channels_last)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.zeros(2, 3), 2), r"dim=2, expected a dimension of x, whose shape is \(2, 3\)"),
        ((torch.zeros(2, 3), -3), r"dim=-3, expected"),
        ((torch.zeros(()), 0), r"dim=0, expected"),
        ((torch.zeros(2, 3, dtype=torch.int32),), r"x has dtype torch.int32, expected"),
    ],
    ids=["dim", "negative", "scalar", "dtype"],
)
def test_bad_arguments(args, message):
    with pytest.raises(ValueError, match=message):
        pixel_norm(*args)
