"""All weights of a network in one pass: scaled (equalized learning rate), cast, and laid out for channels_last.

    k = gain · w  in the activations' dtype,  [O, I, k, k] with I innermost in memory (O, for a transposed convolution)
    E = Σ_k w²    [O, I], the energy that a modulated layer's demodulation is made of

    dw = gain · dk + 2·w·dE

A network would otherwise multiply, cast, convert and square each weight in operators of its own. Karras et al. 2018
(arXiv:1710.10196), section 4.1; Karras et al. 2020 (arXiv:1912.04958), section 2.2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gankern.ops import _impl

TRANSPOSED, ENERGY = 1, 2


@dataclass(frozen=True)
class Weight:
    """One weight or bias: its shape ([O, I, k, k], [O, I] or [O]), its gain, whether a transposed convolution takes it,
    and whether its energy is wanted."""

    shape: tuple[int, ...]
    gain: float = 1.0
    transposed: bool = False
    energy: bool = False

    @property
    def matrix(self) -> tuple[int, int, int]:
        """(O, I, k·k)."""
        outer, inner = (1, *self.shape)[-2:] if len(self.shape) < 3 else self.shape[:2]
        return outer, inner, math.prod(self.shape[2:])

    @property
    def flags(self) -> int:
        return TRANSPOSED * self.transposed + ENERGY * self.energy

    def view(self, k: Tensor) -> Tensor:
        """A piece [O·I·k·k] of the result in the weight's shape."""
        if len(self.shape) < 4:
            return k.view(self.shape)
        o, i, h, w = self.shape
        return k.view(i, h, w, o).permute(3, 0, 1, 2) if self.transposed else k.view(o, h, w, i).permute(0, 3, 1, 2)


def _pieces(t: Tensor, shapes: Sequence[int], flags: Sequence[int], of_energy: bool):
    """t's piece of each weight, as [O, I, k·k]; or of each energy, as [O, I], None for a weight without."""
    at, found = 0, []
    for n, flag in enumerate(flags):
        o, i, k = shapes[3 * n : 3 * n + 3]
        if of_energy:
            found.append(t[at : at + o * i].view(o, i) if flag & ENERGY else None)
            at += o * i if flag & ENERGY else 0
            continue
        piece = t[at : at + o * i * k]
        found.append(piece.view(i, k, o).permute(2, 0, 1) if flag & TRANSPOSED else piece.view(o, k, i).transpose(1, 2))
        at += o * i * k
    return found


def _plain(flat: Tensor, shapes: Sequence[int]) -> list[Tensor]:
    sizes = [math.prod(shapes[n : n + 3]) for n in range(0, len(shapes), 3)]
    return [p.view(*shapes[3 * n : 3 * n + 3]) for n, p in enumerate(flat.split(sizes))]


def _forward_impl(
    flat: Tensor, shapes: list[int], gains: list[float], flags: list[int], dtype: torch.dtype, impl: str
) -> tuple[Tensor, Tensor]:
    """(all k, all E), each one after the other, of all w in `flat`. shapes: O, I, k·k of each."""
    if impl != "reference":
        from gankern.ops.prepare_weights import kernels

        return kernels.forward(flat, shapes, gains, flags, dtype)
    ks, energies = [], []
    for w, gain, flag in zip(_plain(flat, shapes), gains, flags, strict=True):
        order = (1, 2, 0) if flag & TRANSPOSED else (0, 2, 1)
        ks.append((w * gain).to(dtype).permute(order).reshape(-1))
        if flag & ENERGY:
            energies.append(w.square().sum(2).reshape(-1))
    return torch.cat(ks), torch.cat(energies) if energies else flat.new_empty(0)


def _formula(dk, de, flat: Tensor, shapes: list[int], gains: list[float], flags: list[int]) -> Tensor:
    """The gradient of `flat`, in differentiable operators."""
    found = []
    dks = _pieces(dk, shapes, flags, False)
    des = _pieces(de, shapes, flags, True) if de is not None else [None] * len(flags)
    for w, g, e, gain in zip(_plain(flat, shapes), dks, des, gains, strict=True):
        dw = g.to(w.dtype) * gain
        found.append((dw if e is None else dw + 2 * w * e[:, :, None]).reshape(-1))
    return torch.cat(found)


def _backward_impl(
    dk: Tensor, de: Tensor | None, flat: Tensor, shapes: list[int], gains: list[float], flags: list[int], impl: str
) -> Tensor:
    if impl != "reference":
        from gankern.ops.prepare_weights import kernels

        return kernels.backward(dk, de, flat, shapes, gains, flags)
    return _formula(dk, de, flat, shapes, gains, flags)


_prepare = _impl.register("prepare_weights", _forward_impl)
_prepare_backward = _impl.register("prepare_weights_backward", _backward_impl)


def _save(ctx, inputs, output):
    flat, ctx.shapes, ctx.gains, ctx.flags, ctx.dtype, ctx.impl = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(flat)


def _backward(ctx, dk, de):
    (flat,) = ctx.saved_tensors
    if dk is None and de is None:
        return (None,) * 6
    dk = torch.zeros_like(flat, dtype=ctx.dtype) if dk is None else dk
    de = None if not any(f & ENERGY for f in ctx.flags) else de
    args = dk, de, flat, ctx.shapes, ctx.gains, ctx.flags
    return _formula(*args) if torch.is_grad_enabled() else _prepare_backward(*args, ctx.impl), *(None,) * 5


_impl.register_autograd(_prepare, _backward, setup_context=_save)
_impl.declare("prepare_weights", "triton", "reference")


def prepare_weights(
    weights: Sequence[Tensor | Sequence[Tensor]],
    how: Sequence[Weight],
    dtype: torch.dtype,
    *,
    impl: str | None = None,
) -> tuple[list[Tensor], list[Tensor | None]]:
    """(the weights scaled, cast to `dtype` and laid out; their energies [O, I] in their own dtype, None where not
    wanted). Twice differentiable.

    `weights`: parameters of one float dtype on one device, with the shapes that `how` says; several in one entry count
    as one, joined along their first dimension. A result has its weight's
    shape; in memory the input channels are innermost, or for a transposed convolution the output channels. Raises
    ValueError where shapes or dtypes don't fit.
    """
    if not weights or len(weights) != len(how):
        raise ValueError(f"how has {len(how)} entries, expected one for each of {len(weights)} weights, and some")
    joined = [[w] if isinstance(w, Tensor) else list(w) for w in weights]
    first = joined[0][0]
    for parts, h in zip(joined, how, strict=True):
        shape = (sum(len(w) for w in parts), *parts[0].shape[1:])
        if shape != h.shape or any(w.shape[1:] != shape[1:] or w.dtype != first.dtype for w in parts):
            raise ValueError(f"a weight is {parts[0].dtype} of shape {shape}, expected {first.dtype} of {h.shape}")
    flat = torch.cat([w.reshape(-1) for parts in joined for w in parts])
    shapes = [n for h in how for n in h.matrix]
    chosen = _impl.choose("prepare_weights", impl, first)
    ks, energies = _prepare(flat, shapes, [h.gain for h in how], [h.flags for h in how], dtype, chosen)
    pieces = ks.split([math.prod(h.shape) for h in how])
    found = iter(energies.split([h.shape[0] * h.shape[1] for h in how if h.energy]) if energies.numel() else ())
    return (
        [h.view(k) for h, k in zip(how, pieces, strict=True)],
        [next(found).view(h.shape[:2]) if h.energy else None for h in how],
    )
