"""prepare_weights and demodulate: against plain operators, with first and second derivatives."""

import pytest
import torch
from ops_util import assert_close, assert_same_derivatives, rand

from gankern import ops
from gankern.ops import Weight, demodulate, demodulation, prepare_weights
from gankern.ops._triton import CONFIGS, force_config

IMPLS = ("reference", "triton")
HOW = (
    Weight((5, 3, 3, 3), gain=0.3, energy=True),
    Weight((7,), gain=2.0),
    Weight((4, 70, 1, 1), gain=0.5),
    Weight((35, 6, 3, 3), transposed=True, energy=True),
    Weight((1, 1, 1, 1)),
    Weight((6, 9)),
    Weight((33, 65, 3, 3), gain=-1.0, energy=True),
)


def weights(grad=True, dtype=torch.float64):
    return {f"w{n}": rand(*how.shape, seed=n, dtype=dtype, grad=grad) for n, how in enumerate(HOW)}


def flattened(found):
    """One tensor of all results, and of all energies scaled apart, so that an error in any shows."""
    ks, energies = found
    return torch.cat([k.reshape(-1) for k in ks] + [1.7 * e.reshape(-1) for e in energies if e is not None])


def truth(**w):
    ks = [t * how.gain for t, how in zip(w.values(), HOW, strict=True)]
    return ks, [t.square().sum([2, 3]) if how.energy else None for t, how in zip(w.values(), HOW, strict=True)]


def test_parity():
    inputs = weights()
    prepared = lambda **w: flattened(prepare_weights(list(w.values()), HOW, torch.float64))  # noqa: E731
    assert_same_derivatives(prepared, lambda **w: flattened(truth(**w)), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_cast_and_layout(dtype):
    inputs = {k: t.detach().float().requires_grad_() for k, t in weights().items()}
    ks, energies = prepare_weights(list(inputs.values()), HOW, dtype)
    for k, w, how, energy in zip(ks, inputs.values(), HOW, energies, strict=True):
        assert k.dtype == dtype
        assert k.shape == w.shape
        assert_close(k, (w * how.gain).to(dtype), 0)
        if len(how.shape) == 4:
            taken = k.transpose(0, 1) if how.transposed else k
            assert taken.is_contiguous(memory_format=torch.channels_last)
        if how.energy:
            assert energy.dtype == torch.float32
            assert_close(energy, w.detach().double().square().sum([2, 3]), 1e-6)
    cotangents = [rand(*k.shape, seed=40 + n, dtype=dtype) for n, k in enumerate(ks)]
    got = torch.autograd.grad(ks, list(inputs.values()), cotangents)
    for g, dk, how in zip(got, cotangents, HOW, strict=True):
        assert g.dtype == torch.float32
        assert_close(g, dk.double() * how.gain, 1e-6)


@pytest.mark.kernels
@pytest.mark.parametrize("tile", [*CONFIGS.get("prepare_weights", ()), {"ROWS": 4, "COLS": 8, "num_warps": 4}], ids=str)
def test_every_tile(tile, impl):
    inputs = weights()
    with force_config("prepare_weights", tile), force_config("prepare_weights_backward", tile):
        got = flattened(prepare_weights(list(inputs.values()), HOW, torch.float64))
        gradients = torch.autograd.grad(got.square().sum(), list(inputs.values()))
    want = flattened(truth(**inputs))
    assert_close(got, want)
    for a, b in zip(gradients, torch.autograd.grad(want.square().sum(), list(inputs.values())), strict=True):
        assert_close(a, b)


def test_only_some_of_the_gradients():
    inputs = weights()
    ks, energies = prepare_weights(list(inputs.values()), HOW, torch.float64)
    (first,) = torch.autograd.grad(ks[2].sum(), inputs["w2"], retain_graph=True)
    assert_close(first, torch.full_like(first, 0.5))
    (other,) = torch.autograd.grad(energies[3].sum(), inputs["w3"])
    assert_close(other, 2 * inputs["w3"])


def test_joined_weights():
    a, b, c = rand(2, 5, seed=1, grad=True), rand(3, 5, seed=2, grad=True), rand(4, seed=3, grad=True)
    how = (Weight((5, 5), 0.5), Weight((4,), 2.0))
    joined = lambda a, b, c: flattened(prepare_weights([[a, b], c], how, torch.float64))  # noqa: E731
    want = lambda a, b, c: torch.cat([a.flatten() * 0.5, b.flatten() * 0.5, c * 2])  # noqa: E731
    assert_same_derivatives(joined, want, {"a": a, "b": b, "c": c})


@pytest.mark.parametrize(
    ("tensors", "how", "message"),
    [
        ([], (), "how has 0 entries"),
        ([torch.zeros(3)], (), "how has 0 entries, expected one for each of 1"),
        ([torch.zeros(3)], (Weight((4,)),), r"a weight is torch.float32 of shape \(3,\)"),
        ([torch.zeros(3), torch.zeros(3).half()], (Weight((3,)),) * 2, "a weight is torch.float16"),
    ],
)
def test_bad_arguments(tensors, how, message):
    with pytest.raises(ValueError, match=message):
        prepare_weights(tensors, how, torch.float32)


# -- demodulate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 5, 70), (2, 65, 33), (5, 40, 3)], ids=lambda s: "N{}-O{}-I{}".format(*s)
)
def test_demodulate(shape):
    n, o, i = shape
    inputs = {"energy": rand(o, i, seed=1).abs().requires_grad_(), "styles": rand(n, i, seed=2, grad=True)}
    truth = lambda energy, styles: 1 / torch.sqrt(torch.einsum("ni,oi->no", styles**2, energy) + 0.1)  # noqa: E731
    assert_same_derivatives(lambda **t: demodulate(**t, eps=0.1), truth, inputs)


