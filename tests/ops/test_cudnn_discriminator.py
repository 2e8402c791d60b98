"""StyleGAN2's discriminator as one operator, its graphs run step by step: equal to the layers' definition."""

import pytest
import torch
import torch.nn.functional as F
from ops_util import assert_close, rand

from gankern.ops import use_impl
from gankern.ops._gradients import no_weight_gradients
from gankern.ops.conv2d import conv2d_resample
from gankern.ops.cudnn.discriminator import MERGED, discriminator

pytestmark = pytest.mark.unforced
N, ALPHA = 2, 0.2
CHANNELS = 3, 4, 5, 6


def operands(kinds, dtype=torch.float64, size=4, frozen=()):
    """(img, weights, biases, f, kinds) of so many blocks, the last of which ends at size/2."""
    like = {"dtype": dtype, "channels_last": True}
    weights, biases = [rand(CHANNELS[0], 3, 1, 1, **like)], [rand(CHANNELS[0], dtype=dtype)]
    for b in range(len(kinds)):
        c, o = CHANNELS[b : b + 2]
        weights += [
            rand(c, c, 3, 3, seed=b, **like),
            rand(o, c, 3, 3, seed=b, **like),
            rand(o, c, 1, 1, seed=b, **like),
        ]
        biases += [rand(c, seed=10 + b, dtype=dtype), rand(o, seed=20 + b, dtype=dtype)]
    side = size << (len(kinds) - 1)
    img, f = rand(N, 3, side, side, **like), rand(4, seed=30, dtype=torch.promote_types(dtype, torch.float32)).abs()
    for name, ts in {"img": [img], "weights": weights, "biases": biases}.items():
        for t in ts:
            t.requires_grad_(name not in frozen)
    return img, weights, biases, f, list(kinds)


def named(img, weights, biases, *_):
    """{name: tensor} of those that have gradients."""
    lists = {"img": [img], "weights": weights, "biases": biases}
    return {f"{k}{i}": t for k, ts in lists.items() for i, t in enumerate(ts) if t.requires_grad}


def definition(img, weights, biases, f, kinds, alpha):
    """The equations of discriminator.py, a line each."""
    x = F.leaky_relu(F.conv2d(img, weights[0], biases[0]), alpha)
    for b in range(len(kinds)):
        w0, w1, w2 = weights[1 + 3 * b : 4 + 3 * b]
        b0, b1 = biases[1 + 2 * b : 3 + 2 * b]
        y = F.leaky_relu(F.conv2d(x, w0, b0, padding=1), alpha)
        y = conv2d_resample(y, w1, f, down=2, padding=1, impl="reference") + b1[:, None, None]
        x = F.leaky_relu(y, alpha) + conv2d_resample(x, w2, f, down=2, impl="reference")
    return x


def both(of, fn):
    """[fn of the definition, fn of the operator]."""
    found = []
    for judge, impl in ((definition, "reference"), (discriminator, "cudnn")):
        with use_impl(impl):
            found.append(fn(judge(*of, ALPHA)))
    return found


def check(of):
    wrt = named(*of)

    def all_of(x):
        return {
            "x": x,
            **dict(zip(wrt, torch.autograd.grad(x, list(wrt.values()), rand(*x.shape, seed=5)), strict=True)),
        }

    want, got = both(of, all_of)
    for name, t in want.items():
        assert_close(got[name], t, what=name)


KINDS = [(0,), (MERGED,), (MERGED, MERGED), (MERGED, 0), (0, MERGED), (MERGED, MERGED, MERGED)]


@pytest.mark.parametrize("kinds", KINDS)
def test_features_and_gradients(fused_graphs, kinds):
    check(operands(kinds))
    names = [graph.name for graph in fused_graphs]
    merged = kinds.count(MERGED)
    assert names.count("conv") == 1 + 2 * len(kinds) + merged
    assert names.count("conv_gradient") == len(kinds) + merged


