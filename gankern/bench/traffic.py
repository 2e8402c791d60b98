"""Kernel launches, bytes, FLOPs and memory of a computation, counted on meta tensors: an account, not a timing.

Every operator that isn't a view counts as the kernels that PyTorch launches for it (launches.py), every kernel of ours
with the tensors that it is given; gankern's operators and PyTorch's composites are looked into, so that what a layer
does inside is counted as it would run.
"""

import functools
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gankern.bench.launches import Call, laid_out, launches, moved, on_device
from gankern.ops import _impl

_FREE = ("aten::empty", "aten::new_empty", "aten::detach", "aten::alias", "aten::lift_fresh")


@dataclass
class Account:
    """What a computation launched, in order, and the most bytes of its own tensors that lived at a time."""

    calls: list[Call] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def bytes(self) -> int:
        return sum(call.bytes for call in self.calls)

    @property
    def flops(self) -> int:
        return sum(call.flops for call in self.calls)

    @property
    def seconds(self) -> float:
        """At the limit: each launch as fast as its FLOPs or its bytes allow."""
        return sum(call.seconds for call in self.calls)


class _Launches(list):
    """Where recorded launches go: straight into the account, so that it keeps their order."""

    def __init__(self, account: Account):
        super().__init__()
        self.account = account

    def append(self, launch) -> None:
        self.account.calls.append(
            Call(launch.name, moved([a for a in launch.args if isinstance(a, Tensor)]), getattr(launch, "flops", 0))
        )


class _Live:
    """The storages that a computation allocated and that still live."""

    def __init__(self):
        self.known: dict[int, tuple[weakref.ref, int]] = {}
        self.now = self.peak = 0

    def meet(self, tensors: Iterable[Tensor], new: bool) -> None:
        """`new`: an operator's results; what is met elsewhere first was there before."""
        for t in tensors:
            storage = t.untyped_storage()
            key = storage._cdata
            if key not in self.known:
                size = storage.nbytes() if new else 0
                self.known[key] = weakref.ref(storage, lambda _, key=key: self._freed(key)), size
                self.now += size
        self.peak = max(self.peak, self.now)

    def _freed(self, key: int) -> None:
        self.now -= self.known.pop(key)[1]


def _computes(func: torch._ops.OpOverload, name: str, out: object, inputs: list[Tensor]) -> bool:
    """Whether a kernel runs: not for views, allocations, and what touches the host alone."""
    if name.startswith(_FREE):
        return False
    if func._schema.is_mutable:
        return bool(inputs)
    there = {t.untyped_storage()._cdata for t in inputs}
    return any(t.untyped_storage()._cdata not in there for t in on_device(out))


@functools.cache
def _is_composite(func: torch._ops.OpOverload) -> bool:
    """Whether PyTorch defines an operator by others alone."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


class _Counter(TorchDispatchMode):
    def __init__(self, account: Account):
        super().__init__()
        self.account, self.live = account, _Live()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name().split(".")[0]
        body = _impl.BODIES.get(name)
        with self:
            if body is not None:
                return body(*args, **kwargs)
            if _is_composite(func):
                return func.decompose(*args, **kwargs)
        inputs = on_device((args, kwargs))
        self.live.meet(inputs, new=False)
        out = laid_out(func, args, func(*args, **kwargs))
        if _computes(func, name, out, inputs):
            self.account.calls += launches(func, args, kwargs, out)
        self.live.meet(on_device(out), new=True)
        return out


def count(fn: Callable[[], object]) -> Account:
    """The account of `fn()`, whose tensors are on the meta device."""
    account = Account()
    counter = _Counter(account)
    with _impl.record(_Launches(account)), counter:
        fn()
    account.peak_bytes = counter.live.peak
    return account
