"""StyleGAN2's demodulation coefficient, from a weight's energy and the styles.

    d = (Σ_i s²·E + eps)^-1/2        E [O, I] = Σ_k w²
    with h = dd·d³:     ds = −s·(h·E),   dE = −½·hᵀ·s²

and of ds, the gradient that path-length regularisation reads, for its cotangent a, with r = (a·s)·Eᵀ:

    δdd = −d³·r         δd = −3·dd·d²·r  δs = −a·(h·E)     δE = −hᵀ·(a·s)

Karras et al. 2020 (arXiv:1912.04958), section 2.2.
"""

import torch
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._gradients import weight_gradients_wanted


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


def _second_formula(a: Tensor, dd: Tensor, energy: Tensor, styles: Tensor, d: Tensor, need_energy: bool):
    """(δdd, δE, δs, δd), in differentiable operators."""
    h, r = dd * d.pow(3), (a * styles) @ energy.t()
    de = -(h.t() @ (a * styles)) if need_energy else None
    return -(d.pow(3) * r), de, -(a * (h @ energy)), -3 * dd * d.square() * r


def _second_impl(
    a: Tensor, dd: Tensor, energy: Tensor, styles: Tensor, d: Tensor, need_energy: bool, impl: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """δE is empty where it isn't needed."""
    if impl == "reference":
        found = _second_formula(a, dd, energy, styles, d, need_energy)
    else:
        from gankern.ops.demodulate import kernels

        found = kernels.second(a, dd, energy, styles, d, need_energy)
    return tuple(energy.new_empty(0) if t is None else t for t in found)


_demodulate = _impl.register("demodulate", _forward_impl)
_demodulate_backward = _impl.register("demodulate_backward", _backward_impl)
_demodulate_second = _impl.register("demodulate_second", _second_impl)


def _save(ctx, inputs, output):
    energy, styles, _, ctx.impl = inputs
    ctx.save_for_backward(energy, styles, output)


def _backward(ctx, dd):
    needs = list(ctx.needs_input_grad[:2])
    needs[0] = needs[0] and weight_gradients_wanted()
    if torch.is_grad_enabled() and needs[0]:
        gradients = _formula(dd, *ctx.saved_tensors, needs)
    else:
        gradients = _demodulate_backward(dd, *ctx.saved_tensors, needs, ctx.impl)
    return *(g if need else None for g, need in zip(gradients, needs, strict=True)), None, None


def _save_backward(ctx, inputs, output):
    ctx.impl = inputs[-1]
    ctx.save_for_backward(*inputs[:4])


def _backward_backward(ctx, _, a):
    """Of ds; where dE is wanted as well it is formulas that are differentiated."""
    need_energy = ctx.needs_input_grad[1] and weight_gradients_wanted()
    if torch.is_grad_enabled():
        ddd, de, ds, d_d = _second_formula(a, *ctx.saved_tensors, need_energy)
    else:
        ddd, de, ds, d_d = _demodulate_second(a, *ctx.saved_tensors, need_energy, ctx.impl)
    return ddd, de if need_energy else None, ds, d_d, None, None


_impl.register_autograd(_demodulate, _backward, setup_context=_save)
_impl.register_autograd(_demodulate_backward, _backward_backward, setup_context=_save_backward)
_impl.declare("demodulate", "triton", "reference")


def demodulate(energy: Tensor, styles: Tensor, eps: float = 1e-8, *, impl: str | None = None) -> Tensor:
    """d [N, O] of energy [O, I] (Σ_k w²) and styles [N, I], float32 or float64. Twice differentiable; inside
    `no_weight_gradients()` a backward pass leaves out dE.

    Raises ValueError for shapes or dtypes that don't fit.
    """
    if energy.ndim != 2 or styles.ndim != 2 or energy.shape[1] != styles.shape[1]:
        raise ValueError(f"styles has shape {tuple(styles.shape)}, which doesn't fit energy of {tuple(energy.shape)}")
    if energy.dtype != styles.dtype or energy.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"energy is {energy.dtype} and styles {styles.dtype}, expected one of float32 and float64")
    return _demodulate(energy, styles, float(eps), _impl.choose("demodulate", impl, styles))
