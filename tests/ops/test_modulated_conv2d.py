"""modulated_conv2d: golden numbers, parity with a weight for every sample, derivatives, half types, arguments."""

import math

import pytest
import torch
import torch.nn.functional as F
from ops_util import assert_close, assert_half_error, assert_same_derivatives, check_gradients, is_format, leaf, rand
from test_bias_act import truth as activate

from gankern.ops import demodulation, modulated_conv2d, modulated_conv2d_reference, setup_filter, upfirdn2d

IMPLS = ("reference", "triton", "cuda")
pytestmark = pytest.mark.usefixtures("few_programs")
FIR = [1, 3, 3, 1]
WIDTHS = (2, 3, 4)  # N, I, O
BASE = {"up": 1, "k": 3, "size": (4, 3), "noise": None, "bias": False}
CASES = {
    "plain": {},
    "full": {"noise": "batch", "bias": True, "act": "lrelu"},
    "full-up": {"up": 2, "noise": "batch", "bias": True, "act": "lrelu"},
    "clamp": {"noise": "batch", "bias": True, "act": "lrelu", "clamp": 0.6},
    "clamp-up": {"up": 2, "noise": "shared", "bias": True, "act": "lrelu", "clamp": 0.6, "gain": 0.8},
    "to-rgb": {"k": 1, "bias": True, "demodulate": False, "clamp": 0.9},
    "demod-1x1": {"k": 1, "noise": "image", "act": "lrelu"},
    "up-1x1": {"up": 2, "k": 1, "bias": True, "noise": "image"},
    "no-demod": {"demodulate": False, "noise": "batch", "bias": True, "act": "lrelu"},
    "no-demod-up": {"up": 2, "demodulate": False, "act": "tanh", "bias": True},
    "convolve": {"flip_weight": False, "noise": "shared"},
    "convolve-up": {"up": 2, "flip_weight": False, "bias": True, "act": "lrelu"},
    "linear-gain": {"gain": -1.7, "bias": True, "noise": "row"},
    "linear-clamp": {"clamp": 0.5, "noise": "scalar"},
    "tanh": {"act": "tanh", "bias": True, "noise": "batch"},
    "swish": {"act": "swish", "bias": True, "noise": "batch"},
    "swish-clamp-up": {"up": 2, "act": "swish", "bias": True, "clamp": 0.5, "noise": "batch"},
    "swish-no-demod": {"act": "swish", "demodulate": False},
    "softplus": {"act": "softplus", "noise": "image", "bias": True},
    "relu": {"act": "relu", "bias": True, "noise": "column"},
    "lrelu-steep": {"act": "lrelu", "alpha": 0.01, "bias": True},
    "lrelu-flat": {"act": "lrelu", "alpha": 0.0, "bias": True},
    "gain0": {"act": "lrelu", "gain": 0.0, "bias": True},
    "valid": {"padding": 0},
    "wide-padding": {"padding": 2, "up": 2, "noise": "batch"},
    "eps": {"eps": 0.5, "act": "lrelu"},
}
EVERY = pytest.mark.parametrize("case", CASES)
INTERPRETED = {  # the interpreter is slow: the cases that take different ways through the kernels
    "test_gradcheck": ("full", "to-rgb", "swish"),
    "test_gradients_with_and_without_a_graph_agree": ("full-up", "no-demod", "to-rgb", "linear-clamp"),
    "test_half": ("full", "to-rgb", "tanh"),
    "test_parity": (
        "plain",
        "full",
        "full-up",
        "clamp-up",
        "to-rgb",
        "no-demod",
        "linear-gain",
        "lrelu-steep",
        "gain0",
    ),
    "test_keeps_the_memory_format": ("full", "clamp-up", "to-rgb", "tanh", "up-1x1"),
    "test_chain": ("full", "clamp-up"),
    "test_parity_of_odd_widths": ("full", "to-rgb"),
    "test_parity_of_other_filters": ("up-1x1",),
    "test_reference_is_the_definition": (),
}


