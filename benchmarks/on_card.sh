#!/usr/bin/env bash
# Everything that needs a card, in parts: on_card.sh OUT PART...
#   native    the kernels' tests compiled for this card, and inside CUDA graphs
#   sm120     the same tests on SM120's code moved to this Hopper
#   sm80      the same on Ampere's code
#   memcheck  the native tests under compute-sanitizer
#   bench     every op's cases: JSON lines in OUT/ops.jsonl
# Logs land in OUT, one line a file in OUT/tests.jsonl; the last lines say what failed. The files run beside each
# other: most of the time is compiling.
# LIMIT (seconds, default 900) ends a file that takes longer.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$1
shift
mkdir -p "$out"
export PYTHONPATH=src OMP_NUM_THREADS=2

tests() { # name, options of pytest, command in front of it
    local name=$1 options=$2 front=${3:-}
    local files=(tests/kernels/interpreted_*.py)
    [ -z "$options" ] && files+=(tests/kernels/test_*on_card.py tests/kernels/test_graphs.py)
    for file in "${files[@]}"; do
        local log="$out/$name-$(basename "$file" .py).log"
        # shellcheck disable=SC2086
        timeout "${LIMIT:-900}" $front python3 -m pytest -q --maxfail=5 --tb=short -p no:cacheprovider --record "$out/tests.jsonl" $options "$file" >"$log" 2>&1 || echo "exit status $?" >>"$log" &
    done
    wait
    for log in "$out/$name"-*.log; do
        printf '%-44s %s\n' "$(basename "$log" .log)" "$(grep -E 'passed|failed|error' "$log" | tail -1)"
        grep -E '^(FAILED|ERROR|E  ) |ERROR SUMMARY: [1-9]|^exit status' "$log" | head -8 | cut -c1-300
    done
}

for part in "$@"; do
    echo "== $part"
    case $part in
    native) tests native "" ;;
    sm120 | sm80) tests "$part" "--code-of $part" ;;
    memcheck) tests memcheck "" "compute-sanitizer --tool memcheck --error-exitcode 99 --target-processes all" ;;
    bench)
        python3 -m wellhead bench all --jsonl "$out/ops.jsonl"
        ;;
    *) echo "no part $part; there are native, sm120, sm80, memcheck, bench" && exit 2 ;;
    esac
done
