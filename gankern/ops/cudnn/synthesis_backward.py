"""The backward pass of StyleGAN2's synthesis network in fused convolutions: equations in synthesis.py."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gankern.ops import _impl
from gankern.ops.conv2d import library_conv2d, library_input_grad, library_weight_grad
from gankern.ops.cudnn import layers, merging
from gankern.ops.cudnn.graph import spec
from gankern.ops.cudnn.plans import run
from gankern.ops.cudnn.synthesis_operands import Chain, filter_passes, passes, pixels


class _Gradients:
    """Where every layer's small gradients gather; those whose kernel makes sums of them, as [N, ΣC] each."""

    NAMES = ("of_style", "of_bias", "of_noise", *(f"of_rgb{j}" for j in range(layers.RGB)))

    def __init__(self, c: Chain):
        self.c = c
        total = c.first[-1]
        self.sums = torch.zeros([len(self.NAMES), c.x.shape[0], total], dtype=c.dtype, device=c.x.device)
        self.own: dict[int, tuple] = {}
        self.own_rgb: dict[int, Tensor] = {}

    def of(self, k: int, name: str) -> Tensor:
        return self.c.row(self.sums[self.NAMES.index(name)], k)

    def results(self) -> list[Tensor]:
        """[dstyles [N, ΣC], dd [N, ΣC], dstrength [K], dbias [ΣC], dmatrix [N, 3, ΣC]], side by side as Chain has
        them; layers that a pass of our own served bring theirs."""
        c = self.c
        of_style, of_bias, of_noise = self.sums[:3]
        style = torch.cat([c.style, torch.ones_like(c.d[-1], dtype=c.dtype)], 1)
        zero = c.matrix.new_zeros(1, 1, 1)
        m = [c.matrices(k) if c.rgb(k) else zero.expand(len(c.x), 3, c.channels[k]) for k in range(c.count)]
        of_p = style * of_style + (torch.cat(m, 2) * self.sums[3:].transpose(0, 1)).sum(1)
        dd = of_p - c.bias * of_bias
        if c.strengths:
            layer = _layer_of(tuple(c.channels), c.x.device)
            dd = dd - c.strength[:, 0].index_select(0, layer) * of_noise
        dd = dd / torch.cat(c.d, 1)
        db, ds = c.gain * of_bias.sum(0), of_style
        dstrength = c.biases[0].new_empty(0)
        if c.strengths:
            dstrength = torch.zeros(c.count, dtype=c.dtype, device=c.x.device)
            dstrength = dstrength.index_add(0, layer, c.gain * of_noise.sum(0))
        parts = [[c.row(t, k) for k in range(c.count)] for t in (ds, dd, db)]
        for k, (own_b, own_strength, own_d, own_s) in self.own.items():
            parts[1][k], parts[2][k] = own_d, own_b.to(c.dtype)
            if own_s is not None:
                parts[0][k] = own_s
            if own_strength is not None:
                dstrength[k : k + 1] += own_strength
        of_matrix = [
            self.own_rgb[k] if k in self.own_rgb else c.row(self.sums[3:], k).transpose(0, 1)
            for k in range(c.count)
            if c.rgb(k)
        ]
        ds = torch.cat(parts[0][:-1], 1) if c.styles else c.x.new_empty(0)
        return [ds, torch.cat(parts[1], 1), dstrength, torch.cat(parts[2]), torch.cat(of_matrix, 2).to(c.matrix.dtype)]


@_impl.constant
def _layer_of(channels: tuple[int, ...], device: torch.device) -> Tensor:
    """The layer's number of each channel, [ΣC]."""
    return torch.tensor([k for k, n in enumerate(channels) for _ in range(n)], device=device)


def _last(c: Chain, y: Tensor, dimage: Tensor | None, into: _Gradients) -> Tensor:
    """dt of the last layer, whose output only its RGB reads."""
    k = c.count - 1
    rgb = dimage.flatten(2).to(y.dtype)
    dy = torch.bmm(rgb.transpose(1, 2), c.matrices(k).to(y.dtype))
    dy = dy.unflatten(1, y.shape[2:]).permute(0, 3, 1, 2)
    into.own_rgb[k] = torch.bmm(rgb, pixels(y))
    wanted = (True, bool(c.strengths), True, False)
    if c.filtered(k):
        backward, args = filter_passes().backward, (c.f, c.fir(), _before_fir(c, k))
        dt, into.own[k] = backward(dy, None, y, None, *args, c.pass_operands(k), wanted)
    else:
        dt, into.own[k] = passes().backward(dy, None, y, None, c.pass_operands(k), wanted)
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
    """From layer k's dt: to dt of the layer before, or to its dx̃ where a filter stands in that one's pass."""
    w, stride, padding = c.weights[k], 1, 1
    transposed = w.transpose(0, 1)
    if c.merged(k):
        transposed = merging.merged(w, c.taps).transpose(0, 1).contiguous(memory_format=torch.channels_last)
        stride, padding = 2, 2
    elif c.up(k):
        stride, padding = 2, 0
    if c.filtered(k - 1):
        if c.up(k):
            return library_conv2d(dt, transposed, stride, padding, False)
        return library_input_grad(dt, w, saved.shape, stride, padding, False)
    j = k - 1
    operands = {"style": c.row(c.style, j), "saved": saved, "inverse": c.row(c.inverse, j)}
    image = matrix = None
    if dimage is not None:
        image, matrix = dimage.to(saved.dtype), c.matrices(j).to(c.dtype)
        operands |= {f"matrix{i}": matrix[:, i] for i in range(layers.RGB)}
        operands |= {f"image{i}": image[:, i : i + 1] for i in range(layers.RGB)}
    noise = c.noise(j) if c.strengths else None
    operands |= {"noise": noise, "scale": c.row(c.scale, j)}
    form, w = ("conv", transposed) if c.up(k) else ("gradient", w)
    specs = [spec(dt), spec(w), *(spec(operands[name]) for name in ("style", "saved", "inverse"))]
    specs += [None if matrix is None else spec(matrix[:, 0]), None if image is None else spec(image[:, :1])]
    specs += [None if noise is None else spec(noise), spec(operands["scale"]), spec(into.of(j, "of_style"))]
    graph = layers.modulated_gradient(form, *specs, stride, padding, c.alpha)
    out = torch.empty_like(saved)
    run(graph, operands | {"dt": dt, "w": w, "dt'": out} | {name: into.of(j, name) for name in into.NAMES})
    return out


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
        grad = _input_gradient(c, k, dt, kept[k - 1], of_layer.get(k - 1), into)
        if c.filtered(k - 1):
            args = (c.f, c.fir(), _before_fir(c, k - 1), c.pass_operands(k - 1))
            wanted = (True, bool(c.strengths), True, True)
            grad, into.own[k - 1] = filter_passes().backward(None, grad, None, kept[k - 1], *args, wanted)
        dt = grad
    return [dx, *into.results(), *reversed(dweights)]
