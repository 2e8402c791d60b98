"""instance_norm: parity with PyTorch's, every kind of affine, derivatives, split planes, half types, the contract."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from ops_util import (
    assert_close,
    assert_half_error,
    assert_same_derivatives,
    check_gradients,
    derivatives,
    is_format,
    rand,
)
from torch._subclasses import FakeTensorMode

from gankern.ops import (
    _impl,
    bias_act_reference,
    default_gain,
    instance_norm,
    instance_norm_reference,
    no_weight_gradients,
)
from gankern.ops._triton import CONFIGS, force_config

IMPLS = ("reference", "triton")

ACTS = ("linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish")
KINDS = (None, "C", "NC", "NCHW")
FORMATS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])


def truth(x, weight=None, bias=None, act="linear", alpha=0.2, gain=None, eps=1e-5, biased=True, weight_offset=0.0):
    """PyTorch's instance_norm, or the definition for the unbiased variance, and then an affine and an activation."""
    if biased and x[0, 0].numel() > 1:
        h = F.instance_norm(x, eps=eps)
    else:
        flat = x.flatten(2)
        d = flat - flat.mean(2, keepdim=True)
        h = (d / (d.square().sum(2, keepdim=True) / (flat.shape[2] - (not biased)) + eps).sqrt()).reshape(x.shape)
    for t, f in ((weight, lambda h, t: h * (t + weight_offset)), (bias, torch.add)):
        if t is not None:
            t = t[None] if t.ndim == 1 else t
            h = f(h, t.reshape(*t.shape, *[1] * (x.ndim - t.ndim)))
    return bias_act_reference(h, None, 1, act, alpha, default_gain(act) if gain is None else gain)


def inputs_of(shape, weight=None, bias=None, dtype=torch.float64, channels_last=False, grad=True):
    """x, and a weight and bias of those kinds; a few times off zero mean and unit variance."""
    shapes = {"C": shape[1:2], "NC": shape[:2], "NCHW": shape}
    made = {"x": rand(*shape, dtype=dtype, channels_last=channels_last) * 3 + 2}
    for i, (name, kind) in enumerate((("weight", weight), ("bias", bias))):
        if kind:
            made[name] = rand(*shapes[kind], seed=i + 1, dtype=dtype, channels_last=channels_last and kind == "NCHW")
    return {k: t.requires_grad_(grad) for k, t in made.items()}


@contextlib.contextmanager
def split(tile=32):
    """Planes of more than 4·tile pixels are split, in chunks of several tiles."""
    with contextlib.ExitStack() as stack:
        for name in ("forward", "backward", "sums", "statistics"):
            settings = {"TILE": tile, "num_warps": 1} | ({"CHUNK": 2 * tile} if name == "statistics" else {})
            stack.enter_context(force_config(f"instance_norm_{name}", settings))
        yield


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("act", ["linear", "lrelu", "tanh", "swish"])
def test_gradcheck(act, kind, impl):
    tensors = inputs_of((2, 2, 2, 3), kind, kind)
    run = lambda *t: instance_norm(*t, act=act, eps=0.1, weight_offset=0.3)  # noqa: E731
    check_gradients(run, *tensors.values(), fast=impl != "reference")


@FORMATS
@pytest.mark.parametrize("act", ACTS)
def test_parity(act, channels_last):
    inputs = inputs_of((2, 3, 5, 3), "C", "C", channels_last=channels_last)
    args = {"act": act, "eps": 0.02, "weight_offset": 1.0}
    assert_same_derivatives(lambda **t: instance_norm(**t, **args), lambda **t: truth(**t, **args), inputs, 1e-9)
    # the reference takes numbers alone; the activation's own alpha and gain are `instance_norm`'s business
    numbers = args | {"alpha": 0.2, "gain": default_gain(act)}
    assert_close(instance_norm_reference(**inputs, **numbers), truth(**inputs, **args), 1e-12)


