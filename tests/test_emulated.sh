#!/bin/sh
# The GPU's whole code path without a GPU: train_tokenizer and train_dit on the CUDA kernels, in the emulator, do what the CPU
# build does, the tokenizer in all three stages, in fp32 and in bf16.
# Usage: sh tests/test_emulated.sh BUILD_FOLDER; the emulated programs stand beside it, in emu/ and emu_fp32/.
. tests/programs.sh "$1"
. "$here/tests/same_losses.sh"
kinds=$(dirname "$build")
for kind in emu_fp32 emu; do
    for program in train_tokenizer train_dit; do
        [ -x "$kinds/$kind/$program" ] || fail "$kind/$program is there" "make $kinds/$kind/$program"
    done
done
# a small rate: steps are compared, not how Adam enlarges rounding
flags="-disc_start 0 -lr 2e-5 -disc_lr 2e-5 -batch 2 -chunk 1 -image_size 24"
# shellcheck disable=SC2086
same_losses "$kinds/emu_fp32" 2 1e-4 $flags
# shellcheck disable=SC2086
same_losses "$kinds/emu" 2 2e-2 $flags

# LightningDiT with every option, on the latents of that tokenizer, from the second step on of a run in the CPU build: in the
# first the output is zero, and the cosine's gradient enlarges rounding without limit
dit="-latents latents -tokenizer base/stage3.safetensors -data shapes -z_channels 8 -latent_side 3 -classes 10 -batch 3 -lr 1e-4
    -clip 1 -log_every 1 -save_every 0 -grid_every 0 -sample_steps 3 -grid_columns 1 -grid_classes 1,2"
# shellcheck disable=SC2086
expect "latents" 0 '' "$build/train_dit" $dit -extract 1 -images 24 -extract_batch 4
for variant in "tiny/1 -qk_norm 1" "tiny/1 -mlp gelu -shift 0 -recompute 1"; do
    # shellcheck disable=SC2086
    expect "-model $variant, the start" 0 '' "$build/train_dit" $dit -model $variant -out start -steps 3 -restart 1
    for kind in cpu emu_fp32 emu; do
        [ $kind = emu ] && tolerance=2e-2 || tolerance=1e-4
        [ $kind = cpu ] && program=$build/train_dit || program=$kinds/$kind/train_dit
        rm -rf "dit_$kind"
        mkdir "dit_$kind"
        cp start/dit.safetensors "dit_$kind/"
        # shellcheck disable=SC2086
        expect "-model $variant in $kind" 0 '' "$program" $dit -model $variant -out "dit_$kind" -steps 5
        [ $kind = cpu ] && continue
        if compare_losses dit_cpu/dit.jsonl "dit_$kind/dit.jsonl" $tolerance >difference 2>&1; then
            ok "-model $variant: losses of $kind and of the CPU build within $tolerance: $(cat difference)"
        else
            fail "-model $variant: losses of $kind and of the CPU build within $tolerance" "$(cat difference)"
        fi
    done
done
finish
