"""StyleGAN2: mapping and synthesis networks, discriminator. Karras et al. 2020 (arXiv:1912.04958, arXiv:2006.06676).

Parameter and buffer names and shapes are the public StyleGAN2-ADA checkpoints' own. The loss, style mixing and the
moving average of w belong to `gankern.training`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gankern import ops
from gankern.models import stylegan2_fused as fused
from gankern.models import stylegan2_whole as whole
from gankern.nn import EqualizedConv2d, EqualizedLinear, Mapping, ModulatedConv2d, ToRGB
from gankern.nn.layers import NOISE_MODES, add_filter, residual_block
from gankern.nn.scaled import Scaled

ARCHITECTURES = ("skip", "orig", "resnet")
FILTER = (1, 3, 3, 1)
FP16_RESOLUTIONS = 4  # float16 runs the highest four from 8 px, as published; bfloat16 runs them all
FP16_CLAMP = 256.0


def _resolutions(img_resolution: int) -> list[int]:
    if img_resolution < 8 or img_resolution & (img_resolution - 1):
        raise ValueError(f"img_resolution={img_resolution}, expected a power of two >= 8")
    return [2**i for i in range(2, img_resolution.bit_length())]


def _block_dtype(resolution: int, img_resolution: int, compute_dtype: torch.dtype) -> torch.dtype:
    if compute_dtype == torch.float16 and resolution < max(2 * img_resolution // 2**FP16_RESOLUTIONS, 8):
        return torch.float32
    return compute_dtype


def _laid_out(x: Tensor, resolution: int) -> Tensor:
    """x in the memory format in which a block of this resolution is fastest: channels_last, but for small images on a
    CPU, whose library has twice as fast weight gradients in NCHW there."""
    small = x.device.type == "cpu" and resolution <= 8
    return x.contiguous(memory_format=torch.contiguous_format if small else torch.channels_last)


def _clamp(architecture: str, compute_dtype: torch.dtype, conv_clamp: float | None) -> float | None:
    """The clamp of the activations; raises ValueError for arguments that both networks share."""
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture={architecture!r}, expected one of {', '.join(ARCHITECTURES)}")
    if compute_dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ValueError(f"compute_dtype={compute_dtype}, expected float32, bfloat16 or float16")
    if conv_clamp is not None and not 0 < conv_clamp < math.inf:
        raise ValueError(f"conv_clamp={conv_clamp}, expected a number > 0, or None")
    return FP16_CLAMP if conv_clamp is None and compute_dtype == torch.float16 else conv_clamp


class SynthesisBlock(nn.Module):
    """One resolution: conv0 (upsampling; the 4x4 block has the learned constant instead), conv1, and to-RGB or skip."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        img_channels: int,
        is_last: bool,
        architecture: str,
        dtype: torch.dtype,
        clamp: float | None,
    ):
        super().__init__()
        self.in_channels, self.resolution = in_channels, resolution
        self.architecture, self.dtype = architecture, dtype
        add_filter(self, FILTER)
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        else:
            self.conv0 = ModulatedConv2d(in_channels, out_channels, w_dim, resolution, up=2, clamp=clamp)
        self.conv1 = ModulatedConv2d(out_channels, out_channels, w_dim, resolution, clamp=clamp)
        self.num_conv = 1 if in_channels == 0 else 2
        self.has_rgb = is_last or architecture == "skip"
        if self.has_rgb:
            self.torgb = ToRGB(out_channels, img_channels, w_dim, clamp=clamp)
        if in_channels != 0 and architecture == "resnet":
            self.skip = EqualizedConv2d(in_channels, out_channels, 1, bias=False, up=2)

    def convolutions(self) -> list[ModulatedConv2d]:
        return [self.conv1] if self.in_channels == 0 else [self.conv0, self.conv1]

    def forward(
        self, x: Tensor | None, img: Tensor | None, ws: Tensor, noises: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        w, noises = iter(ws.unbind(1)), iter(noises)
        if self.in_channels == 0:
            x = self.const[None].expand(ws.shape[0], -1, -1, -1)
        x = _laid_out(x.to(self.dtype), self.resolution)
        if self.in_channels == 0:
            x = self.conv1(x, next(w), "none", noise=next(noises))
        elif self.architecture == "resnet":
            y = self.skip(x, gain=math.sqrt(0.5))
            x = self.conv0(x, next(w), "none", noise=next(noises))
            x = self.conv1(x, next(w), "none", math.sqrt(0.5), next(noises)) + y
        else:
            x = self.conv0(x, next(w), "none", noise=next(noises))
            x = self.conv1(x, next(w), "none", noise=next(noises))
        if img is not None:
            img = ops.upsample2d(img, self.resample_taps)
        if self.has_rgb:
            y = self.torgb(x, next(w)).to(torch.promote_types(x.dtype, torch.float32))
            img = y if img is None else img + y
        return x, img

    def chained(
        self, x: Tensor, img: Tensor | None, layers: Sequence[dict], matrix: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The block on fused kernels, of operands that are made for all blocks at once."""
        return fused.chained_block(self, x, img, layers, matrix)


class Synthesis(nn.Module):
    """ws [N, num_ws, w_dim] -> images [N, C, R, R], float32, nominally in [-1, 1]."""

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        channel_base: int,
        channel_max: int,
        architecture: str,
        compute_dtype: torch.dtype,
        clamp: float | None,
    ):
        super().__init__()
        self.w_dim, self.img_channels, self.resolutions = w_dim, img_channels, _resolutions(img_resolution)
        self.num_ws = 1
        for res in self.resolutions:
            block = SynthesisBlock(
                0 if res == 4 else min(2 * channel_base // res, channel_max),
                min(channel_base // res, channel_max),
                w_dim,
                res,
                img_channels,
                is_last=res == img_resolution,
                architecture=architecture,
                dtype=_block_dtype(res, img_resolution, compute_dtype),
                clamp=clamp,
            )
            self.num_ws += block.num_conv
            setattr(self, f"b{res}", block)

    def forward(self, ws: Tensor, noise_mode: str = "random") -> Tensor:
        if ws.ndim != 3 or tuple(ws.shape[1:]) != (self.num_ws, self.w_dim):
            raise ValueError(f"ws has shape {tuple(ws.shape)}, expected [N, {self.num_ws}, {self.w_dim}]")
        if noise_mode not in NOISE_MODES:
            raise ValueError(f"noise_mode={noise_mode!r}, expected one of {', '.join(NOISE_MODES)}")
        if (dtype := self.b4.const.dtype) not in (torch.float32, torch.float64):
            raise ValueError(f"parameters are {dtype}, expected float32; compute_dtype={dtype} makes activations so")
        noises = self.draw_noise(ws, noise_mode)
        if fused.serves(self.blocks(), ws):
            return fused.synthesize(self, ws, noises)
        x, img, first = None, None, 0
        for block in self.blocks():
            # to-RGB shares its w with the next block's first convolution
            end = first + block.num_conv
            x, img = block(x, img, ws[:, first : end + block.has_rgb], noises[first:end])
            first = end
        return img

    def blocks(self) -> list[SynthesisBlock]:
        return [getattr(self, f"b{res}") for res in self.resolutions]

    def draw_noise(self, ws: Tensor, noise_mode: str) -> list[Tensor | None]:
        """Each convolution's noise, for as many samples as ws has; all random maps are drawn at once."""
        convs = [conv for block in self.blocks() for conv in block.convolutions()]
        if noise_mode != "random":
            return [conv.noise_const if noise_mode == "const" else None for conv in convs]
        sizes = [len(ws) * conv.resolution**2 for conv in convs]
        maps = torch.randn(sum(sizes), device=ws.device).to(ws.dtype).split(sizes)
        return [m.view(len(ws), 1, c.resolution, c.resolution) for m, c in zip(maps, convs, strict=True)]


class Generator(nn.Module):
    """StyleGAN2's generator: z [N, z_dim], c [N, c_dim] or None -> images [N, img_channels, R, R] in [-1, 1].

    Channels at resolution r: min(channel_base/r, channel_max). `architecture`: skip (published), orig or resnet.
    `compute_dtype`: of the synthesis activations; parameters, mapping network and RGB sums stay float32. float16 runs
    the highest four resolutions. `conv_clamp`: bounds the activations at ±this·gain; None: 256 in float16, else none.
    Raises ValueError for what isn't possible.
    """

    def __init__(
        self,
        z_dim: int = 512,
        c_dim: int = 0,
        w_dim: int = 512,
        img_resolution: int = 256,
        img_channels: int = 3,
        num_mapping_layers: int = 8,
        channel_base: int = 32768,
        channel_max: int = 512,
        architecture: str = "skip",
        compute_dtype: torch.dtype = torch.float32,
        conv_clamp: float | None = None,
    ):
        super().__init__()
        clamp = _clamp(architecture, compute_dtype, conv_clamp)
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.compute_dtype = compute_dtype
        self.synthesis = Synthesis(
            w_dim, img_resolution, img_channels, channel_base, channel_max, architecture, compute_dtype, clamp
        )
        self.num_ws = self.synthesis.num_ws
        self.mapping = Mapping(z_dim, c_dim, w_dim, self.num_ws, num_mapping_layers)
        self.config = {
            "z_dim": z_dim,
            "c_dim": c_dim,
            "w_dim": w_dim,
            "img_resolution": img_resolution,
            "img_channels": img_channels,
            "num_mapping_layers": num_mapping_layers,
            "channel_base": channel_base,
            "channel_max": channel_max,
            "architecture": architecture,
            "conv_clamp": conv_clamp,
        }

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1,
        truncation_cutoff: int | None = None,
        noise_mode: str = "random",
    ) -> Tensor:
        return self.synthesis(self.mapping(z, c, truncation_psi, truncation_cutoff), noise_mode)


class DiscriminatorBlock(nn.Module):
    """One resolution: [from-RGB,] conv0, conv1 (downsampling), and the skip of the resnet architecture."""

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        resolution: int,
        img_channels: int,
        architecture: str,
        dtype: torch.dtype,
        clamp: float | None,
    ):
        super().__init__()
        self.resolution, self.architecture, self.dtype = resolution, architecture, dtype
        add_filter(self, FILTER)
        self.has_rgb = in_channels == 0 or architecture == "skip"
        if self.has_rgb:
            self.fromrgb = EqualizedConv2d(img_channels, mid_channels, 1, act="lrelu", clamp=clamp)
        self.conv0 = EqualizedConv2d(mid_channels, mid_channels, 3, act="lrelu", clamp=clamp)
        self.conv1 = EqualizedConv2d(mid_channels, out_channels, 3, act="lrelu", down=2, clamp=clamp)
        if architecture == "resnet":
            self.skip = EqualizedConv2d(mid_channels, out_channels, 1, bias=False, down=2)

    def convolutions(self) -> list[tuple[EqualizedConv2d, float]]:
        """The convolutions, and the gain with which each is called."""
        resnet = self.architecture == "resnet"
        convs = [(self.fromrgb, 1.0)] if self.has_rgb else []
        convs += [(self.conv0, 1.0), (self.conv1, math.sqrt(0.5) if resnet else 1.0)]
        return [*convs, (self.skip, math.sqrt(0.5))] if resnet else convs

    def forward(self, x: Tensor | None, img: Tensor, scaled: Scaled) -> tuple[Tensor, Tensor]:
        """`scaled`: weights and biases of the convolutions as far as they are made already."""
        x = None if x is None else _laid_out(x.to(self.dtype), self.resolution)
        if self.has_rgb:
            y = self.fromrgb(img.to(self.dtype), scaled=scaled.get(self.fromrgb))
            x = y if x is None else x + y
            img = ops.downsample2d(img, self.resample_taps) if self.architecture == "skip" else img
        if self.architecture == "resnet":
            return residual_block(self.conv0, self.conv1, self.skip, x, math.sqrt(0.5), scaled), img
        return residual_block(self.conv0, self.conv1, None, x, 1.0, scaled), img


