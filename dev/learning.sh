#!/bin/sh
# Does the DiT learn, and does it learn from the labels? Two miniature runs on the same latents: one with its labels, one with
# shuffled ones (-shuffle_labels), measured at three checkpoints: Frechet distance and recognised classes in the features of the
# miniature's classifier. Ten minutes on two cores; needs what `make demo` leaves in runs/mini. The result is committed as
# dev/learning.txt:
#
#     sh dev/learning.sh [SEED]     prints a table; JSON lines in runs/learning_SEED/learning.jsonl
set -eu
seed=${1:-1}
out=runs/learning_$seed
world=runs/mini
rm -rf "$out"
mkdir -p "$out"
for labels in own shuffled; do
    for steps in 200 500 1500; do
        ./train_dit -steps "$steps" -seed "$seed" -tokenizer "$world/stage3.safetensors" -latents "$world/latents" -out "$out/$labels" \
            -shuffle_labels "$([ "$labels" = shuffled ] && echo 1 || echo 0)" -grid_every 0 -change 1 >"$out/train.log" 2>&1 || {
            cat "$out/train.log" >&2
            exit 1
        }
        cp "$out/$labels/dit.safetensors" "$out/${labels}_$steps.safetensors"
        ./eval -gen -dit "$out/${labels}_$steps.safetensors" -tokenizer "$world/stage3.safetensors" \
            -features "$world/vgg.safetensors" -reference_images 10000 -n 1000 -json "$out/learning.jsonl" >"$out/eval.log" 2>&1 || {
            cat "$out/eval.log" >&2
            exit 1
        }
        sed -n '/^generator/,$p' "$out/eval.log"
    done
done
