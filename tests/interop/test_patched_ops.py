"""Every patched operator through its patched names: golden numbers, and plain torch spelled out, to second order."""

import importlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from gankern.interop import patch_stylegan_ops

TREE = str(Path(__file__).parent / "stand_ins" / "ada")
ADA = ("bias_act", "conv2d_gradfix", "conv2d_resample", "filtered_lrelu", "fma", "grid_sample_gradfix", "upfirdn2d")


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """The patched modules: `bias_act`, ... of StyleGAN2-ADA's package, and the packages `op` and `mmcv`."""
    other = tmp_path_factory.mktemp("tree")
    (other / "mmcv").mkdir()
    (other / "mmcv" / "ops").mkdir()
    before = list(sys.path)
    sys.path[:0] = [TREE, str(other)]
    with patch_stylegan_ops("torch_utils.ops", "op", "mmcv.ops"):
        found = {name: importlib.import_module(f"torch_utils.ops.{name}") for name in ADA}
        packages = {"op": importlib.import_module("op"), "mmcv": importlib.import_module("mmcv.ops")}
        importlib.import_module("op.conv2d_gradfix")
        yield SimpleNamespace(**found, **packages)
    sys.path[:] = before
    for name in [name for name in sys.modules if name.split(".")[0] in ("torch_utils", "mmcv")]:
        del sys.modules[name]


def rand(*shape, seed=0, dtype=torch.float64, grad=True):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad)


def close(got, want, rtol=1e-10):
    torch.testing.assert_close(got, torch.as_tensor(want), rtol=rtol, atol=rtol)


def same(ours, truth, *inputs):
    """Value, first and second order agree."""
    results = []
    for fn in (ours, truth):
        y = fn(*inputs)
        first = torch.autograd.grad(y, inputs, rand(*y.shape, seed=9), create_graph=True)
        dot = sum((g * rand(*g.shape, seed=10 + i)).sum() for i, g in enumerate(first))
        wanted = dot.requires_grad
        second = torch.autograd.grad(dot, inputs, allow_unused=True) if wanted else [None] * len(inputs)
        zeros = [torch.zeros_like(t) if g is None else g for g, t in zip(second, inputs, strict=True)]
        results.append([y, *first, *zeros])
    for got, want in zip(*results, strict=True):
        close(got, want)


def spelled_fir(x, f, up=1, down=1, padding=(0, 0, 0, 0), flip=False, gain=1.0):
    """upfirdn2d by the letter, of positive paddings."""
    n, c, h, w = x.shape
    z = x.new_zeros(n, c, h * up, w * up)
    z[:, :, ::up, ::up] = x
    f = torch.ones(1, 1) if f is None else torch.outer(f, f) if f.ndim == 1 else f
    f = (f if flip else f.flip(0, 1)).to(x.dtype) * gain
    return F.conv2d(F.pad(z, padding), f.expand(c, 1, *f.shape), groups=c)[:, :, ::down, ::down]


def cases(golden, golden_json, op):
    arrays = golden("ops")
    for case in golden_json("ops"):
        if case["op"] == op:
            start = len(case["name"]) + 1
            yield case, {k[start:]: torch.as_tensor(v) for k, v in arrays.items() if k.startswith(f"{case['name']}/")}


def test_golden_bias_act(names, golden, golden_json):
    found = list(cases(golden, golden_json, "bias_act"))
    assert len(found) == 36
    for case, a in found:
        args = [case[k] for k in ("dim", "act", "alpha", "gain", "clamp")]
        for fn in (names.bias_act.bias_act, names.mmcv.bias_act):
            x, b, dy = (a[k].clone().requires_grad_() for k in ("x", "b", "dy"))
            y = fn(x, b, *args)
            dx, db = torch.autograd.grad(y, [x, b], dy, create_graph=True)
            second = torch.autograd.grad(dx, [dy, x], a["ddx"], allow_unused=True)
            grad_dy, grad_x = (torch.zeros_like(x) if g is None else g for g in second)
            for got, key in ((y, "y"), (dx, "dx"), (db, "db"), (grad_dy, "grad_dy"), (grad_x, "grad_x")):
                close(got, a[key], 1e-12)
        close(names.bias_act.bias_act(a["x"], a["b"], *args, impl="ref"), a["y"], 1e-12)


