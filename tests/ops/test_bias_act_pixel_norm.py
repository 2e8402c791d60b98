"""bias_act_pixel_norm: parity with the composition to third order, tiles, half types, bytes, arguments."""

import contextlib
from collections import Counter

import pytest
import test_bias_act
import test_pixel_norm
import torch
from ops_util import (
    assert_close,
    assert_half_error,
    assert_same_derivatives,
    check_gradients,
    derivatives,
    is_format,
    rand,
    spare,
)

from gankern import ops
from gankern.bench import traffic
from gankern.ops import _impl, bias_act_pixel_norm, bias_act_pixel_norm_reference, no_weight_gradients
from gankern.ops._triton import CONFIGS, force_config

IMPLS = ("reference", "triton")
KERNELS = ("forward", "backward", "second")
FORMATS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
ACTS = pytest.mark.parametrize("act", test_bias_act.TRUTH)


def truth(x, bias=None, act="lrelu", alpha=0.2, gain=1.0, eps=1e-8):
    """The composition of the two operators' own plain truths."""
    return test_pixel_norm.truth(test_bias_act.truth(x, bias, 1, act, alpha, gain), 1, eps)


def inputs_of(*shape, bias=True, dtype=torch.float64, channels_last=False, grad=True):
    inputs = {"x": rand(*shape, dtype=dtype, channels_last=channels_last, grad=grad)}
    return inputs | ({"bias": rand(shape[1], seed=3, dtype=dtype, grad=grad)} if bias else {})


def assert_parity(inputs, **args):
    ours, plain = (lambda **t: bias_act_pixel_norm(**t, **args)), (lambda **t: truth(**t, **args))
    assert_same_derivatives(ours, plain, inputs, 1e-10)


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["linear", "lrelu", "tanh", "swish"])
@pytest.mark.parametrize("eps", [1e-8, 0.3])
def test_gradcheck(act, eps, impl):
    spare(impl, eps == 0.3)
    inputs = test_bias_act.smooth_inputs(act, None, gain=1.3)
    fast = impl != "reference"  # the interpreter is slow
    check_gradients(lambda x, b: bias_act_pixel_norm(x, b, act, gain=1.3, eps=eps), *inputs, fast=fast)


@ACTS
@FORMATS
def test_parity(act, channels_last):
    assert_parity(inputs_of(2, 3, 5, 3, channels_last=channels_last), act=act, gain=-1.3, eps=0.1)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize(
    "shape", [(5, 1), (3, 512), (1, 1, 1, 1), (2, 3, 7), (2, 63, 3, 1), (1, 3, 123, 2), (2, 2, 3, 2, 3)], ids=str
)
def test_parity_of_odd_shapes(shape, bias):
    assert_parity(inputs_of(*shape, bias=bias))


@pytest.mark.parametrize("alpha", [0.0, 0.01, 1.5])
@pytest.mark.parametrize("gain", [None, 0.0, 3.0], ids=["own", "gain0", "gain3"])
def test_parity_of_slope_and_gain(alpha, gain):
    assert_parity(inputs_of(2, 3, 5), alpha=alpha, gain=gain, eps=0.2)


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
@FORMATS
def test_without_eps(channels_last):
    """Pixels that a tile has too many are zeros where the bias is: they have no root mean square to divide by."""
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert_parity(inputs_of(2, 3, 5, 3, channels_last=channels_last) | {"bias": bias}, act="tanh", eps=0.0)


@pytest.mark.parametrize("act", ["lrelu", "swish"])
def test_is_the_two_operators_in_one(act):
    inputs = inputs_of(2, 5, 3, 3)
    two = lambda x, bias: ops.pixel_norm(ops.bias_act(x, bias, act=act, gain=1))  # noqa: E731
    assert_same_derivatives(lambda x, bias: bias_act_pixel_norm(x, bias, act), two, inputs)


@ACTS
def test_reference_is_the_definition(act):
    inputs = inputs_of(2, 3, 5, grad=False)
    assert_close(bias_act_pixel_norm_reference(**inputs, act=act, gain=1.3), truth(**inputs, act=act, gain=1.3), 1e-14)


def test_progans_own_is_the_default():
    x, b = rand(2, 16, 3, 3) * 10, rand(16)
    y = bias_act_pixel_norm(x, b)
    assert_close(y, truth(x, b, "lrelu", 0.2, 1.0, 1e-8), 1e-13)
    assert_close(y.square().mean(1), torch.ones(2, 3, 3, dtype=torch.float64), 1e-9)


