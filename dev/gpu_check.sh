#!/bin/sh
# `make gpu-check`: on a machine with a GPU, proves the kernels on it and measures them. Less than 9 minutes on an H100 with 16
# cores; no network; works in a plain copy of the tree.
#   1  builds programs, tests and benchmarks for the GPU that it finds
#   2  every kernel's test, in bf16 and in fp32
#   3  ten training steps of each stage and of LightningDiT beside the CPU build's; the same bits again, and when resumed
#   4  the kernel tests under compute-sanitizer, where it is installed
#   5  speed: LightningDiT-XL/1 in training and drawing, every training stage at full size and every operation, beside PyTorch
#      where python3 has torch; SPEED_OF="dit" or "tokenizer" for one of them where the time does not suffice for both
# Prints a summary of at most 150 lines. Into the folder $OUT, or build/gpu_check: logs.txt, all logs one behind the other, and
# the benchmarks' tables and JSON lines.
# A machine that lacks the headers of zlib, stb or NCCL and has no network: `sh dev/carry.sh` on one that has them puts them
# into build/carried, which is used from there.
set -u
cd "$(dirname "$0")/.." || exit 1
results=${OUT:-build/gpu_check}
out=build/gpu_check/logs # one file a command
rm -rf "$out"
mkdir -p "$results" "$out"
results=$(cd "$results" && pwd)
out=$(cd "$out" && pwd)
limit=${GPU_CHECK_SECONDS:-530} # what is not begun by then is left out, and said so
begin=$(date +%s)
passed=0
failed=0
left_out=0

elapsed() { echo $(($(date +%s) - begin)); }
left() { echo $((limit - $(elapsed))); }
say() { printf '%s\n' "$*"; }
part() { say ""; say "== $* ($(elapsed) s)"; }

# run NAME SECONDS COMMAND...: with a time limit, output to NAME.log; 99 when there is no time left
run() {
    name=$1
    seconds=$2
    shift 2
    [ "$seconds" -lt "$(left)" ] || seconds=$(left)
    [ "$seconds" -gt 5 ] || {
        say "left out for lack of time: $name"
        left_out=$((left_out + 1))
        return 99
    }
    timeout "$seconds" "$@" >"$out/$name.log" 2>&1
}

# test_of NAME SECONDS COMMAND...: runs a test, adds "N passed, N failed", the last line of its log, to the sums, and shows
# what failed
test_of() {
    run "$@"
    status=$?
    [ $status -ne 99 ] || return 0
    set -- "$1" $status
    last=$(grep -E '^[0-9]+ passed, [0-9]+ failed$' "$out/$1.log" | tail -n 1)
    p=$(printf '%s' "$last" | sed -n 's/ passed.*//p')
    f=$(printf '%s' "$last" | sed -n 's/.*, \([0-9]*\) failed/\1/p')
    [ -n "$p" ] || { p=0; f=1; }
    [ "$2" -eq 0 ] || [ "$f" -gt 0 ] || f=1
    passed=$((passed + p))
    failed=$((failed + f))
    printf '%-34s %4d passed %3d failed\n' "$1" "$p" "$f"
    [ "$2" -ne 124 ] || say "     not finished in its time"
    [ "$f" -eq 0 ] || grep -Ev '^ok ' "$out/$1.log" | tail -n 6 | cut -c 1-160
}

if [ -d build/carried ]; then
    export CPATH="$PWD/build/carried/include${CPATH:+:$CPATH}" LIBRARY_PATH="$PWD/build/carried/lib${LIBRARY_PATH:+:$LIBRARY_PATH}"
fi
command -v nvcc >/dev/null 2>&1 || { say "error: no nvcc on the PATH; gpu-check needs the CUDA Toolkit" >&2; exit 1; }
gpu=$(nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null | head -n 1)
[ -n "$gpu" ] || { say "error: nvidia-smi shows no GPU; gpu-check needs one. 'make test' proves the kernels without" >&2; exit 1; }
say "gpu-check of $(date -u +%Y-%m-%d), $gpu, $(nvcc --version | sed -n 's/.*release \([0-9.]*\).*/nvcc \1/p'), $(nproc) cores"
printf '#include <nccl.h>\n' | nvcc -x cu -E - >/dev/null 2>&1 || say "nccl.h is not here: built for one GPU"

part "build"
kernels=$(for t in tests/kernels_*.cu; do b=$(basename "$t" .cu); echo "build/gpu/${b}_bf16 build/gpu/${b}_fp32"; done)
# shellcheck disable=SC2086
run build 240 make -k -j "$(nproc)" build/cpu/train_tokenizer build/cpu/train_dit build/cpu/pretrain \
    build/gpu/train_tokenizer build/gpu/train_dit build/gpu/sample build/gpu_fp32/train_tokenizer build/gpu_fp32/train_dit \
    build/gpu/eval build/gpu/pretrain build/gpu/bench_ops build/gpu/bench_models build/gpu_fp32/bench_models $kernels \
    build/gpu/test_distribution
status=$?
say "status $status after $(elapsed) s; $(ls build/gpu 2>/dev/null | wc -l) programs for the GPU"
[ $status -eq 0 ] || grep -E 'error|Error' "$out/build.log" | head -n 12 | cut -c 1-200

part "kernels on the GPU, and cuBLAS and cuSOLVER in double"
for t in $kernels build/gpu/test_distribution; do
    [ -x "$t" ] || { say "not built: $t"; failed=$((failed + 1)); continue; }
    test_of "$(basename "$t")" 60 "$t"
done

part "training on the GPU beside the CPU build"
test_of same_losses 170 sh tests/gpu_losses.sh build/cpu
grep -hs 'largest difference' "$out/same_losses.log" | cut -c 1-160

if command -v compute-sanitizer >/dev/null 2>&1; then
    part "compute-sanitizer"
    for tool in memcheck racecheck; do
        for t in $kernels; do
            case $t in *_fp32) continue ;; esac
            [ -x "$t" ] || continue
            [ "$(left)" -gt 235 ] || { say "left out for lack of time: $tool of $(basename "$t")"; continue; }
            run "${tool}_$(basename "$t")" 25 compute-sanitizer --tool $tool --error-exitcode 9 "$t"
            status=$?
            verdict=$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$out/${tool}_$(basename "$t").log" | tail -n 1 | sed 's/=* *//')
            [ $status -ne 124 ] || verdict="not finished in its 25 s"
            [ $status -eq 0 ] || [ $status -eq 124 ] || failed=$((failed + 1))
            printf '%-10s %-34s %s\n' $tool "$(basename "$t")" "$verdict"
        done
    done
else
    say "compute-sanitizer is not installed"
fi

part "speed"
torch=""
python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null && torch=python3
SPEED_SECONDS=$(($(left) - 8))
[ "$SPEED_SECONDS" -lt 330 ] || SPEED_SECONDS=330
export SPEED_SECONDS
run speed 335 sh dev/bench/gpu_speed.sh "$results" "$torch"
[ $? -eq 99 ] || cut -c 1-150 "$out/speed.log" | head -n 90

for log in "$out"/*.log; do
    say "==== $(basename "$log")"
    cat "$log"
done >"$results/logs.txt"
say ""
[ "$left_out" -eq 0 ] || say "$left_out parts were left out for lack of time (GPU_CHECK_SECONDS=$limit)"
say "$passed passed, $failed failed ($(elapsed) s; logs in $results)"
[ "$failed" -eq 0 ]