def test_golden_upfirdn2d(names, golden, golden_json):
    found = list(cases(golden, golden_json, "upfirdn2d"))
    assert len(found) == 6
    for case, a in found:
        args = [case[k] for k in ("up", "down", "padding", "flip_filter", "gain")]
        f = names.upfirdn2d.setup_filter(case["taps"], separable=False)
        ada, mmcv = names.upfirdn2d.upfirdn2d, names.mmcv.upfirdn2d
        calls = [lambda x, fn=fn, f=f, args=args: fn(x, f, *args) for fn in (ada, mmcv)]
        # rosinality's and mmcv 1's have the gain and the flip in the kernel
        kernel = (f.flip(0, 1) if case["flip_filter"] else f) * case["gain"]
        calls.append(lambda x, k=kernel, args=args: names.op.upfirdn2d(x, k, args[0], args[1], args[2]))
        calls.append(lambda x, k=kernel, args=args, mmcv=mmcv: mmcv(x, k, args[0], args[1], pad=args[2]))
        for call in calls:
            x = a["x"].clone().requires_grad_()
            y = call(x)
            close(y, a["y"], 1e-6 if call in calls[2:] else 1e-12)  # a float32 kernel times 1.5 is rounded
            close(torch.autograd.grad(y, x, a["dy"])[0], a["dx"], 1e-6 if call in calls[2:] else 1e-12)


@pytest.mark.parametrize("odd", ["padding=1", "flip_filter=True", "gain=4", "use_custom_op=False", "filter=1"])
def test_options_that_mmcv_1_does_not_have(odd, names):
    name, _, value = odd.partition("=")
    k, given = torch.ones(2, 2), {name: int(value) if value.isdigit() else value == "True"}
    for pad in ({}, {"pad": (1, 0)}):
        with pytest.raises(ValueError, match=f"^{name}: not with mmcv 1's kernel= or pad="):
            names.mmcv.upfirdn2d(rand(1, 1, 4, 4), kernel=k, **pad, **given)


def test_arguments_of_bias_act(names):
    bias_act = names.bias_act.bias_act
    x, b = rand(2, 3, 4, grad=False), rand(3, seed=1, grad=False)
    close(bias_act(x, b, act="lrelu", clamp=-1), F.leaky_relu(x + b[:, None], 0.2) * math.sqrt(2))
    close(bias_act(x.half(), b), (x.half() + b.half()[:, None]), 2e-3)
    with pytest.raises(ValueError, match="impl='triton', expected 'cuda' or 'ref'"):
        bias_act(x, impl="triton")


def test_activation_funcs(names):
    funcs, x = names.bias_act.activation_funcs, rand(5, grad=False)
    assert list(funcs) == ["linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish"]
    assert [spec.cuda_idx for spec in funcs.values()] == list(range(1, 10))
    assert [spec.has_2nd_grad for spec in funcs.values()] == [False] * 3 + [True] * 6
    assert [spec.ref for spec in funcs.values()] == ["", *["y"] * 7, "x"]
    assert funcs["lrelu"].def_alpha == funcs["lrelu"]["def_alpha"] == 0.2
    assert funcs["swish"].def_gain == funcs["relu"]["def_gain"] == math.sqrt(2)
    close(funcs["lrelu"].func(x, alpha=0.1, other=1), F.leaky_relu(x, 0.1))
    close(funcs["swish"]["func"](x), F.silu(x))
    with pytest.raises(AttributeError):
        funcs["swish"].nothing  # noqa: B018


