"""The CUDA extension alone: pyproject.toml holds the metadata, gankern/build.py knows how csrc/ is compiled.

GANKERN_BUILD_EXT: `auto` (default) builds it where torch has CUDA and nvcc is found, and never fails an install; `0`
doesn't, and needs no torch; `1` fails where it can't; `host` builds the kernels for CPU tensors, for the tests, into
the cache. So does an editable install with the CUDA kernels: a wheel alone holds a binary.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # pip's isolated builds leave it out

from gankern import binary, build  # noqa: E402 (neither imports torch)

MODE = os.environ.get("GANKERN_BUILD_EXT") or "auto"
if MODE not in ("auto", "0", "1", "host"):
    raise SystemExit(f"gankern: GANKERN_BUILD_EXT={MODE}: expected auto, 0, 1 or host")


def compiled(temporary: Path | None) -> Path | None:
    """The library that this mode asks for, built in `temporary` or else the cache. None: it asks for none."""
    if MODE == "0":
        return None
    try:
        if MODE == "auto":
            build.require_cuda_torch()
        return build.build("host" if MODE == "host" else "cuda", cache=temporary, verbose=True)
    except (build.BuildError, OSError) as error:
        if MODE != "auto":
            raise SystemExit(f"gankern: GANKERN_BUILD_EXT={MODE}: {error}") from None
        print(f"gankern: installing without the CUDA kernels: {error}", flush=True)
        return None


class BuildPy(build_py):
    """Puts the sources, for `gankern build`, and the library beside the Python files."""

    def run(self):
        super().run()
        if self.editable_mode:
            compiled(None)
            return
        package = Path(self.build_lib) / "gankern"
        shutil.rmtree(package / "csrc", ignore_errors=True)  # of an earlier build in the same folder
        shutil.copytree(ROOT / "csrc", package / "csrc")
        target = package / binary.NAMES["cuda"]
        for old in (target, binary.record_path(target)):
            old.unlink(missing_ok=True)
        temporary = Path(self.get_finalized_command("build").build_temp).resolve()
        library = compiled(None if MODE == "host" else temporary)
        if library and MODE != "host":
            build.publish(library, binary.record(library), target)
            self.distribution.has_binary = True


class BdistWheel(bdist_wheel):
    """The tag says what is inside: any Python and system, or any Python on this system."""

    def run(self):
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_binary
        super().run()

    def get_tag(self):
        tag = super().get_tag()
        return tag if self.root_is_pure else ("py3", "none", tag[2])  # torch loads the library, Python doesn't


class GankernDistribution(Distribution):
    """Not pure once a library was built."""

    has_binary = False

    def has_ext_modules(self):
        return self.has_binary


setup(distclass=GankernDistribution, cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel})
