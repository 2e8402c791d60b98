"""StyleGAN2's synthesis network as one operator: forward a kernel a layer.

Layer k reads x̃ₖ, its input times its styles sₖ, and writes only x̃ₖ₊₁ = sₖ₊₁·y (the last writes y):

    y = lrelu(d·C(x̃, w) + strength·noise + b)·gain           rgb = M y        forward

    E = sₖ₊₁·dx̃ₖ₊₁ + Mᵀ drgb      g = gain·lrelu'(y)·E        dt = d·g        dx̃ = Cᵢ(dt, w)       dw = C_w(dt, x̃)
    ds = Σ y·dx̃ₖ₊₁    dM = Σ drgb·y    db = Σ g    dstrength = Σ g·noise    dd = (Σ E·y - b·Σg - strength·Σ g·noise)/d

Backward one pass of ours makes dt and every sum over the image from dx̃ₖ₊₁, x̃ₖ₊₁ and drgb; or the kernel that makes
dx̃ₖ₊₁ does, which then never leaves it (`synthesis_backward.SUMS_IN_KERNEL`). An upsampling layer is a transposed
convolution and our pass with the filter in it, or the merged kernel.
A style nearer to 0 than `TINY` counts as that far from it, so that y can be read back from x̃.
Karras et al. 2020 (arXiv:1912.04958).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from gankern.ops import _impl
from gankern.ops._gradients import weight_gradients_wanted
from gankern.ops.conv2d import library_conv2d
from gankern.ops.cudnn import layers, merging
from gankern.ops.cudnn.graph import spec
from gankern.ops.cudnn.plans import run
from gankern.ops.cudnn.synthesis_backward import backward
from gankern.ops.cudnn.synthesis_operands import RGB, UP, Chain, filter_passes, pixels
from gankern.ops.modulated_conv2d import modulated_conv2d

# -- forward -----------------------------------------------------------------------------------------------------------


def _layer(c: Chain, k: int, x: Tensor) -> Tensor:
    """x̃ₖ₊₁ of x̃ₖ; of the last layer y."""
    last = k == c.count - 1
    if c.filtered(k):
        t = library_conv2d(x, c.weights[k].transpose(0, 1), 2, 0, True)
        y, ys = filter_passes().forward(t, c.f, c.fir(), c.pass_operands(k), last)
        return y if last else ys
    out = c.empty(c.channels[k], c.size(k))
    if not c.merged(k):
        small = {"d": c.scales[k], "b": c.biases_[k], "style": c.style_of(k)}
        maps, strengths = ([c.noise(k)], [c.strength_of(k)]) if c.noises else ([], [])
        _run(x, c.weights[k], small, maps, strengths, out, c.alpha)
        return out
    _merged_layer(c, k, x, out)
    return out


def _merged_layer(c: Chain, k: int, x: Tensor, out: Tensor) -> None:
    """Even and odd rows: a pixel's two columns count as two sets of channels, each with its own noise."""
    channels, noise, style = c.channels[k], c.noise(k), c.style_of(k)
    maps, strengths = [], []
    if noise is not None:
        n, _, h, w = noise.shape
        parts = noise.view(n, h // 2, 2, w // 2, 2).permute(2, 4, 0, 1, 3).contiguous()[:, :, :, None]
        maps = [part.unbind(0) for part in parts]
        strengths = (c.strength_of(k) * merging.of_columns(channels, x.device, c.dtype)).unbind(0)
    small = {"d": c.scales[k], "b": c.biases_[k], "style": style}
    small = {name: None if t is None else torch.cat([t, t], -1) for name, t in small.items()}
    for row, kernel in enumerate(merging.phases(merging.merged(c.weights[k], c.taps))):
        _run(x, kernel, small, maps[row] if maps else [], strengths, merging.rows_of(out, row), c.alpha)


def _run(x: Tensor, w: Tensor, small: dict, maps: Sequence[Tensor], strengths: Sequence[Tensor], out: Tensor, alpha):
    noise, strength = (maps[0], strengths[0]) if maps else (None, None)
    style = small["style"]
    ordered = (x, w, small["d"], noise, strength, small["b"], style)
    specs = [None if t is None else spec(t) for t in ordered]
    outs = (spec(out), None) if style is None else (None, spec(out))
    named = {f"noise{j}": t for j, t in enumerate(maps)} | {f"strength{j}": t for j, t in enumerate(strengths)}
    graph = layers.modulated(*specs, *outs, len(maps), 1, alpha)
    run(graph, small | named | {"x": x, "w": w, "y": out, "ys": out})


def _forward_impl(
    x: Tensor,
    styles: Sequence[Tensor],
    weights: Sequence[Tensor],
    d: Sequence[Tensor],
    noises: Sequence[Tensor],
    strengths: Sequence[Tensor],
    biases: Sequence[Tensor],
    matrix: Tensor,
    f: Tensor,
    kinds: Sequence[int],
    alpha: float,
    gain: float,
    keep: bool,
) -> list[Tensor]:
    """The RGB of every layer that has it, [N, 3, H, W]; and where `keep`, what every layer wrote."""
    c = Chain(x, *map(list, (styles, weights, d, noises, strengths, biases)), matrix, f, list(kinds), alpha, gain)
    c.prepare()
    ones = torch.ones_like(c.d[-1], dtype=c.dtype)
    from_written = torch.cat([(*c.inverses, ones)[k] for k in range(c.count) if c.rgb(k)], 1)  # y from what is written
    of_written = (c.matrix_ * from_written[:, None]).to(x.dtype)
    of_written = of_written.split([n for k, n in enumerate(c.channels) if c.rgb(k)], 2)
    images, kept, of_layer = [], [], iter(of_written)
    for k in range(c.count):
        x = _layer(c, k, x)
        if keep:
            kept.append(x)
        if c.rgb(k):
            image = torch.bmm(next(of_layer), pixels(x).transpose(1, 2))
            images.append(image.unflatten(2, x.shape[2:]))
    return images + kept


_synthesis = _impl.register("synthesis", _forward_impl)
_synthesis_backward = _impl.register("synthesis_backward", backward)


# -- autograd ----------------------------------------------------------------------------------------------------------


def _layer_by_layer(x, styles, weights, d, noises, strengths, biases, matrix, f, kinds, alpha, gain) -> list[Tensor]:
    """The same images in differentiable operators, a layer each."""
    images, at = [], 0
    for k, (w, kind) in enumerate(zip(weights, kinds, strict=True)):
        last = k == len(weights) - 1
        y = modulated_conv2d(
            x,
            w,
            styles[k - 1] if k else x.new_ones(x.shape[:2]),
            noise=noises[k] if noises else None,
            up=2 if kind & UP else 1,
            padding=1,
            resample_filter=f,
            flip_weight=not kind & UP,
            bias=biases[k],
            act="lrelu",
            alpha=alpha,
            gain=gain,
            noise_strength=strengths[k] if strengths else None,
            demodulation=d[k],
            styled=True,
            next_styles=None if last else styles[k],
            both=bool(kind & RGB) and not last,
        )
        y, x = y if isinstance(y, tuple) else (y, y)
        if kind & RGB:
            m = matrix[:, :, at : at + w.shape[0]]
            images.append(torch.bmm(m.to(y.dtype), pixels(y).transpose(1, 2)).unflatten(2, y.shape[2:]))
            at += w.shape[0]
    return images


def _save(ctx, inputs, output):
    x, *lists, matrix, f, kinds, alpha, gain, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.numbers, ctx.lengths = (kinds, alpha, gain), [len(t) for t in lists]
    kept = output[len(output) - len(kinds) :]
    ctx.mark_non_differentiable(*kept)
    ctx.save_for_backward(x, matrix, f, *(t for ts in lists for t in ts), *kept)


def _operands(ctx) -> tuple[list, list[Tensor]]:
    """(the operands as the operator takes them, what was kept)."""
    x, matrix, f, *rest = ctx.saved_tensors
    lists = []
    for length in ctx.lengths:
        lists.append(rest[:length])
        rest = rest[length:]
    return [x, *lists, matrix, f, *ctx.numbers], rest


def _backward(ctx, grads):
    operands, kept = _operands(ctx)
    x, styles, weights, d, _, strengths, biases, *_ = operands
    rgb = [k for k, kind in enumerate(ctx.numbers[0]) if kind & RGB]
    images = list(grads[: len(rgb)])
    if torch.is_grad_enabled():  # create_graph=True
        return _differentiable(ctx, operands, images)
    for i, (k, image) in enumerate(zip(rgb, images, strict=True)):
        if image is None:  # nobody read it
            images[i] = x.new_zeros([len(x), layers.RGB, *kept[k].shape[2:]])
    wanted = weight_gradients_wanted()
    need_w = wanted and any(ctx.needs_input_grad[2])
    dx, ds, dd, dstrength, db, dm, *dw = _synthesis_backward(images, *operands[:9], kept, *operands[9:], need_w)
    channels = [t.shape[1] for t in d]
    found = [
        dx,
        _like(ds.split([t.shape[1] for t in styles], 1), styles),
        dw if need_w else [None] * len(weights),
        _like(dd.split([t.numel() for t in d]), d),
        [None] * ctx.lengths[3],
        _like(dstrength.split(1) if wanted and strengths else [None] * len(strengths), strengths),
        _like(db.split(channels) if wanted else [None] * len(biases), biases),
        dm,
    ]
    return *found, *[None] * 5


def _like(grads: Sequence[Tensor | None], of: Sequence[Tensor]) -> list[Tensor | None]:
    return [None if g is None else g.view(t.shape) if g.is_contiguous() else g for g, t in zip(grads, of, strict=True)]


def _differentiable(ctx, operands: list, images: list[Tensor | None]) -> tuple:
    """The gradients in differentiable operators: the layers one by one, run again."""
    flat, tree = tree_flatten(operands[:8])
    asked, _ = tree_flatten(list(ctx.needs_input_grad[:8]))
    own = [t.view_as(t) for t in flat]  # each a variable of its own, though d is made of styles
    outputs = _layer_by_layer(*tree_unflatten(own, tree), *operands[8:])
    outputs, given = zip(*[(o, g) for o, g in zip(outputs, images, strict=True) if g is not None], strict=True)
    wanted = [t for t, need in zip(own, asked, strict=True) if need]
    found = iter(torch.autograd.grad(outputs, wanted, given, create_graph=True, allow_unused=True))
    return *tree_unflatten([next(found) if need else None for need in asked], tree), *[None] * 5


_impl.register_autograd(_synthesis, _backward, setup_context=_save)


def synthesis(
    x: Tensor,
    styles: Sequence[Tensor],
    weights: Sequence[Tensor],
    d: Sequence[Tensor],
    noises: Sequence[Tensor],
    strengths: Sequence[Tensor],
    biases: Sequence[Tensor],
    matrix: Tensor,
    f: Tensor,
    kinds: Sequence[int],
    alpha: float,
    gain: float,
) -> list[Tensor]:
    """The RGB [N, 3, H, W] of each of two layers or more that has it, in x's dtype, contiguous. Twice differentiable.

    x [N, C, H, W], channels_last, times the first layer's styles; styles: [N, O] of what reads each layer's output,
    for all but the last; weights [O, I, 3, 3] in x's dtype, input channels innermost in memory, of an upsampling layer
    that isn't merged output channels; d [N, O]; noises [N, 1, H, W] or [H, W] with one strength each, or none;
    biases [O] in x's dtype; matrix [N, 3, ΣO], of the layers with RGB; f from `setup_filter`; kinds: UP, MERGED, RGB.
    """
    keep = torch.is_grad_enabled()
    lists = [list(t) for t in (styles, weights, d, noises, strengths, biases)]
    found = _synthesis(x, *lists, matrix, f, list(kinds), alpha, gain, keep)
    return found[: len(found) - len(kinds)] if keep else found
