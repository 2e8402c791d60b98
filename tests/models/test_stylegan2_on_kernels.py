"""StyleGAN2 on Triton's kernels, interpreted, and csrc's, emulated: outputs and gradients equal the reference's."""

import contextlib
import importlib

import pytest
import torch

from gankern import ops
from gankern.models import stylegan2_fused as fused
from gankern.models.stylegan2 import Discriminator, Generator
from gankern.ops import _impl
from gankern.ops._triton import CONFIGS, force_config
from gankern.training import loss as losses

SMALL = {"img_resolution": 16, "channel_base": 64, "channel_max": 8, "compute_dtype": torch.float64}
pytestmark = pytest.mark.skipif(not _impl.interpreting(), reason="the interpreter is off where there is a GPU")


@contextlib.contextmanager
def running(impl):
    """Force an implementation; where Triton filters with large tiles, since each program costs the interpreter."""
    with contextlib.ExitStack() as stack:
        if impl in ("triton", "cudnn"):
            for module in ("modulated_conv2d.fir", "fir_act.kernels", "upfirdn2d.kernels"):
                importlib.import_module(f"gankern.ops.{module}")
            for name, configs in CONFIGS.items():
                if "BYTES" in configs[0]:
                    stack.enter_context(force_config(name, configs[0] | {"BYTES": 16384}))
        stack.enter_context(ops.use_impl(impl))
        yield


def networks():
    torch.manual_seed(0)
    G = Generator(16, 0, 16, num_mapping_layers=2, **SMALL).double()
    D = Discriminator(num_mapping_layers=2, mbstd_group_size=2, **SMALL).double()
    for name, p in G.named_parameters():
        if name.endswith("noise_strength"):  # zero at the start
            p.data.fill_(0.3)
    return G, D


def numbers(impl):
    """Images, logits, and the gradients of the four losses with respect to every parameter."""
    G, D = networks()
    z = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    reals = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    out = {}

    def collect(phase, network, loss):
        out[phase] = loss
        loss.backward()
        out.update({f"{phase} {k}": p.grad.clone() for k, p in network.named_parameters() if p.grad is not None})
        G.zero_grad()
        D.zero_grad()

    with running(impl):
        img = G(z, noise_mode="const")
        logits = D(img)
        out |= {"img": img, "logits": logits}
        collect("Gmain", G, losses.generator_loss(logits))
        collect("Dmain", D, losses.discriminator_loss(D(reals), D(img.detach())))
        x = reals.clone().requires_grad_()
        collect("Dr1", D, losses.r1_penalty(D(x), x).mean())
        ws = G.mapping(z)
        img = G.synthesis(ws, noise_mode="const")
        noise = torch.randn(img.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        collect("Gpl", G, (losses.path_lengths(img, ws, noise) - 0.1).square().mean())
    return {k: t.detach() for k, t in out.items()}


@pytest.fixture(scope="module")
def reference():
    return numbers("reference")


@pytest.mark.parametrize("impl", ["triton", "cuda"])
def test_network_equals_the_reference(impl, reference, host_build):
    got, want = numbers(impl), reference
    assert got.keys() == want.keys()
    assert {k.split()[0] for k in got} == {"img", "logits", "Gmain", "Dmain", "Dr1", "Gpl"}
    for name, t in want.items():
        error = (got[name] - t).abs().max().item()
        assert error <= 1e-9 * max(t.abs().max().item(), 1e-3), f"{name}: {error:.3g}"


@pytest.mark.parametrize("architectures", [("orig", "skip"), ("resnet", "orig")], ids="-".join)
def test_other_architectures(architectures):
    """The generator's and the discriminator's; without noise, with labels."""
    of_g, of_d = architectures
    torch.manual_seed(0)
    small = SMALL | {"img_resolution": 8}
    G = Generator(8, 3, 8, num_mapping_layers=1, architecture=of_g, **small).double()
    D = Discriminator(3, num_mapping_layers=1, mbstd_group_size=2, architecture=of_d, **small).double()
    z, c = torch.randn(2, 8, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[:2]
    found = []
    for impl in ("reference", "triton"):
        with running(impl):
            img = G(z, c, noise_mode="none")
            logits = D(img, c)
            named = {k: p for net in (G, D) for k, p in net.named_parameters()}
            used = torch.autograd.grad(logits.sin().sum(), list(named.values()), allow_unused=True)
            found.append({"img": img, "logits": logits} | dict(zip(named, used, strict=True)))
    want, got = found
    for name, t in want.items():
        assert (t is None) == (got[name] is None), name
        if t is not None:
            error = (got[name] - t).abs().max().item()
            assert error <= 1e-9 * max(t.abs().max().item(), 1e-3), f"{name}: {error:.3g}"


# -- on plain operators and on fused ones ------------------------------------------------------------------------------

SUBMODULES = ["synthesis.b8", "synthesis.b8.conv0", "synthesis.b8.torgb.affine", "b8.conv0", "b8.skip"]
PATHS = pytest.mark.parametrize("impl", ["reference", "triton"])


def tiny():
    torch.manual_seed(0)
    G = Generator(8, 0, 8, 8, num_mapping_layers=1, channel_base=64, channel_max=8)
    return G, Discriminator(img_resolution=8, channel_base=64, channel_max=8, mbstd_group_size=2)


@PATHS
def test_networks_under_autocast(impl):
    """Outputs are the same; gradients about so, as those of the linear layers' products are PyTorch's."""
    G, D = tiny()
    z, found = torch.randn(2, 8), []
    parameters = [p for net in (G, D) for p in net.parameters()]
    for enabled in (False, True):
        with running(impl), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            img = G(z, noise_mode="const")
            logits = D(img)
            grads = torch.autograd.grad(logits.sum(), parameters)
        found.append([img, logits, *grads])
    want, got = found
    assert got[0].equal(want[0])
    assert got[1].equal(want[1])
    assert all((a - b).norm() <= 0.05 * b.norm() for a, b in zip(got, want, strict=True))


@PATHS
def test_latents_of_half_precision(impl):
    G, _ = tiny()
    for block in G.synthesis.blocks():
        block.conv1.noise_strength.data.fill_(0.3)
    ws = torch.randn(1, G.num_ws, 8)
    with running(impl):
        half, full = (G.synthesis(w, "const") for w in (ws.bfloat16(), ws))
    assert half.dtype == torch.float32
    assert (half - full).norm() < 0.05 * full.norm()


@pytest.mark.parametrize("name", SUBMODULES)
def test_hooks_on_inner_modules_run(monkeypatch, name):
    G, D = tiny()
    monkeypatch.setattr(ops, "runs_fused", lambda x: True)
    network = D if name in SUBMODULES[3:] else G
    called = []
    handle = network.get_submodule(name).register_forward_hook(lambda *_: called.append(name))
    run = (lambda: D(torch.randn(2, 3, 8, 8))) if network is D else (lambda: G(torch.randn(2, 8)))
    run()
    assert called == [name]
    handle.remove()
    run()
    assert called == [name]


def test_a_first_call_in_inference_mode_leaves_training_possible(monkeypatch):
    monkeypatch.setattr(ops, "runs_fused", lambda x: True)
    fused._numbers.cache_clear()
    G, _ = tiny()
    with torch.inference_mode():
        G(torch.randn(1, 8))
    G(torch.randn(1, 8)).sum().backward()
    assert G.mapping.fc0.weight.grad.isfinite().all()
