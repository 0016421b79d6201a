#!/bin/sh
# The paper's tables and figures in the miniature world: trains what they compare, measures it, and writes docs/paper.md.
#
#     make CPU=1 && make CPU=1 build/cpu/pretrain build/cpu/plot
#     sh dev/paper.sh [TABLE...]       table1 figure3 table3 table2 table16 figure7 figure4 seeds remedies; without one, all of them
#     sh dev/paper.sh page             writes the page anew, and trains nothing
#
# What is trained stands in dev/paper/runs.txt, what the page says of the scores in dev/paper/page.awk and in the page itself. All of it
# takes some two hours on two cores. JOBS (the number of processors) jobs run at a time, each with one thread.
# A run has a folder of its own in runs/paper, with its settings, the command lines that it depends on: what has ended
# there under the same ones is not run again, what was stopped goes on. When a run has ended, its scores come into
# docs/results/paper.jsonl, each with a hash of these settings, the processor and the date. Scores that stand there under
# the same settings are kept, also where the folders are gone or were another machine's: what others need of such a run is
# trained again, and not measured again. Scores under other settings stay until their job is run. The page is written after
# each table; what is not there yet is a dash.
set -eu
out=runs/paper
results=docs/results/paper.jsonl
at_once=${JOBS:-$(nproc)} # counted before the next line, which nproc heeds
export OMP_NUM_THREADS=1

dit="./train_dit -tokenizer= -batch 64 -lr 2e-3 -ema 0.99 -log_every 100 -grid_every 0 -save_every 0"
dit_steps=400
convergence=100,200,300,400 # where Figure 4 measures
longer_steps=400,1200       # of the remedy
few_images=500              # of the harder probe, and as many steps as the other one
few_epochs=60
samples="-n 500 -steps 20 -reference_images 5000"
guidance=1,1.5,2,3
sampling_steps=4,8,16,32,64

vgg=miniature/vgg.safetensors # the one that comes with the repository: all machines measure by it
measure="./eval -recon -probe -data garments -features $vgg -lpips_weights $vgg"
table1="stage1 stage2 full weight0 weight5 weight10 cosine pre_adapter lora no_ema large"
baselines="vae_ema vavae_ema vavae_vit_ema"
wide="vae_wide_ema vavae_wide_ema vavae_vit_wide_ema wide"
headlines="weight0 full vae_ema vavae_ema"

# field RUN NUMBER: of its line in runs.txt
field() { awk -F ' *[|] *' -v run="$1" -v field="$2" '$1 == run { print $field }' dev/paper/runs.txt; }

# What is wanted of a job: settings, that it says them and does nothing; scores, that they stand in the results; files, that
# its folder is filled.
asked=${asked:-scores}

# once FOLDER JOBS FUNCTION ARGUMENTS...: calls a function that fills a folder from those of other jobs, named one a line,
# unless it has done so under the same settings: the arguments, and the others' settings. Jobs that want the same wait for
# one another.
once() (
    folder=$1
    from=$2
    shift 2
    settings=$(asked=settings all "$from" && printf '%s\n' "$@")
    [ "$asked" != settings ] || { printf '%s\n' "$settings"; exit 0; }
    [ "$asked" = files ] || ! grep -qs "\"settings\": \"$(echo "$settings" | digest)\"" $results || exit 0
    if ! made "$folder" "$settings"; then (asked=files all "$from") || exit 1; fi
    mkdir -p "${folder%/*}"
    exec 9>"$folder.lock"
    flock 9
    if [ "$settings" != "$(cat "$folder/made_by" 2>/dev/null)" ]; then
        rm -rf "$folder"
        mkdir "$folder"
        printf '%s\n' "$settings" >"$folder/made_by"
    fi
    if ! made "$folder" "$settings"; then
        "$@" 9>&- >>"$folder/log" 2>&1 || { echo "error: see the end of $folder/log" >&2; exit 1; }
        : >"$folder/done"
        echo "$(date +%T) $folder"
    fi
    record "$folder" 9>&-
)
made() { [ -e "$1/done" ] && [ "$2" = "$(cat "$1/made_by")" ]; } # FOLDER SETTINGS
digest() { sha256sum | cut -c 1-16; }

# all JOBS
all() { echo "$1" | while read -r job; do $job </dev/null || exit 1; done; }

# score FOLDER STEP RUN SEED COMMAND: an eval whose results come into FOLDER/scores_STEP.jsonl, each with what it is of,
# unless they stand in the results
score() {
    scores=$1/scores_$2
    is="\"run\": \"$3\", \"seed\": $4, \"at\": $2, \"folder\": \"${1##*/}\", \"settings\": \"$(digest <"$1/made_by")\""
    [ ! -e "$scores.jsonl" ] || return 0
    if ! grep -s "^{$is" $results >"$scores.named"; then
        $5 -out "$1/eval" -json "$scores.new" || return 1
        processor=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1 | sed 's/([RT]M*)//g; s/ Processor.*//')
        ! grep -qw avx512f /proc/cpuinfo || processor="$processor (AVX-512)" # the order of sums is that of its vectors
        sed "s|^{|{$is, \"processor\": \"$processor\", \"date\": \"$(date +%F)\", |" "$scores.new" >"$scores.named" || return 1
        rm "$scores.new"
    fi
    mv "$scores.named" "$scores.jsonl"
}

