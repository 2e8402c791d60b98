"""csrc's filters where the fast kernels run: every factor, number of taps and padding, many tiles, both formats."""

import pytest
import test_fir_act
import torch
from ops_util import assert_close, assert_same_derivatives, is_format, rand
from test_upfirdn2d import truth

from gankern.ops import setup_filter, upfirdn2d
from gankern.ops._layout import empty
from gankern.ops.fir_act import cuda as fir_act
from gankern.ops.modulated_conv2d import cuda as layer_pass
from gankern.ops.modulated_conv2d import cuda_fir as layer_fir
from gankern.ops.modulated_conv2d.layer import Operands
from gankern.ops.upfirdn2d import cuda as upfirdn2d_pass
from gankern.ops.upfirdn2d.op import adjoint_args

IMPLS = ("cuda",)
FACTORS = {"same": {}, "up": {"up": 2}, "down": {"down": 2}}
FORMATS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
SIZES = {"small": (2, 6, 5, 4), "wide": (1, 2, 11, 300), "tall": (1, 4, 97, 9), "deep": (2, 70, 6, 8)}


def taps_of(n):
    return setup_filter([1 + (k * 7) % 5 for k in range(n)])


@FORMATS
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("factor", FACTORS)
def test_tiles_meet(factor, size, channels_last):
    for n, padding in ((4, [2, 1, 1, 2]), (12, [5, 6, 6, 5]), (7, [3, 3, 4, 2])):
        x, f = rand(*SIZES[size], channels_last=channels_last), taps_of(n)
        args = FACTORS[factor] | {"padding": [p + 3 for p in padding] if size == "small" else padding, "gain": 1.5}
        y = upfirdn2d(x, f, **args)
        assert is_format(y, channels_last)
        assert_close(y, truth(x, f, **args), 1e-12, f"{n} taps")


@FORMATS
@pytest.mark.parametrize("factor", FACTORS)
def test_any_padding(factor, channels_last):
    """Even and odd, cropping into the image and past it; odd widths, whose rows aren't aligned in NCHW."""
    for i in range(36):
        n, crop = 1 + i % 12, i % 3 == 2
        x, f = rand(1, 4, 9 + i % 2, 11 + i % 4, channels_last=channels_last, seed=i), taps_of(n)
        before = [-2 + i % 4, -3 + i % 5] if crop else [i % 6, 1 + i % 5]
        padding = [before[0], n - before[0] + 1, before[1], n - before[1] + i % 2]
        args = FACTORS[factor] | {"padding": padding, "flip_filter": i % 4 < 2, "gain": -2 if i % 9 == 0 else 3}
        assert_close(upfirdn2d(x, f, **args), truth(x, f, **args), 1e-12, str((n, padding, tuple(x.shape))))


