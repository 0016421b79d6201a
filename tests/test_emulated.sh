#!/bin/sh
# The GPU's whole code path without a GPU: train_tokenizer on the CUDA kernels, in the emulator, does what the CPU build does,
# in all three stages, in fp32 and in bf16.
# Usage: sh tests/test_emulated.sh BUILD_FOLDER; the emulated programs stand beside it, in emu/ and emu_fp32/.
. tests/programs.sh "$1"
. "$here/tests/same_losses.sh"
kinds=$(dirname "$build")
for kind in emu_fp32 emu; do
    [ -x "$kinds/$kind/train_tokenizer" ] || fail "$kind/train_tokenizer is there" "make $kinds/$kind/train_tokenizer"
done
# a small rate: steps are compared, not how Adam enlarges rounding
flags="-disc_start 0 -lr 2e-5 -disc_lr 2e-5 -batch 2 -chunk 1 -image_size 24"
# shellcheck disable=SC2086
same_losses "$kinds/emu_fp32" 2 1e-4 $flags
# shellcheck disable=SC2086
same_losses "$kinds/emu" 2 2e-2 $flags
finish