def truth(x, weight, styles, noise=None, bias=None, *, up=1, padding=0, resample_filter=None, demodulate=True, **rest):
    """A grouped convolution with every sample's own weight, after upsampling; then noise, bias and activation."""
    n, (o, i, k, _) = x.shape[0], weight.shape
    eps, flip_weight = rest.pop("eps", 1e-8), rest.pop("flip_weight", True)
    w = torch.einsum("oikl,ni->noikl", weight, styles)
    if demodulate:
        w = w / torch.sqrt((w * w).sum([2, 3, 4], keepdim=True) + eps)
    w = (w if flip_weight else w.flip(3, 4)).reshape(n * o, i, k, k)
    if up == 2:
        f = resample_filter
        fx, fy = f.shape[-1], f.shape[0]
        pad = [padding + (fx + 1) // 2, padding + (fx - 2) // 2, padding + (fy + 1) // 2, padding + (fy - 2) // 2]
        x, padding = upfirdn2d(x, f, up=2, padding=pad, gain=4), 0
    y = F.conv2d(x.reshape(1, n * i, *x.shape[2:]), w, padding=padding, groups=n)
    y = y.reshape(n, o, *y.shape[2:])
    y = y if noise is None else y + noise
    return activate(y, bias, **rest)


def build(case, dtype=torch.float64, channels_last=False, shape=WIDTHS, size=None):
    """(tensors that require gradients, constants) of one case."""
    spec = BASE | CASES[case]
    up, k, noise, with_bias = (spec.pop(key) for key in ("up", "k", "noise", "bias"))
    n, i, o = shape
    h, w = size or spec["size"]
    spec.pop("size")
    args = {"up": up, "padding": k // 2, "resample_filter": setup_filter(FIR) if up == 2 else None} | spec
    out = [v * up + 2 * args["padding"] - k + 1 for v in (h, w)]
    inputs = {
        "x": rand(n, i, h, w, seed=1, dtype=dtype, channels_last=channels_last, grad=True),
        "weight": rand(o, i, k, k, seed=2, dtype=dtype, grad=True),
        "styles": rand(n, i, seed=3, dtype=dtype, grad=True),
    }
    if noise is not None:
        shapes = {"batch": (n, 1, *out), "shared": (1, 1, *out), "image": out, "row": out[1:], "scalar": ()}
        shapes["column"] = (1, out[0], 1)
        inputs["noise"] = rand(*shapes[noise], seed=4, dtype=dtype, grad=True)
    if with_bias:
        inputs["bias"] = rand(o, seed=5, dtype=dtype, grad=True)
    return inputs, args


def test_golden(golden_cases):
    for case, a in golden_cases("modulated_conv2d"):
        t = {k: leaf(a[k]) for k in ("x", "weight", "styles")}
        noise, dy, v = (torch.as_tensor(a[k]) if k in a else None for k in ("noise", "dy", "v"))
        taps = case["resample_taps"]
        y = modulated_conv2d(
            **t,
            noise=noise,
            up=case["up"],
            padding=case["padding"],
            resample_filter=None if taps is None else setup_filter(taps, separable=False),
            demodulate=case["demodulate"],
            flip_weight=case["up"] == 1,
            eps=case["eps"],
        )
        first = torch.autograd.grad(y, list(t.values()), dy, create_graph=True)
        second = torch.autograd.grad((first[2] * v).sum(), list(t.values()), allow_unused=True)
        got = t | {"noise": noise, "dy": dy, "v": v, "y": y}
        got |= {f"d{k}": g for k, g in zip(t, first, strict=True)}
        zeros = (torch.zeros_like(p) if g is None else g for p, g in zip(t.values(), second, strict=True))
        got |= {f"vds_d{k}": g for k, g in zip(t, zeros, strict=True)}
        for key, want in a.items():
            assert_close(got[key], want, 1e-12, f"{case['name']}/{key}")


@EVERY
def test_gradcheck(case):
    inputs, args = build(case)
    names = list(inputs)
    check_gradients(lambda *t: modulated_conv2d(**dict(zip(names, t, strict=True)), **args), *inputs.values())


@EVERY
@pytest.mark.parametrize("size", [(4, 3), (1, 63)], ids=str)
def test_parity(case, size):
    inputs, args = build(case, size=size if case != "valid" else (5, 63))
    assert_same_derivatives(lambda **t: modulated_conv2d(**t, **args), lambda **t: truth(**t, **args), inputs)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 2), (3, 1, 7), (0, 3, 4)], ids=lambda s: "N{}-I{}-O{}".format(*s))
