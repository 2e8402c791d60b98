"""Which implementation of an operator runs: the `impl=` argument, `use_impl(...)`, `GANKERN_IMPL`, or the default.

An operator declares its implementations here once; the command line reads them back for `gankern env`. Here too stands
the dry run, in which launch functions allocate their outputs and launch nothing: an operator's fake is the function
itself under a dry run, so that shapes and strides agree.
"""

import contextlib
import functools
import importlib
import importlib.util
import os
import threading
import warnings
from collections.abc import Callable, Iterator

import torch

from gankern.ops import _settings

IMPLS = ("reference", "triton", "triton_gemm", "cuda", "cudnn")
MIN_CAPABILITY = (8, 0)

_declared: dict[str, tuple[str, ...]] = {}
_forced: list[str] = []


def declare(op: str, *impls: str) -> None:
    """Record that `op` has these implementations, the one preferred on a GPU first."""
    _declared[op] = impls


# -- what can run where -----------------------------------------------------------------------------------------------


def interpreting() -> bool:
    """Whether Triton kernels run in the interpreter, on CPU tensors. Triton reads this where a kernel is decorated."""
    return os.environ.get("TRITON_INTERPRET") == "1"


_TRITON_MISSING = None if importlib.util.find_spec("triton") else "triton isn't installed"
_capability: dict[int | None, tuple[int, int]] = {}  # not functools.cache, which torch.compile warns of


def _too_old(index: int | None) -> str | None:
    if index not in _capability:
        _capability[index] = torch.cuda.get_device_capability(index)
    major, minor = _capability[index]
    if (major, minor) >= MIN_CAPABILITY:
        return None
    return f"the GPU is sm_{major}{minor}, and the kernels need sm_{MIN_CAPABILITY[0]}0 or newer"


def obstacle(impl: str, device: torch.device) -> str | None:
    """Why `impl` can't run on tensors of `device`; None where it can. Meta tensors take anything."""
    if impl == "reference" or device.type == "meta":
        return None
    if impl == "cuda":
        from gankern.ops import _cuda

        return _cuda.problem(device)
    if impl == "cudnn":
        from gankern.ops.cudnn import plans

        return plans.problem(device)
    if _TRITON_MISSING:
        return _TRITON_MISSING
    if device.type == "cuda":
        return _too_old(device.index) if torch.cuda.is_available() else None  # a fake tensor where there is no GPU
    if device.type == "cpu":
        return None if interpreting() else "x is on the CPU, where it runs only under TRITON_INTERPRET=1"
    return f"x is on {device}, expected a CUDA tensor"


def _wrong_type(impl: str, x: torch.Tensor) -> str | None:
    """What csrc's kernels for GPUs, and cuDNN's, leave to others: float64, which is for checking numbers, among it."""
    if impl == "cudnn" and x.dtype not in (torch.bfloat16, torch.float16):
        from gankern.ops.cudnn.plans import target

        if target(x.device).type == "cuda":
            return f"x is {x.dtype}, and cuDNN's fused convolutions take bfloat16 and float16"
    if impl == "cuda" and x.device.type == "cuda" and x.dtype == torch.float64:
        return "x is torch.float64, and the CUDA kernels take float16, bfloat16 and float32"
    return None


@functools.cache
def warn_once(message: str) -> None:
    """A warning that the process hears once."""
    warnings.warn(message, stacklevel=4)


def _forced_impl(impl: str | None) -> tuple[str | None, str]:
    if impl is not None:
        return impl, "impl"
    if _forced:
        return _forced[-1], "use_impl"
    return os.environ.get("GANKERN_IMPL") or None, "GANKERN_IMPL"


def _nearest(impl: str, have: tuple[str, ...], device: torch.device) -> str:
    """What stands in, where everything is to run as `impl`, for an operator that doesn't have it: Triton's kernels."""
    if impl in ("triton_gemm", "cuda", "cudnn") and "triton" in have:
        return "reference" if obstacle("triton", device) and impl == "cuda" else "triton"
    return impl


def choose(op: str, impl: str | None, x: torch.Tensor) -> str:
    """The implementation of `op` to run for x.

    Raises ValueError for a name that is unknown, that `op` doesn't have, or that can't run where x is.
    """
    have = _declared[op]
    impl, source = _forced_impl(impl)
    if impl is not None and source != "impl" and (impl not in have or (impl == "cudnn" and _wrong_type(impl, x))):
        impl = _nearest(impl, have, x.device)
    if impl is not None:
        if impl not in have:
            raise ValueError(f"{source}={impl!r}: {op} is available as {', '.join(have)}")
        reason = obstacle(impl, x.device) or _wrong_type(impl, x)
        if reason:
            raise ValueError(f"{source}={impl!r}: {op} can't run so: {reason}")
        return impl
    # float64 is for checking numbers: the definition serves
    if x.device.type != "cuda" or x.dtype == torch.float64:
        return "reference"
    best, reason = _best(op, x)
    if reason and not torch.compiler.is_compiling():
        warn_once(f"gankern.ops runs in eager PyTorch instead of {have[0]}: {reason}")
    return best


def _best(op: str, x: torch.Tensor) -> tuple[str, str | None]:
    """What is preferred for a CUDA tensor: measured to be faster for its shape class, else the first of `op`'s that
    runs; or reference, and why."""
    have = [impl for impl in _declared[op] if impl not in ("reference", "triton_gemm")]
    first = obstacle(have[0], x.device)
    if not torch.compiler.is_compiling():  # which would see a graph for each class
        measured = _settings.implementation(op, x)
        if measured in have[1:] and obstacle(measured, x.device) is None:
            return measured, None
    if first is None:
        return have[0], None
    for impl in have[1:]:
        if obstacle(impl, x.device) is None:
            return impl, None
    return "reference", first


