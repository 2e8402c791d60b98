"""StyleGAN2's demodulation coefficient, from a weight's energy and the styles.

    d = (Σ_i s²·E + eps)^-1/2        E [O, I] = Σ_k w²
    with h = −dd·d³:    ds = s·(h·E),    dE = ½·hᵀ·s²

Karras et al. 2020 (arXiv:1912.04958), section 2.2.
"""

import torch
from torch import Tensor

from gankern.ops import _impl


def demodulate_reference(energy: Tensor, styles: Tensor, eps: float = 1e-8) -> Tensor:
    """The definition."""
    return (styles.square() @ energy.t() + eps).rsqrt()


def _forward_impl(energy: Tensor, styles: Tensor, eps: float, impl: str) -> Tensor:
    if impl == "reference":
        return demodulate_reference(energy, styles, eps)
    from gankern.ops.demodulate import kernels

    return kernels.forward(energy, styles, eps)


def _formula(dd: Tensor, energy: Tensor, styles: Tensor, d: Tensor, needs: list[bool]) -> tuple[Tensor | None, ...]:
    """Gradients of energy and styles, in differentiable operators."""
    h = dd * d.pow(3)
    de = (h.t() @ styles.square()) * -0.5 if needs[0] else None
    return de, -(styles * (h @ energy)) if needs[1] else None


def _backward_impl(
    dd: Tensor, energy: Tensor, styles: Tensor, d: Tensor, needs: list[bool], impl: str
) -> tuple[Tensor, Tensor]:
    """Empty for a gradient that isn't needed."""
    if impl == "reference":
        de, ds = _formula(dd, energy, styles, d, needs)
    else:
        from gankern.ops.demodulate import kernels

        de, ds = kernels.backward(dd, energy, styles, d, needs)
    return energy.new_empty(0) if de is None else de, styles.new_empty(0) if ds is None else ds


_demodulate = _impl.register("demodulate", _forward_impl)
_demodulate_backward = _impl.register("demodulate_backward", _backward_impl)


def _save(ctx, inputs, output):
    energy, styles, _, ctx.impl = inputs
    ctx.save_for_backward(energy, styles, output)


def _backward(ctx, dd):
    needs = list(ctx.needs_input_grad[:2])
    if torch.is_grad_enabled():
        gradients = _formula(dd, *ctx.saved_tensors, needs)
    else:
        gradients = _demodulate_backward(dd, *ctx.saved_tensors, needs, ctx.impl)
    return *(g if need else None for g, need in zip(gradients, needs, strict=True)), None, None


_demodulate.register_autograd(_backward, setup_context=_save)
_impl.declare("demodulate", "triton", "reference")


def demodulate(energy: Tensor, styles: Tensor, eps: float = 1e-8, *, impl: str | None = None) -> Tensor:
    """d [N, O] of energy [O, I] (Σ_k w²) and styles [N, I], float32 or float64. Twice differentiable.

    Raises ValueError for shapes or dtypes that don't fit.
    """
    if energy.ndim != 2 or styles.ndim != 2 or energy.shape[1] != styles.shape[1]:
        raise ValueError(f"styles has shape {tuple(styles.shape)}, which doesn't fit energy of {tuple(energy.shape)}")
    if energy.dtype != styles.dtype or energy.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"energy is {energy.dtype} and styles {styles.dtype}, expected one of float32 and float64")
    return _demodulate(energy, styles, float(eps), _impl.choose("demodulate", impl, styles))
