"""bias_act under the signature of StyleGAN2-ADA's module of that name."""

from typing import Any

from torch import Tensor

from gankern import ops

_IMPL = {"cuda": None, "ref": "reference"}  # gankern's own choice, or eager PyTorch
_CURVED = ("tanh", "sigmoid", "elu", "selu", "softplus", "swish")


class _Spec(dict):
    """A dict whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


def _spec(index: int, act: str) -> _Spec:
    def_alpha = 0.2 if act == "lrelu" else 0

    def func(x: Tensor, alpha: float = def_alpha, **_: Any) -> Tensor:
        return ops.bias_act(x, act=act, alpha=alpha, gain=1)

    grad_from = {"linear": "", "swish": "x"}.get(act, "y")
    return _Spec(
        func=func,
        def_alpha=def_alpha,
        def_gain=ops.default_gain(act),
        cuda_idx=index,
        ref=grad_from,
        has_2nd_grad=act in _CURVED,
    )


_ACTS = ("linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish")
activation_funcs: dict[str, Any] = {act: _spec(i, act) for i, act in enumerate(_ACTS, 1)}


def _init() -> bool:
    return True


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str = "cuda",
) -> Tensor:
    """clamp(act(x + b) · gain, ±clamp), differentiable twice; a negative clamp is none. As `gankern.ops.bias_act`."""
    if impl not in _IMPL:
        raise ValueError(f"impl={impl!r}, expected 'cuda' or 'ref'")
    b = None if b is None else b.to(x.dtype)
    clamp = None if clamp is None or clamp < 0 else clamp
    return ops.bias_act(x, b, dim, act, alpha, gain, clamp, impl=_IMPL[impl])
