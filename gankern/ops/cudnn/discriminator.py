"""StyleGAN2's residual discriminator but for its last block as one operator, whose kernels reach across layers.

    x₀ = lrelu(C(img, w) + b)                                          from RGB
    y₀ = lrelu(C(x, w₀) + b₀)    y₁ = lrelu(C↓2(FIR(y₀), w₁) + b₁)      x' = y₁ + C(FIR↓2(x), w₂)      a block

    dt₁ = lrelu'(y₁)·E'     dt₀ = lrelu'(y₀)·FIRᵀ(Cᵢ(dt₁, w₁))     E = Cᵢ(dt₀, w₀) + FIRᵀ↑2(Cᵢ(E', w₂))

where E is the gradient of a block's input. Gains are in weights and biases. What reads a convolution's output stands in
its kernel: the sum of the two branches in the skip's, and backward E and the dt₁ of the block before in the kernel that
makes Cᵢ(dt₀, w₀). Between y₀ and the strided convolution there is our pass with the filter in it, of C(x, w₀), or the
merged kernel. Karras et al. 2020 (arXiv:1912.04958), 4.1.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from gankern.ops import _impl
from gankern.ops._gradients import weight_gradients_wanted
from gankern.ops.bias_act import bias_act
from gankern.ops.conv2d import conv2d, downsample_padding, library_conv2d, library_input_grad, library_weight_grad
from gankern.ops.cudnn import layers, merging
from gankern.ops.cudnn.graph import spec
from gankern.ops.cudnn.layers import turned
from gankern.ops.cudnn.plans import FORMS, accepts, run
from gankern.ops.fir_act import bias_act_upfirdn2d
from gankern.ops.residual import residual_branches
from gankern.ops.upfirdn2d.op import adjoint_args

MERGED = 2
CONV0, CONV1, SKIP = range(3)
"""A block's weights, of which the first two have biases."""


def _passes(op: str):
    return _impl.launchers(f"gankern.ops.{op}", "cudnn")


@dataclass
class Chain:
    """The operands: weights of from-RGB and of each block's three convolutions, biases of from-RGB and of each block's
    two, blocks' kinds."""

    img: Tensor
    weights: list[Tensor]
    biases: list[Tensor]
    f: Tensor
    kinds: list[int]
    alpha: float
    taps: Tensor | None = field(init=False, default=None)

    def __post_init__(self):
        self.act = ("lrelu", self.alpha, 1.0, -1.0)
        self.fir = [1, 1], [1, 1], downsample_padding(self.f, 1), False, 1.0
        self.skip_fir = [1, 1], [2, 2], downsample_padding(self.f), False, 1.0
        if any(map(self.merged, range(len(self.kinds)))):
            self.taps = merging.merge_matrix(self.f, False, 1.0).to(self.img.dtype)

    def merged(self, b: int) -> bool:
        return bool(self.kinds[b] & MERGED)

    def weight(self, b: int, conv: int) -> Tensor:
        return self.weights[1 + 3 * b + conv]

    def bias(self, b: int, conv: int) -> Tensor:
        return self.biases[1 + 2 * b + conv]

    def strided(self, b: int) -> tuple[Tensor, int, int]:
        """The kernel of a block's second convolution, its stride and padding."""
        w = self.weight(b, CONV1)
        return (merging.merged(w, self.taps), 2, 2) if self.merged(b) else (w, 2, 0)


