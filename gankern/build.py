"""How csrc/ is compiled: for GPUs by nvcc, or by g++ for CPU tensors, with which the tests run the same kernels.

Used by setup.py, by `gankern build` and by the tests. Needs the standard library alone: torch is looked at, not
imported. A BuildError is one line that says what is missing.
"""

import contextlib
import ctypes
import importlib.util
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from gankern import binary
from gankern.binary import find, record, search

__all__ = ["BuildError", "build", "find", "record", "search", "toolchain"]

DEFAULT_ARCHS = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")  # and PTX of the last
OLDEST_TORCH = (2, 10)
TORCH_TARGET = "0x020a000000000000"  # the same in torch's stable ABI: a binary runs under this version and newer ones
TORCH_CUDA_SYMBOLS = ("aoti_torch_get_current_cuda_stream",)  # all that csrc/ may take from libtorch_cuda
GIGABYTES_PER_JOB = 3
INSTALL = "install the CUDA toolkit (12.8 or newer knows every GPU that gankern builds for)"

_COMMON = ("-std=c++17", f"-DTORCH_TARGET_VERSION={TORCH_TARGET}")
_HOST = ("-x", "c++", *_COMMON, "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-DGANKERN_HOST", "-U_FORTIFY_SOURCE")
_NVCC = ("-O3", "-DUSE_CUDA", "--expt-relaxed-constexpr", "-Xfatbin", "-compress-all")
_CUDA = (*_COMMON, *_NVCC, "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall")
_ROOT = Path(__file__).resolve().parents[1]


class BuildError(RuntimeError):
    """What is missing or went wrong, in one line."""


# -- what there is ----------------------------------------------------------------------------------------------------


class Torch(NamedTuple):
    """An installed torch, known without importing it."""

    root: Path
    version: str
    cuda: str | None


def installed_torch() -> Torch:
    """The torch of this environment. BuildError: there is none, or one without the stable ABI that csrc/ needs."""
    spec = importlib.util.find_spec("torch")
    root = Path(spec.origin).parent if spec and spec.origin else None
    if root is None or not (root / "version.py").is_file():
        raise BuildError("no torch to build against: install it first, and give pip install --no-build-isolation")
    text = (root / "version.py").read_text()
    version = re.search(r"^__version__ = '(.+)'", text, re.M)[1]
    cuda = re.search(r"^cuda\b.*= '(.+)'", text, re.M)
    if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < OLDEST_TORCH:
        raise BuildError(f"torch {version} is too old for the CUDA kernels, which need 2.10 or newer")
    return Torch(root, version, cuda[1] if cuda else None)


def require_cuda_torch() -> None:
    """BuildError where torch is missing or can't run CUDA kernels, whatever compiler there is."""
    torch = installed_torch()
    if torch.cuda is None:
        raise BuildError(f"torch {torch.version} is a build without CUDA; install one with it from pytorch.org")


