"""What an operator of PyTorch launches on a GPU: its kernels, each with the bytes that it moves and its FLOPs.

A kernel reads and writes each of its tensors once. FLOPs are those of convolutions and matrix products. What a library
does inside one kernel of its own, or beside it (split-K sums, its own transposes), isn't seen.
"""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gankern.bench.limit import seconds
from gankern.ops._layout import is_channels_last


@dataclass(frozen=True)
class Call:
    """One kernel launch: the operator's name, the bytes that it moves, its FLOPs."""

    name: str
    bytes: int
    flops: int = 0

    @property
    def seconds(self) -> float:
        """At the limit."""
        return seconds(self.flops, self.bytes)


# -- bytes -------------------------------------------------------------------------------------------------------------


def size(t: Tensor) -> int:
    """Bytes of a tensor, an expanded one as far as it has memory."""
    number = math.prod(n for n, stride in zip(t.shape, t.stride(), strict=True) if stride) if t.numel() else 0
    return min(number * t.element_size(), t.untyped_storage().nbytes())


def moved(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors that are all read, or all written: what two of them share counts once."""
    parts: dict[int, dict[tuple, int]] = {}
    limits = {}
    for t in tensors:
        storage = t.untyped_storage()
        parts.setdefault(storage._cdata, {})[t.storage_offset(), t.shape, t.stride()] = size(t)
        limits[storage._cdata] = storage.nbytes()
    return sum(min(sum(found.values()), limits[key]) for key, found in parts.items())


def on_device(tree: object) -> list[Tensor]:
    """The tensors that lie on the device: numbers that PyTorch holds on the host aren't moved."""
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor) and t.device.type != "cpu"]


_OVERWRITES = {"copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_", "exponential_"}
_OVERWRITES |= {f"_foreach_{name}" for name in ("copy_", "zero_")}


@functools.cache
def _mutated(func: torch._ops.OpOverload) -> tuple[str, ...]:
    """The arguments that an operator writes to. (Adam's gradients are written only where they are unscaled.)"""
    arguments = func._schema.arguments
    return tuple(a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write and a.name != "grads")


def _traffic(func: torch._ops.OpOverload, args: Sequence, kwargs: dict, out: object) -> int:
    """Bytes of an operator's operands and results, those that it changes in place read and written."""
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    changed = _mutated(func)
    written = [given[name] for name in changed if name in given]
    fresh = [] if changed else on_device(out)
    read = [value for name, value in given.items() if name not in changed]
    if changed and changed != ("out",) and func._schema.name.split("::")[1] not in _OVERWRITES:
        read += written
    return moved(on_device(read)) + moved([*on_device(written), *fresh])


# -- convolutions ------------------------------------------------------------------------------------------------------


def library_format(*operands: Tensor) -> torch.memory_format:
    """The memory format that cuDNN runs a convolution in: channels_last where one of the operands is laid out so."""
    return torch.channels_last if any(map(is_channels_last, _images(operands))) else torch.contiguous_format


