"""Which implementation of an operator runs: the `impl=` argument, `use_impl(...)`, `GANKERN_IMPL`, or the default.

An operator declares its implementations here once; the command line reads them back for `gankern env`.
"""

import contextlib
import os
from collections.abc import Iterator

IMPLS = ("reference", "triton", "cuda", "cudnn")

_declared: dict[str, tuple[str, ...]] = {}
_forced: list[str] = []


def declare(op: str, *impls: str) -> None:
    """Record that `op` has these implementations, the preferred one first."""
    _declared[op] = impls


def choose(op: str, impl: str | None) -> str:
    """The implementation of `op` to run. Raises ValueError for a name that is unknown or that `op` doesn't have."""
    source = "impl"
    if impl is None and _forced:
        impl, source = _forced[-1], "use_impl"
    if impl is None and os.environ.get("GANKERN_IMPL"):
        impl, source = os.environ["GANKERN_IMPL"], "GANKERN_IMPL"
    have = _declared[op]
    if impl is None:
        return have[0]
    if impl not in have:
        raise ValueError(f"{source}={impl!r}: {op} is available as {', '.join(have)}")
    return impl


@contextlib.contextmanager
def use_impl(impl: str) -> Iterator[None]:
    """Force one implementation for every operator called inside the `with` block, on meta tensors too.

    An `impl=` argument still wins. Raises ValueError for an unknown name.
    """
    if impl not in IMPLS:
        raise ValueError(f"use_impl: impl={impl!r}, expected one of {', '.join(IMPLS)}")
    _forced.append(impl)
    try:
        yield
    finally:
        _forced.pop()


def implementations() -> dict[str, dict[str, str]]:
    """Every operator's implementations, its present choice and why: `{op: {"choice", "why", "available"}}`."""
    report = {}
    for op, have in sorted(_declared.items()):
        forced = _forced[-1] if _forced else os.environ.get("GANKERN_IMPL")
        choice = forced if forced in have else have[0]
        why = "forced" if forced in have else "the only one" if len(have) == 1 else "preferred"
        if forced and forced not in have:
            why = f"{forced} was asked for, which this operator doesn't have: a call will raise"
        report[op] = {"choice": choice, "why": why, "available": ", ".join(have)}
    return report
