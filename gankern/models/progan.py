"""ProGAN: generator and discriminator that grow from 4x4 with the level of detail. Karras et al. 2018
(arXiv:1710.10196).

lod 0 is the full resolution; each +1 halves it, and a fraction blends two resolutions: the generator their images, the
discriminator their features. Losses, the schedule of lod and the moving average belong to `gankern.training`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gankern import ops
from gankern.ops._impl import uncast

SLOPE = 0.2
GROUP_SIZE = 4


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """min(channel_base / 2^stage, channel_max), where 4x4 is stage 1."""
    return min(channel_base * 2 // resolution, channel_max)


def _resolutions(img_resolution: int) -> list[int]:
    if img_resolution < 4 or img_resolution & (img_resolution - 1):
        raise ValueError(f"img_resolution={img_resolution}, expected a power of two >= 4")
    return [2**i for i in range(2, img_resolution.bit_length())]


class _Weighted(nn.Module):
    """A weight with equalized learning rate: N(0, 1), times gain/√fan_in at run time; with `equalized=False` drawn at
    that scale, as before the paper."""

    def __init__(self, shape: list[int], fan_in: int, out: int, gain: float, equalized: bool):
        super().__init__()
        scale = gain / math.sqrt(fan_in)
        self.weight = nn.Parameter(torch.randn(shape) * (1 if equalized else scale))
        self.bias = nn.Parameter(torch.zeros(out))
        self.scale = scale if equalized else 1.0

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x, weight, bias) in x's dtype, one of the first two, the smaller, times the scale."""
        w, b = self.weight, self.bias.to(x.dtype)
        if self.scale != 1 and not torch.compiler.is_exporting() and x.numel() < w.numel():  # exported for any batch
            return x * self.scale, w.to(x.dtype), b
        return x, (w * self.scale).to(x.dtype), b


class Dense(_Weighted):
    """x [N, I] -> [N, O], without bias: what follows adds it."""

    def __init__(self, in_features: int, out_features: int, bias: int, gain: float, equalized: bool):
        super().__init__([out_features, in_features], in_features, bias, gain, equalized)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, w, b = self.operands(x)
        return x @ w.t(), b


