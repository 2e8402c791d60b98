#!/usr/bin/env bash
# Everything that needs a GPU, in one go under nine minutes: bash benchmarks/gpu_check.sh OUTDIR
#
# Runs from the source tree with python3, torch and triton alone (pytest for the tests). Every stage has a time limit of
# its own and a failed one doesn't stop the next; the exit code tells whether any failed. Leaves in OUTDIR log.txt,
# summary.txt (printed last) and JSON files named after the GPU. GPU_CHECK_DRY=1: each stage's CPU form, quickly.

set -u
if [ $# -ne 1 ]; then
    echo "usage: bash benchmarks/gpu_check.sh OUTDIR" >&2
    exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 2
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
dry=${GPU_CHECK_DRY:-0}
log=$out/log.txt
summary=$out/summary.txt
failed=0
: >"$log"
: >"$summary"

# stage NAME SECONDS COMMAND...: runs it under its limit, its output in the log, its fate in the summary
stage() {
    local name=$1 limit=$2 begun=$SECONDS status=0
    shift 2
    printf '\n===== %s: %s\n' "$name" "$*" >>"$log"
    timeout --signal=INT --kill-after=5 "$limit" "$@" >>"$log" 2>&1 || status=$?
    local fate=ok
    [ "$status" -eq 124 ] || [ "$status" -eq 137 ] && fate="FAILED (over $limit s)"
    [ "$fate" = ok ] && [ "$status" -ne 0 ] && fate="FAILED (exit $status)"
    [ "$fate" = ok ] || failed=1
    printf '%-14s %4d s  %s\n' "$name" $((SECONDS - begun)) "$fate" | tee -a "$summary"
}

if [ "$dry" = 1 ]; then
    gpu=cpu
else
    gpu=$(timeout 30 python3 -c '
import torch
print(torch.cuda.get_device_name().lower().replace(" ", "-").replace("/", "-"))') || {
        echo "gpu_check: torch can use no CUDA GPU here (GPU_CHECK_DRY=1 tries the script without one)" | tee -a "$summary" >&2
        exit 1
    }
fi

if [ "$dry" = 1 ]; then
    stage environment 60 python3 -m gankern env
    stage rates 60 python3 -c 'from gankern.bench import timing; print(timing.quartiles([1.0, 2.0, 3.0]))'
    stage tests 60 python3 -m pytest -q -p no:cacheprovider --collect-only -m gpu tests/ops
    stage memory 90 python3 -m gankern bench ops --ops pixel_norm --network config-f-256 --out "$out/ops_memory_$gpu.json"
    stage train-256 60 python3 -m gankern bench train --device cpu --resolution 16 --channel-base 128 --batch 4 \
        --precision fp32 --seconds 2 --out "$out/train_256_$gpu.json"
else
    spread=$(python3 -c 'import xdist' 2>/dev/null && echo "-n 12 --dist worksteal")
    stage environment 15 python3 -m gankern env
    stage rates 15 python3 -c '
from gankern.bench.timing import Clock
clock = Clock()
print(f"copy {clock.copy_rate():.0f} GB/s, bf16 matrix product {clock.matmul_rate():.0f} TFLOP/s")'
    # the two compilers side by side: both wait for nothing but processors
    stage compile 65 sh -c 'python3 -m gankern build --verbose & python3 benchmarks/precompile.py && wait $!'
    # shellcheck disable=SC2016  # the inner shell's
    stage sanitizer 55 sh -c '
        PATH=$PATH:/usr/local/cuda/bin
        export PYTORCH_NO_CUDA_MEMORY_CACHING=1  # else what lies beyond a tensor is torch'"'"'s own memory as well
        check() {
            compute-sanitizer --tool "$1" --kernel-regex kns=gankern --error-exitcode 9 python3 -m pytest -q --tb=short \
                -p no:cacheprovider tests/ops/test_ops_on_gpu.py -k "cuda and (float32 or linear)"
        }
        check memcheck & memory=$!
        check racecheck; races=$?
        wait $memory && exit $races'
    # shellcheck disable=SC2086  # options, to be split
    stage tests 70 python3 -m pytest -v --tb=short $spread -p no:cacheprovider -m gpu \
        tests/ops tests/training tests/metrics tests/bench
    stage train-256 40 python3 -m gankern bench train --resolution 256 --channel-base 16384 --batch 16 \
        --providers graphs,triton,eager --seconds 16 --out "$out/train_256_$gpu.json"
    stage modulated 65 python3 -m gankern bench ops --quick --seconds 46 --network config-f-1024 \
        --ops modulated_conv2d --providers eager,compile,triton,triton_gemm,cuda --out "$out/ops_modulated_$gpu.json"
    stage train-1024 55 python3 -m gankern bench train --resolution 1024 --channel-base 32768 --batch 8 \
        --providers graphs,triton,eager --seconds 24 --out "$out/train_1024_$gpu.json"
    stage memory 75 python3 -m gankern bench ops --quick --seconds 58 --network config-f-1024,progan \
        --providers eager,compile,triton,cuda \
        --ops "${GPU_CHECK_OPS:-bias_act,upfirdn2d,pixel_norm,bias_act_pixel_norm,instance_norm,upfirdn2d_bias_act,bias_act_upfirdn2d}" \
        --out "$out/ops_memory_$gpu.json"
    stage small 20 python3 -m gankern bench ops --seconds 10 --network config-f-1024 --batch 8,32 \
        --providers eager,compile,triton,cuda --ops minibatch_stddev,pixel_norm --out "$out/ops_small_$gpu.json"
fi
timeout 10 python3 benchmarks/summarise.py "$out" >>"$summary" 2>>"$log" || failed=1
printf '\n'
cat "$summary"
exit "$failed"
