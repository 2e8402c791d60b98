"""One operator at one place of a network, and what is done with it: called, written plainly, differentiated, shrunk.

Where the places and calls come from stands in `sites` and `operators`; nothing here times or compiles.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gankern import ops
from gankern.bench.operators import OPS
from gankern.bench.sites import DTYPES, LAYOUTS, NETWORKS, Make, Site, Tensors

MODES = ("forward", "backward", "both", "double")
__all__ = ["DTYPES", "LAYOUTS", "MODES", "NETWORKS", "OPS", "Case", "Site", "Tensors"]


@dataclass(frozen=True)
class Case:
    """One operator at one site."""

    op: str
    site: Site

    @property
    def label(self) -> str:
        """As a row of a table calls it: the kind, channels, size."""
        size = f" {self.site.size}²" if self.site.size else ""
        out = f"→{self.site.out}" if self.site.out else ""
        return f"{self.site.kind} {self.site.channels}{out}ch{size}"

    @property
    def has_layout(self) -> bool:
        return self.site.size > 0

    def tensors(self, dtype: str, layout: str, batch: int, device, generator=None) -> Tensors:
        """Fresh random tensors; those that require gradients are differentiated."""
        return OPS[self.op].tensors(self.site, Make(DTYPES[dtype], layout, batch, device, generator))

    def call(self, tensors: Tensors, impl: str | None) -> Tensor:
        return OPS[self.op].call(self.site, tensors, impl)

    def eager(self, tensors: Tensors) -> Tensor:
        """The same in plain PyTorch."""
        return OPS[self.op].eager(self.site, tensors)

    def least_bytes(self, mode: str, x: Tensor, y: Tensor) -> int | None:
        """What an ideal kernel moves; None where nobody has counted."""
        passes = OPS[self.op].passes
        if mode == "both":
            parts = [self.least_bytes(m, x, y) for m in ("forward", "backward")]
            return sum(parts)
        if mode not in passes:
            return None
        times_x, times_y = passes[mode]
        times_x += mode == "forward" and "residual" in self.site.kind  # read forward; backward it is dy itself
        return times_x * x.numel() * x.element_size() + times_y * y.numel() * y.element_size()

    def shrunk(self, channels: int = 8, size: int = 8) -> "Case":
        """The same at a size for the interpreter."""
        site = self.site
        small = {"channels": min(site.channels, channels), "size": min(site.size, size), "out": min(site.out, channels)}
        return replace(self, site=replace(site, **small))


def network_cases(op: str, network: str) -> list[Case]:
    """An operator's cases in one of NETWORKS, each site once."""
    return [Case(op, site) for site in dict.fromkeys(OPS[op].sites(NETWORKS[network]))]


def compile_cases(op: str) -> list[Case]:
    """The cases whose kernels are compiled ahead of time: every kernel, every path."""
    return [Case(op, site) for site in OPS[op].compile_sites]


def fused() -> list[str]:
    """The operators that have Triton kernels, in OPS's order."""
    return [op for op in OPS if "triton" in available(op)]


def available(op: str) -> list[str]:
    """The operator's implementations besides the reference; none where this version doesn't have the operator."""
    row = ops.implementations().get(op)
    return [] if row is None else [name for name in row["available"].split(", ") if name != "reference"]


def wanted(tensors: Tensors) -> list[Tensor]:
    """The tensors that are differentiated."""
    return [t for t in tensors.values() if t.requires_grad]


def differentiate(case: Case, tensors: Tensors, impl: str | None) -> list[Tensor | None]:
    """[y, first gradients, second gradients]: every kernel of the operator runs at least once."""
    wrt = wanted(tensors)
    y = case.call(tensors, impl)
    dy = torch.randn_like(y).requires_grad_()
    plain = torch.autograd.grad(y, wrt, dy, retain_graph=True)
    first = torch.autograd.grad(y, wrt, dy, create_graph=True)
    dot = sum((g * torch.randn_like(g)).sum() for g in first)
    second = torch.autograd.grad(dot, [dy, *wrt], allow_unused=True, retain_graph=True)
    with ops.no_weight_gradients():  # as a penalty on the gradient of activations has it
        (dx,) = torch.autograd.grad(y, [tensors["x"]], dy, create_graph=True)
    return [y, *plain, *second, *torch.autograd.grad((dx * torch.randn_like(dx)).sum(), [dy, *wrt], allow_unused=True)]
