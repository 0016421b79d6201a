#!/bin/sh
# Ten training steps of each stage on a GPU beside the CPU build, from the same seed and checkpoints: fp32 within 1e-4, bf16 within
# 2e-2. Part of `make gpu-check`. Usage: sh tests/gpu_losses.sh BUILD_FOLDER; the GPU's programs stand beside it, in gpu/ and gpu_fp32/.
. tests/programs.sh "$1"
. "$here/tests/same_losses.sh"
kinds=$(dirname "$build")
# a small rate: steps are compared, not how Adam enlarges rounding
flags="-disc_start 0 -lr 2e-5 -disc_lr 2e-5"
# shellcheck disable=SC2086
same_losses "$kinds/gpu_fp32" 10 1e-4 $flags
# shellcheck disable=SC2086
same_losses "$kinds/gpu" 10 2e-2 $flags
finish
