"""cuDNN's fused convolutions on a GPU: every graph of two networks, and the networks, against their definitions."""

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import cudnn_executor

from gankern.models.stylegan2 import Discriminator, Generator
from gankern.ops import _impl, use_impl
from gankern.ops.cudnn import merging, plans, synthesis_backward

pytestmark = pytest.mark.gpu
SIZES = {"img_resolution": 64, "channel_base": 4096, "channel_max": 128, "compute_dtype": torch.bfloat16}


@pytest.fixture(autouse=True)
def there():
    reason = _impl.obstacle("cudnn", torch.device("cuda", torch.cuda.current_device()))
    if reason:
        pytest.skip(reason)


def networks(device):
    torch.manual_seed(0)
    G, D = Generator(num_mapping_layers=2, **SIZES), Discriminator(mbstd_group_size=2, **SIZES)
    for name, p in G.named_parameters():
        if name.endswith("noise_strength"):
            p.data.fill_(0.3)
    return G.to(device), D.to(device)


def graphs(merged: bool) -> list:
    G, D = networks("meta")

    def step():
        D(G.synthesis(torch.empty(4, G.num_ws, 512, device="meta"))).sum().backward()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "FEW", 4096 if merged else 0)
        patch.setattr(synthesis_backward, "SUMS_IN_KERNEL", True)
        return plans.graphs_of(step, torch.device("cuda", torch.cuda.current_device()))


def with_dtype(graph, dtype):
    def changed(s):
        return dataclasses.replace(s, dtype=dtype) if s.dtype == torch.bfloat16 else s

    inputs = tuple((name, changed(s)) for name, s in graph.inputs)
    outputs = tuple((name, value, changed(s)) for name, value, s in graph.outputs)
    return dataclasses.replace(graph, inputs=inputs, outputs=outputs)


def lying(s, seed):
    """A random operand that lies as described."""
    n = 1 + sum((size - 1) * stride for size, stride in zip(s.shape, s.strides, strict=True))
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(n, device="cuda", generator=generator).to(s.dtype).as_strided(s.shape, s.strides)


@pytest.mark.parametrize("merged", [False, True], ids=["filtered", "merged"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_graph(dtype, merged):
    wrong = []
    for graph in (with_dtype(g, dtype) for g in graphs(merged)):
        given = [lying(s, i) for i, (_, s) in enumerate(graph.inputs)]
        k = graph.inputs[1][1].shape
        given[1] = given[1] / math.sqrt(math.prod(k[1:]))
        outs, want = ([torch.zeros_like(lying(s, 0)) for *_, s in graph.outputs] for _ in range(2))
        plans.execute(graph, [*given, *outs])
        cudnn_executor.execute(graph, [*given, *want])
        for (name, _, _), a, b in zip(graph.outputs, outs, want, strict=True):
            error = (a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-3 * math.sqrt(b.numel()))
            if not error <= 2e-2:  # NaN too
                wrong.append(f"{graph.name} {name} {[s.shape for _, s in graph.inputs[:2]]}: {error:.3g}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("in_kernel", [False, True], ids=["pass", "sums"])
@pytest.mark.parametrize("merged", [False, True], ids=["filtered", "merged"])
def test_networks(merged, in_kernel, monkeypatch):
    """Images, logits and gradients, about as far from float32's as the Triton kernels' are."""
    monkeypatch.setattr(merging, "FEW", 4096 if merged else 0)
    monkeypatch.setattr(synthesis_backward, "SUMS_IN_KERNEL", in_kernel)
    G, D = networks("cuda")
    ws = torch.randn(4, G.num_ws, 512, device="cuda", generator=torch.Generator("cuda").manual_seed(1))

    def numbers(impl):
        with use_impl(impl):
            img = G.synthesis(ws, "const")
            logits = D(img)
            logits.square().sum().backward()
        found = {"image": img, "logits": logits}
        found |= {f"{n} {k}": p.grad for n, m in (("G", G), ("D", D)) for k, p in m.named_parameters()}
        found = {k: v.detach().double().clone() for k, v in found.items() if v is not None}
        G.zero_grad()
        D.zero_grad()
        return found

    want, near, got = numbers("reference"), numbers("triton"), numbers("cudnn")
    for name, b in want.items():
        allowed = 3 * (near[name] - b).norm() + 0.02 * b.norm() + 1e-6
        assert (got[name] - b).norm() <= allowed, name


def test_a_captured_graph_replays_the_same():
    G, _ = networks("cuda")
    ws = torch.randn(4, G.num_ws, 512, device="cuda")
    with use_impl("cudnn"), torch.no_grad():
        want = G.synthesis(ws, "const")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            G.synthesis(ws, "const")
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = G.synthesis(ws, "const")
    got.zero_()
    graph.replay()
    assert torch.equal(got, want)


def test_a_second_start_builds_nothing(monkeypatch):
    chosen = graphs(False)[:3]
    device = torch.device("cuda", torch.cuda.current_device())
    for graph in chosen:
        plans.plan(graph, device)
    monkeypatch.setattr(plans, "_plans", {})
    monkeypatch.setattr(plans, "_built", lambda *_: pytest.fail("built again"))
    for graph in chosen:
        plans.plan(graph, device)
