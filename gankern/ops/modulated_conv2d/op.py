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
from dataclasses import astuple, fields

import torch
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._gradients import weight_gradients_wanted
from gankern.ops._layout import wide
from gankern.ops.bias_act import activation_args, check_bias
from gankern.ops.conv2d import conv2d_resample
from gankern.ops.modulated_conv2d import layer as formulas
from gankern.ops.modulated_conv2d.layer import Layer, Tensors
from gankern.ops.upfirdn2d import check_filter


@_impl.uncast
def demodulation(weight: Tensor, styles: Tensor, eps: float = 1e-8) -> Tensor:
    """d [N, O] of weight [O, I, k, k] and styles [N, I], in at least float32: rsqrt(s² · (Σ_k w²)ᵀ + eps)."""
    w, s = wide(weight), wide(styles)
    return (s.square() @ w.square().sum([2, 3]).t() + eps).rsqrt()


_demodulation = demodulation


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
    samples, args = [], {"up": up, "padding": padding, "flip_weight": flip_weight}
    for i in range(x.shape[0]):
        w = weight * styles[i][None, :, None, None]
        if demodulate:
            w = w * (w.square().sum([1, 2, 3], keepdim=True) + eps).rsqrt()
        samples.append(conv2d_resample(x[i : i + 1], w, resample_filter, **args))
    y = torch.cat(samples) if samples else conv2d_resample(x, weight, resample_filter, **args)
    return y if noise is None else y + noise


# -- registration -----------------------------------------------------------------------------------------------------


