#!/bin/sh
# The speed of the GPU build: training steps at full size, then operations, beside PyTorch where it is given.
#     sh dev/bench/gpu_speed.sh OUT [PYTHON]
# OUT is a folder. PYTHON has torch and timm; without it only this project is timed. Prints at most 90 lines, and writes
# OUT/speed_tables.txt (all lines, and what the programs printed), OUT/speed_ours.json and OUT/speed_torch.json.
# The important comes first: ours, PyTorch's eager, PyTorch's compiled, then operations and FID's network. What does not fit into
# SPEED_SECONDS (330) is left out, and a part that fails is named. The files are written anew behind every part.
# SPEED_OF ("dit tokenizer t2i inception inception_fp32") says of what: LightningDiT-XL/1, training at 64, 32 and 128 images
# and drawing 64 with guidance; the tokenizer's stages; the text-to-image transformer 2B, training at 256 and 512 pixels;
# FID's network on FEATURES (64) images in bf16, and in fp32, with which FIDs are published, where FP32 (build/gpu_fp32)
# holds a bench_models; operations are timed either way. PyTorch's fp32 has TF32 in its convolutions, as is its default;
# ours has not.
# FOLDER (build/gpu) holds bench_ops and bench_models; PRESET (imagenet), IMAGES (64,8,32, of which PyTorch's compiled
# mode takes the first two), DIT, T2I and TABLES (flags of bench_models for LightningDiT, for text to image, and for the
# paper's tables) and OPS (flags of bench_ops) make a small trial of it possible:
#     FOLDER=build/cpu PRESET=mini IMAGES=8,16 DIT="-model mini -dit_images 32 -draw_images 2" OPS="-only mini" MINI=1 \
#         TABLES="-table_pixels 256 -table_images 1" sh dev/bench/gpu_speed.sh build/speed python3
set -u
out=${1:?"usage: sh dev/bench/gpu_speed.sh OUT [PYTHON]"}
python=${2:-}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/../.." || exit 1
folder=${FOLDER:-build/gpu}
preset=${PRESET:-imagenet}
images=${IMAGES:-64,8,32}
mini=${MINI:-0}
fp32=${FP32:-build/gpu_fp32}
features=${FEATURES:-64}
limit=${SPEED_SECONDS:-330}
of=" ${SPEED_OF:-dit tokenizer t2i inception inception_fp32} "
[ -x "$fp32/bench_models" ] || of=$(echo "$of" | sed 's/ inception_fp32 / /')
begin=$(date +%s)
scratch=$(mktemp -d)
notes=$scratch/notes
: >"$notes"
: >"$scratch/times"

left() { echo $((limit - $(date +%s) + begin)); }

# part NAME SECONDS COMMAND...: standard output to NAME.out, errors to NAME.err; notes what went wrong
part() {
    name=$1
    seconds=$2
    shift 2
    [ "$seconds" -lt "$(left)" ] || seconds=$(left)
    if [ "$seconds" -lt 5 ]; then
        echo "left out for lack of time: $name" >>"$notes"
        return
    fi
    start=$(date +%s)
    timeout --foreground -k 5 "$seconds" "$@" >"$scratch/$name.out" 2>"$scratch/$name.err"
    status=$?
    case $status in
    0) ;;
    124) echo "not finished in its $seconds s: $name" >>"$notes" ;;
    *)
        reason=$(grep -v '^ *$' "$scratch/$name.err" | tail -n 1 | cut -c 1-100)
        echo "failed with status $status: $name: $reason" >>"$notes"
        ;;
    esac
    grep -E '^(failed|no time left)' "$scratch/$name.err" | head -n 4 | cut -c 1-150 >>"$notes"
    echo "$name $(($(date +%s) - start)) s" >>"$scratch/times"
    write
}

# What there is by now, as tables.
tables() {
    cat "$scratch"/ours_*.json >"$out/speed_ours.json" 2>/dev/null
    cat "$scratch"/torch_*.out >"$out/speed_torch.json" 2>/dev/null
    table="awk -v mini=$mini -f dev/bench/table.awk"
    for p in models shares ratios; do
        $table -v part=$p "$out/speed_ours.json" "$out/speed_torch.json" >"$scratch/$p.all"
    done
    sort -n "$scratch/shares.all" | cut -f 2- >"$scratch/shares"
    sort -n "$scratch/ratios.all" | cut -f 2- >"$scratch/ratios"
    heads="$(cat "$scratch"/*.out 2>/dev/null | grep -h 'limits: ' | head -n 1)"
    torch=$(sed -n 's/.*"torch": "\([^"]*\)".*/PyTorch \1/p' "$out/speed_torch.json" | head -n 1)
    operation=$(printf '%-32s%-20s%10s %9s %8s %7s %-7s %10s %8s' operation where us TFLOP/s GB/s share of PyTorch faster)
    {
        echo "$heads"
        echo "beside ${torch:-nothing: no Python with torch was given}"
        printf '%-14s %6s %10s %10s %9s %7s %8s%12s %10s %8s  %-13s %8s\n' "" images ms images/s TFLOP/s share GiB \
            "PyTorch ms" images/s GiB mode faster
        head -n 20 "$scratch/models.all"
        count=$(wc -l <"$scratch/shares")
        echo "operations furthest from the limit, of $count (us; TFLOP/s and GB/s; the larger share; PyTorch's us)"
        echo "$operation"
        head -n "${1:-38}" "$scratch/shares"
        echo "operations that PyTorch does faster, of $(wc -l <"$scratch/ratios")"
        head -n "${2:-16}" "$scratch/ratios"
        tr '\n' ',' <"$scratch/times" | sed 's/,$//; s/,/, /g; s/$/\n/'
        head -n 12 "$notes"
    } | cut -c 1-150
}

