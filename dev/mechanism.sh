#!/bin/sh
# The mechanism of AlignTok in the miniature world: what the semantic loss of stage 2 is for.
#
#     sh dev/mechanism.sh [SEED]      (after dev/miniature.sh, which is seed 1; then about 6 minutes on two cores, else 12)
#
# Trains stage 1 once, stage 2 from it with w_sem 0, 1 and 10, and stage 3 after w_sem 1, and prints one line each. Expected
# as in the paper's Table 1 and Figure 2: stage 1 knows what a thing is, and draws it in wrong colours; w_sem 0 reconstructs best
# and loses probe accuracy; w_sem 1 keeps it and has the colours; stage 3 improves the reconstruction only.
set -eu
seed=${1:-1}
world=runs/miniature
root=runs/mechanism_$seed
weights="-encoder_weights $world/encoder.safetensors -lpips_weights $world/vgg.safetensors"
[ -s $world/encoder.safetensors ] || { echo "error: $world/encoder.safetensors is not there; run dev/miniature.sh" >&2; exit 1; }
mkdir -p "$root"
[ "$seed" != 1 ] || [ -e "$root/w1" ] || ln -s "../miniature" "$root/w1"

run() { # run NAME STAGE [FLAGS...]: quiet unless it fails
    name=$1
    stage=$2
    shift 2
    mkdir -p "$root/$name"
    [ ! -s "$root/$name/stage$stage.safetensors" ] || return 0
    # shellcheck disable=SC2086
    ./train_tokenizer -stage "$stage" -out "$root/$name" -data garments -seed "$seed" $weights "$@" >"$root/$name/stage$stage.log" 2>&1 || {
        cat "$root/$name/stage$stage.log" >&2
        exit 1
    }
    echo "trained $name stage $stage"
}
run w1 1
for w in 0 1 10; do run w$w 2 -w_sem $w -from "$root/w1/stage1.safetensors"; done
run w1 3
./eval -recon -probe -data garments -out "$root" -json "$root/mechanism.jsonl" \
    -features "$world/vgg.safetensors" -lpips_weights "$world/vgg.safetensors" -tokenizer \
    "$root/w1/stage1.safetensors,$root/w0/stage2.safetensors,$root/w1/stage2.safetensors,$root/w10/stage2.safetensors,$root/w1/stage3.safetensors"
