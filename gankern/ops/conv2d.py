"""The library's 2-D convolution, closed under differentiation: forward, input gradient and weight gradient as three
ops.

    y = C(x, w)        dx = Cᵢ(dy, w)        dw = C_w(dy, x)

Each is linear in both arguments, and each one's gradients are the other two, so any order works and each derivative
runs as the library's own forward, data-gradient or weight-gradient kernel. Autograd of the plain convolution instead
computes second-order weight gradients as a convolution with an image-sized kernel, and a penalty on input gradients
can't leave out the weight gradients that it doesn't use: see `no_weight_gradients`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._gradients import weight_gradients_wanted
from gankern.ops._layout import empty, is_channels_last
from gankern.ops.upfirdn2d import upfirdn2d


def library_conv2d(x: Tensor, w: Tensor, stride: int, padding: int, transposed: bool, groups: int = 1) -> Tensor:
    """The library's own convolution or its transpose, without autograd of ours."""
    y = torch.ops.aten.convolution(x, w, None, [stride] * 2, [padding] * 2, [1, 1], transposed, [0, 0], groups)
    return _laid_out(y, x)


def _library_backward(dy, x, w, stride, padding, transposed, groups, mask):
    args = [stride] * 2, [padding] * 2, [1, 1], transposed, [0, 0], groups, mask
    dx, dw, _ = torch.ops.aten.convolution_backward(dy, x, w, None, *args)
    return _laid_out(dx, x) if mask[0] else dx, dw


def _laid_out(y: Tensor, x: Tensor) -> Tensor:
    """y, on meta tensors in x's memory format: there alone the library forgets it."""
    if y.device.type != "meta" or not is_channels_last(x):
        return y
    return torch.empty_like(y, memory_format=torch.channels_last)


def library_input_grad(
    dy: Tensor, w: Tensor, size: Sequence[int], stride: int, padding: int, transposed: bool, groups: int = 1
) -> Tensor:
    """Its input gradient [*size], likewise."""
    x = empty(size, dy)  # only its layout is read
    return _library_backward(dy, x, w, stride, padding, transposed, groups, [True, False, False])[0]


def library_weight_grad(
    dy: Tensor, x: Tensor, size: Sequence[int], stride: int, padding: int, transposed: bool, groups: int = 1
) -> Tensor:
    """Its weight gradient [*size], likewise."""
    return _library_backward(dy, x, x.new_empty(size), stride, padding, transposed, groups, [False, True, False])[1]


_conv2d = _impl.register("conv2d", library_conv2d)
conv2d_input_grad = _impl.register("conv2d_input_grad", library_input_grad)
conv2d_weight_grad = _impl.register("conv2d_weight_grad", library_weight_grad)


def _save(ctx, inputs, output):
    x, w, *ctx.args = inputs
    ctx.save_for_backward(x, w)


