"""StyleGAN2's modulated convolution as one fused layer.

    x̃ = s · x                                               style [N, I] on the input
    u = x̃ ∗ w                                               one convolution for the whole batch, [FIR for up = 2]
    d = (Σ_i s²·Σ_k w² + eps)^-1/2                          demodulation [N, O], a small matrix product
    y = clamp(gain · act(d·u + noise + b), ±clamp)

which equals convolving each sample with its own weight s·w·d, a tensor [N, O, I, k, k] that is never made. The
registered op takes d as an input; autograd differentiates the small product. Backward, with g the gradient of
p = d·u + noise + b:

    dx̃ = Cᵢ(d·g, w)     dx = s·dx̃     ds = Σ_hw x·dx̃     dw = C_w(d·g, x̃)
    dd = Σ_hw g·u       db = Σ_nhw g   dnoise = Σ_o g

Where the activation inverts (linear, leaky ReLU) the sum of g·u comes from dy·y, so x and y are all that a layer
keeps. First order is one backward op; under create_graph=True the same formulas run as differentiable operators, exact
to second order. Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" (arXiv:1912.04958), 2.2.
"""

import math
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._gradients import weight_gradients_wanted
from gankern.ops.bias_act import ACTIVATIONS, activation_args, bias_act, bias_act_backward, check_bias
from gankern.ops.conv2d import (
    conv2d,
    conv2d_backward,
    conv2d_resample,
    transposed_padding,
    upsample_padding,
)
from gankern.ops.upfirdn2d import check_filter, upfirdn2d, upfirdn2d_adjoint


def _statistics(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


def demodulation(weight: Tensor, styles: Tensor, eps: float = 1e-8) -> Tensor:
    """d [N, O] of weight [O, I, k, k] and styles [N, I], in at least float32: rsqrt(s² · (Σ_k w²)ᵀ + eps)."""
    w, s = _statistics(weight), _statistics(styles)
    return (s.square() @ w.square().sum([2, 3]).t() + eps).rsqrt()


def modulated_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    padding: int = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    eps: float = 1e-8,
) -> Tensor:
    """The definition, literally: a weight [O, I, k, k] of its own for every sample, in eager PyTorch; no activation."""
    samples = []
    for i in range(x.shape[0]):
        w = weight * styles[i][None, :, None, None]
        if demodulate:
            w = w * (w.square().sum([1, 2, 3], keepdim=True) + eps).rsqrt()
        one = x[i : i + 1]
        samples.append(conv2d_resample(one, w, resample_filter, up=up, padding=padding, flip_weight=flip_weight))
    y = torch.cat(samples)
    return y if noise is None else y + noise


@dataclass(frozen=True)
class _Layer:
    """The constants of one layer: the trailing scalars of the registered ops."""

    up: int
    padding: int
    flip_weight: bool
    act: str
    alpha: float
    gain: float
    clamp: float
    impl: str

    @property
    def invertible(self) -> bool:
        """Whether y gives the pre-activation back, by its sign."""
        return self.gain > 0 and (self.act == "linear" or (self.act == "lrelu" and self.alpha > 0))

    def transposed(self, w: Tensor) -> bool:
        return self.up == 2 and w.shape[-1] > 1

    def kernel(self, w: Tensor, x: Tensor) -> Tensor:
        """w as the library's convolution takes it, in x's dtype."""
        w = w.to(x.dtype)
        if self.transposed(w):
            return (w.flip(2, 3) if self.flip_weight else w).transpose(0, 1)
        return w if self.flip_weight else w.flip(2, 3)

    def kernel_adjoint(self, dk: Tensor, w: Tensor) -> Tensor:
        """The gradient of w from that of `kernel(w)`."""
        if self.transposed(w):
            dk = dk.transpose(0, 1)
            return (dk.flip(2, 3) if self.flip_weight else dk).to(w.dtype)
        return (dk if self.flip_weight else dk.flip(2, 3)).to(w.dtype)

    def conv_args(self, w: Tensor) -> tuple[int, int, bool]:
        """Stride, padding and transposed of the library's convolution."""
        if self.transposed(w):
            return 2, 0, True
        return 1, 0 if self.up == 2 else self.padding, False

    def fir_args(self, w: Tensor, f: Tensor) -> dict:
        if self.transposed(w):
            return {"up": 1, "padding": transposed_padding(f, w.shape[-1], self.padding), "gain": 4.0}
        return {"up": 2, "padding": upsample_padding(f, self.padding), "gain": 4.0}

    def convolve(self, xs: Tensor, w: Tensor, f: Tensor | None) -> Tensor:
        stride, padding, transposed = self.conv_args(w)
        t = conv2d(xs, self.kernel(w, xs), stride, padding, transposed=transposed)
        return t if self.up == 1 else upfirdn2d(t, f, **self.fir_args(w, f), impl=self.impl)


