"""Normalisation layers over `gankern.ops`: instance norm, AdaIN, pixel norm, minibatch standard deviation. Parameters
stay float32 masters; activations keep their own dtype. Every layer is twice differentiable, for gradient penalties."""

import torch
from torch import Tensor, nn

from gankern import ops
from gankern.nn.layers import EqualizedLinear


class InstanceNorm2d(nn.Module):
    """Instance norm, affine and activation in one operator: gain · act(normalised(x) · weight + bias).

    x [N, C, H, W] -> the same. Parameters are named as `torch.nn.InstanceNorm2d`'s, whose state dict loads (without
    running statistics, which generators don't use); `affine=False` has none. `act`, `alpha`, `gain` as in
    `ops.bias_act`; `gain=None` is the activation's own (√2 for relu and lrelu), so pass `gain=1` to take the place of
    `InstanceNorm2d` followed by `ReLU`, as in CycleGAN and pix2pix. Ulyanov et al. 2016 (arXiv:1607.08022).
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = False,
        act: str = "linear",
        alpha: float | None = None,
        gain: float | None = None,
    ):
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, eps, affine
        self.act, self.alpha, self.gain = act, alpha, gain
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        _check(x, self.num_features)
        weight, bias = (None if t is None else t.to(x.dtype) for t in (self.weight, self.bias))
        return ops.instance_norm(x, weight, bias, self.act, self.alpha, self.gain, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}, act={self.act}"


class AdaIN(nn.Module):
    """Adaptive instance norm: a style vector sets every channel's mean and deviation.

    x [N, C, H, W], w [N, style_dim] -> gain · act(normalised(x) · (1 + γ) + β) with [γ, β] = affine(w), StyleGAN's
    convention; the style's affine is an `EqualizedLinear` without activation. `biased=False` divides the variance by
    pixels − 1, as the first AdaIN. Huang and Belongie 2017 (arXiv:1703.06868), Karras et al. 2019 (arXiv:1812.04948).
    """

    def __init__(
        self,
        num_features: int,
        style_dim: int,
        eps: float = 1e-5,
        act: str = "linear",
        alpha: float | None = None,
        gain: float | None = None,
        biased: bool = True,
    ):
        super().__init__()
        self.num_features, self.eps, self.biased = num_features, eps, biased
        self.act, self.alpha, self.gain = act, alpha, gain
        self.affine = EqualizedLinear(style_dim, 2 * num_features)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        _check(x, self.num_features)
        weight, bias = self.affine(w).to(x.dtype).chunk(2, dim=1)
        args = self.act, self.alpha, self.gain, self.eps, self.biased
        return ops.instance_norm(x, weight, bias, *args, weight_offset=1.0)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, act={self.act}, biased={self.biased}"


class PixelNorm(nn.Module):
    """Every vector along `dim` to unit root mean square; latents [N, C] too. Karras et al. 2018 (arXiv:1710.10196)."""

    def __init__(self, dim: int = 1, eps: float = 1e-8):
        super().__init__()
        self.dim, self.eps = dim, eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.pixel_norm(x, self.dim, self.eps)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, eps={self.eps}"


class MinibatchStddev(nn.Module):
    """Appends `num_channels` maps that hold the standard deviation within groups of the batch.

    x [N, C, H, W] -> [N, C + num_channels, H, W]; groups and errors as in `ops.minibatch_stddev`. Karras et al. 2018
    (arXiv:1710.10196).
    """

    def __init__(self, group_size: int | None = 4, num_channels: int = 1, eps: float = 1e-8):
        super().__init__()
        self.group_size, self.num_channels, self.eps = group_size, num_channels, eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.minibatch_stddev(x, self.group_size, self.num_channels, self.eps)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, num_channels={self.num_channels}"


def _check(x: Tensor, num_features: int) -> None:
    if x.ndim != 4 or x.shape[1] != num_features:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected [N, {num_features}, H, W]")
