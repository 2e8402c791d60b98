"""Compiling csrc/: what is chosen, what is said where something is missing, and the wheels of each mode."""

import ctypes
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch

from gankern import binary, build

ROOT = Path(build.__file__).parents[1]
BUILDS = binary.cache_dir()  # the user's, whatever the tests set later

try:
    NVCC = build.find_nvcc()
except build.BuildError:
    NVCC = None
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs nvcc")
needs_gxx = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
needs_source = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="needs gankern's source tree")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch, tmp_path):
    """No variable that steers a build, and a cache of its own."""
    names = "CUDA_HOME CUDA_PATH CXX MAX_JOBS TORCH_CUDA_ARCH_LIST GANKERN_BUILD_EXT GANKERN_CUDA_LIB"
    for name in names.split():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GANKERN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def csrc(monkeypatch, tmp_path):
    """A small csrc/ instead of the real one: two sources, one header that only the first includes."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    export = 'extern "C" __attribute__((visibility("default"))) int'
    (folder / "value.h").write_text("#define VALUE 7\n")
    (folder / "a.cu").write_text(f'#include "value.h"\n{export} value() {{ return VALUE; }}\n')
    (folder / "b.cu").write_text(f"{export} other() {{ return 1; }}\n")
    monkeypatch.setattr(binary, "csrc_dir", lambda: folder)
    return folder


@pytest.fixture
def tools(monkeypatch, tmp_path):
    """tools(**{name: shell script}) -> a folder with these programs, which alone is on PATH from then on."""

    def make(**programs: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, script in programs.items():
            path = folder / name.replace("gxx", "g++")
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        return folder

    return make


def fake_torch(folder: Path, version: str, cuda: str = "None") -> None:
    """A torch that can be looked at and not imported."""
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text("raise ImportError('not to be imported')\n")
    (folder / "torch" / "version.py").write_text(f"__version__ = '{version}'\ncuda: Optional[str] = {cuda}\n")


def use_torch(monkeypatch, folder: Path, *args) -> None:
    fake_torch(folder, *args)
    monkeypatch.delitem(sys.modules, "torch")  # the spec of an imported module is that module's
    monkeypatch.syspath_prepend(str(folder))


NVCC_SCRIPT = (
    'case "$1" in --list-gpu-arch) echo compute_80; echo compute_90;; *) echo "release 12.4, V12.4.131";; esac'
)


# -- what is chosen ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "archs"),
    [
        ("9.0", ("9.0",)),
        ("8.0;9.0a+PTX", ("8.0", "9.0a+PTX")),
        (" 8.0  12.0+PTX ", ("8.0", "12.0+PTX")),
        ("sm_90,sm_100,90;8.0;", ("9.0", "10.0", "8.0")),
    ],
)
def test_architectures(text, archs):
    assert build.parse_archs(text) == archs


@pytest.mark.parametrize("text", ["Hopper", "9", "9.0+ptx", "8.0;x", "9.00", ""])
def test_bad_architecture(text):
    with pytest.raises(build.BuildError, match=r"^--arch=.* isn't an architecture; expected such as '8.0;9.0\+PTX'$"):
        build.parse_archs(text, "--arch")


def test_default_architectures_are_those_that_the_compiler_knows(tools, monkeypatch):
    tools(nvcc=NVCC_SCRIPT, gxx="echo 12.2.0")
    assert build.toolchain("cuda").archs == ("8.0", "9.0+PTX")
    assert build.toolchain("cuda", ["9.0"]).archs == ("9.0",)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0+PTX")
    assert build.toolchain("cuda").archs == ("8.0+PTX",)
    assert build.toolchain("cuda").version == "nvcc 12.4.131, g++ 12.2.0"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;10.0a")
    with pytest.raises(
        build.BuildError, match=r"nvcc can't build for 10.0a, only for 80, 90; install the CUDA toolkit"
    ):
        build.toolchain("cuda")


def test_jobs(monkeypatch):
    assert 1 <= build.jobs() <= (os.cpu_count() or 1)
    monkeypatch.setattr(build, "GIGABYTES_PER_JOB", 1 << 20)
    assert build.jobs() == 1
    monkeypatch.setenv("MAX_JOBS", "77")
    assert build.jobs() == 77
    for bad in ("0", "many", "-1"):
        monkeypatch.setenv("MAX_JOBS", bad)
        with pytest.raises(build.BuildError, match=f"^MAX_JOBS={bad}: expected a number"):
            build.jobs()


def test_fingerprint(csrc):
    before = binary.fingerprint(csrc)
    moved = shutil.copytree(csrc, csrc.parent / "elsewhere" / "csrc")
    assert binary.fingerprint(moved) == before
    (moved / "notes.txt").write_text("not compiled")
    assert binary.fingerprint(moved) == before
    (moved / "value.h").write_text("#define VALUE 8\n")
    assert binary.fingerprint(moved) != before
    shutil.copy(csrc / "value.h", moved)
    (moved / "b.cu").rename(moved / "c.cu")
    assert binary.fingerprint(moved) != before


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        (["8.0"], (8, 6), True),
        (["8.6"], (8, 0), False),
        (["8.0"], (9, 0), False),
        (["8.0+PTX"], (9, 0), True),
        (["9.0+PTX"], (8, 0), False),
        (["9.0a"], (9, 0), True),
        (["10.0a"], (10, 3), False),
        (["10.0f"], (10, 3), True),
        (["9.0a+PTX"], (10, 0), False),
        (["8.0", "12.0"], (12, 1), True),
        (["9.0"], (10, 0), False),
    ],
)
def test_runs_on(archs, capability, runs):
    assert binary.runs_on(archs, capability) is runs


# -- what is missing --------------------------------------------------------------------------------------------------


def says(mode: str = "cuda", **kwargs) -> str:
    """The one line of a build that fails."""
    with pytest.raises(build.BuildError) as error:
        build.build(mode, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_nvcc(tools, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", "/nonexistent")
    assert says().startswith("no CUDA compiler: nvcc isn't in /nonexistent/bin, where CUDA_HOME")
    assert "install the CUDA toolkit (12.8 or newer" in says()
    assert says().endswith("or set GANKERN_BUILD_EXT=0")
    monkeypatch.delenv("CUDA_HOME")
    folder = tools(gxx="echo 12.2.0")
    if not Path("/usr/local/cuda/bin/nvcc").exists():
        assert says().startswith("no CUDA compiler: nvcc isn't on PATH nor in /usr/local/cuda; install")
    monkeypatch.setenv("CUDA_PATH", str(tmp_path))
    assert f"isn't in {tmp_path}/bin" in says()
    folder.joinpath("nvcc").symlink_to("/bin/true")
    assert build.find_nvcc() == folder / "nvcc"


def test_no_gxx(tools, monkeypatch):
    tools(nvcc=NVCC_SCRIPT)
    for mode in ("host", "cuda"):
        assert says(mode).startswith("no C++ compiler: g++ isn't on PATH; install it")
    monkeypatch.setenv("CXX", "clang++-77")
    assert says("host").startswith("no C++ compiler: clang++-77 isn't on PATH")


def test_broken_nvcc(tools):
    tools(nvcc="echo first >&2; echo no licence >&2; exit 3", gxx="echo 12.2.0")
    assert re.fullmatch(r"\S+/nvcc --version fails: no licence", says())


def test_old_torch(monkeypatch, tmp_path):
    use_torch(monkeypatch, tmp_path / "old", "2.9.1+cu128", "'12.8'")
    assert says("host") == "torch 2.9.1+cu128 is too old for the CUDA kernels, which need 2.10 or newer"


def test_no_torch(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "torch.py").write_text("raise ImportError")
    assert says() == "no torch to build against: install it first, and give pip install --no-build-isolation"


def test_torch_is_known_without_importing_it(monkeypatch, tmp_path):
    use_torch(monkeypatch, tmp_path / "new", "2.12.0a0+git1234", "'13.0'")
    assert build.installed_torch() == (tmp_path / "new" / "torch", "2.12.0a0+git1234", "13.0")
    build.require_cuda_torch()


def test_installed_torch():
    assert build.installed_torch() == (Path(torch.__file__).parent, torch.__version__, torch.version.cuda)


def test_no_sources(csrc):
    for path in csrc.glob("*.cu"):
        path.unlink()
    if shutil.which("g++"):
        assert says("host") == f"{csrc} holds no .cu file"


# -- builds -----------------------------------------------------------------------------------------------------------


def value(library: Path) -> int:
    return ctypes.CDLL(str(library)).value()


def compiled(cache: Path) -> list[str]:
    """The sources that the latest build compiled."""
    log = max(cache.glob("build/objects-*/log.txt"), key=lambda p: p.stat().st_mtime).read_text()
    return sorted(re.findall(r"-c csrc/(\w+\.cu)", log))


@needs_gxx
def test_build_again_compiles_what_changed(csrc, tmp_path):
    if build._ninja() is None:
        pytest.skip("needs ninja")
    cache = tmp_path / "cache"
    verbose = {"verbose": True}  # ninja names its commands only then
    first = build.build("host", **verbose)
    assert (value(first), compiled(cache)) == (7, ["a.cu", "b.cu"])
    made = build.record(first)
    assert (made["gankern"], made["torch"], made["archs"]) == (binary.package_version(), torch.__version__, [])
    for name in ("commit", "compiler", "date", "flags", "sources"):
        assert name in made
    time = first.stat().st_mtime_ns
    assert build.build("host") == first
    assert first.stat().st_mtime_ns == time
    (csrc / "value.h").write_text("#define VALUE 8\n")
    os.utime(csrc / "value.h", (0, 0))  # as old as a file of an archive may be
    second = build.build("host", **verbose)
    assert (value(second), compiled(cache)) == (8, ["a.cu"])
    assert value(first) == 7
    assert build.build("host", force=True, **verbose) == second
    assert compiled(cache) == ["a.cu", "b.cu"]
    (csrc / "b.cu").unlink()
    third = build.build("host")
    assert not hasattr(ctypes.CDLL(str(third)), "other")
    for i in range(5):
        (csrc / "a.cu").write_text(f'extern "C" int value() {{ return {i}; }}\n')
        build.build("host")
    assert not first.exists()
    assert (
        len(list((tmp_path / "cache" / "build").glob("*/gankern_host.so"))) == 4 + 1
    )  # and the one in its work folder


@needs_gxx
def test_build_without_ninja(csrc, monkeypatch):
    monkeypatch.setattr(build, "_ninja", lambda: None)
    assert value(build.build("host")) == 7
    (csrc / "a.cu").write_text("int value( { }\n")
    assert "a.cu:1:" in says("host")


@needs_gxx
def test_compile_error_is_one_line(csrc):
    (csrc / "value.h").write_text("#define VALUE nothing_such\n")
    said = says("host")
    assert re.match(
        r"csrc doesn't compile: csrc/value.h:1:\d+: error: .*nothing_such.* \(all of it: .*log.txt\)$", said
    )
    assert "nothing_such" in Path(said.split("all of it: ")[1].rstrip(")")).read_text()


@needs_gxx
def test_missing_symbol_is_an_error_of_the_build(csrc):
    (csrc / "b.cu").write_text("int missing(); int other() { return missing(); }\n")
    assert "undefined reference to `missing()'" in says("host")


@needs_gxx
def test_own_sources(csrc, tmp_path):
    given = tmp_path / "given.cu"
    given.write_text((csrc / "a.cu").read_text().replace("VALUE;", "VALUE + 100;"))
    assert value(build.build("host", sources=[given])) == 107
    assert value(build.build("host")) == 7


@needs_gxx
def test_builds_at_once(csrc, tmp_path):
    """One process compiles, the others wait for it."""
    found, threads = [], []
    compiler = tmp_path / "slow-g++"
    compiler.write_text(f"#!/bin/sh\necho $* >>{tmp_path}/calls\nsleep 0.3\nexec g++ $*\n")
    compiler.chmod(0o755)
    code = f"""if True:
        from pathlib import Path
        from gankern import binary, build
        binary.csrc_dir = lambda: Path({str(csrc)!r})
        print(build.build("host"))
    """

    def run():
        env = os.environ | {"CXX": str(compiler)}
        command = [sys.executable, "-c", code]
        found.append(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)

    for _ in range(3):
        threads.append(threading.Thread(target=run))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert value(Path(found[0].strip())) == 7
    assert len(re.findall(" -c ", (tmp_path / "calls").read_text())) == 2


@needs_gxx
def test_cache_that_cannot_be_written(csrc, tmp_path):
    (tmp_path / "file").touch()
    assert says("host", cache=tmp_path / "file").startswith(f"{tmp_path}/file/build")


@needs_nvcc
@needs_gxx
def test_cuda_build(csrc, capfd):
    """A library of the only libraries that every torch with CUDA brings, for those architectures alone."""
    (csrc / "k.cu").write_text(
        "__global__ void k(float* x) { x[threadIdx.x] = 1; }\nvoid f(float* x) { k<<<1, 32>>>(x); }\n"
    )
    library = build.build("cuda", ["9.0"])
    assert capfd.readouterr().out == ""
    assert build.record(library)["archs"] == ["9.0"]
    assert build.record(library)["compiler"].startswith("nvcc ")
    assert binary.search((9, 0)) == (library, "made by gankern build")
    assert binary.search((8, 0)) == (None, "built for 9.0, not for 8.0: run gankern build")
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"NEEDED.*\[(\w+)", needed))
    assert needed >= {"libtorch_cpu", "libtorch_cuda"}
    assert not needed & {"libcudart", "libtorch_python", "libc10"}
    if not (build.installed_torch().root / "lib" / "libtorch_cuda.so").exists():
        with pytest.raises(build.BuildError, match=r"_cuda.abi3.so doesn't load: libtorch_cuda.so: cannot open shared"):
            build.check_loads(library)
    (csrc / "value.h").write_text("#define VALUE 8\n")
    assert binary.search() == (None, "stale, built from other sources: run gankern build")


@needs_gxx
def test_kernels_use_the_stable_abi_alone():
    """Nothing of torch with a mangled C++ name: such a symbol holds for one version of torch."""
    library = build.build("host", cache=BUILDS)
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True
    ).stdout
    names = re.findall(r"\bU (\S+)", symbols)
    assert any(name.startswith("aoti_torch_") for name in names)
    assert [name for name in names if re.match(r"_ZNK?(3c10|2at|5torch)", name)] == []


# -- what is found ----------------------------------------------------------------------------------------------------


def put(folder: Path, **changes) -> Path:
    """A library as `gankern build` leaves it."""
    folder.mkdir(parents=True)
    library = folder / binary.NAMES["cuda"]
    library.touch()
    made = {"sources": binary.fingerprint(binary.csrc_dir()), "machine": os.uname().machine, "archs": ["9.0"]}
    binary.record_path(library).write_text(json.dumps(made | changes))
    return library


def test_search(csrc, monkeypatch, tmp_path):
    cache = tmp_path / "cache" / "build"
    assert binary.search() == (None, "not built: run gankern build")
    put(cache / "other machine", machine="vax")
    assert binary.find() is None
    put(cache / "stale", sources="old")
    assert binary.search() == (None, "stale, built from other sources: run gankern build")
    old = put(cache / "old")
    new = put(cache / "new", archs=["8.0", "9.0+PTX"])
    os.utime(old, (1, 1))
    assert binary.find() == binary.find((9, 0)) == binary.find((12, 0)) == new
    os.utime(new, (0, 0))
    assert binary.find() == binary.find((9, 0)) == old
    assert binary.find((8, 6)) == new
    assert binary.search((7, 5)) == (None, "built for 8.0, 9.0, 9.0+PTX, not for 7.5: run gankern build")
    package = tmp_path / "package"
    monkeypatch.setattr(binary, "_HERE", package)
    monkeypatch.setattr(binary, "fingerprint", lambda folder: build.record(old)["sources"])
    packaged = put(package)
    os.utime(packaged, (0, 0))
    assert binary.search() == (packaged, "part of the package")
    monkeypatch.setenv("GANKERN_CUDA_LIB", str(tmp_path / "mine.so"))
    assert binary.search() == (None, f"GANKERN_CUDA_LIB={tmp_path}/mine.so: no such file")
    (tmp_path / "mine.so").touch()
    assert binary.find() == tmp_path / "mine.so"


@pytest.mark.parametrize("text", [None, "", "[]", "{"])
def test_no_record(text, tmp_path, csrc):
    library = put(tmp_path / "cache" / "build" / "x")
    assert build.record(library)["archs"] == ["9.0"]
    binary.record_path(library).unlink()
    if text is not None:
        binary.record_path(library).write_text(text)
    assert build.record(library) is None
    assert binary.find() is None


# -- gankern build ----------------------------------------------------------------------------------------------------


@needs_gxx
def test_command(csrc, cli, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "check_loads", lambda library: None)
    code, out, err = cli("build", "--host")
    assert (code, err) == (0, "")
    assert out.startswith(f"{tmp_path}/cache/build/")
    assert re.search(r"gankern_host.so\nbuilt 2.* for CPU tensors by g\+\+ [\d.]+ in \d+ s\n$", out)
    assert "b.cu" in cli("build", "--host", "--force", "--verbose")[1]
    (csrc / "a.cu").write_text("nonsense\n")
    code, out, err = cli("build", "--host")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("gankern: error: csrc doesn't compile: csrc/a.cu:1:1: error:")


@needs_gxx
def test_library_that_does_not_load(csrc, cli):
    (csrc / "b.cu").write_text("#include <stdlib.h>\n__attribute__((constructor)) void start() { _Exit(7); }\n")
    code, _, err = cli("build", "--host")
    assert code == 2
    assert err.endswith("gankern_host.so doesn't load: no reason given\n")


def test_command_without_gpu(refused, monkeypatch):
    monkeypatch.setattr(build, "installed_torch", lambda: build.Torch(Path(), "2.13.0+cu130", "13.0"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused("build", words=("no GPU that torch can use", "--arch '8.0;9.0+PTX'"))
    refused("build", "--arch", "Hopper", words=("--arch=Hopper: 'Hopper' isn't an architecture",))
    refused("build", "--arch", "9.0", "--host", words=("--arch 9.0: --host builds for the CPU",))
    monkeypatch.setattr(build, "installed_torch", lambda: build.Torch(Path(), "2.13.0+cpu", None))
    refused("build", "--arch", "9.0", words=("torch 2.13.0+cpu is a build without CUDA",))


def test_command_for_the_gpus_at_hand(monkeypatch):
    monkeypatch.setattr(build, "installed_torch", lambda: build.Torch(Path(), "2.13.0+cu130", "13.0"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: [(9, 0), (8, 6), (9, 0)][i])
    driver = 12080

    class Driver:
        def __init__(self, name):
            assert name == "libcuda.so.1"

        def cuDriverGetVersion(self, to):
            to._obj.value = driver

    monkeypatch.setattr(ctypes, "CDLL", Driver)
    monkeypatch.setattr(build, "find_nvcc", lambda: Path("nvcc"))
    monkeypatch.setattr(build, "_version_of", lambda nvcc: "12.9.1")
    assert build.archs_for(None) == ("8.6", "9.0")
    monkeypatch.setattr(build, "_version_of", lambda nvcc: "13.0.88")
    with pytest.raises(build.BuildError, match=r"^nvcc is of CUDA 13, the driver for CUDA 12: let CUDA_HOME name"):
        build.archs_for(None)
    assert build.archs_for("9.0") == ("9.0",)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    assert build.archs_for(None) is None


# -- wheels -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    """A copy of what an sdist holds, with a csrc/ that compiles quickly."""
    tree = tmp_path / "tree"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "gankern", tree / "gankern", ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    (tree / "csrc").mkdir()
    (tree / "csrc" / "k.cu").write_text("int f() { return 7; }\n")
    return tree


def wheel(tree: Path, mode: str | None, *paths: Path, hook: str = "build_wheel", **variables: str):
    """(wheel or None, output) of the build backend, which is what pip calls; `paths` stand before all else."""
    out = tree.parent / f"wheel-{mode}"
    code = f"from setuptools import build_meta; build_meta.{hook}({str(out)!r})"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), **variables}
    env |= {} if mode is None else {"GANKERN_BUILD_EXT": mode}
    run = subprocess.run([sys.executable, "-c", code], cwd=tree, env=env, capture_output=True, text=True)
    assert "Traceback" not in run.stderr, run.stderr
    made = list(out.glob("*.whl"))
    assert (run.returncode == 0) == (len(made) == 1), run.stderr
    return (made[0] if made else None), run.stdout + run.stderr


def contents(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as file:
        return set(file.namelist())


SETUPTOOLS = int(importlib.metadata.version("setuptools").split(".")[0])
needs_backend = pytest.mark.skipif(SETUPTOOLS < 77, reason="needs setuptools 77")


@needs_source
@needs_backend
def test_pure_wheel_needs_no_torch(tree, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    made, _ = wheel(tree, "0", broken)
    assert made.name == f"gankern-{binary.package_version()}-py3-none-any.whl"
    assert "gankern/csrc/k.cu" in contents(made)  # for gankern build
    assert not any("_cuda.abi3" in name or "_cuda.json" in name for name in contents(made))
    made, said = wheel(tree, None, broken)
    assert made.name.endswith("-py3-none-any.whl")
    assert "gankern: installing without the CUDA kernels: no torch to build against" in said
    made, said = wheel(tree, "1", broken)
    assert made is None
    assert "GANKERN_BUILD_EXT=1: no torch to build against: install it first, and give pip install --no-build" in said


@needs_source
@needs_backend
def test_wheels_without_nvcc(tree, tmp_path):
    """auto installs without the kernels, 1 fails with the sentence that says what to install."""
    fake_torch(tmp_path / "fake", "2.13.0+cu130", "'13.0'")
    made, said = wheel(tree, "1", tmp_path / "fake", CUDA_HOME="/nonexistent")
    assert made is None
    assert "gankern: GANKERN_BUILD_EXT=1: no CUDA compiler: nvcc isn't in /nonexistent/bin" in said
    assert "install the CUDA toolkit" in said
    made, said = wheel(tree, "auto", tmp_path / "fake", CUDA_HOME="/nonexistent")
    assert made.name.endswith("-py3-none-any.whl")
    assert "gankern: installing without the CUDA kernels: no CUDA compiler: nvcc isn't in /nonexistent/bin" in said
    made, said = wheel(tree, "yes", tmp_path / "fake")
    assert made is None
    assert said == "gankern: GANKERN_BUILD_EXT=yes: expected auto, 0, 1 or host\n"


@needs_source
@needs_backend
@needs_nvcc
@needs_gxx
def test_wheel_with_kernels(tree, tmp_path):
    made, said = wheel(tree, "1", TORCH_CUDA_ARCH_LIST="9.0")
    assert made is not None, said
    assert re.search(r"-py3-none-linux_\w+\.whl$", made.name)
    site = tmp_path / "site"
    with zipfile.ZipFile(made) as file:
        file.extractall(site)
    assert "Root-Is-Purelib: false" in next(site.glob("*/WHEEL")).read_text()
    code = "from gankern import binary; print(*binary.search((9, 0)), binary.record(binary.find())['archs'])"
    run = subprocess.run([sys.executable, "-c", code], cwd=site, capture_output=True, text=True, check=True)
    assert run.stdout == f"{site}/gankern/_cuda.abi3.so part of the package ['9.0']\n"
    (tree / "csrc" / "k.cu").write_text("nonsense\n")
    fake_torch(tmp_path / "fake", "2.13.0+cu130", "'13.0'")
    made, said = wheel(
        tree, "auto", tmp_path / "fake", TORCH_CUDA_ARCH_LIST="9.0"
    )  # after one that left a binary behind
    assert made.name.endswith("-py3-none-any.whl")
    assert "_cuda.abi3.so" not in str(contents(made))
    assert re.search(r"installing without the CUDA kernels: csrc doesn't compile: csrc/k.cu.*error", said)


@needs_source
@needs_backend
@needs_gxx
@pytest.mark.parametrize("hook", ["build_editable", "build_wheel"])
def test_host_mode(tree, tmp_path, hook):
    """The library lands in the cache, never in a wheel."""
    made, said = wheel(tree, "host", hook=hook)
    assert made is not None, said
    assert made.name.endswith("-py3-none-any.whl")
    assert not any(name.endswith(".so") for name in contents(made))
    assert list((tmp_path / "cache" / "build").glob("*/gankern_host.json"))