class Conv(_Weighted):
    """x [N, I, H, W] -> ([N, O, H', W'], bias): a same-size convolution, or one with nearest upsampling before it or
    box downsampling after it.

    `fused` resamples inside the convolution: the weight [O, I, 3, 3], padded and shifted to the four corners, summed,
    is a 4x4 kernel of stride 2. Going up this equals upsampling first where the kernel is also flipped; going down,
    where the other form averages after bias and activation, they are different functions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        gain: float,
        equalized: bool,
        resample: str = "none",
        fused: bool = False,
    ):
        super().__init__(
            [out_channels, in_channels, kernel, kernel], in_channels * kernel**2, out_channels, gain, equalized
        )
        self.resample, self.fused = resample, fused

    def forward(self, x: Tensor, activate: bool = False) -> tuple[Tensor, Tensor] | Tensor:
        """`activate`: the result with its bias and leaky ReLU instead."""
        x, w, b = self.operands(x)
        stride, padding = 1, w.shape[-1] // 2
        if self.fused:
            padded = F.pad(w, [1, 1, 1, 1])
            w = padded[:, :, 1:, 1:] + padded[:, :, :-1, 1:] + padded[:, :, 1:, :-1] + padded[:, :, :-1, :-1]
            if self.resample == "up":
                pair = ops.conv2d(x, w.transpose(0, 1), stride=2, padding=1, transposed=True), b
                return _activate(pair) if activate else pair
            w, stride, padding = w * 0.25, 2, 1
        elif self.resample == "up":
            x = upscale(x, 2)
        if activate:
            return ops.conv2d_bias_act(x, w, b, stride, padding, "lrelu", SLOPE, 1.0)
        return ops.conv2d(x, w, stride, padding), b


def upscale(x: Tensor, factor: int) -> Tensor:
    """Nearest-neighbour upsampling."""
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="nearest")


def downscale(x: Tensor, factor: int) -> Tensor:
    """Box downsampling."""
    return x if factor == 1 else F.avg_pool2d(x, factor)


def _activate(pair: tuple[Tensor, Tensor]) -> Tensor:
    return ops.bias_act(*pair, act="lrelu", alpha=SLOPE, gain=1.0)


class _Growing(nn.Module):
    """What both networks share: their stages, and what a lod means."""

    def __init__(self, img_resolution: int, compute_dtype: torch.dtype):
        super().__init__()
        self.resolutions = _resolutions(img_resolution)
        self.top = len(self.resolutions) - 1
        self.compute_dtype = compute_dtype

    def place(self, lod: float | Tensor, stage: int | None) -> tuple[int, float | Tensor | None]:
        """(the highest stage that runs, how much of the one below is blended in; None for nothing).

        A tensor, on the network's device, comes with its `stage`, so that nobody has to wait for its value.
        """
        if stage is not None:
            if not 0 <= stage <= self.top:
                raise ValueError(f"stage={stage}, expected 0 to {self.top}")
            return stage, lod - (self.top - stage) if stage > 0 else None
        if isinstance(lod, Tensor):
            raise ValueError("lod is a tensor, expected its stage beside it")
        if not 0 <= lod <= self.top:
            raise ValueError(f"lod={lod}, expected 0 to {self.top}")
        whole = math.floor(lod)
        return self.top - whole, lod - whole or None


class Generator(_Growing):
    """z [N, z_dim] and c [N, c_dim] -> images [N, img_channels, R, R] in about [-1, 1].

    `fused_from`: from this resolution on upsampling happens inside the convolution (None: nowhere).
    `normalize_latents`, `pixel_norm`, `equalized`: the paper's parts, which its ablation switches off.
    """

    def __init__(
        self,
        z_dim: int = 512,
        c_dim: int = 0,
        img_resolution: int = 1024,
        img_channels: int = 3,
        channel_base: int = 8192,
        channel_max: int = 512,
        fused_from: int | None = 128,
        normalize_latents: bool = True,
        pixel_norm: bool = True,
        equalized: bool = True,
        compute_dtype: torch.dtype = torch.float32,
    ):
        self.config = {k: v for k, v in locals().items() if k not in ("self", "__class__", "compute_dtype")}
        super().__init__(img_resolution, compute_dtype)
        self.z_dim, self.c_dim, self.img_resolution, self.img_channels = z_dim, c_dim, img_resolution, img_channels
        self.normalize_latents, self.pixel_norm = normalize_latents, pixel_norm
        self.lod = 0.0  # how far it is trained; goes with it into network files
        root2 = math.sqrt(2)
        below = 0
        for r in self.resolutions:
            wide = channels_at(r, channel_base, channel_max)
            block = nn.Module()
            if r == 4:
                block.dense = Dense(z_dim + c_dim, wide * 16, wide, root2 / 4, equalized)
                block.conv = Conv(wide, wide, 3, root2, equalized)
            else:
                fused = fused_from is not None and r >= fused_from
                block.conv0 = Conv(below, wide, 3, root2, equalized, "up", fused)
                block.conv1 = Conv(wide, wide, 3, root2, equalized)
            block.torgb = Conv(wide, img_channels, 1, 1.0, equalized)
            setattr(self, f"b{r}", block)
            below = wide

    @uncast
    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        lod: float | Tensor = 0.0,
        *,
        stage: int | None = None,
        native: bool = False,
    ) -> Tensor:
        """Images at full resolution, whatever the lod; at the resolution that it stands for where `native`."""
        stage, fade = self.place(lod, stage)
        x, below = self._stem(z, c), None
        for r in self.resolutions[: stage + 1]:
            block = getattr(self, f"b{r}")
            x = x if r == 4 else self._finish(block.conv0(x))
            x = self._finish(block.conv(x) if r == 4 else block.conv1(x))
            if fade is not None and r == self.resolutions[stage - 1]:
                below = self._rgb(block, x)
        img = self._rgb(block, x)
        if fade is not None:
            img = img + (upscale(below, 2) - img) * fade
        return img if native else upscale(img, self.img_resolution // img.shape[-1])

    def _stem(self, z: Tensor, c: Tensor | None) -> Tensor:
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"z has shape {tuple(z.shape)}, expected [N, {self.z_dim}]")
        if self.c_dim and (c is None or c.shape != (len(z), self.c_dim)):
            raise ValueError(f"c has shape {None if c is None else tuple(c.shape)}, expected [{len(z)}, {self.c_dim}]")
        z = z.to(self.b4.dense.weight.dtype)
        z = torch.cat([z, c.to(z.dtype)], 1) if self.c_dim else z
        z = ops.pixel_norm(z) if self.normalize_latents else z
        x, b = self.b4.dense(z)
        x = x.unflatten(1, (-1, 4, 4)).to(self.compute_dtype, memory_format=torch.channels_last)
        return self._finish((x, b.to(x.dtype)))

    def _finish(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        """Bias, leaky ReLU and pixel norm, in one pass."""
        if not self.pixel_norm:
            return _activate(pair)
        return ops.bias_act_pixel_norm(*pair, act="lrelu", alpha=SLOPE, gain=1.0)

    def _rgb(self, block: nn.Module, x: Tensor) -> Tensor:
        img, b = block.torgb(x)
        img, b = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (img, b))
        return ops.bias_act(img, b)


class Discriminator(_Growing):
    """Images [N, img_channels, R, R] -> scores [N, 1]; with c_dim > 0 (scores, label logits [N, c_dim]).

    `fused_from` as in the generator; `group_size` of the minibatch standard deviation, 0 for none.
    """

    def __init__(
        self,
        c_dim: int = 0,
        img_resolution: int = 1024,
        img_channels: int = 3,
        channel_base: int = 8192,
        channel_max: int = 512,
        fused_from: int | None = 128,
        group_size: int = GROUP_SIZE,
        equalized: bool = True,
        compute_dtype: torch.dtype = torch.float32,
    ):
        self.config = {k: v for k, v in locals().items() if k not in ("self", "__class__", "compute_dtype")}
        super().__init__(img_resolution, compute_dtype)
        self.c_dim, self.img_resolution, self.img_channels, self.group_size = (
            c_dim,
            img_resolution,
            img_channels,
            group_size,
        )
        root2 = math.sqrt(2)
        below = 0
        for r in self.resolutions:
            wide = channels_at(r, channel_base, channel_max)
            block = nn.Module()
            block.fromrgb = Conv(img_channels, wide, 1, root2, equalized)
            if r == 4:
                block.conv = Conv(wide + (group_size > 0), wide, 3, root2, equalized)
                # as wide as the stage below 4x4 would be
                deep = min(channel_base, channel_max)
                block.dense0 = Dense(wide * 16, deep, deep, root2, equalized)
                block.dense1 = Dense(deep, 1 + c_dim, 1 + c_dim, 1.0, equalized)
            else:
                fused = fused_from is not None and r >= fused_from
                block.conv0 = Conv(wide, wide, 3, root2, equalized)
                block.conv1 = Conv(wide, below, 3, root2, equalized, "down", fused)
            setattr(self, f"b{r}", block)
            below = wide

    @uncast
    def forward(
        self, img: Tensor, lod: float | Tensor = 0.0, *, stage: int | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Images at full resolution, or at the one that lod stands for."""
        stage, fade = self.place(lod, stage)
        r = self.resolutions[stage]
        if (
            img.ndim != 4
            or img.shape[1] != self.img_channels
            or tuple(img.shape[2:])
            not in {
                (r, r),
                (self.img_resolution,) * 2,
            }
        ):
            want = f"[N, {self.img_channels}, {r}, {r}] or [N, {self.img_channels}" + f", {self.img_resolution}" * 2
            raise ValueError(f"img has shape {tuple(img.shape)}, expected {want}]")
        img = img.to(self.compute_dtype, memory_format=torch.channels_last)
        img = downscale(img, img.shape[-1] // r)
        x = getattr(self, f"b{r}").fromrgb(img, activate=True)
        for i in range(stage, 0, -1):
            block, next_block = (getattr(self, f"b{self.resolutions[j]}") for j in (i, i - 1))
            x = block.conv0(x, activate=True)
            x = block.conv1(x, activate=True)
            x = x if block.conv1.fused else downscale(x, 2)
            if i == stage and fade is not None:
                x = x + (next_block.fromrgb(downscale(img, 2), activate=True) - x) * fade
        return self._judge(x)

    def _judge(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        block = self.b4
        if self.group_size:
            x = ops.minibatch_stddev(x, self.group_size)
        x = block.conv(x, activate=True)
        x = x.contiguous().flatten(1).to(torch.promote_types(x.dtype, torch.float32))
        x = _activate(block.dense0(x))
        y, b = block.dense1(x)
        y = y + b
        return (y[:, :1], y[:, 1:]) if self.c_dim else y
