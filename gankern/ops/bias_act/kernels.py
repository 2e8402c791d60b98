"""Triton kernels of bias_act: one pass forward, one backward with the bias gradient in the same read, one for second
order.

Every tensor is seen as a matrix [rows, cols] of its memory: channels_last (and the last dim of anything) has the
channels as columns, NCHW has one row a sample and channel. Bytes at the floor: x and y forward; dy, y and dx backward.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gankern.ops import _impl
from gankern.ops._activations import activate, clamped, slope, slope_grad, unclamped
from gankern.ops._layout import cdiv, dense, dense_like, matrix
from gankern.ops._settings import pow2, size_class
from gankern.ops._triton import CONFIGS, accumulator, as_held, config, launch, programs

CONFIGS["bias_act_forward"] = (
    {"TILE": 4096, "num_warps": 4},
    {"TILE": 2048, "num_warps": 4},
    {"TILE": 8192, "num_warps": 8},
)
CONFIGS["bias_act_backward"] = (
    {"TILE": 4096, "num_warps": 8, "WAVES": 8},
    {"TILE": 2048, "num_warps": 4, "WAVES": 8},
    {"TILE": 4096, "num_warps": 8, "WAVES": 4},
    {"TILE": 8192, "num_warps": 8, "WAVES": 4},
)
CONFIGS["bias_act_second"] = (
    {"TILE": 2048, "num_warps": 4, "WAVES": 8},
    {"TILE": 4096, "num_warps": 8, "WAVES": 4},
)


@triton.jit
def _tile(first_row, first_col, rows, cols, BM: tl.constexpr, BK: tl.constexpr):
    """Row and column numbers of a tile, its offsets (64 bits), and what of it exists."""
    r = first_row + tl.arange(0, BM).to(tl.int64)
    c = first_col + tl.arange(0, BK)
    return r, c, r[:, None] * cols + c[None, :], (r < rows)[:, None] & (c < cols)[None, :]


@triton.jit
def _bias_of(bias, r, c, rows, cols, channels, BY_ROW: tl.constexpr):
    """The bias that a tile adds, broadcastable to it."""
    if BY_ROW:
        return tl.load(bias + r % channels, mask=r < rows, other=0.0)[:, None]
    else:
        return tl.load(bias + c, mask=c < cols, other=0.0)[None, :]


@triton.jit(do_not_specialize=["rows"])
def _forward(
    x,
    bias,
    residual,
    y,
    rows,
    cols,
    channels,
    ACT: tl.constexpr,
    ALPHA: tl.constexpr,
    GAIN: tl.constexpr,
    CLAMP: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BY_ROW: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    across = tl.cdiv(cols, BK)
    pid = tl.program_id(0)
    r, c, offsets, mask = _tile((pid // across).to(tl.int64) * BM, (pid % across) * BK, rows, cols, BM, BK)
    u = tl.load(x + offsets, mask=mask, other=0.0).to(ACC)
    if BIAS:
        u += _bias_of(bias, r, c, rows, cols, channels, BY_ROW).to(ACC)
    v = clamped(activate(u, ACT, ALPHA) * GAIN, CLAMP)
    if RESIDUAL:
        v += tl.load(residual + offsets, mask=mask, other=0.0).to(ACC)
    tl.store(y + offsets, v, mask=mask)


@triton.jit
def _argument(ref, bias, offsets, mask, r, c, rows, cols, channels, SPEC: tl.constexpr, ACC: tl.constexpr):
    """(what the slope is written in, where the clamp lets the gradient through), from the saved x or y. SPEC: act,
    alpha, gain, clamp, whether there is a bias, whether it is the row's, whether x is what was saved."""
    ACT: tl.constexpr = SPEC[0]
    GAIN: tl.constexpr = SPEC[2]
    a = tl.load(ref + offsets, mask=mask, other=0.0).to(ACC)
    if SPEC[6]:
        if SPEC[4]:
            a += _bias_of(bias, r, c, rows, cols, channels, SPEC[5]).to(ACC)
        activated = activate(a, ACT, SPEC[1])
        return a if ACT == "swish" else activated, unclamped(activated * GAIN, SPEC[3])
    else:
        return a / GAIN if GAIN != 0 else a, unclamped(a, SPEC[3])


@triton.jit
def _store_sums(partial, total, j, i, many, rows, cols, BY_ROW: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr):
    """Program (j, i)'s sums over the columns (BY_ROW) or rows that it saw."""
    if BY_ROW:
        r = j.to(tl.int64) * BM + tl.arange(0, BM)
        tl.store(partial + r * many + i, tl.sum(total, 1), mask=r < rows)
    else:
        c = j * BK + tl.arange(0, BK)
        tl.store(partial + i * cols + c, tl.sum(total, 0), mask=c < cols)


