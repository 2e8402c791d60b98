"""Operators and bytes of a computation, counted on meta tensors: an account, not a timing.

Every operator that isn't a view counts with its inputs and outputs, every kernel of ours with the tensors that it is
given; gankern's operators are looked into, so that what a layer does inside is counted as it would run.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gankern.ops import _impl

_FREE = ("aten::empty", "aten::new_empty", "aten::empty_like", "aten::detach", "aten::alias", "aten::lift_fresh")


@dataclass
class Call:
    """One operator or kernel launch: its name, and the bytes of its tensors."""

    name: str
    bytes: int


@dataclass
class Account:
    """What a computation called, in order."""

    calls: list[Call] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(call.bytes for call in self.calls)

    def by_name(self) -> dict[str, tuple[int, int]]:
        """{name: (calls, bytes)}, the most bytes first."""
        number, total = Counter(), Counter()
        for call in self.calls:
            number[call.name] += 1
            total[call.name] += call.bytes
        return {name: (number[name], size) for name, size in total.most_common()}


def _bytes(tensors: list[Tensor]) -> int:
    """Each tensor once, an expanded one as far as it has memory."""
    seen = {}
    for t in tensors:
        size = min(t.numel() * t.element_size(), t.untyped_storage().nbytes())
        key = t.untyped_storage()._cdata
        seen[key] = max(seen.get(key, 0), size)
    return sum(seen.values())


class _Launches(list):
    """Where recorded launches go: straight into the account, so that it keeps their order."""

    def __init__(self, account: Account):
        super().__init__()
        self.account = account

    def append(self, launch) -> None:
        self.account.calls.append(Call(launch.name, _bytes([a for a in launch.args if isinstance(a, Tensor)])))


class _Counter(TorchDispatchMode):
    def __init__(self, account: Account):
        super().__init__()
        self.account = account

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name().split(".")[0]
        body = _impl.BODIES.get(name)
        if body is not None:
            with self:
                return body(*args, **kwargs)
        out = func(*args, **kwargs)
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not view and not name.startswith(_FREE):
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            self.account.calls.append(Call(name, _bytes(tensors)))
        return out


def count(fn: Callable[[], object]) -> Account:
    """The account of `fn()`, whose tensors are on the meta device."""
    account = Account()
    with _impl.record(_Launches(account)), _Counter(account):
        fn()
    return account
