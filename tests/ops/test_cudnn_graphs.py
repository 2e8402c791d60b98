"""cuDNN's graphs of a layer, run step by step: equal to torch's own operators and to autograd's gradients."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from ops_util import assert_close, rand

from gankern.ops.conv2d import conv2d_resample
from gankern.ops.cudnn import layers, merging, plans
from gankern.ops.cudnn.graph import Draft, spec

pytestmark = [pytest.mark.unforced, pytest.mark.usefixtures("fused_graphs")]
ALPHA = 0.2
FILTERS = pytest.mark.parametrize("taps", [(4,), (4, 4)], ids=["separable", "whole"])


def image(*shape, seed=0, grad=False):
    return rand(*shape, seed=seed, channels_last=True).requires_grad_(grad)


def specs(*tensors):
    return [None if t is None else spec(t) for t in tensors]


def act(p, alpha):
    return p if alpha is None else F.leaky_relu(p, alpha)


def cells(t):
    """[N, C] as [N, C, 1, 1], [C] as [1, C, 1, 1]."""
    return t.reshape(*t.shape, 1, 1) if t.ndim == 2 else t.reshape(1, -1, 1, 1)


# -- forward -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("noise", [None, "shared", "own"])
@pytest.mark.parametrize(
    ("outputs", "bias", "alpha"),
    [("y", True, ALPHA), ("ys", True, ALPHA), ("both", True, ALPHA), ("ys", False, None)],
)
def test_modulated(k, noise, outputs, bias, alpha):
    x, w = image(2, 3, 5, 4), image(6, 3, k, k)
    d, b, style = rand(2, 6).abs(), rand(6) if bias else None, None if outputs == "y" else rand(2, 6, seed=1)
    map_ = {None: None, "shared": rand(1, 1, 5, 4), "own": rand(2, 1, 5, 4)}[noise]
    strength = None if noise is None else rand().squeeze() + 0.7
    y, ys = (torch.empty_like(image(2, 6, 5, 4)) for _ in range(2))
    y, ys = y if outputs != "ys" else None, ys if outputs != "y" else None
    graph = layers.modulated(*specs(x, w, d, map_, strength, b, style, y, ys), int(noise is not None), k // 2, alpha)
    named = {"x": x, "w": w, "d": d, "b": b, "style": style, "noise0": map_, "strength0": strength, "y": y, "ys": ys}
    plans.run(graph, named)

    p = cells(d) * F.conv2d(x, w, padding=k // 2)
    p = p if noise is None else p + strength * map_
    want = act(p if b is None else p + cells(b), alpha)
    if y is not None:
        assert_close(y, want)
    if ys is not None:
        assert_close(ys, cells(style) * want)


def test_modulated_without_strength_and_with_parts_of_wider_operands():
    """As operands lie in a network: columns of a matrix of all layers."""
    wide, x, w, map_ = rand(2, 20), image(2, 3, 4, 4), image(6, 3, 3, 3), rand(2, 1, 4, 4)
    d, style, y = wide[:, 2:8], wide[:, 9:15], torch.empty_like(image(2, 6, 4, 4))
    graph = layers.modulated(*specs(x, w, d, map_, None, None, style, y, None), 1, 1, ALPHA)
    assert dict(graph.inputs)["d"].strides[0] == 20
    plans.run(graph, {"x": x, "w": w, "d": d, "noise0": map_, "y": y})
    assert_close(y, act(cells(d) * F.conv2d(x, w, padding=1) + map_, ALPHA))


@FILTERS
@pytest.mark.parametrize("noise", [None, "shared", "own"])
def test_modulated_rows_of_an_upsampling_layer(taps, noise):
    n, i, o, h, w_ = 2, 3, 4, 5, 4
    x, w, f = image(n, i, h, w_), image(o, i, 3, 3), rand(*taps, seed=3)
    d, b, style, strength = rand(n, o).abs(), rand(o), rand(n, o, seed=1), rand(1, seed=2).squeeze()
    map_ = None if noise is None else rand(1 if noise == "shared" else n, 1, 2 * h, 2 * w_)
    ys = torch.empty_like(image(n, o, 2 * h, 2 * w_))
    double = {"d": torch.cat([d, d], 1), "b": torch.cat([b, b]), "style": torch.cat([style, style], 1)}
    of_column = strength * merging.of_columns(o, x.device, x.dtype)
    for row, kernel in enumerate(merging.phases(merging.merged(w, merging.merge_matrix(f, True, 4.0)))):
        out, maps = merging.rows_of(ys, row), []
        if noise is not None:
            maps = [map_[:, :, row::2, column::2].contiguous() for column in range(2)]
        of_noise = (maps[0], of_column[0]) if maps else (None, None)
        ordered = x, kernel, double["d"], *of_noise, double["b"], double["style"], None, out
        graph = layers.modulated(*specs(*ordered), len(maps), 1, ALPHA)
        named = {f"noise{j}": t for j, t in enumerate(maps)} | {f"strength{j}": of_column[j] for j in range(len(maps))}
        plans.run(graph, double | named | {"x": x, "w": kernel, "ys": out})
    p = cells(d) * conv2d_resample(x, w, f, up=2, padding=1, flip_weight=False, impl="reference")
    p = p if noise is None else p + strength * map_
    assert_close(ys, cells(style) * act(p + cells(b), ALPHA))


@pytest.mark.parametrize(("k", "stride", "padding"), [(1, 1, 0), (3, 1, 1), (3, 2, 0), (6, 2, 2)])
@pytest.mark.parametrize(("bias", "residual", "alpha"), [(True, False, ALPHA), (False, True, None), (True, True, 0.3)])
def test_plain(k, stride, padding, bias, residual, alpha):
    x, w, b = image(2, 3, 9, 8), image(4, 3, k, k), rand(4) if bias else None
    convolved = F.conv2d(x, w, stride=stride, padding=padding)
    more = image(*convolved.shape, seed=1) if residual else None
    y = torch.empty_like(image(*convolved.shape))
    graph = layers.plain(*specs(x, w, b, more, y), stride, padding, alpha)
    plans.run(graph, {"x": x, "w": w, "b": b, "residual": more, "y": y})
    want = act(convolved if b is None else convolved + cells(b), alpha)
    assert_close(y, want if more is None else want + more)


# -- gradients ---------------------------------------------------------------------------------------------------------

READERS = {
    "same": ("gradient", 3, 1, 1, lambda t, w: F.conv2d(t, w, padding=1)),
    "point": ("gradient", 1, 1, 0, F.conv2d),
    "down": ("gradient", 3, 2, 0, lambda t, w: F.conv2d(t, w, stride=2)),
    "merged down": ("gradient", 6, 2, 2, lambda t, w: F.conv2d(t, w, stride=2, padding=2)),
    "up": ("conv", 3, 2, 0, lambda t, w: F.conv_transpose2d(t, w, stride=2)),
    "merged up": ("conv", 6, 2, 2, lambda t, w: F.conv_transpose2d(t, w, stride=2, padding=2)),
    "turned": ("conv", 3, 1, 1, lambda t, w: F.conv2d(t, w.flip(2, 3).transpose(0, 1), padding=1)),
}
"""What reads the output in question: (form of its gradient, taps, stride, padding, the convolution by the weight that
the gradient's kernel reads)."""
N, C, K = 2, 4, 3


def reader(name):
    """(size, form, weight, stride, padding, the convolution, dt) of what reads [N, C, *size]."""
    size = {"down": (7, 5), "merged down": (8, 6)}.get(name, (6, 5))
    form, k, stride, padding, conv = READERS[name]
    w = image(K, C, k, k) if form == "gradient" else image(C, K, k, k)
    dt = image(*conv(image(N, C, *size), w).shape, seed=5)
    return size, form, w, stride, padding, lambda t: conv(t, w), dt


def check(graph, named, want):
    """The graph's outputs are those of `want`, each once."""
    assert sorted(name for name, _, _ in graph.outputs) == sorted(want)
    plans.run(graph, named)
    for name, t in want.items():
        assert_close(named[name], t, what=name)


@pytest.mark.parametrize("read_by", READERS)
@pytest.mark.parametrize(
    ("rgb", "inverse", "noise", "sums", "alpha"),
    [
        (True, True, "own", True, ALPHA),
        (True, False, None, True, ALPHA),
        (False, True, "shared", True, 0.3),
        (True, True, None, False, ALPHA),
        (False, False, None, False, None),
    ],
)
def test_modulated_gradient(read_by, rgb, inverse, noise, sums, alpha):
    size, form, w, stride, padding, conv, dt = reader(read_by)
    u, scale, style = image(N, C, *size, seed=1, grad=True), rand(N, C, seed=2), rand(N, C, seed=3).requires_grad_()
    map_ = {None: None, "own": rand(N, 1, *size, seed=4), "shared": rand(1, 1, *size, seed=4)}[noise]
    of_bias, of_noise = (torch.zeros(N, C, 1, 1, dtype=u.dtype, requires_grad=True) for _ in range(2))
    matrix = [rand(N, C, seed=6 + j).requires_grad_() for j in range(3)] if rgb else []
    dimages = [rand(N, 1, *size, seed=9 + j) for j in range(3)] if rgb else []
    # the layer before: its own sums are the gradients of a bias and of a strength of each sample
    y = act(cells(scale) * u + of_bias + (0 if map_ is None else of_noise * map_), alpha)
    loss = (conv(cells(style) * y) * dt).sum()
    loss = loss + sum(((cells(m) * y).sum(1, keepdim=True) * di).sum() for m, di in zip(matrix, dimages, strict=True))
    wrt = {"dt'": u, "of_bias": of_bias, "of_style": style} | {f"of_rgb{j}": m for j, m in enumerate(matrix)}
    wrt |= {"of_noise": of_noise} if sums and noise else {}
    want = dict(zip(wrt, torch.autograd.grad(loss, list(wrt.values())), strict=True))
    want = {name: t.reshape(N, C) if name.startswith("of_") else t for name, t in want.items()}
    want = want if sums else {"dt'": want["dt'"]}

    saved = (cells(style) * y if inverse else y).detach().contiguous(memory_format=torch.channels_last)
    style = style.detach()
    back = 1 / style if inverse else None
    wide = torch.zeros(6, N, C, dtype=u.dtype)
    named = {"dt": dt, "w": w, "style": style, "saved": saved, "inverse": back, "noise": map_, "scale": scale}
    named |= {f"matrix{j}": m.detach() for j, m in enumerate(matrix)} | {f"image{j}": t for j, t in enumerate(dimages)}
    named |= dict(zip(["of_style", "of_bias", "of_noise", "of_rgb0", "of_rgb1", "of_rgb2"], wide, strict=True))
    named["dt'"] = torch.empty_like(saved)
    ordered = dt, w, style, saved, back, *((matrix[0], dimages[0]) if rgb else (None, None)), map_, scale
    graph = layers.modulated_gradient(form, *specs(*ordered, wide[0] if sums else None), stride, padding, alpha)
    check(graph, named, want)


@pytest.mark.parametrize("read_by", READERS)
@pytest.mark.parametrize("extra", [False, True], ids=["alone", "two readers"])
@pytest.mark.parametrize("whole", [False, True], ids=["dt", "whole"])
@pytest.mark.parametrize("sums", [False, True], ids=["bare", "sums"])
def test_plain_gradient(read_by, extra, whole, sums):
    size, form, w, stride, padding, conv, dt = reader(read_by)
    p, bias = image(N, C, *size, seed=1), torch.zeros(1, C, 1, 1, dtype=torch.float64, requires_grad=True)
    more = image(N, C, *size, seed=2) if extra else None
    h = (p + bias).detach().requires_grad_()
    y = act(h, ALPHA)
    loss = (conv(y) * dt).sum() + (0 if more is None else (y * more).sum())
    of_y, of_h = torch.autograd.grad(loss, [y, h])
    want = {"dt'": of_h} | ({"e": of_y} if whole else {}) | ({"of_bias": of_h.sum([0, 2, 3])} if sums else {})
    saved = y.detach().contiguous(memory_format=torch.channels_last)
    total = torch.zeros(C, dtype=torch.float64)
    named = {"dt": dt, "w": w, "saved": saved, "extra": more, "of_bias": total}
    named |= {"e": torch.empty_like(saved), "dt'": torch.empty_like(saved)}
    of_sums = spec(total) if sums else None
    graph = layers.plain_gradient(form, *specs(dt, w, saved, more), whole, of_sums, spec(saved), stride, padding, ALPHA)
    check(graph, named, want)


# -- a filter and a convolution as one kernel --------------------------------------------------------------------------


@FILTERS
@pytest.mark.parametrize("gain", [1.0, 4.0])
def test_merged_upsampling(taps, gain):
    x, w, f = image(2, 3, 5, 4), image(4, 3, 3, 3), rand(*taps, seed=3)
    kernel = merging.merged(w, merging.merge_matrix(f, True, gain))
    want = conv2d_resample(x, w, f, up=2, padding=1, flip_weight=False, impl="reference") * (gain / 4)
    assert_close(F.conv_transpose2d(x, kernel.transpose(0, 1), stride=2, padding=2), want)
    rows = [F.conv2d(x, phase, padding=1) for phase in merging.phases(kernel)]
    y = torch.empty_like(want).contiguous(memory_format=torch.channels_last)
    for row, t in enumerate(rows):
        merging.rows_of(y, row).copy_(t)
    assert_close(y, want)


@FILTERS
def test_merged_downsampling(taps):
    x, w, f = image(2, 3, 8, 6), image(4, 3, 3, 3), rand(*taps, seed=3)
    kernel = merging.merged(w, merging.merge_matrix(f, False, 1.0))
    want = conv2d_resample(x, w, f, down=2, padding=1, impl="reference")
    assert_close(F.conv2d(x, kernel, stride=2, padding=2), want)


@pytest.mark.parametrize("up", [True, False])
def test_merged_and_its_adjoint(up):
    w, dk, matrix = image(4, 3, 3, 3), image(4, 3, 6, 6), merging.merge_matrix(rand(4, 4), up, 4.0)
    kernel, dw = merging.merged(w, matrix), merging.merged_adjoint(dk, matrix)
    assert_close((kernel * dk).sum(), (w * dw).sum())
    assert kernel.stride()[1] == dw.stride()[1] == 1  # input channels innermost, as convolutions read them
    assert all(phase.stride()[1] == 1 for phase in merging.phases(kernel))


def test_where_merging_pays():
    f, few = rand(4), image(64, 32, 3, 3)
    assert merging.pays(few, f)
    assert not merging.pays(image(64, 33, 3, 3), f)
    assert not merging.pays(image(64, 32, 1, 1), f)
    assert not merging.pays(few, rand(6))


# -- graphs as data ----------------------------------------------------------------------------------------------------


def example(**changes):
    given = {"stride": 1, "padding": 1, "alpha": ALPHA, "dtype": torch.bfloat16, "size": 8} | changes
    x, y = (layers.nhwc((2, 4, given["size"], given["size"]), given["dtype"]) for _ in range(2))
    w, b = layers.nhwc((4, 4, 3, 3), given["dtype"]), spec(torch.empty(4, dtype=given.get("bias", given["dtype"])))
    return layers.plain(x, w, b, None, y, given["stride"], given["padding"], given["alpha"])


def test_graphs_are_known_by_all_that_a_plan_depends_on():
    graph = example()
    layers.plain.cache_clear()
    assert example() is not graph
    assert example().key == graph.key
    assert dataclasses.replace(graph, name="another").key == graph.key
    others = [{"alpha": 0.1}, {"alpha": None}, {"dtype": torch.float16}, {"size": 16}, {"bias": torch.float32}]
    keys = {example(**change).key for change in others}
    assert len(keys | {graph.key}) == 1 + len(others)


def test_flops_of_convolutions():
    x, w, y = image(2, 3, 9, 8), image(4, 3, 3, 3), image(2, 4, 4, 3)
    assert layers.plain(*specs(x, w, None, None, y), 2, 0, None).flops == 2 * (2 * 4 * 3) * (4 * 3 * 9)
    # of an input gradient as many as of the convolution that it belongs to
    back = layers.plain_gradient("gradient", *specs(y, w, x, None), False, None, spec(x), 2, 0, ALPHA)
    assert back.flops == 2 * (2 * 4 * 3) * (4 * 3 * 9)


def test_a_result_of_another_shape_is_refused():
    g = Draft("layer")
    v = g.conv(g.input("x", spec(image(1, 2, 4, 4))), g.input("w", spec(image(3, 2, 3, 3))), 1, 1)
    with pytest.raises(ValueError, match=r"layer: y has shape \(1, 3, 2, 2\), its value \(1, 3, 4, 4\)"):
        g.output(v, "y", spec(image(1, 3, 2, 2)))
