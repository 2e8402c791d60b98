"""StyleGAN2's synthesis network as one operator, its graphs run step by step: equal to the layers' definition."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from ops_util import assert_close, rand

from gankern.ops import use_impl
from gankern.ops._gradients import no_weight_gradients
from gankern.ops.conv2d import conv2d_resample
from gankern.ops.cudnn.synthesis import synthesis
from gankern.ops.cudnn.synthesis_operands import MERGED, RGB, UP

pytestmark = pytest.mark.unforced
N, ALPHA, GAIN = 2, 0.2, math.sqrt(2)
SKIP = (RGB, UP, RGB, UP, RGB)
"""Three resolutions, of three images."""
CHANNELS = 6, 5, 4, 4, 3


def nhwc(t):
    return t.contiguous(memory_format=torch.channels_last)


@dataclasses.dataclass
class Operands:
    """As `synthesis` takes them."""

    x: torch.Tensor
    styles: list
    weights: list
    d: list
    noises: list
    strengths: list
    biases: list
    matrix: torch.Tensor
    f: torch.Tensor
    kinds: list

    def call(self, fn):
        return fn(*vars(self).values(), ALPHA, GAIN)

    def named(self):
        """{name: tensor} of those that have gradients."""
        lists = {k: v if isinstance(v, list) else [v] for k, v in vars(self).items() if k not in ("f", "kinds")}
        return {f"{k}{i}": t for k, ts in lists.items() for i, t in enumerate(ts) if t.requires_grad}


def operands(kinds, noise="own", channels=CHANNELS, dtype=torch.float64, frozen=(), size=2, merged=()):
    """Random ones; `merged`: numbers of layers that run so; `frozen`: fields without gradients."""
    kinds = [kind | (MERGED if k in merged else 0) for k, kind in enumerate(kinds)]
    channels, count = channels[: len(kinds)], len(kinds)
    of_input = 5, *channels[:-1]
    sizes = [size << sum(bool(kind & UP) for kind in kinds[: k + 1]) for k in range(count)]
    weights = [rand(o, i, 3, 3, seed=k, dtype=dtype) for k, (i, o) in enumerate(zip(of_input, channels, strict=True))]
    weights = [
        nhwc(w.transpose(0, 1)).transpose(0, 1) if kind & UP and not kind & MERGED else nhwc(w)
        for w, kind in zip(weights, kinds, strict=True)
    ]
    noises = {
        "none": [],
        "shared": [rand(s, s, seed=k, dtype=dtype) for k, s in enumerate(sizes)],
        "own": [rand(N, 1, s, s, seed=k, dtype=dtype) for k, s in enumerate(sizes)],
    }[noise]
    wide = torch.promote_types(dtype, torch.float32)  # of what a network makes in its parameters' dtype
    found = Operands(
        x=rand(N, 5, size, size, dtype=dtype, channels_last=True),
        styles=[rand(N, c, seed=10 + k, dtype=wide) for k, c in enumerate(channels[:-1])],
        weights=weights,
        d=[rand(N, c, seed=20 + k, dtype=wide).abs() + 0.5 for k, c in enumerate(channels)],
        noises=noises,
        strengths=[rand(1, seed=30 + k, dtype=wide).squeeze(0) for k in range(count if noises else 0)],
        biases=[rand(c, seed=40 + k, dtype=dtype) for k, c in enumerate(channels)],
        matrix=rand(N, 3, sum(c for c, kind in zip(channels, kinds, strict=True) if kind & RGB), dtype=dtype),
        f=rand(4, seed=50, dtype=wide).abs(),
        kinds=kinds,
    )
    for name, value in vars(found).items():
        for t in value if isinstance(value, list) else [value]:
            if name not in ("noises", "f", "kinds", *frozen):
                t.requires_grad_()
    return found


def definition(x, styles, weights, d, noises, strengths, biases, matrix, f, kinds, alpha, gain):
    """The equations of synthesis.py, a line each."""
    images, first = [], 0
    for k, (w, kind) in enumerate(zip(weights, kinds, strict=True)):
        up = {"up": 2, "flip_weight": False} if kind & UP else {}
        t = conv2d_resample(x, w, f, padding=1, **up, impl="reference") * d[k][:, :, None, None]
        t = t + strengths[k] * noises[k] if noises else t
        y = F.leaky_relu(t + biases[k][:, None, None], alpha) * gain
        if kind & RGB:
            images.append(torch.einsum("njc,nchw->njhw", matrix[:, :, first : first + len(w)], y))
            first += len(w)
        x = y * styles[k][:, :, None, None] if k < len(styles) else y
    return images


def gradients(images, given, wrt, **how):
    read = [(t, dt) for t, dt in zip(images, given, strict=True) if t.requires_grad]
    return torch.autograd.grad([t for t, _ in read], list(wrt.values()), [dt for _, dt in read], **how)


def check(of, skipped=(), dtype_rtol=1e-10):
    """Images and all gradients; `skipped`: numbers of images that nobody reads."""
    wrt = of.named()
    want = of.call(definition)
    with use_impl("cudnn"):
        got = of.call(synthesis)
    assert len(got) == len(want)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert_close(a, b, dtype_rtol, f"image {i}")
        assert a.is_contiguous()
    given = [rand(*t.shape, seed=60 + i) for i, t in enumerate(want)]
    kept = [i for i in range(len(want)) if i not in skipped]
    of_want = gradients([want[i] for i in kept], [given[i] for i in kept], wrt, allow_unused=True)
    of_got = gradients([got[i] for i in kept], [given[i] for i in kept], wrt, allow_unused=True)
    for name, a, b in zip(wrt, of_got, of_want, strict=True):
        b = torch.zeros_like(wrt[name]) if b is None else b
        assert_close(a, b, dtype_rtol, name)


@pytest.mark.parametrize(
    ("merged", "noise"),
    [((), "own"), ((), "none"), ((1, 3), "own"), ((1, 3), "shared"), ((1, 3), "none"), ((1,), "shared"), ((3,), "own")],
)
def test_images_and_gradients(fused_graphs, merged, noise):
    check(operands(SKIP, noise, merged=merged))
    # a kernel a layer forward, or one for the even rows and one for the odd; where a filter follows, the library's
    forward = [graph.name for graph in fused_graphs if graph.name == "layer"]
    assert len(forward) == 3 + 2 * len(merged)


ENDS = {
    "one image": (0, UP, 0, UP, RGB),
    "ends with upsampling": (RGB, UP | RGB),
    "upsamples twice": (0, UP, UP, RGB),
}


@pytest.mark.parametrize("merge", [False, True], ids=["filtered", "merged"])
@pytest.mark.parametrize("kinds", ENDS.values(), ids=ENDS)
def test_other_chains(fused_graphs, kinds, merge):
    check(operands(kinds, merged=[k for k, kind in enumerate(kinds) if merge and kind & UP]))


@pytest.mark.parametrize("skipped", [(0, 2), (1,)])
def test_images_that_nobody_reads(fused_graphs, skipped):
    check(operands(SKIP, merged=(1, 3)), skipped=skipped)


@pytest.mark.parametrize("merged", [(), (1, 3)], ids=["filtered", "merged"])
def test_styles_of_zero(fused_graphs, merged):
    of = operands(SKIP, merged=merged)
    with torch.no_grad():
        for k, s in enumerate(of.styles):
            s[0, 0] = 0
            s[k % N, 1] = -1e-30
    check(of)


def test_a_whole_filter_and_a_network_from_one_pixel(fused_graphs):
    of = operands((RGB, UP, RGB), merged=(1,), size=1)
    of.f = rand(4, 4, seed=51)
    check(of)


@pytest.mark.parametrize("frozen", [("weights",), ("weights", "biases", "strengths"), ("x", "d", "styles", "matrix")])
def test_frozen_operands(fused_graphs, frozen):
    check(operands(SKIP, merged=(3,), frozen=frozen))


def test_gradients_of_single_operands(fused_graphs):
    """One of a list, and none but the image's matrix."""
    for wrt in (["weights1"], ["styles2", "biases4"], ["matrix0"], ["strengths0"]):
        of = operands(SKIP, merged=(1, 3))
        for name, t in of.named().items():
            t.requires_grad_(name in wrt)
        assert list(of.named()) == wrt
        check(of)


