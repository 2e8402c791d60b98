"""Triton kernels of upfirdn2d: one pass for every small filter, whole or separable; a plain one for the others.

Bytes at the floor: x and y once each; neighbouring strips meet the rows that both need in the L2 cache, and the
shifted reads of a row meet in L1.
"""

import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._layout import cdiv, dense, dense_like, empty, is_channels_last
from gankern.ops._settings import pow2, size_class
from gankern.ops._triton import CONFIGS, accumulator, config, launch
from gankern.ops.upfirdn2d.strip import count, fir_strip, first, first_row, kept, own_rows, step, tile_of, turns

CONFIGS["upfirdn2d"] = (
    {"BYTES": 2048, "ROWS": 16, "PX": 1, "AHEAD": True, "num_warps": 4},
    {"BYTES": 2048, "ROWS": 32, "PX": 1, "AHEAD": False, "num_warps": 4},
    {"BYTES": 2048, "ROWS": 32, "PX": 2, "AHEAD": False, "num_warps": 4},
    {"BYTES": 4096, "ROWS": 16, "PX": 1, "AHEAD": True, "num_warps": 8},
)
CONFIGS["upfirdn2d_add"] = tuple(c for c in CONFIGS["upfirdn2d"] if c["PX"] == 1)  # going up there are two anyway
CONFIGS["upfirdn2d_direct"] = (
    {"TILE": 512, "num_warps": 4},
    {"TILE": 1024, "num_warps": 4},
)

# beyond these a filter is large, and the plain kernel serves: multiply-adds a tile in one turn of a strip's loop, and
# tiles that stay in registers
_UNROLLED, _KEPT = 100, 16


@triton.jit
def load_tile(
    args, state, row, col, start, offset, mask, mine, OWN: tl.constexpr, SPEC: tl.constexpr, ACC: tl.constexpr
):
    return tl.load(args[0] + start + offset, mask=mask, other=0.0).to(ACC), state


@triton.jit
def store_tile(args, state, row, col, start, offset, mask, v, SPEC: tl.constexpr, ACC: tl.constexpr):
    tl.store(args[0] + start + offset, v, mask=mask)
    return state


@triton.jit
def _add_tile(args, state, row, col, start, offset, mask, v, SPEC: tl.constexpr, ACC: tl.constexpr):
    y, residual = args
    tl.store(y + start + offset, v + tl.load(residual + start + offset, mask=mask, other=0.0).to(ACC), mask=mask)
    return state


@triton.jit(do_not_specialize=["planes"])
def _strip(
    x,
    f,
    residual,
    y,
    planes,
    height,
    width,
    out_height,
    out_width,
    channels,
    ADD: tl.constexpr,
    X: tl.constexpr,
    Y: tl.constexpr,
    FORM: tl.constexpr,
    ACC: tl.constexpr,
):
    dims = (height, width, out_height, out_width, channels)
    place, _, _ = tile_of(tl.program_id(0), planes, dims, X, Y, FORM)
    if ADD:
        fir_strip(load_tile, (x,), _add_tile, (y, residual), (), f, place, dims, X, Y, FORM, None, ACC)
    else:
        fir_strip(load_tile, (x,), store_tile, (y,), (), f, place, dims, X, Y, FORM, None, ACC)


@triton.jit
def _first(o, UP: tl.constexpr, DOWN: tl.constexpr, PAD: tl.constexpr):
    """The first tap of output o that meets an input, and that input (counted from -2^20, so as never to be negative:
    integer division rounds towards zero)."""
    q = o * DOWN - PAD + UP * 1048576
    k = (UP - q % UP) % UP
    return k, (q + k) // UP - 1048576


@triton.jit(do_not_specialize=["total"])
def _direct(
    x,
    f,
    y,
    total,
    height,
    width,
    out_height,
    out_width,
    channels,
    X: tl.constexpr,
    Y: tl.constexpr,
    FORM: tl.constexpr,
    ACC: tl.constexpr,
    TILE: tl.constexpr,
):
    """Any filter, an output pixel at a time: y in its memory's order."""
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    exists = at < total
    inner = channels if FORM[3] else 1
    c, pixel = at % inner, at // inner
    ox, oy, image = pixel % out_width, pixel // out_width % out_height, pixel // out_width // out_height
    kx, ix = _first(ox, X[0], X[1], X[2])
    ky, iy = _first(oy, Y[0], Y[1], Y[2])
    acc = tl.zeros([TILE], ACC)
    for j in range(tl.cdiv(Y[3], Y[0])):
        for i in range(tl.cdiv(X[3], X[0])):
            u, v, row, col = kx + i * X[0], ky + j * Y[0], iy + j, ix + i
            taken = exists & (u < X[3]) & (v < Y[3])
            inside = taken & (row >= 0) & (row < height) & (col >= 0) & (col < width)
            if not FORM[1]:
                u, v = X[3] - 1 - u, Y[3] - 1 - v
            if FORM[0]:
                w = tl.load(f + u, mask=taken, other=0.0).to(ACC) * tl.load(f + v, mask=taken, other=0.0).to(ACC)
            else:
                w = tl.load(f + v * X[3] + u, mask=taken, other=0.0).to(ACC)
            acc += w * tl.load(x + ((image * height + row) * width + col) * inner + c, mask=inside, other=0.0).to(ACC)
    tl.store(y + at, acc * FORM[2], mask=exists)


# -- launches ---------------------------------------------------------------------------------------------------------


def out_size(size: int, up: int, down: int, pad0: int, pad1: int, taps: int) -> int:
    return (size * up + pad0 + pad1 - taps) // down + 1