def _images(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    return [t for t in tensors if t is not None and t.ndim == 4]


def _conversions(name: str, memory_format: torch.memory_format, *operands: Tensor) -> list[Call]:
    """The copies of operands that lie in another memory format, made inside the convolution."""
    wrong = [t for t in _images(operands) if not t.is_contiguous(memory_format=memory_format)]
    return [Call(f"{name} (layout)", size(t) + t.numel() * t.element_size()) for t in wrong if t.numel()]


def _convolution_flops(x: Tensor, w: Tensor, y: Tensor, transposed: bool) -> int:
    """Two a multiply-add; w [O, I/groups, ...], transposed [I, O/groups, ...]."""
    return 2 * (x if transposed else y).numel() * math.prod(w.shape[1:])


def _convolution(name: str, args: Sequence, y: Tensor) -> list[Call]:
    x, w, bias, *_, transposed, _, _ = args
    calls = _conversions(name, library_format(x, w), x, w)
    calls.append(Call(name, moved([x, w]) + moved([y]), _convolution_flops(x, w, y, transposed)))
    if bias is not None:
        calls.append(Call(f"{name} (bias)", 2 * moved([y]) + moved([bias])))
    return calls


def _convolution_backward(name: str, args: Sequence, grads: Sequence[Tensor | None]) -> list[Call]:
    """A kernel for each gradient, each of which reads dy."""
    dy, x, w, *_, transposed, _, _, (need_x, need_w, need_b) = args
    memory_format = library_format(x, w)
    operands = [dy, *([x] if need_w else []), *([w] if need_x else [])]
    calls = _conversions(name, memory_format, *operands)
    flops = _convolution_flops(x, w, dy, transposed)
    if need_x:
        calls.append(Call(f"{name} (dx)", moved([dy, w]) + moved([grads[0]]), flops))
    if need_w:
        calls.append(Call(f"{name} (dw)", moved([dy, x]) + moved([grads[1]]), flops))
    if need_b:
        calls.append(Call(f"{name} (db)", moved([dy]) + moved([grads[2]])))
    return calls


def laid_out(func: torch._ops.OpOverload, args: Sequence, out: object) -> object:
    """A convolution's results in the memory format that the library gives them; on meta tensors PyTorch forgets it."""
    name = func.name().split(".")[0]
    if name not in ("aten::convolution", "aten::convolution_backward"):
        return out
    operands = args[:2] if name == "aten::convolution" else args[1:3]
    if library_format(*operands) != torch.channels_last:
        return out
    results = out if isinstance(out, tuple) else (out,)
    results = tuple(
        torch.empty_like(t, memory_format=torch.channels_last) if t is not None and t.ndim == 4 else t for t in results
    )
    return results if isinstance(out, tuple) else results[0]


# -- lists of tensors --------------------------------------------------------------------------------------------------

TENSORS = (110, 64, 48, 36, 30)
"""How many tensors of 1 to 5 lists one launch takes, as PyTorch's multi_tensor_apply packs them (kernel arguments)."""
BLOCKS, CHUNK = 320, 65536


def multi_tensor_launches(depth: int, numels: Sequence[int]) -> int:
    """How many launches `depth` lists of tensors take."""
    most = TENSORS[min(depth, len(TENSORS)) - 1]
    launches = tensors = blocks = 0
    for numel in numels:
        left = math.ceil(numel / CHUNK)
        tensors += left > 0
        while left:
            taken = min(left, BLOCKS - blocks)
            left, blocks = left - taken, blocks + taken
            if blocks == BLOCKS or (tensors == most and not left):
                launches, blocks, tensors = launches + 1, 0, int(left > 0)
    return launches + (blocks > 0)


def _lists(func: torch._ops.OpOverload, args: Sequence, out: object) -> list[Sequence[Tensor]]:
    """The lists that a multi-tensor operator walks through together; Adam's step counts aren't among them."""
    named = zip((a.name for a in func._schema.arguments), args, strict=False)
    found = [value for name, value in named if isinstance(value, list | tuple) and value and name != "state_steps"]
    found = [value for value in found if isinstance(value[0], Tensor)]
    return found if _mutated(func) or not isinstance(out, list | tuple) else [*found, out]


def _strides(t: Tensor) -> tuple[int, ...]:
    return tuple(stride for n, stride in zip(t.shape, t.stride(), strict=True) if n != 1)


def _multi_tensor(func: torch._ops.OpOverload, args: Sequence, kwargs: dict, out: object) -> list[Call]:
    name = func.name().split(".")[0]
    lists = _lists(func, args, out)
    norm = name == "aten::_foreach_norm"
    walked = lists[:1] if norm else lists
    if all(len({_strides(t) for t in group}) == 1 for group in zip(*walked, strict=True)):
        number = multi_tensor_launches(len(walked), [t.numel() for t in walked[0]])
    else:
        number = sum(t.numel() > 0 for t in walked[0])  # the slow way, tensor by tensor
    number += 2 * norm  # zeroes before it, and the chunks' sums after it
    each, rest = divmod(_traffic(func, args, kwargs, out), max(number, 1))
    return [Call(name, each + rest * (i == 0)) for i in range(number)]


# -- all operators -----------------------------------------------------------------------------------------------------


def _product_flops(name: str, args: Sequence, out: Tensor) -> int:
    """Two a multiply-add of a matrix product; other operators have none."""
    if name in ("aten::mm", "aten::bmm"):
        return 2 * out.numel() * args[0].shape[-1]
    return 2 * out.numel() * args[1].shape[-1] if name in ("aten::addmm", "aten::baddbmm") else 0


_PADS = {"aten::constant_pad_nd", "aten::select_backward", "aten::slice_backward"}


def _padded(name: str, args: Sequence, out: Tensor) -> list[Call]:
    """The whole filled, then a part of it copied."""
    x = args[0]
    kept = min(x.numel(), out.numel()) * x.element_size()
    if out.numel() <= x.numel():
        return [Call(name, 2 * kept)]
    return [Call(f"{name} (fill)", moved([out])), Call(name, size(x) + kept)]


def launches(func: torch._ops.OpOverload, args: Sequence, kwargs: dict, out: object) -> list[Call]:
    """The kernels behind one call of an operator that computes something."""
    name = func.name().split(".")[0]
    results = on_device(out)
    if results and not any(t.numel() for t in results):
        return []
    if name == "aten::convolution":
        return _convolution(name, args, out)
    if name == "aten::convolution_backward":
        return _convolution_backward(name, args, out)
    if name in _PADS:
        return _padded(name, args, out)
    if name.startswith("aten::_foreach_") or name.startswith("aten::_fused_"):
        return _multi_tensor(func, args, kwargs, out)
    return [Call(name, _traffic(func, args, kwargs, out), _product_flops(name, args, out) if results else 0)]
