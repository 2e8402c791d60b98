#!/usr/bin/env bash
# A ProGAN that grows from 4 to 32 px on the sample dataset: about 10 minutes on two CPU cores.
#
#     examples/progan_32.sh [DIR [OPTIONS OF gankern train...]]
#
# The same command again goes on where it stopped. DIR (default runs/progan_32) then holds grids of samples, the
# first ones tiny, curves, and the networks for `gankern generate` and `gankern metrics`. It runs in the virtual
# environment that is active, else in this repository's .venv; PYTHON=... names another interpreter.
set -euo pipefail
out=${1:-runs/progan_32}
root=$(cd "$(dirname "$0")/.." && pwd)
python=$root/.venv/bin/python
[[ -z ${VIRTUAL_ENV:-} && -x $python ]] || python=python3
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

# 3 kimg a resolution alone and 3 to fade the next one in: 32 px are whole at 18 kimg. The batches are small and the
# average short, for there are 4,000 steps and not a million.
exec "${PYTHON:-$python}" -m gankern train --model progan --data "$root/examples/emoji64.zip" --resolution 32 --mirror \
    --out "$out" --channel-base 512 --channel-max 64 --z-dim 64 \
    --stable-kimg 3 --fade-kimg 3 --kimg 38 --batch-schedule 4-8:16,16-:8 --ema-beta 0.99 --g-lr 0.002 --d-lr 0.002 \
    --tick 1 --snap 3 --metric-images 1024 --device cpu "${@:2}"