def runs_whole(network: str, x: torch.Tensor) -> bool:
    """Whether `network`, called on x's device with activations of x's dtype, is to run as one operator in cuDNN's fused
    convolutions: where these are forced, or were measured to be faster. Raises ValueError where they are forced and
    can't run."""
    forced, source = _forced_impl(None)
    if forced is not None:
        reason = obstacle("cudnn", x.device) if forced == "cudnn" else None
        if reason:
            raise ValueError(f"{source}={forced!r}: {network} can't run so: {reason}")
        return forced == "cudnn" and _wrong_type("cudnn", x) is None
    if x.device.type != "cuda" or torch.compiler.is_compiling() or _settings.implementation(network, x) != "cudnn":
        return False
    return (obstacle("cudnn", x.device) or _wrong_type("cudnn", x)) is None


def runs_fused(x: torch.Tensor) -> bool:
    """Whether operators called on x run as fused kernels here, so that a longer fusion pays."""
    return choose("bias_act_upfirdn2d", None, x) != "reference"


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
    forced, source = _forced_impl(None)
    cuda = torch.cuda.is_available()
    here = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    report = {}
    for op, have in sorted(_declared.items()):
        near = _nearest(forced, have, here) if forced else None
        if forced and near not in have:
            choice, why = "reference", f"{source}={forced}, which this operator doesn't have: a call will raise"
        elif forced and near != forced:
            choice, why = near, f"stands in for {source}={forced}, which this operator doesn't have"
        elif forced:
            choice, why = forced, f"forced by {source}"
        elif not cuda:
            choice, why = "reference", "no CUDA GPU"
        else:
            runs = [impl for impl in have if impl not in ("reference", "triton_gemm") and not obstacle(impl, here)]
            choice, why = (runs[0], "preferred on this GPU") if runs else ("reference", obstacle(have[0], here))
            wins = _settings.wins(op, here.index)
            if wins and runs:
                faster = {name: n if name in runs else f"{n}, which can't run" for name, n in wins.items()}
                why += "; measured faster: " + ", ".join(f"{name} in {n} shape classes" for name, n in faster.items())
        report[op] = {"choice": choice, "why": why, "available": ", ".join(have)}
    return report


def launchers(package: str, impl: str):
    """The module of an operator's launch functions: `cuda` for csrc's kernels, `kernels` for Triton's."""
    return importlib.import_module(f"{package}.{'cuda' if impl == 'cuda' else 'kernels'}")


# -- dry runs ----------------------------------------------------------------------------------------------------------

_dry = threading.local()  # .depth; a thread of autograd's may launch while another one traces
_recorder: list | None = None


def fake(fn: Callable) -> Callable:
    """`fn` as an operator's fake: it allocates its outputs and launches nothing."""

    @functools.wraps(fn)
    def run(*args, **kwargs):
        _dry.depth = getattr(_dry, "depth", 0) + 1
        try:
            return fn(*args, **kwargs)
        finally:
            _dry.depth -= 1

    return run


def constant(fn: Callable) -> Callable:
    """`fn`, which makes tensors of numbers known beforehand: once for its arguments, and kept, since a captured graph
    may hold the address. In a dry run, where a tensor may be another's stand-in, only those on the meta device are."""
    kept = functools.cache(fn)

    @functools.wraps(fn)
    def run(*args):
        with torch.inference_mode(False):
            stands_in = getattr(_dry, "depth", 0) and torch.device("meta") not in args
            return fn(*args) if stands_in else kept(*args)

    return run


BODIES: dict[str, Callable] = {}
"""The Python function behind each registered operator, by its qualified name: an account of bytes looks inside."""


def uncast(fn: Callable) -> Callable:
    """`fn` with autocast off: its arithmetic runs in the dtypes that it is given."""

    @functools.wraps(fn)
    def run(*args, **kwargs):
        for kind in ("cuda", "cpu"):
            if torch.is_autocast_enabled(kind):
                with torch.autocast(kind, enabled=False):
                    return run(*args, **kwargs)
        return fn(*args, **kwargs)

    return run


def register(name: str, fn: Callable) -> torch.library.CustomOpDef:
    """`fn` as the operator gankern::`name`, which autocast doesn't reach, with its own dry run as its fake."""
    fn = uncast(fn)
    op = torch.library.custom_op(f"gankern::{name}", fn, mutates_args=())
    BODIES[f"gankern::{name}"] = fake(fn)
    op.register_fake(BODIES[f"gankern::{name}"])
    return op


def register_autograd(op: torch.library.CustomOpDef, backward: Callable, *, setup_context: Callable) -> None:
    """`op`'s gradient, which autocast doesn't reach either."""
    op.register_autograd(uncast(backward), setup_context=setup_context)


def launching() -> bool:
    """Whether a launch function should go on to its launches: not in a dry run, unless they are being recorded."""
    return not getattr(_dry, "depth", 0) or _recorder is not None


@contextlib.contextmanager
def record(into: list | None = None) -> Iterator[list]:
    """Collect every kernel launch of the operators called on meta tensors inside the block (see `_triton.Launch`)."""
    global _recorder
    before, _recorder = _recorder, [] if into is None else into
    try:
        yield _recorder
    finally:
        _recorder = before


def recorder() -> list | None:
    """The list that collects launches, where this is a dry run being recorded."""
    return _recorder if getattr(_dry, "depth", 0) else None
