"""What the operators' tests share: seeded tensors, comparisons to second order, and the error bound in half types."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck


def rand(*shape, seed=0, dtype=torch.float64, grad=False, channels_last=False):
    """A standard normal tensor, the same for the same arguments."""
    generator = torch.Generator().manual_seed(1000 * seed + math.prod(shape) + len(shape))
    t = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    if channels_last:
        t = t.contiguous(memory_format=torch.channels_last)
    return t.requires_grad_(grad)


def leaf(array):
    """A NumPy array as a tensor that requires a gradient."""
    return torch.as_tensor(array).clone().requires_grad_()


def assert_close(got, want, rtol=1e-10, what=""):
    """max |got − want| <= rtol · max |want|, with equal shapes and no NaN."""
    want = torch.as_tensor(want)
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    if want.numel():
        error = (got.detach().double() - want.detach().double()).abs().max().item()
        bound = rtol * max(want.detach().double().abs().max().item(), 1e-3)
        assert error <= bound, f"{what}: error {error:.3g} over {bound:.3g}"


def derivatives(fn, inputs):
    """{name: tensor}: fn's output, its first gradients along a fixed dy, and the gradients of Σ <first, v> for fixed v.

    `inputs`: {name: tensor}; those that require gradients get them. Second-order gradients include dy's.
    """
    y = fn(**inputs)
    wrt = {k: t for k, t in inputs.items() if isinstance(t, torch.Tensor) and t.requires_grad}
    dy = rand(*y.shape, seed=91, dtype=y.dtype, grad=True)
    first = torch.autograd.grad(y, list(wrt.values()), dy, create_graph=True)
    out = {"y": y} | {f"d{k}": g for k, g in zip(wrt, first, strict=True)}
    dot = sum((g * rand(*g.shape, seed=92 + i, dtype=g.dtype)).sum() for i, g in enumerate(first))
    second = torch.autograd.grad(dot, [dy, *wrt.values()], allow_unused=True)
    zeros = [torch.zeros_like(t) if g is None else g for g, t in zip(second, [dy, *wrt.values()], strict=True)]
    return out | {f"dd_{k}": g for k, g in zip(["dy", *wrt], zeros, strict=True)}


def assert_same_derivatives(ours, truth, inputs, rtol=1e-10):
    """`ours` and `truth` agree in value, first and second order."""
    got, want = derivatives(ours, inputs), derivatives(truth, inputs)
    for name in want:
        assert_close(got[name], want[name], rtol, name)


def check_gradients(fn, *inputs, fast=True):
    """gradcheck and gradgradcheck in float64."""
    torch.manual_seed(0)
    assert gradcheck(fn, inputs, fast_mode=fast)
    assert gradgradcheck(fn, inputs, fast_mode=fast)


DRAWS = 3  # of dy: the largest error of a handful of sums is too noisy a number to compare


def assert_half_error(ours, eager, inputs, dtype, kinks=()):
    """Value and gradients in `dtype` err from float64 at most twice as far as eager's, or as rounding the truth does.

    No gradient arrives where |y| is near one of `kinks`: the derivative jumps there, and rounding decides the side.
    """
    half = {k: t.to(dtype).requires_grad_() for k, t in inputs.items()}
    wide = {k: t.detach().double().requires_grad_() for k, t in half.items()}
    y = eager(**wide)
    dy = rand(DRAWS, *y.shape, seed=91, dtype=dtype)
    for kink in kinks:
        dy[:, (y.abs() - kink).abs() < 0.1] = 0
    truth, got_all, plain_all = (_first_order(f, t, dy) for f, t in ((eager, wide), (ours, half), (eager, half)))
    for name, want in truth.items():
        got, plain = got_all[name], plain_all[name]
        assert got.dtype == dtype, name
        error, allowed = ((t.double() - want).abs().max().item() for t in (got, plain))
        rounding = (want.to(dtype).double() - want).abs().max().item()
        bound = max(2 * allowed, rounding)
        assert error <= bound, f"{name}: error {error:.3g}, eager's {allowed:.3g}, rounding {rounding:.3g}"


def _first_order(fn, inputs, dys):
    """y, and the gradients of every dy."""
    y = fn(**inputs)
    grads = [torch.autograd.grad(y, list(inputs.values()), dy.to(y.dtype), retain_graph=True) for dy in dys]
    return {"y": y.detach()} | {f"d{k}": torch.stack(g) for k, g in zip(inputs, zip(*grads, strict=True), strict=True)}


def is_format(t, channels_last):
    return t.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def spare(impl, wanted):
    """The interpreter is slow: a kernel is spared what its other tests show as well."""
    if impl == "triton" and not wanted:
        pytest.skip("the kernel's other cases cover it")
