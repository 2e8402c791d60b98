"""What nvcc makes of csrc/, without a GPU: registers, spills and access widths of every kernel."""

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from gankern import binary, build


@dataclass
class Kernel:
    """One instance of a kernel template, compiled for one architecture."""

    arch: str
    source: str
    name: str
    registers: int
    stack: int
    spilled: int
    widths: dict[str, int] = field(default_factory=dict)
    """{"LDG.128": count, ...}; without a size 32 bits."""

    def __str__(self) -> str:
        return f"sm_{self.arch.replace('.', '')} {self.source}: {self.name}"


def sass_tool() -> Path | None:
    """cuobjdump, of the toolkit or of triton."""
    if found := shutil.which("cuobjdump"):
        return Path(found)
    try:
        import triton
    except ImportError:
        return None
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return tool if tool.exists() else None


def compile_one(source: str, arch: str, folder: Path) -> tuple[Path, str]:
    """(cubin, what the compilers said). Raises AssertionError with that where they fail or warn."""
    cubin = folder / f"{Path(source).stem}.{arch}.cubin"
    command = build.toolchain("cuda", [arch]).compile(
        source, str(cubin), "-Xptxas", "-v", "-Werror", "all-warnings", "-Xcompiler", "-Wextra,-Werror"
    )
    command[command.index("-c")] = "-cubin"
    run = subprocess.run(command, cwd=binary.csrc_dir().parent, capture_output=True, text=True)
    assert run.returncode == 0, f"{source} for sm_{arch}:\n{run.stdout}{run.stderr}"
    warnings = [line for line in (run.stdout + run.stderr).splitlines() if "warning" in line.lower()]
    assert not warnings, "\n".join(warnings)
    return cubin, run.stdout + run.stderr


def readable(names: list[str]) -> dict[str, str]:
    """{mangled: demangled}."""
    out = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return dict(zip(names, out.splitlines(), strict=True))


def kernels_of(source: str, arch: str, folder: Path) -> list[Kernel]:
    """Every kernel of one source file."""
    cubin, said = compile_one(source, arch, folder)
    found = {}
    pattern = r"Function properties for (\S+)\n\s*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill"
    for name, stack, stored, loaded in re.findall(pattern, said):
        found[name] = [int(stack), int(stored) + int(loaded)]
    # ptxas names a kernel, then what it used
    for name, registers in re.findall(r"Compiling entry function '(\S+)'.*?Used (\d+) registers", said, re.S):
        found[name].append(int(registers))
    names = readable(list(found))
    kernels = {
        name: Kernel(arch, Path(source).name, names[name], registers, stack, spilled)
        for name, (stack, spilled, registers) in found.items()
    }
    listing = subprocess.run([sass_tool(), "-sass", cubin], capture_output=True, text=True, check=True).stdout
    for part in listing.split("Function : ")[1:]:
        name, _, body = part.partition("\n")
        widths = kernels[name.strip()].widths
        for kind, modifiers in re.findall(r"\b(LDG|STG|LDL|STL|LDS|STS)((?:\.\w+)*)", body):
            size = next((m for m in modifiers.split(".") if m in ("8", "U8", "16", "U16", "S16", "64", "128")), "32")
            key = f"{kind}.{size.lstrip('US')}"
            widths[key] = widths.get(key, 0) + 1
    return list(kernels.values())


def all_kernels(archs: list[str], folder: Path) -> list[Kernel]:
    """Every kernel of csrc/ for each of these architectures."""
    sources = [f"csrc/{path.name}" for path in sorted(binary.csrc_dir().glob("*.cu"))]
    jobs = [(source, arch) for source in sources for arch in archs]
    with ThreadPoolExecutor(build.jobs()) as pool:
        return [kernel for some in pool.map(lambda job: kernels_of(*job, folder), jobs) for kernel in some]
