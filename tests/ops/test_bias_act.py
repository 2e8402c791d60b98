"""bias_act: golden numbers, derivatives of every activation, half types, arguments."""

import math

import pytest
import torch
import torch.nn.functional as F
from ops_util import assert_close, assert_half_error, assert_same_derivatives, check_gradients, is_format, leaf, rand

from gankern.ops import bias_act, bias_act_reference

IMPLS = ("reference", "triton", "cuda")

TRUTH = {
    "linear": (lambda u, alpha: u, 1),
    "relu": (lambda u, alpha: torch.relu(u), math.sqrt(2)),
    "lrelu": (lambda u, alpha: torch.where(u > 0, u, u * alpha), math.sqrt(2)),
    "tanh": (lambda u, alpha: torch.tanh(u), 1),
    "sigmoid": (lambda u, alpha: torch.sigmoid(u), 1),
    "elu": (lambda u, alpha: torch.where(u > 0, u, torch.expm1(u)), 1),
    "selu": (lambda u, alpha: torch.selu(u), 1),
    "softplus": (lambda u, alpha: torch.logaddexp(u, u * 0), 1),
    "swish": (lambda u, alpha: F.silu(u), math.sqrt(2)),
}
CLAMPS = pytest.mark.parametrize("clamp", [None, 0.7], ids=["free", "clamp"])
ACTS = pytest.mark.parametrize("act", TRUTH)


def truth(x, bias=None, dim=1, act="linear", alpha=0.2, gain=None, clamp=None):
    """The same function from PyTorch's own activations and autograd."""
    f, own_gain = TRUTH[act]
    u = x if bias is None else (x.movedim(dim, -1) + bias).movedim(-1, dim)
    y = f(u, alpha) * (own_gain if gain is None else gain)
    return y if clamp is None else torch.clamp(y, -clamp, clamp)


def smooth_inputs(act, clamp, shape=(2, 3, 4), gain=None):
    """x and a bias such that no x + b lies near a kink of the activation or the clamp."""
    x, b = rand(*shape, seed=1) * 2, rand(shape[1], seed=2)
    u = x + b[None, :, None]
    for _ in range(50):
        y = truth(u, act=act, gain=gain)
        kink = u.abs() < 0.05
        if clamp is not None:
            kink |= (y.abs() - clamp).abs() < 0.05
        if not kink.any():
            break
        u = torch.where(kink, u + 0.17, u)
    else:
        raise AssertionError("no smooth inputs found")
    return (u - b[None, :, None]).requires_grad_(), b.requires_grad_()


def test_golden(golden_cases):
    for case, a in golden_cases("bias_act"):
        x, b, dy = leaf(a["x"]), leaf(a["b"]), leaf(a["dy"])
        y = bias_act(x, b, **{k: case[k] for k in ("dim", "act", "alpha", "gain", "clamp")})
        dx, db = torch.autograd.grad(y, [x, b], dy, create_graph=True)
        second = torch.autograd.grad(dx, [dy, x], torch.as_tensor(a["ddx"]), allow_unused=True)
        grad_dy, grad_x = (torch.zeros_like(x) if t is None else t for t in second)
        got = {"x": x, "b": b, "dy": dy, "ddx": torch.as_tensor(a["ddx"]), "y": y, "dx": dx, "db": db}
        got |= {"grad_dy": grad_dy, "grad_x": grad_x}
        for key, want in a.items():
            assert_close(got[key], want, 1e-12, f"{case['name']}/{key}")


@ACTS
@CLAMPS
@pytest.mark.parametrize("gain", [None, 1.7, -0.6])
def test_gradcheck(act, clamp, gain, impl):
    inputs = smooth_inputs(act, clamp, gain=gain)
    fast = impl != "reference"  # the interpreter is slow
    check_gradients(lambda x, b: bias_act(x, b, act=act, gain=gain, clamp=clamp), *inputs, fast=fast)


@ACTS
@CLAMPS
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize(
    ("shape", "dim"),
    [((2, 3), 1), ((7,), 0), ((2, 3, 63), 1), ((3, 1, 5, 123), 1), ((2, 5, 3), -1), ((1, 4, 3, 3), 0)],
    ids=str,
)
def test_parity(act, clamp, bias, shape, dim):
    inputs = {"x": rand(*shape, grad=True)} | ({"bias": rand(shape[dim], seed=3, grad=True)} if bias else {})
    args = {"dim": dim, "act": act, "clamp": clamp}
    assert_same_derivatives(lambda **t: bias_act(**t, **args), lambda **t: truth(**t, **args), inputs, 1e-12)