@pytest.mark.parametrize("wrt", ["energy", "styles"])
def test_demodulate_each_gradient_alone(wrt):
    inputs = {"energy": rand(4, 5, seed=1).abs(), "styles": rand(3, 5, seed=2)}
    inputs[wrt].requires_grad_()
    (got,) = torch.autograd.grad(demodulate(**inputs).square().sum(), inputs[wrt])
    d = (inputs["styles"].square() @ inputs["energy"].t() + 1e-8).rsqrt()
    (want,) = torch.autograd.grad(d.square().sum(), inputs[wrt])
    assert_close(got, want)


@pytest.mark.parametrize("shape", [(2, 3, 5), (3, 65, 33)], ids=lambda s: "N{}-O{}-I{}".format(*s))
def test_demodulate_for_path_length(shape):
    """The styles' gradient alone, differentiated with respect to everything."""
    n, o, i = shape
    inputs = {"energy": rand(o, i, seed=1).abs().requires_grad_(), "styles": rand(n, i, seed=2, grad=True)}
    dd = rand(n, o, seed=3, grad=True)

    def derivatives(fn):
        with ops.no_weight_gradients():
            (ds,) = torch.autograd.grad(fn(**inputs), inputs["styles"], dd, create_graph=True)
        return ds, *torch.autograd.grad(ds.sin().sum(), [*inputs.values(), dd])

    truth = lambda energy, styles: 1 / torch.sqrt(torch.einsum("ni,oi->no", styles**2, energy) + 1e-8)  # noqa: E731
    for got, want in zip(derivatives(demodulate), derivatives(truth), strict=True):
        assert_close(got, want)


def test_demodulate_is_the_layers():
    w, s = rand(4, 3, 3, 3), rand(2, 3)
    (_, (energy,)) = prepare_weights([w], [Weight(w.shape, energy=True)], torch.float64)
    assert_close(demodulate(energy, s), demodulation(w, s), 1e-12)


@pytest.mark.kernels
@pytest.mark.parametrize(
    "tile", [{"BLOCK": 4, "LOOP": 8, "num_warps": 4}, {"BLOCK": 16, "LOOP": 128, "num_warps": 4}], ids=str
)
def test_every_tile_of_demodulate(tile, impl):
    inputs = {"energy": rand(9, 21, seed=1).abs().requires_grad_(), "styles": rand(3, 21, seed=2, grad=True)}
    with force_config("demodulate", tile), force_config("demodulate_backward", tile):
        d = demodulate(**inputs)
        got = torch.autograd.grad(d.sin().sum(), list(inputs.values()))
    want = torch.autograd.grad(
        (inputs["styles"].square() @ inputs["energy"].t() + 1e-8).rsqrt().sin().sum(), list(inputs.values())
    )
    for a, b in zip(got, want, strict=True):
        assert_close(a, b)


def test_opcheck():
    w = [rand(4, 3, 3, 3, grad=True), rand(5, 2, 3, 3, grad=True)]
    flat = torch.cat([t.reshape(-1) for t in w])
    impl = "reference"
    args = (flat.detach().requires_grad_(), [4, 3, 9, 5, 2, 9], [0.5, 1.0], [2, 3], torch.float32, impl)
    torch.library.opcheck(torch.ops.gankern.prepare_weights, args)
    args = (rand(4, 3).abs().requires_grad_(), rand(2, 3, grad=True), 1e-8, impl)
    torch.library.opcheck(torch.ops.gankern.demodulate, args)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"styles": torch.zeros(2, 4)}, r"styles has shape \(2, 4\)"),
        ({"energy": torch.zeros(3)}, r"energy of \(3,\)"),
        ({"energy": torch.zeros(4, 3).half(), "styles": torch.zeros(2, 3).half()}, "energy is torch.float16"),
    ],
    ids=["width", "vector", "half"],
)
def test_bad_arguments_of_demodulate(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ops.demodulate(**({"energy": torch.zeros(4, 3), "styles": torch.zeros(2, 3)} | kwargs))