def _scaled(x: Tensor, s: Tensor) -> Tensor:
    return x * s.to(x.dtype)[:, :, None, None]


def _demodulated(u: Tensor, d: Tensor | None, noise: Tensor | None) -> Tensor:
    if d is None:
        return u if noise is None else u + noise.to(u.dtype)
    scale = d.to(u.dtype)[:, :, None, None]
    return u * scale if noise is None else torch.addcmul(noise.to(u.dtype), u, scale)


def _image_sum(t: Tensor, weight: Tensor | None = None) -> Tensor:
    """Σ_hw t [N, O] in at least float32, each pixel times `weight` (broadcastable to [N, 1, H, W]) where given."""
    t = _statistics(t)
    if weight is None:
        return t.sum([2, 3])
    weight = weight.to(t.dtype).expand(t.shape[0], 1, *t.shape[2:])[:, 0]
    return torch.einsum("nohw,nhw->no", t, weight)


def _through_activation(dy, x, w, s, d, noise, b, f, y, layer: _Layer, need_d: bool):
    """(h, gain, dd): the gradient of the pre-activation is g = gain·h, and dd = Σ_hw g·u (None unless needed).

    Where the activation inverts, g·p = dy·y wherever y wasn't clamped, so u = (p − b − noise)/d is never made.
    """
    if not layer.invertible:
        u = layer.convolve(_scaled(x, s), w, f)
        p = _demodulated(u, d, noise) if ACTIVATIONS[layer.act].needs_x else None
        saved = (p, b, None) if p is not None else (None, None, y)
        g = bias_act_backward(dy, *saved, False, 1, layer.act, layer.alpha, layer.gain, layer.clamp, layer.impl)[0]
        return g, 1.0, _image_sum(_statistics(g) * u) if need_d else None
    if layer.act == "linear" and layer.clamp < 0:
        h = dy
    else:
        h = bias_act_backward(dy, None, None, y, False, 1, layer.act, layer.alpha, 1.0, layer.clamp, layer.impl)[0]
    if not need_d:
        return h, layer.gain, None
    gp = _statistics(dy) * y
    gp = (gp if layer.clamp < 0 else torch.where(y.abs() < layer.clamp, gp, 0.0)).sum([2, 3])
    gp = gp if b is None else gp - layer.gain * b * _image_sum(h)
    gp = gp if noise is None else gp - layer.gain * _image_sum(h, noise)
    return h, layer.gain, gp / d


