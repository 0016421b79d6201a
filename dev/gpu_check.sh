#!/bin/sh
# `make gpu-check`: on a machine with a GPU, proves the kernels on it and measures them, in at most 12 minutes; no
# network; works in a plain copy of the tree.
#     sh dev/gpu_check.sh [PART...]      all parts in this order, or those that are named:
#   kernels   every kernel's test, in bf16 and in fp32; cuBLAS and cuSOLVER in double
#   losses    ten training steps of each stage and of LightningDiT beside the CPU build's; the same bits again, and when resumed
#   demo      the miniature world, trained, drawn and measured (dev/demo.sh)
#   speed     every training stage at full size, LightningDiT-XL/1 in training and drawing, operations, beside PyTorch where
#             python3 has torch
#   races     the kernels' tests under compute-sanitizer's racecheck, where it is installed
#   memory    likewise under its memcheck
# First it builds what they run. What does not fit into GPU_CHECK_SECONDS (700) is left out, and said so.
# Prints a summary. The folder $OUT, or build/gpu_check, has it in summary.txt, what the commands print in logs.txt, speed_* and
# demo_*; everything is there as soon as it is known.
# A machine that lacks zlib's or stb's headers and has no network: `sh dev/carry.sh` on one that has them puts them, with
# Fashion-MNIST, into build/carried, which is used from there. dev/gpu_rehearsal.sh runs all of this on a machine without a GPU.
set -u
cd "$(dirname "$0")/.." || exit 1
every="kernels losses demo speed races memory"
parts=" ${*:-$every} "
for part in $parts; do
    case " $every " in *" $part "*) ;; *) echo "error: there is no part '$part'; there are: $every" >&2; exit 1 ;; esac
done
results=${OUT:-build/gpu_check}
out=build/gpu_check/logs # one file a command
rm -rf "$out"
mkdir -p "$results" "$out"
results=$(cd "$results" && pwd)
out=$(cd "$out" && pwd)
summary=$results/summary.txt
logs=$results/logs.txt
: >"$summary"
: >"$logs"
limit=${GPU_CHECK_SECONDS:-700}
begin=$(date +%s)
cores=$(nproc)
at_once=4 # tests that share the GPU: most of their time is the reference's, on the host
passed=0
failed=0
left_out=0

elapsed() { echo $(($(date +%s) - begin)); }
left() { echo $((limit - $(elapsed))); }
say() { printf '%s\n' "$*" | tee -a "$summary"; }
part() { say ""; say "== $* ($(elapsed) s)"; }
is_part() { case $parts in *" $1 "*) return 0 ;; esac; return 1; }

# run NAME SECONDS COMMAND...: with a time limit, output to NAME.log and, as it comes, to logs.txt; 99 when there is no time left
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
    {
        echo "==== $name"
        timeout -k 5 "$seconds" "$@" 2>&1
        echo $? >"$out/$name.status"
    } | tee "$out/$name.log" >>"$logs"
    return "$(cat "$out/$name.status")"
}

# run_all SUFFIX SECONDS COMMAND PROGRAM...: programs behind a command, several at once, each with a time limit; NAME.SUFFIX.log and
# NAME.SUFFIX.status, and logs.txt as each ends. A program that the time does not suffice for has no status.
run_all() {
    suffix=$1
    seconds=$2
    command=$3
    shift 3
    threads=$(((cores + at_once - 1) / at_once))
    # shellcheck disable=SC2016
    printf '%s\n' "$@" | OMP_NUM_THREADS=$threads xargs -P $at_once -I PROGRAM sh -c '
        seconds=$2; left=$(($3 - $(date +%s)))
        [ "$seconds" -lt "$left" ] || seconds=$left
        [ "$seconds" -gt 5 ] || exit 0
        log=$4/$(basename PROGRAM).$1
        timeout -k 5 "$seconds" $6 PROGRAM >"$log.log" 2>&1
        echo $? >"$log.status"
        { echo "==== PROGRAM $1"; cat "$log.log"; } >"$log.whole"
        cat "$log.whole" >>"$5" # at once: others write too
    ' sh "$suffix" "$seconds" $((begin + limit)) "$out" "$logs" "$command"
}

# result_of NAME STATUS: adds "N passed, N failed", the last line of a test's log, to the sums, and shows what failed
result_of() {
    last=$(grep -E '^[0-9]+ passed, [0-9]+ failed$' "$out/$1.log" | tail -n 1)
    p=$(printf '%s' "$last" | sed -n 's/ passed.*//p')
    f=$(printf '%s' "$last" | sed -n 's/.*, \([0-9]*\) failed/\1/p')
    [ -n "$p" ] || { p=0; f=1; }
    [ "$2" -eq 0 ] || [ "$f" -gt 0 ] || f=1
    passed=$((passed + p))
    failed=$((failed + f))
    say "$(printf '%-34s %4d passed %3d failed' "${1%.test}" "$p" "$f")"
    case $2 in 124 | 137) say "     not finished in its time" ;; esac
    [ "$f" -eq 0 ] || grep -Ev '^(ok |====|[0-9]+ passed)' "$out/$1.log" | tail -n 6 | cut -c 1-160 | tee -a "$summary"
}

