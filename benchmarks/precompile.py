"""Compile the Triton kernels of gpu_check's training phases on all cores, into Triton's cache: needs a GPU.

    python benchmarks/precompile.py

Compiling one after the other as the phases meet them would take longer than the phases.
"""

import os
import subprocess
import sys

import torch

from gankern.bench import compiled, steps
from gankern.ops import _impl, use_impl

RUNS = ((256, 16384, 4, "fp32"), (256, 16384, 16, "bf16"), (1024, 32768, 4, "fp32"), (1024, 32768, 8, "bf16"))
"""Resolution, channel_base, batch and precision of gpu_check.sh, and of the comparison in float32 before it."""


def launches() -> list:
    """Each distinct launch of all phases, in a fixed order; counted on meta tensors."""
    found = {}
    for resolution, base, batch, precision in RUNS:
        step = steps.build(steps.settings("stylegan2", resolution, batch, base, precision), "meta")
        for name in step.losses:
            with use_impl("triton"), _impl.record() as recorded:
                step.parts[name].run()
            for launch in recorded:
                found.setdefault(compiled.identity(launch), launch)
    return [found[key] for key in sorted(found)]


def compile_part(part: int, parts: int) -> None:
    """Every parts-th launch, through the launcher's own door, so that the cache knows it again."""
    torch.set_num_threads(1)
    for launch in launches()[part::parts]:
        launch.kernel.warmup(*launch.args, grid=(1,), **launch.constants, **launch.config)


def main() -> int:
    if len(sys.argv) == 3:
        compile_part(int(sys.argv[1]), int(sys.argv[2]))
        return 0
    parts = max((os.cpu_count() or 1) - 2, 1)
    workers = [subprocess.Popen([sys.executable, __file__, str(i), str(parts)]) for i in range(parts)]
    return max(worker.wait() for worker in workers)


if __name__ == "__main__":
    sys.exit(main())
