#!/bin/sh
# Sets the speed of this project beside PyTorch's, on two cores: whole models, training steps of the miniature,
# LightningDiT-B/1 drawing one image or eight at five points of time, and FID's network.
#     sh dev/bench/compare.sh PYTHON [MODEL...]
# PYTHON has torch and timm; for inception torchvision and pytorch-fid. MODEL: encode decode step1 step2 step3 draw1
# draw8 inception; default all.
# The two sides run in turn, ROUNDS times (3), each with RUNS runs (5) after one to warm up, on processors 0 and 1 with
# two threads, or with THREADS=1 on processor 0. Medians over the rounds and their ratio are printed, and written to
# dev/bench/results/cpu_MODEL.txt (one thread: cpu_MODEL_1.txt).
# A ratio below 1 means that this project is faster. The load is what others keep busy (as the kernel's average over a
# minute has it) before each side runs; with WAIT=N a round waits up to N seconds for it to fall below 1. On processors
# that others use, threads that wait awake for one another waste most of the time, PyTorch's more than ours:
# OMP_WAIT_POLICY=passive in the environment makes both sides sleep instead.
set -eu
python=${1:?"usage: sh dev/bench/compare.sh PYTHON [MODEL...]"}
shift
[ $# -gt 0 ] || set -- encode decode step1 step2 step3 draw1 draw8 inception
rounds=${ROUNDS:-3}
runs=${RUNS:-5}
wait=${WAIT:-0}
threads=${THREADS:-2}
case $threads in
1) processors=0 suffix=_1 ;;
2) processors=0,1 suffix= ;;
*) echo "error: THREADS=$threads: 1 or 2" >&2 && exit 1 ;;
esac
here=$(cd "$(dirname "$0")/../.." && pwd)
cd "$here"
make --no-print-directory CPU=1 build/cpu/bench_models
results=dev/bench/results
mkdir -p "$results"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export OMP_NUM_THREADS="$threads"

# The number of a field in the only line of a JSON-lines file.
field() { sed -n "s/.*\"$2\": \([0-9.e-]*\).*/\1/p" "$1"; }
load() { cut -d ' ' -f 1 /proc/loadavg; }
wait_for_quiet() {
    waited=0
    while [ "$waited" -lt "$wait" ] && awk -v l="$(load)" 'BEGIN { exit l < 1 }'; do
        sleep 5
        waited=$((waited + 5))
    done
}
# One run of a side: appends "seconds best CPU-seconds load" to a file.
ours() {
    before=$(load)
    work="-only $1"
    case $1 in draw*) work="-only draw -model B/1 -draw_images ${1#draw} -steps 5" ;; esac
    # shellcheck disable=SC2086 # several words
    taskset -c "$processors" build/cpu/bench_models $work -runs "$runs" -json "$scratch/ours.json" >/dev/null
    echo "$(field "$scratch/ours.json" seconds) $(field "$scratch/ours.json" best_seconds)" \
         "$(field "$scratch/ours.json" cpu_seconds) $before" >>"$scratch/$1.ours"
}
theirs() {
    before=$(load)
    config=$(sed -n 's/.*"config": \({[^}]*}\).*/\1/p' "$scratch/ours.json")
    if [ "$1" = inception ]; then
        taskset -c "$processors" "$python" -W ignore dev/reference/bench_inception.py --device cpu --threads "$threads" \
            --from "$scratch/ours.json" --repeats "$runs" >"$scratch/torch.json"
    elif [ "${1#draw}" != "$1" ]; then
        taskset -c "$processors" "$python" -W ignore dev/reference/bench_dit.py sample --device cpu --threads "$threads" \
            --from "$scratch/ours.json" --warmup 1 --repeats "$runs" >"$scratch/torch.json"
    else
        taskset -c "$processors" "$python" -W ignore dev/reference/bench_torch.py "$(echo "$1" | tr -d 0-9)" --device cpu \
            --threads "$threads" --runs "$runs" --config "${config:-"{}"}" >"$scratch/torch.json"
    fi
    echo "$(field "$scratch/torch.json" seconds) $(field "$scratch/torch.json" best_seconds)" \
         "$(field "$scratch/torch.json" cpu_seconds) $before" >>"$scratch/$1.torch"
}
# Median of a column, and its largest value.
median() {
    sort -g -k "$2,$2" "$1" |
        awk -v c="$2" '{ x[NR] = $c } END { print (x[int((NR + 1) / 2)] + x[int(NR / 2) + 1]) / 2 }'
}
largest() { sort -g -k "$2,$2" "$1" | awk -v c="$2" 'END { print $c }'; }
smallest() { sort -g -k "$2,$2" "$1" | awk -v c="$2" 'NR == 1 { print $c }'; }

table() {
    printf '%-22s %12s %12s %8s\n' "$1, seconds" ours PyTorch ratio
    set -- "$1" "$scratch/$1.ours" "$scratch/$1.torch"
    for row in "median:median:1" "shortest run:smallest:2" "CPU, all threads:median:3"; do
        name=${row%%:*} column=${row##*:} of=${row#*:}
        of=${of%%:*}
        a=$($of "$2" "$column") b=$($of "$3" "$column")
        awk -v n="$name" -v a="$a" -v b="$b" 'BEGIN { printf "%-22s %12.4f %12.4f %8.2f\n", n, a, b, a / b }'
    done
    printf 'load before a side     up to %s (ours), %s (PyTorch)\n' "$(largest "$2" 4)" "$(largest "$3" 4)"
}

for model in "$@"; do
    round=0
    while [ "$round" -lt "$rounds" ]; do
        wait_for_quiet
        ours "$model"
        wait_for_quiet
        theirs "$model"
        round=$((round + 1))
    done
    {
        echo "date      $(date -u '+%Y-%m-%d %H:%M UTC')"
        echo "machine   $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $threads of $(nproc --all) processors"
        echo "compiler  $(${CC:-gcc} --version | head -n 1)"
        echo "PyTorch   $("$python" -c 'import torch; print(torch.__version__)')"
        echo "commit    $(git describe --always --dirty)"
        policy=${OMP_WAIT_POLICY:+"OMP_WAIT_POLICY=$OMP_WAIT_POLICY "}
        [ "$threads" = 2 ] || policy="${policy}THREADS=$threads "
        echo "command   ${policy}ROUNDS=$rounds RUNS=$runs sh dev/bench/compare.sh PYTHON $model"
        sed -n 's/.*"config": \({[^}]*}\).*/config    \1/p' "$scratch/ours.json"
        echo
        table "$model"
    } >"$results/cpu_$model$suffix.txt"
    sed -n '/^$/,$p' "$results/cpu_$model$suffix.txt"
done