@FORMATS
@pytest.mark.parametrize("bias", KINDS)
@pytest.mark.parametrize("weight", KINDS)
def test_parity_of_every_affine(weight, bias, channels_last):
    inputs = inputs_of((2, 3, 3, 4), weight, bias, channels_last=channels_last)
    args = {"act": "tanh", "gain": 1.7, "weight_offset": 0.5}
    assert_same_derivatives(lambda **t: instance_norm(**t, **args), lambda **t: truth(**t, **args), inputs, 1e-9)


@pytest.mark.parametrize("shape", [(1, 1, 63), (3, 1, 1, 2), (1, 3, 123, 1), (2, 5, 1, 1), (2, 2, 3, 2, 3)], ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_parity_of_odd_shapes(shape, biased):
    if not biased and shape[-1] == shape[-2] == 1:
        pytest.skip("one pixel has no unbiased variance")
    inputs, args = inputs_of(shape, "NC", "C"), {"biased": biased, "eps": 1e-3, "act": "lrelu", "alpha": 0.1}
    assert_same_derivatives(lambda **t: instance_norm(**t, **args), lambda **t: truth(**t, **args), inputs, 1e-8)


@pytest.mark.kernels
@FORMATS
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("weight", "bias"), [(None, None), ("C", "NC"), ("NCHW", "C"), ("NCHW", "NCHW")])
def test_split_planes(weight, bias, biased, channels_last, impl):
    """Planes that don't fit a tile: chunks, several tiles a chunk, a last chunk that isn't full."""
    inputs = inputs_of((2, 3, 5, 43) if biased else (1, 2, 150), weight, bias)
    if channels_last and biased:
        inputs = {k: t.detach() for k, t in inputs.items()}
        to = lambda t: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t  # noqa: E731
        inputs = {k: to(t).requires_grad_() for k, t in inputs.items()}
    args = {"act": "tanh", "biased": biased, "weight_offset": 0.5}
    with split(), _launches() as names:
        assert_same_derivatives(lambda **t: instance_norm(**t, **args), lambda **t: truth(**t, **args), inputs, 1e-9)
    assert {"instance_norm_statistics", "instance_norm_sums", "instance_norm_backward"} <= set(names)


@contextlib.contextmanager
def _launches():
    """The names of the kernels launched."""
    from gankern.ops.instance_norm import kernels, statistics

    names, patch = [], pytest.MonkeyPatch()
    for module in (kernels, statistics):
        plain = module.launch
        patch.setattr(module, "launch", lambda k, name, *a, plain=plain: (names.append(name), plain(k, name, *a)))
    yield names
    patch.undo()


@pytest.mark.kernels
@FORMATS
@pytest.mark.parametrize("name", ["forward", "backward", "sums", "statistics"])
def test_every_setting(name, channels_last, impl):
    import gankern.ops.instance_norm.kernels  # noqa: F401  (declares the settings)

    inputs = inputs_of((2, 3, 9, 7), "NC", "C", channels_last=channels_last)
    args = {"act": "lrelu"}
    want = derivatives(lambda **t: truth(**t, **args), inputs)
    of_split_planes = name in ("sums", "statistics")
    for settings in CONFIGS[f"instance_norm_{name}"]:
        settings = settings | ({"TILE": 8} if name == "statistics" else {})  # several tiles a chunk
        with split(8) if of_split_planes else contextlib.nullcontext(), force_config(f"instance_norm_{name}", settings):
            got = derivatives(lambda **t: instance_norm(**t, **args), inputs)
        for key in want:
            assert_close(got[key], want[key], 1e-9, key)


@pytest.mark.parametrize("planes", ["whole", "split"])
def test_a_large_mean(planes):
    """Deviations of 0.1 around 1000 keep their digits: no mean of squares is taken."""
    x = 1000 + 0.1 * rand(2, 2, 300, dtype=torch.float32)
    with split() if planes == "split" else contextlib.nullcontext():
        y = instance_norm(x)
    assert_close(y, truth(x.double()), 2e-3)


def test_a_sample_is_the_same_in_any_batch():
    x = inputs_of((3, 2, 5, 43), dtype=torch.float32, grad=False)["x"]
    with split():
        assert torch.equal(instance_norm(x)[1:2], instance_norm(x[1:2].clone()))


