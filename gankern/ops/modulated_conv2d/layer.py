"""One modulated layer's constants, and its gradients as formulas in differentiable operators.

The formulas are the reference's backward and every implementation's second order; `fused` has the fast first order.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gankern.ops._layout import wide
from gankern.ops.bias_act import ACTIVATIONS, bias_act, bias_act_backward
from gankern.ops.conv2d import conv2d, conv2d_backward, transposed_padding, upsample_padding
from gankern.ops.upfirdn2d import upfirdn2d, upfirdn2d_adjoint


@dataclass(frozen=True)
class Layer:
    """The constants of one layer: the trailing scalars of the registered ops."""

    up: int
    padding: int
    flip_weight: bool
    act: str
    alpha: float
    gain: float
    clamp: float
    outputs: str
    impl: str

    @property
    def activation(self) -> tuple[str, float, float, float]:
        return self.act, self.alpha, self.gain, self.clamp

    @property
    def sub_impl(self) -> str:
        """What the operators without a convolution of their own run as."""
        return "triton" if self.impl in ("triton_gemm", "cudnn") else self.impl

    @property
    def plain(self) -> bool:
        """Whether y itself is written: a clamped y can't be told from y · style."""
        return self.outputs != "styled" or self.clamp >= 0

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
        return t if self.up == 1 else upfirdn2d(t, f, **self.fir_args(w, f), impl=self.sub_impl)

    def out_size(self, x: Tensor, w: Tensor) -> list[int]:
        """Height and width of the layer's output."""
        return [n * self.up + 2 * self.padding - w.shape[-1] + 1 for n in x.shape[2:]]

    def before_fir(self, x: Tensor, w: Tensor) -> list[int]:
        """Height and width of the convolution's output, where a filter follows."""
        return [2 * (n - 1) + w.shape[-1] for n in x.shape[2:]] if self.transposed(w) else list(x.shape[2:])


@dataclass
class Tensors:
    """The tensor operands of a layer; None where there is none. styles is None where x is styled already."""

    x: Tensor
    weight: Tensor
    styles: Tensor | None
    d: Tensor | None
    noise: Tensor | None
    strength: Tensor | None
    bias: Tensor | None
    f: Tensor | None
    next_styles: Tensor | None

    @property
    def added_noise(self) -> Tensor | None:
        return self.noise if self.strength is None or self.noise is None else self.noise * self.strength


@dataclass
class Operands:
    """What a layer applies after its convolution, each None where it doesn't: d and next_styles [N, C], noise
    broadcastable to [N, 1, H, W], strength [], bias [C]; and the activation (act, alpha, gain, clamp)."""

    d: Tensor | None
    noise: Tensor | None
    strength: Tensor | None
    bias: Tensor | None
    next_styles: Tensor | None
    act: tuple[str, float, float, float]

    def flat_noise(self, v: Tensor) -> tuple[Tensor | None, int]:
        """The noise of v [N, C, H, W] as [1 or N, pixels], copied only where it repeats along H or W; and how far
        apart two samples' lie."""
        if self.noise is None:
            return None, 0
        noise = self.noise.reshape([1] * (4 - self.noise.ndim) + list(self.noise.shape))
        noise = noise.expand(-1, 1, *v.shape[2:]).reshape(noise.shape[0], v.shape[2] * v.shape[3])
        return noise, noise.shape[1] if noise.shape[0] > 1 else 0


def sums_dtype(v: Tensor) -> torch.dtype:
    """What sums over v are held in."""
    return torch.promote_types(v.dtype, torch.float32)


def scaled(x: Tensor, s: Tensor | None) -> Tensor:
    """x [N, C, H, W] times s [N, C]."""
    return x if s is None else x * s.to(x.dtype)[:, :, None, None]


def demodulated(u: Tensor, d: Tensor | None, noise: Tensor | None) -> Tensor:
    """d·u + noise in u's dtype."""
    if d is None:
        return u if noise is None else u + noise.to(u.dtype)
    scale = d.to(u.dtype)[:, :, None, None]
    return u * scale if noise is None else torch.addcmul(noise.to(u.dtype), u, scale)


def _image_sum(t: Tensor, weight: Tensor | None = None) -> Tensor:
    """Σ_hw t [N, O] in at least float32, each pixel times `weight` (broadcastable to [N, 1, H, W]) where given."""
    t = wide(t)
    if weight is None:
        return t.sum([2, 3])
    weight = weight.to(t.dtype).expand(t.shape[0], 1, *t.shape[2:])[:, 0]
    return torch.einsum("nohw,nhw->no", t, weight)


