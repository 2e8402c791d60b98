"""Every Triton kernel with each of its settings, compiled ahead of time: no spills, wide accesses, 64-bit offsets.

Triton's compiler needs no GPU. It needs a process without TRITON_INTERPRET, which this one has: `facts` starts one.
"""

import importlib
import os
from dataclasses import replace

import pytest

from gankern.bench import cases, compiled
from gankern.bench.cases import Site
from gankern.ops import _triton

pytest.importorskip("triton")
FUSED = [op for op in cases.fused() if op != "conv2d_bias_act"]  # whose pass is bias_act's
EXEMPT = {"layer_gemm": "it computes more than it moves", "upfirdn2d_direct": "for large filters, no memory-bound path"}
SMALL = {"demodulate", "prepare_weights"}
"""Operators of a few small matrices, or of all weights once a step."""
EXEMPT |= dict.fromkeys(("layer_sums", *(f"demodulate{end}" for end in ("", "_backward", "_second"))), "small")
EXEMPT |= dict.fromkeys(("prepare_weights", "prepare_weights_backward"), "once a step; its layouts cross each other")
KERNELS = {op: ["fir_act.kernels"] for op in ("upfirdn2d_bias_act", "bias_act_upfirdn2d")}
KERNELS["residual_branches"] = ["upfirdn2d.kernels"]
KERNELS["modulated_conv2d"] = [f"modulated_conv2d.{module}" for module in ("kernels", "fir", "gemm", "second")]
STORES_SUMS = {"instance_norm_statistics", "instance_norm_sums"}
"""Kernels that read images and write a few sums of them."""
LOADS_SUMS = {"minibatch_stddev_fill"}
"""The other way round."""
FIR = {
    "upfirdn2d",
    "upfirdn2d_add",
    "filter_act",
    "filter_act_backward",
    "act_filter",
    "act_filter_backward",
    "act_filter_tangent",
}
FIR |= {"layer_fir_forward", "layer_fir_backward"}
"""In NCHW each tap reads rows shifted by a pixel, which no 16 bytes are aligned to; the networks run channels_last."""


@pytest.fixture(scope="module")
def facts():
    """Compiled for all architectures where a kernel is first met, in bf16 and channels_last, else for sm_90."""
    return compiled.facts(FUSED, None, processes=min(os.cpu_count() or 1, 8))


def describe(fact):
    return f"{fact.kernel} {fact.case} {fact.dtype} {fact.layout} config {fact.config} sm_{fact.arch}"


@pytest.fixture(scope="module")
def compiled_ones(facts):
    return [fact for fact in facts if not fact.failure]


def test_every_kernel_compiles(facts):
    failed = [f"{describe(fact)}: {fact.failure}" for fact in facts if fact.failure]
    assert not failed, "\n".join(failed)


def test_every_kernel_with_every_setting_is_compiled_for_every_architecture(facts):
    for op in FUSED:  # kernels name their settings where they stand
        for module in KERNELS.get(op, [f"{op}.kernels"]):
            importlib.import_module(f"gankern.ops.{module}")
    wanted = set()
    for kernel, settings in _triton.CONFIGS.items():
        if kernel == "chain_gradient":  # of whole networks: test_cudnn_kernels.py
            continue
        # how much a program does in turn, and how many there are, is no matter of compilation
        distinct = [{k: v for k, v in setting.items() if k not in ("WAVES", "CHUNK")} for setting in settings]
        first = {distinct.index(setting) for setting in distinct}
        wanted |= {(kernel, i, arch) for i in first for arch in compiled.ARCHITECTURES}
    missing = wanted - {(fact.kernel, fact.config, fact.arch) for fact in facts}
    assert not missing, f"add a site to gankern.bench.cases for {sorted(missing)}"


def test_both_layouts_and_types_are_compiled(facts):
    for op in set(FUSED) - SMALL:  # whose tensors are float32 matrices, whatever the network's
        found = {(fact.dtype, fact.layout) for fact in facts if fact.op == op}
        assert {("bf16", "nhwc"), ("fp32", "nhwc")} <= found
        assert {("bf16", "nchw"), ("fp32", "nchw")} <= found


def test_no_register_spills(compiled_ones):
    assert all(fact.registers > 0 for fact in compiled_ones), "cuobjdump told nothing"
    spilled = [f"{describe(fact)}: {fact.stack} bytes" for fact in compiled_ones if fact.stack]
    assert not spilled, "\n".join(spilled)


def test_shared_memory_fits(compiled_ones):
    """99 KB is what a block may have on sm_120, the least of the four."""
    assert not [describe(fact) for fact in compiled_ones if fact.shared > 99 * 1024]