def _empty(like: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    shape = [like.shape[0], channels, *size]
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


# -- forward -----------------------------------------------------------------------------------------------------------


def _layer(c: Chain, x: Tensor, w: Tensor, b: Tensor | None, residual: Tensor | None, stride=1, padding=0) -> Tensor:
    size = [(v + 2 * padding - k) // stride + 1 for v, k in zip(x.shape[2:], w.shape[2:], strict=True)]
    y = _empty(x, w.shape[0], size)
    operands = {"x": x, "w": w, "b": b, "residual": residual, "y": y}
    specs = [None if t is None else spec(t) for t in operands.values()]
    run(layers.plain(*specs, stride, padding, None if b is None else c.alpha), operands)
    return y


KEPT = 5
"""How many tensors a block keeps: its input, C(x, w₀) or y₀, what the strided convolution reads, y₁, FIR↓2(x)."""


def _block(c: Chain, b: int, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """(the block's output, what it keeps)."""
    reduced = _passes("upfirdn2d").forward(x, c.f, *c.skip_fir)
    w, stride, padding = c.strided(b)
    if c.merged(b):
        t = z = _layer(c, x, c.weight(b, CONV0), c.bias(b, CONV0), None, 1, 1)
    else:
        t = library_conv2d(x, c.weight(b, CONV0), 1, 1, False)
        z = _passes("fir_act").act_filter(t, c.bias(b, CONV0), c.f, c.fir, c.act)
    y1 = _layer(c, z, w, c.bias(b, CONV1), None, stride, padding)
    return _layer(c, reduced, c.weight(b, SKIP), None, y1), [x, t, z, y1, reduced]


def _forward_impl(
    img: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    f: Tensor,
    kinds: Sequence[int],
    alpha: float,
    keep: bool,
) -> list[Tensor]:
    """[the last block's output, and where `keep` what the blocks keep]."""
    c = Chain(img, list(weights), list(biases), f, list(kinds), alpha)
    x, kept = _layer(c, img, weights[0], biases[0], None), []
    for b in range(len(kinds)):
        x, of_block = _block(c, b, x)
        if keep:
            # a merged block's y₀ is what its strided convolution reads: an operator returns no tensor twice
            kept += [t for i, t in enumerate(of_block) if not (c.merged(b) and i == 2)]
    return [x, *kept]


# -- backward ----------------------------------------------------------------------------------------------------------


def _before(c: Chain, dt: Tensor, w: Tensor, y: Tensor, extra, whole: bool, db, stride=1, padding=1):
    """(E or None, dt of the layer before, whose y is given); into db its bias's gradient."""
    e, out = torch.empty_like(y) if whole else None, torch.empty_like(y)
    operands = {"dt": dt, "saved": y, "extra": extra, "e": e, "of_bias": db, "dt'": out}
    for summed, form in itertools.product((True, False), FORMS):
        if form == "conv" and stride == 2:
            continue
        kernel = w if form == "gradient" else turned(w)
        specs = [spec(dt), spec(kernel), spec(y), None if extra is None else spec(extra)]
        sums = spec(db) if summed and db is not None else None
        graph = layers.plain_gradient(form, *specs, whole, sums, spec(out), stride, padding, c.alpha)
        if accepts(graph, dt.device):
            break
    run(graph, operands | {"w": kernel})
    if db is not None and sums is None:
        torch.sum(out, (0, 2, 3), dtype=db.dtype, out=db)
    return e, out


class _Sums:
    """The biases' gradients, side by side: those that a kernel sums, zero before it."""

    def __init__(self, c: Chain, wanted: bool):
        sizes = [len(b) for b in c.biases]
        wide = torch.promote_types(c.img.dtype, torch.float32)
        self.parts = list(torch.zeros(sum(sizes), dtype=wide, device=c.img.device).split(sizes)) if wanted else []

    def of(self, b: int, conv: int) -> Tensor | None:
        """Of a block's convolution; of from-RGB b = 0, conv = -1."""
        return self.parts[1 + 2 * b + conv] if self.parts else None

    def set(self, b: int, conv: int, db: Tensor) -> None:
        if self.parts:
            self.parts[1 + 2 * b + conv] = db.to(self.parts[0].dtype)


def _through_block(c: Chain, b: int, e: Tensor, dt1: Tensor, kept: list[Tensor], sums: _Sums, need_w: bool):
    """(dt₀, the skip's part of E, the block's three weight gradients)."""
    x, t, z, _, reduced = kept
    w, stride, padding = c.strided(b)
    w1, w2, dw = c.weight(b, CONV1), c.weight(b, SKIP), []
    if need_w:
        dk = library_weight_grad(dt1, z, w.shape, stride, padding, False)
        dw = [merging.merged_adjoint(dk, c.taps).to(w1.dtype) if c.merged(b) else dk]
        dw.append(library_weight_grad(e, reduced, w2.shape, 1, 0, False))
    of_reduced = library_input_grad(e, w2, reduced.shape, 1, 0, False)
    skip_args = adjoint_args(c.f, x.shape[2:], reduced.shape[2:], *c.skip_fir)
    skip = _passes("upfirdn2d").forward(of_reduced, c.f, *skip_args)
    if c.merged(b):
        _, dt0 = _before(c, dt1, w, t, None, False, sums.of(b, CONV0), stride, padding)
    else:
        dz = library_input_grad(dt1, w, z.shape, stride, padding, False)
        args = adjoint_args(c.f, t.shape[2:], z.shape[2:], *c.fir)
        backward = _passes("fir_act").act_filter_backward
        dt0, db = backward(dz, t, c.bias(b, CONV0), c.f, list(t.shape[2:]), bool(sums.parts), args, c.act)
        sums.set(b, CONV0, db)
    if need_w:
        dw = [library_weight_grad(dt0, x, c.weight(b, CONV0).shape, 1, 1, False), *dw]
    return dt0, skip, dw


def _backward_impl(
    dx: Tensor,
    img: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    f: Tensor,
    kept: Sequence[Tensor],
    kinds: Sequence[int],
    alpha: float,
    need_img: bool,
    need_w: bool,
    need_b: bool,
) -> list[Tensor]:
    """[dimg, all biases' gradients, and where `need_w` the weights']; empty where not needed."""
    c = Chain(img, list(weights), list(biases), f, list(kinds), alpha)
    blocks, rest = [], list(kept)
    for b in range(len(kinds)):
        x, t, *rest = rest
        z, *rest = [t, *rest] if c.merged(b) else rest
        y1, reduced, *rest = rest
        blocks.append([x, t, z, y1, reduced])
    sums, dw, last = _Sums(c, need_b), [], len(blocks) - 1
    dt1, db = _passes("bias_act").backward(dx, None, None, blocks[last][3], need_b, 1, *c.act)
    sums.set(last, CONV1, db)
    e = dx
    for b in reversed(range(len(blocks))):
        dt0, skip, of_block = _through_block(c, b, e, dt1, blocks[b], sums, need_w)
        dw = of_block + dw
        y, conv = (blocks[b - 1][3], CONV1) if b else (blocks[0][0], -1)
        e, dt1 = _before(c, dt0, c.weight(b, CONV0), y, skip, b > 0, sums.of(max(b - 1, 0), conv))
    if need_w:
        dw = [library_weight_grad(dt1, img, weights[0].shape, 1, 0, False), *dw]
    dimg = library_input_grad(dt1, weights[0], img.shape, 1, 0, False) if need_img else img.new_empty(0)
    return [dimg, torch.cat(sums.parts).to(biases[0].dtype) if need_b else img.new_empty(0), *dw]


_discriminator = _impl.register("discriminator", _forward_impl)
_discriminator_backward = _impl.register("discriminator_backward", _backward_impl)


# -- autograd ----------------------------------------------------------------------------------------------------------


def _layer_by_layer(img, weights, biases, f, kinds, alpha) -> Tensor:
    """The same in differentiable operators, a layer each."""
    act = {"act": "lrelu", "alpha": alpha, "gain": 1.0}
    x = bias_act(conv2d(img, weights[0]), biases[0], **act)
    for b in range(len(kinds)):
        w0, w1, w2 = weights[1 + 3 * b : 4 + 3 * b]
        t, reduced = residual_branches(x, w0, f, 1)
        z = bias_act_upfirdn2d(t, biases[1 + 2 * b], f, padding=downsample_padding(f, 1), **act)
        x = bias_act(conv2d(z, w1, stride=2), biases[2 + 2 * b], **act, residual=conv2d(reduced, w2))
    return x


def _save(ctx, inputs, output):
    img, weights, biases, f, kinds, alpha, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.numbers, ctx.count = (kinds, alpha), len(weights)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(img, f, *weights, *biases, *output[1:])


def _backward(ctx, grads):
    dx = grads[0]
    img, f, *rest = ctx.saved_tensors
    weights, biases = rest[: ctx.count], rest[ctx.count :][: 1 + 2 * len(ctx.numbers[0])]
    kept = rest[len(weights) + len(biases) :]
    if torch.is_grad_enabled():  # create_graph=True: the layers one by one, run again
        flat, tree = tree_flatten([img, weights, biases])
        asked, _ = tree_flatten(list(ctx.needs_input_grad[:3]))
        own = [t.view_as(t) for t in flat]
        wanted = [t for t, need in zip(own, asked, strict=True) if need]
        x = _layer_by_layer(*tree_unflatten(own, tree), f, *ctx.numbers)
        found = iter(torch.autograd.grad(x, wanted, dx, create_graph=True, allow_unused=True))
        return *tree_unflatten([next(found) if need else None for need in asked], tree), None, None, None, None
    wanted = weight_gradients_wanted()
    need_img, need_w, need_b = (any(tree_flatten(n)[0]) for n in ctx.needs_input_grad[:3])
    need_w, need_b = need_w and wanted, need_b and wanted
    dx = dx.contiguous(memory_format=torch.channels_last)
    found = _discriminator_backward(dx, img, weights, biases, f, kept, *ctx.numbers, need_img, need_w, need_b)
    dimg, db, *dw = found
    db = list(db.split([len(b) for b in biases])) if need_b else [None] * len(biases)
    return dimg if need_img else None, dw if need_w else [None] * ctx.count, db, None, None, None, None


_impl.register_autograd(_discriminator, _backward, setup_context=_save)


def discriminator(
    img: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], f: Tensor, kinds: Sequence[int], alpha: float
) -> Tensor:
    """The input [N, C, 4, 4] of the last block, in img's dtype. Twice differentiable.

    img [N, I, R, R], channels_last; weights: from-RGB's [C, I, 1, 1], and of each block [C, C, 3, 3], [O, C, 3, 3] and
    the skip's [O, C, 1, 1], in img's dtype, input channels innermost in memory, gains in them; biases: from-RGB's [C],
    and of each block [C] and [O]; f from `setup_filter`; kinds: MERGED or 0 of each block.
    """
    return _discriminator(img, list(weights), list(biases), f, list(kinds), alpha, torch.is_grad_enabled())[0]
