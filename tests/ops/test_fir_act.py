"""The filter with bias and activation after or before it: parity with the composition, derivatives, half types."""

import pytest
import test_bias_act
import test_upfirdn2d
import torch
from ops_util import assert_close, assert_half_error, assert_same_derivatives, check_gradients, is_format, rand, spare
from torch._subclasses import FakeTensorMode

from gankern.ops import _triton, bias_act_upfirdn2d, no_weight_gradients, setup_filter, upfirdn2d_bias_act

IMPLS = ("reference", "triton", "cuda")

FILTERS = {
    "same": (setup_filter([1, 3, 3, 1], separable=False), {"padding": [1, 2, 2, 1]}),
    "grow": (setup_filter([1, 3, 3, 1]), {"padding": 2, "filter_gain": -1.5}),
    "up": (setup_filter([1, 3, 3, 1]), {"up": 2, "padding": [2, 1, 2, 1], "filter_gain": 4}),
    "up-whole": (setup_filter([[1, 2, 3], [0, 1, 5]]), {"up": 2, "padding": [2, 1, 1, 1]}),
    "down": (setup_filter([1, 3, 3, 1]), {"down": 2, "padding": 1}),
    "crop": (setup_filter([[1, 2, 3], [0, 1, 5], [2, 2, 1.0]]), {"padding": [-1, -1, 1, -1], "flip_filter": True}),
    "skip": (setup_filter([1, 2]), {"up": [1, 3], "down": [3, 2], "padding": [1, 0, 2, 1]}),
    "unread": (setup_filter([1]), {"up": 3, "padding": [4, 1, 0, 3]}),
    "wide": (setup_filter([1, 2, 1]), {"padding": [5, 3, 1, 5]}),
    "large": (rand(27, dtype=torch.float32), {"up": 3, "padding": 13}),
}
ACTS = ("linear", "lrelu", "tanh", "swish")
FORMATS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
ORDERS = pytest.mark.parametrize("order", ["filter-first", "act-first"])


def ours(order, f, fir, act):
    if order == "filter-first":
        return lambda x, bias=None: upfirdn2d_bias_act(x, f, bias, **fir, **act)
    return lambda x, bias=None: bias_act_upfirdn2d(x, bias, f, **act, **fir)


def plain(order, f, fir, act):
    """The composition, of the two operators' own plain truths."""
    fir = {"gain" if k == "filter_gain" else k: v for k, v in fir.items()}
    if order == "filter-first":
        return lambda x, bias=None: test_bias_act.truth(test_upfirdn2d.truth(x, f, **fir), bias, **act)
    return lambda x, bias=None: test_upfirdn2d.truth(test_bias_act.truth(x, bias, **act), f, **fir)


def inputs_of(n=2, channels_last=False, dtype=torch.float64, shape=(3, 6, 5)):
    x = rand(n, *shape, dtype=dtype, channels_last=channels_last, grad=True)
    return {"x": x, "bias": rand(shape[0], seed=3, dtype=dtype, grad=True)}


@ORDERS
@FORMATS
@pytest.mark.parametrize("case", FILTERS)
def test_parity(order, case, channels_last, impl):
    """Every filter with every kind of activation: with and without a clamp, smooth, linear, in x."""
    spare(impl, channels_last == (list(FILTERS).index(case) % 2 == (order == "act-first")))
    f, fir = FILTERS[case]
    act = {"act": ACTS[(list(FILTERS).index(case) + channels_last) % 4]} | ({"clamp": 0.5} if channels_last else {})
    args = order, f, fir, act
    inputs = inputs_of(n=2 if case == "same" else 1, channels_last=channels_last)
    assert_same_derivatives(ours(*args), plain(*args), inputs, 1e-12)