def _forward_impl(
    x: Tensor,
    weight: Tensor,
    styles: Tensor | None,
    d: Tensor | None,
    noise: Tensor | None,
    strength: Tensor | None,
    bias: Tensor | None,
    f: Tensor | None,
    next_styles: Tensor | None,
    up: int,
    padding: int,
    flip_weight: bool,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
    outputs: str,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """(y, y · next_styles); an empty tensor for the one that isn't asked for."""
    tensors = Tensors(x, weight, styles, d, noise, strength, bias, f, next_styles)
    layer = Layer(up, padding, flip_weight, act, alpha, gain, clamp, outputs, impl)
    return _implementation(impl).forward(tensors, layer)


def _backward_impl(
    dy: Tensor | None,
    dys: Tensor | None,
    x: Tensor,
    weight: Tensor,
    styles: Tensor | None,
    d: Tensor | None,
    noise: Tensor | None,
    strength: Tensor | None,
    bias: Tensor | None,
    f: Tensor | None,
    next_styles: Tensor | None,
    y: Tensor | None,
    ys: Tensor | None,
    needs: list[bool],
    up: int,
    padding: int,
    flip_weight: bool,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
    outputs: str,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, styles, d, noise, strength, bias, next_styles; empty for each that isn't needed."""
    tensors = Tensors(x, weight, styles, d, noise, strength, bias, f, next_styles)
    layer = Layer(up, padding, flip_weight, act, alpha, gain, clamp, outputs, impl)
    backward = formulas.gradients if impl == "reference" else _implementation(impl).backward
    gradients = backward(dy, dys, tensors, y, ys, layer, needs)
    return tuple(x.new_empty(0) if t is None else t for t in gradients)


def _implementation(impl: str):
    if impl == "reference":
        return formulas
    from gankern.ops.modulated_conv2d import fused

    return fused


_modulated_conv2d = _impl.register("modulated_conv2d", _forward_impl)
_modulated_conv2d_backward = _impl.register("modulated_conv2d_backward", _backward_impl)
_TENSORS = len(fields(Tensors))


def _save(ctx, inputs, output):
    ctx.layer = Layer(*inputs[_TENSORS:])
    ctx.set_materialize_grads(False)
    y, ys = output
    # ys gives y back, so one of the two is kept
    ctx.save_for_backward(*inputs[:_TENSORS], *((y, None) if ctx.layer.plain else (None, ys)))


def _backward(ctx, dy, dys):
    *tensors, y, ys = ctx.saved_tensors
    dy, dys = dy if ctx.layer.plain else None, None if tensors[-1] is None else dys
    if dy is None and dys is None:
        return (None,) * (_TENSORS + len(fields(Layer)))
    asked = ctx.needs_input_grad
    needs = [asked[i] for i in (0, 1, 2, 3, 4, 5, 6, 8)]
    needs[7] = needs[7] and dys is not None
    if not weight_gradients_wanted():
        for i in (1, 4, 5, 6):
            needs[i] = False
    if torch.is_grad_enabled() and not _differentiable(Tensors(*tensors), ctx.layer, needs):  # create_graph=True
        gradients = formulas.gradients(dy, dys, Tensors(*tensors), y, ys, ctx.layer, needs)
    else:
        gradients = _modulated_conv2d_backward(dy, dys, *tensors, y, ys, needs, *astuple(ctx.layer))
    gradients = [t if need else None for t, need in zip(gradients, needs, strict=True)]
    return *gradients[:7], None, gradients[7], *[None] * len(fields(Layer))


def _differentiable(t: Tensors, layer: Layer, needs: list[bool]) -> bool:
    """Whether the backward op's own gradient is the fused one of `second`."""
    if layer.impl == "reference":
        return False
    from gankern.ops.modulated_conv2d import second

    return second.serves(t, layer, needs)


def _second_impl(
    a: Tensor | None,
    e: Tensor | None,
    f_: Tensor | None,
    dy: Tensor | None,
    dys: Tensor | None,
    x: Tensor,
    weight: Tensor,
    d: Tensor,
    noise: Tensor | None,
    strength: Tensor | None,
    bias: Tensor | None,
    f: Tensor | None,
    next_styles: Tensor | None,
    saved: Tensor,
    dd: Tensor,
    dnext: Tensor,
    needs: list[bool],
    up: int,
    padding: int,
    flip_weight: bool,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
    outputs: str,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`second.gradients`; empty for each that there isn't."""
    from gankern.ops.modulated_conv2d import second

    t = Tensors(x, weight, None, d, noise, strength, bias, f, next_styles)
    layer = Layer(up, padding, flip_weight, act, alpha, gain, clamp, outputs, impl)
    gradients = second.gradients((a, e, f_), dy, dys, t, saved, dd, dnext, layer, needs)
    return tuple(x.new_empty(0) if g is None else g for g in gradients)


_modulated_conv2d_second = _impl.register("modulated_conv2d_second", _second_impl)


def _save_backward(ctx, inputs, output):
    (dy, dys), tensors, (y, ys, ctx.needs) = inputs[:2], inputs[2 : 2 + _TENSORS], inputs[2 + _TENSORS : 5 + _TENSORS]
    ctx.layer = Layer(*inputs[5 + _TENSORS :])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(dy, dys, *tensors, y, ys, output[3], output[7])


def _third_order(ctx, dy, dys, tensors, y, ys, cotangents) -> list[Tensor | None]:
    """What the formulas have: each operand counts as a variable of its own, as a saved y isn't a function of x here."""
    inputs = [t if t is None else t.view_as(t) for t in (dy, dys, *tensors, y, ys)]
    outputs = formulas.gradients(*inputs[:2], Tensors(*inputs[2:-2]), *inputs[-2:], ctx.layer, ctx.needs)
    pairs = zip((outputs[0], outputs[3], outputs[7]), cotangents, strict=True)
    outputs, given = zip(*[(o, c) for o, c in pairs if o is not None and c is not None], strict=True)
    asked = [t is not None and need for t, need in zip(inputs, ctx.needs_input_grad, strict=False)]
    wanted = [t for t, need in zip(inputs, asked, strict=True) if need]
    found = iter(torch.autograd.grad(outputs, wanted, given, create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in asked]


def _backward_backward(ctx, ddx, _dw, _ds, ddd, _dnoise, _dstrength, _db, ddnext):
    """Of a backward pass with respect to x, d and next_styles; any other ran as formulas."""
    dy, dys, *tensors, y, ys, dd, dnext = ctx.saved_tensors
    if torch.is_grad_enabled():
        gradients = _third_order(ctx, dy, dys, tensors, y, ys, (ddx, ddd, ddnext))
        return *gradients, None, *[None] * len(fields(Layer))
    x, weight, _, d, noise, strength, bias, f, next_styles = tensors
    asked = ctx.needs_input_grad[2 : 2 + _TENSORS]
    wanted = weight_gradients_wanted()
    through_d = wanted and ddd is not None  # bias and noise strength matter to the sum of g·u alone
    needs = [
        asked[1] and wanted,
        asked[3],
        asked[5] and through_d,
        asked[6] and through_d,
        asked[8] and dys is not None,
    ]
    saved = y if ctx.layer.plain else ys
    layer_args = astuple(ctx.layer)
    tensors = (x, weight, d, noise, strength, bias, f, next_styles)
    gradients = _modulated_conv2d_second(ddx, ddd, ddnext, dy, dys, *tensors, saved, dd, dnext, needs, *layer_args)
    there = [dy is not None, dys is not None, *needs, True]
    ddy, ddys, dw, d_d, dstrength, db, dstyles, dsaved = (
        g if given else None for g, given in zip(gradients, there, strict=True)
    )
    of_tensors = (None, dw, None, d_d, None, dstrength, db, None, dstyles)
    of_saved = (dsaved, None) if ctx.layer.plain else (None, dsaved)
    return ddy, ddys, *of_tensors, *of_saved, None, *[None] * len(fields(Layer))


_impl.register_autograd(_modulated_conv2d, _backward, setup_context=_save)
_impl.register_autograd(_modulated_conv2d_backward, _backward_backward, setup_context=_save_backward)
_impl.declare("modulated_conv2d", "triton", "triton_gemm", "cuda", "cudnn", "reference")

# -- public -----------------------------------------------------------------------------------------------------------


def _check(x, weight, styles, noise, strength, demodulation, next_styles, up, padding, f) -> None:
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
    of_outputs = {"demodulation": demodulation, "next_styles": next_styles}
    for name, t in of_outputs.items():
        if t is not None and t.shape != (n, weight.shape[0]):
            raise ValueError(f"{name} has shape {tuple(t.shape)}, expected [{n}, {weight.shape[0]}]")
    if strength is not None and (noise is None or strength.numel() != 1):
        found = f"has shape {tuple(strength.shape)}" if noise is not None else "was given without noise"
        raise ValueError(f"noise_strength {found}, expected a single number beside noise")
    named = {"weight": weight, "styles": styles, "noise": noise, "noise_strength": strength} | of_outputs
    for name, t in named.items():
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


def _normalised(weight: Tensor, styles: Tensor, styled: bool) -> tuple[Tensor, Tensor]:
    """The same layer after demodulation, in numbers that float16 can hold. It doesn't depend on the scales, so none of
    their gradient, which would be rounding noise on the largest weight, is computed. Styles that x holds already stay
    as they are."""
    w_max = weight.detach().abs().amax([1, 2, 3], keepdim=True)
    s_max = styles.detach().abs().amax(1, keepdim=True)
    fan_in = weight[0].numel()
    weight = weight / (w_max.where(w_max > 0, 1) * math.sqrt(fan_in))
    return weight, styles if styled else styles / s_max.where(s_max > 0, 1)


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
    noise_strength: Tensor | None = None,
    demodulation: Tensor | None = None,
    styled: bool = False,
    next_styles: Tensor | None = None,
    both: bool = False,
    eps: float = 1e-8,
    impl: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """StyleGAN2's layer: modulate, convolve, [upsample,] demodulate, add noise, bias, activate, clamp. Twice
    differentiable.

    `x` [N, I, H, W]; `weight` [O, I, k, k] and `styles` [N, I] of any float dtype (float32 master weights beside half
    activations are meant); `noise` broadcastable to [N, 1, H·up, W·up], times the scalar tensor `noise_strength` where
    given (its gradient comes with the others, that of a noise map costs a pass); `bias` [O] with `act`, `alpha`,
    `gain`, `clamp` as in `bias_act`. `up`: 1, or 2 through `resample_filter` (gain 4). `padding`: k//2 keeps the size.
    `demodulation` [N, O], where it is known already (`demodulate`), is what every output channel is multiplied by.
    `flip_weight=True` correlates, False convolves. float16 with demodulation normalises weights and styles first, so
    that sums stay in range.

    In a chain each layer writes what the next reads: `next_styles` [N, O] multiply the result, and `styled=True` says
    that x was multiplied by `styles` so (which still demodulate). `both=True` returns (y, y · next_styles), for a
    second reader; alone, y · next_styles is all that is written and kept, and a style of exactly 0 gets no gradient.

    Returns [N, O, H·up, W·up] in x's dtype. Raises ValueError for shapes, dtypes and devices that don't fit.
    Karras et al. 2020 (arXiv:1912.04958).
    """
    _check(x, weight, styles, noise, noise_strength, demodulation, next_styles, up, padding, resample_filter)
    if both and next_styles is None:
        raise ValueError("both=True, expected next_styles beside it")
    given = demodulation is not None
    if demodulate and not given and x.dtype == torch.float16:
        weight, styles = _normalised(weight, styles, styled)
    if bias is not None:
        check_bias(bias, x, weight.shape[0])
    act_args = activation_args(act, alpha, gain, clamp)
    d = demodulation if given else _demodulation(weight, styles, eps) if demodulate else None
    strength = None if noise_strength is None else noise_strength.reshape([])
    tensors = (x, weight, None if styled else styles, d, noise, strength, bias, resample_filter, next_styles)
    outputs = "plain" if next_styles is None else "both" if both else "styled"
    chosen = _impl.choose("modulated_conv2d", impl, x)
    y, ys = _modulated_conv2d(*tensors, up, padding, bool(flip_weight), *act_args, outputs, chosen)
    return y if next_styles is None else (y, ys) if both else ys