@pytest.mark.parametrize("case", ["full", "clamp-up", "to-rgb", "swish"])
def test_parity_of_odd_widths(case, shape):
    inputs, args = build(case, shape=shape)
    want = truth if shape[0] else truth_of_nothing
    assert_same_derivatives(lambda **t: modulated_conv2d(**t, **args), lambda **t: want(**t, **args), inputs)


def truth_of_nothing(x, weight, styles, noise=None, bias=None, **args):
    y = torch.zeros(0, weight.shape[0], *(v * args["up"] for v in x.shape[2:]), dtype=x.dtype)
    return y + 0 * sum(t.sum() for t in (x, weight, styles, noise, bias) if t is not None)


@pytest.mark.parametrize(
    "taps", [[1, 1], [1, 2, 1], list(range(1, 13)), [[1, 2, 3, 1], [0, 1, 4, 2]]], ids=["2", "3", "12", "2d"]
)
@pytest.mark.parametrize("case", ["full-up", "up-1x1"])
def test_parity_of_other_filters(case, taps):
    inputs, args = build(case)
    args["resample_filter"] = setup_filter(taps)
    assert_same_derivatives(lambda **t: modulated_conv2d(**t, **args), lambda **t: truth(**t, **args), inputs)


@pytest.mark.parametrize("case", ["plain", "full-up", "to-rgb", "convolve-up"])
def test_reference_is_the_definition(case):
    inputs, args = build(case)
    inputs.pop("bias", None)
    args = {k: v for k, v in args.items() if k not in ("act", "clamp")}
    assert_close(modulated_conv2d_reference(**inputs, **args), truth(**inputs, **args), 1e-12)


@pytest.mark.unforced
@pytest.mark.parametrize("up", [1, 2])
def test_reference_of_an_empty_batch(up):
    x, w, f = torch.zeros(0, 3, 5, 4), torch.ones(6, 3, 3, 3), setup_filter([1, 3, 3, 1])
    y = modulated_conv2d_reference(x, w, torch.ones(0, 3), torch.ones(5 * up, 4 * up), up, 1, f)
    assert y.shape == (0, 6, 5 * up, 4 * up)


@EVERY
def test_gradients_with_and_without_a_graph_agree(case):
    inputs, args = build(case)
    dy = rand(*modulated_conv2d(**inputs, **args).shape, seed=9)
    once, graph = (
        torch.autograd.grad(modulated_conv2d(**inputs, **args), list(inputs.values()), dy, create_graph=create)
        for create in (False, True)
    )
    for name, a, b in zip(inputs, once, graph, strict=True):
        assert_close(a, b, 1e-12, name)


@pytest.mark.parametrize("wrt", ["x", "weight", "styles", "noise", "bias"])
@pytest.mark.parametrize("case", ["full", "swish-clamp-up"])
def test_each_gradient_alone(case, wrt):
    inputs, args = build(case)
    inputs = {k: t.detach().requires_grad_(k == wrt) for k, t in inputs.items()}
    assert_same_derivatives(lambda **t: modulated_conv2d(**t, **args), lambda **t: truth(**t, **args), inputs)


