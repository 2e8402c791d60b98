"""Gradients made means over the ranks, bucket by bucket while the backward pass still runs."""

import contextlib
import re
from collections.abc import Callable, Hashable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gankern.errors import RankError

BUCKET_BYTES = 25 * 2**20  # large enough for the network's full rate, small enough to begin early


def cut(parameters: list[Tensor], limit: int) -> list[list[Tensor]]:
    """The parameters in lists of at most `limit` bytes (or one parameter) and one type and device each."""
    buckets: list[list[Tensor]] = []
    size = 0
    for p in parameters:
        last = buckets[-1][-1] if buckets else None
        fits = last is not None and size + p.nbytes <= limit and (p.dtype, p.device) == (last.dtype, last.device)
        if not fits:
            buckets.append([])
            size = 0
        buckets[-1].append(p)
        size += p.nbytes
    return buckets


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """Around a call of torch.distributed: RankError where another rank is gone."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # gloo has no kind of its own
        reason = re.sub(r"^\[[^]]*\] *", "", " ".join(str(error).split()))  # without the place in gloo's code
        reason = reason.split(". ")[0][:160]
        raise RankError(f"another rank has died or doesn't answer ({reason})") from error


class GradientBuckets:
    """Reduces the gradients of one network; of `size` ranks, all with the same graph.

    The first pass of a key only learns the order in which gradients arrive; from then on a bucket sets off when its
    last gradient is there. `tell` gives every rank what rank 0 has. A parameter without a gradient stays without one.
    """

    def __init__(
        self, network: nn.Module, size: int, tell: Callable[[list[int]], list[int]], limit: int = BUCKET_BYTES
    ):
        self.size, self.tell, self.limit = size, tell, limit
        self._number = {p: i for i, p in enumerate(network.parameters())}
        self._plans: dict[Hashable, list[list[Tensor]]] = {}

    @contextlib.contextmanager
    def reducing(self, key: Hashable) -> Iterator[None]:
        """Around one backward pass. `key`: of passes that reach the same parameters."""
        now = _Pass(self._plans.get(key, []), self.size)
        hooks = [p.register_post_accumulate_grad_hook(now.arrive) for p in self._number if p.requires_grad]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        if not now.as_planned():
            rest = self._ordered_as_on_rank_0(now.waiting())
            self._plans[key] = cut(now.launched() + rest, self.limit)
            for bucket in cut(rest, self.limit):
                now.launch(bucket)
        now.finish()

    def _ordered_as_on_rank_0(self, parameters: list[Tensor]) -> list[Tensor]:
        mine = [self._number[p] for p in parameters]
        order = self.tell(mine)
        if sorted(order) != sorted(mine):
            raise RankError("other parameters have a gradient here than on rank 0: the ranks run different code")
        of_number = list(self._number)
        return [of_number[i] for i in order]


class _Pass:
    """One backward pass: buckets set off in the plan's order, which is that of every rank."""

    def __init__(self, plan: list[list[Tensor]], size: int):
        self.plan, self.size = plan, size
        self._bucket = {p: i for i, bucket in enumerate(plan) for p in bucket}
        self._missing = [len(bucket) for bucket in plan]
        self._next = 0  # of the plan's buckets
        self._arrived: dict[Tensor, None] = {}
        self._under_way: list[tuple[list[Tensor], Tensor, dist.Work]] = []

    def arrive(self, p: Tensor) -> None:
        """The hook of a parameter whose gradient is complete."""
        self._arrived[p] = None
        if p not in self._bucket:
            return
        self._missing[self._bucket[p]] -= 1
        while self._next < len(self.plan) and not self._missing[self._next]:
            self.launch(self.plan[self._next])
            self._next += 1

    def as_planned(self) -> bool:
        return self._next == len(self.plan) and len(self._arrived) == len(self._bucket)

    def launched(self) -> list[Tensor]:
        return [p for bucket in self.plan[: self._next] for p in bucket]

    def waiting(self) -> list[Tensor]:
        """What has a gradient and isn't on its way, in the order of arrival."""
        gone = set(self.launched())
        return [p for p in self._arrived if p not in gone]

    @torch.no_grad()
    def launch(self, parameters: list[Tensor]) -> None:
        grads = [p.grad for p in parameters]
        flat = torch.cat([g.reshape(-1) for g in grads]).div_(self.size)
        with answered():
            self._under_way.append((grads, flat, dist.all_reduce(flat, async_op=True)))

    @torch.no_grad()
    def finish(self) -> None:
        """Puts the means where the gradients were. On a GPU only its stream waits, which a CUDA graph can hold."""
        for grads, flat, work in self._under_way:
            with answered():
                work.wait()
            parts = flat.split([g.numel() for g in grads])
            torch._foreach_copy_(grads, [part.view_as(g) for part, g in zip(parts, grads, strict=True)])
