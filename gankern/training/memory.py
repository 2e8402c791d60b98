"""An estimate of the memory that a run needs, counted on meta tensors: no GPU and no data."""

import torch
from torch import Tensor

from gankern.training.config import Config
from gankern.training.phases import Phases, build_networks


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


def estimate(config: Config) -> dict[str, int]:
    """{"G_parameters", "D_parameters"}: counts; {"weights", "activations"}: bytes.

    `weights` holds both networks, the EMA, Adam's moments and one network's gradients; `activations` what the costliest
    phase keeps for its backward pass at batch_gpu images. Work space of the libraries comes on top.
    """
    n = config.batch_gpu
    G, D = build_networks(config, "meta")
    counts = {name: sum(p.numel() for p in net.parameters()) for name, net in (("G", G), ("D", D))}
    phases = Phases(config, G, D, lambda m: torch.empty(m, config.c_dim, device="meta"))
    real = torch.empty(n, 3, config.resolution, config.resolution, device="meta")
    labels = torch.empty(n, config.c_dim, device="meta")
    counter = _SavedBytes({p.untyped_storage()._cdata for net in (G, D) for p in net.parameters()})
    losses = [(G, lambda: phases.g_main(n)), (D, lambda: phases.d_main(real, labels))]
    losses += [(G, lambda: phases.g_path_length(n))] if config.pl_weight > 0 else []
    losses += [(D, lambda: phases.d_r1(real, labels))] if config.gamma > 0 else []
    for network, loss in losses:
        G.requires_grad_(network is G)
        D.requires_grad_(network is D)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: _Kept(t, counter), lambda kept: kept.tensor):
            loss().backward()
    fixed = 4 * (3 * (counts["G"] + counts["D"]) + max(counts.values()) + counts["G"])
    return {"G_parameters": counts["G"], "D_parameters": counts["D"], "weights": fixed, "activations": counter.peak}