# record FOLDER: its scores come into the results, in the place of those under other settings
record() (
    [ -n "$(find "$1" -maxdepth 1 -name 'scores_*.jsonl')" ] || exit 0
    path=${1#"$out/"} # SEED/RUN or SEED/RUN/FOLDER
    of="^{\"run\": \"$(echo "$path" | cut -d / -f 2)\", \"seed\": ${path%%/*}, \"at\": [0-9]*, \"folder\": \"${1##*/}\", "
    exec 9>$out/results.lock
    flock 9
    {
        cat "$1"/scores_*.jsonl
        [ ! -e $results ] || grep -v "$of" $results
        [ ! -e $results ] || grep "$of\"settings\": \"$(digest <"$1/made_by")\"" $results
    } | LC_ALL=C sort -u >$results.new
    mv $results.new $results
)

# pretrained RECIPE: the folder of a miniature encoder
pretrained() {
    once "$out/$1" "" pretrain "$1" "build/cpu/pretrain -data garments -recipe $1 -out $out/$1" "$(cksum <$vgg)"
}
pretrain() {
    cp $vgg "$out/$1" && $2
}

# tokenizer SEED RUN: trained and measured, after what it starts from
tokenizer() {
    from=$(field "$2" 2)
    steps=$(field "$2" 3)
    flags=$(field "$2" 4)
    [ "$1" = 1 ] || steps=${steps##*,} # the curves of Figure 3 are seed 1's
    train="./train_tokenizer $flags -seed $1 -data garments -lpips_weights $vgg -log_every 100 -grid_every 0 -save_every 0 -out $out/$1/$2"
    case $from in
    -)
        before=""
        encoder=""
        ;;
    views | pixels | classes)
        before="pretrained $from"
        encoder=$out/$from/encoder.safetensors
        ;;
    *)
        before="tokenizer $1 $from"
        encoder=$(checkpoint "$1" "$from")
        ;;
    esac
    case $flags in
    -tokenizer_weights*)
        once "$out/$1/$2" "$before" score "$out/$1/$2" "$steps" "$2" "$1" "$measure $flags -tokenizer $encoder"
        return
        ;;
    -preset\ mini_vae*) ;;
    -preset*) train="$train -teacher_weights $encoder" ;;
    "-stage 1"*) train="$train -encoder_weights $encoder" ;;
    *) train="$train -from $encoder" ;;
    esac
    once "$out/$1/$2" "$before" learn "$out/$1/$2" "$2" "$1" "$steps" "$train" \
        "$measure -tokenizer $(checkpoint "$1" "$2")"
}

# checkpoint SEED RUN: the file that it leaves
checkpoint() {
    case $(field "$2" 4) in
    -tokenizer_weights*) checkpoint "$1" "$(field "$2" 2)" ;;
    "-stage "*) field "$2" 4 | sed "s|^-stage \(.\).*|$out/$1/$2/stage\1.safetensors|" ;;
    *) echo "$out/$1/$2/stage1.safetensors" ;;
    esac
}

# reading SEED RUN: this file and what of it is read, as flags
reading() {
    case $(field "$2" 4) in
    -tokenizer_weights*) echo "-tokenizer $(checkpoint "$1" "$2") $(field "$2" 4)" ;;
    *) echo "-tokenizer $(checkpoint "$1" "$2")" ;;
    esac
}

# learn FOLDER RUN SEED STEPS TRAIN MEASURE: trains to each of some numbers of steps, and measures there
learn() {
    for step in $(echo "$4" | tr , ' '); do
        [ -e "$1/scores_$step.jsonl" ] || $5 -steps "$step" || return 1
        score "$1" "$step" "$2" "$3" "$6" || return 1
    done
}

# drawn SEED RUN: a LightningDiT on the latents of a run, and its samples' scores; unconditional: of images without labels
drawn() {
    case $1.$2 in
    1.vae_ema | 1.vavae_ema | 1.full) draws "$1" "$2" dit $convergence "" ;;
    *) draws "$1" "$2" dit $dit_steps "" ;;
    esac
}
unconditional() { draws "$1" "$2" unconditional $dit_steps "-uncond 1"; }
# draws SEED RUN FOLDER STEPS FLAGS
draws() {
    folder=$out/$1/$2/$3
    once "$folder" "latents $1 $2" learn "$folder" "$2" "$1" "$4" "$dit $5 -seed $1 -latents $out/$1/$2/latents -out $folder" \
        "./eval -gen -data garments $samples -features $vgg $(reading "$1" "$2") -dit $folder/dit.safetensors"
}
latents() {
    # shellcheck disable=SC2046
    once "$out/$1/$2/latents" "tokenizer $1 $2" \
        ./train_dit -extract 1 -data garments $(reading "$1" "$2") -latents "$out/$1/$2/latents"
}