@ACTS
@CLAMPS
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
def test_residual(act, clamp, bias):
    inputs = {"x": rand(2, 3, 5, 4, grad=True), "residual": rand(2, 3, 5, 4, seed=2, grad=True)}
    inputs |= {"bias": rand(3, seed=3, grad=True)} if bias else {}
    args = {"act": act, "clamp": clamp}
    assert_same_derivatives(
        lambda **t: bias_act(**t, **args), lambda residual, **t: truth(**t, **args) + residual, inputs, 1e-12
    )


@pytest.mark.parametrize("act", ["linear", "relu", "lrelu", "tanh", "swish"])
@pytest.mark.parametrize("gain", [0.0, -1.3], ids=["gain0", "negative"])
@pytest.mark.parametrize("alpha", [0.0, 0.01, 1.5], ids="alpha{}".format)
def test_parity_odd_gain_and_slope(act, gain, alpha):
    inputs = {"x": rand(2, 3, 5, grad=True), "bias": rand(3, grad=True)}
    args = {"act": act, "gain": gain, "alpha": alpha, "clamp": 0.5}
    assert_same_derivatives(lambda **t: bias_act(**t, **args), lambda **t: truth(**t, **args), inputs, 1e-12)


@ACTS
def test_reference_is_the_definition(act):
    x, b = rand(2, 3, 5), rand(3)
    gain = TRUTH[act][1]
    assert_close(bias_act_reference(x, b, act=act, alpha=0.2, gain=gain, clamp=0.5), truth(x, b, act=act, clamp=0.5))


@ACTS
@pytest.mark.parametrize("clamp", [None, 0.4], ids=["free", "clamp"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half(act, clamp, dtype):
    inputs, args = {"x": rand(8, 63, 31) * 2, "bias": rand(63)}, {"act": act, "clamp": clamp}
    kinks = ([0] if act in ("relu", "lrelu", "selu") else []) + ([] if clamp is None else [clamp])
    eager = {"alpha": 0.2, "gain": TRUTH[act][1], "clamp": -1.0 if clamp is None else clamp, "act": act}
    assert_half_error(
        lambda **t: bias_act(**t, **args), lambda **t: bias_act_reference(**t, **eager), inputs, dtype, kinks
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_no_gradient_where_clamped(dtype):
    x = torch.tensor([[-9.0, -0.1, 0.1, 9.0]], dtype=dtype, requires_grad=True)
    bias_act(x, act="linear", clamp=0.4).sum().backward()  # 0.4 has no exact form in any of these types
    assert x.grad.tolist() == [[0, 1, 1, 0]]


@pytest.mark.parametrize("act", ["relu", "lrelu", "linear", "tanh"])
def test_infinite_inputs(act):
    x = torch.tensor([[-math.inf, math.inf]], requires_grad=True)
    y = bias_act(x, torch.zeros(2), act=act, clamp=256)
    assert torch.equal(y, truth(x, act=act, clamp=256))
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(dx, torch.zeros_like(dx))


def test_gradient_of_the_bias_alone():
    x, b = rand(2, 3, 4), rand(3, grad=True)
    bias_act(x, b, act="tanh").sum().backward()
    assert_close(b.grad, (1 - torch.tanh(x + b[:, None]) ** 2).sum([0, 2]))


def test_output_is_a_new_tensor():
    x = rand(2, 3)
    assert bias_act(x).data_ptr() != x.data_ptr()


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@ACTS
def test_keeps_the_memory_format(act, channels_last):
    x = rand(2, 3, 5, 4, channels_last=channels_last, grad=True)
    y = bias_act(x, rand(3), act=act, clamp=0.5)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert is_format(y, channels_last)
    assert is_format(dx, channels_last)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"act": "gelu"}, r"act='gelu', expected one of linear, relu"),
        ({"act": "lrelu", "alpha": -0.1}, r"alpha=-0.1, expected"),
        ({"act": "lrelu", "alpha": math.nan}, r"alpha=nan, expected"),
        ({"clamp": -1}, r"clamp=-1, expected"),
        ({"clamp": math.nan}, r"clamp=nan, expected"),
        ({"bias": torch.zeros(4)}, r"bias has shape \(4,\), expected \(3,\)"),
        ({"bias": torch.zeros(3, 1)}, r"bias has shape \(3, 1\), expected \(3,\)"),
        ({"bias": torch.zeros(3, dtype=torch.float64)}, r"bias is torch.float64.*expected x's torch.float32"),
        ({"bias": torch.zeros(3, device="meta")}, r"bias is .*meta, expected x's"),
        ({"residual": torch.zeros(2, 3, 4, 5)}, r"residual is torch.float32 of shape \(2, 3, 4, 5\).*expected x's"),
        ({"bias": torch.zeros(3), "dim": 4}, r"dim=4, expected a dimension of x"),
        ({"x": torch.zeros(2, 3, dtype=torch.int64)}, r"x has dtype torch.int64, expected"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        bias_act(**({"x": torch.zeros(2, 3, 4, 4)} | kwargs))