def test_path_length_like_penalty():
    """The gradient of |d<y, v>/dstyles|² with respect to everything, through two layers that share their styles."""
    inputs, args = build("full-up")
    second = rand(3, 4, 1, 1, seed=8, grad=True)

    def penalties(layer):
        styles = inputs["styles"]
        y = layer(**inputs, **args)
        y = layer(y, second, torch.cat([styles, styles], 1)[:, :4], act="lrelu")
        (ds,) = torch.autograd.grad((y * rand(*y.shape, seed=7)).sum(), styles, create_graph=True)
        return torch.autograd.grad(ds.square().sum(), [*inputs.values(), second])

    for name, got, want in zip([*inputs, "second"], penalties(modulated_conv2d), penalties(truth), strict=True):
        assert_close(got, want, 1e-10, name)


# -- the implicit matrix product ---------------------------------------------------------------------------------------


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ["plain", "full", "clamp", "no-demod", "to-rgb", "convolve", "valid", "tanh"])
def test_implicit_gemm(case, dtype, impl):
    shape = (2, 3, 4) if dtype == torch.float64 else (2, 32, 48)
    inputs, args = build(case, channels_last=True, shape=shape, size=(9, 15))
    inputs = {k: t.detach() / (17 if k == "weight" and dtype != torch.float64 else 1) for k, t in inputs.items()}
    gemm = lambda **t: modulated_conv2d(**t, **args, impl="triton_gemm")  # noqa: E731
    if dtype == torch.float64:
        inputs = {k: t.requires_grad_() for k, t in inputs.items()}
        return assert_same_derivatives(gemm, lambda **t: truth(**t, **args), inputs)
    inputs["x"] = inputs["x"].contiguous(memory_format=torch.channels_last)
    kinks = [0] if args.get("act") == "lrelu" else []
    kinks += [args["clamp"]] if "clamp" in args else []
    assert_half_error(gemm, lambda **t: truth(**t, **args), inputs, dtype, kinks)


# -- a chain of layers: noise strength, styles applied by the layer before, styles of the layer after ------------------


def chain_truth(x, weight, styles, noise=None, bias=None, noise_strength=None, next_styles=None, **args):
    """(y, y · next_styles) of an x that was multiplied by its styles already."""
    styled, both = args.pop("styled", False), args.pop("both", False)
    if styled:
        x = x / styles[:, :, None, None]
    noise = noise if noise_strength is None else noise * noise_strength
    y = truth(x, weight, styles, noise, bias, **args)
    ys = None if next_styles is None else y * next_styles[:, :, None, None]
    return y if ys is None else torch.cat([y, ys], 1) if both else ys


def chained(**inputs):
    y = modulated_conv2d(**inputs)
    return torch.cat(y, 1) if isinstance(y, tuple) else y


CHAINS = {
    "strength": ({"noise_strength"}, {}),
    "styled": (set(), {"styled": True}),
    "next": ({"next_styles"}, {}),
    "both": ({"next_styles"}, {"both": True}),
    "all": ({"noise_strength", "next_styles"}, {"styled": True}),
    "all-both": ({"noise_strength", "next_styles"}, {"styled": True, "both": True}),
}


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("case", ["full", "clamp-up", "tanh"])
@pytest.mark.parametrize("chain", CHAINS)
def test_chain(chain, case, channels_last):
    inputs, args = build(case, channels_last=channels_last)
    names, more = CHAINS[chain]
    more_inputs = {"noise_strength": rand(1, seed=6, grad=True), "next_styles": rand(2, 4, seed=7, grad=True)}
    inputs |= {k: more_inputs[k] for k in names}
    args = args | more
    assert_same_derivatives(lambda **t: chained(**t, **args), lambda **t: chain_truth(**t, **args), inputs)


@pytest.mark.parametrize("which", [0, 1])
def test_one_of_both_outputs_used(which):
    inputs, args = build("full")
    inputs["next_styles"] = rand(2, 4, seed=7, grad=True)
    assert_same_derivatives(
        lambda **t: modulated_conv2d(**t, both=True, **args)[which],
        lambda **t: chain_truth(**t, both=True, **args).chunk(2, 1)[which],
        inputs if which else {k: t for k, t in inputs.items() if k != "next_styles"} | {"next_styles": rand(2, 4)},
    )


