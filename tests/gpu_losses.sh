#!/bin/sh
# Ten training steps of each stage of the tokenizer, of its baselines and of LightningDiT on a GPU beside the CPU build, from the same seed and
# checkpoints: fp32 within 1e-4, bf16 within 2e-2; and the same bits every time, resumed or not. Part of `make gpu-check`.
# Usage: sh tests/gpu_losses.sh BUILD_FOLDER; the GPU's programs stand beside it, in gpu/ and gpu_fp32/.
. tests/programs.sh "$1"
. "$here/tests/same_losses.sh"
kinds=$(dirname "$build")
# a small rate: steps are compared, not how Adam enlarges rounding
flags="-disc_start 0 -lr 2e-5 -disc_lr 2e-5"
# shellcheck disable=SC2086
same_losses "$kinds/gpu_fp32" 10 1e-4 $flags
# shellcheck disable=SC2086
same_losses "$kinds/gpu" 10 2e-2 $flags
# shellcheck disable=SC2086
same_baseline_losses "$kinds/gpu_fp32" 10 1e-4 $flags

same_dit_losses 10 4 "mini" gpu_fp32 gpu
same_dit_losses 10 4 "mini -qk_norm 1 -recompute 1" gpu_fp32 gpu
same_dit_losses 10 4 "tiny/2 -mlp gelu -shift 0" gpu_fp32 gpu

# the same bits from the same command, and from a run that was stopped and resumed; which algorithms of cuBLASLt are the fastest is
# measured by the first, and the others take its choices
# shellcheck disable=SC2086
gpu() { "$kinds/gpu/train_tokenizer" -data shapes $nano $flags -stage 2 -from base/stage1.safetensors "$@"; }
expect "stage 2 in one go" 0 '' gpu -out whole -steps 6
for run in again halves; do
    mkdir "$run"
    cp whole/algorithms.txt "$run/"
done
expect "once more" 0 '' gpu -out again -steps 6
expect "half of it" 0 '' gpu -out halves -steps 3
expect "and the rest" 0 '' gpu -out halves -steps 6
check "the same bits every time" cmp whole/stage2.safetensors again/stage2.safetensors
check "the same bits when resumed" cmp whole/stage2.safetensors halves/stage2.safetensors

# LightningDiT likewise, and pictures: the sampler in this build
# shellcheck disable=SC2086
gpu_dit() { "$kinds/gpu/train_dit" $dit -model mini "$@"; }
expect "LightningDiT in one go" 0 '' gpu_dit -out dit_whole -steps 6
mkdir dit_halves
cp dit_whole/algorithms.txt dit_halves/
expect "half of it" 0 '' gpu_dit -out dit_halves -steps 3
expect "and the rest" 0 '' gpu_dit -out dit_halves -steps 6
check "the same bits when resumed" cmp dit_whole/dit.safetensors dit_halves/dit.safetensors
expect "samples" 0 '' "$kinds/gpu/sample" -dit dit_whole/dit.safetensors -tokenizer base/stage3.safetensors -class 1,2 -n 2 \
    -steps 5 -out samples.png

# text to image
same_caption_losses 10 "t2i-mini -decay 0.01 -recompute 1" gpu_fp32 gpu
finish
