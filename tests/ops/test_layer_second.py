"""The modulated layer's fused second order (`second`): derivatives of its gradients with respect to activations."""

import importlib

import pytest
import torch
from ops_util import assert_close, rand
from test_modulated_conv2d import CASES, build, chain_truth

from gankern.bench.traffic import count
from gankern.ops import modulated_conv2d, no_weight_gradients, use_impl
from gankern.ops._triton import CONFIGS, force_config

pytestmark = pytest.mark.usefixtures("few_programs")
importlib.import_module("gankern.ops.modulated_conv2d.second")
IMPLS = ("triton", "cuda")
CASES |= {"path": {"noise": "batch", "bias": True, "act": "lrelu", "gain": 1.3}}
OUTPUTS = {"plain": {}, "next": {"next_styles"}, "both": {"next_styles"}}


def inputs_of(up, outputs, channels_last, **build_args):
    inputs, args = build("path", channels_last=channels_last, **build_args)
    if up == 2:
        inputs, args = build("full-up", channels_last=channels_last, **build_args)
        args["gain"] = 1.3
    n, o = inputs["x"].shape[0], inputs["weight"].shape[0]
    inputs["noise"] = inputs["noise"].detach()
    inputs["noise_strength"] = rand(1, seed=6, grad=True)
    if OUTPUTS[outputs]:
        inputs["next_styles"] = rand(n, o, seed=7, grad=True)
    return inputs, args | {"styled": True, "both": outputs == "both"}


def derivatives(layer, inputs, args, used=(0, 1)):
    """The gradients, with respect to everything, of a penalty on the gradients of activations and styles."""
    y = layer(**inputs, **args)
    outputs = [y[i] for i in used] if isinstance(y, tuple) else [y]
    dys = [rand(*o.shape, seed=20 + i, grad=True) for i, o in enumerate(outputs)]
    wrt = [inputs[k] for k in ("x", "styles", "next_styles") if k in inputs]
    with no_weight_gradients():
        first = torch.autograd.grad(outputs, wrt, dys, create_graph=True, allow_unused=True)
    first = [torch.zeros_like(t) if g is None else g for g, t in zip(first, wrt, strict=True)]
    penalty = sum((g * rand(*g.shape, seed=30 + i)).sum() + g.square().sum() for i, g in enumerate(first))
    learned = [t for t in inputs.values() if t.requires_grad] + dys
    second = torch.autograd.grad(penalty, learned, allow_unused=True)
    return [*first, *(torch.zeros_like(t) if g is None else g for g, t in zip(second, learned, strict=True))]


def assert_same(got, want, rtol=1e-10):
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert_close(a + 1, b + 1, rtol, str(i))  # some are zero


def truth(**kwargs):
    y = chain_truth(**kwargs)
    return tuple(y.chunk(2, 1)) if kwargs.get("both") else y


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("up", [1, 2])
def test_parity(up, outputs, channels_last):
    inputs, args = inputs_of(up, outputs, channels_last)
    assert_same(*(derivatives(layer, inputs, args) for layer in (modulated_conv2d, truth)))


@pytest.mark.parametrize("used", [(0,), (1,)], ids=["y", "ys"])
def test_one_of_both_outputs_used(used):
    inputs, args = inputs_of(1, "both", True)
    assert_same(*(derivatives(layer, inputs, args, used) for layer in (modulated_conv2d, truth)))


@pytest.mark.kernels
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("setting", [*CONFIGS["layer_second"], {"TILE": 64, "WAVES": 1, "num_warps": 1}], ids=str)
def test_every_setting(setting, channels_last, impl):
    inputs, args = inputs_of(1, "both", channels_last, shape=(2, 5, 20), size=(5, 7))
    with force_config("layer_second", setting):
        assert_same(*(derivatives(layer, inputs, args) for layer in (modulated_conv2d, truth)))


def test_third_order():
    inputs, args = inputs_of(1, "next", True)

    def third(layer):
        y = layer(**inputs, **args)
        dy = rand(*y.shape, seed=20, grad=True)
        with no_weight_gradients():
            first = torch.autograd.grad(y, [inputs["x"], inputs["styles"]], dy, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), [inputs["weight"], dy], create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in second), [inputs["x"], inputs["weight"], dy])

    assert_same(third(modulated_conv2d), third(truth), 1e-9)


def test_a_style_of_zero_gives_finite_gradients():
    inputs, args = inputs_of(1, "next", True)
    inputs["next_styles"] = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    assert all(g.isfinite().all() for g in derivatives(modulated_conv2d, inputs, args) if g is not None)


def test_bytes():
    """Forward, path length and its gradient of one layer in a chain: what `second` says, and no pass beside it."""
    n, c, r = 4, 64, 256
    activation = n * c * r * r * 2
    x = torch.empty(n, c, r, r, dtype=torch.bfloat16, device="meta").to(memory_format=torch.channels_last)
    x.requires_grad_()
    t = {"weight": (c, c, 3, 3), "styles": (n, c), "next_styles": (n, c), "noise_strength": (1,), "bias": (c,)}
    t = {k: torch.empty(s, device="meta", requires_grad=True) for k, s in t.items()}
    t["bias"] = t["bias"].detach().bfloat16().requires_grad_()
    noise = torch.empty(n, 1, r, r, device="meta")

    def penalty():
        with use_impl("triton"):
            y = modulated_conv2d(x, noise=noise, padding=1, act="lrelu", styled=True, **t)
            with no_weight_gradients():
                first = torch.autograd.grad(y, [x, t["styles"]], torch.empty_like(y), create_graph=True)
            torch.autograd.grad(first, list(t.values()), [torch.empty_like(g) for g in first])

    large = [(c.name, round(c.bytes / activation, 1)) for c in count(penalty).calls if c.bytes > 0.1 * activation]
    names = [name for name, _ in large]
    assert names.count("layer_second") == 1
    assert not {"aten::mul", "aten::add", "aten::sum", "aten::_to_copy"} & set(names), large
    assert dict(large)["layer_second"] < 6.2