def test_without_weight_gradients(fused_graphs):
    of = operands(SKIP, merged=(1,))
    wrt = of.named()
    with use_impl("cudnn"):
        images = of.call(synthesis)
    given = [rand(*t.shape, seed=1) for t in images]
    want = gradients(images, given, wrt, retain_graph=True)
    with no_weight_gradients():
        got = gradients(images, given, wrt, allow_unused=True)
    for name, a, b in zip(wrt, got, want, strict=True):
        if name.startswith(("weights", "biases", "strengths")):
            assert a is None, name
        else:
            assert_close(a, b, what=name)


def test_nothing_is_kept_where_no_gradient_is_recorded(fused_graphs):
    of = operands(SKIP, merged=(1,))
    want = of.call(definition)
    for context in (torch.no_grad, torch.inference_mode):
        with context(), use_impl("cudnn"):
            got = of.call(synthesis)
        assert len(got) == 3
        assert not any(t.requires_grad for t in got)
        for a, b in zip(got, want, strict=True):
            assert_close(a, b)


@pytest.mark.parametrize("noise", ["none", "own"])
def test_second_order(fused_graphs, noise):
    """Gradients of a gradient with respect to every operand and to the images' gradients."""
    of = operands((RGB, UP, RGB), noise, merged=(1,))
    wrt, found = of.named(), []
    for fn in (definition, synthesis):
        with use_impl("cudnn" if fn is synthesis else "reference"):
            images = of.call(fn)
            given = [rand(*t.shape, seed=i).requires_grad_() for i, t in enumerate(images)]
            first = gradients(images, given, wrt, create_graph=True)
            along = sum((g * rand(*g.shape, seed=70 + i)).sum() for i, g in enumerate(first))
            inputs = wrt | {f"dimage{i}": t for i, t in enumerate(given)}
            second = torch.autograd.grad(along, list(inputs.values()))
        found.append(dict(zip([*wrt, *(f"d {k}" for k in inputs)], [*first, *second], strict=True)))
    want, got = found
    for name, t in want.items():
        assert_close(got[name], t, what=name)


