"""conv2d_bias_act: torch's own operators to second order, in every implementation; cuDNN's graph, and what it skips."""

import functools

import pytest
import torch
import torch.nn.functional as F
from ops_util import assert_close, assert_half_error, assert_same_derivatives, check_gradients, derivatives, rand
from torch._subclasses import FakeTensorMode

from gankern import ops
from gankern.bench.account import count
from gankern.models.progan import Discriminator
from gankern.nn.layers import EqualizedConv2d
from gankern.ops import _impl

pytestmark = pytest.mark.unforced
SLOPE = 0.2
FORMS = {  # stride, padding, kernel, keyword arguments
    "fromrgb": (1, 0, 1, {}),
    "conv": (1, 1, 3, {"gain": 0.7, "alpha": 0.3}),
    "down": (2, 0, 3, {"gain": -0.5}),
    "merged": (2, 1, 4, {"gain": 1.0}),
    "skip": (1, 0, 1, {"act": "linear", "gain": 1.3}),
}
FORM = pytest.mark.parametrize("form", FORMS)
SUM = pytest.mark.parametrize("summed", [False, True], ids=["alone", "residual"])


def tensors(form, summed=False, bias=True, dtype=torch.float64, channels_last=True, n=2, size=(7, 6)):
    stride, padding, k, _ = FORMS[form]
    found = {"x": rand(n, 3, *size, dtype=dtype, channels_last=channels_last), "weight": rand(4, 3, k, k, dtype=dtype)}
    if bias:
        found["bias"] = rand(4, dtype=dtype)
    if summed:
        shape = F.conv2d(found["x"], found["weight"], None, stride, padding).shape
        found["residual"] = rand(*shape, seed=1, dtype=dtype, channels_last=channels_last)
    return {name: t.requires_grad_() for name, t in found.items()}


def ours(form, impl=None, **more):
    stride, padding, _, kwargs = FORMS[form]

    def call(x, weight, bias=None, residual=None):
        args = kwargs | more
        return ops.conv2d_bias_act(x, weight, bias, stride, padding, residual=residual, impl=impl, **args)

    return call


def plain(form, clamp=None):
    stride, padding, _, kwargs = FORMS[form]
    act, alpha = kwargs.get("act", "lrelu"), kwargs.get("alpha", SLOPE)
    gain = kwargs.get("gain", 2**0.5)

    def call(x, weight, bias=None, residual=None):
        u = F.conv2d(x, weight, bias, stride, padding)
        y = gain * (u if act == "linear" else F.leaky_relu(u, alpha))
        y = y if clamp is None else y.clamp(-clamp, clamp)
        return y if residual is None else y + residual

    return call


# -- numbers -----------------------------------------------------------------------------------------------------------


@FORM
@SUM
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_reference_to_second_order(form, summed, channels_last):
    assert_same_derivatives(ours(form), plain(form), tensors(form, summed, channels_last=channels_last), 1e-11)


@pytest.mark.parametrize("chosen", ["triton", "cuda"])
@pytest.mark.parametrize("form", ["down", "conv"])
def test_the_passes_of_the_kernels(form, chosen, request):
    if not _impl.interpreting():
        pytest.skip("runs on the CPU in Triton's interpreter, which a process with a GPU leaves off")
    if chosen == "cuda":
        request.getfixturevalue("host_build")
    inputs = tensors(form, summed=form == "down")
    assert_same_derivatives(ours(form, chosen, clamp=0.8), plain(form, 0.8), inputs, 1e-11)


@FORM
@SUM
@pytest.mark.parametrize("bias", [False, True], ids=["nobias", "bias"])
def test_the_graph_to_second_order(fused_graphs, form, summed, bias):
    """Each call is one graph, and the gradients written from its results are autograd's."""
    inputs = tensors(form, summed, bias)
    assert_same_derivatives(ours(form, "cudnn"), plain(form), inputs, 1e-10)
    assert [graph.name for graph in fused_graphs] == ["conv"]


