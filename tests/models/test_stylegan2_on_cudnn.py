"""StyleGAN2 on cuDNN's graphs, run step by step: golden arrays, the training losses, and when layers run by themselves
instead."""

import warnings

import pytest
import test_stylegan2_golden as golden_tests
import torch
from test_stylegan2_on_kernels import numbers, running

from gankern import ops
from gankern.models import stylegan2_whole as whole
from gankern.models.stylegan2 import Discriminator, Generator
from gankern.ops import _impl
from gankern.ops._gradients import differentiated_twice
from gankern.ops.cudnn import merging, plans, synthesis_backward

pytestmark = pytest.mark.skipif(not _impl.interpreting(), reason="the interpreter is off where there is a GPU")
case = golden_tests.case


@pytest.fixture(scope="module")
def reference():
    return numbers("reference")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Operators that cuDNN doesn't have run as their definition, not as Triton's kernels, which stay inside the two
    that it has: the interpreter is slow."""
    nearest = _impl._nearest
    monkeypatch.setattr(ops, "runs_fused", lambda x: True)
    monkeypatch.setattr(_impl, "_nearest", lambda impl, *of: "reference" if impl == "cudnn" else nearest(impl, *of))


def merging_up_to(monkeypatch, channels):
    monkeypatch.setattr(merging, "FEW", channels)


def names_of(graphs):
    return {graph.name for graph in graphs}


FILTERED = pytest.param(0, id="filtered", marks=pytest.mark.slow)
MERGED = pytest.param(32, id="merged")


@pytest.mark.parametrize("few", [FILTERED, MERGED])
def test_golden_arrays(fused_graphs, monkeypatch, case, few):
    """Images, logits and the gradients of both networks' main losses."""
    merging_up_to(monkeypatch, few)
    with running("cudnn"):
        golden_tests.test_generator_main(case)
        if case.config["generator"]["img_resolution"] <= 16 or not few:  # the interpreter is slow
            golden_tests.test_discriminator_main(case)
            golden_tests.test_outputs(case)
    assert names_of(fused_graphs) == {"layer", "conv", "conv_gradient"}


@pytest.mark.parametrize("few", [FILTERED, MERGED, pytest.param(4, id="mixed")])
def test_losses_and_gradients(fused_graphs, monkeypatch, reference, few):
    """Those of R1 and path length, too, whose second order runs layer by layer."""
    merging_up_to(monkeypatch, few)
    monkeypatch.setattr(synthesis_backward, "SUMS_IN_KERNEL", few == 4)
    got = numbers("cudnn")
    assert names_of(fused_graphs) == {"layer", "conv", "conv_gradient"} | ({"layer_gradient"} if few == 4 else set())
    assert got.keys() == reference.keys()
    for name, t in reference.items():
        error = (got[name] - t).abs().max().item()
        assert error <= 1e-9 * max(t.abs().max().item(), 1e-3), f"{name}: {error:.3g}"


# -- when layers run by themselves ------------------------------------------------------------------------------------


def small(**changes):
    """Networks of 8x8 pixels."""
    torch.manual_seed(0)
    options = {"img_resolution": 8, "channel_base": 32, "channel_max": 4} | changes
    G = Generator(8, 0, 8, num_mapping_layers=1, **options).double()
    return G, Discriminator(num_mapping_layers=1, mbstd_group_size=2, **options).double()


def run(G, D, noise_mode="const"):
    img = G(torch.ones(2, G.z_dim, dtype=torch.float64), noise_mode=noise_mode)
    return img, D(img)


@pytest.fixture
def operators(monkeypatch):
    """The names of the operators of whole networks that ran."""
    ran = []
    for module, name in ((whole.synthesis, "synthesis"), (whole.discriminator, "discriminator")):
        operator = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, name=name, run=operator: ran.append(name) or run(*args))
    return ran


def same_by_layers(G, D, graphs):
    """Runs both; neither as one operator, and the numbers are the reference's."""
    with ops.use_impl("reference"):
        want = run(G, D)
    with ops.use_impl("cudnn"):
        got = run(G, D)
    assert not graphs
    for a, b in zip(got, want, strict=True):
        assert (a - b).abs().max() <= 1e-9 * b.abs().max()


@pytest.fixture
def precise():
    """Activations in float64 too."""
    return {"compute_dtype": torch.float64}


def test_both_networks_run_whole(fused_graphs, operators, precise):
    G, D = small(**precise)
    with ops.use_impl("cudnn"):
        for mode in ("const", "none", "random"):
            run(G, D, mode)
    assert names_of(fused_graphs) == {"layer", "conv"}
    assert operators == ["synthesis", "discriminator"] * 3


def test_what_is_differentiated_twice_runs_by_layers(fused_graphs, operators, precise):
    with differentiated_twice():
        same_by_layers(*small(**precise), operators)


def test_other_numbers_of_image_channels(fused_graphs, operators, precise):
    """Gradients of the images have their place in the kernels of three; the discriminator takes any."""
    G, D = small(img_channels=1, **precise)
    with ops.use_impl("cudnn"):
        img = G(torch.ones(2, 8, dtype=torch.float64))
        assert not operators
        D(img)
    assert operators == ["discriminator"]