def output(x: Tensor, f: Tensor, up: Sequence[int], down: Sequence[int], padding: Sequence[int]) -> Tensor:
    """The output to fill for a dense x."""
    n, c, h, w = x.shape
    height = out_size(h, up[1], down[1], padding[2], padding[3], f.shape[0])
    return empty((n, c, height, out_size(w, up[0], down[0], padding[0], padding[1], f.shape[-1])), x)


def axis(up: int, down: int, pad0: int, taps: int, outputs: int = 1) -> tuple[int, ...]:
    """A strip's constexpr `axis` with at least `outputs` outputs at once."""
    period = up // math.gcd(up, down)
    return up, down, pad0, taps, cdiv(outputs, period) * period


def key_of(x: Tensor, f: Tensor, up: Sequence[int], down: Sequence[int]) -> str:
    """The shape class that settings are kept by."""
    layout = f"nhwc {size_class(x.shape[1])}" if is_channels_last(x) else "nchw"
    taps = "x".join(str(t) for t in f.shape)
    return f"{str(x.dtype).removeprefix('torch.')} {layout} {size_class(x.shape[3])} up{up[0]} down{down[0]} {taps}"


def plan(
    x: Tensor, f: Tensor, y: Tensor, up, down, padding, flip: bool, gain: float, settings: dict
) -> tuple[tuple[int, ...], tuple, dict]:
    """(grid, the arguments after the tensors, constants) of a kernel made of `tile_of` and `fir_strip`."""
    (n, c, h, w), (out_h, out_w) = x.shape, y.shape[2:]
    channels_last = is_channels_last(x)
    xs = axis(up[0], down[0], padding[0], f.shape[-1], settings["PX"] if channels_last else 1)
    ys = axis(up[1], down[1], padding[2], f.shape[0])
    rows = cdiv(min(settings["ROWS"], max(pow2(out_h) // 8, 4)), ys[4]) * ys[4]  # small images too fill the GPU
    groups, tile = cdiv(out_w, xs[4]), settings["BYTES"] // (x.element_size() if channels_last else 4)
    if channels_last:
        b1 = min(pow2(c), tile)
        b0 = min(pow2(groups), tile // b1)
        grid = cdiv(c, b1) * cdiv(groups, b0) * cdiv(out_h, rows) * n
    else:
        b1 = min(pow2(groups), tile)
        b0 = min(pow2(c), tile // b1)
        grid = cdiv(n * c, b0) * cdiv(groups, b1) * cdiv(out_h, rows)
    form = (f.ndim == 1, flip, gain, channels_last, b0, b1, rows, settings["AHEAD"])
    constants = {"X": xs, "Y": ys, "FORM": form, "ACC": accumulator(x.dtype)}
    return (grid,), (n * c, h, w, out_h, out_w, c), constants


def unrollable(f: Tensor, up: Sequence[int], down: Sequence[int], settings: dict) -> bool:
    """Whether one turn of a strip's loop is of a size to be unrolled."""
    x, y = axis(up[0], down[0], 0, f.shape[-1], settings["PX"]), axis(up[1], down[1], 0, f.shape[0])
    across, along = x[4] * cdiv(x[3], up[0]), y[4] * cdiv(y[3], up[1])
    steps = step(y) * across + along * x[4] if f.ndim == 1 else across * along
    return steps <= _UNROLLED and kept((f.ndim == 1,), y) * x[4] <= _KEPT


def covers(x: Tensor, y: Tensor, constants: dict) -> bool:
    """Whether the strips of a filter from x to y read every pixel of x as their own: sums can be taken there."""
    xs, ys, form = constants["X"], constants["Y"], constants["FORM"]
    across, down = cdiv(y.shape[3], xs[4]) * step(xs), cdiv(y.shape[2], form[6]) * own_rows(form, ys)
    top = first_row(form, ys)
    return (
        first(xs) <= 0
        and first(xs) + count(xs) >= step(xs)
        and top <= 0
        and top + turns(form, ys) * step(ys) >= own_rows(form, ys)
        and across >= x.shape[3]
        and down >= x.shape[2]
    )


def forward(
    x: Tensor,
    f: Tensor,
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    flip_filter: bool,
    gain: float,
    residual: Tensor | None = None,
) -> Tensor:
    """y in x's dtype and memory format, plus a `residual` of its shape where given."""
    x = dense(x)
    y = output(x, f, up, down, padding)
    if not _impl.launching() or y.numel() == 0:
        return y
    key = key_of(x, f, up, down)
    name = "upfirdn2d" if residual is None else "upfirdn2d_add"
    settings = config(name, key, x)
    f = f.contiguous()
    if unrollable(f, up, down, settings):
        grid, args, constants = plan(x, f, y, up, down, padding, flip_filter, gain, settings)
        added = x if residual is None else dense_like(residual, y)
        launch(_strip, name, key, grid, (x, f, added, y, *args), {"ADD": residual is not None} | constants, settings)
        return y
    settings = config("upfirdn2d_direct", key, x)
    constants = {
        "X": (up[0], down[0], padding[0], f.shape[-1]),
        "Y": (up[1], down[1], padding[2], f.shape[0]),
        "FORM": (f.ndim == 1, flip_filter, gain, is_channels_last(x)),
        "ACC": accumulator(x.dtype),
        "TILE": settings["TILE"],
    }
    args = (x, f, y, y.numel(), *x.shape[2:], *y.shape[2:], x.shape[1])
    launch(_direct, "upfirdn2d_direct", key, (cdiv(y.numel(), settings["TILE"]),), args, constants, settings)
    return y if residual is None else y.add_(residual)
