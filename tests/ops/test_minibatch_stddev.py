"""minibatch_stddev: golden numbers, groups and channels, derivatives, half types, arguments."""

import contextlib

import pytest
import torch
from ops_util import assert_close, assert_half_error, assert_same_derivatives, check_gradients, is_format, leaf, rand

from gankern.ops import _impl, minibatch_stddev, minibatch_stddev_reference
from gankern.ops._triton import CONFIGS, force_config

IMPLS = ("reference", "triton", "cuda")


def truth(x, group_size=4, num_channels=1, eps=1e-8):
    """Sample by sample and channel group by channel group, in x's own dtype."""
    n, c = x.shape[:2]
    group = n if group_size is None else min(group_size, n)
    groups = n // group
    rows = []
    for i in range(n):
        members = torch.stack([x[j] for j in range(n) if j % groups == i % groups])
        sigma = ((members - members.mean(0)).square().mean(0) + eps).sqrt()
        stats = [part.mean() for part in sigma.split(c // num_channels)]
        rows.append(torch.cat([x[i], torch.stack(stats)[:, None, None].expand(-1, *x.shape[2:])]))
    return torch.stack(rows)


GROUPS = pytest.mark.parametrize(
    ("n", "group_size", "num_channels"),
    [(1, 4, 1), (4, 4, 1), (8, 4, 2), (6, 3, 1), (6, None, 3), (3, 1, 1), (2, 4, 6), (8, 2, 1)],
    ids=lambda v: str(v),
)


def test_golden(golden_cases):
    for case, a in golden_cases("minibatch_stddev"):
        x, dy, ddx = leaf(a["x"]), leaf(a["dy"]), torch.as_tensor(a["ddx"])
        y = minibatch_stddev(x, case["group_size"], case["num_channels"], case["eps"])
        (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
        grad_dy, grad_x = torch.autograd.grad(dx, [dy, x], ddx)
        got = {"x": x, "dy": dy, "ddx": ddx, "y": y, "dx": dx, "grad_dy": grad_dy, "grad_x": grad_x}
        for key, want in a.items():
            assert_close(got[key], want, 1e-12, f"{case['name']}/{key}")


@GROUPS
def test_gradcheck(n, group_size, num_channels, impl):
    if impl != "reference" and n > 4 and group_size:
        pytest.skip("slow in the interpreter, and test_parity has these groups too")
    x = rand(n, 6, 2, 1, grad=True)
    # a group of one has no deviation: eps keeps the square root's curvature within finite differences
    check_gradients(lambda x: minibatch_stddev(x, group_size, num_channels, eps=1e-2), x, fast=impl != "reference")


@GROUPS
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (1, 63)], ids=str)
def test_parity(n, group_size, num_channels, size):
    inputs, args = {"x": rand(n, 6, *size, grad=True)}, {"group_size": group_size, "num_channels": num_channels}
    assert_same_derivatives(lambda x: minibatch_stddev(x, **args), lambda x: truth(x, **args), inputs, 1e-9)
    group = n if group_size is None else min(group_size, n)
    assert_close(minibatch_stddev_reference(inputs["x"], group, num_channels), truth(inputs["x"], **args), 1e-13)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(
    ("shape", "group_size", "num_channels"),
    [
        ((4, 8, 40, 28), 2, 2),
        ((2, 6, 45, 33), 2, 1),
        ((18, 6, 10, 7), 9, 1),
        ((24, 4, 8, 8), 12, 2),
        ((2, 7, 2, 2), 2, 1),
    ],
    ids=str,
)
def test_large_groups(shape, group_size, num_channels, channels_last):
    """Groups of many samples and of many pixels, which no one block of threads goes over alone."""
    inputs, args = {"x": rand(*shape, channels_last=channels_last, grad=True)}, (group_size, num_channels)
    assert_same_derivatives(lambda x: minibatch_stddev(x, *args), lambda x: truth(x, *args), inputs, 1e-9)


def test_one_channel():
    inputs = {"x": rand(4, 1, 3, 3, grad=True)}
    assert_same_derivatives(minibatch_stddev, truth, inputs)


@pytest.mark.parametrize("scale", [1, 30])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half(dtype, scale):
    assert_half_error(minibatch_stddev, truth, {"x": rand(8, 16, 4, 4) * scale}, dtype)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_keeps_the_memory_format(channels_last):
    x = rand(4, 3, 5, 4, channels_last=channels_last, grad=True)
    y = minibatch_stddev(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert is_format(y, channels_last)
    assert is_format(dx, channels_last)


def forced(**settings):
    """The settings of every kernel that walks over items."""
    stack = contextlib.ExitStack()
    for name in ("forward", "backward", "second"):
        stack.enter_context(force_config(f"minibatch_stddev_{name}", {"num_warps": 1, "WAVES": 1} | settings))
    return stack


@pytest.mark.kernels
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("alone", [10**6, 0], ids=["alone", "chunks"])
@pytest.mark.parametrize(("n", "group_size", "num_channels"), [(4, 2, 3), (3, None, 1), (20, None, 1)])
def test_many_tiles(n, group_size, num_channels, alone, channels_last, impl):
    """Several tiles a program, chunks whose sums a second launch adds, and groups larger than a tile."""
    inputs = {"x": rand(n, 6, 2, 3, channels_last=channels_last, grad=True)}
    args = {"group_size": group_size, "num_channels": num_channels}
    with forced(TILE=32, ALONE=alone):
        assert_same_derivatives(lambda x: minibatch_stddev(x, **args), lambda x: truth(x, **args), inputs, 1e-9)


@pytest.mark.kernels
@pytest.mark.parametrize("name", ["forward", "backward", "second", "fill"])
def test_every_setting(name, impl):
    import gankern.ops.minibatch_stddev.kernels  # noqa: F401  (declares the settings)

    inputs = {"x": rand(4, 4, 9, 7, grad=True)}
    for settings in CONFIGS[f"minibatch_stddev_{name}"]:
        others = forced(TILE=64, ALONE=0) if name == "fill" else contextlib.nullcontext()
        with others, force_config(f"minibatch_stddev_{name}", settings):
            assert_same_derivatives(minibatch_stddev, truth, inputs, 1e-9)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_gradients_of_any_strides(channels_last):
    x = rand(4, 4, 3, 2, channels_last=channels_last, grad=True)
    y = minibatch_stddev(x, 2, 2)
    for dy in (torch.ones((), dtype=y.dtype).expand(y.shape), rand(4, 6, 3, 4)[..., ::2]):
        got, want = (torch.autograd.grad(y, x, d, create_graph=True)[0] for d in (dy, dy.contiguous()))
        assert_close(got, want, 1e-12)
        again, plain = (torch.autograd.grad(g.sum(), x, retain_graph=True)[0] for g in (got, want))
        assert_close(again, plain, 1e-12)


def test_empty_batch():
    x = rand(0, 4, 3, 3, grad=True)
    y = minibatch_stddev(x, 2, 2)
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    dx.sum().backward()
    assert y.shape == (0, 6, 3, 3)
    assert dx.shape == x.grad.shape == x.shape


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_opcheck_of_second_order(channels_last, impl):
    v, x = (rand(4, 6, 3, 2, seed=i, dtype=torch.float32, channels_last=channels_last) for i in range(2))
    dy = rand(4, 8, 3, 2, dtype=torch.float32, channels_last=channels_last)
    torch.library.opcheck(torch.ops.gankern.minibatch_stddev_second.default, [v, dy, x, 2, 2, 1e-8, impl])


@pytest.mark.kernels
@pytest.mark.parametrize("size", [4, 128])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_a_batch_compiles_nothing_anew(size, channels_last, impl):

    def launches(n):
        x = torch.empty(n, 64, size, size, device="meta")
        x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        with _impl.record() as found:
            y = minibatch_stddev(x.requires_grad_())
            torch.autograd.grad(y, x, torch.empty_like(y).requires_grad_(), create_graph=True)[0].backward(x.detach())
        loose = {"groups", "group", "many"}  # not specialised
        seen = []
        for la in found:
            names = [name for name in la.kernel.arg_names if name not in la.constants]
            numbers = {k: v for k, v in zip(names, la.args, strict=True) if isinstance(v, int) and k not in loose}
            seen.append((la.name, la.key, la.constants, la.config, numbers))
        return seen

    fills = ["minibatch_stddev_fill"] * (size > 4)
    names = ["minibatch_stddev_forward", *fills, "minibatch_stddev_backward", "minibatch_stddev_second", *fills]
    assert [la[0] for la in launches(8)] == names
    assert launches(8) == launches(32)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"group_size": 4}, r"group_size=4 doesn't divide the batch of 6"),
        ({"group_size": 0}, r"group_size=0, expected None or a number >= 1"),
        ({"group_size": -2}, r"group_size=-2, expected"),
        ({"num_channels": 3}, r"num_channels=3, expected a divisor of x's 4 channels"),
        ({"num_channels": 0}, r"num_channels=0, expected"),
        ({"x": torch.zeros(6, 4)}, r"x is torch.float32 of shape \(6, 4\), expected .*\[N, C, H, W\]"),
        ({"x": torch.zeros(6, 4, 2, 2, dtype=torch.uint8)}, r"x is torch.uint8"),
    ],
    ids=lambda v: str(v)[:40] if isinstance(v, dict) else "",
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        minibatch_stddev(**({"x": torch.zeros(6, 4, 2, 2), "group_size": 3} | kwargs))
