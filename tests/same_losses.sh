# same_losses.sh: runs the three stages of the nano tokenizer in another build and in the CPU build, with the same flags from
# the same checkpoints, and compares the losses of every step. Sourced behind tests/programs.sh by the scripts that use it:
#     same_losses FOLDER STEPS TOLERANCE [FLAGS...]     FOLDER: the other build's, with train_tokenizer in it
# A loss may differ by TOLERANCE relative to its own size, and logits (of order 1) by TOLERANCE; in fp32 the norm of the first
# gradient too. And the same for LightningDiT on the latents of the last of these tokenizers:
#     same_dit_losses STEPS SIDE MODEL KIND...     MODEL: a size and flags; KIND: a folder beside the CPU build's; bf16 unless
#                                                  its name ends in fp32
#     same_caption_losses STEPS MODEL KIND...      the same of text to image, on scenes of three sizes

# compare_losses FILE FILE TOLERANCE: two JSON-lines logs; prints the largest difference
compare_losses() {
    paste "$1" "$2" | awk -v tolerance="$3" '
        function value(line, key,   at) {
            if (!match(line, "\"" key "\": [-+.0-9a-z]+")) return "none"
            at = length(key) + 4
            return substr(line, RSTART + at, RLENGTH - at) + 0
        }
        function off(key, floor,   a, b, size, e) {
            a = value(lines[1], key); b = value(lines[2], key)
            if (a == "none" && b == "none") return
            size = a < 0 ? -a : a
            if (size < floor) size = floor
            e = a - b; if (e < 0) e = -e
            e = size > 0 ? e / size : 0
            if (!(e <= worst)) { worst = e; where = key " of step " value(lines[1], "step") ": " a " and " b }
        }
        {
            if (split($0, lines, "\t") != 2) { print "the logs have different lengths"; bad = 1; exit }
            off("l1", 0); off("lpips", 0); off("nll", 0); off("hinge", 0)
            off("generator", 1); off("real", 1); off("fake", 1)
            off("semantic", 1e-3)
            off("kl", 1e-3); off("vf", 1e-3)
            off("mse", 0); off("cosine", 0)
            # the gradient: sharp in fp32; of later steps it shows how Adam enlarges rounding, not what a step computes
            if (!n && tolerance < 1e-3) { off("norm_decoder", 0); off("norm", 0) }
            n++
        }
        END {
            if (bad) exit 1
            if (!n) { print "no steps were logged"; exit 1 }
            printf "%d steps, largest difference %.1e (%s)\n", n, worst, where
            exit !(worst <= tolerance)
        }'
}

same_losses() {
    other=$(cd "$1" && pwd)
    steps=$2
    tolerance=$3
    label=$(basename "$1")
    shift 3
    for stage in 1 2 3; do
        from=""
        [ "$stage" -eq 1 ] || from="-from base/stage$((stage - 1)).safetensors"
        # the start of the stage after this one; the same for every build
        [ -s "base/stage$stage.safetensors" ] || {
            # shellcheck disable=SC2086
            expect "stage $stage in the CPU build" 0 '' train -stage "$stage" $from -out base -steps 4 "$@"
        }
        # shellcheck disable=SC2086
        expect "stage $stage in the CPU build, $steps steps" 0 '' train -stage "$stage" $from -out "cpu_$label" -steps "$steps" \
            -log_every 1 "$@"
        # shellcheck disable=SC2086
        expect "stage $stage in $label" 0 '' "$other/train_tokenizer" -data shapes $nano -stage "$stage" $from -out "out_$label" \
            -steps "$steps" -log_every 1 "$@"
        if compare_losses "cpu_$label/stage$stage.jsonl" "out_$label/stage$stage.jsonl" "$tolerance" >difference 2>&1; then
            ok "stage $stage: losses of $label and of the CPU build within $tolerance: $(cat difference)"
        else
            fail "stage $stage: losses of $label and of the CPU build within $tolerance" "$(cat difference)"
        fi
    done
}