def find_nvcc() -> Path:
    """nvcc under CUDA_HOME or CUDA_PATH where one is set, else on PATH, else in /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [str(Path(home) / "bin")] if home else [None, "/usr/local/cuda/bin"]
    for place in places:
        if found := shutil.which("nvcc", path=place):
            return Path(found)
    where = f"in {places[0]}, where CUDA_HOME or CUDA_PATH points" if home else "on PATH nor in /usr/local/cuda"
    raise BuildError(f"no CUDA compiler: nvcc isn't {where}; {INSTALL}, or set GANKERN_BUILD_EXT=0")


def _ask(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise BuildError(f"{shlex.join(command)} fails: {said[-1] if said else 'no output'}") from error


def parse_archs(text: str, name: str = "TORCH_CUDA_ARCH_LIST") -> tuple[str, ...]:
    """From "8.0;9.0a+PTX" ("8.0", "9.0a+PTX"), from "sm_90 sm_100" ("9.0", "10.0"). BuildError: which word is bad."""
    archs = []
    for word in re.split(r"[;,\s]+", text.strip("; ,\t\n")):
        match = re.fullmatch(r"(?:sm_)?(\d+)\.?(\d)([af]?)(\+PTX)?", word)
        if not match:
            raise BuildError(f"{name}={text}: {word!r} isn't an architecture; expected such as '8.0;9.0+PTX'")
        archs.append(f"{match[1]}.{match[2]}{match[3]}{match[4] or ''}")
    return tuple(dict.fromkeys(archs))


def _known_archs(nvcc: Path, archs: Sequence[str] | None) -> tuple[str, ...]:
    """`archs`, else what TORCH_CUDA_ARCH_LIST says, all known to nvcc; else those of the default that are."""
    if archs is None and (given := os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip("; ,\t\n")):
        archs = parse_archs(given)
    has = sorted(int(n) for n in re.findall(r"compute_(\d+)", _ask(str(nvcc), "--list-gpu-arch")))
    unknown = [arch for arch in archs or DEFAULT_ARCHS if int(re.sub(r"\D", "", arch)) not in has]
    if archs is None and len(unknown) < len(DEFAULT_ARCHS):
        archs = [arch for arch in DEFAULT_ARCHS if arch not in unknown]
        return (*archs[:-1], f"{archs[-1]}+PTX")
    if unknown:
        raise BuildError(f"{nvcc} can't build for {unknown[0]}, only for {', '.join(map(str, has))}; {INSTALL}")
    return tuple(archs)


def jobs() -> int:
    """MAX_JOBS, else as many compilers at once as there are CPUs and memory for."""
    if given := os.environ.get("MAX_JOBS"):
        if not given.isdecimal() or int(given) < 1:
            raise BuildError(f"MAX_JOBS={given}: expected a number from 1 on")
        return int(given)
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    with contextlib.suppress(OSError, TypeError):
        kilobytes = int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1])
        limits.append(kilobytes // (GIGABYTES_PER_JOB << 20))
    with contextlib.suppress(OSError, ValueError):  # a container's own limit; "max" where it has none
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()) // (GIGABYTES_PER_JOB << 30))
    return max(1, min(limits))


def archs_for(option: str | None) -> tuple[str, ...] | None:
    """What `gankern build` compiles for: its option --arch, else TORCH_CUDA_ARCH_LIST (None), else the GPUs at hand.

    BuildError: this torch can't run CUDA kernels, there is no GPU, or its driver is too old for this nvcc.
    """
    require_cuda_torch()
    if option is not None:
        return parse_archs(option, "--arch")
    if os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip("; ,\t\n"):
        return None
    import torch

    if not torch.cuda.is_available():
        raise BuildError("no GPU that torch can use: say what to build for, such as --arch '8.0;9.0+PTX'")
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    with contextlib.suppress(OSError, AttributeError):
        driver = ctypes.c_int()
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(driver))
        has, needs = driver.value // 1000, int(_version_of(find_nvcc()).split(".")[0])
        if has < needs:
            raise BuildError(
                f"nvcc is of CUDA {needs}, the driver for CUDA {has}: let CUDA_HOME name a toolkit of {has}"
            )
    return tuple(f"{major}.{minor}" for major, minor in sorted(found))


def _version_of(nvcc: Path) -> str:
    match = re.search(r"release [\d.]+, V([\d.]+)", _ask(str(nvcc), "--version"))
    if not match:
        raise BuildError(f"{nvcc} --version names no CUDA release")
    return match[1]


# -- commands ---------------------------------------------------------------------------------------------------------


class Toolchain(NamedTuple):
    """Everything that a binary depends on besides the sources."""

    mode: str  # "cuda" or "host"
    torch: Torch
    compiler: str
    version: str  # of the compilers
    archs: tuple[str, ...]

    def compile(self, source: str, output: str, *more: str) -> list[str]:
        """The command that compiles a file, in the folder that holds csrc/; `output`.d will list what it includes."""
        includes = ["-isystem", str(self.torch.root / "include")]
        files = ["-MD", "-MF", f"{output}.d", "-c", source, "-o", output]
        if self.mode == "host":
            return [self.compiler, *_HOST, "-iquote", "csrc", *includes, *more, *files]
        # quoted includes alone: with -I, a header here would stand before the toolkit's of the same name
        return [self.compiler, *_CUDA, "-Xcompiler", "-iquote,csrc", *self._gencode(), *includes, *more, *files]

    def _gencode(self) -> list[str]:
        flags = []
        for arch in self.archs:
            number = arch.removesuffix("+PTX").replace(".", "")
            flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
            if arch.endswith("+PTX"):
                flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
        return flags

    def link(self, objects: Sequence[str], output: str) -> list[str]:
        """The command that links them. Every symbol has to be found here, rather than by the user's loader."""
        libraries = ["-L", str(self.torch.root / "lib"), "-ltorch_cpu"]
        strict = "--no-as-needed,-z,defs"
        if self.mode == "host":
            return [self.compiler, "-shared", *objects, "-o", output, f"-Wl,{strict}", *libraries]
        linking = ["-shared", "-cudart", "static", "--no-device-link", *objects, "-o", output, "-Xlinker", strict]
        return [self.compiler, *linking, "-L", ".", "-ltorch_cuda", *libraries]

    def stub(self) -> list[str]:
        """Makes what stands for libtorch_cuda when linking, so that any torch can build: one without CUDA too."""
        flags = ["-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so"]
        return ["g++", "-x", "c", *flags, "stub.c", "-o", "libtorch_cuda.so"]

    def key(self) -> str:
        """A hash of it all."""
        torch = ".".join(self.torch.version.split(".")[:2]) if self.mode == "host" else TORCH_TARGET
        flags = shlex.join(self.compile("", "")).replace(str(self.torch.root), "")
        return binary.digest(self.mode, torch, self.version, flags, platform.machine())