def test_zeros_stay_finite():
    x, b = torch.zeros(2, 3, 2, 2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    y = bias_act_pixel_norm(x.requires_grad_(), b.requires_grad_(), alpha=0.5)
    dx, db = torch.autograd.grad(y.sum(), [x, b])
    assert y.abs().max() == 0
    assert_close(dx, torch.full_like(dx, 0.5e4))
    assert_close(db, torch.full_like(db, 4e4))


@pytest.mark.parametrize("act", ["lrelu", "tanh", "swish"])
@pytest.mark.parametrize("scale", [0.1, 1, 30])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half(act, scale, dtype):
    inputs = {"x": rand(4, 33, 9, 7) * scale, "bias": rand(33)}
    run = lambda **t: bias_act_pixel_norm(**t, act=act)  # noqa: E731
    assert_half_error(run, lambda **t: truth(**t, act=act), inputs, dtype, [0] if act == "lrelu" else [])


def test_float16_squares_stay_in_range():
    x = torch.full((1, 8), 3000.0, dtype=torch.float16)
    assert torch.equal(bias_act_pixel_norm(x, torch.ones(8, dtype=torch.float16)), torch.ones_like(x))


# -- tiles ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def forced(settings):
    with contextlib.ExitStack() as stack:
        for name in KERNELS:
            waves = {} if name == "forward" else {"WAVES": 1}
            stack.enter_context(force_config(f"bias_act_pixel_norm_{name}", settings | waves))
        yield


@pytest.mark.kernels
@FORMATS
@pytest.mark.parametrize(("tile", "channels"), [(1, 5), (8, 35), (16, 3), (64, 9)])
def test_small_tiles(tile, channels, channels_last, impl):
    """Vectors of several tiles, and whole ones: several blocks a program, the last not full."""
    inputs = inputs_of(2, channels, 3, 2 if channels > 9 else 3, channels_last=channels_last)
    with forced({"TILE": tile, "num_warps": 1, "STRIDED": 4 * tile}):
        assert_parity(inputs, act="tanh")


@pytest.mark.kernels
@pytest.mark.parametrize("name", KERNELS)
def test_every_setting(name, impl):
    import gankern.ops.bias_act_pixel_norm.kernels  # noqa: F401  (declares the settings)

    for shape, channels_last in (((3, 63, 5, 2), False), ((2, 33, 15, 16), True)):
        inputs = inputs_of(*shape, channels_last=channels_last)
        want = derivatives(truth, inputs)
        for settings in CONFIGS[f"bias_act_pixel_norm_{name}"]:
            with force_config(f"bias_act_pixel_norm_{name}", settings):
                got = derivatives(bias_act_pixel_norm, inputs)
            for key in want:
                assert_close(got[key], want[key], 1e-10, key)


@pytest.mark.kernels
@FORMATS
@pytest.mark.parametrize("shape", [(64, 32, 32), (512, 4, 4), (512,)], ids=str)
def test_a_batch_compiles_nothing_anew(shape, channels_last, impl):

    def launches(n):
        x = torch.empty(n, *shape, device="meta")
        x = x.contiguous(memory_format=torch.channels_last) if channels_last and x.ndim == 4 else x
        b = torch.empty(shape[0], device="meta", requires_grad=True)
        with _impl.record() as found:
            y = bias_act_pixel_norm(x.requires_grad_(), b)
            torch.autograd.grad(y, x, torch.empty_like(y).requires_grad_(), create_graph=True)[0].backward(x.detach())
        # (tensors, outer, k, inner): outer, the one that isn't specialised, counts samples
        assert all(la.args[-3] % n == 0 for la in found)
        return [(la.name, la.key, la.constants, la.config, la.args[-2:]) for la in found]

    assert [la[0].removeprefix("bias_act_pixel_norm_") for la in launches(3)] == list(KERNELS)
    assert launches(3) == launches(16)


@pytest.mark.kernels
@FORMATS
@pytest.mark.parametrize(("channels", "size", "most"), [(512, 16, 3.6), (128, 64, 3.1), (16, 1024, 3.01)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_moves_no_more_than_it_must(dtype, channels, size, most, channels_last, impl):
    """One launch reads x and writes y; one reads dy and x, writes dx and few sums; x and the bias alone are kept."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(16, channels, size, size, device="meta", dtype=dtype).contiguous(memory_format=memory_format)
    x, b = x.requires_grad_(), torch.empty(channels, device="meta", dtype=dtype, requires_grad=True)
    kept, made = [], []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        forward = traffic.count(lambda: made.append(bias_act_pixel_norm(x, b)))
    dy = torch.empty_like(x).detach()
    backward = traffic.count(lambda: torch.autograd.grad(made[0], [x, b], dy))
    assert [t.data_ptr() for t in kept] == [x.data_ptr(), b.data_ptr()]
    assert [tuple(t.shape) for t in kept] == [tuple(x.shape), (channels,)]
    one, mine = x.numel() * x.element_size(), "bias_act_pixel_norm"
    assert [(c.name, c.bytes) for c in forward.calls] == [(f"{mine}_forward", 2 * one + b.numel() * b.element_size())]
    launches = Counter(call.name for call in backward.calls if call.bytes)
    cast = {"aten::_to_copy": 1} if dtype == torch.bfloat16 else {}  # of the bias's gradient, summed in float32
    assert launches == {f"{mine}_backward": 1, "aten::sum": 1} | cast
    assert 3 * one < backward.bytes < most * one


# -- gradients --------------------------------------------------------------------------------------------------------


@FORMATS
def test_keeps_the_memory_format(channels_last):
    x = rand(2, 3, 5, 4, channels_last=channels_last, grad=True)
    v, dy = rand(2, 3, 5, 4, seed=1, channels_last=not channels_last), rand(2, 3, 5, 4, seed=2, grad=True)
    y = bias_act_pixel_norm(x, rand(3), act="tanh")
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    for t in (y, dx, *torch.autograd.grad(dx, [x, dy], v)):
        assert is_format(t, channels_last)


@FORMATS
def test_gradients_of_any_strides(channels_last):
    inputs = inputs_of(2, 5, 3, 4, channels_last=channels_last)
    wrt = list(inputs.values())
    y = bias_act_pixel_norm(**inputs, act="tanh")
    for dy in (torch.ones((), dtype=y.dtype).expand(y.shape), rand(2, 5, 3, 8)[..., ::2], rand(3, 4).expand(y.shape)):
        got, want = (torch.autograd.grad(y, wrt, d, create_graph=True) for d in (dy, dy.contiguous()))
        again, plain = (
            torch.autograd.grad(sum(g.sum() for g in t), wrt, retain_graph=True) for t in (got, want)
        )  # stride 0 here too
        for a, b in zip((*got, *again), (*want, *plain), strict=True):
            assert_close(a, b, 1e-12)


@pytest.mark.parametrize("shape", [(0, 5, 3, 3), (2, 5, 0, 3), (0, 4)], ids=str)
def test_nothing_of_it(shape):
    inputs = inputs_of(*shape)
    y = bias_act_pixel_norm(**inputs)
    dx, db = torch.autograd.grad(y.sum(), list(inputs.values()), create_graph=True)
    (dx.sum() + db.sum()).backward()
    assert y.shape == dx.shape == inputs["x"].grad.shape == shape
    assert torch.equal(db, torch.zeros(shape[1], dtype=db.dtype))
    assert torch.equal(inputs["bias"].grad, torch.zeros_like(db))


def test_gradient_of_the_bias_alone():
    x, b = rand(2, 3, 4), rand(3, grad=True)
    got, want = (torch.autograd.grad(f(x, b, "tanh").square().sum(), b)[0] for f in (bias_act_pixel_norm, truth))
    assert_close(got, want, 1e-10)


def test_gradient_penalty_without_weight_gradients():
    """The first order leaves the bias out, the second is whole."""
    grads = []
    for run in (bias_act_pixel_norm, truth):
        inputs = inputs_of(2, 3, 4, 4)
        with no_weight_gradients():
            y = run(**inputs, act="tanh")
            y.sum().backward(retain_graph=True)
            assert run is truth or inputs["bias"].grad is None
            inputs["x"].grad = inputs["bias"].grad = None
            (dx,) = torch.autograd.grad(y.sum(), inputs["x"], create_graph=True)
        dx.square().sum().backward()
        grads.append([t.grad for t in inputs.values()])
    for got, want in zip(*grads, strict=True):
        assert_close(got, want, 1e-9)


@pytest.mark.parametrize("act", ["lrelu", "tanh", "swish"])
def test_third_order(act):
    found = []
    for run in (bias_act_pixel_norm, truth):
        inputs = inputs_of(2, 3, 4)
        wrt = list(inputs.values())
        first = torch.autograd.grad(
            (run(**inputs, act=act, eps=0.1) * rand(2, 3, 4, seed=5)).sum(), wrt, create_graph=True
        )
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wrt, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in second), wrt))
    for got, want in zip(*found, strict=True):
        assert_close(got, want, 1e-9)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"x": torch.zeros(3)}, r"x is torch.float32 of shape \(3,\), expected .*\[N, C, \*spatial\]"),
        ({"x": torch.zeros(2, 3, dtype=torch.int32)}, r"x is torch.int32 of shape \(2, 3\), expected"),
        ({"bias": torch.zeros(4)}, r"bias has shape \(4,\), expected \(3,\)"),
        ({"bias": torch.zeros(3, dtype=torch.float16)}, r"bias is torch.float16.*expected x's torch.float32"),
        ({"bias": torch.zeros(3, device="meta")}, r"bias is .*meta, expected x's"),
        ({"act": "gelu"}, r"act='gelu', expected one of linear, relu"),
        ({"alpha": -0.1}, r"alpha=-0.1, expected"),
        ({"impl": "triton_gemm"}, r"impl='triton_gemm': bias_act_pixel_norm is available as triton"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        bias_act_pixel_norm(**({"x": torch.zeros(2, 3, 4, 4)} | kwargs))
