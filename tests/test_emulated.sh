#!/bin/sh
# The GPU's whole code path without a GPU: train_tokenizer and train_dit on the CUDA kernels, in the emulator, do what the CPU
# build does: in fp32 the tokenizer in all three stages, its variations, the baselines and both transformers; in bf16 the plain ones
# and low-rank pairs (fp32 proves what is computed; bf16 changes how numbers are stored, which each kernel's own test holds).
# And a run resumes with the same bits.
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
# shellcheck disable=SC2086
same_baseline_losses "$kinds/emu_fp32" 2 1e-4 $flags

# variations of stage 2, from low-rank pairs that have learnt something
varied() {
    program=$1
    shift
    # shellcheck disable=SC2086
    "$program" -data shapes $nano $flags -stage 2 -from base/stage1.safetensors -lora 3 -lora_dropout 0.3 -sem_at tokens "$@"
}
expect "low-rank pairs, a loss at the tokens: the start" 0 '' varied "$build/train_tokenizer" -out start -steps 3 -lr 1e-3
for kind in cpu emu_fp32 emu; do
    mkdir "varied_$kind"
    cp start/stage2.safetensors "varied_$kind/"
    program=$kinds/$kind/train_tokenizer
    tolerance=2e-2
    [ $kind = emu_fp32 ] && tolerance=1e-4
    [ $kind = cpu ] && program=$build/train_tokenizer
    expect "  in $kind" 0 '' varied "$program" -out "varied_$kind" -steps 5 -log_every 1 -change 1
    [ $kind = cpu ] && continue
    if compare_losses varied_cpu/stage2.jsonl "varied_$kind/stage2.jsonl" $tolerance >difference 2>&1; then
        ok "  losses of $kind and of the CPU build within $tolerance: $(cat difference)"
    else
        fail "  losses of $kind and of the CPU build within $tolerance" "$(cat difference)"
    fi
done

# a run that is stopped and goes on takes the algorithms of cuBLASLt that its first half has chosen
# shellcheck disable=SC2086
emulated() { "$kinds/emu/train_tokenizer" -data shapes $nano $flags -stage 2 -from base/stage1.safetensors -log_every 1 "$@"; }
expect "half of stage 2" 0 '' emulated -out halves -steps 1
check "it has measured algorithms" test "$(wc -l <halves/algorithms.txt)" -gt 20
cp halves/algorithms.txt chosen
expect "and the rest" 0 '' emulated -out halves -steps 2
check "with the algorithms of the first half" grep -Eq '^algorithms .*algorithms.txt: [0-9]+ products$' out
check "the same bits as in one go" cmp out_emu/stage2.safetensors halves/stage2.safetensors
check "the same choices" cmp chosen halves/algorithms.txt

# the larger decoder, whose transformer is resampled from 4 x 4 to 3 x 3 latents
mkdir larger
cp -r world larger/
cd larger || exit 1
flags="$flags -decoder large -decoder_dim 24 -decoder_depth 2 -decoder_heads 3 -decoder_grid 4"
# shellcheck disable=SC2086
same_losses "$kinds/emu_fp32" 2 1e-4 $flags
cd "$work" || exit 1

# LightningDiT with every option, on the latents of that tokenizer
same_dit_losses 2 3 "tiny/1 -qk_norm 1" emu_fp32 emu
same_dit_losses 2 3 "tiny/1 -mlp gelu -shift 0 -recompute 1" emu_fp32
# text to image
same_caption_losses 2 "t2i-nano -decay 0.01 -recompute 1" emu_fp32 emu
finish
