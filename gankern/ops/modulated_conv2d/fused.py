"""The layer at first order: the library's convolution, and one pass of our kernels before or after it each way.

Bytes, with A an activation's: forward the convolution (A in, A out) and the pass (A in, A out); backward the pass (dy
and y in, dt out) and the convolution's two gradients. An x that isn't styled yet costs a pass of its own each way.
"""

from dataclasses import replace

import torch
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._layout import dense, is_channels_last
from gankern.ops.conv2d import conv2d_backward, library_conv2d
from gankern.ops.modulated_conv2d.layer import Layer, Operands, Tensors, gradients
from gankern.ops.upfirdn2d import upfirdn2d, upfirdn2d_adjoint

PER_SAMPLE_OUTPUTS = 16  # up to so many output channels a 1x1 layer is a small matrix of its own for every sample


def _per_sample(t: Tensors, layer: Layer) -> bool:
    o, _, k, _ = t.weight.shape
    return k == 1 and layer.up == 1 and layer.padding == 0 and o <= PER_SAMPLE_OUTPUTS and t.styles is not None


def _linear(act: tuple[str, float, float, float]) -> bool:
    name, _, gain, clamp = act
    return name == "linear" and gain == 1 and clamp < 0


def _operands(t: Tensors, layer: Layer) -> Operands:
    return Operands(t.d, t.noise, t.strength, t.bias, t.next_styles, layer.activation)


def _style(s: Tensor) -> Operands:
    return Operands(s, None, None, None, None, ("linear", 0.0, 1.0, -1.0))


def _passes(layer: Layer):
    """The launches of the pass: `cuda` or `kernels`."""
    return _impl.launchers(__package__, layer.impl)


def _filter_passes(layer: Layer):
    """The launches of the pass with a filter in it: `cuda_fir` or `fir`."""
    if layer.impl == "cuda":
        from gankern.ops.modulated_conv2d import cuda_fir

        return cuda_fir
    from gankern.ops.modulated_conv2d import fir

    return fir


def styled(x: Tensor, layer: Layer, s: Tensor | None) -> Tensor:
    """x times its styles [N, C], in one pass."""
    return x if s is None else _passes(layer).forward(x, _style(s))[0]


# -- 1x1 layers with few outputs: each sample's own matrix [O, I], so that x is read once and never written ------------


def _matrices(t: Tensors) -> Tensor:
    return (t.weight[:, :, 0, 0] * t.styles[:, None]).to(t.x.dtype)


def _pixels_first(x: Tensor) -> Tensor:
    """[N, C, H, W] as [N, H·W, C], a view in either memory format."""
    return x.flatten(2).transpose(1, 2) if x.is_contiguous() else x.permute(0, 2, 3, 1).flatten(1, 2)


def _image(t: Tensor, like: Tensor, channels_last: bool) -> Tensor:
    """[N, H·W, C] as [N, C, H, W] in the memory format asked for, a view where t lies so."""
    image = t.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)
    return image.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _matrix_forward(t: Tensors) -> Tensor:
    x = dense(t.x)
    return _image(_pixels_first(x) @ _matrices(t).transpose(1, 2), x, is_channels_last(x))


def _matrix_backward(dt: Tensor, t: Tensors, needs: list[bool]) -> list[Tensor | None]:
    """Gradients of x, weight and styles."""
    x = dense(t.x)
    dt = _pixels_first(dense(dt))
    dx = _image(dt @ _matrices(t), x, is_channels_last(x)) if needs[0] else None
    dw = ds = None
    if needs[1] or needs[2]:
        dm = (dt.transpose(1, 2) @ _pixels_first(x)).to(torch.promote_types(x.dtype, torch.float32))  # [N, O, I]
        dw = (dm * t.styles[:, None]).sum(0)[:, :, None, None].to(t.weight.dtype) if needs[1] else None
        ds = (dm * t.weight[:, :, 0, 0]).sum(1).to(t.styles.dtype) if needs[2] else None
    return [dx, dw, ds]


# -- the layer ---------------------------------------------------------------------------------------------------------


