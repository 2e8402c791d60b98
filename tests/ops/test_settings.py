"""Every setting of bias_act's and the modulated layer's kernels gives the reference's numbers, as do tiny tiles."""

import importlib

import pytest
import torch
from ops_util import derivatives, rand

from gankern import ops
from gankern.ops import _impl
from gankern.ops._triton import CONFIGS, force_config

IMPLS = ("triton",)
pytestmark = pytest.mark.skipif(not _impl.interpreting(), reason="the interpreter is off where there is a GPU")
for module in ("bias_act.kernels", "modulated_conv2d.kernels", "modulated_conv2d.fir", "modulated_conv2d.gemm"):
    importlib.import_module(f"gankern.ops.{module}")

F4 = ops.setup_filter([1, 3, 3, 1])
TINY = {
    "bias_act_forward": {"TILE": 64},
    "bias_act_backward": {"TILE": 64, "WAVES": 1},
    "bias_act_second": {"TILE": 64, "WAVES": 1},
    "layer_forward": {"TILE": 64},
    "layer_backward": {"TILE": 64, "WAVES": 1},
    "layer_fir_forward": {"BYTES": 256, "ROWS": 2, "PX": 1, "AHEAD": True},
    "layer_fir_backward": {"BYTES": 256, "ROWS": 2, "PX": 1, "AHEAD": False},
    "layer_gemm": {"BM": 16, "BK": 16},
    "layer_sums": {"ROWS": 4, "COLS": 16},
}
SETTINGS = [
    pytest.param(name, setting, id=f"{name}-{number}")
    for name, tiny in TINY.items()
    for number, setting in enumerate([*CONFIGS[name], tiny | {"num_warps": 1}])
]


def call(name, impl):
    """A call that runs the kernel `name`, as a function of its tensors."""
    if name.startswith("bias_act"):
        return lambda x, bias: ops.bias_act(x, bias, act="swish", clamp=0.9, impl=impl)
    impl = "triton_gemm" if name == "layer_gemm" and impl == "triton" else impl
    up = 2 if "fir" in name else 1
    return lambda x, bias, weight, styles, strength, following: ops.modulated_conv2d(
        x,
        weight,
        styles,
        rand(2, 1, up * x.shape[2], up * x.shape[3], dtype=x.dtype),
        up,
        1,
        F4,
        bias=bias,
        act="lrelu",
        noise_strength=strength,
        next_styles=following,
        styled=True,
        impl=impl,
    )


def inputs(name, dtype, channels_last):
    """Odd sizes, of several tiles of a tiny setting along each dimension."""
    if name.startswith("bias_act"):
        shapes = {"x": (2, 20, 5, 7), "bias": (20,)}
    else:
        i, o = (5, 3) if "fir" in name else (18, 20)
        size = (3, 4) if "fir" in name else (5, 7)
        shapes = {"x": (2, i, *size), "bias": (o,), "weight": (o, i, 3, 3), "styles": (2, i)}
        shapes |= {"strength": (1,), "following": (2, o)}
    made = {k: rand(*s, seed=n, dtype=dtype) for n, (k, s) in enumerate(shapes.items())}
    if channels_last:
        made["x"] = made["x"].contiguous(memory_format=torch.channels_last)
    return {k: t.requires_grad_() for k, t in made.items()}


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_every_setting(name, setting, channels_last):
    """In float32, whose tolerance says nothing of rounding in half types: those have their own tests."""
    if name == "layer_gemm" and not channels_last:
        pytest.skip("the implicit product is of channels_last")
    got_inputs, want_inputs = inputs(name, torch.float32, channels_last), inputs(name, torch.float64, channels_last)
    with force_config(name, setting):
        got = derivatives(call(name, "triton"), got_inputs)
    want = derivatives(call(name, "reference"), want_inputs)
    for key, t in want.items():
        assert got[key].shape == t.shape
        error = (got[key].double() - t).abs().max().item()
        assert error <= 1e-5 * max(1.0, t.abs().max().item()), f"{key}: {error:.3g}"


def test_the_settings_of_every_kernel_here_are_tested():
    own = {name for name in CONFIGS if name.startswith(("bias_act_", "layer_"))} - {"layer_second"}
    assert {name for name in own if not name.startswith("bias_act_pixel_norm_")} == set(TINY)  # both have modules