# The files: what is known by now, in full.
write() {
    {
        tables 1000 1000
        for f in "$scratch"/*.out "$scratch"/*.err; do
            case $f in *torch_*.out) continue ;; esac
            echo "== $(basename "$f")"
            cat "$f"
        done
    } >"$out/speed_tables.txt" 2>/dev/null
}
finish() {
    trap '' TERM INT
    [ "$1" = complete ] || echo "stopped after $(($(date +%s) - begin)) s" >>"$notes"
    write
    tables
    rm -rf "$scratch"
    exit 0
}
trap 'finish stopped' TERM INT

models() { # NAME SECONDS FLAGS...
    name=$1
    seconds=$2
    shift 2
    part "$name" "$seconds" "$folder/bench_models" -preset "$preset" -runs 5 "$@"
}
is_of() { case $of in *" $1 "*) return 0 ;; esac; return 1; }
pytorch() { # NAME SECONDS SCRIPT FLAGS...
    name=$1
    seconds=$2
    shift 2
    [ -z "$python" ] || part "$name" "$seconds" "$python" -W ignore "$@"
}

# 1  the steps that count most, here and in PyTorch's eager mode
# shellcheck disable=SC2086
! is_of dit || models ours_dit 60 -only dit,draw ${DIT:-} -json "$scratch/ours_0.json"
! is_of tokenizer || models ours_steps 80 -only step1,step2,step3 -images "$images" -json "$scratch/ours_1.json"
# shellcheck disable=SC2086
! is_of t2i || models ours_t2i 40 -only t2i ${T2I:-} -json "$scratch/ours_7.json"
[ ! -s "$scratch/ours_0.json" ] || pytorch torch_0 50 dev/reference/bench_dit.py --from "$scratch/ours_0.json" --runs 3 --warmup 1
[ ! -s "$scratch/ours_1.json" ] || pytorch torch_1 60 dev/reference/bench_torch.py --from "$scratch/ours_1.json" --runs 3
[ ! -s "$scratch/ours_7.json" ] || pytorch torch_7 40 dev/reference/bench_dit.py --from "$scratch/ours_7.json" --runs 3 --warmup 1
# 2  operations
# shellcheck disable=SC2086
part ours_ops 50 "$folder/bench_ops" ${OPS:-} -json "$scratch/ours_2.json"
# 3  PyTorch compiled
[ ! -s "$scratch/ours_0.json" ] ||
    pytorch torch_5 100 dev/reference/bench_dit.py --from "$scratch/ours_0.json" --no-eager --compile --runs 3
third=$(echo "$images" | cut -s -d , -f 3)
grep -v "\"images\": ${third:-none}," "$scratch/ours_1.json" >"$scratch/first" 2>/dev/null
[ ! -s "$scratch/first" ] ||
    pytorch torch_3 105 dev/reference/bench_torch.py --from "$scratch/first" --no-eager --compile 100 --runs 3
# 4  PyTorch's operations; FID's network; the tokenizer's models alone, and as the paper's Tables 7 and 8
if [ -s "$scratch/ours_2.json" ]; then
    cp "$scratch/ours_2.json" "$scratch/ops"
    [ "$mini" = 1 ] || grep -v '"where": "mini' "$scratch/ours_2.json" >"$scratch/ops"
    pytorch torch_2 60 dev/reference/bench_kernels.py "$scratch/ops" --seconds 35 --runs 3
fi
! is_of inception || models ours_inception 25 -only inception -feature_images "$features" -json "$scratch/ours_4.json"
! is_of inception_fp32 || part ours_inception_fp32 25 "$fp32/bench_models" -runs 5 -only inception \
    -feature_images "$features" -json "$scratch/ours_5.json"
cat "$scratch"/ours_[45].json >"$scratch/inception" 2>/dev/null
[ ! -s "$scratch/inception" ] ||
    pytorch torch_6 40 dev/reference/bench_inception.py --from "$scratch/inception" --repeats 5
! is_of tokenizer || models ours_rest 40 -only encode,decode -json "$scratch/ours_3.json"
[ ! -s "$scratch/ours_3.json" ] || pytorch torch_4 40 dev/reference/bench_torch.py --from "$scratch/ours_3.json" --runs 3
# shellcheck disable=SC2086
! is_of tokenizer || models ours_tables 40 -only tables ${TABLES:-} -json "$scratch/ours_6.json"
finish complete
