"""Layers of the StyleGAN family over `gankern.ops`. Parameters stay float32 masters; activations keep their own
dtype."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gankern import ops
from gankern.ops._impl import uncast
from gankern.ops.conv2d import filtered_before

NOISE_MODES = ("random", "const", "none")


def _separated(f: Tensor) -> Tensor:
    """f [k, k] as one list [k] where it is the outer product of one, which costs half the arithmetic; else f."""
    total = f.sum()
    if f.shape[0] != f.shape[1] or not total > 0:
        return f.clone()
    taps = f.sum(0) / total.sqrt()
    return taps if torch.allclose(torch.outer(taps, taps), f, rtol=1e-6, atol=1e-9) else f.clone()


def add_filter(module: nn.Module, taps: Sequence[float]) -> None:
    """Give `module` a resampling filter: the buffer `resample_filter` [k, k] as checkpoints have it, and
    `resample_taps`, which isn't saved: the same in the form in which it runs, made anew from a loaded state."""
    module.register_buffer("resample_filter", ops.setup_filter(taps, separable=False))
    module.register_buffer("resample_taps", ops.setup_filter(taps), persistent=False)

    def refresh(module: nn.Module, _) -> None:
        if not module.resample_filter.is_meta:
            module.resample_taps = _separated(module.resample_filter)

    module.register_load_state_dict_post_hook(refresh)


class EqualizedLinear(nn.Module):
    """Fully connected layer with equalized learning rate: act(x · (w·g)ᵀ + b·lr), g = lr/√in.

    x [..., in_features] -> [..., out_features]. Weights start at N(0, 1)/lr, biases at `bias_init`; `lr_multiplier`
    scales both at run time. `act`, its gain and slope as in `ops.bias_act`. Karras et al. 2018 (arXiv:1710.10196),
    section 4.1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        act: str = "linear",
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full([out_features], bias_init / lr_multiplier)) if bias else None
        self.act, self.lr_multiplier = act, lr_multiplier
        self.weight_gain = lr_multiplier / math.sqrt(in_features)

    def gains(self) -> tuple[float, float]:
        """What weight and bias are multiplied by."""
        return self.weight_gain, self.lr_multiplier

    @uncast
    def forward(self, x: Tensor, scaled: tuple[Tensor, Tensor | None] | None = None) -> Tensor:
        """`scaled`: weight and bias by their gains in x's dtype, where they are made for many layers at once."""
        if scaled is None:
            w = (self.weight * self.weight_gain).to(x.dtype)
            b = None if self.bias is None else (self.bias * self.lr_multiplier).to(x.dtype)
        else:
            w, b = scaled
        if self.act == "linear":
            return nn.functional.linear(x, w, b)
        return ops.bias_act(x @ w.t(), b, dim=x.ndim - 1, act=self.act)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, act={self.act}, lr_multiplier={self.lr_multiplier}"


