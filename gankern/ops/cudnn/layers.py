"""The graphs of a layer: forward, and the gradient that reaches the layer before it.

    modulated     y = lrelu(d·C(x̃, w) + strength·noise + b)      x̃ and ys = s·y: styled by the layer that reads them
    plain         y = gain·lrelu(C(x, w) + b) [+ residual]        with a residual also y before the sum
    gradient      E = s·Cᵢ(dt, w) + Σ_j m_j·dimg_j + extra         of what the layer before wrote, all of its readers
                  dt' = d'·g,  g = lrelu'(y')·E                    of that layer's convolution

The activation's gain is homogeneous: it stands in d, strength and b, and in d' where the gradient has it. In the same
kernel come the sums that the gradient's small operands are made of. Karras et al. 2020 (arXiv:1912.04958).
"""

import functools

import torch
from torch import Tensor

from gankern.ops.cudnn.graph import Draft, Graph, Spec

RGB = 3
"""How many maps an image has that a gradient can come from within the kernel."""


def nhwc(shape: tuple[int, ...], dtype: torch.dtype) -> Spec:
    """A dense channels_last tensor."""
    _, c, h, w = shape
    return Spec(shape, (c * h * w, 1, c * w, c), dtype)


def turned(w: Tensor) -> Tensor:
    """The kernel [I, O, k, k] whose convolution is the input gradient of w's [O, I, k, k], at stride 1."""
    return w.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)


@functools.cache
def modulated(
    x: Spec,
    w: Spec,
    d: Spec | None,
    noise: Spec | None,
    strength: Spec | None,
    bias: Spec | None,
    style: Spec | None,
    y: Spec | None,
    ys: Spec | None,
    maps: int,
    padding: int,
    alpha: float | None,
    gain: Spec | None = None,
) -> Graph:
    """A modulated layer, or every second row of an upsampling one. alpha None: linear; gain None: in
    d, the strengths and the bias. Of each noise map there is "noise0", ..., and what it is multiplied by: a number, or
    its channels' [C], "strength0", ..."""
    g = Draft("layer")
    v = g.conv(g.input("x", x), g.input("w", w), 1, padding)
    v = v if d is None else g.mul(v, g.input("d", d))
    for j in range(maps if noise is not None else 0):
        map_ = g.input(f"noise{j}", noise)
        v = g.add(v, map_ if strength is None else g.mul(map_, g.input(f"strength{j}", strength)))
    v = v if bias is None else g.add(v, g.input("b", bias))
    v = v if alpha is None else g.lrelu(v, alpha)
    v = v if gain is None else g.mul(v, g.input("gain", gain))
    if y is not None:
        g.output(v, "y", y)
    if ys is not None:
        g.output(g.mul(v, g.input("style", style)), "ys", ys)
    return g.done()


@functools.cache
def plain(
    x: Spec,
    w: Spec,
    bias: Spec | None,
    residual: Spec | None,
    y: Spec,
    stride: int,
    padding: int,
    alpha: float | None,
    gain: Spec | None = None,
    before: Spec | None = None,
) -> Graph:
    """A layer of a discriminator or of ProGAN. alpha None: no activation; gain None: none, or in the weight and the
    bias. "before": y without the residual, for the activation's gradient."""
    g = Draft("conv")
    v = g.conv(g.input("x", x), g.input("w", w), stride, padding)
    v = v if bias is None else g.add(v, g.input("b", bias))
    v = v if alpha is None else g.lrelu(v, alpha)
    v = v if gain is None else g.mul(v, g.input("gain", gain))
    if before is not None:
        g.output(v, "before", before)
    v = v if residual is None else g.add(v, g.input("residual", residual))
    g.output(v, "y", y)
    return g.done()


def _input_grad(g: Draft, form: str, dt: Spec, w: Spec, size: tuple[int, ...], stride: int, padding: int) -> str:
    """`form`: "gradient" of a convolution by w; "conv", a convolution by w itself, as the adjoint of a transposed one
    or with a kernel turned and transposed before."""
    dt, w = g.input("dt", dt), g.input("w", w)
    return g.conv(dt, w, stride, padding) if form == "conv" else g.input_grad(dt, w, size, stride, padding)


@functools.cache
def modulated_gradient(
    form: str,
    dt: Spec,
    w: Spec,
    style: Spec,
    saved: Spec,
    inverse: Spec | None,
    matrix: Spec | None,
    image: Spec | None,
    noise: Spec | None,
    scale: Spec,
    sums: Spec | None,
    stride: int,
    padding: int,
    alpha: float | None,
) -> Graph:
    """From a layer's dt to that of the layer before, whose output was saved times the style: inverse = 1/style.

    matrix [N, C] and image [N, 1, H, W]: of each of the three maps that read y too. sums [N, C]: "of_style" Σ y·E_conv
    before its style, "of_bias" Σ g, "of_noise" Σ g·noise, "of_rgb0..2" Σ y·dimg.
    """
    g = Draft("layer_gradient")
    dx = _input_grad(g, form, dt, w, saved.shape[2:], stride, padding)
    y = g.input("saved", saved)
    y = y if inverse is None else g.mul(y, g.input("inverse", inverse))
    e = g.mul(dx, g.input("style", style))
    for j in range(RGB if matrix is not None else 0):
        map_ = g.input(f"image{j}", image)
        e = g.add(e, g.mul(g.input(f"matrix{j}", matrix), map_))
        if sums is not None:
            g.output(g.sum(g.mul(y, map_), sums.shape), f"of_rgb{j}", sums)
    h = e if alpha is None else g.lrelu_grad(e, y, alpha)
    if sums is not None:
        g.output(g.sum(g.mul(dx, y), sums.shape), "of_style", sums)
        g.output(g.sum(h, sums.shape), "of_bias", sums)
        if noise is not None:
            g.output(g.sum(g.mul(h, g.input("noise", noise)), sums.shape), "of_noise", sums)
    g.output(g.mul(h, g.input("scale", scale)), "dt'", nhwc(saved.shape, saved.dtype))
    return g.done()


@functools.cache
def plain_gradient(
    form: str,
    dt: Spec,
    w: Spec,
    saved: Spec,
    extra: Spec | None,
    whole: bool,
    sums: Spec | None,
    out: Spec,
    stride: int,
    padding: int,
    alpha: float,
) -> Graph:
    """From a layer's dt to that of the layer before, y `saved`, of which another reader gave the gradient `extra`.
    `whole`: E is written too, for readers beside that layer. sums [1, C]: "of_bias" Σ g."""
    g = Draft("conv_gradient")
    e = _input_grad(g, form, dt, w, saved.shape[2:], stride, padding)
    e = e if extra is None else g.add(e, g.input("extra", extra))
    if whole:
        g.output(e, "e", out)
    h = g.lrelu_grad(e, g.input("saved", saved), alpha)
    if sums is not None:
        g.output(g.sum(h, sums.shape), "of_bias", sums)
    g.output(h, "dt'", out)
    return g.done()
