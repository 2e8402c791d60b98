"""minibatch_stddev: golden numbers, groups and channels, derivatives, half types, arguments."""

import pytest
import torch
from ops_util import assert_close, assert_half_error, assert_same_derivatives, check_gradients, is_format, leaf, rand

from gankern.ops import minibatch_stddev, minibatch_stddev_reference


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
def test_gradcheck(n, group_size, num_channels):
    x = rand(n, 6, 2, 1, grad=True)
    # a group of one has no deviation: eps keeps the square root's curvature within finite differences
    check_gradients(lambda x: minibatch_stddev(x, group_size, num_channels, eps=1e-2), x, fast=False)


@GROUPS
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (1, 63)], ids=str)
def test_parity(n, group_size, num_channels, size):
    inputs, args = {"x": rand(n, 6, *size, grad=True)}, {"group_size": group_size, "num_channels": num_channels}
    assert_same_derivatives(lambda x: minibatch_stddev(x, **args), lambda x: truth(x, **args), inputs, 1e-9)
    group = n if group_size is None else min(group_size, n)
    assert_close(minibatch_stddev_reference(inputs["x"], group, num_channels), truth(inputs["x"], **args), 1e-13)


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