def toolchain(mode: str, archs: Sequence[str] | None = None) -> Toolchain:
    """What compiles csrc/ here: mode "cuda" for `archs`, else TORCH_CUDA_ARCH_LIST, else all; "host" for CPU tensors.

    BuildError: a compiler or torch is missing or too old.
    """
    torch = installed_torch()
    nvcc = find_nvcc() if mode == "cuda" else None
    gxx = (os.environ.get("CXX") if mode == "host" else None) or "g++"
    if not shutil.which(gxx):
        raise BuildError(f"no C++ compiler: {gxx} isn't on PATH; install it (Debian and Ubuntu: apt install g++)")
    version = f"{Path(gxx).name} {_ask(gxx, '-dumpfullversion').strip()}"
    if mode == "host":
        return Toolchain(mode, torch, gxx, version, ())
    return Toolchain(mode, torch, str(nvcc), f"nvcc {_version_of(nvcc)}, {version}", _known_archs(nvcc, archs))


# -- building ---------------------------------------------------------------------------------------------------------


def build(
    mode: str,
    archs: Sequence[str] | None = None,
    *,
    sources: Sequence[Path] = (),
    cache: Path | None = None,
    force: bool = False,
    verbose: bool = False,
) -> Path:
    """Compiles csrc/ into the cache and returns the library's path, at once where the same is there already.

    `sources`: files to compile instead of those in csrc/, whose headers they may include. `force`: compile all of it
    again. `verbose`: show what the compilers say, warnings too. BuildError says in one line what went wrong.
    """
    tools = toolchain(mode, archs)
    root = (cache or binary.cache_dir()) / "build"
    work = root / f"objects-{binary.digest(tools.key(), binary.csrc_dir(), [p.resolve() for p in sources])}"
    try:
        with _alone(work) as folder:
            return _build(tools, root, folder, sources, force, verbose)
    except OSError as error:
        what = f"{error.filename or root}: {error.strerror or error}"
        raise BuildError(f"{what}; GANKERN_CACHE names another folder") from error


