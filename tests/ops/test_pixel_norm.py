"""pixel_norm: values, derivatives along every dimension, half types, arguments."""

import contextlib

import pytest
import torch
from ops_util import assert_close, assert_half_error, assert_same_derivatives, check_gradients, is_format, rand

from gankern.ops import _impl, pixel_norm, pixel_norm_reference
from gankern.ops._triton import CONFIGS, force_config

IMPLS = ("reference", "triton", "cuda")


def truth(x, dim=1, eps=1e-8):
    """Each vector divided by its root mean square, in x's own dtype."""
    return x / torch.sqrt((x * x).sum(dim, keepdim=True) / x.shape[dim] + eps)


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
@pytest.mark.parametrize("eps", [1e-8, 0.3])
def test_gradcheck(dim, eps, impl):
    fast = impl != "reference"  # the interpreter is slow
    check_gradients(lambda x: pixel_norm(x, dim, eps), rand(3, 4, 2, 3, grad=True), fast=fast)


@pytest.mark.parametrize(
    ("shape", "dim"),
    [((5,), 0), ((3, 512), 1), ((1, 1, 1, 1), 1), ((2, 63, 3, 1), 1), ((1, 3, 123, 2), 1), ((2, 3, 5), -1)],
    ids=str,
)
def test_parity(shape, dim):
    inputs = {"x": rand(*shape, grad=True)}
    assert_same_derivatives(lambda x: pixel_norm(x, dim), lambda x: truth(x, dim), inputs)
    assert_close(pixel_norm_reference(inputs["x"], dim), truth(inputs["x"], dim), 1e-14)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("channels", [16, 40, 130, 258, 512])
def test_many_channels(channels, channels_last):
    """However a GPU's threads share the channels of a pixel; an odd number of pixels and images."""
    for size in (3, 2):
        inputs = {"x": rand(3, channels, size, 3, channels_last=channels_last, grad=True)}
        assert_same_derivatives(pixel_norm, truth, inputs)


@pytest.mark.parametrize("shape", [(3, 1030), (2, 1031), (1, 4100, 2), (1, 4097, 3)], ids=str)
def test_more_channels_than_registers_hold(shape):
    assert_same_derivatives(pixel_norm, truth, {"x": rand(*shape, grad=True)})


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


@pytest.mark.kernels
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("tile", [1, 16, 64])
def test_vectors_longer_than_a_tile(tile, channels_last, impl):
    """Whole vectors in a tile, and vectors of several tiles, to second order."""
    inputs = {"x": rand(2, 71 if tile > 1 else 7, 3, 1 if tile == 1 else 3, channels_last=channels_last, grad=True)}
    settings = {"TILE": tile, "num_warps": 1}
    with contextlib.ExitStack() as stack:
        for name in ("forward", "backward", "second"):
            stack.enter_context(force_config(f"pixel_norm_{name}", settings))
        assert_same_derivatives(pixel_norm, truth, inputs)


@pytest.mark.kernels
@pytest.mark.parametrize("name", ["forward", "backward", "second"])
def test_every_setting(name, impl):
    import gankern.ops.pixel_norm.kernels  # noqa: F401  (declares the settings)

    for settings in CONFIGS[f"pixel_norm_{name}"]:
        with force_config(f"pixel_norm_{name}", settings):
            for shape, dim in (((3, 63, 5, 2), 1), ((7, 123), 1)):
                inputs = {"x": rand(*shape, grad=True)}
                assert_same_derivatives(lambda x, dim=dim: pixel_norm(x, dim), lambda x, dim=dim: truth(x, dim), inputs)


def test_gradients_of_any_strides():
    x = rand(2, 5, 3, 4, channels_last=True, grad=True)
    y = pixel_norm(x)
    for dy in (torch.ones((), dtype=y.dtype).expand(y.shape), rand(2, 5, 3, 8)[..., ::2]):
        got, want = (torch.autograd.grad(y, x, d, create_graph=True)[0] for d in (dy, dy.contiguous()))
        assert_close(got, want, 1e-12)
        again, plain = (torch.autograd.grad(g.sum(), x, retain_graph=True)[0] for g in (got, want))
        assert_close(again, plain, 1e-12)


@pytest.mark.parametrize("shape", [(0, 5, 3, 3), (2, 5, 0, 3), (0, 4)], ids=str)
def test_nothing_of_it(shape):
    x = rand(*shape, grad=True)
    y = pixel_norm(x)
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    dx.sum().backward()
    assert y.shape == dx.shape == x.grad.shape == x.shape


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_opcheck_of_second_order(channels_last, impl):
    tensors = [rand(2, 5, 3, 4, seed=i, dtype=torch.float32, channels_last=channels_last) for i in range(3)]
    torch.library.opcheck(torch.ops.gankern.pixel_norm_second.default, [*tensors, 1, 1e-8, impl])


@pytest.mark.kernels
@pytest.mark.parametrize("shape", [(64, 32, 32), (512,)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_a_batch_compiles_nothing_anew(shape, channels_last, impl):

    def launches(n):
        x = torch.empty(n, *shape, device="meta")
        x = x.contiguous(memory_format=torch.channels_last) if channels_last and x.ndim == 4 else x
        with _impl.record() as found:
            y = pixel_norm(x.requires_grad_())
            torch.autograd.grad(y, x, torch.empty_like(y).requires_grad_(), create_graph=True)[0].backward(x.detach())
        # (tensors, outer, k, inner): outer, the one that isn't specialised, counts samples
        assert all(la.args[-3] % n == 0 for la in found)
        return [(la.name, la.key, la.constants, la.config, la.args[-2:]) for la in found]

    assert [la[0] for la in launches(3)] == ["pixel_norm_forward", "pixel_norm_backward", "pixel_norm_second"]
    assert launches(3) == launches(16)


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