@ORDERS
@pytest.mark.parametrize("clamp", [None, 0.4], ids=["free", "clamp"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("act", test_bias_act.TRUTH)
def test_parity_of_every_activation(order, act, bias, clamp, impl):
    spare(impl, bias and clamp)
    f, fir = setup_filter([1, 2]), {"padding": [1, 0, 0, 1]}
    inputs = inputs_of(n=1, shape=(2, 3, 4))
    inputs = inputs if bias else {"x": inputs["x"]}
    args = order, f, fir, {"act": act, "clamp": clamp, "gain": -0.7 if bias else None}
    assert_same_derivatives(ours(*args), plain(*args), inputs, 1e-12)


@ORDERS
@pytest.mark.parametrize("act", ["lrelu", "tanh"])
def test_second_order_outside_a_graph(order, act):
    """Without create_graph the second order takes the fused path: the same numbers."""
    f, fir = FILTERS["grow"]
    args = order, f, fir, {"act": act, "clamp": 0.8}
    found = []
    for fn in (ours(*args), plain(*args)):
        inputs = inputs_of(n=1, shape=(3, 2, 3))
        y = fn(**inputs)
        dy = rand(*y.shape, seed=5, grad=True)
        dx, db = torch.autograd.grad(y, list(inputs.values()), dy, create_graph=True)
        loss = (dx * rand(*dx.shape, seed=6)).sum() + (db * rand(*db.shape, seed=7)).sum()
        wrt = [dy, *inputs.values()]
        second = torch.autograd.grad(loss, wrt, allow_unused=True)
        found.append([torch.zeros_like(t) if g is None else g for t, g in zip(wrt, second, strict=True)])
    for got, want in zip(*found, strict=True):
        assert_close(got, want, 1e-12)


@ORDERS
def test_third_order(order):
    f, fir = FILTERS["up"]
    args = order, f, fir, {"act": "tanh"}
    found = []
    for fn in (ours(*args), plain(*args)):
        x = inputs_of(n=1, shape=(1, 2, 3))["x"]
        t = fn(x).pow(2).sum()
        for _ in range(3):
            t = torch.autograd.grad(t, x, create_graph=True)[0].sum()
        found.append(t)
    assert_close(*found)


@ORDERS
@pytest.mark.parametrize("act", ["lrelu", "tanh", "swish"])
def test_gradcheck(order, act, impl):
    spare(impl, act == "tanh" and order == "act-first")
    f, fir = setup_filter([1, 2]), {"down": 2, "padding": 1}
    inputs = inputs_of(n=1, shape=(2, 3, 2))
    check_gradients(ours(order, f, fir, {"act": act, "clamp": 2}), *inputs.values())


@ORDERS
@pytest.mark.parametrize("case", ["same", "down"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half(order, case, dtype, impl):
    """The composition rounds between filter and activation; near the kink of its slope no gradient is compared."""
    spare(impl, (case == "same") == (dtype == torch.bfloat16))
    f, fir = FILTERS[case]
    inputs = {"x": rand(1, 8, 5, 9) * 2, "bias": rand(8)}
    args = order, f, fir, {"act": "tanh" if order == "act-first" else "lrelu"}
    assert_half_error(ours(*args), plain(*args), inputs, dtype, kinks=[0] if order == "filter-first" else [])


def test_padding_is_of_zeros_and_comes_after_the_activation():
    x, b = torch.zeros(1, 1, 2, 2), torch.ones(1)
    z = bias_act_upfirdn2d(x, b, torch.ones(1), act="linear", padding=1)
    assert z[0, 0].tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


@ORDERS
@FORMATS
def test_formats_and_gradients_of_any_strides(order, channels_last):
    f, fir = FILTERS["same"]
    args = order, f, fir, {"act": "lrelu"}
    inputs = inputs_of(n=1, channels_last=channels_last, shape=(3, 3, 4))
    y, want = ours(*args)(**inputs), plain(*args)(**inputs)
    assert is_format(y, channels_last)
    wide = rand(*y.shape[:3], 2 * y.shape[3])[..., ::2]
    for dy in (torch.ones((), dtype=y.dtype).expand(y.shape), wide):
        dx, db = torch.autograd.grad(y, list(inputs.values()), dy, retain_graph=True)
        assert is_format(dx, channels_last)
        for got, t in zip(
            (dx, db), torch.autograd.grad(want, list(inputs.values()), dy, retain_graph=True), strict=True
        ):
            assert_close(got, t, 1e-12)


@ORDERS
@FORMATS
@pytest.mark.parametrize("n", [0, 2])
def test_fakes_and_empty_batches(order, channels_last, n, impl):
    """Shapes and strides under FakeTensorMode are the real ones; an empty batch has zero gradients."""
    f, fir = FILTERS["up"]
    fn = ours(order, f, fir, {"act": "lrelu", "clamp": 1})

    def run(x, bias):
        y = fn(x, bias)
        return [y, *torch.autograd.grad(y, [x, bias], torch.ones_like(y))]

    spare(impl, n == 0 or channels_last)
    inputs = list(inputs_of(n=n, channels_last=channels_last, shape=(3, 4, 5)).values())
    real = run(*inputs)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = run(*(mode.from_tensor(t) for t in inputs))
    for got, want in zip(fake, real, strict=True):
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        assert not want.numel() or got.stride() == want.stride()
    if n == 0:
        assert real[0].shape == (0, 3, 8, 10)
        assert real[2].count_nonzero() == 0


@ORDERS
def test_no_weight_gradients(order):
    f, fir = FILTERS["same"]
    inputs = inputs_of(n=1, shape=(3, 2, 2))
    y = ours(order, f, fir, {"act": "lrelu"})(**inputs)
    with no_weight_gradients():
        dx, db = torch.autograd.grad(y.sum(), list(inputs.values()), allow_unused=True)
    assert dx is not None
    assert db is None


@pytest.mark.kernels
@ORDERS
@FORMATS
def test_every_setting(order, channels_last, impl):
    f, fir = FILTERS["up"]
    args = order, f, fir, {"act": "lrelu", "clamp": 0.5}
    names = ("filter_act", "filter_act_backward") if order == "filter-first" else ("act_filter", "act_filter_backward")
    tiny = {"BYTES": 64, "ROWS": 3, "PX": 2, "AHEAD": True, "num_warps": 1}
    inputs = inputs_of(n=1, channels_last=channels_last, shape=(3, 5, 3))
    want = torch.autograd.grad(plain(*args)(**inputs).sum(), list(inputs.values()))
    for setting in (_triton.CONFIGS[names[0]][1 + channels_last], tiny):  # the first is what the other tests run
        with _triton.force_config(names[0], setting), _triton.force_config(names[1], setting):
            got = torch.autograd.grad(ours(*args)(**inputs).sum(), list(inputs.values()))
        for a, b in zip(got, want, strict=True):
            assert_close(a, b, 1e-12, str(setting))


REGISTERED = {
    "upfirdn2d_bias_act": [(1, 3, 3, 2), "f", (3,), "fir", "act"],
    "upfirdn2d_bias_act_backward": [(1, 3, 6, 4), (1, 3, 6, 4), "f", [3, 2], True, "fir", "act"],
    "bias_act_upfirdn2d": [(1, 3, 3, 2), (3,), "f", "fir", "act"],
    "bias_act_upfirdn2d_backward": [(1, 3, 6, 4), (1, 3, 3, 2), (3,), "f", [3, 2], True, "fir", "act"],
    "bias_act_upfirdn2d_tangent": [(1, 3, 3, 2), (3,), (1, 3, 3, 2), (3,), "f", "fir", "act"],
}


@FORMATS
@pytest.mark.parametrize("name", REGISTERED)
def test_opcheck(name, channels_last, impl):
    spare(impl, not channels_last)
    differentiable = not name.endswith("tangent")
    args = []
    for i, v in enumerate(REGISTERED[name]):
        if isinstance(v, tuple):
            args.append(rand(*v, seed=i, dtype=torch.float32, channels_last=channels_last and len(v) == 4))
            args[-1].requires_grad_(differentiable)
        elif v == "fir":
            args += [[2, 2], [1, 1], [2, 1, 2, 1], False, 4.0]
        elif v == "act":
            args += ["lrelu", 0.2, 1.4, 0.7, impl]
        else:
            args.append(setup_filter([1, 3, 3, 1]) if v == "f" else v)
    checks = ["test_schema", "test_faketensor", "test_autograd_registration"]
    checks += [] if channels_last else ["test_aot_dispatch_dynamic"]
    torch.library.opcheck(getattr(torch.ops.gankern, name).default, args, test_utils=checks)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"x": torch.zeros(3, 4, 4)}, r"x is torch.float32 of shape \(3, 4, 4\), expected"),
        ({"f": torch.ones(2, dtype=torch.int64)}, r"f is torch.int64 of shape"),
        ({"f": torch.ones(7)}, r"padding=0: the padded width 4 is less than f's 7 taps"),
        ({"bias": torch.zeros(4)}, r"bias has shape \(4,\), expected \(3,\)"),
        ({"up": 0}, r"up=0, expected"),
        ({"padding": [1, 2, 3]}, r"padding=\[1, 2, 3\], expected"),
        ({"act": "gelu"}, r"act='gelu', expected one of"),
        ({"alpha": -1}, r"alpha=-1.0, expected"),
        ({"clamp": -1}, r"clamp=-1, expected"),
        ({"impl": "nonsense"}, r"impl='nonsense': .* is available as"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
@pytest.mark.parametrize("op", [upfirdn2d_bias_act, bias_act_upfirdn2d])
def test_bad_arguments(op, kwargs, message, impl):
    spare(impl, False)
    fine = {"x": torch.zeros(1, 3, 4, 4), "f": torch.ones(2), "bias": torch.zeros(3), "act": "lrelu"}
    with pytest.raises(ValueError, match=message):
        op(**(fine | kwargs))


@ORDERS
def test_compiles_whole(order):
    f, fir = FILTERS["same"]
    fn = ours(order, f, fir, {"act": "lrelu", "clamp": 1})
    torch._dynamo.reset()
    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager")
    inputs = inputs_of(n=1, dtype=torch.float32, shape=(3, 2, 3))
    found = []
    for run in (compiled, fn):
        y = run(**inputs)
        found.append([y, *torch.autograd.grad(y.sum(), list(inputs.values()))])
    for got, want in zip(*found, strict=True):
        assert torch.equal(got, want)


def test_an_output_of_one_pixel_in_channels_last():
    """It lies in both memory formats, while x is channels_last alone."""
    f = setup_filter([1, 2, 3, 1])
    inputs = {"x": rand(2, 3, 4, 4, channels_last=True, grad=True), "bias": rand(3, seed=1, grad=True)}
    assert_same_derivatives(
        lambda x, bias: bias_act_upfirdn2d(x, bias, f, act="lrelu"),
        lambda x, bias: test_upfirdn2d.truth(test_bias_act.truth(x, bias, act="lrelu"), f),
        inputs,
        1e-12,
    )