@SUM
def test_numerical_derivatives_of_the_graph(fused_graphs, summed):
    inputs = tensors("down", summed, n=1, size=(5, 4))
    check_gradients(lambda *t: ours("down", "cudnn")(*t), *inputs.values())
    assert fused_graphs


@SUM
def test_half_precision(fused_graphs, summed):
    """Closer to the truth than convolution, activation and sum with a rounding after each."""
    assert_half_error(ours("conv", "cudnn"), plain("conv"), tensors("conv", summed), torch.bfloat16, kinks=(0.0,))


def test_no_weight_gradients(fused_graphs):
    inputs = tensors("conv", summed=True)
    y = ours("conv", "cudnn")(**inputs)
    with ops.no_weight_gradients():
        grads = torch.autograd.grad(y.sum(), list(inputs.values()), allow_unused=True, create_graph=True)
    assert [g is None for g in grads] == [False, True, True, False]
    x, w = inputs["x"], inputs["weight"]
    got = torch.autograd.grad(grads[0].square().sum(), w)[0]
    (dx,) = torch.autograd.grad(plain("conv")(**inputs).sum(), x, create_graph=True)
    assert_close(got, torch.autograd.grad(dx.square().sum(), w)[0], 1e-11)


# -- what is in the kernel, and what isn't -----------------------------------------------------------------------------


def written(graph):
    return [name for name, _, _ in graph.outputs]


def test_y_before_the_sum_is_written_for_a_gradient_alone(fused_graphs):
    inputs = tensors("conv", summed=True)
    y = ours("conv", "cudnn")(**inputs)
    with torch.no_grad():
        assert ours("conv", "cudnn")(**inputs).equal(y)
    only_residual = {name: t.detach() for name, t in inputs.items()} | {"residual": inputs["residual"]}
    y = ours("conv", "cudnn")(**only_residual)
    assert torch.autograd.grad(y.sum(), only_residual["residual"])[0].eq(1).all()
    ours("skip", "cudnn")(**tensors("skip", summed=True))
    assert [written(graph) for graph in fused_graphs] == [["before", "y"], ["y"], ["y"], ["y"]]
    assert ["gain" in dict(graph.inputs) for graph in fused_graphs] == [True] * 4


COMPOSED = {
    "clamp": ({"clamp": 0.8}, {}),
    "tanh": ({"act": "tanh"}, {}),
    "nchw": ({}, {"channels_last": False}),
    "empty": ({}, {"n": 0}),
}


@pytest.mark.parametrize("case", COMPOSED)
def test_what_the_kernel_leaves_out_is_composed(fused_graphs, case):
    kwargs, of_tensors = COMPOSED[case]
    inputs = tensors("conv", **of_tensors)
    got, want = (ours("conv", impl, **kwargs)(**inputs) for impl in ("cudnn", "reference"))
    assert got.equal(want)
    assert not fused_graphs


def test_a_refused_graph_is_composed(fused_graphs, monkeypatch):
    asked = []
    monkeypatch.setattr("gankern.ops.cudnn.conv.accepts", lambda graph, *_: asked.append(graph))
    inputs = tensors("down", summed=True)
    assert_same_derivatives(ours("down", "cudnn"), plain("down"), inputs, 1e-11)
    assert [written(graph) for graph in asked] == [["before", "y"]]
    assert not fused_graphs


def test_a_convolution_alone_stays_the_librarys(fused_graphs):
    inputs = tensors("skip", bias=False)
    for impl in ("reference", "cudnn"):
        y = ours("skip", impl, gain=1)(**inputs)
        assert "conv2d" in y.grad_fn.name()
        assert "bias_act" not in y.grad_fn.name()
    assert not fused_graphs


