"""bias_act under mmcv's signature."""

from torch import Tensor

from gankern.interop.patches.ada import bias_act as ada


def bias_act(
    input: Tensor,
    bias: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    use_custom_op: bool = True,
) -> Tensor:
    """StyleGAN2-ADA's; `use_custom_op=False` is eager PyTorch."""
    return ada.bias_act(input, bias, dim, act, alpha, gain, clamp, "cuda" if use_custom_op else "ref")
