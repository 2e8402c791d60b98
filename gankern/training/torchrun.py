"""How the ranks that torchrun has started meet. Its environment variables are all that they go by."""

import contextlib
import faulthandler
import os
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from gankern.errors import InputError, RankError
from gankern.training.distributed import ALONE, TIMEOUT, World

LAST_SECONDS = 15
MOST_SECONDS = 10_000_000  # far below where the libraries' clocks overflow
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextlib.contextmanager
def join(timeout: float = TIMEOUT) -> Iterator[World]:
    """Meets the ranks that torchrun has started; without torchrun, one rank alone.

    Raises InputError for an environment that isn't torchrun's, RankError where the others don't come.
    """
    if not 0 < timeout <= MOST_SECONDS:
        raise InputError(f"--dist-timeout {timeout:g}: expected a number of seconds > 0, at most {MOST_SECONDS:,}")
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE") == "1":
        yield ALONE
        return
    world = _from_environment(timeout)
    nccl = torch.cuda.is_available() and dist.is_nccl_available()
    limit = timedelta(seconds=timeout)
    try:
        store, rank, size = next(rendezvous("env://", timeout=limit))
        store.set_timeout(limit)
        meeting = {"store": _fresh(store, world), "rank": rank, "world_size": size, "timeout": limit}
        dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", **meeting)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = " ".join(str(error).split())[:120]
        raise RankError(f"the {world.size} ranks didn't meet at {where} within {timeout:g} s ({reason})") from error
    try:
        yield world
    except BaseException:
        faulthandler.dump_traceback_later(LAST_SECONDS, exit=True)  # NCCL's end may wait for ranks that are gone
        raise
    dist.destroy_process_group()


def _from_environment(timeout: float) -> World:
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        raise InputError(f"{missing[0]}: not set though RANK is; expected torchrun's variables, or no RANK")
    try:
        numbers = {name: int(os.environ[name]) for name in _VARIABLES[:4]}
    except ValueError:
        given = ", ".join(f"{name}={os.environ[name]}" for name in _VARIABLES[:4])
        raise InputError(f"{given}: expected numbers, as torchrun sets them") from None
    return World(*(numbers[k] for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")), timeout)


def _fresh(store: dist.Store, world: World) -> dist.Store:
    """A part of the store that these processes have for themselves. torchrun keeps its store when it restarts them: the
    addresses of the dead are still in it, and no count of restarts is the same on all machines.

    Every rank asks under a name that nobody had before; rank 0 answers whoever asks, until all have confirmed.
    """
    mine = uuid.uuid4().hex
    if world.rank:
        store.set(f"gankern/asks/{world.rank}", mine)
        part = store.get(f"gankern/answer/{mine}").decode()
        store.set(f"gankern/{part}/confirms/{world.rank}", "")
        return dist.PrefixStore(part, store)
    waiting, until = set(range(1, world.size)), time.monotonic() + world.timeout
    while waiting:
        for rank in sorted(waiting):
            if store.check([f"gankern/{mine}/confirms/{rank}"]):
                waiting.remove(rank)
            elif store.check([f"gankern/asks/{rank}"]):
                store.set(f"gankern/answer/{store.get(f'gankern/asks/{rank}').decode()}", mine)
        if time.monotonic() > until:
            raise RuntimeError(f"no sign of rank {min(waiting)}")
        time.sleep(0.02)
    return dist.PrefixStore(mine, store)
