"""The emulation that runs csrc's kernels on the CPU: it catches faults, and kernels don't depend on thread order."""

import ctypes
from pathlib import Path

import pytest
import torch
from ops_util import rand

from gankern import build, ops
from gankern.ops import use_impl

BROKEN = Path(__file__).parents[1] / "csrc" / "broken.cu"
FAULTS = ["none", "no_barrier", "read_past", "write_past", "shared_past", "unwritten", "misaligned"]
FAULTS += ["barrier_for_some", "early_return"]
ORDERS = {"forward": (0, 0), "reversed": (1, 0), "shuffled": (2, 1), "shuffled again": (2, 2)}


def emulate(library: Path, order: str, races: bool = True) -> None:
    ctypes.CDLL(library).gankern_emulate(*ORDERS[order], races)


@pytest.fixture(scope="module")
def broken(builds):
    library = build.build("host", sources=[BROKEN], cache=builds)
    torch.ops.load_library(library)
    return library


def reverse(fault: str, groups: int = 2) -> torch.Tensor:
    x, y = torch.arange(64.0 * groups), torch.full((64 * groups,), -1.0)
    torch.ops.gankern_broken.reverse(x, y, FAULTS.index(fault))
    return y


# -- what it catches ---------------------------------------------------------------------------------------------------


@pytest.mark.unforced
@pytest.mark.parametrize("order", ORDERS)
def test_a_right_kernel_passes(broken, order):
    emulate(broken, order)
    assert torch.equal(reverse("none"), torch.arange(128.0).view(2, 64).flip(1).flatten())


@pytest.mark.unforced
def test_a_missing_barrier_changes_the_result_with_the_order(broken):
    seen = []
    for order in ORDERS:
        emulate(broken, order, races=False)
        seen.append(reverse("no_barrier"))
    assert not all(torch.equal(seen[0], y) for y in seen[1:])


@pytest.mark.unforced
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no_barrier", r"with no barrier between|before a write"),
        ("read_past", r"block \(1, 0, 0\) thread \(63, 0, 0\): read of 1 at element 128 of 128"),
        ("write_past", r"write of 1 at element 128 of 128"),
        ("shared_past", r"thread \(63, 0, 0\): shared write of 1 at element 64 of 64"),
        ("unwritten", r"thread \(58, 0, 0\): shared memory read at byte 20 before a write"),
        ("misaligned", r"write that isn't aligned"),
        ("barrier_for_some", r"a barrier or shuffle that not all threads reach|no barrier between|before a write"),
        ("early_return", r"a barrier or shuffle that not all threads reach"),
    ],
)
def test_a_fault_is_caught(broken, fault, message, order):
    emulate(broken, order)
    with pytest.raises(RuntimeError, match=message):
        reverse(fault)
    assert torch.equal(reverse("none")[:64], torch.arange(64.0).flip(0))  # and the next launch is sound


@pytest.mark.unforced
@pytest.mark.parametrize("order", ORDERS)
def test_shuffles(broken, order):
    emulate(broken, order)
    x = rand(64, dtype=torch.float32).round(decimals=2)
    total, third = torch.empty(64), torch.empty(64)
    torch.ops.gankern_broken.shuffles(x, total, third)
    assert torch.allclose(total.view(2, 32), x.view(2, 32).sum(1, keepdim=True).expand(2, 32), atol=1e-5)
    assert torch.equal(third.view(2, 32), x.view(2, 32)[:, 3:4].expand(2, 32))


@pytest.mark.unforced
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_number_converts_as_torch_converts_it(host_build, dtype):
    emulate(host_build, "forward")
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).view(256, 256)
    for gain in (1.0, 0.7310585, 1.9999, 3e-5):  # products of all lengths, subnormal and infinite ones too
        got, want = ops.bias_act(x, act="linear", gain=gain, impl="cuda"), (x.float() * gain).to(dtype)
        assert ((got == want) | (got.isnan() & want.isnan())).all(), gain


# -- the kernels in every order ----------------------------------------------------------------------------------------

F4 = ops.setup_filter([1, 3, 3, 1])
W, S, NOISE = rand(8, 8, 3, 3, dtype=torch.float32), rand(4, 8, dtype=torch.float32), rand(4, 1, 12, 16)
F12 = ops.setup_filter([1, 2, 3, 4, 5, 6, 6, 5, 4, 3, 2, 1])
CALLS = {
    "bias_act": lambda x, b: ops.bias_act(x, b, act="lrelu", clamp=0.8, residual=x * 0.5),
    "bias_act swish": lambda x, b: ops.bias_act(x, b, act="swish"),
    "pixel_norm": lambda x, b: ops.pixel_norm(x),
    "pixel_norm last": lambda x, b: ops.pixel_norm(x, -1),
    "pixel_norm long": lambda x, b: ops.pixel_norm(x.flatten(1)),
    "minibatch_stddev": lambda x, b: ops.minibatch_stddev(x, 2, 2),
    "minibatch_stddev large": lambda x, b: ops.minibatch_stddev(x.repeat(1, 1, 6, 6), 2, 2),
    "upfirdn2d up": lambda x, b: ops.upfirdn2d(x, F4, up=2, padding=[2, 1, 2, 1]),
    "upfirdn2d down": lambda x, b: ops.upfirdn2d(x, F12, down=2, padding=5),
    "upfirdn2d direct": lambda x, b: ops.upfirdn2d(x, F4, up=[3, 1], down=[2, 1], padding=2),
    "upfirdn2d_bias_act": lambda x, b: ops.upfirdn2d_bias_act(x, F4, b, up=2, padding=[2, 1, 2, 1], act="lrelu"),
    "bias_act_upfirdn2d": lambda x, b: ops.bias_act_upfirdn2d(x, b, F4, down=2, padding=1, clamp=2),
    "modulated_conv2d up": lambda x, b: ops.modulated_conv2d(
        x, W, b.float().expand(4, 8) + 1, None, 2, 1, F4, bias=b, act="lrelu", next_styles=S
    ),
    "modulated_conv2d": lambda x, b: ops.modulated_conv2d(
        x, W, b.float().expand(4, 8) + 1, NOISE, padding=1, bias=b, act="lrelu", clamp=3, next_styles=S, both=True
    )[1],
}


@pytest.mark.unforced
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("call", CALLS)
def test_kernels_give_the_same_bits_in_every_order(host_build, call, channels_last, dtype):
    x = rand(4, 8, 12, 16, dtype=dtype, grad=True, channels_last=channels_last)
    b = rand(8, seed=1, dtype=dtype, grad=True)
    seen = {}
    for order in ORDERS:
        emulate(host_build, order)
        with use_impl("cuda"):
            y = CALLS[call](x, b)
            dy = rand(*y.shape, seed=2, dtype=dtype)
            first = torch.autograd.grad(y, [x, b], dy, create_graph=True, allow_unused=True)
            first = [g for g in first if g is not None]
            plain = torch.autograd.grad(CALLS[call](x, b), [x, b], dy, allow_unused=True)
            dot = sum((g * rand(*g.shape, seed=3, dtype=dtype)).sum() for g in first)
            second = torch.autograd.grad(dot, [x], allow_unused=True) if dot.requires_grad else ()
        seen[order] = [t.detach() for t in (y, *first, *plain, *second) if t is not None]
    emulate(host_build, "forward")
    for order, tensors in seen.items():
        for one, other in zip(seen["forward"], tensors, strict=True):
            assert torch.equal(one, other), order
