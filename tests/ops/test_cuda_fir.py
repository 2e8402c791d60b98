"""csrc's filters where the fast kernels run: every factor, number of taps and padding, many tiles, both formats."""

import pytest
import torch
from ops_util import assert_close, is_format, rand
from test_upfirdn2d import truth

from gankern.ops import setup_filter, upfirdn2d

IMPLS = ("cuda",)
FACTORS = {"same": {}, "up": {"up": 2}, "down": {"down": 2}}
FORMATS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
SIZES = {"small": (2, 6, 5, 4), "wide": (1, 2, 11, 300), "tall": (1, 4, 97, 9), "deep": (2, 70, 6, 8)}


def taps_of(n):
    return setup_filter([1 + (k * 7) % 5 for k in range(n)])


@FORMATS
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("factor", FACTORS)
def test_tiles_meet(factor, size, channels_last):
    for n, padding in ((4, [2, 1, 1, 2]), (12, [5, 6, 6, 5]), (7, [3, 3, 4, 2])):
        x, f = rand(*SIZES[size], channels_last=channels_last), taps_of(n)
        args = FACTORS[factor] | {"padding": [p + 3 for p in padding] if size == "small" else padding, "gain": 1.5}
        y = upfirdn2d(x, f, **args)
        assert is_format(y, channels_last)
        assert_close(y, truth(x, f, **args), 1e-12, f"{n} taps")


@FORMATS
@pytest.mark.parametrize("factor", FACTORS)
def test_any_padding(factor, channels_last):
    """Even and odd, cropping into the image and past it; odd widths, whose rows aren't aligned in NCHW."""
    for i in range(36):
        n, crop = 1 + i % 12, i % 3 == 2
        x, f = rand(1, 4, 9 + i % 2, 11 + i % 4, channels_last=channels_last, seed=i), taps_of(n)
        before = [-2 + i % 4, -3 + i % 5] if crop else [i % 6, 1 + i % 5]
        padding = [before[0], n - before[0] + 1, before[1], n - before[1] + i % 2]
        args = FACTORS[factor] | {"padding": padding, "flip_filter": i % 4 < 2, "gain": -2}
        assert_close(upfirdn2d(x, f, **args), truth(x, f, **args), 1e-12, str((n, padding, tuple(x.shape))))


@FORMATS
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_vectors_of_every_type(dtype, factor, channels_last):
    """Widths and channels in whole vectors and not; rows that begin off a 16-byte boundary, and a view that does."""
    for n, width, skip in ((4, 32, 0), (4, 33, 0), (12, 70, 0), (8, 24, 1)):
        size = (2, 16, 7, width)
        x = rand(2 * 16 * 7 * width + 1, dtype=dtype)[skip : skip + 2 * 16 * 7 * width]
        x = x.view(2, 7, width, 16).permute(0, 3, 1, 2) if channels_last else x.view(size)
        f = taps_of(n)
        args = FACTORS[factor] | {"padding": [n // 2, n // 2 + 1, n - 1, 1]}
        want = truth(x.double(), f.double(), **args)
        y = upfirdn2d(x, f, **args)
        assert y.dtype == dtype
        assert_close(y, want, 4 * torch.finfo(dtype).eps, f"{n} taps, width {width}")