def forward(t: Tensors, layer: Layer) -> tuple[Tensor, Tensor]:
    """(y, y · next_styles); an empty tensor for the one that isn't asked for."""
    if layer.impl == "cudnn" and not _per_sample(t, layer):
        from gankern.ops.cudnn import layer as graphs

        x = styled(t.x, layer, t.styles)
        if (found := graphs.forward(t, layer, x)) is not None:
            return found
        t = replace(t, x=x, styles=None)
    elif layer.impl != "cuda":
        from gankern.ops.modulated_conv2d import gemm

        if gemm.serves(t, layer):
            return gemm.forward(t, layer)
    if _per_sample(t, layer):
        u = _matrix_forward(t)
    else:
        u = library_conv2d(styled(t.x, layer, t.styles), layer.kernel(t.weight, t.x), *layer.conv_args(t.weight))
    if layer.up == 2:
        args = layer.fir_args(t.weight, t.f)
        if _filter_fused(t, layer):
            return _filter_passes(layer).forward(u, t.f, args, _operands(t, layer), layer.plain)
        u = upfirdn2d(u, t.f, **args, impl=layer.sub_impl)
    nothing_to_do = t.d is None and t.noise is None and t.bias is None and t.next_styles is None
    if nothing_to_do and _linear(layer.activation):
        return u, u.new_empty(0)
    return _passes(layer).forward(u, _operands(t, layer), layer.plain)


def backward(dy, dys, t: Tensors, y, ys, layer: Layer, needs: list[bool]) -> list[Tensor | None]:
    """Gradients of x, weight, styles, d, noise, strength, bias and next_styles where needed (else None)."""
    if not layer.invertible:
        return gradients(dy, dys, t, y, ys, layer, needs)
    need_d, need_noise, need_strength, need_b, need_next = needs[3:]
    sums = (need_b, need_strength, need_d, need_next)
    y = y if layer.plain else None
    dt, (db, dstrength, dd, dnext), dnoise = _through_pass(dy, dys, y, ys, t, layer, sums, need_noise)
    return [*_through_convolution(dt, t, layer, needs), dd, dnoise, dstrength, db, dnext]


def _filter_fused(t: Tensors, layer: Layer) -> bool:
    """Whether the filter of an upsampling layer stands in the pass. (A dry run sees no difference.)"""
    if layer.up == 1 or not _impl.launching():
        return layer.up == 2
    args, sizes = layer.fir_args(t.weight, t.f), (layer.before_fir(t.x, t.weight), layer.out_size(t.x, t.weight))
    return _filter_passes(layer).fits(tuple(t.f.shape), args["up"], tuple(args["padding"]), *map(tuple, sizes))


def _through_pass(dy, dys, y, ys, t: Tensors, layer: Layer, sums, need_noise: bool):
    """The gradient of the convolution's output, those that are sums, and the noise map's where needed."""
    operands, dnoise = _operands(t, layer), None
    args, size = layer.fir_args(t.weight, t.f) if layer.up == 2 else None, layer.before_fir(t.x, t.weight)
    if _filter_fused(t, layer) and not need_noise:
        return *_filter_passes(layer).backward(dy, dys, y, ys, t.f, args, size, operands, sums), None
    dt, gradients = _passes(layer).backward(dy, dys, y, ys, operands, sums)
    if need_noise:
        dnoise = _noise_gradient(dt, t)
    if layer.up == 2:
        dt = upfirdn2d_adjoint(dt, t.f, size, **args, impl=layer.sub_impl)
    return dt, gradients, dnoise


def _noise_gradient(dt: Tensor, t: Tensors) -> Tensor:
    """The gradient of the noise map itself, in a pass of its own: networks learn the strength instead."""
    wide = torch.promote_types(dt.dtype, torch.float32)
    g = dt.to(wide) if t.d is None else dt.to(wide) / t.d.to(wide)[:, :, None, None]
    g = g.sum(1, keepdim=True)
    return (g if t.strength is None else g * t.strength).sum_to_size(t.noise.shape).to(t.noise.dtype)


def _through_convolution(dt: Tensor, t: Tensors, layer: Layer, needs: list[bool]) -> list[Tensor | None]:
    """Gradients of x, weight and styles from that of the convolution's (filtered) output."""
    need_x, need_w, need_s = needs[:3]
    if not (need_x or need_w or need_s):
        return [None, None, None]
    if _per_sample(t, layer):
        return _matrix_backward(dt, t, needs)
    xs = styled(t.x, layer, t.styles) if need_w else None
    kernel, needs_conv = layer.kernel(t.weight, t.x), (need_x or need_s, need_w)
    dxs, dkernel = conv2d_backward(dt, xs, kernel, t.x.shape, *layer.conv_args(t.weight), needs=needs_conv)
    dw = layer.kernel_adjoint(dkernel, t.weight) if need_w else None
    if t.styles is None or dxs is None:
        return [dxs, dw, None]
    # the pass with d = s and y = x: dx = s·dxs, and its sum of g·p is the style's gradient
    sums = (False, False, need_s, False)
    dx, (_, _, ds, _) = _passes(layer).backward(dxs, None, t.x, None, _style(t.styles), sums, of_style=True)
    return [dx if need_x else None, dw, ds.to(t.styles.dtype) if need_s else None]
