#!/usr/bin/env bash
# On a GPU: the tests, then the benchmarks, in under nine minutes: ci/gpu.sh [--dry-run]
# Needs torch, triton, numpy and pytest, for the benchmarks pytest-benchmark; no network, no installation.
# Writes summary.json, summary.md and what they were made from to $OUT, or benchmarks/results/gpu.
# --dry-run collects everything and runs nothing, where there is no GPU too.
set -uo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python3}"
out="${OUT:-benchmarks/results/gpu}"
limit="${LIMIT:-520}" # seconds in all; the report takes the rest of the nine minutes
dry=()
case "$*" in
    "") ;;
    --dry-run) dry=(--collect-only) ;;
    *) sed -n '2,5s/^# //p' "$0" >&2; exit 2 ;;
esac
# the checkout is used as it is: fused_optim/kernels is a link to kernels/
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
unset TRITON_INTERPRET

if [ ${#dry[@]} -eq 0 ]; then
    "$python" ci/gpu_report.py --check || exit 3
    # the optional C module; without it the host's part of a step is done in Python
    "$python" setup.py -q build_ext --inplace >/dev/null 2>&1 || echo "the C module was not built"
fi
mkdir -p "$out" || exit 2
rm -f "$out"/tests-*.xml "$out"/benchmarks.json "$out"/summary.*

# no warning of another version of torch, or of a driver, is a reason to learn nothing
pytest=("$python" -m pytest -q -W default -p no:cacheprovider "${dry[@]}")
left() { echo $((limit - SECONDS > 1 ? limit - SECONDS : 1)); }

# compiling takes most of the time, so shards share the work
shards=$(($(nproc) < 8 ? $(nproc) : 8))
[ ${#dry[@]} -eq 0 ] || shards=1
pids=()
for ((i = 0; i < shards; i++)); do
    timeout --kill-after=10 $(($(left) * 6 / 10)) "${pytest[@]}" -m gpu tests --shard "$i/$shards" \
        --junitxml "$out/tests-$i.xml" >"$out/tests-$i.log" 2>&1 &
    pids+=($!)
done
status=0
for i in "${!pids[@]}"; do
    wait "${pids[$i]}"
    code=$?
    tail -n 3 "$out/tests-$i.log"
    # 5: no test fell to this shard
    [ $code -eq 0 ] || [ $code -eq 5 ] || { status=1; echo "tests, shard $i: exit status $code"; }
done

if "$python" -c "import pytest_benchmark" 2>/dev/null; then
    timeout --kill-after=10 "$(left)" "${pytest[@]}" benchmarks --benchmark-only \
        --benchmark-json "$out/benchmarks.json" >"$out/benchmarks.log" 2>&1
    code=$?
    tail -n 3 "$out/benchmarks.log"
    [ $code -eq 0 ] || { status=1; echo "benchmarks: exit status $code"; }
fi

"$python" ci/gpu_report.py "$out" "$SECONDS" || status=1
exit $status