def test_bytes_of_a_layer_with_a_residual():
    """Forward x and the residual in, y out with and without the sum; composed, the convolution's result in and out."""
    n, c, r = 8, 64, 64
    a = n * c * r * r * 2

    def meta(*shape):
        t = torch.empty(shape, dtype=torch.bfloat16, device="meta")
        return t.to(memory_format=torch.channels_last if t.ndim == 4 else torch.contiguous_format).requires_grad_()

    inputs = [meta(n, c, r, r), meta(c, c, 3, 3), meta(c)]
    residual = meta(n, c, r, r)
    for impl, launches, passes in (("cudnn", ["conv"], 4), ("triton", ["aten::convolution", "bias_act_forward"], 5)):
        with ops.use_impl(impl):
            call = functools.partial(ops.conv2d_bias_act, *inputs, 1, 1, gain=1, residual=residual)
            forward, y = count(call), call()
            backward = count(functools.partial(torch.autograd.grad, y, [*inputs, residual], torch.empty_like(y)))
        assert [f.name for f in forward.calls] == launches
        assert passes * a <= forward.bytes <= (passes + 0.1) * a
        assert 7 * a <= backward.bytes <= 7.1 * a  # the pass: two in, one out; each of the convolution's gradients: 2


# -- in the networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("down", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_an_equalized_convolution(fused_graphs, monkeypatch, kernel, down):
    """The filter stays in front of the graph, and the gain is in the weight."""
    torch.manual_seed(0)
    layer = EqualizedConv2d(3, 4, kernel, act="lrelu", down=down).double()
    x, root2 = rand(2, 3, 8, 6, channels_last=True), 2**0.5
    w, padding = layer.weight * layer.weight_gain, kernel // 2
    u = ops.conv2d_resample(x, w, layer.resample_filter.double(), down=down, padding=padding)
    monkeypatch.setattr(ops, "conv2d_bias_act", functools.partial(ops.conv2d_bias_act, impl="cudnn"))
    assert_close(layer(x, gain=0.5), 0.5 * root2 * F.leaky_relu(u, SLOPE), 1e-12)
    (graph,) = fused_graphs
    assert "gain" not in dict(graph.inputs)


def test_progans_critic(fused_graphs, monkeypatch):
    """From RGB, two convolutions a block and the last: each one graph, in a fade too."""
    torch.manual_seed(0)
    sizes = {
        "img_resolution": 16,
        "channel_base": 64,
        "channel_max": 8,
        "fused_from": 16,
        "compute_dtype": torch.float64,
    }
    critic = Discriminator(**sizes).double()
    inputs = {"img": rand(4, 3, 16, 16)}
    want = derivatives(lambda img: critic(img, 0.5), inputs | {"img": inputs["img"].requires_grad_()})
    monkeypatch.setattr(ops, "conv2d_bias_act", functools.partial(ops.conv2d_bias_act, impl="cudnn"))
    got = derivatives(lambda img: critic(img, 0.5), inputs)
    for name in want:
        assert_close(got[name], want[name], 1e-10, name)
    assert len(fused_graphs) == 2 + 2 * 2 + 1


# -- the operator's contract -------------------------------------------------------------------------------------------

X, W = (4, 6, 5, 3), (8, 6, 3, 3)
SPECS = {
    "residual": [X, W, (8,), (4, 8, 3, 2), True, 2, 1, "lrelu", 0.2, 1.4],
    "alone": [X, W, None, None, False, 1, 1, "lrelu", 0.2, 1.0],
    "linear": [X, W, (8,), None, False, 1, 0, "linear", 0.0, 1.4],
}


@pytest.mark.parametrize("name", SPECS)
def test_opcheck(fused_graphs, name):
    args = [rand(*v, seed=i, grad=True) if isinstance(v, tuple) else v for i, v in enumerate(SPECS[name])]
    checks = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.gankern.conv2d_bias_act.default, [*args, "reference"], test_utils=checks)


