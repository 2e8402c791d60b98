"""Latents between latents: slerp in z, cubic splines in w, mixed styles, and w that come from files."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gankern.errors import InputError

Curve = Callable[[float], Tensor]
"""t -> latents: key k at t = k."""


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """From a to b [..., D], t in [0, 1]: the direction turns at constant speed, the length changes linearly.

    Opposite vectors have no plane of their own: they turn through the axis that a has least of.
    """
    a, b = a.double(), b.double()
    length_a, length_b = (x.norm(dim=-1, keepdim=True) for x in (a, b))
    u, v = a / length_a.clamp_min(1e-30), b / length_b.clamp_min(1e-30)
    across = v - (u * v).sum(-1, keepdim=True) * u
    least = torch.nn.functional.one_hot(u.abs().argmin(-1), u.shape[-1]).to(u)
    beside = least - (u * least).sum(-1, keepdim=True) * u
    sine = across.norm(dim=-1, keepdim=True)
    angle = torch.atan2(sine, (u * v).sum(-1, keepdim=True))
    across = torch.nn.functional.normalize(torch.where(sine > 1e-9, across, beside), dim=-1, eps=1e-30)
    direction = torch.cos(t * angle) * u + torch.sin(t * angle) * across
    return (direction * torch.lerp(length_a, length_b, t)).float()


def slerp_curve(keys: Tensor, looped: bool) -> Curve:
    """Slerps from key to key [K, ..., D]; `looped`: from the last to the first as well."""

    def at(t: float) -> Tensor:
        k, u = _segment(t, len(keys), looped)
        return slerp(keys[k], keys[(k + 1) % len(keys)], u)

    return at


def spline_curve(keys: Tensor, looped: bool) -> Curve:
    """The cubic spline through keys [K, ...] at t = 0, 1, ...: periodic where `looped`, else natural.

    Its second derivatives M solve M[k-1] + 4 M[k] + M[k+1] = 6 (y[k-1] - 2 y[k] + y[k+1]), a circulant system that the
    Fourier transform makes diagonal; a natural spline is half of the odd periodic one.
    """
    y = keys.double()
    bends = y.roll(1, 0) - 2 * y + y.roll(-1, 0)
    if not looped:
        bends[0] = bends[-1] = 0
        bends = torch.cat([bends, -bends[1:-1].flip(0)])
    phase = 2 * math.pi * torch.arange(len(bends), dtype=y.dtype) / len(bends)
    symbol = (4 + 2 * torch.cos(phase)).view(-1, *[1] * (y.ndim - 1))
    m = torch.fft.ifft(torch.fft.fft(6 * bends, dim=0) / symbol, dim=0).real

    def at(t: float) -> Tensor:
        k, u = _segment(t, len(y), looped)
        a, b, after = 1 - u, u, (k + 1) % len(y)
        return (a * y[k] + b * y[after] + ((a**3 - a) * m[k] + (b**3 - b) * m[after]) / 6).float()

    return at


def _segment(t: float, keys: int, looped: bool) -> tuple[int, float]:
    k = min(int(t), keys - (1 if looped else 2))
    return k, t - k


def mix_styles(rows: Tensor, columns: Tensor, layers: Sequence[int]) -> Tensor:
    """ws [R, num_ws, w_dim] and [C, num_ws, w_dim] -> [R, C, num_ws, w_dim]: each row's with `layers` of each
    column's. Karras et al. 2019 (arXiv:1812.04948), section 3.1."""
    mixed = rows[:, None].repeat(1, len(columns), 1, 1)
    mixed[:, :, list(layers)] = columns[None][:, :, list(layers)]
    return mixed


def read_ws(path: str | Path, num_ws: int, w_dim: int) -> Tensor:
    """The array `w` of an .npz file as [N, num_ws, w_dim]; one of [N, w_dim] is used for all layers. Raises InputError
    for anything else; nothing in the file is executed."""
    expected = f"expected an array w [N, {num_ws}, {w_dim}] or [N, {w_dim}]"
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise InputError(f"--ws {path}: a single array, expected an .npz file with w")
        with file:
            if "w" not in file.files:
                raise InputError(f"--ws {path}: holds {_line(', '.join(file.files)) or 'nothing'}, {expected}")
            w = file["w"]
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"--ws {path}: no such file") from None
    except Exception as error:  # of a damaged archive numpy, zipfile and zlib raise almost anything
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"--ws {path}: can't be read as .npz ({_line(first)})") from None
    if not isinstance(w, np.ndarray):
        raise InputError(f"--ws {path}: w isn't an array, {expected}")
    if not np.issubdtype(w.dtype, np.floating):
        raise InputError(f"--ws {path}: w is of {w.dtype}, expected floating point")
    if w.shape[1:] not in ((num_ws, w_dim), (w_dim,)) or not len(w):
        raise InputError(f"--ws {path}: w has shape {list(w.shape)}, {expected}")
    with np.errstate(over="ignore"):
        ws = torch.from_numpy(w.astype(np.float32))
    if not ws.isfinite().all():
        raise InputError(f"--ws {path}: w isn't finite everywhere, as float32")
    return ws if ws.ndim == 3 else ws[:, None].repeat(1, num_ws, 1)


def _line(text: str) -> str:
    """What a file says, fit for a line."""
    return "".join(c if c.isprintable() else "?" for c in text)[:100]
