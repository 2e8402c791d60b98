"""StyleGAN2's networks as they run on fused kernels: one pass between two convolutions, each way.

The same functions of the same parameters as the modules in stylegan2.py, in another order of work: all weights are
scaled, cast and laid out in one launch, the style affines of layers of one width are one matrix product, and each
layer's pass already multiplies by the styles of the layer that reads its output.
"""

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gankern import ops
from gankern.models import stylegan2_whole as whole
from gankern.nn import EqualizedLinear, ModulatedConv2d, ToRGB
from gankern.nn.layers import hooked
from gankern.nn.scaled import Scaled, scaled_layers
from gankern.ops import Weight
from gankern.ops._impl import uncast


def serves(blocks: Sequence[nn.Module], x: Tensor) -> bool:
    """Whether a network of these blocks runs fused on x's device: kernels are there, and all blocks have one dtype that
    isn't float16, in which a layer normalises its weights and styles by their maxima; with a clamp, as a residual
    generator, or with hooks on its modules, which only a call of the module itself runs, it doesn't."""
    dtypes = {block.dtype for block in blocks}
    plain = blocks[0].conv1.clamp is None
    plain = plain and not any(isinstance(block.conv1, ModulatedConv2d) and hasattr(block, "skip") for block in blocks)
    return plain and len(dtypes) == 1 and torch.float16 not in dtypes and ops.runs_fused(x) and not hooked(*blocks)


# -- synthesis --------------------------------------------------------------------------------------------------------