def _gradients(dy, x, w, s, d, noise, b, f, y, layer: _Layer, needs: list[bool]) -> list[Tensor | None]:
    """Gradients of x, w, s, d, noise and b where needed: the equations above in differentiable operators."""
    need_x, need_w, need_s, need_d, need_noise, need_b = needs
    h, gain, dd = _through_activation(dy, x, w, s, d, noise, b, f, y, layer, need_d)
    db = (gain * _image_sum(h).sum(0)).to(b.dtype) if need_b else None
    dnoise = (gain * h.sum(1, keepdim=True)).sum_to_size(noise.shape).to(noise.dtype) if need_noise else None

    scale = gain if d is None else (d * gain).to(h.dtype)[:, :, None, None]
    dt = h if d is None and gain == 1 else h * scale
    if layer.up == 2:
        t_size = _transposed_size(x, w) if layer.transposed(w) else list(x.shape[2:])
        dt = upfirdn2d_adjoint(dt, f, t_size, **layer.fir_args(w, f), impl=layer.impl)
    kernel = layer.kernel(w, x)
    xs = _scaled(x, s) if need_w else None
    needs_conv = need_x or need_s, need_w
    dxs, dkernel = conv2d_backward(dt, xs, kernel, x.shape, *layer.conv_args(w), needs=needs_conv)
    dx = _scaled(dxs, s) if need_x else None
    ds = _image_sum(_statistics(dxs) * x).to(s.dtype) if need_s else None
    dw = layer.kernel_adjoint(dkernel, w) if need_w else None
    return [dx, dw, ds, dd, dnoise, db]


def _transposed_size(x: Tensor, w: Tensor) -> list[int]:
    """Height and width of a transposed convolution of stride 2."""
    return [2 * (n - 1) + w.shape[-1] for n in x.shape[2:]]


# -- registration -----------------------------------------------------------------------------------------------------


def _forward_impl(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    d: Tensor | None,
    noise: Tensor | None,
    bias: Tensor | None,
    f: Tensor | None,
    up: int,
    padding: int,
    flip_weight: bool,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
    impl: str,
) -> Tensor:
    layer = _Layer(up, padding, flip_weight, act, alpha, gain, clamp, impl)
    u = layer.convolve(_scaled(x, styles), weight, f)
    p = _demodulated(u, d, noise)
    if bias is None and act == "linear" and gain == 1 and clamp < 0:
        return p
    clamp_arg = None if clamp < 0 else clamp
    return bias_act(p, bias, act=act, alpha=alpha, gain=gain, clamp=clamp_arg, impl=impl)


def _backward_impl(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    d: Tensor | None,
    noise: Tensor | None,
    bias: Tensor | None,
    f: Tensor | None,
    y: Tensor | None,
    needs: list[bool],
    up: int,
    padding: int,
    flip_weight: bool,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, styles, d, noise, bias; an empty tensor for each that isn't needed."""
    layer = _Layer(up, padding, flip_weight, act, alpha, gain, clamp, impl)
    gradients = _gradients(dy, x, weight, styles, d, noise, bias, f, y, layer, needs)
    return tuple(x.new_empty(0) if t is None else t for t in gradients)


_modulated_conv2d = torch.library.custom_op("gankern::modulated_conv2d", _forward_impl, mutates_args=())
_modulated_conv2d_backward = torch.library.custom_op(
    "gankern::modulated_conv2d_backward", _backward_impl, mutates_args=()
)
_modulated_conv2d.register_fake(_forward_impl)
_modulated_conv2d_backward.register_fake(_backward_impl)


def _save(ctx, inputs, output):
    *tensors, constants = *inputs[:7], inputs[7:]
    ctx.layer = _Layer(*constants)
    ctx.save_for_backward(*tensors, output)


def _backward(ctx, dy):
    *inputs, y = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:6])
    if not weight_gradients_wanted():
        needs = [needs[0], False, needs[2], needs[3], False, False]
    if torch.is_grad_enabled():  # create_graph=True
        gradients = _gradients(dy, *inputs, y, ctx.layer, needs)
    else:
        gradients = _modulated_conv2d_backward(dy, *inputs, y, needs, *astuple(ctx.layer))
    gradients = [t if need else None for t, need in zip(gradients, needs, strict=True)]
    return *gradients, *[None] * 9


_modulated_conv2d.register_autograd(_backward, setup_context=_save)
_impl.declare("modulated_conv2d", "reference")

