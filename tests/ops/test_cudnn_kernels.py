"""The two kernels beside cuDNN's graphs: numbers against eager PyTorch, and what they compile to."""

import json
import os
import subprocess
import sys

import pytest
import torch
from ops_util import assert_close, rand

from gankern.ops._triton import CONFIGS, force_config

pytestmark = pytest.mark.kernels
NAMES = ("rgb_gradient", "gradient_sums")
ALPHA = 0.2


def operands(dtype, noise, size=(5, 7), channels=6):
    n, (h, w) = 3, size
    y = rand(n, channels, h, w, dtype=dtype, channels_last=True)
    wide = torch.promote_types(dtype, torch.float32)
    scale, inverse = (rand(n, channels, seed=i, dtype=wide).abs() + 0.5 for i in (1, 2))
    eta = {"none": None, "const": rand(1, 1, h, w, seed=3, dtype=wide), "random": rand(n, 1, h, w, seed=3, dtype=wide)}
    matrix, image = rand(n, 3, channels, seed=4, dtype=wide), rand(n, 3, h, w, seed=5, dtype=dtype)
    return y, scale, inverse, eta[noise], matrix, image


def settings(name, i):
    """The i-th, or small tiles that don't fit the sizes; a third only where there is one."""
    tiny = {"TILE": 64, "num_warps": 1, "WAVES": 1}
    return tiny if i >= len(CONFIGS[name]) else CONFIGS[name][i]


@pytest.mark.parametrize("noise", ["none", "const", "random"])
@pytest.mark.parametrize("i", range(3))
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_rgb_gradient(dtype, i, noise):
    from gankern.ops.cudnn import kernels

    y, scale, _, eta, matrix, image = operands(dtype, noise)
    with force_config("rgb_gradient", settings("rgb_gradient", i)):
        dt, sums = kernels.rgb_gradient(image, matrix, y, scale, eta, ALPHA)
    wide = scale.dtype
    e = torch.einsum("njc,njhw->nchw", matrix, image.to(wide))
    h = torch.where(y > 0, e, ALPHA * e)
    want = [h.sum([2, 3]), (h * eta).sum([2, 3]) if eta is not None else torch.zeros_like(scale)]
    want += torch.einsum("nchw,njhw->jnc", y.to(wide), image.to(wide)).unbind(0)
    assert dt.is_contiguous(memory_format=torch.channels_last)
    half = dtype == torch.bfloat16  # whose sums are float32
    assert_close(dt, h * scale[:, :, None, None], rtol=2**-8 if half else 1e-12)
    assert_close(sums, torch.stack(want), rtol=1e-5 if half else 1e-12)


@pytest.mark.parametrize("noise", ["none", "const", "random"])
@pytest.mark.parametrize("i", range(3))
def test_gradient_sums(i, noise):
    from gankern.ops.cudnn import kernels

    saved, scale, inverse, eta, *_ = operands(torch.float64, noise)
    h = rand(*saved.shape, seed=7, dtype=torch.float64, channels_last=True)
    with force_config("gradient_sums", settings("gradient_sums", i)):
        dt = h * scale[:, :, None, None]
        sums = kernels.gradient_sums(dt, saved, inverse, scale, eta, ALPHA)
    y = saved * inverse[:, :, None, None]
    e = torch.where(y > 0, h, h / ALPHA)
    of_noise = (h * eta).sum([2, 3]) if eta is not None else torch.zeros_like(scale)
    assert_close(sums, torch.stack([h.sum([2, 3]), of_noise, (e * y).sum([2, 3])]))


COMPILE = """
import json, torch
from gankern.bench import compiled
from gankern.ops import _impl
from gankern.ops._triton import CONFIGS, force_config
from gankern.ops.cudnn import kernels

def call(n):
    y = torch.empty(n, 32, 1024, 1024, device="meta", dtype=torch.bfloat16, memory_format=torch.channels_last)
    row = torch.empty(n, 32, device="meta")
    noise, image = torch.empty(n, 1, 1024, 1024, device="meta"), torch.empty_like(y[:, :3]).contiguous()
    kernels.rgb_gradient(image, torch.empty(n, 3, 32, device="meta"), y, row, noise, 0.2)
    kernels.gradient_sums(y, y, row, row, noise, 0.2)

for name in ("rgb_gradient", "gradient_sums"):
    for i, settings in enumerate(CONFIGS[name]):
        with force_config(name, settings), _impl.record() as launches:
            _impl.fake(call)(128)
        launch = next(a for a in launches if a.name == name)
        for arch in compiled.ARCHITECTURES if i == 0 else (90,):
            made = compiled.compile_launch(launch, arch)
            usage = compiled.resources(made.asm["cubin"])
            parameters = [p.name for p in launch.kernel.params if p.name not in launch.constants]
            huge = {p for p, a in zip(parameters, launch.args) if isinstance(a, torch.Tensor) and a.numel() > 2**31}
            print(json.dumps({
                "what": f"{name} {i} sm_{arch}", "spilled": usage["stack"] + usage["local"],
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
    assert {row["what"].split()[0] for row in made} == set(NAMES)
    assert len(made) > len(NAMES) * 3
    for row in made:
        assert row["spilled"] == 0, row
        assert "128" in row["loads"], row
        assert "gradient_sums" in row["what"] or "128" in row["stores"], row
        assert row["huge"], row
        assert not row["narrow"], row