class DiscriminatorEpilogue(nn.Module):
    """4x4: minibatch standard deviation, convolution, two fully connected layers, projection onto the condition."""

    def __init__(
        self,
        in_channels: int,
        cmap_dim: int,
        img_channels: int,
        architecture: str,
        mbstd_group_size: int | None,
        mbstd_num_channels: int,
        clamp: float | None,
    ):
        super().__init__()
        self.cmap_dim, self.architecture = cmap_dim, architecture
        self.mbstd_group_size, self.mbstd_num_channels = mbstd_group_size, mbstd_num_channels
        if architecture == "skip":
            self.fromrgb = EqualizedConv2d(img_channels, in_channels, 1, act="lrelu", clamp=clamp)
        self.conv = EqualizedConv2d(in_channels + mbstd_num_channels, in_channels, 3, act="lrelu", clamp=clamp)
        self.fc = EqualizedLinear(in_channels * 16, in_channels, act="lrelu")
        self.out = EqualizedLinear(in_channels, cmap_dim if cmap_dim > 0 else 1)

    def layers(self) -> list[EqualizedConv2d | EqualizedLinear]:
        """All but the last: its bias has no part in R1, and must get no gradient there, not even zeros."""
        return [*([self.fromrgb] if self.architecture == "skip" else []), self.conv, self.fc]

    def forward(self, x: Tensor, img: Tensor, cmap: Tensor | None, scaled: Scaled) -> Tensor:
        dtype = self.fc.weight.dtype
        x = _laid_out(x.to(dtype), 4)
        if self.architecture == "skip":
            x = x + self.fromrgb(img.to(dtype), scaled=scaled.get(self.fromrgb))
        if self.mbstd_num_channels > 0:
            x = ops.minibatch_stddev(x, self.mbstd_group_size, self.mbstd_num_channels)
        x = self.conv(x, scaled=scaled.get(self.conv)).flatten(1)
        x = self.out(self.fc(x, scaled.get(self.fc)))
        return x if cmap is None else (x * cmap).sum(1, keepdim=True) / math.sqrt(self.cmap_dim)


