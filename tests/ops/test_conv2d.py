"""conv2d, conv2d_resample, no_weight_gradients: parity with the library and resampling spelled out, derivatives."""

import pytest
import torch
import torch.nn.functional as F
from ops_util import assert_close, assert_half_error, assert_same_derivatives, check_gradients, is_format, rand

from gankern.ops import (
    bias_act,
    conv2d,
    conv2d_resample,
    modulated_conv2d,
    no_weight_gradients,
    setup_filter,
    upfirdn2d,
)

FORMATS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
CONVS = pytest.mark.parametrize(
    ("stride", "padding", "transposed", "k"),
    [(1, 0, False, 1), (1, 1, False, 3), (2, 0, False, 3), (2, 1, False, 3), (2, 0, True, 3), (1, 2, True, 3)],
    ids=["1x1", "3x3", "down", "down-pad", "transposed", "transposed-pad"],
)
RESAMPLES = pytest.mark.parametrize("flip_weight", [True, False], ids=["correlate", "convolve"])
SCALES = pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)], ids=["same", "up", "down"])


def library(x, weight, stride=1, padding=0, *, transposed=False):
    return (F.conv_transpose2d if transposed else F.conv2d)(x, weight, stride=stride, padding=padding)


def spelled_out(x, weight, f=None, up=1, down=1, padding=0, flip_weight=True):
    """Upsample, convolve, downsample, each by itself; the resampling aligned as an image's would be."""
    w = weight if flip_weight else weight.flip(2, 3)
    if up == 1 and down == 1:
        return F.conv2d(x, w, padding=padding)
    fx, fy = f.shape[-1], f.shape[0]
    if up == 2:
        pad = [padding + (fx + 1) // 2, padding + (fx - 2) // 2, padding + (fy + 1) // 2, padding + (fy - 2) // 2]
        return F.conv2d(upfirdn2d(x, f, up=2, padding=pad, gain=4), w)
    pad = [padding + (fx - 1) // 2, padding + (fx - 2) // 2, padding + (fy - 1) // 2, padding + (fy - 2) // 2]
    return F.conv2d(upfirdn2d(x, f, padding=pad), w)[:, :, ::2, ::2]


def operands(size, k, *, transposed=False, channels_last=False):
    shape = (3, 4, k, k) if transposed else (4, 3, k, k)
    x = rand(2, 3, *size, channels_last=channels_last, grad=True)
    return {"x": x, "weight": rand(*shape, seed=5, channels_last=channels_last, grad=True)}


@CONVS
def test_gradcheck(stride, padding, transposed, k):
    inputs = operands((5, 4), k, transposed=transposed)
    check_gradients(lambda x, w: conv2d(x, w, stride, padding, transposed=transposed), *inputs.values())


@CONVS
@FORMATS
@pytest.mark.parametrize("size", [(3, 5), (63, 4)], ids=str)
def test_parity(stride, padding, transposed, k, channels_last, size):
    inputs = operands(size, k, transposed=transposed, channels_last=channels_last)
    args = {"stride": stride, "padding": padding, "transposed": transposed}
    assert_same_derivatives(lambda **t: conv2d(**t, **args), lambda **t: library(**t, **args), inputs, 1e-12)


@pytest.mark.parametrize(("transposed", "stride"), [(False, 1), (False, 2), (True, 2)])
def test_groups(transposed, stride):
    shape = (4, 3, 3, 3) if transposed else (6, 2, 3, 3)
    inputs = {"x": rand(2, 4, 5, 7, grad=True), "weight": rand(*shape, seed=5, grad=True)}
    args = {"stride": stride, "padding": 1, "groups": 2}
    torch_own = F.conv_transpose2d if transposed else F.conv2d
    ours = lambda **t: conv2d(**t, **args, transposed=transposed)  # noqa: E731
    assert_same_derivatives(ours, lambda **t: torch_own(t["x"], t["weight"], **args), inputs, 1e-12)


def test_third_order():
    def third(conv):
        x, w = rand(1, 2, 4, 4, grad=True), rand(2, 2, 3, 3, grad=True)
        y = conv(x, w, padding=1).pow(3).sum()
        for wrt in (x, w, x):
            (y,) = torch.autograd.grad(y, wrt, create_graph=True)
            y = y.square().sum()
        return y

    assert_close(third(conv2d), third(library), 1e-12)


@SCALES
@RESAMPLES
@pytest.mark.parametrize("k", [1, 3])
def test_resample_gradcheck(up, down, flip_weight, k):
    f = setup_filter([1, 3, 3, 1])
    args = {"f": f, "up": up, "down": down, "padding": k // 2, "flip_weight": flip_weight}
    check_gradients(lambda x, w: conv2d_resample(x, w, **args), *operands((4, 6), k).values())


@SCALES
@RESAMPLES
@pytest.mark.parametrize(("k", "padding"), [(1, 0), (1, 2), (3, 1), (3, 0), (5, 2)])
@pytest.mark.parametrize("taps", [[1, 2, 1], [1, 3, 3, 1], [[1, 2, 3, 1], [0, 1, 4, 2]]], ids=str)
def test_resample_parity(up, down, flip_weight, k, taps, padding):
    inputs = operands((6, 8), k)
    args = {"f": setup_filter(taps), "up": up, "down": down, "padding": padding, "flip_weight": flip_weight}
    assert_same_derivatives(lambda **t: conv2d_resample(**t, **args), lambda **t: spelled_out(**t, **args), inputs)
    if padding == k // 2:
        assert conv2d_resample(**inputs, **args).shape == (2, 4, 6 * up // down, 8 * up // down)


@pytest.mark.parametrize(
    ("shape", "up", "down"),
    [((1, 1, 1, 1), 2, 1), ((1, 1, 2, 2), 1, 2), ((1, 1, 1, 1), 1, 1), ((3, 1, 123, 1), 2, 1), ((3, 1, 123, 63), 1, 2)]
    + [((0, 3, 4, 4), up, down) for up, down in ((1, 1), (2, 1), (1, 2))],
    ids=str,
)
def test_resample_of_odd_sizes(shape, up, down):
    x, w = rand(*shape, grad=True), rand(2, shape[1], 3, 3, grad=True)
    args = {"f": setup_filter([1, 3, 3, 1]), "up": up, "down": down, "padding": 1}
    inputs = {"x": x, "weight": w}
    assert_same_derivatives(lambda **t: conv2d_resample(**t, **args), lambda **t: spelled_out(**t, **args), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@SCALES
def test_resample_half(up, down, dtype):
    inputs = {"x": rand(2, 16, 16, 16), "weight": rand(16, 16, 3, 3) / 12}
    args = {"f": setup_filter([1, 3, 3, 1]), "up": up, "down": down, "padding": 1}
    assert_half_error(lambda **t: conv2d_resample(**t, **args), lambda **t: spelled_out(**t, **args), inputs, dtype)


@SCALES
@FORMATS
@pytest.mark.parametrize("k", [1, 3])
def test_resample_keeps_the_memory_format(up, down, channels_last, k):
    inputs = operands((6, 8), k, channels_last=channels_last)
    y = conv2d_resample(**inputs, f=setup_filter([1, 3, 3, 1]), up=up, down=down, padding=k // 2)
    (dx,) = torch.autograd.grad(y, inputs["x"], torch.ones_like(y))
    assert is_format(y, channels_last)
    assert is_format(dx, channels_last)


@pytest.mark.parametrize(
    ("fn", "kwargs", "message"),
    [
        (conv2d, {"weight": torch.zeros(4, 2, 3, 3)}, r"weight has shape \(4, 2, 3, 3\), which doesn't fit x"),
        (conv2d, {"weight": torch.zeros(4, 3, 3, 3), "transposed": True}, r"weight has shape \(4, 3, 3, 3\)"),
        (conv2d, {"weight": torch.zeros(4, 3)}, r"weight has shape \(4, 3\)"),
        (conv2d, {"weight": torch.zeros(4, 1, 3, 3), "groups": 3}, r"groups=3, expected a divisor of the 4 filters"),
        (conv2d, {"x": torch.zeros(3, 6, 6)}, r"doesn't fit x of shape \(3, 6, 6\)"),
        (conv2d, {"weight": torch.zeros(4, 3, 3, 3).double()}, r"weight is torch.float64, expected x's torch.float32"),
        (conv2d_resample, {"up": 3}, r"up=3, down=1: expected"),
        (conv2d_resample, {"up": 2, "down": 2}, r"up=2, down=2: expected"),
        (conv2d_resample, {"up": 2}, r"f=None, expected the resampling filter"),
        (conv2d_resample, {"weight": torch.zeros(4, 2, 3, 3)}, r"weight has shape \(4, 2, 3, 3\)"),
    ],
)
def test_bad_arguments(fn, kwargs, message):
    with pytest.raises(ValueError, match=message):
        fn(**({"x": torch.zeros(1, 3, 6, 6), "weight": torch.zeros(4, 3, 3, 3)} | kwargs))


# -- no_weight_gradients ----------------------------------------------------------------------------------------------


def layers(x, parameters):
    """A small network of every layer that has weights, noise or biases."""
    w1, w2, w3, noise, bias = parameters
    f = setup_filter([1, 3, 3, 1])
    x = bias_act(conv2d_resample(x, w1, f, down=2, padding=1), act="swish")
    styles = 1 + x.mean([2, 3])
    x = modulated_conv2d(x, w2, styles, noise, up=2, padding=1, resample_filter=f, bias=bias, act="lrelu", clamp=2)
    return modulated_conv2d(x, w3, styles, act="tanh").square().sum()


def network():
    shapes = [(4, 3, 3, 3), (4, 4, 3, 3), (2, 4, 1, 1), (6, 6), (4,)]
    return rand(2, 3, 6, 6, grad=True), [rand(*s, seed=i, grad=True) for i, s in enumerate(shapes)]


def test_no_weight_gradients_leaves_parameters_out():
    x, parameters = network()
    want = torch.autograd.grad(layers(x, parameters), x)[0]
    with no_weight_gradients():
        dx, *rest = torch.autograd.grad(layers(x, parameters), [x, *parameters], allow_unused=True)
    assert_close(dx, want, 1e-14)
    # asked for, modulated weights receive what runs through the demodulation, which is plain autograd
    assert [i for i, g in enumerate(rest) if g is not None] == [1, 2]


@pytest.mark.parametrize("blocks", [1, 2], ids=["block", "nested"])
def test_no_weight_gradients_keeps_the_second_order(blocks):
    def penalty_gradients(inside):
        x, parameters = network()
        y = layers(x, parameters)
        if inside:
            with no_weight_gradients():
                if blocks == 2:
                    with no_weight_gradients():
                        pass
                (dx,) = torch.autograd.grad(y, x, create_graph=True)
        else:
            (dx,) = torch.autograd.grad(y, x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), parameters)

    for got, want in zip(penalty_gradients(True), penalty_gradients(False), strict=True):
        assert want.abs().max() > 0
        assert_close(got, want, 1e-12)


def test_no_weight_gradients_ends_with_an_exception():
    with pytest.raises(KeyError), no_weight_gradients():
        raise KeyError
    x, parameters = network()
    layers(x, parameters).backward()
    assert all(p.grad is not None for p in parameters)
