"""Compile-time facts, without a GPU: kernels recorded on meta tensors and compiled ahead of time.

Registers, stack (where spills go), shared memory, the widths of global loads and stores, which pointers are addressed
with 32 bits, and the bytes a launch moves by count. Triton's own launcher decides what of an argument is compiled in;
`specialise` mirrors it. Nothing here runs where TRITON_INTERPRET is set: `facts` starts a process without it.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gankern.bench import cases
from gankern.ops import _impl

if TYPE_CHECKING:  # it imports triton, which not every machine has
    from gankern.ops import _triton

ARCHITECTURES = (80, 90, 100, 120)
DIFFERENT = (("bf16", "nhwc"), ("fp32", "nchw"))
POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}


@dataclass(frozen=True)
class Facts:
    """What the compiler made of one launch. `loads`, `stores`: {bits: instructions}; sizes in bytes, -1 where unknown;
    `narrow`: arguments that 32-bit offsets reach; `aligned`: every row of the large tensors begins at 16 bytes."""

    op: str
    case: str
    dtype: str
    layout: str
    kernel: str
    key: str
    config: int
    arch: int
    registers: int
    stack: int
    shared: int
    loads: dict[str, int]
    stores: dict[str, int]
    narrow: list[str]
    bytes: int
    aligned: bool
    failure: str = ""

    def widest(self, what: str) -> int:
        """The widest load or store, in bits."""
        return max((int(bits) for bits in getattr(self, what)), default=0)


# -- what a launch compiles to ----------------------------------------------------------------------------------------


def specialise(launch: "_triton.Launch") -> tuple[dict, dict, dict]:
    """(signature, constants, attributes) for triton's ASTSource: what its launcher would compile in for these
    arguments."""
    signature, constants, attributes = {}, dict(launch.constants), {}
    given = iter(launch.args)
    for i, parameter in enumerate(launch.kernel.params):
        name = parameter.name
        if name in constants:
            signature[name] = "constexpr"
            continue
        value = next(given, parameter.default)
        if parameter.is_constexpr or value is None:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]  # torch's allocations are
        elif isinstance(value, bool):
            signature[name] = "u1"
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1 and not parameter.do_not_specialize:
            signature[name], constants[name] = "constexpr", 1
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(i,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def identity(launch: "_triton.Launch") -> str:
    """Equal for two launches that run the same compiled kernel."""
    kernel = f"{launch.kernel.__module__}.{launch.kernel.__name__}"
    return repr((kernel, *(sorted(part.items()) for part in (*specialise(launch), launch.config))))


def moved(launch: "_triton.Launch") -> int:
    """Bytes of the tensors that a launch is given, each counted once."""
    tensors = {id(a): a for a in launch.args if isinstance(a, torch.Tensor)}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def aligned(launch: "_triton.Launch") -> bool:
    """Whether the rows (along the dimension of stride 1) of all large tensors are whole numbers of 16 bytes."""
    tensors = [a for a in launch.args if isinstance(a, torch.Tensor) and a.numel()]
    largest = max(t.numel() for t in tensors)
    large = [t for t in tensors if t.numel() > largest // 16]
    rows = [max((n for n, stride in zip(t.shape, t.stride(), strict=True) if stride == 1), default=1) for t in large]
    return all(row * t.element_size() % 16 == 0 for row, t in zip(rows, large, strict=True))


def compile_launch(launch: "_triton.Launch", arch: int):
    """Triton's compiled kernel (`.asm`, `.metadata`) of a launch for sm_<arch>."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(launch.kernel, *specialise(launch))
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(launch.config))