class Discriminator(nn.Module):
    """StyleGAN2's discriminator: img [N, img_channels, R, R], c [N, c_dim] or None -> logits [N, 1], float32.

    `architecture`: resnet (published), orig or skip. Conditioning is by projection. `mbstd_group_size` must divide
    the batch (None: the whole batch), `mbstd_num_channels=0` leaves the statistic out. `compute_dtype` and `conv_clamp`
    as in `Generator`; the last layers stay float32.
    """

    def __init__(
        self,
        c_dim: int = 0,
        img_resolution: int = 256,
        img_channels: int = 3,
        num_mapping_layers: int = 8,
        channel_base: int = 32768,
        channel_max: int = 512,
        architecture: str = "resnet",
        cmap_dim: int | None = None,
        mbstd_group_size: int | None = 4,
        mbstd_num_channels: int = 1,
        compute_dtype: torch.dtype = torch.float32,
        conv_clamp: float | None = None,
    ):
        super().__init__()
        clamp = _clamp(architecture, compute_dtype, conv_clamp)
        self.c_dim, self.img_resolution, self.img_channels = c_dim, img_resolution, img_channels
        self.resolutions = _resolutions(img_resolution)[::-1]
        channels = {res: min(channel_base // res, channel_max) for res in self.resolutions}
        cmap_dim = 0 if c_dim == 0 else channels[4] if cmap_dim is None else cmap_dim
        for res in self.resolutions[:-1]:
            block = DiscriminatorBlock(
                0 if res == img_resolution else channels[res],
                channels[res],
                channels[res // 2],
                res,
                img_channels,
                architecture,
                _block_dtype(res, img_resolution, compute_dtype),
                clamp,
            )
            setattr(self, f"b{res}", block)
        if c_dim > 0:
            self.mapping = Mapping(0, c_dim, cmap_dim, None, num_mapping_layers)
        self.b4 = DiscriminatorEpilogue(
            channels[4], cmap_dim, img_channels, architecture, mbstd_group_size, mbstd_num_channels, clamp
        )
        self.config = {
            "c_dim": c_dim,
            "img_resolution": img_resolution,
            "img_channels": img_channels,
            "num_mapping_layers": num_mapping_layers,
            "channel_base": channel_base,
            "channel_max": channel_max,
            "architecture": architecture,
            "cmap_dim": cmap_dim,
            "mbstd_group_size": mbstd_group_size,
            "mbstd_num_channels": mbstd_num_channels,
            "conv_clamp": conv_clamp,
        }

    def blocks(self) -> list[DiscriminatorBlock]:
        """All but the epilogue."""
        return [getattr(self, f"b{res}") for res in self.resolutions[:-1]]

    def forward(self, img: Tensor, c: Tensor | None = None) -> Tensor:
        shape = (self.img_channels, self.img_resolution, self.img_resolution)
        if img.ndim != 4 or tuple(img.shape[1:]) != shape:
            raise ValueError(f"img has shape {tuple(img.shape)}, expected [N, {', '.join(map(str, shape))}]")
        if (dtype := self.b4.fc.weight.dtype) not in (torch.float32, torch.float64):
            raise ValueError(f"parameters are {dtype}, expected float32; compute_dtype={dtype} makes activations so")
        scaled = fused.scaled_discriminator(self) if fused.serves(self.blocks(), img) else {}
        if scaled and whole.serves_discriminator(self, img):
            x = whole.features(self.blocks(), img, scaled)
        else:
            x, img = None, _laid_out(img, self.img_resolution)
            for block in self.blocks():
                x, img = block(x, img, scaled)
        cmap = self.mapping(None, c) if self.c_dim > 0 else None
        return self.b4(x, img, cmap, scaled)
