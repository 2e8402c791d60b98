"""Every operator on a GPU against itself on the CPU in float64: value, first and second order, both layouts."""

import math

import pytest
import torch

from gankern import ops
from gankern.ops import _impl, use_impl

pytestmark = pytest.mark.gpu

F4 = ops.setup_filter([1, 3, 3, 1])
CALLS = {
    "bias_act": (lambda act, x, b: ops.bias_act(x, b, act=act), [(4, 6, 8, 8), (6,)]),
    "bias_act-residual": (
        lambda act, x, b, r: ops.bias_act(x, b, act=act, residual=r),
        [(4, 6, 8, 8), (6,), (4, 6, 8, 8)],
    ),
    "instance_norm": (lambda act, x, w, b: ops.instance_norm(x, w, b, act=act), [(4, 6, 8, 8), (4, 6), (6,)]),
    "bias_act_upfirdn2d": (
        lambda act, x, b: ops.bias_act_upfirdn2d(x, b, F4.to(x.device), act=act, padding=[2, 2, 2, 2]),
        [(4, 6, 8, 8), (6,)],
    ),
    "upfirdn2d_bias_act": (
        lambda act, x, b: ops.upfirdn2d_bias_act(x, F4.to(x.device), b, up=2, padding=[2, 1, 2, 1], act=act),
        [(4, 6, 8, 8), (6,)],
    ),
    "bias_act_pixel_norm": (lambda act, x, b: ops.bias_act_pixel_norm(x, b, act), [(4, 6, 8, 8), (6,)]),
    "pixel_norm": (lambda act, x: ops.pixel_norm(x), [(4, 6, 8, 8)]),
    "minibatch_stddev": (lambda act, x: ops.minibatch_stddev(x, 4, 3), [(4, 6, 8, 8)]),
    "upsample2d": (lambda act, x: ops.upsample2d(x * x, F4.to(x.device)), [(4, 6, 8, 8)]),
    "downsample2d": (lambda act, x: ops.downsample2d(x * x, F4.to(x.device)), [(4, 6, 8, 8)]),
    "conv2d": (lambda act, x, w: ops.conv2d(x, w, padding=1), [(4, 6, 8, 8), (8, 6, 3, 3)]),
    "modulated_conv2d": (
        lambda act, x, w, s, n, b: ops.modulated_conv2d(x, w, s, n, padding=1, bias=b, act=act),
        [(4, 6, 8, 8), (8, 6, 3, 3), (4, 6), (8, 8), (8,)],
    ),
    "modulated_conv2d-up": (
        lambda act, x, w, s, n, b: ops.modulated_conv2d(
            x, w, s, n, 2, 1, F4.to(x.device), flip_weight=False, bias=b, act=act
        ),
        [(4, 6, 8, 8), (8, 6, 3, 3), (4, 6), (4, 1, 16, 16), (8,)],
    ),
    "modulated_conv2d-chain": (
        lambda act, x, w, s, n, b, k, t: ops.modulated_conv2d(
            x, w, s, n, 2, 1, F4.to(x.device), bias=b, act=act, noise_strength=k, styled=True, next_styles=t
        ),
        [(4, 6, 8, 8), (8, 6, 3, 3), (4, 6), (16, 16), (8,), (1,), (4, 8)],
    ),
    "modulated_conv2d-to-rgb": (
        lambda act, x, w, s, b: ops.modulated_conv2d(x, w, s, demodulate=False, bias=b),
        [(4, 6, 8, 8), (3, 6, 1, 1), (4, 6), (3,)],
    ),
    "modulated_conv2d-gemm": (  # in channels_last and half types the implicit matrix product, else the usual way
        lambda act, x, w, s, n, b: ops.modulated_conv2d(
            x, w, s, n, padding=1, bias=b, act=act, impl="triton_gemm" if x.is_cuda else None
        ),
        [(4, 32, 9, 7), (48, 32, 3, 3), (4, 32), (9, 7), (48,)],
    ),
}
for name in ("bias_act", "bias_act-residual", "bias_act_upfirdn2d", "upfirdn2d_bias_act", "pixel_norm", "upsample2d"):
    CALLS[f"{name}-vectors"] = (CALLS[name][0], [[16 if n == 6 else n for n in shape] for shape in CALLS[name][1]])