def conv2d_backward(
    dy: Tensor,
    x: Tensor | None,
    w: Tensor,
    x_size: Sequence[int],
    stride: int,
    padding: int,
    transposed: bool,
    groups: int = 1,
    *,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and w where needed, differentiable under create_graph; x may be None where w's isn't needed."""
    args = stride, padding, transposed, groups
    if all(needs) and x.shape[0] and not torch.is_grad_enabled():  # the library prepares dy once for both
        return _library_backward(dy, x, w, *args, [True, True, False])
    dx = conv2d_input_grad(dy, w, list(x_size), *args) if needs[0] else None
    dw = conv2d_weight_grad(dy, x, list(w.shape), *args) if needs[1] else None
    return dx, dw


def _backward(ctx, dy):
    x, w = ctx.saved_tensors
    needs = ctx.needs_input_grad[0], ctx.needs_input_grad[1] and weight_gradients_wanted()
    return *conv2d_backward(dy, x, w, x.shape, *ctx.args, needs=needs), *[None] * 4


def _save_grad(ctx, inputs, output):
    dy, other, _, *ctx.args = inputs
    ctx.save_for_backward(dy, other)


def _input_grad_backward(ctx, v):
    dy, w = ctx.saved_tensors
    grad_dy = _conv2d(v, w, *ctx.args) if ctx.needs_input_grad[0] else None
    wanted = ctx.needs_input_grad[1] and weight_gradients_wanted()
    grad_w = conv2d_weight_grad(dy, v, w.shape, *ctx.args) if wanted else None
    return grad_dy, grad_w, *[None] * 5


def _weight_grad_backward(ctx, v):
    dy, x = ctx.saved_tensors
    grad_dy = _conv2d(x, v, *ctx.args) if ctx.needs_input_grad[0] else None
    grad_x = conv2d_input_grad(dy, v, x.shape, *ctx.args) if ctx.needs_input_grad[1] else None
    return grad_dy, grad_x, *[None] * 5


_impl.register_autograd(_conv2d, _backward, setup_context=_save)
_impl.register_autograd(conv2d_input_grad, _input_grad_backward, setup_context=_save_grad)
_impl.register_autograd(conv2d_weight_grad, _weight_grad_backward, setup_context=_save_grad)

# -- public -----------------------------------------------------------------------------------------------------------


def check_weight(x: Tensor, weight: Tensor, transposed: bool = False, groups: int = 1) -> None:
    """Raises ValueError unless `weight` is 4-dimensional with x's channels, and of x's dtype."""
    channels = -1 if weight.ndim != 4 else weight.shape[0] if transposed else weight.shape[1] * groups
    if x.ndim != 4 or channels != x.shape[1]:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, which doesn't fit x of shape {tuple(x.shape)}")
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"groups={groups}, expected a divisor of the {weight.shape[0]} filters of weight")
    if x.dtype != weight.dtype:
        raise ValueError(f"weight is {weight.dtype}, expected x's {x.dtype}")


def output_shape(x: Tensor, weight: Tensor, stride: int, padding: int) -> list[int]:
    """Of conv2d(x, weight, stride, padding)."""
    size = ((v + 2 * padding - k) // stride + 1 for v, k in zip(x.shape[2:], weight.shape[2:], strict=True))
    return [x.shape[0], weight.shape[0], *size]


def conv2d(
    x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0, *, transposed: bool = False, groups: int = 1
) -> Tensor:
    """Cross-correlation of x [N, I, H, W] with weight [O, I/groups, kh, kw]; or its transpose, with weight
    [I, O/groups, kh, kw].

    Differentiable to any order; bias belongs to `bias_act`. Raises ValueError where channels or dtypes don't match.
    """
    check_weight(x, weight, transposed, groups)
    return _conv2d(x, weight, stride, padding, transposed, groups)


def conv2d_resample(
    x: Tensor,
    weight: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int = 0,
    flip_weight: bool = True,
    *,
    impl: str | None = None,
) -> Tensor:
    """Convolution with up- or downsampling by 2 through the filter f, each at the cheaper place.

    x [N, I, H, W], weight [O, I, k, k] -> [N, O, H·up/down, W·up/down] for padding = k//2. Upsampling is a transposed
    convolution and then the filter, downsampling the filter and then a strided convolution; a 1x1 kernel runs on the
    smaller image. `flip_weight=True` correlates (as PyTorch does), False convolves. Differentiable to any order.
    Raises ValueError for up and down together, or resampling without a filter.
    """
    impl = _impl.choose("upfirdn2d", impl, x)
    if up not in (1, 2) or down not in (1, 2) or (up, down) == (2, 2):
        raise ValueError(f"up={up}, down={down}: expected 1 or 2, and not both 2")
    if (up > 1 or down > 1) and f is None:
        raise ValueError("f=None, expected the resampling filter where up or down is 2")
    k = weight.shape[-1]
    w = weight if flip_weight else weight.flip(2, 3)
    if up == 1 and down == 1:
        return conv2d(x, w, padding=padding)
    if down == 2:
        x, stride = filtered_before(x, f, k, padding, impl=impl)
        return conv2d(x, w, stride)
    if k == 1:
        return upfirdn2d(conv2d(x, w), f, up=2, padding=upsample_padding(f, padding), gain=4, impl=impl)
    # a transposed correlation is a convolution: the kernel is flipped for flip_weight=True instead
    y = conv2d(x, weight.flip(2, 3).transpose(0, 1) if flip_weight else weight.transpose(0, 1), 2, transposed=True)
    return upfirdn2d(y, f, padding=transposed_padding(f, k, padding), gain=4, impl=impl)


def filtered_before(x: Tensor, f: Tensor, k: int, padding: int = 0, *, impl: str | None = None) -> tuple[Tensor, int]:
    """(FIR(x), the stride that is left) of a k x k convolution that pads by `padding` and reduces by 2: itself then
    without padding, for 1x1 on the smaller image."""
    pad = downsample_padding(f, padding)
    return upfirdn2d(x, f, down=2 if k == 1 else 1, padding=pad, impl=impl), 1 if k == 1 else 2


def downsample_padding(f: Tensor, padding: int = 0) -> list[int]:
    """[x0, x1, y0, y1] of a filter before a strided k x k convolution that would pad by `padding`: no shift arises."""
    fx, fy = f.shape[-1], f.shape[0]
    return [padding + (fx - 1) // 2, padding + (fx - 2) // 2, padding + (fy - 1) // 2, padding + (fy - 2) // 2]


def upsample_padding(f: Tensor, padding: int = 0) -> list[int]:
    """[x0, x1, y0, y1] of a filter that upsamples by 2 without a shift, where a k x k convolution pads by `padding`."""
    fx, fy = f.shape[-1], f.shape[0]
    return [padding + (fx + 1) // 2, padding + (fx - 2) // 2, padding + (fy + 1) // 2, padding + (fy - 2) // 2]


def transposed_padding(f: Tensor, k: int, padding: int) -> list[int]:
    """[x0, x1, y0, y1] of the filter that follows a transposed k x k convolution of stride 2."""
    fx, fy = f.shape[-1], f.shape[0]
    shift = padding - (k - 1)
    return [shift + (fx + 1) // 2, shift + (fx - 2) // 2 + 1, shift + (fy + 1) // 2, shift + (fy - 2) // 2 + 1]
