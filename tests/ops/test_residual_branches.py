"""residual_branches: against the two operators that it joins, to second order, in both layouts."""

import pytest
import torch
from ops_util import assert_same_derivatives, is_format, rand

from gankern import ops
from gankern.ops import residual_branches, setup_filter

IMPLS = ("reference", "triton", "cuda")
pytestmark = pytest.mark.usefixtures("few_programs")


def joined(x, w, f, padding=1):
    """Both results in one tensor, the second apart by a factor."""
    t, s = residual_branches(x, w, f, padding)
    return torch.cat([t.flatten(1), 1.7 * s.flatten(1)], 1)


def truth(x, w, f, padding=1):
    t = torch.nn.functional.conv2d(x, w, padding=padding)
    g = torch.outer(f.double(), f.double())
    pad = ops.downsample_padding(f)
    s = torch.nn.functional.pad(x, pad)
    s = torch.nn.functional.conv2d(
        s, g.flip(0, 1).to(x.dtype).expand(x.shape[1], 1, *g.shape), stride=2, groups=x.shape[1]
    )
    return torch.cat([t.flatten(1), 1.7 * s.flatten(1)], 1)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("taps", [[1, 3, 3, 1], list(range(1, 25))], ids=["4", "24"])
def test_parity(taps, channels_last):
    f = setup_filter(taps)
    x = rand(2, 3, 8, 6, seed=1, channels_last=channels_last, grad=True)
    inputs = {"x": x, "w": rand(4, 3, 3, 3, seed=2, grad=True)}
    assert_same_derivatives(lambda **t: joined(**t, f=f), lambda **t: truth(**t, f=f), inputs)


@pytest.mark.parametrize("used", [0, 1])
@pytest.mark.parametrize("wrt", ["x", "w"])
def test_one_branch_used(used, wrt):
    f = setup_filter([1, 3, 3, 1])
    t = {"x": rand(2, 3, 8, 6, seed=1), "w": rand(4, 3, 3, 3, seed=2)}
    t[wrt].requires_grad_()
    y = residual_branches(t["x"], t["w"], f, 1)[used]
    want = ops.conv2d(t["x"], t["w"], padding=1) if used == 0 else ops.downsample2d(t["x"], f)
    if want.requires_grad:
        torch.testing.assert_close(*(torch.autograd.grad(v.sin().sum(), t[wrt])[0] for v in (y, want)))
    elif y.requires_grad:
        assert torch.autograd.grad(y.sum(), t[wrt], allow_unused=True) == (None,)


def test_keeps_the_memory_format():
    x = rand(2, 16, 8, 8, dtype=torch.bfloat16, channels_last=True, grad=True)
    w = rand(16, 16, 3, 3, dtype=torch.bfloat16, channels_last=True, grad=True)
    t, s = residual_branches(x, w, setup_filter([1, 3, 3, 1]), 1)
    (dx,) = torch.autograd.grad([t, s], x, [torch.ones_like(t), torch.ones_like(s)])
    assert all(is_format(v, True) for v in (t, s, dx))


def test_bad_arguments():
    with pytest.raises(ValueError, match="weight"):
        residual_branches(torch.zeros(1, 3, 8, 8), torch.zeros(4, 2, 3, 3), setup_filter([1, 1]))