def forward(t: Tensors, layer: Layer) -> tuple[Tensor, Tensor]:
    """(y, y · next_styles), in differentiable operators; an empty tensor for the one that isn't asked for."""
    u = layer.convolve(scaled(t.x, t.styles), t.weight, t.f)
    y = demodulated(u, t.d, t.added_noise)
    if t.bias is not None or layer.act != "linear" or layer.gain != 1 or layer.clamp >= 0:
        clamp = None if layer.clamp < 0 else layer.clamp
        kwargs = {"act": layer.act, "alpha": layer.alpha, "gain": layer.gain, "clamp": clamp}
        y = bias_act(y, t.bias, **kwargs, impl=layer.sub_impl)
    ys = y.new_empty(0) if t.next_styles is None else scaled(y, t.next_styles)
    return (y if layer.plain else y.new_empty(0)), ys


def _through_activation(dy, t: Tensors, y: Tensor, noise: Tensor | None, layer: Layer, need_d: bool, need_b: bool):
    """(h, gain, dd, db): the gradient of the pre-activation is g = gain·h; dd = Σ_hw g·u and db = Σ_nhw g where needed.

    Where the activation inverts, g·p = dy·y wherever y wasn't clamped, so u = (p − b − noise)/d is never made.
    """
    if not layer.invertible:
        u = layer.convolve(scaled(t.x, t.styles), t.weight, t.f)
        p = demodulated(u, t.d, noise) if ACTIVATIONS[layer.act].needs_x else None
        saved = (p, t.bias, None) if p is not None else (None, None, y)
        g, db = bias_act_backward(dy, *saved, need_b, 1, *layer.activation, layer.sub_impl)
        return g, 1.0, _image_sum(wide(g) * u) if need_d else None, db
    if layer.act == "linear" and layer.clamp < 0:
        h = dy
    else:
        args = 1, layer.act, layer.alpha, 1.0, layer.clamp, layer.sub_impl
        h = bias_act_backward(dy, None, None, y, False, *args)[0]
    db = (layer.gain * _image_sum(h).sum(0)).to(t.bias.dtype) if need_b else None
    if not need_d:
        return h, layer.gain, None, db
    gp = wide(dy) * y
    gp = (gp if layer.clamp < 0 else torch.where(y.abs() < layer.clamp, gp, 0.0)).sum([2, 3])
    gp = gp if t.bias is None else gp - layer.gain * t.bias * _image_sum(h)
    gp = gp if noise is None else gp - layer.gain * _image_sum(h, noise)
    return h, layer.gain, gp / t.d, db


def _noise_gradients(h, gain: float, t: Tensors, need_noise: bool, need_strength: bool):
    if not need_noise and not need_strength:
        return None, None
    d_added = (gain * h.sum(1, keepdim=True)).sum_to_size(t.noise.shape)
    dstrength = (d_added * t.noise).sum().to(t.strength.dtype) if need_strength else None
    if not need_noise:
        return None, dstrength
    return (d_added if t.strength is None else d_added * t.strength).to(t.noise.dtype), dstrength


def gradients(dy, dys, t: Tensors, y, ys, layer: Layer, needs: list[bool]) -> list[Tensor | None]:
    """Gradients of x, weight, styles, d, noise, strength, bias and next_styles where needed, in differentiable
    operators, from those of y and of y · next_styles (None for the one that isn't there)."""
    need_x, need_w, need_s, need_d, need_noise, need_strength, need_b, need_next = needs
    if not layer.plain:
        known = t.next_styles.where(t.next_styles != 0, 1)  # y isn't known where its style is zero
        y = (wide(ys) / known[:, :, None, None]).to(ys.dtype)
    dnext = _image_sum(wide(dys) * y).to(t.next_styles.dtype) if need_next else None
    if dys is not None:
        styled = scaled(dys, t.next_styles)
        dy = styled if dy is None else dy + styled
    h, gain, dd, db = _through_activation(dy, t, y, t.added_noise, layer, need_d, need_b)
    dnoise, dstrength = _noise_gradients(h, gain, t, need_noise, need_strength)

    scale = gain if t.d is None else (t.d * gain).to(h.dtype)[:, :, None, None]
    dt = h if t.d is None and gain == 1 else h * scale
    if layer.up == 2:
        size = layer.before_fir(t.x, t.weight)
        dt = upfirdn2d_adjoint(dt, t.f, size, **layer.fir_args(t.weight, t.f), impl=layer.sub_impl)
    kernel = layer.kernel(t.weight, t.x)
    xs = scaled(t.x, t.styles) if need_w else None
    needs_conv = need_x or need_s, need_w
    dxs, dkernel = conv2d_backward(dt, xs, kernel, t.x.shape, *layer.conv_args(t.weight), needs=needs_conv)
    dx = scaled(dxs, t.styles) if need_x else None
    ds = _image_sum(wide(dxs) * t.x).to(t.styles.dtype) if need_s else None
    dw = layer.kernel_adjoint(dkernel, t.weight) if need_w else None
    return [dx, dw, ds, dd, dnoise, dstrength, db, dnext]