def test_second_order_of_one_image_and_few_operands(fused_graphs):
    """As path length asks: of the styles alone, the other image's gradient is None."""
    frozen = "weights", "biases", "strengths", "matrix", "x"
    of, found = operands((RGB, UP, RGB), merged=(1,), frozen=frozen), []
    wrt = of.named()
    for fn in (definition, synthesis):
        with use_impl("cudnn" if fn is synthesis else "reference"):
            image = of.call(fn)[1]
            first = torch.autograd.grad(image.square().sum(), list(wrt.values()), create_graph=True)
            found.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), list(wrt.values()))])
    for a, b in zip(*reversed(found), strict=True):
        assert_close(a, b)


def double(t):
    return t.detach().double().requires_grad_(t.requires_grad) if isinstance(t, torch.Tensor) else t


@pytest.mark.parametrize("merged", [(1,), (3,)])
def test_bfloat16(fused_graphs, merged):
    """About the same numbers; operands lie as they are described."""
    dtype = torch.bfloat16
    half = operands(SKIP, merged=merged, dtype=dtype)
    wide = Operands(*([double(t) for t in v] if isinstance(v, list) else double(v) for v in vars(half).values()))
    with use_impl("cudnn"):
        got = half.call(synthesis)
    want = wide.call(definition)
    assert all(t.dtype == dtype for t in got)
    given = [rand(*t.shape, seed=i) for i, t in enumerate(want)]
    of_want = gradients(want, given, wide.named())
    of_got = gradients(got, [t.to(dtype) for t in given], half.named())
    names = [*(f"image {i}" for i in range(3)), *(name.rstrip("0123456789") for name in half.named())]
    of_kind: dict[str, list] = {}  # a layer's strength is one number, small where its sum cancels
    for name, a, b in zip(names, [*got, *of_got], [*want, *of_want], strict=True):
        of_kind.setdefault(name, []).append(torch.stack([(a.double() - b).norm(), b.norm()]))
    for name, norms in of_kind.items():
        error, size = torch.stack(norms).norm(dim=0)
        assert error <= 0.05 * size, name
    assert all(t.dtype == g.dtype for t, g in zip(half.named().values(), of_got, strict=True))


def test_as_a_registered_operator(fused_graphs):
    of = operands((RGB, UP, RGB), merged=(1,))
    with use_impl("cudnn"):
        args = *vars(of).values(), ALPHA, GAIN, True
        names = "test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static"
        torch.library.opcheck(torch.ops.gankern.synthesis.default, args, test_utils=names)


def test_runs_under_compile(fused_graphs):
    """Compiled before it ran: what it remembers is no tensor of the tracing."""
    of = operands((RGB, UP, RGB), channels=(7, 3, 2), merged=(1,))  # of channels as in no other test
    with use_impl("cudnn"):
        compiled = torch.compile(lambda: of.call(synthesis), backend="aot_eager")
        found = [run() for run in (compiled, lambda: of.call(synthesis))]
    given = [rand(*t.shape, seed=i) for i, t in enumerate(found[0])]
    got, want = ([*images, *gradients(images, given, of.named())] for images in found)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b)
