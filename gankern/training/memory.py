"""An estimate of the memory that a run needs, counted on meta tensors: no GPU and no data."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from gankern.training import phases, progan_phases
from gankern.training.config import Config
from gankern.training.recompute import recompute_blocks


class _SavedBytes:
    """Bytes of the storages that autograd keeps for backward, each counted once while anything keeps it."""

    def __init__(self, parameters: set[int]):
        self.parameters = parameters  # storages that are there anyhow
        self.users: dict[int, int] = {}
        self.now = self.peak = 0

    def add(self, t: Tensor) -> None:
        storage = t.untyped_storage()
        key = storage._cdata
        if key in self.parameters:
            return
        self.users[key] = self.users.get(key, 0) + 1
        if self.users[key] == 1:
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def remove(self, t: Tensor) -> None:
        storage = t.untyped_storage()
        key = storage._cdata
        if key in self.parameters:
            return
        self.users[key] -= 1
        if self.users[key] == 0:
            del self.users[key]
            self.now -= storage.nbytes()


class _Kept:
    """Stands for a saved tensor in autograd's graph, and counts it until the graph lets go."""

    def __init__(self, tensor: Tensor, counter: _SavedBytes):
        self.tensor, self.counter = tensor, counter
        counter.add(tensor)

    def __del__(self):
        self.counter.remove(self.tensor)


Loss = tuple[nn.Module, Callable[[], Tensor], int, int]
"""The network that learns, the loss of a phase, its images and their size."""


def _stylegan2_losses(config: Config, G: nn.Module, D: nn.Module) -> Iterator[Loss]:
    n, r = config.at_once(config.share(config.batch)), config.resolution
    losses = phases.Phases(config, G, D, lambda m: torch.empty(m, config.c_dim, device="meta"))
    real, labels = _reals(config, n, r)
    if config.recompute:
        recompute_blocks(G.synthesis, config.recompute)
        recompute_blocks(D, config.recompute)
    yield G, lambda: losses.g_main(n), n, r
    yield D, lambda: losses.d_main(real, labels), n, r
    if config.pl_weight > 0:
        yield G, lambda: losses.g_path_length(n), n, r
    if config.gamma > 0:
        yield D, lambda: losses.d_r1(real, labels), n, r


def _progan_losses(config: Config, G: nn.Module, D: nn.Module) -> Iterator[Loss]:
    losses = progan_phases.ProGANPhases(config, G, D, lambda m: torch.empty(m, config.c_dim, device="meta"))
    schedule = config.schedule()
    lods = range(len(schedule.batches))
    for lod in lods:
        place = schedule.place(lod + 0.5 if lod + 1 in lods else lod)  # fading costs more than standing still
        losses.go_to(place)
        n = config.at_once(config.share(place.batch))
        real, labels = _reals(config, n, place.resolution)
        yield D, lambda real=real, labels=labels: losses.d_main(real, labels), n, place.resolution
        yield G, lambda n=n: losses.g_main(n), n, place.resolution


_MODELS = {
    "stylegan2": (phases.build_networks, _stylegan2_losses),
    "progan": (progan_phases.build_networks, _progan_losses),
}


def _reals(config: Config, n: int, resolution: int) -> tuple[Tensor, Tensor]:
    return (
        torch.empty(n, 3, resolution, resolution, device="meta"),
        torch.empty(n, config.c_dim, device="meta"),
    )


def estimate(config: Config) -> dict[str, int]:
    """{"G_parameters", "D_parameters"}: counts; {"weights", "activations"}: bytes; {"images", "resolution"}: of the
    costliest phase.

    `weights` holds both networks, the EMA, Adam's moments and one network's gradients; `activations` what the costliest
    phase keeps for its backward pass, without the block that --recompute is at. Work space of the libraries comes on
    top.
    """
    build, losses = _MODELS[config.model]
    G, D = build(config, "meta")
    counts = {name: sum(p.numel() for p in net.parameters()) for name, net in (("G", G), ("D", D))}
    counter = _SavedBytes({p.untyped_storage()._cdata for net in (G, D) for p in net.parameters()})
    costliest = (0, 0, 0)
    for network, loss, images, resolution in losses(config, G, D):
        G.requires_grad_(network is G)
        D.requires_grad_(network is D)
        counter.peak = counter.now
        with torch.autograd.graph.saved_tensors_hooks(lambda t: _Kept(t, counter), lambda kept: kept.tensor):
            loss().backward()
        costliest = max(costliest, (counter.peak, images, resolution))
    fixed = 4 * (3 * (counts["G"] + counts["D"]) + max(counts.values()) + counts["G"])
    peak, images, resolution = costliest
    return {
        "G_parameters": counts["G"],
        "D_parameters": counts["D"],
        "weights": fixed,
        "activations": peak,
        "images": images,
        "resolution": resolution,
    }