def test_both_results_pass_their_gradients_on(fused_graphs):
    x, w, b, residual, *args = [rand(*v, grad=True) if isinstance(v, tuple) else v for v in SPECS["residual"]]
    y, before = torch.ops.gankern.conv2d_bias_act.default(x, w, b, residual, *args, "reference")
    want = 1.4 * F.leaky_relu(F.conv2d(x, w, b, 2, 1), 0.2)
    for got, true in (((y, before), (want + residual, want)), ((before,), (want,))):
        pairs = [
            torch.autograd.grad(v, (x, w, b, residual), [t.detach().sin() for t in true], True, allow_unused=True)
            for v in (got, true)
        ]
        for a, c in zip(*pairs, strict=True):
            assert a is c is None or a.allclose(c, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("chosen", ["reference", "cudnn"])
@pytest.mark.parametrize("form", ["conv", "down"])
def test_fakes_have_the_real_strides(fused_graphs, form, chosen):
    def first_order(inputs, dy=None):
        y = ours(form, chosen)(**inputs)
        return [y, *torch.autograd.grad(y, list(inputs.values()), torch.ones_like(y) if dy is None else dy)]

    inputs = tensors(form, summed=True)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = first_order({name: mode.from_tensor(t) for name, t in inputs.items()})
    for got, want in zip(fake, first_order(inputs), strict=True):
        assert (got.shape, got.dtype, got.stride()) == (want.shape, want.dtype, want.stride())


@pytest.mark.parametrize("chosen", ["reference", "cudnn"])
def test_operands_and_gradients_of_any_strides(fused_graphs, chosen):
    inputs = tensors("down", summed=True)
    y = ours("down", chosen)(**inputs)
    want = torch.autograd.grad(y.sum(), list(inputs.values()))
    views = {}
    for name, t in inputs.items():
        if name != "x":  # whose memory format decides
            t = torch.full([*t.shape[:-1], 2 * t.shape[-1]], torch.nan, dtype=t.dtype)[..., ::2].copy_(t.detach())
        views[name] = t.detach().requires_grad_()
    y = ours("down", chosen)(**views)
    for dy in (torch.ones((), dtype=y.dtype).expand(y.shape), torch.ones(*y.shape[:3], 2 * y.shape[3]).to(y)[..., ::2]):
        got = torch.autograd.grad(y, list(views.values()), dy, retain_graph=True)
        for a, b in zip(got, want, strict=True):
            assert_close(a, b, 1e-12)


def test_autocast_changes_nothing(fused_graphs):
    inputs = tensors("conv", summed=True, dtype=torch.float32)
    found = []
    for on in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            y = ours("conv", "cudnn")(**inputs)
            found.append([y, *torch.autograd.grad(y.sum(), list(inputs.values()))])
    assert all(a.equal(b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("chosen", ["reference", "cudnn"])
def test_compiles_whole(fused_graphs, chosen):
    inputs = tensors("conv", summed=True)
    torch._dynamo.reset()
    compiled = torch.compile(ours("conv", chosen), fullgraph=True, backend="aot_eager")
    got, want = (torch.autograd.grad(f(**inputs).sum(), list(inputs.values())) for f in (compiled, plain("conv")))
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-11)
    assert not fused_graphs


WRONG = {
    "weight has shape": {"weight": (4, 2, 3, 3)},
    r"bias has shape \(3,\)": {"bias": (3,)},
    r"residual is torch.float64 of shape \(2, 4, 7, 5\).*\(2, 4, 7, 6\)": {"residual": (2, 4, 7, 5)},
}


@pytest.mark.parametrize("message", WRONG)
@pytest.mark.parametrize("chosen", ["reference", "cudnn"])
def test_operands_that_do_not_fit(fused_graphs, message, chosen):
    given = tensors("conv") | {name: rand(*shape) for name, shape in WRONG[message].items()}
    with pytest.raises(ValueError, match=message):
        ours("conv", chosen)(**given)


def test_impl_argument():
    with pytest.raises(ValueError, match=r"impl='nonsense': conv2d_bias_act is available as .*cudnn.*reference"):
        ours("conv", "nonsense")(**tensors("conv"))
    with pytest.raises(ValueError, match=r"impl='cudnn': conv2d_bias_act can't run so: x is on cpu"):
        ours("conv", "cudnn")(**tensors("conv"))
    with pytest.raises(ValueError, match="clamp=-1"):
        ours("conv", clamp=-1)(**tensors("conv"))
