"""What `count` takes an operator for: launches, bytes, FLOPs and memory, against PyTorch's own counter and by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from gankern.bench.launches import multi_tensor_launches
from gankern.bench.traffic import count

CL = torch.channels_last
N = 4 * 6 * 8 * 8
IMAGE = 4 * N  # bytes


def image(*shape, memory_format=torch.contiguous_format, dtype=torch.float32):
    return torch.empty(*(shape or (4, 6, 8, 8)), device="meta", dtype=dtype).to(memory_format=memory_format)


def names(fn):
    return [call.name for call in count(fn).calls]


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.view(4, -1)[:, ::2].t(),
        lambda x: torch.ops.aten._unsafe_view(x, [4, -1]),
        lambda x: x.detach().expand(2, 4, 6, 8, 8),
        lambda x: x.to(x.dtype).contiguous(),
        lambda x: torch.empty_like(x).new_empty(3),
        lambda x: torch.promote_types(x.dtype, torch.float64),
        lambda x: x[:0] + 1,
        lambda x: x.size(0) + torch.ones([]),
    ],
    ids=["views", "unsafe view", "expand", "same type", "empty", "types", "no elements", "on the host"],
)
@pytest.mark.parametrize("below_autograd", [False, True])
def test_what_launches_nothing_is_free(fn, below_autograd):
    x = image()
    with torch._C._AutoDispatchBelowAutograd() if below_autograd else torch.no_grad():
        account = count(lambda: fn(x))
    assert account.calls == []


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda x: x.bfloat16(), [1.5]),
        (lambda x: x.clone(), [2]),
        (lambda x: x.contiguous(memory_format=CL), [2]),
        (lambda x: x + x, [2]),  # two arguments, one tensor: read once
        (lambda x: x.add_(1), [2]),
        (lambda x: x.fill_(1), [1]),
        (lambda x: x.copy_(x.new_empty(8)), [1]),
        (lambda x: torch.cat([x, x[:2]]), [1 + 1.5]),
        (lambda x: torch.cat([x[:2], x[2:]]), [2]),  # two parts of one storage
        (lambda x: x[:, :1].expand_as(x) * 2, [1 / 6 + 1]),
        (lambda x: x.sum(), [1]),
        (lambda x: torch.randn(x.shape, device="meta"), [1]),
        (lambda x: F.pad(x, [1, 1, 1, 1]), [100 / 64, 2]),
        (lambda x: torch.einsum("nchw,nc->nhw", x, x[:, :, 0, 0]), [1 + 1 / 6]),
    ],
)
def test_bytes_are_those_that_kernels_move(fn, expected):
    x = image()
    with torch._C._AutoDispatchBelowAutograd():
        account = count(lambda: fn(x))
    assert [call.bytes / IMAGE for call in account.calls] == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_convolutions_two_gradients_are_two_launches(transposed):
    convolve = F.conv_transpose2d if transposed else F.conv2d
    x, w = image().requires_grad_(), image(6, 6, 3, 3).requires_grad_()
    y = convolve(x, w, padding=1)
    backward = count(lambda: torch.autograd.grad(y, [x, w], image()))
    weight = 4 * 6 * 6 * 9
    assert [call.bytes for call in backward.calls] == [2 * IMAGE + weight] * 2
    assert len(names(lambda: torch.autograd.grad(convolve(x, w, padding=1), [x], image()))) == 2
    account = count(lambda: convolve(x, w, x.new_empty(6), padding=1))
    assert [call.bytes for call in account.calls] == [2 * IMAGE + weight, 2 * IMAGE + 24]


@pytest.mark.parametrize(
    ("x", "w", "copies"), [(CL, CL, 0), (CL, torch.contiguous_format, 1), (torch.contiguous_format,) * 2 + (0,)]
)
def test_a_weight_in_another_layout_costs_a_copy(x, w, copies):
    x, w = image(memory_format=x).requires_grad_(), image(6, 6, 3, 3, memory_format=w).requires_grad_()
    account = count(lambda: F.conv2d(x, w, padding=1))
    assert [call.name.endswith("(layout)") for call in account.calls] == [True] * copies + [False]
    assert sum(call.bytes for call in account.calls[:-1]) == copies * 2 * 4 * 6 * 6 * 9
    y = F.conv2d(x, w, padding=1)
    gradients = names(lambda: torch.autograd.grad(y, [x, w], torch.empty_like(x)))
    assert sum(name.endswith("(layout)") for name in gradients) == copies
    # a gradient in the library's layout is laid out as its parameter when it is kept
    y = F.conv2d(x, w, padding=1)
    assert names(lambda: y.backward(torch.empty_like(x), inputs=[w])).count("aten::copy_") == copies


def test_results_lie_as_the_library_lays_them():
    """On meta tensors PyTorch forgets that channels_last in one operand is channels_last in the result."""
    x, w, found = image(memory_format=CL).requires_grad_(), image(12, 6, 3, 3).requires_grad_(), []

    def fn():
        y = F.conv2d(x, w, padding=1)
        found.extend([y, *torch.autograd.grad(y, [x, w], torch.empty_like(y))])

    count(fn)
    assert [t.is_contiguous(memory_format=CL) for t in found] == [True] * 3


def test_flops_are_those_of_pytorchs_counter():
    x, w, v = image().requires_grad_(), image(12, 6, 3, 3).requires_grad_(), image(12, 4, 3, 3).requires_grad_()

    def fn():
        y = F.conv_transpose2d(F.conv2d(x, w, stride=2), v, stride=2)
        z = y.flatten(1) @ y.flatten(1).t()
        (F.linear(z, z) + torch.addmm(z, z, z) + torch.bmm(z[None], z[None])[0]).sum().backward()

    with FlopCounterMode(display=False) as counter:
        fn()
    assert count(fn).flops == counter.get_total_flops() > 0


@pytest.mark.parametrize(
    ("depth", "numels", "launches"),
    [
        (1, [1] * 110, 1),
        (1, [1] * 111, 2),
        (4, [1] * 36, 1),
        (4, [1] * 37, 2),
        (2, [320 * 65536], 1),
        (2, [320 * 65536 + 1], 2),
        (2, [319 * 65536 + 1, 1], 2),
        (2, [319 * 65536, 1], 1),
        (5, [0, 5, 0], 1),
        (1, [], 0),
        (3, [65536 * 321] * 2, 3),
    ],
)
def test_lists_of_tensors_are_packed_as_pytorch_packs_them(depth, numels, launches):
    assert multi_tensor_launches(depth, numels) == launches


def test_multi_tensor_operators_and_fused_adam():
    p, g, m, v = ([torch.empty(10, 10, device="meta") for _ in range(40)] for _ in range(4))
    steps = [torch.empty([], device="meta") for _ in p]
    all_of_them = 40 * 400
    options = {"lr": 0.1, "beta1": 0.0, "beta2": 0.9, "weight_decay": 0.0, "eps": 1e-8}
    adam = count(lambda: torch._fused_adam_(p, g, m, v, [], steps, **options, amsgrad=False, maximize=False))
    assert len(adam.calls) == 2  # 36 tensors of four lists, then 4
    assert adam.bytes == 7 * all_of_them + 40 * 4  # gradients and step counts are only read
    average = count(lambda: torch._foreach_lerp_(p, g, 0.5))
    assert (len(average.calls), average.bytes) == (1, 3 * all_of_them)
    assert len(names(lambda: torch._foreach_norm(p))) == 3
    other = [t.t() for t in g]
    assert len(names(lambda: torch._foreach_add_(p, other))) == 40


def test_the_peak_is_what_lives_at_a_time():
    x = image()

    def fn():
        x.add_(1)  # x was there before
        y = x.view(-1) + 1  # 1 image
        z = y.view(-1) * 2  # 2
        del y  # 1
        a = z + 1  # 2
        del z
        b = torch.cat([a, a, a])  # 4
        return b

    assert count(fn).peak_bytes == 4 * IMAGE
    w = image(6, 6, 3, 3).requires_grad_()
    y = image().requires_grad_()
    kept = count(lambda: torch.tanh(F.conv2d(y, w, padding=1)).square().sum().backward())
    assert 3 * IMAGE <= kept.peak_bytes <= 5.2 * IMAGE