def test_a_style_of_zero_gives_finite_gradients():
    inputs, args = build("full")
    inputs["next_styles"] = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    grads = torch.autograd.grad(modulated_conv2d(**inputs, **args).sum(), list(inputs.values()))
    assert all(g.isfinite().all() for g in grads)


def test_demodulation():
    w, s = rand(4, 3, 3, 3), rand(2, 3)
    want = 1 / torch.sqrt(torch.stack([(w * s[i, :, None, None]).square().sum([1, 2, 3]) for i in range(2)]) + 1e-8)
    assert_close(demodulation(w, s), want, 1e-12)
    assert demodulation(w.half(), s.half()).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ["plain", "full", "full-up", "to-rgb", "no-demod", "tanh", "swish", "convolve-up"])
def test_half(case, dtype):
    inputs, args = build(case, shape=(3, 16, 16), size=(11, 9))
    inputs = {k: t.detach() / (12 if k == "weight" else 1) for k, t in inputs.items()}
    kinks = [0] if args.get("act") == "lrelu" else [args["clamp"]] if "clamp" in args else []
    assert_half_error(lambda **t: modulated_conv2d(**t, **args), lambda **t: truth(**t, **args), inputs, dtype, kinks)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_of_a_small_upsampling_layer(dtype):
    inputs, args = build("full-up", shape=(2, 5, 4), size=(4, 3))
    inputs = {k: t.detach() / (7 if k == "weight" else 1) for k, t in inputs.items()}
    assert_half_error(lambda **t: modulated_conv2d(**t, **args), lambda **t: truth(**t, **args), inputs, dtype, [0])


def test_float16_stays_in_range():
    """Weights and styles whose products leave float16; demodulated they are the same layer."""
    x, w, s = rand(2, 64, 8, 8), rand(8, 64, 3, 3) * 50, rand(2, 64) * 200
    y = modulated_conv2d(x.half(), w.float(), s.float(), padding=1)
    want = truth(x.half().double(), w, s, padding=1)
    assert_close(y, want, 2e-3)