@FORMATS
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_vectors_of_every_type(dtype, factor, channels_last):
    """Widths and channels in whole vectors and not; rows that begin off a 16-byte boundary, and a view that does."""
    for n, width, skip in ((4, 32, 0), (4, 33, 0), (12, 70, 0), (8, 24, 1)):
        size = (2, 16, 7, width)
        x = rand(2 * 16 * 7 * width + 1, dtype=dtype)[skip : skip + 2 * 16 * 7 * width]
        x = x.view(2, 7, width, 16).permute(0, 3, 1, 2) if channels_last else x.view(size)
        f = taps_of(n)
        args = FACTORS[factor] | {"padding": [n // 2, n // 2 + 1, n - 1, 1]}
        want = truth(x.double(), f.double(), **args)
        y = upfirdn2d(x, f, **args)
        assert y.dtype == dtype
        assert_close(y, want, 4 * torch.finfo(dtype).eps, f"{n} taps, width {width}")


JOINED = {  # name: (size, factor and padding)
    "same": ((2, 4, 9, 11), {"padding": [1, 2, 2, 1]}),
    "grow": ((2, 4, 9, 12), {"padding": 2}),
    "cropped": ((2, 2, 17, 15), {"padding": [-3, 2, -2, -4]}),
    "many tiles": ((1, 2, 70, 270), {"padding": [2, 1, 1, 2]}),
    "up": ((2, 4, 5, 7), {"up": 2, "padding": [2, 1, 1, 2]}),
    "up-cropped": ((2, 2, 9, 8), {"up": 2, "padding": [-3, 2, -6, -1]}),
    "up-wide": ((1, 2, 40, 150), {"up": 2, "padding": [1, 2, 2, 1]}),
    "down": ((2, 4, 10, 12), {"down": 2, "padding": 1}),
    "down-odd": ((2, 2, 11, 15), {"down": 2, "padding": [1, 0, -1, 2]}),
    "down-cropped": ((2, 2, 18, 16), {"down": 2, "padding": [-5, -2, -3, 0]}),
    "down-wide": ((1, 2, 70, 282), {"down": 2, "padding": [2, 1, 1, 1]}),
}
PASSES = {  # which of the two orders has a kernel for the factor; the other runs as two operators
    "filter-first": [case for case in JOINED if not case.startswith("down")],
    "act-first": [case for case in JOINED if not case.startswith("up")],
}


@FORMATS
@pytest.mark.parametrize(("order", "case"), [(order, case) for order, cases in PASSES.items() for case in cases])
def test_activation_in_the_same_pass(order, case, channels_last, monkeypatch):
    """Value, gradients with their sums, and second order; no call falls apart into two operators."""
    monkeypatch.setattr(fir_act, "bias_act", None)
    size, fir = JOINED[case]
    act = {"act": "lrelu", "gain": 1.3, "clamp": 0.9 if "wide" in case or case == "same" else None}
    args = order, taps_of(3 if "odd" in case else 4), fir | {"filter_gain": 2.0}, act
    x = rand(*size, channels_last=channels_last, grad=True)
    inputs = {"x": x, "bias": rand(size[1], seed=3, grad=True)}
    assert_same_derivatives(test_fir_act.ours(*args), test_fir_act.plain(*args), inputs, 1e-11)


@FORMATS
@pytest.mark.parametrize("order", PASSES)
def test_bias_gradient_of_cropped_pixels(order, channels_last):
    """They have a slope, where the activation comes last, and none where the filter takes no notice of them."""
    inputs = {"x": rand(1, 2, 33, 300, channels_last=channels_last, grad=True), "bias": rand(2, seed=3, grad=True)}
    args = order, taps_of(4), {"padding": [-7, -270, -20, -9]}, {"act": "lrelu"}
    assert_same_derivatives(test_fir_act.ours(*args), test_fir_act.plain(*args), inputs, 1e-11)


@FORMATS
@pytest.mark.parametrize("order", PASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_activation_in_every_type(dtype, order, channels_last):
    for width in (24, 25):
        args = order, taps_of(4), {"padding": [2, 2, 1, 1]}, {"act": "lrelu", "clamp": 1.5}
        x = rand(2, 8, 9, width, dtype=dtype, channels_last=channels_last)
        bias = rand(8, seed=3, dtype=dtype)
        found, dy = [], None
        for fn, wide in ((test_fir_act.plain(*args), torch.float64), (test_fir_act.ours(*args), dtype)):
            leaves = [t.to(wide).detach().requires_grad_() for t in (x, bias)]
            y = fn(*leaves)
            if dy is None:
                dy = rand(*y.shape, seed=4, dtype=dtype)
                if order == "filter-first":
                    dy[(y.abs() < 0.05) | ((y.abs() - 1.5).abs() < 0.05)] = 0  # the slope jumps there
            found.append([y, *torch.autograd.grad(y, leaves, dy.to(wide))])
        for want, got in zip(*found, strict=True):
            assert got.dtype == dtype
            assert_close(got, want, 8 * torch.finfo(dtype).eps, f"width {width}")


LAYERS = {  # up, padding, filtered size; the noise; which gradients come in, whether only v · s⁺ was kept; clamp
    "transposed": (1, [1, 1, 1, 1], (8, 15), "image", "dy", False, -1.0),
    "transposed-odd": (1, [2, 1, 1, 2], (9, 12), "batch", "dy", False, 0.5),
    "chained": (1, [1, 1, 1, 1], (9, 13), "batch", "dys", True, -1.0),
    "both": (1, [1, 1, 1, 1], (40, 134), None, "both", False, 0.5),
    "up": (2, [2, 1, 2, 1], (7, 10), "image", "both", False, 0.7),
    "up-cropped": (2, [-3, 1, -5, 0], (20, 14), "batch", "dy", False, -1.0),
    "up-chained": (2, [2, 2, 1, 1], (7, 70), None, "dys", True, -1.0),
}


def layer_inputs(case, channels_last, dtype=torch.float64, channels=4):
    """(t, f, fir's arguments, operands) of one of LAYERS; f has four taps of different size."""
    up, padding, size, noise, _, _, clamp = LAYERS[case]
    f, fir = taps_of(4).double(), {"up": up, "padding": padding, "gain": 4.0}
    t = rand(2, channels, *size, dtype=dtype, channels_last=channels_last)
    out = upfirdn2d_pass.output(t, f, (up, up), (1, 1), padding).shape
    wide = torch.promote_types(dtype, torch.float32)
    d, styles = rand(2, channels, seed=1, dtype=wide).abs() + 0.5, rand(2, channels, seed=2, dtype=wide)
    noise = None if noise is None else rand(out[0] if noise == "batch" else 1, 1, *out[2:], seed=3, dtype=wide)
    bias, strength = rand(channels, seed=4, dtype=dtype), torch.tensor(0.3, dtype=wide)
    return t, f, fir, Operands(d, noise, strength, bias, styles, ("lrelu", 0.2, 1.4, clamp))


def in_two_passes(t, f, fir, o, dy, dys, styled):
    """(v, v · s⁺, dt, sums) of filter and layer one after the other."""
    args = (fir["up"],) * 2, (1, 1), fir["padding"], False, fir["gain"]
    y, ys = layer_pass.forward(upfirdn2d_pass.forward(t, f, *args), o, True)
    dt, sums = layer_pass.backward(dy, dys, None if styled else y, ys, o, (True,) * 4)
    return y, ys, upfirdn2d_pass.forward(dt, f, *adjoint_args(f, t.shape[2:], y.shape[2:], *args)), sums


@FORMATS
@pytest.mark.parametrize("case", LAYERS)
def test_layer(case, channels_last, monkeypatch):
    t, f, fir, o = layer_inputs(case, channels_last)
    *_, which, styled, _ = LAYERS[case]
    like = upfirdn2d_pass.output(t, f, (fir["up"],) * 2, (1, 1), fir["padding"])
    dy, dys = (empty(like.shape, t).copy_(rand(*like.shape, seed=seed)) for seed in (5, 6))
    dy, dys = (None if which == "dys" else dy), (None if which == "dy" else dys)
    y, ys, dt, sums = in_two_passes(t, f, fir, o, dy, dys, styled)
    monkeypatch.setattr(layer_fir.upfirdn2d, "forward", None)  # in one pass, or not at all
    got = layer_fir.forward(t, f, fir, o, True)
    assert_close(got[0], y, 1e-12, "v")
    assert_close(got[1], ys, 1e-12, "v · s⁺")
    assert_close(layer_fir.forward(t, f, fir, o, False)[1], ys, 1e-12, "v · s⁺ alone")
    kept = (None, ys) if styled else (y, ys)
    for wanted in ((True,) * 4, (False, False, True, False), (False,) * 4):
        got_dt, got_sums = layer_fir.backward(dy, dys, *kept, f, fir, t.shape[2:], o, wanted)
        assert is_format(got_dt, channels_last)
        assert_close(got_dt, dt, 1e-11, "dt")
        for i, want in enumerate(wanted):
            assert (got_sums[i] is not None) == want
            if want and not (i == 3 and dys is None):
                assert_close(got_sums[i], sums[i], 1e-11, f"sum {i}")


@FORMATS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_layer_in_every_type(dtype, channels_last):
    t, f, fir, o = layer_inputs("transposed-odd", channels_last, dtype, channels=8)
    wide = Operands(*(p.double() for p in (o.d, o.noise, o.strength, o.bias, o.next_styles)), o.act)
    size = upfirdn2d_pass.output(t, f, (1, 1), (1, 1), fir["padding"]).shape
    dy, dys = (empty(size, t).copy_(rand(*size, seed=seed)) for seed in (5, 6))
    rounding = 4 * torch.finfo(dtype).eps + 4e-6  # of what is written; of the values before the clamp, in float32
    y, ys, *_ = in_two_passes(t.double(), f, fir, wide, dy.double(), dys.double(), False)
    got = layer_fir.forward(t, f, fir, o, True)
    assert_close(got[0], y, rounding, "v")
    assert_close(got[1], ys, rounding, "v · s⁺")
    away = (y.abs() < 0.02) | ((y.abs() - 0.5).abs() < 0.02)  # the slope jumps there
    dy[away], dys[away] = 0, 0
    *_, dt, sums = in_two_passes(t.double(), f, fir, wide, dy.double(), dys.double(), False)
    got_dt, got_sums = layer_fir.backward(dy, dys, *got, f, fir, t.shape[2:], o, (True,) * 4)
    assert_close(got_dt, dt, 2 * rounding, "dt")
    for a, b, like in zip(got_sums, sums, (o.bias, o.strength, None, o.next_styles), strict=True):
        assert a.dtype == (torch.float32 if like is None else like.dtype)
        assert_close(a, b, 2 * rounding, "sums")
