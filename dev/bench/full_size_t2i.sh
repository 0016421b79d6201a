#!/bin/sh
# Text to image at full size on a CPU, beside PyTorch: does it fit this machine's memory, and how fast is it?
#     sh dev/bench/full_size_t2i.sh PYTHON CLIP [FOLDER]
# PYTHON has torch, transformers, sentencepiece; CLIP is a checkout of openai/CLIP. FOLDER (build/full_size_t2i) takes
# 7 GB of files that a later call uses again; remove it afterwards.
#   1  T5-large, CLIP L/14's text tower and the 2B transformer with random weights, in bf16 under FLUX's names
#      (dev/reference/full_size_t2i.py), and a tokenizer of f16d32's decoder by one step of train_tokenizer
#   2  what training needs: the plan of -preset t2i_256, and one whole step of the tiny model (560M) on one picture
#   3  a picture of 256 pixels by ./sample, with 2 and with POINTS (6) evaluations, and the same by PyTorch, ROUNDS times (1)
# Two threads (THREADS). Of programs: seconds and peak memory. A ratio below 1 means that this project is faster. About 20
# GB of memory.
set -eu
python=${1:?"usage: sh dev/bench/full_size_t2i.sh PYTHON CLIP [FOLDER]"}
clip=${2:?"usage: sh dev/bench/full_size_t2i.sh PYTHON CLIP [FOLDER]"}
mkdir -p "${3:-build/full_size_t2i}"
folder=$(cd "${3:-build/full_size_t2i}" && pwd)
cd "$(dirname "$0")/../.."
points=${POINTS:-6}
. dev/bench/full_size.sh
echo "a photograph of some colours" >"$folder/images/first/colour.txt"
[ -s "$folder/2B.safetensors" ] || timed weights "$python" -W ignore dev/reference/full_size_t2i.py make "$folder" --clip "$clip"

text="-t5 $folder/t5 -t5_vocabulary $folder/spiece.model -text_clip $folder/clip -text_clip_vocabulary $folder/merges.txt"
dit="build/cpu/train_dit -preset t2i_256 -data captions:$folder/images/first -tokenizer $tokenizer -latents $folder/latents -short_side 1 $text"
# shellcheck disable=SC2086
timed plan $dit -batch 1 -dry_run 1
grep -i "memory\|parameters" "$folder/plan.log"
# shellcheck disable=SC2086
[ -e "$folder/latents" ] || timed latents $dit -extract 1
# shellcheck disable=SC2086
timed training_step $dit -model tiny -out "$folder/tiny" -batch 1 -steps 1 -log_every 1 \
    -grid_prompts cat -grid_columns 1 -sample_steps 2

# drawn EVALUATIONS: a picture
drawn() {
    # shellcheck disable=SC2086
    timed "sample_$1" build/cpu/sample -preset t2i $text -dit "$folder/2B.safetensors" -tokenizer "$tokenizer" -size 256x256 -n 1 \
        -steps "$1" -prompt "a harbour in the morning, with two fishing boats and a lighthouse" -out "$folder/picture.png"
    cut -d ' ' -f 1 "$folder/time" >"$folder/seconds_$1"
}
round=0
while [ "$round" -lt "$rounds" ]; do
    drawn 2
    drawn "$points"
    timed pytorch "$python" -W ignore dev/reference/full_size_t2i.py draw "$folder" --points $((points + 1)) --threads "$threads"
    theirs=$(sed -n 's/.*"evaluation": \([0-9.]*\).*/\1/p' "$folder/pytorch.log")
    paste -d ' ' "$folder/seconds_2" "$folder/seconds_$points" | awk -v n="$points" -v theirs="$theirs" '{
        ours = ($2 - $1) / (n - 2)
        printf "%-34s %10.2f %10.2f %8.2f\n", "2B, a guided evaluation, seconds", ours, theirs, ours / theirs
    }'
    round=$((round + 1))
done