def test_filters(names):
    m = names.upfirdn2d
    assert m.setup_filter([1, 3, 3, 1]).shape == (4, 4)
    assert m.setup_filter([1] * 12).shape == (12,)
    assert m.setup_filter(None).tolist() == [[1.0]]
    close(m.setup_filter([1.0, 2, 1], gain=4).sum(), 4.0, 1e-6)
    close(m.setup_filter([1.0, 2, 1], gain=4, separable=True).sum(), 2.0, 1e-6)
    close(m.setup_filter([1.0, 2, 5], flip_filter=True, separable=True), torch.tensor([5, 2, 1]) / 8, 1e-6)
    assert m.setup_filter([2.0, 2], normalize=False).sum() == 16
    assert m._get_filter_size(None) == (1, 1)
    assert m._get_filter_size(torch.zeros(2, 5)) == (5, 2)
    assert m._parse_padding([1, 2]) == (1, 1, 2, 2)
    assert m._parse_scaling(3) == (3, 3)


def test_resampling_helpers(names):
    """Sizes are kept or scaled, a constant stays one inside, and mmcv's are the same."""
    f, x = names.upfirdn2d.setup_filter([1, 3, 3, 1]), torch.ones(1, 2, 8, 6, dtype=torch.float64)
    for helper, factor in (("filter2d", 1), ("upsample2d", 2), ("downsample2d", 0.5)):
        y = getattr(names.upfirdn2d, helper)(x, f)
        assert y.shape == (1, 2, 8 * factor, 6 * factor)
        inner = y[:, :, 1:-1, 1:-1] if factor < 1 else y[:, :, 2:-2, 2:-2]
        close(inner, torch.ones_like(inner))
        close(getattr(names.mmcv, helper)(x, f), y)
        more = getattr(names.upfirdn2d, helper)(x, f, padding=2, gain=3)
        assert more.shape[2] == 8 * factor + (2 if factor == 0.5 else 4)
    wide = names.upfirdn2d.upsample2d(x, f, up=[2, 1])
    assert wide.shape == (1, 2, 8, 12)
    close(wide[:, :, 2:-2, 2:-2], torch.ones(1, 2, 4, 8, dtype=torch.float64))
    close(names.op.upfirdn2d(x, f.half(), pad=(2, 1)), names.upfirdn2d.upfirdn2d(x, f, padding=[2, 1, 2, 1]))


def spelled_resample(x, w, f, up, down, padding, groups, flip_weight, flip_filter):
    fx, fy = (1, 1) if f is None else (f.shape[-1], f.shape[0])
    p = [padding] * 4 if isinstance(padding, int) else list(padding)
    if up > 1:
        own = (fx + up - 1) // 2, (fx - up) // 2, (fy + up - 1) // 2, (fy - up) // 2
        p = [a + b for a, b in zip(p, own, strict=True)]
    if down > 1:
        own = (fx - down + 1) // 2, (fx - down) // 2, (fy - down + 1) // 2, (fy - down) // 2
        p = [a + b for a, b in zip(p, own, strict=True)]
    x = spelled_fir(x, f if up > 1 else None, up, 1, p, flip_filter, up**2)
    x = F.conv2d(x, w if flip_weight else w.flip(2, 3), groups=groups)
    return spelled_fir(x, f if down > 1 else None, 1, down, flip=flip_filter)