# The same of the baselines: same_baseline_losses FOLDER STEPS TOLERANCE [FLAGS...]
same_baseline_losses() {
    other=$(cd "$1" && pwd)
    steps=$2
    tolerance=$3
    label=$(basename "$1")
    shift 3
    for baseline in "vae cnn" "vavae cnn" "vavae tiny"; do
        recipe=${baseline% *}
        name="$baseline"
        set -- "$@" -data shapes -recipe "$recipe" -encoder "${baseline#* }" -encoder_weights "" -steps "$steps" -log_every 1
        [ "$recipe" = vae ] || set -- "$@" -teacher tiny -teacher_weights world/encoder.safetensors
        out=$recipe-${baseline#* }
        # shellcheck disable=SC2086
        expect "$name in the CPU build" 0 '' "$build/train_tokenizer" $nano "$@" -out "cpu_$label-$out"
        # shellcheck disable=SC2086
        expect "$name in $label" 0 '' "$other/train_tokenizer" $nano "$@" -out "out_$label-$out"
        if compare_losses "cpu_$label-$out/stage1.jsonl" "out_$label-$out/stage1.jsonl" "$tolerance" >difference 2>&1; then
            ok "$name: losses of $label and of the CPU build within $tolerance: $(cat difference)"
        else
            fail "$name: losses of $label and of the CPU build within $tolerance" "$(cat difference)"
        fi
    done
}

# From the third step on of a run in the CPU build: in the first the output is zero, and the cosine's gradient enlarges rounding
# without limit. SIDE is that of the latents.
same_dit_losses() {
    dit="-latents latents -tokenizer base/stage3.safetensors -data shapes -z_channels 8 -latent_side $2 -classes 10 -batch 3
        -lr 1e-4 -clip 1 -log_every 1 -save_every 0 -grid_every 0 -sample_steps 3 -grid_columns 1 -grid_classes 1,2"
    # shellcheck disable=SC2086
    [ -d latents ] || expect "latents" 0 '' "$build/train_dit" $dit -extract 1 -images 24 -extract_batch 4
    compare_dit "$1" "-model $3" "$(shift 3; echo "$@")"
}

same_caption_losses() {
    dit="-preset t2i_mini -data scenes:32:mixed -image_size 32 -latents scenes -tokenizer= -batch 3 -lr 1e-4 -log_every 1 -save_every 0
        -grid_every 0"
    # shellcheck disable=SC2086
    [ -d scenes ] || expect "latents of scenes" 0 '' "$build/train_dit" $dit -tokenizer base/stage3.safetensors -extract 1 -images 24 \
        -extract_batch 4
    compare_dit "$1" "-model $2" "$(shift 2; echo "$@")"
}

# compare_dit STEPS MODEL KINDS: runs with the flags in $dit
compare_dit() {
    steps=$((3 + $1))
    model=$2
    # shellcheck disable=SC2086
    expect "$model, the start" 0 '' "$build/train_dit" $dit $model -out start -steps 3 -restart 1
    for kind in cpu $3; do
        case $kind in
        cpu) program=$build/train_dit ;;
        *) program=$(dirname "$build")/$kind/train_dit ;;
        esac
        case $kind in
        *fp32) tolerance=1e-4 ;;
        *) tolerance=2e-2 ;;
        esac
        rm -rf "dit_$kind"
        mkdir "dit_$kind"
        cp start/dit.safetensors "dit_$kind/"
        # shellcheck disable=SC2086
        expect "$model in $kind" 0 '' "$program" $dit $model -out "dit_$kind" -steps "$steps"
        [ "$kind" = cpu ] && continue
        if compare_losses dit_cpu/dit.jsonl "dit_$kind/dit.jsonl" $tolerance >difference 2>&1; then
            ok "$model: losses of $kind and of the CPU build within $tolerance: $(cat difference)"
        else
            fail "$model: losses of $kind and of the CPU build within $tolerance" "$(cat difference)"
        fi
    done
}
