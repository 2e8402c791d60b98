"""What every operator promises: opcheck, fakes with the real strides, meta, any strides, impl=, torch.compile."""

import pytest
import torch
from ops_util import assert_close, derivatives, rand, spare
from torch._subclasses import FakeTensorMode

from gankern import ops
from gankern.ops import setup_filter, use_impl

F4 = setup_filter([1, 3, 3, 1])
IMPLS = ("reference", "triton")
INTERPRETED = {  # the interpreter is slow, and linear operators have little to show here
    "test_gradients_of_any_strides": (
        *("bias_act", "bias_act-swish", "pixel_norm", "minibatch_stddev", "instance_norm", "modulated_conv2d"),
    ),
    "test_inputs_of_any_strides": ("bias_act-residual", "pixel_norm", "instance_norm", "modulated_conv2d-up"),
    "test_autocast_changes_nothing": ("bias_act-swish", "pixel_norm", "modulated_conv2d"),
    "test_memory_format_changes_no_number": ("bias_act-swish", "instance_norm", "minibatch_stddev", "modulated_conv2d"),
}
pytestmark = pytest.mark.usefixtures("few_programs")
LAYER = {"padding": 1, "act": "lrelu", "clamp": 0.9}

# public call -> (function of the tensors, their shapes); x, the first, is [N, C, H, W] and N leads wherever it appears
CALLS = {
    "bias_act": (lambda x, b: ops.bias_act(x, b, act="lrelu", clamp=0.7), [(4, 6, 5, 3), (6,)]),
    "bias_act-linear": (lambda x, b: ops.bias_act(x, b), [(4, 6, 5, 3), (6,)]),
    "bias_act-swish": (lambda x, b: ops.bias_act(x, b, act="swish"), [(4, 6, 5, 3), (6,)]),
    "bias_act-residual": (
        lambda x, b, r: ops.bias_act(x, b, act="lrelu", clamp=0.7, residual=r),
        [(4, 6, 5, 3), (6,), (4, 6, 5, 3)],
    ),
    "pixel_norm": (lambda x: ops.pixel_norm(x), [(4, 6, 5, 3)]),
    "bias_act_pixel_norm": (lambda x, b: ops.bias_act_pixel_norm(x, b, act="elu"), [(4, 6, 5, 3), (6,)]),
    "minibatch_stddev": (lambda x: ops.minibatch_stddev(x, 2, 3), [(4, 6, 5, 3)]),
    "instance_norm": (lambda x, w, b: ops.instance_norm(x, w, b, act="lrelu"), [(4, 6, 5, 3), (6,), (6,)]),
    "upfirdn2d-up": (lambda x: ops.upsample2d(x, setup_filter([1, 3, 3, 1], device=x.device)), [(4, 6, 5, 3)]),
    "upfirdn2d-down": (lambda x: ops.downsample2d(x, setup_filter([1] * 8, device=x.device)), [(4, 6, 5, 3)]),
    "conv2d": (lambda x, w: ops.conv2d(x, w, 2, 1), [(4, 6, 5, 3), (8, 6, 3, 3)]),
    "grid_sample": (lambda x: ops.grid_sample(x, x.new_full((len(x), 2, 3, 2), 0.3)), [(4, 6, 5, 3)]),
    "conv2d_resample": (
        lambda x, w: ops.conv2d_resample(x, w, setup_filter([1, 3, 3, 1], device=x.device), up=2, padding=1),
        [(4, 6, 5, 3), (8, 6, 3, 3)],
    ),
    "modulated_conv2d": (
        lambda x, w, s, n, b: ops.modulated_conv2d(x, w, s, n, bias=b, **LAYER),
        [(4, 6, 5, 3), (8, 6, 3, 3), (4, 6), (5, 3), (8,)],
    ),
    "modulated_conv2d-up": (
        lambda x, w, s, n, b: ops.modulated_conv2d(
            x, w, s, n, 2, resample_filter=setup_filter([1, 3, 3, 1], device=x.device), bias=b, **LAYER
        ),
        [(4, 6, 5, 3), (8, 6, 3, 3), (4, 6), (4, 1, 10, 6), (8,)],
    ),
}
EVERY = pytest.mark.parametrize("call", CALLS)
FORMATS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])


def tensors(call, dtype=torch.float32, channels_last=False, n=4):
    shapes = [(n, *s[1:]) if s[0] == 4 else s for s in CALLS[call][1]]
    made = [rand(*s, seed=i, dtype=dtype, grad=True) for i, s in enumerate(shapes)]
    made[0] = rand(*shapes[0], dtype=dtype, channels_last=channels_last, grad=True)
    return made