class EqualizedConv2d(nn.Module):
    """Convolution with equalized learning rate, resampling, bias and activation.

    x [N, I, H, W] -> [N, O, H·up/down, W·up/down]. The weight starts at N(0, 1) and is multiplied by 1/√(I·k²) at run
    time. `gain` of the call multiplies the result and the clamp. Karras et al. 2018 and 2020 (arXiv:1912.04958).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        act: str = "linear",
        up: int = 1,
        down: int = 1,
        resample_filter: Sequence[float] = (1, 3, 3, 1),
        clamp: float | None = None,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        add_filter(self, resample_filter)
        self.act, self.up, self.down, self.clamp = act, up, down, clamp
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)

    def gains(self, gain: float = 1.0) -> tuple[float, float]:
        """What weight and bias are multiplied by in a call with `gain`."""
        folded = self._folded(gain)
        return self.weight_gain * folded, folded

    def activation(self, gain: float = 1.0) -> dict:
        """The arguments of the activation in a call with `gain`."""
        clamp = None if self.clamp is None else self.clamp * gain
        return {"act": self.act, "gain": gain * ops.default_gain(self.act) / self._folded(gain), "clamp": clamp}

    def _folded(self, gain: float) -> float:
        """linear and leaky ReLU are positively homogeneous: the gain belongs to the small weight and bias."""
        gain *= ops.default_gain(self.act)
        return gain if self.act in ("linear", "relu", "lrelu") and gain > 0 else 1.0

    def scaled(self, x: Tensor, gain: float = 1.0) -> tuple[Tensor, Tensor | None]:
        """Weight and bias by their gains, in x's dtype."""
        of_weight, of_bias = self.gains(gain)
        return (self.weight * of_weight).to(x.dtype), None if self.bias is None else (self.bias * of_bias).to(x.dtype)

    def forward(self, x: Tensor, gain: float = 1.0, scaled: tuple[Tensor, Tensor | None] | None = None) -> Tensor:
        """`scaled`: the result of the method, where it is made for many layers at once."""
        w, b = self.scaled(x, gain) if scaled is None else scaled
        act, k = self.activation(gain), w.shape[-1]
        if (self.up, self.down) == (1, 1):
            return ops.conv2d_bias_act(x, w, b, padding=k // 2, **act)
        if (self.up, self.down) == (1, 2):
            x, stride = filtered_before(x, self.resample_taps, k, k // 2)
            return ops.conv2d_bias_act(x, w, b, stride, **act)
        args = {"up": self.up, "down": self.down, "padding": k // 2, "flip_weight": self.up == 1}
        y = ops.conv2d_resample(x, w, self.resample_taps, **args)
        if b is None and self.act == "linear" and act["clamp"] is None:
            return y
        return ops.bias_act(y, b, **act)

    def extra_repr(self) -> str:
        o, i, k, _ = self.weight.shape
        return f"{i}, {o}, kernel_size={k}, act={self.act}, up={self.up}, down={self.down}"


def hooked(*modules: nn.Module | None) -> bool:
    """Whether one of the modules or of those inside has a hook, which runs only where the module itself is called."""
    left = list(modules)
    while left:
        m = left.pop()
        if m is None:
            continue
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks:
            return True
        left += m._modules.values()
    return False


def residual_block(
    first: EqualizedConv2d,
    second: EqualizedConv2d,
    skip: EqualizedConv2d | None,
    x: Tensor,
    gain: float,
    scaled: dict[nn.Module, tuple[Tensor, Tensor | None]],
) -> Tensor:
    """second(first(x), gain) + skip(x, gain), where `second` and `skip` reduce by 2: a block of the discriminator.

    With fused kernels one pass stands between the two convolutions (bias, activation and filter) and one after them
    (bias, activation and the sum). `scaled`: weights and biases as far as they are made already. Modules with hooks are
    called one by one.
    """
    if not ops.runs_fused(x) or hooked(first, second, skip):
        y = None if skip is None else skip(x, gain)
        z = second(first(x), gain=gain)
        return z if y is None else z + y
    w, b = scaled.get(first) or first.scaled(x)
    f, k, padding, residual = second.resample_taps, second.weight.shape[-1], w.shape[-1] // 2, None
    if skip is None:
        t = ops.conv2d(x, w, padding=padding)
    else:
        t, reduced = ops.residual_branches(x, w, skip.resample_taps, padding)
        residual = ops.conv2d(reduced, (scaled.get(skip) or skip.scaled(x, gain))[0])
    t = ops.bias_act_upfirdn2d(t, b, f, padding=ops.downsample_padding(f, k // 2), **first.activation())
    w, b = scaled.get(second) or second.scaled(x, gain)
    return ops.conv2d_bias_act(t, w, b, 2, **second.activation(gain), residual=residual)


class ModulatedConv2d(nn.Module):
    """StyleGAN2's synthesis layer: style affine, modulated 3x3 convolution, noise, bias, leaky ReLU.

    x [N, I, H, W], w [N, w_dim] -> [N, O, H·up, W·up]; `resolution` is the output's, for the buffer `noise_const`.
    Karras et al. 2020 (arXiv:1912.04958).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        kernel_size: int = 3,
        up: int = 1,
        act: str = "lrelu",
        resample_filter: Sequence[float] = (1, 3, 3, 1),
        clamp: float | None = None,
    ):
        super().__init__()
        self.affine = EqualizedLinear(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        add_filter(self, resample_filter)
        self.up, self.act, self.clamp, self.resolution = up, act, clamp, resolution

    def forward(
        self, x: Tensor, w: Tensor, noise_mode: str = "random", gain: float = 1.0, noise: Tensor | None = None
    ) -> Tensor:
        """`noise`, broadcastable to [N, 1, H·up, W·up], counts in place of what `noise_mode` says."""
        if noise_mode not in NOISE_MODES:
            raise ValueError(f"noise_mode={noise_mode!r}, expected one of {', '.join(NOISE_MODES)}")
        if noise is None and noise_mode == "random":
            shape = [x.shape[0], 1, self.resolution, self.resolution]
            noise = torch.randn(shape, device=x.device).to(self.noise_strength.dtype)
        elif noise is None and noise_mode == "const":
            noise = self.noise_const
        return ops.modulated_conv2d(
            x,
            self.weight,
            self.affine(w),
            noise=noise,
            noise_strength=None if noise is None else self.noise_strength,
            up=self.up,
            padding=self.weight.shape[-1] // 2,
            resample_filter=self.resample_taps,
            flip_weight=self.up == 1,
            bias=self.bias.to(x.dtype),
            act=self.act,
            gain=gain * ops.default_gain(self.act),
            clamp=None if self.clamp is None else self.clamp * gain,
        )

    def extra_repr(self) -> str:
        o, i, k, _ = self.weight.shape
        return f"{i}, {o}, kernel_size={k}, up={self.up}, resolution={self.resolution}"


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to colour channels, without demodulation: x [N, I, H, W], w [N, w_dim] -> [N, C, H,
    W]."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, clamp: float | None = None):
        super().__init__()
        self.affine = EqualizedLinear(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.clamp = clamp
        self.weight_gain = 1 / math.sqrt(in_channels)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        styles = self.affine(w) * self.weight_gain
        bias = self.bias.to(x.dtype)
        return ops.modulated_conv2d(x, self.weight, styles, demodulate=False, bias=bias, clamp=self.clamp)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}"
