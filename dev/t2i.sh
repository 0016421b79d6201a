#!/bin/sh
# Text to image in the miniature world: drawn scenes with captions (common/data/scenes.h).
#
#     sh dev/t2i.sh demo          `make demo_t2i`: a transformer on the tokenizer that comes with the repository; draws and measures
#     sh dev/t2i.sh larger        the paper's second size: the transformer that comes with it goes on with scenes of 96 pixels
#     sh dev/t2i.sh miniature     files as those that come with it, from nothing; needs build/cpu/pretrain
#     sh dev/t2i.sh comparison    the same transformer on latents of our tokenizer, a VAE and VA-VAE, three seeds: scores while it
#                                 trains come into docs/results/t2i.jsonl, their chart is docs/t2i_convergence.png; needs
#                                 build/cpu/pretrain and build/cpu/plot
#
# The programs stand in the root. Everything lies in runs/t2i_*; a second call goes on where the first one stopped. docs/t2i.md
# tells what came out, on which processor, how the committed files were made, and what is not learnt.
set -eu
data=scenes:48:mixed
scenes=24000
world=runs/t2i_world
results=docs/results/t2i.jsonl

# The decoder is half as wide as that of the demo's garments. Its norms are over all channels: in a group of two, how strong a
# colour is gets lost. Tokenizers learn from the square scenes, and take the wide and tall ones as they are.
network="-data scenes -image_size 48 -ch 8 -ch_mult 1,2,4,8 -groups 1 -batch 8 -beta1 0.9 -beta2 0.99 -w_lpips 0.3 -w_gan 0
    -lpips_weights miniature/vgg.safetensors -grid_every 0"

# The stand-in for MAE, a ViT that tells the pixels of scenes of which 60% are hidden: it knows shape and colour.
pretrain() {
    mkdir -p $world
    cp miniature/vgg.safetensors $world # a file that is there is kept
    build/cpu/pretrain -data scenes -recipe pixels -image_size 48 -vit_steps 1000 -vit_lr 2e-3 -out $world
}

# stage NUMBER LR STEPS [FLAGS...]: up to so many steps in all
stage() {
    number=$1 lr=$2 steps=$3
    shift 3
    # shellcheck disable=SC2086
    ./train_tokenizer $network -stage "$number" -out "$out" -lr "$lr" -steps "$steps" -change 1 "$@"
}

# latents TOKENIZER [FLAGS...]: those of so many scenes
latents() {
    latents_of=$1
    shift
    ./train_dit -preset t2i_mini -extract 1 -data $data -images $scenes -tokenizer "$latents_of" -latents "$out/latents" "$@"
}

# transformer TOKENIZER LR STEPS [FLAGS...]: t2i-mini on these latents, up to so many steps in all
transformer() {
    latents_of=$1 lr=$2 steps=$3
    shift 3
    ./train_dit -preset t2i_mini -data $data -tokenizer "$latents_of" -latents "$out/latents" -out "$out" -lr "$lr" \
        -steps "$steps" -batch 32 -ema 0.99 -grid_every 0 -change 1 "$@"
}

# score TOKENIZER DIT [FLAGS...]: of reconstructions of held-out scenes (the ceiling), and of what is drawn of their captions
score() {
    latents_of=$1 drawn_by=$2
    shift 2
    ./eval -preset t2i_mini -scenes -data $data -tokenizer "$latents_of" -dit "$drawn_by" -images 200 -out "$out" \
        -json "$out/scores.jsonl" "$@"
}

# compared SEED NAME: a tokenizer of 40,000 images, and scores of a transformer while it trains on its latents. One thread.
compared() {
    seed=$1 name=$2
    out=runs/t2i_comparison/$seed/$name
    mkdir -p "$out"
    case $name in
    ours)
        stage 1 2e-3 1000 -seed "$seed" -encoder_weights $world/encoder.safetensors
        stage 2 1e-3 1500 -seed "$seed" -w_sem 0.01
        stage 2 3e-4 2500 -seed "$seed" -w_sem 0.01
        stage 3 5e-4 1000 -seed "$seed"
        stage 3 1e-4 1500 -seed "$seed"
        tokenizer=$out/stage3.safetensors
        ;;
    vae | vavae)
        teacher=
        [ "$name" = vae ] || teacher="-teacher_weights $world/encoder.safetensors"
        for part in 1e-3:3000 3e-4:4500 1e-4:5000; do
            # shellcheck disable=SC2086
            stage 1 "${part%:*}" "${part#*:}" -preset "mini_$name" -seed "$seed" $teacher
        done
        tokenizer=$out/stage1.safetensors
        ;;
    esac
    scenes=12000
    averages="-tokenizer_weights ema0" # of the baselines too
    # shellcheck disable=SC2086
    latents "$tokenizer" $averages
    for at in 600 1200 1800 2400; do
        [ ! -e "$out/scores_$at.jsonl" ] || continue
        rm -f "$out/scores.jsonl"
        # shellcheck disable=SC2086
        transformer "$tokenizer" 1.5e-3 $at $averages -seed "$seed"
        # shellcheck disable=SC2086
        score "$tokenizer" "$out/dit.safetensors" $averages
        sed "s/^{/{\"run\": \"$name\", \"seed\": $seed, \"at\": $at, /" "$out/scores.jsonl" >"$out/scores_$at.new"
        mv "$out/scores_$at.new" "$out/scores_$at.jsonl"
    done
}

