"""Every case of config F at 1024 that moves over 64 MB forward, batch 8, bfloat16, channels_last; checked, then timed.

    pytest benchmarks/ --benchmark-save=NAME; pytest benchmarks/ --benchmark-compare

Times hold the host's work and the wait for the device; `gankern bench ops` times the device alone.
"""

import pytest
import torch

from gankern.bench import cases, check
from gankern.bench.run import ORDER, Plan, spots

PLAN = Plan(ops=tuple(cases.OPS), networks=("config-f-1024", "progan"), quick=True)


@pytest.mark.parametrize("mode", ["forward", "backward"])
@pytest.mark.parametrize("provider", PLAN.providers)
@pytest.mark.parametrize("spot", spots(PLAN), ids=str)
def test_speed(benchmark, spot, provider, mode):
    benchmark.group = f"{spot} {mode}"
    reason = check.missing(spot.case, provider, mode)
    if reason:
        pytest.skip(reason)
    call = check.provider(spot.case, provider)
    gate = check.Gate(spot.case, spot.dtype, spot.layout, spot.batch, "cuda", ORDER[mode])
    verdict = gate.check(call, poison=provider not in ("eager", "compile"))
    assert verdict.ok, verdict
    del gate
    torch.cuda.empty_cache()
    step = check.step(call, spot.case.tensors(spot.dtype, spot.layout, spot.batch, "cuda"), mode)

    def run():
        step()
        torch.cuda.synchronize()

    benchmark.pedantic(run, rounds=20, warmup_rounds=3)