def first_order(fn, inputs, dy=None):
    y = fn(*inputs)
    return [y, *torch.autograd.grad(y, inputs, torch.ones_like(y) if dy is None else dy)]


# -- opcheck: (op, shapes or constants) of every registered op ---------------------------------------------------------

X, Y, W, S, B = (4, 6, 5, 3), (4, 8, 10, 6), (8, 6, 3, 3), (4, 6), (8,)
GENERAL = ("lrelu", 0.2, 1.4, 0.9)  # act, alpha, gain, clamp
FIR = [F4, [1, 1], [1, 1], [2, 1, 2, 1], False, 4.0]
LAYER_INPUTS = [X, W, S, (4, 8), (10, 6), (), B, F4, (4, 8)]
STYLED_INPUTS = [X, W, None, *LAYER_INPUTS[3:]]
PREPARED = [[4, 2, 9, 1, 6, 1, 3, 2, 3], [0.5, 1.0, 2.0], [2, 0, 3]]  # shapes, gains, flags
REGISTERED = {
    "bias_act": [X, (6,), X, 1, "lrelu", 0.2, 1.4, 0.7],
    "bias_act-swish": [X, (6,), None, 1, "swish", 0.0, 1.4, -1.0],
    "bias_act_backward": [X, None, None, X, True, 1, "tanh", 0.0, 1.0, 0.7],
    "bias_act_backward-linear": [X, None, None, None, True, 1, "linear", 0.0, 1.4, -1.0],
    "bias_act_backward-swish": [X, X, (6,), None, True, 1, "swish", 0.0, 1.4, -1.0],
    "pixel_norm": [X, 1, 1e-8],
    "pixel_norm_backward": [X, X, 1, 1e-8],
    "bias_act_pixel_norm": [X, (6,), "lrelu", 0.2, 1.0, 1e-8],
    "bias_act_pixel_norm_backward": [X, X, (6,), True, "lrelu", 0.2, 1.0, 1e-8],
    "bias_act_pixel_norm_backward-nobias": [X, X, None, False, "swish", 0.0, 1.4, 1e-8],
    "minibatch_stddev": [X, 2, 3, 1e-8],
    "minibatch_stddev_backward": [(4, 9, 5, 3), X, 2, 3, 1e-8],
    "instance_norm": [X, (6,), (6,), "lrelu", 0.2, 1.4, 1e-5, True, 0.0],
    "instance_norm_backward": [X, X, (6,), (6,), True, 1, "lrelu", 0.2, 1.4, 1e-5, True, 0.0],
    "upfirdn2d": [X, F4, [2, 2], [1, 1], [2, 1, 2, 1], False, 4.0],
    "upfirdn2d-down": [X, F4, [1, 1], [2, 2], [2, 1, -1, 3], True, 1.0],
    "conv2d": [X, W, 1, 1, False],
    "conv2d-transposed": [X, (6, 8, 3, 3), 2, 0, True],
    "conv2d_input_grad": [(4, 8, 5, 3), W, list(X), 1, 1, False],
    "conv2d_weight_grad": [(4, 8, 5, 3), X, list(W), 1, 1, False],
    "conv2d-groups": [X, (9, 2, 3, 3), 1, 1, False, 3],
    "grid_sample": [X, (4, 2, 3, 2)],
    "grid_sample_input_grad": [(4, 6, 2, 3), (4, 2, 3, 2), list(X)],
    "modulated_conv2d": [*LAYER_INPUTS, 2, 1, True, *GENERAL, "both"],
    "modulated_conv2d_backward": [
        *(Y, Y, *STYLED_INPUTS, Y, None),
        [i in (0, 3, 7) for i in range(8)],
        *(2, 1, True, "lrelu", 0.2, 1.4, -1.0, "both"),
    ],
    "demodulate": [(8, 6), S, 50.0],
    "demodulate_backward": [(4, 8), (8, 6), S, (4, 8), [False, True]],
    "prepare_weights": [(96,), *PREPARED, torch.float32],
    "residual_branches": [(4, 6, 6, 4), W, F4, 1],
}
NOT_AUTOGRAD = {
    "grid_sample_grid_grad": [(4, 6, 2, 3), X, (4, 2, 3, 2)],
    "bias_act_second": [X, (6,), X, None, None, X, 1, "tanh", 0.0, 1.0, 0.7],
    "bias_act_second-swish": [X, None, X, X, (6,), None, 1, "swish", 0.0, 1.0, -1.0],
    "pixel_norm_second": [X, X, X, 1, 1e-8],
    "bias_act_pixel_norm_second": [X, (6,), X, X, (6,), "tanh", 0.0, 1.0, 1e-8],
    "bias_act_pixel_norm_second-nobias": [X, None, X, X, None, "lrelu", 0.2, 1.0, 1e-8],
    "minibatch_stddev_second": [X, (4, 9, 5, 3), X, 2, 3, 1e-8],
    "modulated_conv2d_backward-all": [Y, Y, *LAYER_INPUTS, Y, None, [True] * 8, 2, 1, True, *GENERAL, "both"],
    "modulated_conv2d_second": [
        *(X, (4, 8), (4, 8), Y, Y, X, W, (4, 8), (10, 6), (), B, F4, (4, 8), Y, (4, 8), (4, 8)),
        *([True] * 5, 2, 1, True, "lrelu", 0.2, 1.4, -1.0, "both"),
    ],
    "demodulate_backward-all": [(4, 8), (8, 6), S, (4, 8), [True, True]],
    "demodulate_second": [S, (4, 8), (8, 6), S, (4, 8), True],
    "prepare_weights_backward": [(96,), (14,), (96,), *PREPARED],
    "residual_branches_backward": [(4, 8, 6, 4), (4, 6, 3, 2), (4, 6, 6, 4), W, F4, True, 1],
}
ELSEWHERE = ("upfirdn2d_bias_act", "bias_act_upfirdn2d", "conv2d_bias_act", "synthesis", "discriminator")  # test_*