CALLS["downsample2d-vectors"] = (CALLS["downsample2d"][0], [(4, 16, 8, 8)])
CALLS["minibatch_stddev-vectors"] = (lambda act, x: ops.minibatch_stddev(x, 4, 8), [(4, 8, 8, 8)])
CALLS["modulated_conv2d-vectors"] = (
    CALLS["modulated_conv2d"][0],
    [(4, 16, 8, 8), (16, 16, 3, 3), (4, 16), (8, 8), (16,)],
)
"""-vectors: so many channels that channels_last runs in 16-byte vectors."""
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}  # of the norm


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def derivatives(call, act, dtype, device, rounded_to, channels_last=False):
    """Value, gradients of <y, dy> without and with a graph, and the gradients of their products with directions."""
    fn, shapes = CALLS[call]
    rng = torch.Generator().manual_seed(0)

    def draw(shape):
        return torch.randn(shape, generator=rng, dtype=torch.float64).to(rounded_to).to(device, dtype)

    inputs = [draw(s) for s in shapes]
    if channels_last:
        inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    inputs = [t.requires_grad_() for t in inputs]
    y = fn(act, *inputs)
    dy = draw(y.shape)
    plain = torch.autograd.grad(y, inputs, dy, retain_graph=True)  # other kernels than under create_graph
    first = torch.autograd.grad(y, inputs, dy, create_graph=True)
    along = [(g, draw(g.shape)) for g in first]
    depends = [(g, v) for g, v in along if g.requires_grad]  # the gradient of what enters linearly is dy's alone
    second = [None] * len(inputs)
    if depends:
        values, directions = zip(*depends, strict=True)
        second = torch.autograd.grad(values, inputs, directions, allow_unused=True)
    zeros = [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, second, strict=True)]
    return [t.detach().double().cpu() for t in (y, *plain, *first, *zeros)]


# in half types rounding decides on which side of a kink a value falls, and no bound holds; linear goes lrelu's way
ACTS = {torch.float32: ("lrelu",), torch.bfloat16: ("tanh", "linear"), torch.float16: ("tanh", "linear")}
WAYS = [pytest.param(dtype, act, id=f"{dtype}-{act}") for dtype, acts in ACTS.items() for act in acts]


TRITON_ONLY = ("bias_act_pixel_norm", "instance_norm", "conv2d", "modulated_conv2d-gemm")


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("dtype", "act"), WAYS)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kernels", ["triton", "cuda"])
def test_gpu_equals_cpu(kernels, call, dtype, act, channels_last):
    if kernels == "cuda" and call in TRITON_ONLY:
        pytest.skip("no kernel of csrc")
    obstacle = _impl.obstacle(kernels, torch.device("cuda", torch.cuda.current_device()))
    if obstacle:
        pytest.skip(f"{kernels}: {obstacle}")
    want = derivatives(call, act, torch.float64, "cpu", dtype)
    with use_impl(kernels):
        got = derivatives(call, act, dtype, "cuda", dtype, channels_last)
    # a sum over all of y that happens to cancel is as wrong as its terms are: so large is such a sum by nature
    natural = 0.3 * math.sqrt(want[0].numel())
    for number, (a, b) in enumerate(zip(got, want, strict=True)):
        assert (a - b).norm() <= TOLERANCE[dtype] * b.norm().clamp(min=natural), f"output {number}"


@pytest.mark.parametrize("kernels", ["triton", "cuda"])
def test_compiled_calls_choose_as_eager_ones_do(kernels):
    obstacle = _impl.obstacle(kernels, torch.device("cuda", torch.cuda.current_device()))
    if obstacle:
        pytest.skip(f"{kernels}: {obstacle}")
    x, b = torch.randn(4, 16, 8, 8, device="cuda"), torch.randn(16, device="cuda")
    call = torch.compile(lambda x, b: ops.bias_act(x, b, act="lrelu"), fullgraph=True)
    with use_impl(kernels):
        assert torch.equal(call(x, b), ops.bias_act(x, b, act="lrelu"))
