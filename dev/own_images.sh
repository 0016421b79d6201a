#!/bin/sh
# From a folder of your own pictures to a tokenizer, a diffusion transformer, drawings and scores: docs/own_images.md.
#
#     sh dev/own_images.sh FOLDER [OUT]       (after `make && make build/cpu/pretrain`; OUT: runs/own)
#
# FOLDER holds a folder for each class. The same command again goes on where it was stopped. In the environment:
#     SIDE=64                        pixels of the squares that pictures are cut to, a multiple of 8
#     STEPS=4000,4000,2000 DIT_STEPS=10000       how long the three stages and the transformer learn
#     ENCODER_WEIGHTS=FILE LPIPS_WEIGHTS=VGG16.pth,HEADS.pth     published weights: the full-size networks, for a GPU
#     ENCODER=dinov2-l               which encoder that file is
#     FEATURES=FILE                  Inception's weights, for scores of drawings that can be compared
set -eu
[ $# -ge 1 ] && [ -d "$1" ] || { echo "usage: sh dev/own_images.sh FOLDER [OUT], FOLDER with a folder of pictures a class" >&2; exit 1; }
data=$1
out=${2:-runs/own}
for build in build/gpu build/gpu_fp32 build/cpu; do [ ! -x $build/pretrain ] || break; done
for program in ./train_tokenizer ./train_dit ./sample ./eval; do
    [ -x $program ] || { echo "error: $program is not built; run: make && make build/cpu/pretrain" >&2; exit 1; }
done

# stage N FLAGS...: one stage of the tokenizer
tokenizer() {
    for stage in 1 2 3; do
        echo "== tokenizer, stage $stage of 3"
        ./train_tokenizer -stage $stage -data "$data" -out "$out" "$@"
    done
}
if [ -n "${ENCODER_WEIGHTS:-}" ]; then
    [ -n "${LPIPS_WEIGHTS:-}" ] || { echo "error: ENCODER_WEIGHTS is given, LPIPS_WEIGHTS is not" >&2; exit 1; }
    side=${SIDE:-256}
    tokenizer -preset imagenet -encoder "${ENCODER:-dinov2-l}" -encoder_weights "$ENCODER_WEIGHTS" -lpips_weights "$LPIPS_WEIGHTS" \
        -image_size "$side" -steps "${STEPS:-20000,20000,10000}"
    dit="-preset imagenet -model B/1 -batch 256 -steps ${DIT_STEPS:-50000}"
    features=${FEATURES:-}
else
    side=${SIDE:-64}
    [ -x $build/pretrain ] || { echo "error: $build/pretrain is not built; run: make $build/pretrain" >&2; exit 1; }
    echo "== an encoder and a VGG learn to tell your classes apart: the stand-ins for published weights"
    workers=$(nproc)
    $build/pretrain -data "$data" -out "$out" -image_size "$side" -workers $((workers < 8 ? workers : 8))
    LPIPS_WEIGHTS=$out/vgg.safetensors
    tokenizer -encoder_weights "$out/encoder.safetensors" -lpips_weights "$LPIPS_WEIGHTS" -image_size "$side" \
        -steps "${STEPS:-4000,4000,2000}"
    dit="-steps ${DIT_STEPS:-10000}"
    features=${FEATURES:-$out/vgg.safetensors}
fi
# shellcheck disable=SC2086
{
    echo "== your pictures become latents"
    ./train_dit $dit -extract 1 -images 0 -data "$data" -tokenizer "$out/stage3.safetensors" -latents "$out/latents"
    echo "== LightningDiT learns to draw them"
    ./train_dit $dit -tokenizer "$out/stage3.safetensors" -latents "$out/latents" -out "$out"
}
echo "== it draws: one class a row"
./sample -dit "$out/dit.safetensors" -tokenizer "$out/stage3.safetensors" -out "$out/samples.png"
echo "== scores"
gen=""
[ -z "$features" ] || gen=-gen
# shellcheck disable=SC2086
./eval -recon $gen -data "$data" -tokenizer "$out/stage3.safetensors" -dit "$out/dit.safetensors" -features "$features" \
    -lpips_weights "$LPIPS_WEIGHTS" -out "$out/eval" -json "$out/scores.jsonl"
echo "done: $out/samples.png, $out/eval, $out/scores.jsonl"
