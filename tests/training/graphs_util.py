"""CUDA graphs on a CPU: records the operators of a function with the very tensors that they met, and replays them.

As on a GPU a capture changes no tensor, a replay runs no Python, sees only the addresses that were recorded, and waits
for nothing: what the host reads while it is captured is an error.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.is_nonzero.default}
PLAIN_VIEWS = {aten.detach.default, aten.alias.default}


def tensors(tree) -> list[torch.Tensor]:
    return [t for t in tree_flatten(tree)[0] if isinstance(t, torch.Tensor)]


class NoReads(TorchDispatchMode):
    """Counts what makes the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.reads: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in READS:
            self.reads.append(str(func))
        return func(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls, self.own, self.before = [], set(), {}  # own: storages made while recording

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in READS:
            raise RuntimeError(f"{func}: operation not permitted when stream is capturing")
        for t in self._written(func, args, kwargs or {}):
            storage = t.untyped_storage()
            if storage._cdata not in self.own and storage._cdata not in self.before:
                self.before[storage._cdata] = (storage, storage.clone())
        out = func(*args, **(kwargs or {}))
        known = {t.untyped_storage()._cdata for t in tensors((args, kwargs))}
        made = [t for t in tensors(out) if t.untyped_storage()._cdata not in known]
        self.own |= {t.untyped_storage()._cdata for t in made}
        if made or func._schema.is_mutable:
            self.calls.append((func, args, kwargs or {}, out))
        return out

    def _written(self, func, args, kwargs) -> list[torch.Tensor]:
        found = []
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                found += tensors(args[i] if i < len(args) else kwargs.get(argument.name))
        return found


class RecordedGraphs:
    """A backend of `Replays`; `fail_at` n makes the n-th capture fail half-way."""

    def __init__(self, fail_at: int = 0):
        self.captures = self.replays = self.releases = 0
        self.fail_at = fail_at

    def capture(self, fn):
        self.captures += 1
        recorder = _Recorder()
        random = torch.get_rng_state()
        with recorder:
            kept = fn()
        torch.set_rng_state(random)
        for storage, before in recorder.before.values():
            storage.copy_(before)
        for t in tensors([out for *_, out in recorder.calls]):
            poison(t, recorder.own)
        if self.captures == self.fail_at:
            raise RuntimeError("operation not permitted when stream is capturing")

        def replay():
            self.replays += 1
            with torch.no_grad():
                for func, args, kwargs, out in recorder.calls:
                    again = func(*args, **kwargs)
                    if not func._schema.is_mutable:
                        for old, new in zip(tensors(out), tensors(again), strict=True):
                            old.detach().copy_(new)

        replay.kept = kept
        return replay

    def release(self):
        self.releases += 1


def poison(t: torch.Tensor, own: set) -> None:
    """What a capture computes isn't there before its replay."""
    if t.untyped_storage()._cdata in own and t.is_floating_point():
        t.detach().fill_(float("nan"))
