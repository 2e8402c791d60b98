"""The kernel beside cuDNN's graphs: numbers against eager PyTorch, and what it compiles to."""

import json
import os
import subprocess
import sys

import pytest
import torch
from ops_util import assert_close, rand

from gankern.ops._triton import CONFIGS, force_config

pytestmark = pytest.mark.kernels
ALPHA = 0.2


def operands(dtype, noise, size=(5, 7), channels=6):
    n, (h, w) = 3, size
    dx, saved = (rand(n, channels, h, w, seed=i, dtype=dtype, channels_last=True) for i in (6, 0))
    wide = torch.promote_types(dtype, torch.float32)
    eta = {"none": None, "const": rand(1, 1, h, w, seed=3, dtype=wide), "random": rand(n, 1, h, w, seed=3, dtype=wide)}
    style = rand(n, channels, seed=2, dtype=wide)
    matrix = rand(n, 3, channels + 2, seed=4, dtype=wide)[:, :, 1:-1]  # a part of what lies side by side
    image, scale = rand(n, 3, h, w, seed=5, dtype=dtype), rand(n, channels, seed=1, dtype=wide).abs() + 0.5
    return dx, image, saved, style, 1 / style, matrix, scale, eta[noise]


def settings(i):
    """The i-th, or small tiles that don't fit the sizes."""
    tiny = {"TILE": 64, "num_warps": 1, "WAVES": 1}
    return tiny if i < 0 else CONFIGS["chain_gradient"][i]


@pytest.mark.parametrize("noise", ["none", "const", "random"])
@pytest.mark.parametrize("what", ["dx", "rgb", "both"])
@pytest.mark.parametrize(("dtype", "i"), [(torch.float64, -1), (torch.float64, 0), (torch.bfloat16, 1)], ids=str)
def test_chain_gradient(dtype, i, what, noise):
    from gankern.ops.cudnn import kernels

    dx, image, saved, style, inverse, matrix, scale, eta = operands(dtype, noise)
    wide = scale.dtype
    y = saved.to(wide)
    e, of_style, of_rgb = torch.zeros_like(y), torch.zeros_like(scale), torch.zeros(3, *scale.shape, dtype=wide)
    if what == "rgb":
        dx = style = inverse = None
    else:
        y = y * inverse[:, :, None, None]
        e, of_style = e + style[:, :, None, None] * dx.to(wide), (y * dx.to(wide)).sum([2, 3])
    if what == "dx":
        image = matrix = None
    else:
        e = e + torch.einsum("njc,njhw->nchw", matrix, image.to(wide))
        of_rgb = torch.einsum("nchw,njhw->jnc", y, image.to(wide))
    h = torch.where(y > 0, e, ALPHA * e)
    want = [of_style, h.sum([2, 3]), (h * eta).sum([2, 3]) if eta is not None else torch.zeros_like(scale), *of_rgb]
    room = torch.full([6, 3, 9], torch.nan, dtype=wide)
    with force_config("chain_gradient", settings(i)):
        dt, sums = kernels.chain_gradient(dx, image, saved, style, inverse, matrix, scale, eta, ALPHA, room[:, :, 2:8])
    assert dt.is_contiguous(memory_format=torch.channels_last)
    half = dtype == torch.bfloat16  # whose sums are float32
    assert_close(dt, h * scale[:, :, None, None], rtol=2**-8 if half else 1e-12)
    assert_close(sums, torch.stack(want), rtol=1e-5 if half else 1e-12)
    assert room[:, :, 2:8].equal(sums)
    assert room.isnan().sum() == 6 * 3 * 3


COMPILE = """
import json, torch
from gankern.bench import compiled
from gankern.ops import _impl
from gankern.ops._triton import CONFIGS, force_config
from gankern.ops.cudnn import kernels

def call(n, both):
    y = torch.empty(n, 32, 1024, 1024, device="meta", dtype=torch.bfloat16, memory_format=torch.channels_last)
    row, matrix = torch.empty(n, 32, device="meta"), torch.empty(n, 3, 32, device="meta")
    noise, image = torch.empty(n, 1, 1024, 1024, device="meta"), torch.empty_like(y[:, :3]).contiguous()
    rows = (row, row) if both else (None, None)
    kernels.chain_gradient(y if both else None, image, y, *rows, matrix, row, noise, 0.2)

name = "chain_gradient"
for both in (True, False):
    for i, settings in enumerate(CONFIGS[name]):
        with force_config(name, settings), _impl.record() as launches:
            _impl.fake(call)(128, both)
        launch = next(a for a in launches if a.name == name)
        for arch in compiled.ARCHITECTURES if i == 0 else (90,):
            made = compiled.compile_launch(launch, arch)
            usage = compiled.resources(made.asm["cubin"])
            parameters = [p.name for p in launch.kernel.params if p.name not in launch.constants]
            huge = {p for p, a in zip(parameters, launch.args) if isinstance(a, torch.Tensor) and a.numel() > 2**31}
            print(json.dumps({
                "what": f"{name} {both} {i} sm_{arch}", "spilled": usage["stack"] + usage["local"],
                "loads": compiled.widths(made.asm["ptx"], "ld"), "stores": compiled.widths(made.asm["ptx"], "st"),
                "huge": sorted(huge), "narrow": sorted(huge & set(compiled.narrow_pointers(made.asm["ttir"]))),
            }))
"""


@pytest.fixture(scope="module")
def made():
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "GANKERN_IMPL")}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]


def test_compiled_without_spills_with_wide_accesses_and_offsets(made):
    assert len(made) > 8
    for row in made:
        assert row["spilled"] == 0, row
        assert "128" in row["loads"], row
        assert "128" in row["stores"], row
        assert row["huge"], row
        assert not row["narrow"], row