@pytest.mark.parametrize("act", ["linear", "lrelu", "swish"])
@pytest.mark.parametrize(("weight", "bias"), [("C", "C"), ("NC", "NC"), ("NCHW", "NCHW")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half(act, weight, bias, dtype):
    inputs = inputs_of((3, 5, 9, 7), weight, bias, grad=False)
    kinks = [0] if act == "lrelu" else []
    assert_half_error(lambda **t: instance_norm(**t, act=act), lambda **t: truth(**t, act=act), inputs, dtype, kinks)


# -- gradients that are wanted ----------------------------------------------------------------------------------------


def test_gradient_of_the_parameters_alone():
    inputs = inputs_of((2, 3, 4, 4), "C", "NC")
    x = inputs.pop("x").detach()
    got = torch.autograd.grad(instance_norm(x, **inputs, act="tanh").sum(), list(inputs.values()))
    want = torch.autograd.grad(truth(x, **inputs, act="tanh").sum(), list(inputs.values()))
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-10)


def test_no_weight_gradients():
    inputs = inputs_of((2, 3, 4, 4), "C", "NCHW")
    with no_weight_gradients():
        instance_norm(**inputs).sum().backward()
    assert inputs["x"].grad is not None
    assert inputs["weight"].grad is None
    assert inputs["bias"].grad is None


def test_gradient_penalty_reaches_the_parameters():
    """The gradient penalty without weight gradients: second order is whole."""
    grads = []
    for run in (instance_norm, truth):
        inputs = inputs_of((2, 3, 4, 4), "NC", "NC")
        with no_weight_gradients():
            (dx,) = torch.autograd.grad(run(**inputs, act="tanh").sum(), inputs["x"], create_graph=True)
        dx.square().sum().backward()
        grads.append([t.grad for t in inputs.values()])
    for got, want in zip(*grads, strict=True):
        assert_close(got, want, 1e-9)


# -- the contract -----------------------------------------------------------------------------------------------------

X = (2, 3, 5, 4)


@FORMATS
@pytest.mark.parametrize("kind", ["C", "NCHW"])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_fakes_match(n, kind, channels_last):
    """Shapes, dtypes and strides of the value and every gradient under FakeTensorMode are the real ones."""

    def first_order(inputs, dy):
        y = instance_norm(**inputs, act="lrelu")
        return [y, *torch.autograd.grad(y, list(inputs.values()), dy)]

    inputs = inputs_of((n, *X[1:]), kind, kind, torch.float32, channels_last)
    dy = torch.empty_like(inputs["x"]).fill_(1)
    real = first_order(inputs, dy)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = first_order({k: mode.from_tensor(t) for k, t in inputs.items()}, mode.from_tensor(dy))
    for got, want in zip(fake, real, strict=True):
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        if want.numel():
            assert got.stride() == want.stride()
    assert n == 0 or is_format(real[1], channels_last)
    if n == 0:
        assert all(g.count_nonzero() == 0 for g in real[1:])


@FORMATS
@pytest.mark.parametrize("kind", ["NC", "NCHW"])
def test_any_strides(kind, channels_last):
    """Stride-0 and sliced gradients, sliced and turned inputs."""
    inputs = inputs_of(X, kind, kind, channels_last=channels_last)
    wrt = list(inputs.values())
    y = instance_norm(*wrt, act="tanh")
    for dy in (torch.ones((), dtype=y.dtype).expand(y.shape), rand(*X[:3], 8)[..., ::2], rand(*X[2:]).expand(y.shape)):
        got = torch.autograd.grad(y, wrt, dy, retain_graph=True)
        for a, b in zip(got, torch.autograd.grad(y, wrt, dy.contiguous(), retain_graph=True), strict=True):
            assert_close(a, b, 1e-12)
    want = torch.autograd.grad(y, wrt, torch.ones_like(y))
    wide = [torch.full([*t.shape[:-1], 2 * t.shape[-1]], torch.nan, dtype=t.dtype)[..., ::2] for t in wrt]
    turned = [torch.full(t.shape[::-1], torch.nan, dtype=t.dtype).permute(*range(t.ndim)[::-1]) for t in wrt]
    for views in (wide, turned):
        views = [v.copy_(t.detach()).requires_grad_() for v, t in zip(views, wrt, strict=True)]
        got = torch.autograd.grad(instance_norm(*views, act="tanh").sum(), views)
        for a, b in zip(got, want, strict=True):
            assert_close(a, b, 1e-12)


@FORMATS
@pytest.mark.parametrize("name", ["instance_norm", "instance_norm-pixel", "backward", "backward-linear"])
def test_opcheck(name, channels_last, impl):
    kinds = ("NCHW", "NCHW") if name.endswith("pixel") else ("NC", "C")
    tensors = list(inputs_of(X, *kinds, torch.float32, channels_last).values())
    constants = ["lrelu" if name != "backward-linear" else "linear", 0.2, 1.4, 1e-3, False, 0.5, impl]
    if name.startswith("backward"):
        op = torch.ops.gankern.instance_norm_backward.default
        dy = rand(*X, seed=5, dtype=torch.float32, channels_last=channels_last, grad=True)
        tensors = [dy, *tensors[:2], None if name == "backward-linear" else tensors[2], True, 1]
    else:
        op = torch.ops.gankern.instance_norm.default
    checks = ["test_schema", "test_faketensor", "test_autograd_registration"]
    if impl == "reference" and not channels_last:
        checks.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(op, [*tensors, *constants], test_utils=checks)


def test_compiles_whole():
    inputs = inputs_of(X, "NC", "C", torch.float32)

    def run(x, weight, bias):
        return instance_norm(x, weight, bias, act="lrelu")

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for got, want in zip(*([y, *_grads(y, inputs)] for y in (compiled(**inputs), run(**inputs))), strict=True):
        assert torch.equal(got, want)


def _grads(y, inputs):
    return torch.autograd.grad(y.square().sum(), list(inputs.values()))


@pytest.mark.kernels
@FORMATS
@pytest.mark.parametrize("size", [(16, 16), (256, 256)], ids=str)
def test_a_batch_compiles_nothing_anew(size, channels_last, impl):
    """Constants, shape classes and specialised numbers don't depend on the batch."""

    def launches(n):
        x = torch.empty(n, 32, *size, device="meta", dtype=torch.bfloat16)
        x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        w, b = (torch.empty(n, 32, device="meta", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
        with _impl.record() as found:
            instance_norm(x.requires_grad_(), w, b, act="lrelu").backward(x.detach())
        seen = []
        for la in found:
            numbers = [n for n in la.kernel.arg_names if n not in la.constants]
            numbers = {n: v for n, v in zip(numbers, la.args, strict=True) if isinstance(v, int)}
            assert numbers.pop("outer") % n == 0  # the one that isn't specialised
            seen.append((la.name, la.key, la.constants, la.config, numbers))
        return seen

    assert launches(3) == launches(16)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"x": torch.zeros(2, 3)}, r"x is torch.float32 of shape \(2, 3\), expected .*\[N, C, \*spatial\]"),
        ({"x": torch.zeros(2, 3, 4, dtype=torch.int32)}, r"x is torch.int32"),
        ({"weight": torch.zeros(2)}, r"weight has shape \(2,\), expected one of \(3,\), \(2, 3\), \(2, 3, 4, 4\)"),
        ({"bias": torch.zeros(2, 3, 1, 1)}, r"bias has shape \(2, 3, 1, 1\), expected"),
        ({"bias": torch.zeros(3, dtype=torch.float16)}, r"bias is torch.float16.*expected x's torch.float32"),
        ({"weight": torch.zeros(3, device="meta")}, r"weight is .*meta, expected x's"),
        (
            {"x": torch.zeros(2, 3, 1), "biased": False},
            r"biased=False with x of .*, expected two pixels",
        ),
        ({"act": "gelu"}, r"act='gelu', expected one of linear, relu"),
        ({"impl": "cuda"}, r"impl='cuda': instance_norm is available as triton, reference"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        instance_norm(**({"x": torch.zeros(2, 3, 4, 4)} | kwargs))