def test_other_architectures(fused_graphs, operators, precise):
    G = Generator(8, 0, 8, 8, num_mapping_layers=1, channel_base=32, architecture="orig", **precise).double()
    D = Discriminator(0, 8, num_mapping_layers=1, channel_base=32, architecture="orig", **precise).double()
    with ops.use_impl("cudnn"):
        img = G(torch.ones(4, 8, dtype=torch.float64))
        D(img)
    assert operators == ["synthesis"]


def test_clamped_layers(fused_graphs, operators, precise):
    same_by_layers(*small(conv_clamp=1.5, **precise), operators)


def test_recomputed_blocks(fused_graphs, operators, precise):
    G, D = small(**precise)
    for network in (G.synthesis, D):
        network.blocks()[0].recomputed = True
    same_by_layers(G, D, operators)


def test_filters_that_differ(fused_graphs, operators, precise):
    G, D = small(**precise)
    G.synthesis.b8.conv0.resample_taps.mul_(1.01)
    D.b8.skip.resample_taps.mul_(1.01)
    same_by_layers(G, D, operators)


def test_noise_with_a_gradient(fused_graphs, operators, precise):
    """As a projection optimises it."""
    G, _ = small(**precise)
    maps = [conv.noise_const for block in G.synthesis.blocks() for conv in block.convolutions()]
    for conv_map in maps:
        conv_map.requires_grad_()
    for block in G.synthesis.blocks():
        for conv in block.convolutions():
            conv.noise_strength.data.fill_(0.5)
    with ops.use_impl("cudnn"):
        img = G(torch.ones(1, 8, dtype=torch.float64), noise_mode="const")
        assert not operators
        grads = torch.autograd.grad(img.sum(), maps)
    assert all(g.any() for g in grads)


# -- what cuDNN refuses ------------------------------------------------------------------------------------------------


class OnGPU:
    """What `_ready` reads of a tensor on a GPU that isn't there."""

    def __init__(self, *shape):
        self.shape, self.dtype, self.device = torch.Size(shape), torch.float32, torch.device("cuda", 0)
        self.requires_grad = True


def ready(network, *shape):
    if isinstance(network, Discriminator):
        return whole._ready(network, OnGPU(*shape), whole._judged)
    return whole._ready(network.synthesis, OnGPU(*shape), lambda copy_, like: copy_(like, "random"), "random")


def asked_for(monkeypatch, answer):
    """The graphs that plans are asked for, each call a list; `answer` is what comes back."""
    asked = []
    monkeypatch.setattr(plans, "prepare", lambda graphs, device: asked.append(list(graphs)) or answer)
    return asked


@pytest.mark.parametrize("number", [0, 1], ids=["generator", "discriminator"])
def test_plans_are_asked_for_once_a_shape(monkeypatch, number):
    network = small(compute_dtype=torch.bfloat16)[number].float()
    shape = (3, 8, 8) if number else (network.num_ws, 8)
    before = {k: t.clone() for k, t in network.state_dict().items()}
    asked = asked_for(monkeypatch, None)
    assert ready(network, 2, *shape)
    assert ready(network, 2, *shape)
    assert len(asked) == 1
    assert ready(network, 4, *shape)
    with torch.no_grad():
        assert ready(network, 2, *shape)
    assert len(asked) == 3
    trained, larger, without = asked
    layer = "conv" if number else "layer"
    gradients = {"conv_gradient"} if number else set()  # a layer's runs in a pass of ours
    assert names_of(trained) == names_of(larger) == {layer} | gradients
    assert names_of(without) == {layer}
    assert all(graph.io_dtype == torch.bfloat16 for graph in trained)
    assert {s.shape[0] for graph in larger for name, s in graph.inputs if name in ("x", "dt")} == {4}
    assert all(t.equal(before[k]) for k, t in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_plans_of_the_graphs_that_run(fused_graphs, monkeypatch):
    """What is planned on tensors without memory is what runs later."""
    networks_ = small(compute_dtype=torch.bfloat16)
    for network in networks_:
        network.float()
    asked = asked_for(monkeypatch, None)
    assert ready(networks_[0], 2, networks_[0].num_ws, 8)
    assert ready(networks_[1], 2, 3, 8, 8)
    with ops.use_impl("cudnn"):
        img = networks_[0](torch.ones(2, 8))
        networks_[1](img).sum().backward()
    assert {graph.key for graph in fused_graphs} == {graph.key for graphs in asked for graph in graphs}


def test_a_refusal_is_said_once(monkeypatch):
    _, D = small(compute_dtype=torch.bfloat16)
    asked = asked_for(monkeypatch, "conv 2x4x8x8 4x4x3x3: no engine")
    with pytest.warns(UserWarning, match="Discriminator runs without cuDNN's fused convolutions: conv 2x4x8x8"):
        assert not ready(D.float(), 2, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not ready(D, 2, 3, 8, 8)
    assert len(asked) == 1


def test_refused_networks_run_by_layers(fused_graphs, operators, monkeypatch, precise):
    monkeypatch.setattr(whole, "_ready", lambda *_: False)
    same_by_layers(*small(**precise), operators)
