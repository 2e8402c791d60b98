"""The backward pass of StyleGAN2's synthesis network as one operator: equations in synthesis.py."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gankern.ops import _impl
from gankern.ops.conv2d import library_conv2d, library_input_grad, library_weight_grad
from gankern.ops.cudnn import layers, merging
from gankern.ops.cudnn.graph import spec
from gankern.ops.cudnn.layers import turned
from gankern.ops.cudnn.plans import FORMS, accepts, run
from gankern.ops.cudnn.synthesis_operands import Chain, filter_passes, pixels

SUMS_IN_KERNEL = False
"""Whether a layer's gradient and its sums are asked of the kernel that makes the input gradient before it. For sums
[N, C] cuDNN 9.28 compiles, for sm_90, an atomic for every element, and spills registers by the kilobyte: our pass moves
2 of an activation more and leaves that be. A card may show otherwise."""


class _Gradients:
    """Where every layer's small gradients gather: the sums over its image, [N, ΣC] each; or whole, of the layers whose
    pass has a filter in it."""

    NAMES = ("of_style", "of_bias", "of_noise", *(f"of_rgb{j}" for j in range(layers.RGB)))

    def __init__(self, c: Chain):
        self.c = c
        total = c.first[-1]
        self.sums = torch.zeros([len(self.NAMES), c.x.shape[0], total], dtype=c.dtype, device=c.x.device)
        self.own: dict[int, tuple] = {}

    def of(self, k: int, name: str) -> Tensor:
        return self.c.row(self.sums[self.NAMES.index(name)], k)

    def results(self) -> list[Tensor]:
        """[dstyles [N, ΣC], dd [Σ N·C], dstrength [K], dbias [ΣC], dmatrix [N, 3, ΣC]]: side by side as Chain has them,
        dd one after the other."""
        c = self.c
        of_style, of_bias, of_noise = self.sums[:3]
        style = torch.cat([*c.styles_, torch.ones_like(c.d[-1], dtype=c.dtype)], 1)
        zero = c.matrix_.new_zeros(1, 1, 1)
        m = [c.matrices(k) if c.rgb(k) else zero.expand(len(c.x), layers.RGB, c.channels[k]) for k in range(c.count)]
        of_p = style * of_style + (torch.cat(m, 2) * self.sums[3:].transpose(0, 1)).sum(1)
        dd = of_p - torch.cat(c.biases_) * of_bias
        dstrength = self.sums.new_empty(0)
        if c.strengths:
            layer = _layer_of(tuple(c.channels), c.x.device)
            dd = dd - c.strengths_[:, 0].index_select(0, layer) * of_noise
            dstrength = self._strengths(layer, c.gain * of_noise.sum(0))
        dd = dd / torch.cat(c.d, 1)
        parts = [[c.row(t, k) for k in range(c.count)] for t in (of_style, dd, c.gain * of_bias.sum(0))]
        for k, (own_b, _, own_d, own_s) in self.own.items():
            parts[0][k], parts[1][k], parts[2][k] = own_s, own_d, own_b
        of_matrix = [c.row(self.sums[3:], k).transpose(0, 1) for k in range(c.count) if c.rgb(k)]
        ds = torch.cat(parts[0][:-1], 1).to(c.styles[0].dtype)
        dd = torch.cat(parts[1], 1).to(c.d[0].dtype).reshape(-1)
        results = [ds, dd.index_select(0, _one_by_one(tuple(c.channels), len(c.x), dd.device)), dstrength]
        return [*results, torch.cat(parts[2]).to(c.biases[0].dtype), torch.cat(of_matrix, 2).to(c.matrix.dtype)]

    def _strengths(self, layer: Tensor, of_channels: Tensor) -> Tensor:
        """[K], of each channel's part and of the layers that have theirs."""
        own = [self.own[k][1] for k in sorted(self.own)]
        if own:
            layer = torch.cat([layer, _numbers(tuple(sorted(self.own)), layer.device)])
            of_channels = torch.cat([of_channels, torch.stack(own)])
        found = torch.zeros(self.c.count, dtype=of_channels.dtype, device=of_channels.device)
        return found.index_add(0, layer, of_channels).to(self.c.strengths[0].dtype)