def test_a_whole_filter(fused_graphs):
    of = operands((MERGED, 0))
    check((*of[:3], rand(4, 4, seed=31), of[4]))


@pytest.mark.parametrize(
    "frozen", [("img",), ("weights", "biases"), ("img", "weights"), ("biases",), ("img", "biases")]
)
def test_frozen_operands(fused_graphs, frozen):
    check(operands((MERGED, 0), frozen=frozen))


@pytest.mark.parametrize("wrt", [["weights3"], ["biases1", "biases2"], ["weights0", "img0"]])
def test_gradients_of_single_operands(fused_graphs, wrt):
    of = operands((MERGED, MERGED))
    for name, t in named(*of).items():
        t.requires_grad_(name in wrt)
    assert sorted(named(*of)) == sorted(wrt)
    check(of)


def test_without_weight_gradients(fused_graphs):
    of = operands((MERGED, 0))
    want, _ = both(of, lambda x: torch.autograd.grad(x.square().sum(), of[0])[0])
    with use_impl("cudnn"):
        x = discriminator(*of, ALPHA)
    with no_weight_gradients():
        dimg, *others = torch.autograd.grad(x.square().sum(), list(named(*of).values()), allow_unused=True)
    assert_close(dimg, want)
    assert others == [None] * 12


def test_nothing_is_kept_where_no_gradient_is_recorded(fused_graphs):
    of = operands((MERGED, 0))
    want = definition(*of, ALPHA)
    for context in (torch.no_grad, torch.inference_mode):
        with context(), use_impl("cudnn"):
            got = discriminator(*of, ALPHA)
        assert not got.requires_grad
        assert_close(got, want)


def test_second_order(fused_graphs):
    """R1's, and the gradients of all first gradients."""
    of = operands((MERGED,))
    wrt = named(*of)

    def twice(x):
        dx = rand(*x.shape, seed=5).requires_grad_()
        first = torch.autograd.grad(x, list(wrt.values()), dx, create_graph=True)
        along = sum((g * rand(*g.shape, seed=40 + i)).sum() for i, g in enumerate(first))
        inputs = {"dx": dx} | wrt
        second = torch.autograd.grad(along, list(inputs.values()), retain_graph=True, allow_unused=True)
        penalty = torch.autograd.grad(first[0].square().sum(), list(wrt.values()), allow_unused=True)
        names = [*wrt, *(f"d {k}" for k in inputs), *(f"r1 {k}" for k in wrt)]
        found = zip(names, [*first, *second, *penalty], strict=True)
        return {name: t for name, t in found if t is not None and t.any()}

    want, got = both(of, twice)
    assert got.keys() == want.keys()
    for name, t in want.items():
        assert_close(got[name], t, what=name)


def test_bfloat16(fused_graphs):
    """About the same numbers; operands lie as they are described."""
    img, weights, biases, f, kinds = operands((MERGED, 0), torch.bfloat16)
    half = img, weights, biases, f, kinds
    wide = [t.detach().double().requires_grad_() for t in named(*half).values()]
    with use_impl("cudnn"):
        x = discriminator(*half, ALPHA)
    want = definition(wide[0], wide[1:8], wide[8:], f.double(), kinds, ALPHA)
    assert x.dtype == torch.bfloat16
    dx = rand(*x.shape, seed=5)
    got = [x, *torch.autograd.grad(x, list(named(*half).values()), dx.bfloat16())]
    for name, a, b in zip(["x", *named(*half)], got, [want, *torch.autograd.grad(want, wide, dx)], strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.double() - b).norm() <= 0.05 * b.norm(), name


def test_as_a_registered_operator(fused_graphs):
    with use_impl("cudnn"):
        args = *operands((MERGED,)), ALPHA, True
        names = "test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static"
        torch.library.opcheck(torch.ops.gankern.discriminator.default, args, test_utils=names)
