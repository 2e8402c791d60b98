"""Before and after the swap: equal outputs and gradients, and the bytes that it saves.

    python examples/drop_in/compare.py

Outputs and gradients are compared on this machine (in float64, 8 channels wide). Bytes are counted, not measured, on
the networks as published (64 wide, a batch of 16 in bfloat16): those that autograd keeps between forward and backward,
and those that a forward and a backward move, operators as they are called.
"""

import copy

import torch
from plain import Critic, Generator, UNet
from swapped import swap
from torch import nn

from gankern import ops
from gankern.bench.traffic import count

SHAPES = {"DCGAN critic": (3, 64, 64), "DCGAN generator": (100, 1, 1), "pix2pix U-Net": (3, 256, 256)}
NETWORKS = {"DCGAN critic": Critic, "DCGAN generator": Generator, "pix2pix U-Net": UNet}


def build(name: str, width: int) -> tuple[nn.Module, nn.Module]:
    """A network and its swapped copy."""
    torch.manual_seed(0)
    before = NETWORKS[name](width=width)
    return before, swap(copy.deepcopy(before))


def difference(name: str) -> tuple[float, float]:
    """The largest relative difference of the outputs, and of the gradients of the input and all parameters."""
    x = torch.randn(2, *SHAPES[name], dtype=torch.float64)
    results = []
    for network in build(name, width=8):
        network.double()
        img = x.clone().requires_grad_()
        y = network(img)
        wrt = [img, *sorted(network.parameters(), key=lambda p: (p.shape, p.sum().item()))]
        results.append([y, *torch.autograd.grad(y.square().sum(), wrt)])
    apart = [(a - b).abs().max().item() / b.abs().max().clamp(min=1e-6).item() for b, a in zip(*results, strict=True)]
    return apart[0], max(apart[1:])


def kept_bytes(network: nn.Module, x: torch.Tensor) -> int:
    """What autograd keeps of activations (every storage once; parameters are there anyway)."""
    kept, own = {}, {p.untyped_storage()._cdata for p in network.parameters()}

    def note(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        y = network(x)  # held, so that no storage's place is taken by another
    del y
    return sum(kept.values())


def step(network: nn.Module, x: torch.Tensor) -> None:
    network(x).sum().backward()


def main() -> None:
    print(f"{'network':<16} {'outputs':>9} {'gradients':>9}   {'kept MB':>17}   {'moved MB':>19}")
    for name in NETWORKS:
        output, gradient = difference(name)
        columns = []
        for network in build(name, width=64):
            network = network.to("meta", torch.bfloat16)
            x = torch.empty(16, *SHAPES[name], dtype=torch.bfloat16, device="meta")
            with ops.use_impl("triton"):
                columns.append((kept_bytes(network, x) / 1e6, count(lambda n=network, x=x: step(n, x)).bytes / 1e6))
        (kept, moved), (kept_after, moved_after) = columns
        numbers = f"{kept:7.1f} > {kept_after:7.1f}   {moved:8.1f} > {moved_after:8.1f}"
        print(f"{name:<16} {output:9.1e} {gradient:9.1e}   {numbers}")
        assert max(output, gradient) < 1e-9, f"{name} changed"


if __name__ == "__main__":
    main()