# longer SEED RUN: the transformer's training, further
longer() { draws "$1" "$2" longer "$longer_steps" ""; }

# probed SEED RUN: the probe on few images
probed() {
    folder=$out/$1/$2/probed
    # shellcheck disable=SC2046
    once "$folder" "tokenizer $1 $2" score "$folder" 0 "$2" "$1" \
        "./eval -probe -data garments -probe_images $few_images -probe_epochs $few_epochs $(reading "$1" "$2")"
}

# guided SEED RUN, sampled SEED RUN: the samples' scores against the guidance scale, and against the number of sampling steps
guided() { swept "$1" "$2" guided "-sweep_steps= -sweep_cfg $guidance"; }
sampled() { swept "$1" "$2" sampled "-sweep_cfg= -sweep_steps $sampling_steps"; }
# swept SEED RUN FOLDER FLAGS
swept() {
    folder=$out/$1/$2/$3
    once "$folder" "drawn $1 $2" score "$folder" $dit_steps "$2" "$1" \
        "./eval -sweep -data garments $samples -features $vgg $(reading "$1" "$2") -dit $out/$1/$2/dit/dit.safetensors $4"
}

# latent SEED RUN: the measures of Table 16
latent() {
    once "$out/$1/$2/latent" "$(printf 'pretrained views\ntokenizer %s' "$1 $2")" score "$out/$1/$2/latent" 0 "$2" "$1" \
        "./eval -latent -data garments -encoder_weights $out/views/encoder.safetensors $(reading "$1" "$2") -pca="
}

# components SEED RUN...: Figure 7. The rows of the picture are named by the files' names.
components() {
    seed=$1
    shift
    once "$out/$seed/components" "$(each tokenizer "$seed" "$@")" picture "$out/$seed/components" "$seed" "$@"
}
picture() {
    folder=$1
    seed=$2
    shift 2
    files=""
    for run in "$@"; do
        ln -sf "$PWD/$(checkpoint "$seed" "$run")" "$folder/$run"
        files=$files,$folder/$run
    done
    score "$folder" 0 components "$seed" "./eval -latent -draws 1 -latent_images 256 -data garments \
        -encoder_weights $out/views/encoder.safetensors -tokenizer ${files#,} -pca 0,1,2,3,4,5,6,7"
}

# each JOB SEED RUN...: a line for each run
each() {
    job=$1
    seed=$2
    shift 2
    for run in "$@"; do echo "$job $seed $run"; done
}

# jobs TABLE: what it is made of, one a line
# shellcheck disable=SC2086
jobs() {
    case $1 in
    table1) each tokenizer 1 $table1; each drawn 1 $table1 ;;
    figure3) each tokenizer 1 full weight0_full ;;
    table3) each tokenizer 1 $baselines $wide; each guided 1 $baselines full $wide; each unconditional 1 $baselines full $wide ;;
    table2) each drawn 1 mae siglip ;;
    table16) each latent 1 stage1 weight0 full $baselines ;;
    figure7) echo components 1 vae vavae vavae_vit weight0 full ;;
    figure4) each sampled 1 vae_ema vavae_ema full; each guided 1 vae_ema vavae_ema full ;;
    seeds) for seed in 2 3; do each drawn $seed $headlines; each latent $seed $headlines; done; each probed 3 $headlines ;;
    remedies)
        each tokenizer 1 weight03 weight01 long lora_long vavae_tight_ema vavae_heavy_ema
        each latent 1 vavae_tight_ema vavae_heavy_ema
        each probed 1 stage1 stage2 weight5 pre_adapter lora weight0 vae_ema vavae_ema
        each longer 1 vae_ema vavae_ema weight0 full
        ;;
    *) echo "error: there is no $1; the tables are: $tables" >&2; exit 1 ;;
    esac
}

# page: from the results the plots, and what the page says
page() {
    awk=dev/paper/page.awk
    for figure in 3 4; do
        awk -v figure=$figure -f $awk dev/paper/runs.txt $results | build/cpu/plot docs/paper_figure$figure.png
    done
    [ ! -e $out/1/components/eval/pca.png ] || cp $out/1/components/eval/pca.png docs/paper_figure7.png
    awk -f $awk dev/paper/runs.txt dev/paper/published.txt $results docs/paper.md >docs/paper.md.new
    mv docs/paper.md.new docs/paper.md
}

tables="table1 figure3 table3 table2 table16 figure7 figure4 seeds remedies"
if [ "${1:-}" = -job ]; then
    shift
    "$@"
    exit
fi
for program in ./train_tokenizer ./train_dit ./eval build/cpu/pretrain build/cpu/plot; do
    [ -x $program ] || { echo "error: $program is not built; run: make CPU=1 && make CPU=1 build/cpu/pretrain build/cpu/plot" >&2; exit 1; }
done
mkdir -p $out
# shellcheck disable=SC2086
[ $# -gt 0 ] || set -- $tables
for table in "$@"; do
    if [ "$table" != page ]; then
        list=$(jobs "$table")
        echo "$list" | xargs -P "$at_once" -L 1 sh dev/paper.sh -job
    fi
    page
done