@functools.cache  # as many as there are networks; never dropped, since a captured graph may hold the address
def _numbers(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # made in the first call's mode, it would be refused by later training
        return torch.tensor(numbers, device=device)


def _styles(ws: Tensor, readers: Sequence[tuple[EqualizedLinear, int]]) -> list[Tensor]:
    """Each affine's styles [N, I], of the w [N, w_dim] whose number stands beside it: one product for each width."""
    widths: dict[int, list[int]] = {}
    for k, (affine, _) in enumerate(readers):
        widths.setdefault(affine.weight.shape[0], []).append(k)
    parameters, how = [], []
    for width, group in widths.items():
        affines = [readers[k][0] for k in group]
        parameters += [[a.weight for a in affines], [a.bias for a in affines]]
        of_weight, of_bias = affines[0].gains()
        how += [Weight((len(group) * width, ws.shape[2]), of_weight), Weight((len(group) * width,), of_bias)]
    scaled, _ = ops.prepare_weights(parameters, how, ws.dtype)
    order = _numbers(tuple(readers[k][1] for group in widths.values() for k in group), ws.device)
    rows = ws.transpose(0, 1).index_select(0, order).split([len(group) for group in widths.values()])
    found: list[Tensor] = [ws] * len(readers)
    for n, (w, (width, group)) in enumerate(zip(rows, widths.items(), strict=True)):
        weight = scaled[2 * n].view(len(group), width, -1)
        styles = torch.bmm(w, weight.transpose(1, 2)) + scaled[2 * n + 1].view(len(group), 1, width)
        for k, s in zip(group, styles.unbind(0), strict=True):
            found[k] = s
    return found


def _prepared(convs: Sequence[ModulatedConv2d], rgbs: Sequence[ToRGB], dtype: torch.dtype, merged: Sequence[bool]):
    """The convolutions' weights, their energies and biases, and the to-RGB weights."""
    layers = [*convs, *rgbs]
    transposed = [c.up == 2 and not m for c, m in zip(convs, merged, strict=True)]
    how = [Weight(tuple(c.weight.shape), transposed=t, energy=True) for c, t in zip(convs, transposed, strict=True)]
    how += [Weight(tuple(r.weight.shape), r.weight_gain) for r in rgbs]
    how += [Weight(tuple(c.bias.shape)) for c in convs]
    parameters = [layer.weight for layer in layers] + [c.bias for c in convs]
    scaled, energies = ops.prepare_weights(parameters, how, dtype)
    n, m = len(convs), len(layers)
    return scaled[:n], energies[:n], scaled[m:], scaled[n:m]


def _rgb_matrices(weights: Sequence[Tensor], styles: Sequence[Tensor]) -> Tensor:
    """Every sample's own matrices of all to-RGB layers side by side, [N, 3, ΣC]."""
    weight = torch.cat([w.flatten(1) for w in weights], 1)
    style = torch.cat(list(styles), 1).to(weight.dtype)
    return weight * style[:, None]


def _to_rgb(x: Tensor, matrix: Tensor) -> Tensor:
    """x [N, C, H, W] -> [N, 3, H, W] in the contiguous format."""
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
    # in this order the gradient of x comes in x's memory format, and what is copied is the small side
    return torch.bmm(pixels, matrix.transpose(1, 2)).transpose(1, 2).contiguous().unflatten(2, x.shape[2:])


@uncast
def synthesize(synthesis: nn.Module, ws: Tensor, noises: Sequence[Tensor | None]) -> Tensor:
    """`Synthesis.forward` of the architectures skip and orig."""
    blocks = synthesis.blocks()
    ws = ws.to(blocks[0].const.dtype)
    convs = [conv for block in blocks for conv in block.convolutions()]
    dtype = blocks[0].dtype
    rgbs = [block.torgb for block in blocks if block.has_rgb]
    first = {id(block): sum(b.num_conv for b in blocks[:k]) for k, block in enumerate(blocks)}
    readers = [(conv.affine, k) for k, conv in enumerate(convs)]
    readers += [(block.torgb.affine, first[id(block)] + block.num_conv) for block in blocks if block.has_rgb]
    styles = _styles(ws, readers)
    one = whole.serves_synthesis(synthesis, ws, noises)
    merged = [one and whole.merges(conv) for conv in convs]
    weights, energies, biases, rgb_weights = _prepared(convs, rgbs, dtype, merged)
    matrix = _rgb_matrices(rgb_weights, styles[len(convs) :])
    demodulation = [ops.demodulate(e, s) for e, s in zip(energies, styles, strict=False)]
    x = _modulated_constant(blocks[0].const, styles[0], dtype)
    if one:
        operands = (styles[1 : len(convs)], weights, demodulation, noises, biases, matrix)
        images, img = iter(whole.images(blocks, merged, x, *operands)), None
        for block in blocks:
            img = _add_rgb(block, next(images), img) if block.has_rgb else img
        return img

    layers = []
    for k, conv in enumerate(convs):
        layer = {"styles": styles[k], "weight": weights[k], "bias": biases[k], "noise": noises[k]}
        layer["noise_strength"] = None if noises[k] is None else conv.noise_strength
        layer["demodulation"] = demodulation[k]
        layer["next_styles"] = styles[k + 1] if k + 1 < len(convs) else None
        layers.append(layer)
    img, of_block = None, iter(layers)
    matrices = iter(matrix.split([w.shape[1] for w in rgb_weights], 2))
    for block in blocks:
        own = list(itertools.islice(of_block, block.num_conv))
        x, img = block.chained(x, img, own, next(matrices) if block.has_rgb else None)
    return img


def _add_rgb(block: nn.Module, part: Tensor, img: Tensor | None) -> Tensor:
    bias = block.torgb.bias
    return part + (bias[:, None, None] if img is None else _upsampled(img, bias, block.resample_taps))


def chained_block(
    block: nn.Module, x: Tensor, img: Tensor | None, layers: Sequence[dict], matrix: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """One resolution: x comes times the styles of the first convolution, and leaves times those of the next block's
    first. `layers`: what each convolution is called with; `matrix`: each sample's own of to-RGB."""
    for conv, layer in zip(block.convolutions(), layers, strict=True):
        x = ops.modulated_conv2d(
            x,
            up=conv.up,
            padding=conv.weight.shape[-1] // 2,
            resample_filter=conv.resample_taps,
            flip_weight=conv.up == 1,
            act=conv.act,
            gain=ops.default_gain(conv.act),
            styled=True,
            both=matrix is not None and conv is block.conv1 and layer["next_styles"] is not None,
            **layer,
        )
    if matrix is None:
        return x, img
    y, x = x if isinstance(x, tuple) else (x, x)
    return x, _add_rgb(block, _to_rgb(y, matrix), img)


def _modulated_constant(const: Tensor, styles: Tensor, dtype: torch.dtype) -> Tensor:
    return (const[None] * styles[:, :, None, None]).to(dtype).contiguous(memory_format=torch.channels_last)


def _upsampled(img: Tensor, bias: Tensor, f: Tensor) -> Tensor:
    return ops.upfirdn2d_bias_act(img, f, bias, up=2, padding=ops.upsample_padding(f), filter_gain=4)


# -- discriminator ----------------------------------------------------------------------------------------------------


def scaled_discriminator(D: nn.Module) -> Scaled:
    """Weights and biases of the convolutions, and of the epilogue's in the parameters' own dtype."""
    blocks = D.blocks()
    scaled = scaled_layers([call for block in blocks for call in block.convolutions()], blocks[0].dtype)
    return scaled | scaled_layers([(layer, 1.0) for layer in D.b4.layers()], D.b4.fc.weight.dtype)
