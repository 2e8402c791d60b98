"""upfirdn2d and its helpers under mmcv's signatures: those of mmcv 2, and mmcv 1's `kernel` and `pad` by name."""

from collections.abc import Sequence

from torch import Tensor

from gankern.interop.patches.ada import upfirdn2d as ada
from gankern.interop.patches.rosinality.upfirdn2d import upfirdn2d as of_mmcv_1

Numbers = int | Sequence[int]


def upfirdn2d(
    input: Tensor,
    filter: Tensor | None = None,
    up: Numbers = 1,
    down: Numbers = 1,
    padding: Numbers = 0,
    flip_filter: bool = False,
    gain: float = 1,
    use_custom_op: bool = True,
    *,
    kernel: Tensor | None = None,
    pad: Sequence[int] | None = None,
) -> Tensor:
    """StyleGAN2-ADA's, padding [x, y] or [x0, x1, y0, y1]; with `kernel` or `pad` rosinality's, pad (before, after) of
    both axes, and none of the options that mmcv 1 doesn't have. `use_custom_op=False` is eager PyTorch."""
    if kernel is not None or pad is not None:
        given = {"filter": kernel is not None and filter is not None, "padding": padding != 0, "gain": gain != 1}
        given |= {"flip_filter": flip_filter, "use_custom_op": not use_custom_op}
        if odd := [name for name, value in given.items() if value]:
            raise ValueError(f"{', '.join(odd)}: not with mmcv 1's kernel= or pad=")
        return of_mmcv_1(input, filter if kernel is None else kernel, up, down, (0, 0) if pad is None else pad)
    return ada.upfirdn2d(input, filter, up, down, padding, flip_filter, gain, _impl(use_custom_op))


def _impl(use_custom_op: bool) -> str:
    return "cuda" if use_custom_op else "ref"


def filter2d(
    input: Tensor,
    filter: Tensor | None,
    padding: Numbers = 0,
    flip_filter: bool = False,
    gain: float = 1,
    use_custom_op: bool = True,
) -> Tensor:
    """input filtered at its own size; `padding` comes on top."""
    return ada.filter2d(input, filter, padding, flip_filter, gain, _impl(use_custom_op))


def upsample2d(
    input: Tensor,
    filter: Tensor | None,
    up: Numbers = 2,
    padding: Numbers = 0,
    flip_filter: bool = False,
    gain: float = 1,
    use_custom_op: bool = True,
) -> Tensor:
    """input enlarged `up` times without a shift; `padding`, in pixels of the result, comes on top."""
    return ada.upsample2d(input, filter, up, padding, flip_filter, gain, _impl(use_custom_op))


def downsample2d(
    input: Tensor,
    filter: Tensor | None,
    down: Numbers = 2,
    padding: Numbers = 0,
    flip_filter: bool = False,
    gain: float = 1,
    use_custom_op: bool = True,
) -> Tensor:
    """input reduced `down` times without a shift; `padding`, in pixels of input, comes on top."""
    return ada.downsample2d(input, filter, down, padding, flip_filter, gain, _impl(use_custom_op))