# -- public -----------------------------------------------------------------------------------------------------------


def _check(x, weight, styles, noise, up, padding, f) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} of shape {tuple(x.shape)}, expected a floating-point tensor [N, I, H, W]")
    n, i = x.shape[:2]
    if weight.ndim != 4 or weight.shape[1] != i or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected [O, {i}, k, k]")
    if styles.shape != (n, i):
        raise ValueError(f"styles has shape {tuple(styles.shape)}, expected [{n}, {i}]")
    if up not in (1, 2):
        raise ValueError(f"up={up}, expected 1 or 2")
    if up == 2 and f is None:
        raise ValueError("resample_filter=None, expected a filter from setup_filter where up is 2")
    if f is not None:
        check_filter(f, x, "resample_filter")
    for name, t in (("weight", weight), ("styles", styles), ("noise", noise)):
        if t is not None and (not t.is_floating_point() or t.device != x.device):
            raise ValueError(f"{name} is {t.dtype} on {t.device}, expected a floating-point tensor on x's {x.device}")
    k = weight.shape[-1]
    size = [n, 1, *(v * up + 2 * padding - k + 1 for v in x.shape[2:])]
    if padding < 0 or min(size[2:]) < 1:
        raise ValueError(f"padding={padding}, expected >= 0 and room for a {k}x{k} kernel on x of {tuple(x.shape)}")
    if noise is not None:
        pairs = zip(reversed(noise.shape), reversed(size), strict=False)
        if noise.ndim > 4 or any(have not in (1, want) for have, want in pairs):
            raise ValueError(f"noise has shape {tuple(noise.shape)}, expected one broadcastable to {size}")


def _normalised(weight: Tensor, styles: Tensor) -> tuple[Tensor, Tensor]:
    """The same layer after demodulation, in numbers that float16 can hold. It doesn't depend on the scales, so none of
    their gradient, which would be rounding noise on the largest weight, is computed."""
    w_max = weight.detach().abs().amax([1, 2, 3], keepdim=True)
    s_max = styles.detach().abs().amax(1, keepdim=True)
    fan_in = weight[0].numel()
    weight = weight / (w_max.where(w_max > 0, 1) * math.sqrt(fan_in))
    return weight, styles / s_max.where(s_max > 0, 1)


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    padding: int = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    bias: Tensor | None = None,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    *,
    eps: float = 1e-8,
    impl: str | None = None,
) -> Tensor:
    """StyleGAN2's layer: modulate, convolve, [upsample,] demodulate, add noise, bias, activate, clamp. Twice
    differentiable.

    `x` [N, I, H, W]; `weight` [O, I, k, k] and `styles` [N, I] of any float dtype (float32 master weights beside half
    activations are meant); `noise` broadcastable to [N, 1, H·up, W·up]; `bias` [O] with `act`, `alpha`, `gain`, `clamp`
    as in `bias_act`. `up`: 1, or 2 through `resample_filter` (gain 4). `padding`: k//2 keeps the size.
    `flip_weight=True` correlates, False convolves. float16 with demodulation normalises weights and styles first, so
    that sums stay in range. Returns [N, O, H·up, W·up] in x's dtype. Raises ValueError for shapes, dtypes and devices
    that don't fit. Karras et al. 2020 (arXiv:1912.04958).
    """
    _check(x, weight, styles, noise, up, padding, resample_filter)
    if demodulate and x.dtype == torch.float16:
        weight, styles = _normalised(weight, styles)
    if bias is not None:
        check_bias(bias, x, weight.shape[0])
    act_args = activation_args(act, alpha, gain, clamp)
    d = demodulation(weight, styles, eps) if demodulate else None
    tensors = (x, weight, styles, d, noise, bias, resample_filter)
    chosen = _impl.choose("modulated_conv2d", impl, x)
    return _modulated_conv2d(*tensors, up, padding, bool(flip_weight), *act_args, chosen)
