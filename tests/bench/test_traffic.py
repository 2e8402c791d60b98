"""The rule, held by count: between two convolutions an activation crosses memory once each way (on meta tensors)."""

import pytest
import torch

from gankern import ops
from gankern.bench.traffic import count
from gankern.models.stylegan2 import DiscriminatorBlock

N, C, R = 8, 64, 512
A = N * C * R * R * 2  # bytes of an activation [8, 64, 512, 512] in bfloat16
DX, DW = (f"aten::convolution_backward ({of})" for of in ("dx", "dw"))
SMALL = 0.05  # weights, styles, noise and partial sums together, in A


def meta(*shape, dtype=torch.float32, channels_last=False):
    t = torch.empty(*shape, dtype=dtype, device="meta")
    t = t.to(memory_format=torch.channels_last) if channels_last else t
    return t.requires_grad_()


def forward_and_backward(fn, inputs):
    """The accounts of fn() and of its gradients with respect to `inputs`."""
    y = fn()
    dy = torch.empty_like(y)
    return count(fn), count(lambda: torch.autograd.grad(y, inputs, dy, allow_unused=True))


def layer(impl, up=1, styled=True, outputs=C):
    """One modulated layer as it stands in a chain: x comes styled, y leaves times the next layer's styles."""
    x = meta(N, C, R // up, R // up, dtype=torch.bfloat16, channels_last=True)
    w, s, following = meta(outputs, C, 3, 3), meta(N, C), meta(N, outputs)
    b, strength, noise = meta(outputs, dtype=torch.bfloat16), meta(1), torch.empty(N, 1, R, R, device="meta")
    f = torch.empty(4, device="meta")
    kwargs = {"styled": True, "next_styles": following} if styled else {}
    inputs = [x, w, s, b, strength, *([following] if styled else [])]
    fn = lambda: ops.modulated_conv2d(  # noqa: E731
        x, w, s, noise, up, 1, f, bias=b, act="lrelu", noise_strength=strength, impl=impl, **kwargs
    )
    return forward_and_backward(fn, inputs)


def large(account):
    """Names and bytes, in A, of the calls that move more than a twentieth of an activation."""
    return [(call.name, round(call.bytes / A, 2)) for call in account.calls if call.bytes > SMALL * A]


KERNELS = pytest.mark.parametrize("impl", ["triton", "cuda"])


@KERNELS
def test_a_modulated_layer_keeps_to_the_rule(impl):
    forward, backward = layer(impl)
    assert large(forward) == [("aten::convolution", 2.0), ("layer_forward", 2.03)]
    # the library's input gradient and its weight gradient, which both read dt
    assert large(backward) == [("layer_backward", 3.03), (DX, 2.0), (DW, 2.0)]
    assert forward.bytes + backward.bytes <= (2 + 2 + 3 + 4 + 2 * SMALL) * A


@KERNELS
def test_an_upsampling_layer_has_its_filter_in_the_pass(impl):
    forward, backward = layer(impl, up=2)
    assert [name for name, _ in large(forward)] == ["aten::convolution", "layer_fir_forward"]
    assert [name for name, _ in large(backward)][:2] == ["layer_fir_backward", DX]
    # t is (2·256 + 1)²; the input has a quarter of the pixels; partial sums are what the rest is
    assert forward.bytes <= (1.25 + 2 + 0.1) * A
    assert backward.bytes <= (3 + 1.25 + 1.25 + 0.2) * A


def test_the_implicit_product_leaves_the_pass_out():
    forward, _ = layer("triton_gemm")
    assert large(forward) == [("layer_gemm", 2.03)]


@KERNELS
def test_an_unstyled_input_costs_one_pass_each_way(impl):
    forward, backward = layer(impl, styled=False)
    assert [name for name, _ in large(forward)] == ["layer_forward", "aten::convolution", "layer_forward"]
    assert forward.bytes <= (6 + SMALL) * A
    assert backward.bytes <= (3 + 2 + 4 + 3 + SMALL) * A  # the styled input is made again, not kept


def test_the_reference_moves_three_times_as_much():
    """The account sees what it should: without fusion every product and sum is a pass."""
    ratio = [sum(a.bytes for a in layer(impl)) for impl in ("reference", "triton")]
    assert ratio[0] > 3 * ratio[1]


def discriminator_block(impl):
    with torch.device("meta"):
        block = DiscriminatorBlock(C, C, 2 * C, R, 3, "resnet", torch.bfloat16, None)
    x, img = meta(N, C, R, R, dtype=torch.bfloat16, channels_last=True), meta(N, 3, R, R)

    def fn():
        with ops.use_impl(impl):
            return block(x, img, {})[0]

    return forward_and_backward(fn, [x, *(p for p in block.parameters())])


@KERNELS
def test_a_discriminator_block_keeps_to_the_rule(impl):
    """conv0, [bias · lrelu · FIR], conv1, [bias · lrelu · + skip], and the skip's own filter and convolution."""
    forward, backward = discriminator_block(impl)
    convolutions = 2 + 1.5 + 0.75
    assert forward.bytes <= (convolutions + 2 + 1.5 + 1.25 + SMALL) * A
    # the same passes backward, the convolutions' gradients (each reads dy), and what it takes where the two branches'
    # meet: Triton's filter of the skip reads the other's gradient where it writes, csrc's leaves that to a pass
    meet = {"triton": 1, "cuda": 3}[impl]
    assert backward.bytes <= (3 + 2.5 + 1 + 4 + 2 + 1.75 + meet + SMALL) * A
    assert len(large(forward)) == 6
    assert len(large(backward)) == (9 if impl == "triton" else 10)


def test_the_reference_block_moves_twice_as_much_forward():
    forward, _ = discriminator_block("reference")
    assert forward.bytes > 1.9 * discriminator_block("triton")[0].bytes


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_views_and_allocations_are_free(impl):
    x = torch.empty(4, 8, 16, 16, device="meta")
    assert count(lambda: torch.empty_like(x.view(4, -1)[:, ::2])).calls == []
    account = count(lambda: ops.bias_act(x, impl=impl, act="tanh"))
    assert account.calls
    assert account.bytes >= 2 * x.numel() * 4
