#!/bin/sh
# The mechanism of AlignTok in the miniature world: what the semantic loss of stage 2 is for.
#
#     sh dev/mechanism.sh [SEED] [DATA]      (after `make demo`; about 10 minutes on two cores)
#
# Trains stage 1 once, stage 2 from it with w_sem 0, 1 and 10, and stage 3 after w_sem 1, and prints one line each. Expected
# as in the paper's Table 1: stage 1 is semantic but reconstructs poorly; w_sem 0 reconstructs and loses probe accuracy;
# w_sem 1 keeps both; stage 3 improves the reconstruction only.
set -eu
seed=${1:-1}
data=${2:-fashion-mnist}
root=runs/mechanism_${data}_$seed
common="-data $data -seed $seed -grid_every 0 -save_every 0"
if [ "$data" = fashion-mnist ]; then world=runs/mini; else world=runs/mini_$data; fi
build/cpu/pretrain -data "$data" -out "$world"
weights="-encoder_weights $world/encoder.safetensors -lpips_weights $world/vgg.safetensors"

run() { # run NAME STAGE [FLAGS...]: quiet unless it fails
    name=$1
    stage=$2
    shift 2
    mkdir -p "$root/$name"
    # shellcheck disable=SC2086
    ./train_tokenizer -stage "$stage" -out "$root/$name" $common $weights "$@" >"$root/$name/stage$stage.log" 2>&1 || {
        cat "$root/$name/stage$stage.log" >&2
        exit 1
    }
    echo "trained $name stage $stage"
}
run w1 1
for w in 0 1 10; do run w$w 2 -w_sem $w -from "$root/w1/stage1.safetensors"; done
run w1 3
echo "./train_tokenizer flags: $common"
./eval -recon -probe -out "$root" -json "$root/mechanism.jsonl" \
    -features "$world/vgg.safetensors" -lpips_weights "$world/vgg.safetensors" -tokenizer \
    "$root/w1/stage1.safetensors,$root/w0/stage2.safetensors,$root/w1/stage2.safetensors,$root/w10/stage2.safetensors,$root/w1/stage3.safetensors"