def _build(tools: Toolchain, root: Path, folder: Path, sources: Sequence[Path], force: bool, verbose: bool) -> Path:
    copies = _copy_sources(folder, sources)
    stamp = binary.fingerprint(folder / "csrc", [folder / p for p in copies if p.parts[0] != "csrc"])
    target = root / binary.digest(tools.key(), stamp) / binary.NAMES[tools.mode]
    if binary.record(target) and not force:
        return target
    if not copies:
        raise BuildError(f"{binary.csrc_dir()} holds no .cu file")
    began = time.time()
    if force:
        shutil.rmtree(folder / "objects", ignore_errors=True)
    (folder / "objects").mkdir(exist_ok=True)
    _run(tools, folder, copies, verbose)
    made = {
        "gankern": binary.package_version(),
        "commit": _commit(),
        "mode": tools.mode,
        "torch": tools.torch.version,
        "torch_target": TORCH_TARGET,
        "compiler": tools.version,
        "archs": list(tools.archs),
        "machine": platform.machine(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "seconds": round(time.time() - began, 1),
        "sources": stamp,
        "objects": folder.name,
        "flags": shlex.join(tools.compile("FILE.cu", "FILE.o")),
    }
    publish(folder / binary.NAMES[tools.mode], made, target)
    _sweep(root, target, folder.name)
    return target


def publish(library: Path, made: dict, target: Path) -> None:
    """Copies a library and its record to where they are looked for; each appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copy2(library, new)
    os.replace(new, target)  # the library first: who sees the record sees it
    new.write_text(json.dumps(made, indent=1) + "\n")
    os.replace(new, binary.record_path(target))


def _sweep(root: Path, target: Path, objects: str, keep: int = 4) -> None:
    """Removes all but the last few libraries that were made of the same folder at earlier states."""
    libraries = [p for p in root.glob(f"*/{target.name}") if (binary.record(p) or {}).get("objects") == objects]
    for library in sorted(libraries, key=lambda p: p.stat().st_mtime)[:-keep]:
        shutil.rmtree(library.parent, ignore_errors=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """`folder`, when no other process builds in it; a private one where the file system has no locks."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            import fcntl

            fcntl.flock(stack.enter_context(open(folder / ".lock", "w")), fcntl.LOCK_EX)
        except (ImportError, OSError):
            folder = folder.with_name(f"{folder.name}.{os.getpid()}")
            folder.mkdir(exist_ok=True)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def _copy_sources(folder: Path, sources: Sequence[Path]) -> list[Path]:
    """Brings the copies that are compiled up to date, and returns those of .cu files, relative to `folder`.

    A copy is written only where its contents change, so that its time is that of the change, which ninja goes by: the
    time of an unpacked or checked out file may be any. Nor do edits while the compilers run matter.
    """
    root = binary.csrc_dir()
    wanted = {Path("csrc") / p.relative_to(root): p for p in binary.source_files(root)}
    given = {Path("given") / p.name: p for p in sources}
    for name, origin in (wanted | given).items():
        copy, contents = folder / name, origin.read_bytes()
        if not copy.is_file() or copy.read_bytes() != contents:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(contents)
    for copy in binary.source_files(folder / "csrc"):
        if copy.relative_to(folder) not in wanted:
            copy.unlink()
    return sorted(given or (p for p in wanted if p.suffix == ".cu"))


def _run(tools: Toolchain, folder: Path, sources: Sequence[Path], verbose: bool) -> None:
    """Compiles and links, with ninja where it is found. BuildError: the first error that the compilers print."""
    objects = {path.as_posix(): f"objects/{'_'.join(path.parts)}.o" for path in sources}
    library = binary.NAMES[tools.mode]
    if tools.mode == "cuda":
        (folder / "stub.c").write_text("".join(f"void {name}(void) {{}}\n" for name in TORCH_CUDA_SYMBOLS))
        _call(tools.stub(), folder, verbose)
    compiles = [tools.compile(source, output) for source, output in objects.items()]
    link = tools.link(list(objects.values()), library)
    if ninja := _ninja():
        _write_ninja(folder / "build.ninja", compiles, objects, link, library)
        code, said = _call([*ninja, "-j", str(jobs()), *(["-v"] if verbose else [])], folder, verbose)
    else:
        with ThreadPoolExecutor(jobs()) as pool:
            done = list(pool.map(lambda command: _call(command, folder, verbose), compiles))
        if not any(code for code, _ in done):
            done.append(_call(link, folder, verbose))
        code, said = any(code for code, _ in done), "".join(text for _, text in done)
    (folder / "log.txt").write_text(said)
    if code:
        errors = re.findall(r".*(?:\berror\b|undefined reference|cannot find|Killed).*", said)
        raise BuildError(f"csrc doesn't compile: {(errors or [said])[0].strip()} (all of it: {folder / 'log.txt'})")


def _call(command: Sequence[str], folder: Path, verbose: bool) -> tuple[int, str]:
    said = ""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(command, cwd=folder, **pipes) as process:
        for line in itertools.chain([f"{shlex.join(command)}\n"], process.stdout):
            said += line
            if verbose:
                print(line, end="", flush=True)
    return process.returncode, said


def _ninja() -> list[str] | None:
    """ninja, on PATH or beside this Python, if it really runs: in pip's build environment a script of it may not."""
    for place in (None, str(Path(sys.executable).parent)):
        if found := shutil.which("ninja", path=place):
            with contextlib.suppress(BuildError):
                _ask(found, "--version")
                return [found]
    return None


def _write_ninja(path: Path, compiles: Sequence[list[str]], objects: dict[str, str], link: list[str], out: str) -> None:
    def line(command: list[str]) -> str:
        return f"  command = {shlex.join(command).replace('$', '$$')}"

    rules = ["rule link", line(link), f"build {out}: link {' '.join(objects.values())}"]
    for command, (source, output) in zip(compiles, objects.items(), strict=True):
        rule = output.replace("/", "_")
        rules += [f"rule {rule}", line(command), f"  depfile = {output}.d", "  deps = gcc"]
        rules += [f"build {output}: {rule} {source}"]
    path.write_text("\n".join(rules) + "\n")


def _commit() -> str | None:
    """Of the checkout that this file lies in."""
    if not (_ROOT / ".git").exists():
        return None
    with contextlib.suppress(BuildError):
        return _ask("git", "-C", str(_ROOT), "rev-parse", "--short=12", "HEAD").strip()


def check_loads(library: Path) -> None:
    """BuildError with the loader's own words where this Python's torch can't load it."""
    code = """if True:
        import sys, torch
        try:
            torch.ops.load_library(sys.argv[1])
        except Exception as error:
            sys.exit(str(error.__cause__ or error))  # torch's own error only says that it failed
    """
    run = subprocess.run([sys.executable, "-c", code, str(library)], capture_output=True, text=True)
    if run.returncode:
        raise BuildError(f"{library} doesn't load: {(run.stderr.strip() or 'no reason given').splitlines()[-1]}")