def operands(spec, dtype, channels_last, grad):
    made = []
    for i, v in enumerate(spec):
        if isinstance(v, tuple):
            v = rand(*v, seed=i, dtype=dtype, channels_last=channels_last and len(v) == 4, grad=grad)
        made.append(v)
    return made


@pytest.mark.unforced
def test_every_registered_op_is_checked():
    registered = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("gankern::")}
    registered = {name for name in registered if not name.startswith(ELSEWHERE)}
    assert registered == {name.split("-")[0] for name in REGISTERED | NOT_AUTOGRAD}


@pytest.mark.parametrize("name", REGISTERED | NOT_AUTOGRAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@FORMATS
def test_opcheck(name, dtype, channels_last, impl):
    """No kernel of a layer chooses by format and type together, so that each of the two on one side will do there."""
    spare(impl, not name.startswith("modulated_conv2d") or channels_last == (dtype == torch.float64))
    op = getattr(torch.ops.gankern, name.split("-")[0]).default
    args = operands((REGISTERED | NOT_AUTOGRAD)[name], dtype, channels_last, grad=name in REGISTERED)
    args += [] if name.startswith(("conv2d", "grid_sample")) else [impl]
    checks = ["test_schema", "test_faketensor", "test_autograd_registration"]
    checks += ["test_aot_dispatch_dynamic"] * (dtype == torch.float32 and not channels_last)
    torch.library.opcheck(op, args, test_utils=checks)


# -- strides, formats, fakes -------------------------------------------------------------------------------------------


@EVERY
@FORMATS
@pytest.mark.parametrize("n", [0, 1, 4])
def test_fakes_match(call, channels_last, n):
    """Shapes, dtypes and strides of the value and every gradient under FakeTensorMode are the real ones."""
    fn, inputs = CALLS[call][0], tensors(call, channels_last=channels_last, n=n)
    dy = torch.empty_like(fn(*inputs)).fill_(1)
    real = first_order(fn, inputs, dy)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = first_order(fn, [mode.from_tensor(t) for t in inputs], mode.from_tensor(dy))
    for got, want in zip(fake, real, strict=True):
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        if want.numel():
            assert got.stride() == want.stride()


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_meta(call, dtype):
    fn, inputs = CALLS[call][0], tensors(call)
    real = first_order(fn, inputs)
    on_meta = [t.detach().to("meta", dtype).requires_grad_() for t in inputs]
    got = first_order(fn, on_meta)
    assert [(t.shape, t.stride()) for t in got] == [(t.shape, t.stride()) for t in real]
    assert all(t.device.type == "meta" and t.dtype == dtype for t in got)


@EVERY
@FORMATS
def test_gradients_of_any_strides(call, channels_last):
    """Stride-0, sliced and transposed gradients give the same as contiguous ones."""
    fn, inputs = CALLS[call][0], tensors(call, torch.float64, channels_last)
    y = fn(*inputs)
    sliced = rand(*y.shape[:3], 2 * y.shape[3])[..., ::2]
    transposed = rand(y.shape[1], y.shape[0], y.shape[3], y.shape[2]).permute(1, 0, 3, 2)
    for dy in (torch.ones((), dtype=y.dtype).expand(y.shape), sliced, transposed, rand(*y.shape[2:]).expand(y.shape)):
        got, want = first_order(fn, inputs, dy), first_order(fn, inputs, dy.clone().contiguous())
        for a, b in zip(got, want, strict=True):
            assert_close(a, b, 1e-12)
    y.sum().backward()
    for t, b in zip(inputs, first_order(fn, inputs)[1:], strict=True):
        assert_close(t.grad, b, 1e-12)


@EVERY
def test_inputs_of_any_strides(call):
    fn, inputs = CALLS[call][0], tensors(call, torch.float64)
    want = first_order(fn, inputs)
    views = []
    for t in inputs:
        wide = torch.full([*t.shape[:-1], 2 * t.shape[-1]], torch.nan, dtype=t.dtype)[..., ::2]
        turned = torch.full(t.shape[::-1], torch.nan, dtype=t.dtype).permute(*range(t.ndim)[::-1])
        views.append([v.copy_(t.detach()).requires_grad_() for v in (wide, turned)])
    for some in zip(*views, strict=True):
        for a, b in zip(first_order(fn, list(some)), want, strict=True):
            assert_close(a, b, 1e-12)


@EVERY
@FORMATS
def test_memory_format_changes_no_number(call, channels_last):
    fn = CALLS[call][0]
    inputs, plain = tensors(call, torch.float64, channels_last), tensors(call, torch.float64)
    names = [f"t{i}" for i in range(len(inputs))]
    got, want = (derivatives(lambda **t: fn(*t.values()), dict(zip(names, t, strict=True))) for t in (inputs, plain))
    for name in want:
        assert_close(got[name], want[name], 1e-11, name)


@EVERY
@FORMATS
def test_empty_batch(call, channels_last):
    fn, inputs = CALLS[call][0], tensors(call, torch.float64, channels_last, n=0)
    y, *grads = first_order(fn, inputs)
    assert y.shape[0] == 0
    assert y.shape[1:] == fn(*tensors(call, torch.float64)).shape[1:]
    for t, g in zip(inputs, grads, strict=True):
        assert g.shape == t.shape
        assert g.count_nonzero() == 0


# -- which implementation ----------------------------------------------------------------------------------------------

CHOOSERS = {
    "bias_act": lambda impl: ops.bias_act(torch.zeros(1, 2), impl=impl),
    "pixel_norm": lambda impl: ops.pixel_norm(torch.zeros(1, 2), impl=impl),
    "bias_act_pixel_norm": lambda impl: ops.bias_act_pixel_norm(torch.zeros(1, 2), impl=impl),
    "minibatch_stddev": lambda impl: ops.minibatch_stddev(torch.zeros(1, 2, 3, 3), impl=impl),
    "upfirdn2d": lambda impl: ops.upfirdn2d(torch.zeros(1, 2, 3, 3), None, impl=impl),
    "modulated_conv2d": lambda impl: ops.modulated_conv2d(
        torch.zeros(1, 2, 3, 3), torch.zeros(2, 2, 1, 1), torch.zeros(1, 2), impl=impl
    ),
}


@EVERY
def test_autocast_changes_nothing(call):
    """Neither values nor gradients to second order, but where demodulation is a plain product, whose gradients are
    PyTorch's."""
    fn, inputs = CALLS[call][0], tensors(call)

    def numbers():
        y = fn(*inputs)
        dy = torch.ones_like(y)
        first = torch.autograd.grad(y, inputs, dy.requires_grad_(), create_graph=True)
        second = torch.autograd.grad(first, [dy, *inputs], [g.detach().sin() for g in first], allow_unused=True)
        return [y, *first, *second]

    want = numbers()
    with torch.autocast("cpu", torch.bfloat16):
        got = numbers()
    compared = slice(1 if call.startswith("modulated") else None)
    for a, b in zip(got[compared], want[compared], strict=True):
        assert a is b is None or (a.dtype == b.dtype and a.equal(b))


def test_gradients_of_demodulation_under_autocast():
    energy, styles = (rand(n, 6, seed=n, dtype=torch.float32, grad=True) for n in (8, 4))
    want = torch.autograd.grad(ops.demodulate(energy.square(), styles).sum(), (energy, styles), create_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        d = ops.demodulate(energy.square(), styles)
        got = torch.autograd.grad(d.sum(), (energy, styles), create_graph=True)
    assert all(a.equal(b) for a, b in zip(got, want, strict=True))


@pytest.mark.unforced
@pytest.mark.parametrize("op", CHOOSERS)
def test_impl_argument(op, monkeypatch):
    CHOOSERS[op]("reference")
    with pytest.raises(ValueError, match=f"impl='nonsense': {op} is available as .*reference"):
        CHOOSERS[op]("nonsense")
    monkeypatch.setenv("GANKERN_IMPL", "nonsense")
    with pytest.raises(ValueError, match=f"GANKERN_IMPL='nonsense': {op} is available as"):
        CHOOSERS[op](None)
    CHOOSERS[op]("reference")
    with use_impl("reference"):
        CHOOSERS[op](None)
    monkeypatch.setenv("GANKERN_IMPL", "reference")
    CHOOSERS[op](None)


@pytest.mark.unforced
def test_use_impl_nests_and_ends(monkeypatch):
    def choice():
        reported = ops.implementations()["pixel_norm"]["choice"]
        assert ops._impl.choose("pixel_norm", None, torch.zeros(1, 2)) == reported
        return reported

    monkeypatch.setenv("GANKERN_IMPL", "triton")
    monkeypatch.setitem(ops._impl._declared, "pixel_norm", ("triton", "reference"))
    assert choice() == "triton"
    with use_impl("reference"):
        assert choice() == "reference"
        with use_impl("triton"):
            assert choice() == "triton"
        assert choice() == "reference"
    with pytest.raises(KeyError), use_impl("reference"):
        raise KeyError
    assert choice() == "triton"


@pytest.mark.unforced
def test_use_impl_refuses_unknown_names():
    with pytest.raises(ValueError, match=r"expected one of reference, triton, triton_gemm, cuda, cudnn$"):
        use_impl("nonsense").__enter__()


@pytest.mark.unforced
def test_implementations_reports_choice_and_reason(monkeypatch):
    report = ops.implementations()
    assert set(CHOOSERS) <= set(report)
    for entry in report.values():
        assert set(entry) == {"choice", "why", "available"}
        assert entry["choice"] in entry["available"].split(", ")
    with use_impl("reference"):
        assert {e["why"] for e in ops.implementations().values()} == {"forced by use_impl"}
    monkeypatch.setenv("GANKERN_IMPL", "nonsense")
    assert all("GANKERN_IMPL=nonsense, which" in e["why"] for e in ops.implementations().values())


# -- torch.compile -----------------------------------------------------------------------------------------------------


def fixed(call):
    """The call with its filters made beforehand, so that the graph holds nothing but the operator."""
    if call == "modulated_conv2d-up":
        return lambda x, w, s, n, b: ops.modulated_conv2d(x, w, s, n, 2, resample_filter=F4, bias=b, **LAYER)
    return CALLS[call][0]


@pytest.mark.parametrize(
    "call",
    ["bias_act", "bias_act-swish", "pixel_norm", "bias_act_pixel_norm", "minibatch_stddev", "modulated_conv2d-up"],
)
def test_compiles_whole(call):
    """Forward and backward in one graph each, with the eager numbers."""
    inputs = tensors(call)
    torch._dynamo.reset()
    compiled = torch.compile(fixed(call), fullgraph=True, backend="aot_eager")
    for got, want in zip(first_order(compiled, inputs), first_order(fixed(call), inputs), strict=True):
        assert torch.equal(got, want)


def penalty_gradients(fn, inputs, wrt):
    """Gradients of |d Σ fn² / dx|² with respect to some of the inputs, by their places."""
    (dx,) = torch.autograd.grad(fn(*inputs).square().sum(), inputs[0], create_graph=True)
    return torch.autograd.grad(dx.square().sum(), [inputs[i] for i in wrt])


@pytest.mark.parametrize("call", ["bias_act-swish", "pixel_norm", "modulated_conv2d"])
def test_a_compiled_function_refuses_a_gradient_penalty(call):
    """torch.compile's own word on double backward: an error, not other numbers."""
    inputs = tensors(call, torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(fixed(call), fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="double backward"):
        penalty_gradients(compiled, inputs, [0])


@pytest.mark.skipif(not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="needs a newer torch")
@pytest.mark.parametrize(
    "call", ["bias_act-swish", "pixel_norm", "bias_act_pixel_norm", "minibatch_stddev", "modulated_conv2d"]
)
def test_a_penalty_compiled_whole_gives_the_eager_gradients(call):
    fn, inputs = fixed(call), tensors(call, torch.float64)
    wrt = {"modulated_conv2d": [0, 1, 2], "pixel_norm": [0], "minibatch_stddev": [0]}.get(call, [0, 1])
    torch._dynamo.reset()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(lambda *t: penalty_gradients(fn, t, wrt), fullgraph=True, backend="aot_eager")
        got = compiled(*inputs)
    for a, b in zip(got, penalty_gradients(fn, inputs, wrt), strict=True):
        assert_close(a, b, 1e-10)
