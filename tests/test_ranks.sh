#!/bin/sh
# Several processes train as one would: the same losses at the same global batch, for 2 and 4 ranks, with the optimiser's state
# whole or spread (-zero 1); resuming, also with another number of ranks; an end of one rank is the end of all.
# The comparison runs in double, where the order of a sum does not show in the digits that are printed.
# Usage: sh tests/test_ranks.sh BUILD_FOLDER; the program in double stands beside it, in double/
. tests/programs.sh "$1"
. "$here/tests/same_losses.sh"
command -v mpirun >/dev/null 2>&1 || {
    echo "skipped: no mpirun (make deps)"
    finish
}
double=$(dirname "$build")/double/train_tokenizer
dit=$(dirname "$build")/double/train_dit
[ -x "$double" ] || { fail "the program in double is there" "make build/double/train_tokenizer"; finish; }
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
steps=6
flags="-batch 16 -lr 1e-3 -disc_lr 1e-3 -disc_start 2,0,0 -log_every 1"

# ranks N PROGRAM FLAGS...: the program in N processes
ranks() {
    n=$1
    program=$2
    shift 2
    # shellcheck disable=SC2086
    mpirun --oversubscribe -n "$n" "$program" -data shapes $nano $flags "$@"
}

# shellcheck disable=SC2086
for stage in 1 2 3; do
    from=""
    [ "$stage" -eq 1 ] || from="-from one/stage$((stage - 1)).safetensors"
    expect "stage $stage, one process" 0 '' "$double" -data shapes $nano $flags -stage $stage $from -out one -steps $steps
    for kind in "2 0" "2 1" "4 1"; do
        n=${kind% *}
        zero=${kind#* }
        expect "stage $stage, $n ranks, -zero $zero" 0 '' ranks "$n" "$double" -stage $stage $from -out "n$n-$zero" -steps $steps -zero "$zero"
        if compare_losses one/stage$stage.jsonl "n$n-$zero/stage$stage.jsonl" 1e-5 >difference; then ok "and the losses of one: $(cat difference)"
        else fail "stage $stage, $n ranks, -zero $zero: the losses of one" "$(cat difference)"; fi
    done
done

# dropout's masks belong to images, not to ranks
# shellcheck disable=SC2086
pairs="-stage 2 -from one/stage1.safetensors -lora 3 -lora_dropout 0.3"
# shellcheck disable=SC2086
expect "low-rank pairs, one process" 0 '' "$double" -data shapes $nano $flags $pairs -out lora1 -steps $steps
for zero in 0 1; do
    # shellcheck disable=SC2086
    expect "low-rank pairs, 2 ranks, -zero $zero" 0 '' ranks 2 "$double" $pairs -out "lora2-$zero" -steps $steps -zero $zero
    if compare_losses lora1/stage2.jsonl "lora2-$zero/stage2.jsonl" 1e-5 >difference; then ok "and the losses of one: $(cat difference)"
    else fail "low-rank pairs, 2 ranks, -zero $zero: the losses of one" "$(cat difference)"; fi
done
# the larger decoder, whose blocks' gradients are whole in another order than its tensors stand; in stage 2 a second stream
# of gradients goes through the blocks before, which adds to no weights
larger="-decoder large -decoder_dim 24 -decoder_depth 3 -decoder_heads 3 -decoder_grid 4"
for stage in 1 2; do
    # shellcheck disable=SC2086
    expect "the larger decoder, stage $stage, one process" 0 '' "$double" -data shapes $nano $flags $larger -stage $stage -out larger1 \
        -steps $steps
    [ "$stage" -eq 1 ] || larger="$larger -from larger1/stage1.safetensors -recompute 1"
    # shellcheck disable=SC2086
    expect "the larger decoder, stage $stage, 2 ranks" 0 '' ranks 2 "$double" $larger -stage $stage -out larger2 -steps $steps
    if compare_losses larger1/stage$stage.jsonl larger2/stage$stage.jsonl 1e-5 >difference; then ok "and the losses of one: $(cat difference)"
    else fail "the larger decoder, stage $stage, 2 ranks: the losses of one" "$(cat difference)"; fi
done
# a baseline, whose latents are drawn
vavae() { # vavae PROGRAM... -- its processes, and then flags
    "$@" -recipe vavae -encoder cnn -encoder_weights "" -teacher tiny -teacher_weights world/encoder.safetensors -steps $steps
}
# shellcheck disable=SC2086
expect "VA-VAE, one process" 0 '' vavae "$double" -data shapes $nano $flags -out vavae1
for kind in "2 0" "4 1"; do
    n=${kind% *}
    zero=${kind#* }
    expect "VA-VAE, $n ranks, -zero $zero" 0 '' vavae ranks "$n" "$double" -out "vavae$n" -zero "$zero"
    if compare_losses vavae1/stage1.jsonl "vavae$n/stage1.jsonl" 1e-5 >difference; then ok "and the losses of one: $(cat difference)"
    else fail "VA-VAE, $n ranks, -zero $zero: the losses of one" "$(cat difference)"; fi
done

# resuming: bit for bit with the same ranks; with others as exactly as they agree at all
program=$build/train_tokenizer
expect "2 ranks in one go" 0 '' ranks 2 "$program" -stage 1 -out whole -steps $steps -zero 1
expect "2 ranks, half of it" 0 '' ranks 2 "$program" -stage 1 -out halves -steps $((steps / 2)) -zero 1
expect "2 ranks, the rest" 0 '' ranks 2 "$program" -stage 1 -out halves -steps $steps -zero 1
check "the same bytes" cmp whole/stage1.safetensors halves/stage1.safetensors
expect "4 ranks, half of it" 0 '' ranks 4 "$double" -stage 1 -out moved -steps $((steps / 2)) -zero 1
# shellcheck disable=SC2086
expect "one process, the rest" 0 '' "$double" -data shapes $nano $flags -stage 1 -out moved -steps $steps
if compare_losses one/stage1.jsonl moved/stage1.jsonl 1e-3 >difference; then ok "as one process alone: $(cat difference)"
else fail "resumed with another number of ranks" "$(cat difference)"; fi

# pictures and stops
psnr() { sed -n 's/.*"psnr_raw": \([0-9]*\.[0-9]\).*/\1/p' "$1" | tail -n 1; }
for n in 2-0 4-1; do
    check "the PSNR of one process in $n: $(psnr one/stage2.jsonl) dB" test "$(psnr one/stage2.jsonl)" = "$(psnr n$n/stage2.jsonl)"
done
{ ranks 2 "$program" -stage 1 -out stopped -steps 100000 >out 2>said; echo $? >code; } &
job=$!
tries=0
while [ ! -s stopped/stage1.jsonl ] && [ $tries -lt 200 ]; do sleep 0.1; tries=$((tries + 1)); done
kill -TERM "$(pgrep -f -- "^$program.* -out stopped" | tail -n 1)"
wait $job
check "SIGTERM to one of two ranks stops both" test "$(cat code)" -eq 143
check "  which save" grep -Eq '^saved +stopped/stage1.safetensors at step [0-9]+: ' out

# errors
expect "images that cannot be shared" 1 '^error \(rank 0 of 3\): .* cannot share equally; give a multiple of 12$' ranks 3 "$program" -stage 1 -out bad -steps 2
check "  is said once" test "$(grep -c '^error' said)" -eq 1
expect "chunks that cannot be shared" 1 '^error \(rank 0 of 8\): .*; give a multiple of 32, or -chunk 2$' ranks 8 "$program" -stage 1 -out bad -steps 2
check "  is said once" test "$(grep -c '^error' said)" -eq 1
expect "a flag that does not exist" 1 '^error \(rank 0 of 3\): unknown flag -bath' ranks 3 "$program" -stage 1 -out bad -steps 2 -bath 3
check "  is said once" test "$(grep -c '^error' said)" -eq 1
expect "what the loaders of all ranks give" 0 '' ranks 2 "$program" -stage 1 -out loaders -steps 1 -workers 3
check "  is said" grep -Eq '^loader +[0-9]+ images/s, by 3 threads in each of 2 processes$' out
check "only one rank's output is seen" test "$(grep -c '^parameters' out)" -le 1
ranks 2 "$program" -stage 1 -out killed -steps 100000 >out 2>said &
job=$!
tries=0
while [ ! -s killed/stage1.jsonl ] && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
victim=$(pgrep -f -- "$program.* -out killed" | tail -n 1)
kill -9 "$victim" 2>/dev/null
tries=0
while kill -0 $job 2>/dev/null && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
if kill -0 $job 2>/dev/null; then
    fail "a killed rank ends the others within ten seconds"
    kill $job
else
    ok "a killed rank ends the others within ten seconds"
fi
wait $job
check "with an exit code" test $? -ne 0
check "and a message that names it" grep -Eiq 'rank [0-9]+.*(kill|signal)|(kill|signal).*rank [0-9]+' said

# LightningDiT: latents extracted by two processes, trained on by one, two and four
dit_flags="-latents latents -tokenizer one/stage3.safetensors -data shapes -model tiny/1 -z_channels 8 -latent_side 4 -classes 10
    -batch 8 -lr 1e-3 -clip 1 -steps 5 -log_every 1 -save_every 0 -grid_every 0 -sample_steps 3 -grid_columns 1 -grid_classes 1"
# shellcheck disable=SC2086
expect "latents, extracted by two processes" 0 '' mpirun --oversubscribe -n 2 "$dit" $dit_flags -extract 1 -images 41 -shard_images 12 \
    -extract_batch 4
check "  four shards" test "$(ls latents/*.safetensors | wc -l)" -eq 4
# shellcheck disable=SC2086
expect "five images for four processes" 0 '' mpirun --oversubscribe -n 4 "$dit" $dit_flags -extract 1 -images 5 -shard_images 1 \
    -extract_batch 4 -latents few
check "  five shards" test "$(ls few/*.safetensors | wc -l)" -eq 5
# shellcheck disable=SC2086
expect "two for four" 0 '' mpirun --oversubscribe -n 4 "$dit" $dit_flags -extract 1 -images 2 -latents fewer
# shellcheck disable=SC2086
expect "LightningDiT, one process" 0 '' "$dit" $dit_flags -out dit1
for kind in "2 0" "4 1"; do
    n=${kind% *}
    zero=${kind#* }
    # shellcheck disable=SC2086
    expect "LightningDiT, $n ranks, -zero $zero" 0 '' mpirun --oversubscribe -n "$n" "$dit" $dit_flags -out "dit$n" -zero "$zero"
    if compare_losses dit1/dit.jsonl "dit$n/dit.jsonl" 1e-5 >difference; then ok "and the losses of one: $(cat difference)"
    else fail "LightningDiT, $n ranks, -zero $zero: the losses of one" "$(cat difference)"; fi
done
# and on images that are encoded beside it
# shellcheck disable=SC2086
expect "images, one process" 0 '' "$dit" $dit_flags -latents none -out images1
# shellcheck disable=SC2086
expect "images, 2 ranks" 0 '' mpirun --oversubscribe -n 2 "$dit" $dit_flags -latents none -out images2 -workers 1
if compare_losses images1/dit.jsonl images2/dit.jsonl 1e-5 >difference; then ok "and the losses of one: $(cat difference)"
else fail "images, 2 ranks: the losses of one" "$(cat difference)"; fi

# text to image: all processes have the same size of latents in a step
t2i_flags="-preset t2i_mini -model t2i-nano -data scenes:32:mixed -image_size 32 -latents scenes -batch 8 -decay 0.01 -warmup 2 -steps 5
    -log_every 1 -save_every 0 -grid_every 0"
# shellcheck disable=SC2086
expect "latents of scenes, by two processes" 0 '' mpirun --oversubscribe -n 2 "$dit" $t2i_flags -tokenizer one/stage3.safetensors \
    -extract 1 -images 41 -extract_batch 4
check "  two shards of each size" test "$(ls scenes/*.safetensors | wc -l)" -eq 6
# shellcheck disable=SC2086
expect "text to image, one process" 0 '' "$dit" $t2i_flags -tokenizer= -out t2i1
for kind in "2 0" "4 1"; do
    n=${kind% *}
    zero=${kind#* }
    # shellcheck disable=SC2086
    expect "text to image, $n ranks, -zero $zero" 0 '' mpirun --oversubscribe -n "$n" "$dit" $t2i_flags -tokenizer= -out "t2i$n" -zero "$zero"
    if compare_losses t2i1/dit.jsonl "t2i$n/dit.jsonl" 1e-5 >difference; then ok "and the losses of one: $(cat difference)"
    else fail "text to image, $n ranks, -zero $zero: the losses of one" "$(cat difference)"; fi
done
# shellcheck disable=SC2086
expect "text to image on images, one process" 0 '' "$dit" $t2i_flags -tokenizer one/stage3.safetensors -latents none -images 41 -out scenes1
# shellcheck disable=SC2086
expect "text to image on images, 2 ranks" 0 '' mpirun --oversubscribe -n 2 "$dit" $t2i_flags -tokenizer one/stage3.safetensors -latents none \
    -images 41 -out scenes2 -workers 1
if compare_losses scenes1/dit.jsonl scenes2/dit.jsonl 1e-5 >difference; then ok "and the losses of one: $(cat difference)"
else fail "text to image on images, 2 ranks: the losses of one" "$(cat difference)"; fi
finish