# sanitize TOOL SECONDS: the kernels' tests in bf16 under a tool of compute-sanitizer, but for the full sizes. A tool that does
# not work on this machine is no failure of the kernels.
sanitize() {
    command -v compute-sanitizer >/dev/null 2>&1 || { say "compute-sanitizer is not installed"; return; }
    tests=$(for t in $built; do case $t in *_fp32 | *full_size* | */test_*) ;; *) echo "$t" ;; esac; done)
    # shellcheck disable=SC2086
    run_all "$1" "$2" "compute-sanitizer --tool $1 --error-exitcode 9" $tests
    for t in $tests; do
        name=$(basename "$t")
        status=$(cat "$out/$name.$1.status" 2>/dev/null) || { say "left out: $name"; left_out=$((left_out + 1)); continue; }
        verdict=$(grep -E '(ERROR|RACECHECK) SUMMARY' "$out/$name.$1.log" | tail -n 1 | sed 's/=* *//')
        case $status in
        124 | 137) verdict="not finished in its time" ;;
        0) ;;
        *)
            if [ -n "$verdict" ]; then failed=$((failed + 1))
            else verdict="$1 does not work here: $(tail -n 1 "$out/$name.$1.log" | cut -c 1-80)"; fi
            ;;
        esac
        say "$(printf '%-34s %s' "$name" "$verdict")"
    done
}

PATH="$PATH:/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer"
command -v nvcc >/dev/null 2>&1 || { say "error: no nvcc on the PATH; gpu-check needs the CUDA Toolkit" >&2; exit 1; }
gpu=$(nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null | head -n 1)
[ -n "$gpu" ] || { say "error: nvidia-smi shows no GPU; gpu-check needs one. 'make test' proves the kernels without" >&2; exit 1; }
say "gpu-check of $(date -u +%Y-%m-%d), $gpu, $(nvcc --version | sed -n 's/.*release \([0-9.]*\).*/nvcc \1/p'), $cores cores"

part "build"
run build $((limit / 3)) make -k -j "$cores" gpu_check_programs
status=$?
say "status $status after $(elapsed) s; $(find build/gpu build/gpu_fp32 -type f ! -name "*.o" 2>/dev/null | wc -l) programs for the GPU"
[ $status -eq 0 ] || {
    failed=$((failed + 1))
    grep -E 'error|Error|undefined' "$out/build.log" | head -n 12 | cut -c 1-200 | tee -a "$summary"
}
ldd build/gpu/train_tokenizer 2>/dev/null | grep -q libnccl || say "without NCCL: built for one GPU"
kernels="" # the longest first
for t in tests/kernels_*.cu; do
    t=build/gpu/$(basename "$t" .cu)
    case $t in *full_size) kernels="${t}_bf16 ${t}_fp32 $kernels" ;; *) kernels="$kernels ${t}_bf16 ${t}_fp32" ;; esac
done
kernels="$kernels build/gpu/test_distribution"
built=$(for t in $kernels; do [ ! -x "$t" ] || echo "$t"; done)

if is_part kernels; then
    part "kernels on the GPU, and cuBLAS and cuSOLVER in double"
    # shellcheck disable=SC2086
    run_all test 100 "" $built
    for t in $kernels; do
        name=$(basename "$t").test
        [ -x "$t" ] || { say "not built: $t"; failed=$((failed + 1)); continue; }
        status=$(cat "$out/$name.status" 2>/dev/null) || { say "left out: $t"; left_out=$((left_out + 1)); continue; }
        result_of "$name" "$status"
    done
fi

if is_part losses; then
    part "training on the GPU beside the CPU build"
    run same_losses $((limit / 4)) sh tests/gpu_losses.sh build/cpu
    status=$?
    [ $status -eq 99 ] || result_of same_losses $status
    grep -hs 'largest difference' "$out/same_losses.log" | cut -c 1-160 | tee -a "$summary"
fi

if is_part demo; then
    part "the miniature world on the GPU"
    data=/usr/share/datasets/fashion-mnist
    [ -d $data ] || data=$PWD/build/carried/fashion-mnist
    if [ -d "$data" ]; then data=garments:$data; else data=shapes; fi
    world=build/gpu_check/demo # a root of its own: what runs/mini holds stays as it is
    rm -rf $world
    mkdir -p $world
    for program in train_tokenizer train_dit sample eval; do ln -s "../../gpu/$program" $world/; done
    start=$(elapsed)
    # shellcheck disable=SC2016
    run demo $((limit / 3)) sh -c 'cd "$1" && exec sh ../../../dev/demo.sh ../../gpu "$2"' sh $world "$data"
    status=$?
    if [ $status -eq 0 ]; then say "make demo on $data: $(($(elapsed) - start)) s"
    elif [ $status -ne 99 ]; then
        failed=$((failed + 1))
        say "make demo ended with status $status after $(($(elapsed) - start)) s in $(grep '^==' "$out/demo.log" | tail -n 1)"
    fi
    sed -n '/^== measured/,$p' "$out/demo.log" 2>/dev/null | cut -c 1-150 | tail -n 40 | tee -a "$summary"
    for picture in samples eval/reconstructions; do
        [ ! -f $world/runs/mini/$picture.png ] || cp $world/runs/mini/$picture.png "$results/demo_$(basename $picture).png"
    done
fi

if is_part speed; then
    part "speed"
    torch=""
    python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null && torch=python3
    SPEED_SECONDS=$(($(left) - 8))
    is_part races && SPEED_SECONDS=$((SPEED_SECONDS - 70))
    [ "$SPEED_SECONDS" -lt 330 ] || SPEED_SECONDS=330
    export SPEED_SECONDS
    run speed $((SPEED_SECONDS + 5)) sh dev/bench/gpu_speed.sh "$results" "$torch"
    [ $? -eq 99 ] || sed 1d "$out/speed.log" | cut -c 1-150 | head -n 90 | tee -a "$summary"
fi

if is_part races; then
    part "races in shared memory"
    sanitize racecheck 60
fi
if is_part memory; then
    part "accesses to memory"
    sanitize memcheck 60
fi

say ""
[ "$left_out" -eq 0 ] || say "$left_out parts were left out for lack of time (GPU_CHECK_SECONDS=$limit)"
say "$passed passed, $failed failed ($(elapsed) s; logs in $results)"
[ "$failed" -eq 0 ]
