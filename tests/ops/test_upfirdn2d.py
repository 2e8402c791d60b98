"""upfirdn2d and its filters: golden numbers, parity over random configurations, derivatives, half types, arguments."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_util import (
    assert_close,
    assert_half_error,
    assert_same_derivatives,
    check_gradients,
    is_format,
    leaf,
    rand,
    spare,
)
from torch.nn.functional import pad

from gankern.ops import _triton, downsample2d, setup_filter, upfirdn2d, upfirdn2d_reference, upsample2d

IMPLS = ("reference", "triton", "cuda")

TWELVE = [1, -2, 3, 5, 8, 13, 11, 7, 4, 2, -1, 0.5]
CASES = {
    "identity": (None, {}),
    "up2": ([1, 3, 3, 1], {"up": 2, "padding": [2, 1, 2, 1], "gain": 4}),
    "down2": ([1, 3, 3, 1], {"down": 2, "padding": 1}),
    "up2-down3": ([[1, 2, 3], [0, 1, 5]], {"up": 2, "down": 3, "padding": [3, 2, 1, 2]}),
    "anisotropic": ([1, 2, 4, 1], {"up": [2, 1], "down": [1, 2], "padding": [1, 2, 0, 1], "gain": -1.5}),
    "up3-flip": ([[1, 2, 3], [0, 1, 5], [2, 2, 1]], {"up": 3, "padding": [2, 0], "flip_filter": True}),
    "crop": ([1, 4, 1], {"padding": [-1, -1, 0, -2], "flip_filter": True}),
    "crop-into-padding": ([1, 4], {"padding": [-9, 12, 9, -9], "down": 2}),
    "crop-up": ([1, 2], {"up": 2, "padding": [-3, 2, 1, -2]}),
    "separable12-up": (TWELVE, {"up": 2, "padding": [6, 5, 6, 5], "gain": 4}),
    "separable12-down": (TWELVE, {"down": 2, "padding": [5, 5, 4, 6], "gain": -2, "flip_filter": True}),
    "separable12-both": (TWELVE, {"up": [3, 2], "down": [2, 3], "padding": 9}),
    "short-for-up": ([1], {"up": 3, "padding": 1}),
    "padding-only-around": ([1, 2, 1], {"padding": [7, 6, 5, 4]}),
}
EVERY = pytest.mark.parametrize("case", CASES)
FEW = ("up2", "down2", "anisotropic")


def truth(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1):
    """Zero-insert into a larger canvas, then one shifted copy for every tap."""
    (ux, uy), (dx, dy) = ([v, v] if isinstance(v, int) else v for v in (up, down))
    p = [padding] * 4 if isinstance(padding, int) else list(padding)
    x0, x1, y0, y1 = p if len(p) == 4 else [p[0], p[0], p[1], p[1]]
    f = torch.ones(1, 1) if f is None else f.to(torch.promote_types(f.dtype, x.dtype))
    f = torch.outer(f, f) if f.ndim == 1 else f
    n, c, h, w = x.shape
    canvas = x.new_zeros(n, c, h * uy, w * ux)
    canvas[:, :, ::uy, ::ux] = x
    margin = 20
    canvas = pad(canvas, [margin] * 4)[:, :, margin - y0 : margin + h * uy + y1, margin - x0 : margin + w * ux + x1]
    ky, kx = f.shape
    rows, cols = canvas.shape[2] - ky + 1, canvas.shape[3] - kx + 1
    y = 0
    for i in range(ky):
        for j in range(kx):
            tap = f[i, j] if flip_filter else f[ky - 1 - i, kx - 1 - j]
            y = y + (tap * gain).to(x.dtype) * canvas[:, :, i : i + rows, j : j + cols]
    return y[:, :, ::dy, ::dx]


def taps(case):
    f, args = CASES[case]
    return (None if f is None else setup_filter(f)), args


def test_golden(golden_cases):
    for case, a in golden_cases("upfirdn2d"):
        x, f = leaf(a["x"]), setup_filter(case["taps"], separable=False)
        y = upfirdn2d(x, f, **{k: case[k] for k in ("up", "down", "padding", "flip_filter", "gain")})
        (dx,) = torch.autograd.grad(y, x, torch.as_tensor(a["dy"]))
        got = {"x": x, "f": f, "y": y, "dy": torch.as_tensor(a["dy"]), "dx": dx}
        for key, want in a.items():
            assert_close(got[key], want, 1e-12, f"{case['name']}/{key}")


@EVERY
def test_gradcheck(case, impl):
    spare(impl, case == "anisotropic")  # it is linear: parity of value and gradient says as much
    f, args = taps(case)
    check_gradients(lambda x: upfirdn2d(x, f, **args), rand(1, 2, 6, 5, grad=True))


@EVERY
@pytest.mark.parametrize("shape", [(2, 3, 7, 6), (1, 1, 5, 63), (3, 2, 123, 5)], ids=str)
def test_parity(case, shape, impl):
    spare(impl, shape == (2, 3, 7, 6) or (case in FEW and shape == (1, 1, 5, 63)))
    f, args = taps(case)
    inputs = {"x": rand(*shape, grad=True)}
    assert_same_derivatives(lambda x: upfirdn2d(x, f, **args), lambda x: truth(x, f, **args), inputs, 1e-12)


def draw_configuration(data):
    """(width and height, filter, arguments) of any kind that is legal."""

    def draw(low, high):
        return data.draw(st.integers(low, high))

    size, up, down = ([draw(1, 9), draw(1, 9)], [draw(1, 3), draw(1, 3)], [draw(1, 3), draw(1, 3)])
    f = rand(draw(1, 5), draw(1, 5), dtype=torch.float32) if draw(0, 1) else rand(draw(1, 9), dtype=torch.float32)
    padding = []
    for length, u, k in zip(size, up, (f.shape[-1], f.shape[0]), strict=True):
        before, after = draw(-8, 6), draw(-8, 6)
        padding += [before, after + max(0, k - length * u - before - after)]
    args = {"up": up, "down": down, "padding": padding, "flip_filter": bool(draw(0, 1)), "gain": draw(-3, 3)}
    return size, f, args


def test_parity_of_any_configuration(impl):
    @settings(max_examples=50 if impl == "reference" else 10, deadline=None, derandomize=True)
    @given(data=st.data())
    def check(data):
        size, f, args = draw_configuration(data)
        n, c = (2, 3) if impl == "reference" else (1, 2)
        inputs = {"x": rand(n, c, size[1], size[0], channels_last=data.draw(st.booleans()), grad=True)}
        assert_same_derivatives(lambda x: upfirdn2d(x, f, **args), lambda x: truth(x, f, **args), inputs, 1e-12)

    check()


LARGE = {
    "separable": (rand(41, dtype=torch.float32), {"up": 3, "down": 2, "padding": [20, 18, 19, 20]}),
    "whole": (rand(13, 12, dtype=torch.float32), {"up": [1, 2], "down": [2, 1], "padding": 6, "flip_filter": True}),
}


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("case", LARGE)
def test_parity_of_large_filters(case, channels_last):
    f, args = LARGE[case]
    inputs = {"x": rand(1, 3, 5, 6, channels_last=channels_last, grad=True)}
    assert_same_derivatives(lambda x: upfirdn2d(x, f, **args), lambda x: truth(x, f, **args), inputs, 1e-12)


@pytest.mark.kernels
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("case", ["up2", "down2"])
def test_every_setting(case, channels_last, impl):
    f, args = taps(case)
    x = rand(1, 3, 5, 6, channels_last=channels_last)
    tiny = {"BYTES": 64, "ROWS": 3, "PX": 2, "AHEAD": case == "up2", "num_warps": 1}
    for setting in (*_triton.CONFIGS["upfirdn2d"], tiny) if case == "up2" else (tiny,):
        with _triton.force_config("upfirdn2d", setting):
            assert_close(upfirdn2d(x, f, **args), truth(x, f, **args), 1e-12, str(setting))


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_empty_batch(channels_last):
    x = rand(0, 3, 4, 4, channels_last=channels_last, grad=True)
    y = upfirdn2d(x, setup_filter([1, 3, 3, 1]), up=2, padding=[2, 1, 2, 1])
    assert y.shape == (0, 3, 8, 8)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.shape == x.shape


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_gradients_of_any_strides(channels_last):
    x, f = rand(1, 3, 4, 5, channels_last=channels_last, grad=True), setup_filter([1, 3, 3, 1])
    y = upfirdn2d(x, f, down=2, padding=1)
    want = torch.autograd.grad(truth(x, f, down=2, padding=1).sum(), x)[0]
    for dy in (
        torch.ones((), dtype=y.dtype).expand(y.shape),
        torch.ones(*y.shape[:3], 2 * y.shape[3]).double()[..., ::2],
    ):
        (dx,) = torch.autograd.grad(y, x, dy, retain_graph=True)
        assert_close(dx, want, 1e-12)


@EVERY
def test_reference_is_the_definition(case, impl):
    spare(impl, False)
    f, args = taps(case)
    x = rand(2, 3, 7, 6)
    literal = {"up": 1, "down": 1, "padding": 0} | args
    up, down = ((v, v) if isinstance(v, int) else tuple(v) for v in (literal["up"], literal["down"]))
    p = literal["padding"]
    p = [p] * 4 if isinstance(p, int) else [p[0], p[0], p[1], p[1]] if len(p) == 2 else p
    f = torch.ones(1) if f is None else f
    y = upfirdn2d_reference(x, f, **(literal | {"up": up, "down": down, "padding": tuple(p)}))
    assert_close(y, truth(x, f, **args), 1e-12)


def test_third_order():
    x, f = rand(1, 1, 4, 4, grad=True), setup_filter([1, 3, 3, 1])
    y = upfirdn2d(x, f, up=2, padding=[2, 1]).pow(3).sum()
    for _ in range(3):
        y = torch.autograd.grad(y, x, create_graph=True)[0].sum()
    t = truth(x, f, up=2, padding=[2, 1]).pow(3).sum()
    for _ in range(3):
        t = torch.autograd.grad(t, x, create_graph=True)[0].sum()
    assert_close(y, t)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half(case, dtype, impl):
    spare(impl, case in FEW)
    f, args = taps(case)
    x = {"x": rand(2, 8, 31, 17) if impl == "reference" else rand(1, 8, 9, 17)}
    literal = truth if "12" not in case else two_passes
    assert_half_error(lambda x: upfirdn2d(x, f, **args), lambda x: literal(x, f, **args), x, dtype)


def two_passes(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1):
    """A separable filter along x and then along y."""
    (ux, uy), (dx, dy) = ([v, v] if isinstance(v, int) else v for v in (up, down))
    x0, x1, y0, y1 = [padding] * 4 if isinstance(padding, int) else padding
    x = truth(x, f[None], [ux, 1], [dx, 1], [x0, x1, 0, 0], flip_filter, math.sqrt(abs(gain)))
    return truth(
        x, f[:, None], [1, uy], [1, dy], [0, 0, y0, y1], flip_filter, math.copysign(math.sqrt(abs(gain)), gain)
    )


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@EVERY
def test_keeps_the_memory_format(case, channels_last, impl):
    spare(impl, case in ("up2", "down2"))
    f, args = taps(case)
    x = rand(2, 3, 8, 6, channels_last=channels_last, grad=True)
    y = upfirdn2d(x, f, **args)
    (dx,) = torch.autograd.grad(y, x, torch.empty_like(y).fill_(1))
    assert is_format(y, channels_last)
    assert is_format(dx, channels_last)


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 12])
def test_resampling_keeps_size_and_place(factor, size, impl):
    """A constant stays constant, a ramp stays a ramp about the same centre, and sizes scale exactly."""
    spare(impl, (factor, size) == (2, 4))
    f = setup_filter([1] * size)
    x = torch.arange(24, dtype=torch.float64).expand(1, 1, 24, 24)
    up, down = upsample2d(x, f, factor), downsample2d(x, f, factor)
    assert up.shape == (1, 1, 24 * factor, 24 * factor)
    assert down.shape == (1, 1, 24 // factor, 24 // factor)
    centre = down[0, 0, 24 // factor // 2]  # away from the border, a box keeps the mean position of its cell
    for i in range(size // factor + 1, 24 // factor - size // factor - 1):
        ideal = i * factor + (factor - 1) / 2
        assert abs(centre[i].item() - ideal) <= 0.5 * ((size - factor) % 2) + 1e-5


@pytest.mark.parametrize(
    ("given", "kwargs", "want"),
    [
        (None, {}, [1]),
        (5, {}, [1]),
        ([1, 3], {}, [0.25, 0.75]),
        ([1, 3], {"separable": False}, [[1 / 16, 3 / 16], [3 / 16, 9 / 16]]),
        ([1, 3], {"normalize": False}, [1, 3]),
        ([[1, 3]], {}, [[0.25, 0.75]]),
    ],
    ids=["none", "scalar", "separable", "outer", "raw", "matrix"],
)
def test_setup_filter(given, kwargs, want, impl):
    spare(impl, False)
    f = setup_filter(given, **kwargs)
    assert f.dtype == torch.float32
    assert_close(f, torch.tensor(want, dtype=torch.float32), 1e-6)


@pytest.mark.parametrize("given", [[], [[[1.0]]], [[]]], ids=str)
def test_setup_filter_refuses(given):
    with pytest.raises(ValueError, match="taps has shape"):
        setup_filter(given)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"x": torch.zeros(3, 4, 4)}, r"x is torch.float32 of shape \(3, 4, 4\), expected"),
        ({"x": torch.zeros(1, 3, 4, 4, dtype=torch.uint8)}, r"x is torch.uint8"),
        ({"f": torch.ones(1, 1, 1)}, r"f is torch.float32 of shape \(1, 1, 1\)"),
        ({"f": torch.ones(0)}, r"f is torch.float32 of shape \(0,\)"),
        ({"f": torch.ones(2, dtype=torch.int64)}, r"f is torch.int64"),
        ({"f": torch.ones(2, requires_grad=True)}, r"f is .*requires grad, expected a constant"),
        ({"f": torch.ones(2, device="meta")}, r"f is on meta, expected x's cpu"),
        ({"up": 0}, r"up=0, expected a whole number >= 1"),
        ({"up": 1.5}, r"up=1.5, expected"),
        ({"up": None}, r"up=None, expected"),
        ({"up": [1, 2, 3]}, r"up=\[1, 2, 3\], expected"),
        ({"down": -1}, r"down=-1, expected"),
        ({"down": [1, 0]}, r"down=\[1, 0\], expected"),
        ({"padding": 0.5}, r"padding=0.5, expected"),
        ({"padding": [1, 2, 3]}, r"padding=\[1, 2, 3\], expected"),
        ({"padding": [0.5, 1]}, r"padding=\[0.5, 1\], expected"),
        ({"f": torch.ones(5)}, r"padding=0: the padded width 4 is less than f's 5 taps"),
        ({"padding": [0, 0, -3, 0]}, r"padding=\[0, 0, -3, 0\]: the padded height 1 is less than f's 2 taps"),
    ],
    ids=lambda v: f"{next(iter(v))}-{str(next(iter(v.values())))[:12]}" if isinstance(v, dict) else "",
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        upfirdn2d(**({"x": torch.zeros(1, 3, 4, 4), "f": torch.ones(2)} | kwargs))


def test_a_float64_filter_is_used_in_float64():
    """As in a network whose buffers were converted by .double()."""
    x, f = rand(1, 2, 5, 5), torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 7
    assert_close(upfirdn2d(x, f), upfirdn2d_reference(x, f), 1e-14)