@triton.jit(do_not_specialize=["rows"])
def _backward(
    dy,
    ddb,
    ref,
    bias,
    dx,
    partial,
    rows,
    cols,
    channels,
    SPEC: tl.constexpr,
    REF: tl.constexpr,
    DDB: tl.constexpr,
    BIAS_GRAD: tl.constexpr,
    BY_ROW: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """dx = (dy + ddb) · slope, and each program's part of Σ dx over the rows (BY_ROW: over the columns) that it saw.

    Programs split the dimension that is summed: program (i, j) takes every tile i + k·programs of the column (row)
    block j.
    """
    j, i, many = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    total = tl.zeros([BM, BK], ACC)
    tiles = tl.cdiv(cols, BK) if BY_ROW else tl.cdiv(rows, BM)
    for tile in range(i, tiles, many):
        if BY_ROW:
            r, c, offsets, mask = _tile(j.to(tl.int64) * BM, tile * BK, rows, cols, BM, BK)
        else:
            r, c, offsets, mask = _tile(tl.cast(tile, tl.int64) * BM, j * BK, rows, cols, BM, BK)
        g = tl.load(dy + offsets, mask=mask, other=0.0).to(ACC)
        if DDB:
            g += _bias_of(ddb, r, c, rows, cols, channels, BY_ROW).to(ACC)
        if REF:
            a, passes = _argument(ref, bias, offsets, mask, r, c, rows, cols, channels, SPEC, ACC)
            g = g * slope(a, tl.constexpr(SPEC[0]), SPEC[1]) * SPEC[2]
            g = tl.where(passes, g, 0.0)
        else:
            g = g * SPEC[2]
        tl.store(dx + offsets, g, mask=mask)
        if BIAS_GRAD:
            total += tl.where(mask, g, 0.0)
    if BIAS_GRAD:
        _store_sums(partial, total, j, i, many, rows, cols, BY_ROW, BM, BK)


@triton.jit(do_not_specialize=["rows"])
def _second(
    ddx,
    ddb,
    dy,
    ref,
    bias,
    grad_dy,
    grad_ref,
    partial,
    rows,
    cols,
    channels,
    SPEC: tl.constexpr,
    DDB: tl.constexpr,
    BIAS_GRAD: tl.constexpr,
    BY_ROW: tl.constexpr,
    ACC: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """grad_dy = v · slope and grad_ref = v · dy · slope', with v = ddx + ddb; Σ grad_ref as `_backward` sums dx."""
    ACT: tl.constexpr = SPEC[0]  # Triton 3.6 takes no bare string as a function's argument
    j, i, many = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    total = tl.zeros([BM, BK], ACC)
    tiles = tl.cdiv(cols, BK) if BY_ROW else tl.cdiv(rows, BM)
    for tile in range(i, tiles, many):
        if BY_ROW:
            r, c, offsets, mask = _tile(j.to(tl.int64) * BM, tile * BK, rows, cols, BM, BK)
        else:
            r, c, offsets, mask = _tile(tl.cast(tile, tl.int64) * BM, j * BK, rows, cols, BM, BK)
        v = tl.load(ddx + offsets, mask=mask, other=0.0).to(ACC)
        if DDB:
            v += _bias_of(ddb, r, c, rows, cols, channels, BY_ROW).to(ACC)
        g = tl.load(dy + offsets, mask=mask, other=0.0).to(ACC)
        a, passes = _argument(ref, bias, offsets, mask, r, c, rows, cols, channels, SPEC, ACC)
        t = v * g * slope_grad(a, ACT)
        # with respect to y = gain · a the gain of the slope and the 1/gain of a cancel; x has them, and a's own slope
        t = t * SPEC[2] if SPEC[6] or SPEC[2] == 0 else t
        t = t * slope(a, ACT, SPEC[1]) if SPEC[6] and ACT != "swish" else t
        t = tl.where(passes & mask, t, 0.0)
        tl.store(grad_dy + offsets, tl.where(passes, v * slope(a, ACT, SPEC[1]) * SPEC[2], 0.0), mask=mask)
        tl.store(grad_ref + offsets, t, mask=mask)
        if BIAS_GRAD:
            total += t
    if BIAS_GRAD:
        _store_sums(partial, total, j, i, many, rows, cols, BY_ROW, BM, BK)


# -- launches ---------------------------------------------------------------------------------------------------------


def _blocks(cols: int, tile: int) -> tuple[int, int]:
    bk = min(pow2(cols), tile)
    return max(tile // bk, 1), bk


def _key(x: Tensor, cols: int, by_row: bool) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {'rows' if by_row else 'cols'} {size_class(cols)}"


def _constants(x: Tensor, by_row: bool, bm: int, bk: int) -> dict:
    return {"BY_ROW": by_row, "ACC": accumulator(x.dtype), "BM": bm, "BK": bk}


def _programs(x, rows: int, cols: int, bm: int, bk: int, by_row: bool, settings: dict | None) -> tuple[int, int]:
    """The grid: (blocks across the summed dimension, programs along it). With settings: as many programs as fill the
    GPU, each over many tiles, so that few partial sums are left."""
    along, across = cdiv(rows, bm), cdiv(cols, bk)
    along, across = (across, along) if by_row else (along, across)
    many = min(along, 65535)  # the grid's limit in its second dimension
    if settings is not None:
        many = max(1, min(many, cdiv(programs(x, settings["WAVES"]), max(across, 1))))
    return across, many


def _partial(x: Tensor, rows: int, cols: int, many: int, by_row: bool) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.empty([rows, many] if by_row else [many, cols], dtype=dtype, device=x.device)


def _summed(partial: Tensor, channels: int, by_row: bool, dtype: torch.dtype) -> Tensor:
    """The second, small launch: [N·C, programs] or [programs, C] to [C]."""
    if by_row:
        return partial.reshape(partial.shape[0] // channels, channels, partial.shape[1]).sum([0, 2]).to(dtype)
    return partial.sum(0).to(dtype)


def forward(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
) -> Tensor:
    """y in x's dtype and memory format."""
    x = dense(x)
    residual = None if residual is None else dense_like(residual, x)
    y = torch.empty_like(x)
    if not _impl.launching():
        return y
    rows, cols, channels, by_row = matrix(x, dim)
    key = _key(x, cols, by_row)
    settings = config("bias_act_forward", key, x)
    bm, bk = _blocks(cols, settings["TILE"])
    constants = {"ACT": act, "ALPHA": alpha, "GAIN": gain, "CLAMP": as_held(clamp, x.dtype), "BIAS": bias is not None}
    constants |= _constants(x, by_row, bm, bk)
    constants["RESIDUAL"] = residual is not None
    args = (x, x if bias is None else bias.contiguous(), x if residual is None else residual, y, rows, cols, channels)
    grid = (cdiv(rows, bm) * cdiv(cols, bk),)
    launch(_forward, "bias_act_forward", key, grid, args, constants, settings)
    return y


def backward(
    dy: Tensor,
    x: Tensor | None,
    bias: Tensor | None,
    y: Tensor | None,
    bias_grad: bool,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
    ddb: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(dx, db); db is empty unless `bias_grad`. `ddb` is added to dy along `dim` in the same read."""
    ref = x if y is None else y
    ref = None if ref is None else dense(ref)
    dy = dense(dy) if ref is None else dense_like(dy, ref)
    dx = torch.empty_like(dy)
    db = dy.new_empty(dy.shape[dim] if bias_grad else 0)
    if not _impl.launching():
        return dx, db
    rows, cols, channels, by_row = matrix(dy, dim)
    key = _key(dy, cols, by_row)
    settings = config("bias_act_backward", key, dy)
    bm, bk = _blocks(cols, settings["TILE"])
    across, many = _programs(dy, rows, cols, bm, bk, by_row, settings if bias_grad else None)
    partial = db if not bias_grad else _partial(dy, rows, cols, many, by_row)
    constants = {
        "SPEC": (act, alpha, gain, as_held(clamp, dy.dtype), bias is not None, by_row, y is None),
        "REF": ref is not None,
    }
    constants |= {"DDB": ddb is not None, "BIAS_GRAD": bias_grad} | _constants(dy, by_row, bm, bk)
    args = (dy, dy if ddb is None else ddb.contiguous(), dy if ref is None else ref)
    args += (dy if bias is None else bias.contiguous(), dx, partial, rows, cols, channels)
    launch(_backward, "bias_act_backward", key, (across, many), args, constants, settings)
    return dx, _summed(partial, channels, by_row, dy.dtype) if bias_grad else db


def second(
    ddx: Tensor,
    ddb: Tensor | None,
    dy: Tensor,
    x: Tensor | None,
    bias: Tensor | None,
    y: Tensor | None,
    dim: int,
    act: str,
    alpha: float,
    gain: float,
    clamp: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of <dx, ddx> + <db, ddb> with respect to dy, x, bias and y, for an activation whose slope changes;
    empty tensors for those that are zero."""
    none = dy.new_empty(0)
    ref = dense(x if y is None else y)
    ddx, dy = dense_like(ddx, ref), dense_like(dy, ref)
    grad_dy, grad_ref = torch.empty_like(ref), torch.empty_like(ref)
    bias_grad = y is None and bias is not None
    grad_bias = dy.new_empty(dy.shape[dim] if bias_grad else 0)
    if _impl.launching():
        rows, cols, channels, by_row = matrix(ref, dim)
        key = _key(ref, cols, by_row)
        settings = config("bias_act_second", key, ref)
        bm, bk = _blocks(cols, settings["TILE"])
        across, many = _programs(ref, rows, cols, bm, bk, by_row, settings if bias_grad else None)
        partial = grad_bias if not bias_grad else _partial(ref, rows, cols, many, by_row)
        constants = {"SPEC": (act, alpha, gain, as_held(clamp, dy.dtype), bias is not None, by_row, y is None)}
        constants |= {"DDB": ddb is not None, "BIAS_GRAD": bias_grad} | _constants(ref, by_row, bm, bk)
        args = (ddx, ref if ddb is None else ddb.contiguous(), dy, ref, ref if bias is None else bias.contiguous())
        args += (grad_dy, grad_ref, partial, rows, cols, channels)
        launch(_second, "bias_act_second", key, (across, many), args, constants, settings)
        grad_bias = _summed(partial, channels, by_row, dy.dtype) if bias_grad else grad_bias
    if y is None:
        return grad_dy, grad_ref, grad_bias, none
    return grad_dy, none, grad_bias, grad_ref