@pytest.mark.parametrize("zero", ["weight", "styles"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_zero_weights_and_styles_give_zeros(zero, dtype):
    t = {"x": rand(2, 3, 4, 4, dtype=dtype), "weight": rand(4, 3, 3, 3).float(), "styles": rand(2, 3).float()}
    t[zero] = torch.zeros_like(t[zero])
    assert modulated_conv2d(**t, padding=1).abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ["full", "full-up"])
def test_master_weights_in_float32(case, dtype):
    inputs, args = build(case, torch.float32)
    half = {k: t.detach().to(dtype if k in ("x", "bias") else t.dtype).requires_grad_() for k, t in inputs.items()}
    y = modulated_conv2d(**half, **args)
    assert y.dtype == dtype
    dy = rand(*y.shape, seed=6, dtype=dtype)
    grads = torch.autograd.grad(y, list(half.values()), dy, create_graph=True)
    assert [g.dtype for g in grads] == [t.dtype for t in half.values()]
    second = torch.autograd.grad(sum(g.float().square().sum() for g in grads), list(half.values()))
    assert [g.dtype for g in second] == [t.dtype for t in half.values()]
    wide = {k: t.detach().double().requires_grad_() for k, t in half.items()}
    want = torch.autograd.grad(truth(**wide, **args), list(wide.values()), dy.double())
    for name, got, true in zip(half, grads, want, strict=True):
        assert_close(got, true, 0.03, name)


@EVERY
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_keeps_the_memory_format(case, channels_last):
    inputs, args = build(case, channels_last=channels_last)
    y = modulated_conv2d(**inputs, **args)
    (dx,) = torch.autograd.grad(y, inputs["x"], torch.ones_like(y))
    assert is_format(y, channels_last)
    assert is_format(dx, channels_last)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"x": torch.zeros(3, 4, 4)}, r"x is torch.float32 of shape \(3, 4, 4\), expected"),
        ({"x": torch.zeros(2, 3, 4, 4, dtype=torch.int32)}, r"x is torch.int32"),
        ({"weight": torch.zeros(5, 4, 3, 3)}, r"weight has shape \(5, 4, 3, 3\), expected \[O, 3, k, k\]"),
        ({"weight": torch.zeros(5, 3, 3, 1)}, r"weight has shape \(5, 3, 3, 1\), expected"),
        ({"weight": torch.zeros(5, 3)}, r"weight has shape \(5, 3\), expected"),
        ({"styles": torch.zeros(2, 4)}, r"styles has shape \(2, 4\), expected \[2, 3\]"),
        ({"styles": torch.zeros(3)}, r"styles has shape \(3,\), expected"),
        ({"up": 3}, r"up=3, expected 1 or 2"),
        ({"up": 2}, r"resample_filter=None, expected"),
        ({"noise": torch.zeros(3, 1, 4, 4)}, r"noise has shape \(3, 1, 4, 4\), expected .*\[2, 1, 4, 4\]"),
        ({"noise": torch.zeros(2, 5, 4, 4)}, r"noise has shape \(2, 5, 4, 4\), expected"),
        ({"noise": torch.zeros(5, 4)}, r"noise has shape \(5, 4\), expected"),
        ({"noise": torch.zeros(1, 2, 1, 4, 4)}, r"noise has shape \(1, 2, 1, 4, 4\), expected"),
        ({"x": torch.zeros(2, 3, 1, 1), "noise": torch.zeros(2, 1, 4, 4)}, r"noise has shape .*\[2, 1, 1, 1\]"),
        ({"x": torch.zeros(2, 3, 1, 2), "padding": 0}, r"padding=0"),
        ({"padding": -1}, r"padding=-1"),
        ({"demodulation": torch.zeros(2, 3)}, r"demodulation has shape \(2, 3\), expected \[2, 5\]"),
        ({"demodulation": torch.zeros(2, 5, dtype=torch.int32)}, r"demodulation is torch.int32 on cpu"),
        ({"demodulation": torch.zeros(2, 5, device="meta")}, r"demodulation is torch.float32 on meta"),
        ({"next_styles": torch.zeros(2, 3)}, r"next_styles has shape \(2, 3\), expected \[2, 5\]"),
        ({"noise_strength": torch.zeros([])}, r"noise_strength was given without noise"),
        ({"noise": torch.zeros([]), "noise_strength": torch.zeros(2)}, r"noise_strength has shape \(2,\), expected"),
        ({"both": True}, r"both=True, expected next_styles"),
        ({"bias": torch.zeros(3)}, r"bias has shape \(3,\), expected \(5,\)"),
        ({"bias": torch.zeros(5, dtype=torch.float64)}, r"bias is torch.float64"),
        ({"act": "gelu"}, r"act='gelu', expected one of"),
        ({"act": "lrelu", "alpha": -1}, r"alpha=-1.0, expected"),
        ({"clamp": -math.inf}, r"clamp=-inf, expected"),
        ({"up": 2, "resample_filter": torch.ones(4).long()}, r"resample_filter is torch.int64"),
        ({"weight": torch.zeros(5, 3, 3, 3, dtype=torch.int32)}, r"weight is torch.int32"),
        ({"styles": torch.zeros(2, 3, device="meta")}, r"styles is .*meta"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_bad_arguments(kwargs, message):
    good = {"x": torch.zeros(2, 3, 4, 4), "weight": torch.zeros(5, 3, 3, 3), "styles": torch.zeros(2, 3), "padding": 1}
    with pytest.raises(ValueError, match=message):
        modulated_conv2d(**(good | kwargs))