def test_memory_bound_kernels_load_and_store_128_bits(compiled_ones):
    """Where the rows are aligned to 16 bytes, in both types and layouts."""
    checked = [fact for fact in compiled_ones if fact.aligned and fact.kernel not in EXEMPT]
    checked = [fact for fact in checked if not (fact.kernel in FIR and fact.layout == "nchw")]
    assert {fact.op for fact in checked} == set(FUSED) - SMALL
    narrow = [
        f"{describe(fact)}: loads {fact.loads}, stores {fact.stores}"
        for fact in checked
        if (fact.widest("loads") < 128 and fact.kernel not in LOADS_SUMS)
        or (fact.widest("stores") < 128 and fact.kernel not in STORES_SUMS)
    ]
    assert not narrow, "\n".join(narrow)


def test_offsets_past_2_31_elements_are_64_bits():
    """In Triton's own IR no pointer to a tensor of that size is reached by 32-bit offsets alone."""
    jobs = []
    for op in FUSED:
        for site in cases.OPS[op].compile_sites:
            size = {"size": 1024, "channels": 64} if site.size else {}
            jobs.append((op, replace(site, **size, out=64 if site.out else 0), 64 if site.size else 2**23))
    found = compiled.narrow_offsets(jobs)
    assert {op for op, *_ in found} == set(FUSED)
    assert not [row for row in found if row[-1]], found


def test_another_batch_compiles_nothing_anew():
    kinds = [(op, site) for op in FUSED for site in cases.OPS[op].compile_sites]
    # 5 pixels: 25 rows a sample divide by 16 or not as the batch does
    kinds += dict.fromkeys((op, replace(site, size=5)) for op, site in kinds if site.size)
    batches = (8, 12, 20, 32)
    runs = [(*kind, *variant) for kind in kinds for variant in (("bf16", "nhwc"), ("fp32", "nchw"))]
    found = compiled.identities([(op, site, n, *variant) for op, site, *variant in runs for n in batches])
    for i, run in enumerate(runs):
        kernels = found[i * len(batches) : (i + 1) * len(batches)]
        assert kernels[0], run
        assert kernels.count(kernels[0]) == len(batches), f"{run} differs between batches {batches}"


# -- the instruments themselves ---------------------------------------------------------------------------------------


def test_widths_are_read_from_ptx():
    ptx = """
    @%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
    ld.global.nc.L1::evict_last.v2.b64 { %rd1, %rd2 }, [ %rd1 ];
    @%p2 st.global.b16 [ %rd2 + 0 ], { %rs1 };
    ld.param.b64 %rd1, [_forward_param_0];
    ld.shared.v4.b32 {%r1}, [%r2];
    cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;
    """
    assert compiled.widths(ptx, "ld") == {"128": 3}
    assert compiled.widths(ptx, "st") == {"16": 1}


def test_narrow_pointers_are_read_from_ttir():
    ttir = """
    tt.func public @f(%x: !tt.ptr<bf16> {tt.divisibility = 16 : i32}, %y: !tt.ptr<bf16>, %z: !tt.ptr<f32>) {
    %a = tt.splat %x : !tt.ptr<bf16> -> tensor<64x!tt.ptr<bf16>> loc(#loc1)
    %b = tt.addptr %a, %o : tensor<64x!tt.ptr<bf16>>, tensor<64xi64> loc(#loc1)
    %c = tt.load %b, %m : tensor<64x!tt.ptr<bf16>> loc(#loc1)
    %d = tt.addptr %y, %p : !tt.ptr<bf16>, i64 loc(#loc1)
    %e = tt.splat %d : !tt.ptr<bf16> -> tensor<64x!tt.ptr<bf16>> loc(#loc1)
    %g = tt.addptr %e, %q : tensor<64x!tt.ptr<bf16>>, tensor<64xi32> loc(#loc1)
    tt.store %g, %c, %m : tensor<64x!tt.ptr<bf16>> loc(#loc1)
    %h = tt.addptr %z, %p : !tt.ptr<f32>, i32 loc(#loc1)
    tt.store %h, %v : !tt.ptr<f32> loc(#loc1)
    """
    assert compiled.narrow_pointers(ttir) == ["z"]


def test_specialisation_tells_what_is_compiled_in():
    sites = [(Site("lrelu", channels, 8), batch) for channels, batch in ((48, 1), (48, 3), (49, 3), (80, 3))]
    found = compiled.identities([("bias_act", site, batch, "bf16", "nhwc") for site, batch in sites])
    assert found[0] == found[1], "the batch, even of 1, isn't"
    assert found[1] != found[2], "whether the channels divide by 16 is"
    assert "'cols': 'i32'" in str(found[3]) or "('cols', 'i32')" in str(found[3])
    assert "('rows', 'i32')" in str(found[0])