@_impl.constant
def _numbers(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(numbers, device=device)


def _layer_of(channels: tuple[int, ...], device: torch.device) -> Tensor:
    """The layer's number of each channel, [ΣC]."""
    return _numbers(tuple(k for k, n in enumerate(channels) for _ in range(n)), device)


@_impl.constant
def _one_by_one(channels: tuple[int, ...], n: int, device: torch.device) -> Tensor:
    """Where each element of layers' [N, C], one after the other, stands in [N, ΣC]."""
    total, first, places = sum(channels), 0, []
    for c in channels:
        places += [i * total + first + j for i in range(n) for j in range(c)]
        first += c
    return torch.tensor(places, device=device)


def _last(c: Chain, y: Tensor, dimage: Tensor, into: _Gradients) -> Tensor:
    """dt of the last layer, whose output only its RGB reads."""
    k = c.count - 1
    if not c.filtered(k):
        return _through_pass(c, k, None, dimage, y, into)
    rgb = dimage.flatten(2).to(y.dtype)
    dy = torch.bmm(rgb.transpose(1, 2), c.matrices(k).to(y.dtype)).unflatten(1, y.shape[2:]).permute(0, 3, 1, 2)
    c.row(into.sums[3:], k).copy_(torch.bmm(rgb, pixels(y)).transpose(0, 1))
    return _through_filter(c, k, dy, None, y, into)


def _through_pass(c: Chain, k: int, dx: Tensor | None, dimage: Tensor | None, saved: Tensor, into: _Gradients):
    """dt of layer k, and its sums, through our pass."""
    from gankern.ops.cudnn import kernels

    matrix = image = style = inverse = None
    if dimage is not None:
        image, matrix = dimage.to(saved.dtype), c.matrices(k)
    if dx is not None:
        style, inverse = c.styles_[k], c.inverses[k]
    noise, room = c.noise(k) if c.strengths else None, c.row(into.sums, k)
    small = (style, inverse, matrix, c.scales[k], noise)
    dt, _ = kernels.chain_gradient(dx, image, saved, *small, c.alpha, room)
    return dt


def _through_filter(c: Chain, k: int, dy: Tensor | None, dys: Tensor | None, saved: Tensor, into: _Gradients) -> Tensor:
    """dt of a layer that a filter stands behind, through our pass."""
    last = k == c.count - 1
    y, ys = (saved, None) if last else (None, saved)
    wanted = (True, bool(c.strengths), True, not last)
    args = (c.f, c.fir(), _before_fir(c, k), c.pass_operands(k), wanted)
    dt, into.own[k] = filter_passes().backward(dy, dys, y, ys, *args)
    return dt


def _before_fir(c: Chain, k: int) -> list[int]:
    return [v + 1 for v in c.size(k)]


def _weight_gradient(c: Chain, k: int, dt: Tensor, x: Tensor) -> Tensor:
    w = c.weights[k]
    if c.merged(k):
        dk = library_weight_grad(x, dt, (w.shape[1], w.shape[0], 6, 6), 2, 2, False)
        return merging.merged_adjoint(dk.transpose(0, 1), c.taps).to(w.dtype)
    if c.up(k):
        return library_weight_grad(dt, x, (w.shape[1], w.shape[0], 3, 3), 2, 0, True).transpose(0, 1)
    return library_weight_grad(dt, x, w.shape, 1, 1, False)


def _input_gradient(c: Chain, k: int, dt: Tensor, saved: Tensor, dimage: Tensor | None, into: _Gradients) -> Tensor:
    """dt of the layer before layer k, from its own."""
    w, transposed, stride, padding = c.weights[k], None, 1, 1
    if c.merged(k):
        transposed = merging.merged(w, c.taps).transpose(0, 1).contiguous(memory_format=torch.channels_last)
        stride, padding = 2, 2
    elif c.up(k):
        transposed, stride, padding = w.transpose(0, 1), 2, 0
    j = k - 1
    if not c.filtered(j) and SUMS_IN_KERNEL:
        out = _in_one_kernel(c, k, dt, transposed if c.up(k) else w, (stride, padding), saved, dimage, into)
        if out is not None:
            return out
    if c.up(k):
        dx = library_conv2d(dt, transposed, stride, padding, False)
    else:
        dx = library_input_grad(dt, w, saved.shape, stride, padding, False)
    if c.filtered(j):
        return _through_filter(c, j, None, dx, saved, into)
    return _through_pass(c, j, dx, dimage, saved, into)


def _in_one_kernel(c: Chain, k: int, dt, w, how: tuple[int, int], saved, dimage, into: _Gradients) -> Tensor | None:
    """dt of the layer before layer k and its sums, in the kernel that makes layer k's input gradient; None where cuDNN
    has none."""
    j = k - 1
    small = {"style": c.styles_[j], "saved": saved, "inverse": c.inverses[j], "scale": c.scales[j]}
    small["noise"] = c.noise(j) if c.strengths else None
    if dimage is not None:
        image, matrix = dimage.to(saved.dtype).contiguous(), c.matrices(j)
        small |= {f"matrix{i}": matrix[:, i] for i in range(layers.RGB)}
        small |= {f"image{i}": image[:, i : i + 1] for i in range(layers.RGB)}
    out, sums = torch.empty_like(saved), {name: into.of(j, name) for name in into.NAMES}
    for form in ("conv",) if c.up(k) else FORMS:
        kernel = turned(w) if form == "conv" and not c.up(k) else w
        named = [small.get(n) for n in ("style", "saved", "inverse", "matrix0", "image0", "noise", "scale")]
        specs = [None if t is None else spec(t) for t in (dt, kernel, *named, sums["of_style"])]
        graph = layers.modulated_gradient(form, *specs, *how, c.alpha)
        if accepts(graph, dt.device):
            run(graph, small | sums | {"dt": dt, "w": kernel, "dt'": out})
            return out
    return None


def backward(
    dimages: Sequence[Tensor],
    x: Tensor,
    styles: Sequence[Tensor],
    weights: Sequence[Tensor],
    d: Sequence[Tensor],
    noises: Sequence[Tensor],
    strengths: Sequence[Tensor],
    biases: Sequence[Tensor],
    matrix: Tensor,
    f: Tensor,
    kept: Sequence[Tensor],
    kinds: Sequence[int],
    alpha: float,
    gain: float,
    need_w: bool,
) -> list[Tensor]:
    """[dx, *`_Gradients.results`, and where `need_w` *dweights]."""
    c = Chain(x, *map(list, (styles, weights, d, noises, strengths, biases)), matrix, f, list(kinds), alpha, gain)
    c.prepare()
    into, dweights = _Gradients(c), []
    numbers = [k for k in range(c.count) if c.rgb(k)]
    of_layer = dict(zip(numbers, dimages, strict=True))
    dt = _last(c, kept[-1], of_layer[c.count - 1], into)
    for k in reversed(range(c.count)):
        if need_w:
            dweights.append(_weight_gradient(c, k, dt, kept[k - 1] if k else x))
        if k == 0:
            dx = library_input_grad(dt, c.weights[0], x.shape, 1, 1, False)
            break
        dt = _input_gradient(c, k, dt, kept[k - 1], of_layer.get(k - 1), into)
    return [dx, *into.results(), *reversed(dweights)]
