"""The whole layer in one Triton kernel: a convolution as an implicit matrix product, for layers of few channels.

    y[p, o] = epilogue(Σ_{tap, i} s[i]·x[p + tap, i] · w[tap, i, o])

The style is the prologue, everything after the convolution the epilogue: x is read once and y written once. Meant for
512 px and above, where channels are few (128 at most) and memory is the limit; channels_last, float16 and bfloat16.
It runs where `settings.json` says that it was measured to win, or where `impl="triton_gemm"` asks for it.
"""

import contextlib
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._layout import cdiv, is_channels_last
from gankern.ops._settings import measured, pow2, size_class
from gankern.ops._triton import CONFIGS, accumulator, config, launch
from gankern.ops.modulated_conv2d.layer import Layer, Operands, Tensors
from gankern.ops.modulated_conv2d.tile import arguments, finish, operands

MAX_CHANNELS = 128

_assumed: list[bool] = []

CONFIGS["layer_gemm"] = (
    {"BM": 128, "BK": 32, "num_warps": 8, "num_stages": 3},
    {"BM": 64, "BK": 32, "num_warps": 4, "num_stages": 3},
    {"BM": 128, "BK": 32, "num_warps": 8, "num_stages": 4},
)


@triton.jit
def _gemm(
    x,
    w,
    styles,
    d,
    noise,
    strength,
    bias,
    next_styles,
    y,
    ys,
    height,
    width,
    out_width,
    pixels,
    in_channels,
    channels,
    noise_step,
    STYLED: tl.constexpr,
    SPEC: tl.constexpr,
    KERNEL: tl.constexpr,
    PADDING: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """x [N, H, W, I], times `styles` where STYLED; w [KERNEL², I, O], y [N, pixels, O]."""
    n = tl.program_id(1).to(tl.int64)
    px = tl.program_id(0) * BM + tl.arange(0, BM)
    out = tl.arange(0, BN)
    row, col = px // out_width - PADDING, px % out_width - PADDING
    image = x + n * height * width * in_channels
    total = tl.zeros([BM, BN], ACC)
    blocks = tl.cdiv(in_channels, BK)
    for step in range(KERNEL * KERNEL * blocks):
        tap, block = step // blocks, step % blocks
        i = block * BK + tl.arange(0, BK)
        r, c = row + tap // KERNEL, col + tap % KERNEL
        inside = (r >= 0) & (r < height) & (c >= 0) & (c < width) & (px < pixels)
        at = (r.to(tl.int64) * width + c)[:, None] * in_channels + i[None, :]
        a = tl.load(image + at, mask=inside[:, None] & (i < in_channels)[None, :], other=0.0)
        if STYLED:
            s = tl.load(styles + n * in_channels + i, mask=i < in_channels, other=0.0).to(ACC)
            a = (a.to(ACC) * s[None, :]).to(a.dtype)
        at = (tap * in_channels + i)[:, None] * channels + out[None, :]
        b = tl.load(w + at, mask=(i < in_channels)[:, None] & (out < channels)[None, :], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee", out_dtype=ACC)
    c, rows = out[None, :], px[:, None]
    scale, eta, amount, bias_of, following = operands(
        d, noise, strength, bias, next_styles, n, c, channels, noise_step, SPEC, ACC
    )
    at, pixel = (n * pixels + rows) * channels + c, rows < pixels
    mask = pixel & (c < channels)
    finish(y, ys, at, mask, total, scale, eta + rows, pixel, amount, bias_of, following, SPEC, ACC)


def _key(t: Tensors) -> str:
    dtype = str(t.x.dtype).removeprefix("torch.")
    o, i, k, _ = t.weight.shape
    return f"{dtype} {k}x{k} {size_class(i)} {size_class(o)} {size_class(t.x.shape[2] * t.x.shape[3])}"


def serves(t: Tensors, layer: Layer) -> bool:
    """Whether this kernel runs the layer: asked for or measured to win, and of a shape that it takes."""
    half = t.x.dtype in (torch.float16, torch.bfloat16) or _impl.interpreting()
    few = max(t.weight.shape[:2]) <= MAX_CHANNELS
    if layer.up != 1 or not few or not half or not is_channels_last(t.x) or t.x.numel() == 0:
        return False
    return layer.impl == "triton_gemm" or _wins(t)


def _wins(t: Tensors) -> bool:
    return _assumed[-1] if _assumed else bool(measured("layer_gemm_wins", _key(t), t.x))


@contextlib.contextmanager
def assume_wins(wins: bool) -> Iterator[None]:
    """Inside the block this kernel wins every layer or none, whatever the table says: for tuning and tests."""
    _assumed.append(wins)
    try:
        yield
    finally:
        _assumed.pop()


def forward(t: Tensors, layer: Layer) -> tuple[Tensor, Tensor]:
    """(y, y · next_styles); an empty tensor for the one that isn't asked for."""
    x, (o, i, k, _), (n, _, h, w) = t.x, t.weight.shape, t.x.shape
    rows, cols = h + 2 * layer.padding - k + 1, w + 2 * layer.padding - k + 1
    shape = {"size": [n, o, rows, cols], "dtype": x.dtype, "device": x.device, "memory_format": torch.channels_last}
    styled = t.next_styles is not None
    y = torch.empty(**shape) if layer.plain else x.new_empty(0)
    ys = torch.empty(**shape) if styled else x.new_empty(0)
    if not _impl.launching():
        return y, ys
    kernel = layer.kernel(t.weight, x).permute(2, 3, 1, 0).contiguous()  # [k, k, I, O]
    epilogue = Operands(t.d, t.noise, t.strength, t.bias, t.next_styles, layer.activation)
    pointers, noise_step, spec = arguments(epilogue, y if layer.plain else ys)
    styles = x if t.styles is None else t.styles.contiguous()
    settings = config("layer_gemm", _key(t), x)
    constants = {"STYLED": t.styles is not None, "SPEC": (*spec, layer.plain, styled)}
    constants |= {"KERNEL": k, "PADDING": layer.padding, "ACC": accumulator(x.dtype), "BM": settings["BM"]}
    constants |= {"BN": max(16, pow2(o)), "BK": max(16, min(pow2(i), settings["BK"]))}
    grid = (cdiv(rows * cols, settings["BM"]), n)
    args = (x, kernel, styles, *pointers, y, ys, h, w, cols, rows * cols, i, o, noise_step)
    launch(_gemm, "layer_gemm", _key(t), grid, args, constants, settings)
    return y, ys