# -- reading what the compiler wrote ----------------------------------------------------------------------------------


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, stack and local bytes of a compiled kernel as cuobjdump tells; {} where triton brings none."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        out = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
    return {name.lower(): int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", out)}


def widths(ptx: str, instruction: str) -> dict[str, int]:
    """{bits: count} of the global `ld` or `st` instructions in PTX; asynchronous copies count as loads."""
    found: dict[str, int] = {}
    for operands in re.findall(rf"\b{instruction}\.((?:[\w:]+\.)*global(?:\.[\w:]+)*)", ptx):
        vector = re.search(r"\.v(\d)", operands)
        bits = (int(vector[1]) if vector else 1) * int(re.search(r"\.[busf]\w*?(\d+)$", operands)[1])
        found[str(bits)] = found.get(str(bits), 0) + 1
    if instruction == "ld":
        for size in re.findall(r"cp\.async\.c[ag]\.shared\.global\S* \[[^]]*\], \[[^]]*\], (0x\w+|\d+)", ptx):
            bits = str(8 * int(size, 0))
            found[bits] = found.get(bits, 0) + 1
    return found


def narrow_pointers(ttir: str) -> list[str]:
    """The arguments of which some element is addressed by 32-bit offsets alone, read from Triton's own IR."""
    pointers = {name: (name, False) for name in re.findall(r"(%\w+): !tt\.ptr<", ttir)}
    found = set()
    for line in ttir.splitlines():
        m = re.match(r"\s*(?:(%\w+) = )?tt\.(\w+) (%\w+)(?:, (%\w+))?(.*)", line)
        if not m or m[3] not in pointers:
            continue
        argument, wide = pointers[m[3]]
        if m[2] == "addptr":
            pointers[m[1]] = argument, wide or bool(re.search(r", (?:tensor<[\dx]+x)?i64>? ", m[5]))
        elif m[2] in ("splat", "broadcast", "expand_dims", "bitcast", "reshape"):
            pointers[m[1]] = argument, wide
        elif m[2] in ("load", "store") and not wide:
            found.add(argument.removeprefix("%"))
    return sorted(found)


# -- collecting -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """A launch, and where it came from."""

    op: str
    case: str
    dtype: str
    layout: str
    config: int
    launch: "_triton.Launch"
    everywhere: bool

    def architectures(self, archs: list[int]) -> list[int]:
        """All of `archs`, or sm_90 to speak for them."""
        return archs if self.everywhere or 90 not in archs else [90]


def record(case: cases.Case, dtype: str, layout: str, batch: int = 8) -> list["_triton.Launch"]:
    """The launches of a case on meta tensors, value to second order."""
    with _impl.record() as launches:
        for impl in cases.available(case.op):
            if impl.startswith("triton"):
                cases.differentiate(case, case.tensors(dtype, layout, batch, "meta"), impl)
    return launches


def sample(names: Sequence[str], dtypes: Sequence[str], layouts: Sequence[str]) -> Iterator[Recorded]:
    """Each kernel of these operators once in each dtype and layout, with its first settings."""
    met = set()
    for case in (case for op in names for case in cases.compile_cases(op)):
        for dtype in dtypes:
            for layout in layouts if case.has_layout else layouts[-1:]:
                for launch in record(case, dtype, layout):
                    if (launch.name, dtype, layout) not in met:
                        met.add((launch.name, dtype, layout))
                        yield Recorded(case.op, case.label, dtype, layout, 0, launch, everywhere=True)


def every(names: Sequence[str]) -> Iterator[Recorded]:
    """Each distinct kernel of the operators' compile cases in bf16 and fp32, to second order; in bf16 and channels_last
    where a kernel is first met for all architectures and with all of its settings."""
    seen, met = set(), set()
    for case, dtype, layout in _variants(names):
        launches = record(case, dtype, layout)
        entries = [(0, launch) for launch in launches]
        new = set()
        if (dtype, layout) == DIFFERENT[0]:
            new = {launch.name for launch in launches} - met
            met |= new
            entries += _other_settings(case, dtype, layout, sorted(new))
        for config, launch in entries:
            if identity(launch) not in seen:
                seen.add(identity(launch))
                yield Recorded(case.op, case.label, dtype, layout, config, launch, launch.name in new)


def _variants(names: Sequence[str]) -> Iterator[tuple[cases.Case, str, str]]:
    """All types and layouts of each operator's first case, the two that differ most of the others."""
    for op in names:
        for i, case in enumerate(cases.compile_cases(op)):
            for dtype, layout in itertools.product(("bf16", "fp32"), reversed(cases.LAYOUTS)):
                if (dtype, layout) in DIFFERENT or i == 0:
                    yield case, dtype, layout


def _other_settings(case, dtype: str, layout: str, kernels: list[str]) -> Iterator[tuple[int, "_triton.Launch"]]:
    from gankern.ops import _triton

    for kernel in kernels:
        for i, settings in list(enumerate(_triton.CONFIGS[kernel]))[1:]:
            with _triton.force_config(kernel, settings):
                yield i, next(a for a in record(case, dtype, layout) if a.name == kernel)


def _facts(entry: Recorded, arch: int) -> Facts:
    launch = entry.launch
    place = (entry.op, entry.case, entry.dtype, entry.layout, launch.name, launch.key, entry.config, arch)
    try:
        compiled = compile_launch(launch, arch)
    except Exception as error:  # one kernel's failure leaves the others' facts
        text = f"{type(error).__name__}: {str(error)[-1000:]}"
        return Facts(*place, -1, -1, -1, {}, {}, [], moved(launch), aligned(launch), failure=text)
    usage = resources(compiled.asm["cubin"])
    stack = usage["stack"] + usage["local"] if usage else -1
    loads, stores = (widths(compiled.asm["ptx"], instruction) for instruction in ("ld", "st"))
    narrow = narrow_pointers(compiled.asm["ttir"])
    registers, shared = usage.get("reg", -1), compiled.metadata.shared
    return Facts(*place, registers, stack, shared, loads, stores, narrow, moved(launch), aligned(launch))


def _print_facts(names: list[str], variants: list | None, part: int, parts: int) -> None:
    """`part` of `parts` of the facts, as JSON lines."""
    entries = sample(names, *variants) if variants else every(names)
    for i, entry in enumerate(entries):
        if i % parts == part:
            for arch in entry.architectures(list(ARCHITECTURES)):
                print(json.dumps(asdict(_facts(entry, arch))), flush=True)


def _print_narrow(jobs: list) -> None:
    """[op, case, kernel, layout, pointers to tensors over 2^31 elements with 32-bit offsets], as JSON lines."""
    seen = set()
    for op, site, batch in jobs:
        case = cases.Case(op, cases.Site(*site))
        for layout in cases.LAYOUTS if case.has_layout else cases.LAYOUTS[1:]:
            for launch in record(case, "bf16", layout, batch):
                if (launch.name, layout) in seen:
                    continue
                seen.add((launch.name, layout))
                names = [p.name for p in launch.kernel.params if p.name not in launch.constants]
                pairs = zip(names, launch.args, strict=True)
                huge = {name for name, a in pairs if isinstance(a, torch.Tensor) and a.numel() > 2**31}
                try:
                    wrong = sorted(huge & set(narrow_pointers(compile_launch(launch, 90).asm["ttir"])))
                except Exception as error:
                    wrong = [f"{type(error).__name__}: {str(error)[-1000:]}"]
                print(json.dumps([op, case.label, launch.name, layout, wrong]), flush=True)


def _print_identities(jobs: list) -> None:
    for op, site, batch, dtype, layout in jobs:
        launches = record(cases.Case(op, cases.Site(*site)), dtype, layout, batch)
        print(json.dumps(sorted(identity(launch) for launch in launches)), flush=True)


def facts(names: Sequence[str], variants: tuple[Sequence[str], Sequence[str]] | None, processes: int) -> list[Facts]:
    """The facts of these operators' kernels: a `sample` in these (dtypes, layouts), or with None `every` one.

    Compiled in processes without TRITON_INTERPRET; raises RuntimeError with the compiler's words.
    """
    rows = _rows([["facts", list(names), variants, i, processes] for i in range(processes)])
    return sorted((Facts(**row) for row in rows), key=lambda f: (f.kernel, f.case, f.dtype, f.layout, f.config, f.arch))


def narrow_offsets(jobs: list[tuple[str, cases.Site, int]]) -> list[list]:
    """For every kernel of these (operator, site, batch), once a layout: [op, case, kernel, layout, the pointers to
    tensors over 2^31 elements that 32-bit offsets reach]."""
    return _rows([["narrow", [[op, list(vars(site).values()), batch] for op, site, batch in jobs]]])


def identities(jobs: list[tuple[str, cases.Site, int, str, str]]) -> list[list[str]]:
    """The compiled kernels that each (operator, site, batch, dtype, layout) runs."""
    return _rows([["identities", [[op, list(vars(site).values()), *rest] for op, site, *rest in jobs]]])


def _rows(jobs: list[list]) -> list:
    running = [child("gankern.bench.compiled", json.dumps(job), interpret=False) for job in jobs]
    outputs = [(process, *process.communicate()) for process in running]
    for process, _, errors in outputs:
        if process.returncode:
            raise RuntimeError(f"compiling the kernels failed:\n{errors[-2000:]}")
    return [json.loads(line) for _, out, _ in outputs for line in out.splitlines() if line[:1] in "{["]


def child(module: str, argument: str, *, interpret: bool) -> subprocess.Popen:
    """A Python process that runs `module` with one argument, with or without Triton's interpreter."""
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "GANKERN_IMPL")}
    root = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(p for p in (root, environment.get("PYTHONPATH")) if p)
    environment |= {"TRITON_INTERPRET": "1"} if interpret else {}
    environment.setdefault("OMP_NUM_THREADS", "1")
    command = [sys.executable, "-m", module, argument]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


if __name__ == "__main__":
    what, *arguments = json.loads(sys.argv[1])
    {"facts": _print_facts, "narrow": _print_narrow, "identities": _print_identities}[what](*arguments)