@pytest.mark.parametrize("flip", [True, False], ids=["correlate", "convolve"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (3, 2)])
@pytest.mark.parametrize(("size", "padding"), [((3, 3), 1), ((1, 1), 0), ((3, 2), [2, 0, 1, 3])], ids=str)
def test_conv2d_resample(names, size, padding, up, down, groups, flip):
    f = torch.tensor([[1.0, 2, 3, 0, 1], [0, 1, 4, 2, 2]]) / 16  # [2, 5], of no symmetry
    x, w = rand(2, 4, 5, 6), rand(6, 4 // groups, *size, seed=1)
    args = (f, up, down, padding, groups, flip, not flip)
    same(
        lambda x, w: names.conv2d_resample.conv2d_resample(x, w, *args),
        lambda x, w: spelled_resample(x, w, *args),
        x,
        w,
    )


def test_conv2d_resample_without_a_filter(names):
    x, w = rand(2, 4, 5, 6), rand(6, 4, 3, 3, seed=1)
    close(names.conv2d_resample.conv2d_resample(x, w, padding=1), F.conv2d(x, w, padding=1))
    args = (None, 2, 1, 1, 1, True, False)
    close(names.conv2d_resample.conv2d_resample(x, w, up=2, padding=1), spelled_resample(x, w, *args))


CONVS = [
    {"stride": 2, "padding": 1},
    {"stride": (2, 2), "padding": [1, 1], "groups": 2},
    {"stride": (2, 1), "padding": (0, 1)},
    {"dilation": 2, "groups": 2},
]


@pytest.mark.parametrize("args", [*CONVS, {"padding": "same"}], ids=str)
def test_conv2d(names, args):
    x, w, b = rand(2, 4, 7, 6), rand(6, 4 // args.get("groups", 1), 3, 3, seed=1), rand(6, seed=2)
    for fn in (names.conv2d_gradfix.conv2d, names.op.conv2d_gradfix.conv2d, names.mmcv.conv2d):
        same(lambda x, w, b: fn(x, w, b, **args), lambda x, w, b: F.conv2d(x, w, b, **args), x, w, b)  # noqa: B023
        assert fn(*(t.to("meta") for t in (x, w, b)), **args).shape == F.conv2d(x, w, b, **args).shape


@pytest.mark.parametrize("args", [*CONVS, {"stride": 2, "output_padding": 1}], ids=str)
def test_conv_transpose2d(names, args):
    x, w, b = rand(2, 4, 5, 6), rand(4, 6 // args.get("groups", 1), 3, 3, seed=1), rand(6, seed=2)
    ours = names.conv2d_gradfix.conv_transpose2d
    same(lambda x, w, b: ours(x, w, b, **args), lambda x, w, b: F.conv_transpose2d(x, w, b, **args), x, w, b)


def test_switches_of_conv2d_gradfix(names, monkeypatch):
    m, (x, w) = names.conv2d_gradfix, (rand(2, 4, 5, 5), rand(6, 4, 3, 3))
    assert "gankern" in m.conv2d(x, w).grad_fn.name()
    with m.no_weight_gradients():
        assert m.weight_gradients_disabled
        with m.no_weight_gradients(disable=False):
            assert m.weight_gradients_disabled
        got = torch.autograd.grad(m.conv2d(x, w).sum(), [x, w], allow_unused=True)
    assert not m.weight_gradients_disabled
    assert got[0] is not None
    assert got[1] is None
    with m.no_weight_gradients(disable=False):
        assert torch.autograd.grad(m.conv2d(x, w).sum(), w)[0] is not None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert m.conv2d(x.float(), w.float()).dtype == torch.bfloat16
    monkeypatch.setattr(m, "enabled", False)
    assert "gankern" not in m.conv2d(x, w).grad_fn.name()
    assert "gankern" not in names.conv2d_resample.conv2d_resample(x, w).grad_fn.name()


def tents(x, grid):
    """grid_sample as a sum over all pixels: older torch's own has no second order."""
    places = (((grid[..., i] + 1) * size - 1) / 2 for i, size in enumerate(x.shape[:1:-1]))
    wide, high = (
        (1 - (p[..., None] - torch.arange(n)).abs()).clamp(min=0) for p, n in zip(places, x.shape[:1:-1], strict=True)
    )
    return torch.einsum("nchw,nijh,nijw->ncij", x, high, wide)


def test_grid_sample(names, monkeypatch):
    m, x, grid = names.grid_sample_gradfix, rand(2, 3, 5, 4), (rand(2, 3, 6, 2, seed=1) * 0.8).detach()
    torch.testing.assert_close(tents(x, grid), F.grid_sample(x, grid, align_corners=False))
    # squared, so that the gradient depends on x
    same(lambda x: m.grid_sample(x, grid) ** 2, lambda x: tents(x, grid) ** 2, x)
    assert "gankern" in m.grid_sample(x, grid).grad_fn.name()
    monkeypatch.setattr(m, "enabled", False)
    assert "gankern" not in m.grid_sample(x, grid).grad_fn.name()


def test_fma(names):
    a, b, c = rand(2, 3, 4, 5), rand(2, 3, 1, 1, seed=1), rand(4, 5, seed=2)
    same(names.fma.fma, lambda a, b, c: a * b + c, a, b, c)
    assert gradgradcheck(names.fma.fma, (a, b, c), fast_mode=True)
    assert names.fma.fma(a.half(), b.half(), c.float()).dtype == torch.float32


@pytest.mark.parametrize(
    "args",
    [
        {"up": 2, "down": 2, "padding": [3, 2, 4, 1]},
        {"up": 4, "down": 2, "padding": 5, "clamp": 0.7, "slope": 0.1, "gain": 1.3, "flip_filter": True},
        {},
    ],
    ids=["plain", "clamp", "defaults"],
)
def test_filtered_lrelu(names, args):
    up, down, padding = args.get("up", 1), args.get("down", 1), args.get("padding", 0)
    fu = torch.tensor([1.0, 2, 4, 1]) / 8 if up > 1 else None
    fd = torch.tensor([[1.0, 2, 0], [3, 1, 1]]) / 8 if down > 1 else None
    p = [padding] * 4 if isinstance(padding, int) else padding
    flip, slope = args.get("flip_filter", False), args.get("slope", 0.2)

    def truth(x, b):
        y = spelled_fir(x + b[:, None, None], fu, up, 1, p, flip, up**2)
        y = torch.where(y > 0, y, y * slope) * args.get("gain", math.sqrt(2))
        y = y.clamp(-args["clamp"], args["clamp"]) if "clamp" in args else y
        return spelled_fir(y, fd, 1, down, flip=flip)

    x, b = rand(2, 3, 5, 4), rand(3, seed=1)
    ours = lambda x, b: names.filtered_lrelu.filtered_lrelu(x, fu, fd, b, **args)  # noqa: E731
    same(ours, truth, x, b)
    assert gradcheck(ours, (x, b), fast_mode=True)
    assert gradgradcheck(ours, (x, b), fast_mode=True)
    close(names.mmcv.filtered_lrelu(x, fu, fd, b, **args), truth(x, b))
    close(names.filtered_lrelu.filtered_lrelu(x, fu, fd, b, **args, impl="ref"), truth(x, b))


def test_leaky_relu_layers(names):
    x, b = rand(2, 3, 4, 5), rand(3, seed=1)
    want = F.leaky_relu(x + b[:, None, None], 0.1) * 3
    close(names.op.fused_leaky_relu(x, b, 0.1, 3.0), want)
    close(names.mmcv.fused_bias_leakyrelu(x, b, 0.1, 3.0), want)
    close(names.op.fused_leaky_relu(x), F.leaky_relu(x, 0.2) * math.sqrt(2))
    for layer in (names.op.FusedLeakyReLU(3, True, 0.1, 3.0), names.mmcv.FusedBiasLeakyReLU(3, 0.1, 3.0)):
        layer.load_state_dict({"bias": b.detach()})
        close(layer.double()(x), want, 1e-6)
    assert not names.op.FusedLeakyReLU(3, bias=False).state_dict()
    assert isinstance(names.op.FusedLeakyReLU(3), torch.nn.Module)


def test_compiled(names):
    """The patched functions are seen through: one graph, the same numbers."""
    f, w = names.upfirdn2d.setup_filter([1, 3, 3, 1]), rand(4, 3, 3, 3, seed=1, dtype=torch.float32)

    def layer(x, w):
        y = names.conv2d_resample.conv2d_resample(x, w, f, up=2, padding=1)
        return names.bias_act.bias_act(y, act="lrelu")

    x = rand(2, 3, 6, 6, dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    close(compiled(x, w), layer(x, w), 1e-5)
    got, want = (torch.autograd.grad(fn(x, w).square().sum(), [x, w]) for fn in (compiled, layer))
    for a, b in zip(got, want, strict=True):
        close(a, b, 1e-4)
