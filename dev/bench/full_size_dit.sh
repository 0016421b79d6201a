#!/bin/sh
# LightningDiT-XL/1 at full size on a CPU, beside PyTorch: does it run in this machine's memory, and how fast?
#     sh dev/bench/full_size_dit.sh PYTHON [FOLDER]
# PYTHON has torch. FOLDER (build/full_size) takes 14 GB of files that a later call uses again; remove it afterwards.
#   1  a tokenizer with random weights and the decoder of f16d32 (a small encoder, since an encoder draws nothing), by one
#      step of train_tokenizer; the latents of three images by train_dit -extract
#   2  one training step of XL/1 on one latent, by train_dit, which leaves a checkpoint of random weights
#   3  ./sample -class 207 -steps 50 with both: of each program seconds and peak memory
#   4  the same step and the same steps of sampling, ours (bench_models) and PyTorch's (bench_dit.py, float32) in turn,
#      ROUNDS times (1), POINTS (50) points of time, guidance from t = 0.125 on; medians and their ratio
# Two threads (THREADS). A ratio below 1 means that this project is faster. CPU seconds are those of all threads: on a
# machine that others use as well they mean more than the wall's, and OMP_WAIT_POLICY=passive in the environment makes
# waiting threads of both sides sleep. About 16 GB of memory. Step 4 takes some ten minutes with POINTS=50 on two quiet
# cores; the time of sampling is proportional to the evaluations, so POINTS=8 shows the same ratio.
set -eu
python=${1:?"usage: sh dev/bench/full_size_dit.sh PYTHON [FOLDER]"}
mkdir -p "${2:-build/full_size}"
folder=$(cd "${2:-build/full_size}" && pwd)
cd "$(dirname "$0")/../.."
points=${POINTS:-50}
. dev/bench/full_size.sh
make --no-print-directory CPU=1 build/cpu/bench_models
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# field FILE NAME KEY: a number of the line of this name in a JSON-lines file
field() { sed -n "/\"name\": \"$2\"/s/.*\"$3\": \([0-9.e-]*\).*/\1/p" "$1" | tail -n 1; }
median() { sort -g "$1" | awk '{ x[NR] = $1 } END { print (x[int((NR + 1) / 2)] + x[int(NR / 2) + 1]) / 2 }'; }

dit="build/cpu/train_dit -preset imagenet -tokenizer $tokenizer -latents $folder/latents"
# shellcheck disable=SC2086
timed latents $dit -extract 1 -data "$folder/images" -extract_batch 2
# shellcheck disable=SC2086
[ -s "$folder/dit/dit.safetensors" ] ||
    timed training_step $dit -out "$folder/dit" -steps 1 -batch 1 -log_every 1 -grid_classes 207 -grid_columns 1 -sample_steps 2
timed sample_207 build/cpu/sample -preset imagenet -dit "$folder/dit/dit.safetensors" \
    -tokenizer "$tokenizer" -class 207 -n 1 -steps 50 -cfg_start 0.125 -out "$folder/207.png"

round=0
while [ "$round" -lt "$rounds" ]; do
    for work in dit:train draw:sample; do
        ours=${work%%:*}
        build/cpu/bench_models -only "$ours" -model XL/1 -dit_images 1 -draw_images 1 -steps "$points" -runs 1 \
            -json "$scratch/ours.json" >>"$folder/bench.log"
        "$python" -W ignore dev/reference/bench_dit.py "${work##*:}" --size XL/1 --batch 1 --steps "$points" --runs 1 \
            --warmup 1 --repeats 1 --threads "$threads" --device cpu >"$scratch/torch.json"
        for key in seconds cpu_seconds; do
            field "$scratch/ours.json" "$ours" $key >>"$scratch/$ours.$key.ours"
            field "$scratch/torch.json" "$ours" $key >>"$scratch/$ours.$key.torch"
        done
    done
    round=$((round + 1))
done
printf '%-34s %10s %10s %8s\n' "XL/1, one image" ours PyTorch ratio
for work in dit draw; do
    for key in seconds cpu_seconds; do
        printf '%s %s %s %s\n' $work $key "$(median "$scratch/$work.$key.ours")" "$(median "$scratch/$work.$key.torch")"
    done
done | awk -v points="$points" '{
    what = $1 == "dit" ? "training step" : "sampling, " points " points"
    printf "%-34s %10.2f %10.2f %8.2f\n", what ($2 == "seconds" ? ", seconds" : ", CPU seconds"), $3, $4, $3 / $4
}'
