"""StyleGAN2's networks, or nearly all of each, as one operator: where cuDNN's fused convolutions serve.

The same functions of the same parameters as the modules in stylegan2.py. A network runs so where its layers are of the
published kind and its gradients aren't differentiated again; kernels then reach across layers.
"""

import copy
import functools
import itertools
import warnings
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gankern import ops
from gankern.nn.scaled import Scaled
from gankern.ops._gradients import twice_ahead, weight_gradients_wanted
from gankern.ops._impl import runs_whole
from gankern.ops.bias_act import ACTIVATIONS
from gankern.ops.cudnn import discriminator, merging, plans, synthesis
from gankern.ops.cudnn.synthesis_operands import MERGED, RGB, UP

ALPHA = ACTIVATIONS["lrelu"].alpha


def _plain(blocks: Sequence[nn.Module]) -> bool:
    """Whether no block recomputes, nothing is differentiated again, and all resampling filters are equal."""
    if twice_ahead() or any(getattr(block, "recomputed", False) for block in blocks):
        return False
    filters = [m.resample_taps for block in blocks for m in block.modules() if hasattr(m, "resample_taps")]
    return _equal(tuple((f.data_ptr(), f._version) for f in filters), _Unhashed(filters))


_refusals: weakref.WeakKeyDictionary[nn.Module, dict[tuple, str | None]] = weakref.WeakKeyDictionary()


def _ready(network: nn.Module, x: Tensor, run: Callable[[nn.Module, Tensor], Tensor], *more: object) -> bool:
    """Whether cuDNN takes all graphs of a call run(network, x), and of its gradient where that is recorded; their plans
    are built by then. The call is made on copies without memory. `more`: what else the graphs go by."""
    if x.device.type != "cuda":
        return True
    grad = torch.is_grad_enabled()
    trained = tuple(p.requires_grad for p in network.parameters()), weight_gradients_wanted()
    key = (tuple(x.shape), x.dtype, x.device, x.requires_grad, grad, trained, *more)
    known = _refusals.setdefault(network, {})
    if key not in known:
        tensors = itertools.chain(network.parameters(), network.buffers())
        # a module's copy shares what the memo holds, so that nothing is copied on the GPU
        copy_ = copy.deepcopy(network, {id(t): _without_memory(t) for t in tensors})
        like = torch.empty(x.shape, dtype=x.dtype, device="meta", requires_grad=grad and x.requires_grad)

        def call() -> None:
            y = run(copy_, like)
            if y.requires_grad:
                y.sum().backward()

        known[key] = plans.prepare(plans.graphs_of(call, x.device), x.device)
        if known[key]:
            warnings.warn(
                f"{type(network).__name__} runs without cuDNN's fused convolutions: {known[key]}", stacklevel=2
            )
    return known[key] is None


def _without_memory(t: Tensor) -> Tensor:
    like = torch.empty_like(t, device="meta")
    return nn.Parameter(like, t.requires_grad) if isinstance(t, nn.Parameter) else like


def _activation(block: nn.Module, channels: int, device: torch.device) -> Tensor:
    """An activation at a block's resolution, of no samples: what a choice goes by."""
    return torch.empty([0, channels, block.resolution, block.resolution], dtype=block.dtype, device=device)


class _Unhashed(list):
    """What doesn't count when a call is remembered."""

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return True


@functools.lru_cache(maxsize=64)  # looking waits for the GPU
def _equal(_: tuple, filters: _Unhashed) -> bool:
    first = filters[0]
    same = all(f.shape == first.shape for f in filters)
    return same and (first.is_meta or all(torch.equal(f, first) for f in filters[1:]))


# -- synthesis --------------------------------------------------------------------------------------------------------


def serves_synthesis(network: nn.Module, ws: Tensor, noises: Sequence[Tensor | None]) -> bool:
    """Whether the synthesis network runs as one operator on ws's device."""
    blocks = network.blocks()
    x = _activation(blocks[-1], blocks[-1].conv1.weight.shape[0], ws.device)
    plain = network.img_channels == 3 and all(n is None or not n.requires_grad for n in noises)
    mode = "none" if noises[0] is None else "const" if noises[0].ndim == 2 else "random"
    plain = plain and runs_whole("synthesis", x) and _plain(blocks)
    return plain and _ready(network, ws, lambda copy_, like: copy_(like, mode), mode)


def merges(conv: nn.Module) -> bool:
    """Whether an upsampling layer runs with its filter in its kernel."""
    return conv.up == 2 and merging.pays(conv.weight, conv.resample_taps)


def images(
    blocks: Sequence[nn.Module],
    merged: Sequence[bool],
    x: Tensor,
    styles: Sequence[Tensor],
    weights: Sequence[Tensor],
    demodulation: Sequence[Tensor],
    noises: Sequence[Tensor | None],
    biases: Sequence[Tensor],
    matrix: Tensor,
) -> list[Tensor]:
    """What each to-RGB layer adds, [N, 3, H, W]; operands as `ops.cudnn.synthesis` takes them."""
    convs = [conv for block in blocks for conv in block.convolutions()]
    last = {id(block.conv1) for block in blocks if block.has_rgb}
    kinds = [
        (UP if conv.up == 2 else 0) | (MERGED if m else 0) | (RGB if id(conv) in last else 0)
        for conv, m in zip(convs, merged, strict=True)
    ]
    own = ([], []) if noises[0] is None else (noises, [conv.noise_strength for conv in convs])
    gain, f = ops.default_gain(convs[0].act), convs[0].resample_taps
    return synthesis.synthesis(x, styles, weights, demodulation, *own, biases, matrix, f, kinds, ALPHA, gain)


# -- discriminator ----------------------------------------------------------------------------------------------------


def serves_discriminator(D: nn.Module, img: Tensor) -> bool:
    """Whether all blocks of the discriminator but the last run as one operator on img's device."""
    blocks = D.blocks()
    x = _activation(blocks[0], blocks[0].conv0.weight.shape[0], img.device)
    plain = blocks[0].architecture == "resnet" and runs_whole("discriminator", x) and _plain(blocks)
    return plain and _ready(D, img, _judged)


def _judged(D: nn.Module, img: Tensor) -> Tensor:
    c = torch.empty(len(img), D.c_dim, device=img.device) if D.c_dim else None
    return D(img, c)


def features(blocks: Sequence[nn.Module], img: Tensor, scaled: Scaled) -> Tensor:
    """The last block's input."""
    first, dtype = blocks[0], blocks[0].dtype
    layers = [first.fromrgb, *(conv for block in blocks for conv in (block.conv0, block.conv1, block.skip))]
    weights = [scaled[layer][0] for layer in layers]
    biases = [scaled[layer][1] for layer in layers if layer.bias is not None]
    kinds = [MERGED if merging.pays(b.conv1.weight, b.conv1.resample_taps) else 0 for b in blocks]
    img = img.to(dtype=dtype, memory_format=torch.channels_last)
    return discriminator.discriminator(img, weights, biases, first.conv1.resample_taps, kinds, ALPHA)