# convergence: from results the points of the chart, means over the seeds
convergence() {
    awk '
    function value(key) {
        match($0, "\"" key "\": \"?[^,\"}]*")
        text = substr($0, RSTART + length(key) + 4, RLENGTH - length(key) - 4)
        sub(/^"/, "", text)
        return text
    }
    /"measure": "scenes", "tokenizer"/ { ceiling[value("run"), value("seed")] = value("overall") }
    /"measure": "scenes", "generator"/ { score[value("run"), value("seed"), value("at")] = value("overall") }
    function panel(title, what, share,   n, r, at, s, sum, seeds) {
        n = split("ours,vae,vavae", runs, ",")
        split("AlignTok,VAE,VA-VAE", names, ",")
        for (r = 1; r <= n; r++) for (at = 600; at <= 2400; at += 600) {
            sum = seeds = 0
            for (s = 1; s <= 3; s++) if ((runs[r], s, at) in score) {
                sum += score[runs[r], s, at] / (share ? ceiling[runs[r], s] : 1)
                seeds++
            }
            if (seeds) printf "%s\ttraining steps\t%s\tlinear\t%s\t%d\t%.4f\n", title, what, names[r], at, sum / seeds
        }
    }
    END {
        panel("right pictures", "overall score", 0)
        panel("of what reconstructions reach", "score / score of reconstructions", 1)
    }'
}

case ${1:-demo} in
demo)
    out=runs/t2i_demo
    tokenizer=miniature/t2i_tokenizer.safetensors
    latents $tokenizer
    transformer $tokenizer 1.5e-3 1200
    transformer $tokenizer 3e-4 1500
    ./sample -prompt "two red circles on a black background" -n 8 -dit $out/dit.safetensors -tokenizer $tokenizer -out $out/samples.png
    score $tokenizer $out/dit.safetensors
    ;;
larger)
    out=runs/t2i_larger
    data=scenes:96:mixed
    tokenizer=miniature/t2i_tokenizer.safetensors # as it is: what it learnt of 48 pixels suits 96
    latents $tokenizer -image_size 96
    transformer $tokenizer 1e-3 1200 -image_size 96 -from miniature/t2i.safetensors
    transformer $tokenizer 3e-4 1500 -image_size 96 -from miniature/t2i.safetensors
    score $tokenizer $out/dit.safetensors
    ;;
miniature)
    out=runs/t2i_miniature
    pretrain
    stage 1 2e-3 1000 -encoder_weights $world/encoder.safetensors
    # a high rate finds the colours, a low one the outlines
    stage 2 1e-3 2000 -w_sem 0.01
    stage 2 3e-4 3500 -w_sem 0.01
    stage 2 1e-3 4700 -w_sem 0.01
    stage 2 3e-4 5700 -w_sem 0.01
    stage 3 5e-4 3000
    stage 3 1e-4 5000
    stage 3 3e-4 7000
    stage 3 5e-5 8500
    ./train_tokenizer -stage 3 -out $out -export miniature/t2i_tokenizer.safetensors -export_type f16
    latents miniature/t2i_tokenizer.safetensors
    transformer miniature/t2i_tokenizer.safetensors 1.5e-3 5500
    transformer miniature/t2i_tokenizer.safetensors 6e-4 7000
    transformer miniature/t2i_tokenizer.safetensors 2e-4 8000
    ./train_dit -preset t2i_mini -out $out -export miniature/t2i.safetensors -export_type f16
    score miniature/t2i_tokenizer.safetensors miniature/t2i.safetensors
    ;;
comparison)
    pretrain
    at_once=$(nproc) # counted before the next line, which nproc heeds
    export OMP_NUM_THREADS=1
    for seed in 1 2 3; do for name in ours vae vavae; do echo "$seed $name"; done; done |
        xargs -P "$at_once" -L 1 sh dev/t2i.sh compared
    cat runs/t2i_comparison/*/*/scores_*.jsonl >$results
    convergence <$results | build/cpu/plot docs/t2i_convergence.png
    ;;
compared)
    mkdir -p runs/t2i_comparison
    echo "seed $2, $3: runs/t2i_comparison/$2_$3.log"
    compared "$2" "$3" >>"runs/t2i_comparison/$2_$3.log" 2>&1
    ;;
*)
    echo "error: $1 is none of demo, larger, miniature and comparison; see the head of this file" >&2
    exit 1
    ;;
esac
