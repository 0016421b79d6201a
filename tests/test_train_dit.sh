#!/bin/sh
# LightningDiT as a user runs it, on the latents of the nano tokenizer: an extraction that was stopped goes on with the same
# bytes; so does a training run; exported weights draw; a picture is the same in whatever batch it is drawn, and so is an .npz
# that was killed halfway. Files that do not belong together are refused. And the same of text to image, on drawn scenes.
# Usage: sh tests/test_train_dit.sh BUILD_FOLDER
. tests/programs.sh "$1"

# dit FLAGS...: train_dit with the smallest network; a flag given here wins
dit() {
    "$build/train_dit" -data shapes -tokenizer world/stage1.safetensors -latents latents -z_channels 8 -batch 8 -workers 0 \
        -sample_steps 3 -grid_columns 1 -grid_classes 0,9 -log_every 1 -grid_every 0 -save_every 0 "$@"
}

# draw FLAGS...: sample with the exported weights
draw() {
    "$build/sample" -dit exported.safetensors -tokenizer world/stage1.safetensors -steps 3 "$@"
}

# the lines of a run's log without what the clock says
losses() { sed 's/, "images_per_second".*//' "$1"; }

# same_pixels A B: two PNGs are equal from their compressed pixels on; what stands before is text about their making
same_pixels() {
    pixels "$1" >a.pixels && pixels "$2" >b.pixels && cmp a.pixels b.pixels
}
pixels() {
    at=$(grep -abo IDAT "$1" | head -n 1 | cut -d : -f 1)
    [ -n "$at" ] && tail -c "+$((at + 1))" "$1"
}

expect "a tokenizer" 0 '' train -out world -steps 2
expect "another tokenizer" 0 '' train -out other -steps 2 -seed 2

# --- latents
shard=latents/latents_rank00_shard001.safetensors
extract() { dit -extract 1 -images 96 -shard_images 40 "$@"; }
expect "extraction" 0 '' extract
check "  three shards" test "$(ls latents | tr '\n' ' ')" = \
    "latents_rank00_shard000.safetensors latents_rank00_shard001.safetensors latents_rank00_shard002.safetensors "
check "  of 40, 40 and 16 latents" grep -q '96 of 96 images' out
cp -r latents whole_latents
expect "the same again" 0 '' extract
check "  keeps all shards" test "$(grep -c '^kept' out)" -eq 3
check "  and encodes nothing" test "$(grep -c 'shard . of 3' out)" -eq 0
rm $shard
expect "a shard is missing" 0 '' extract -extract_batch 7
check "  two are kept" test "$(grep -c '^kept' out)" -eq 2
check "  and the third comes out alike, in other batches too" cmp $shard whole_latents/latents_rank00_shard001.safetensors
head -c 20000 whole_latents/latents_rank00_shard001.safetensors >$shard
expect "a torn shard is made again" 0 'shard001.*truncated.*made again' extract
check "  with the same bytes" cmp $shard whole_latents/latents_rank00_shard001.safetensors
expect "latents of another tokenizer are not mixed in" 1 'is of another extraction' extract \
    -tokenizer other/stage1.safetensors
expect "nor those of other shards" 1 'is of another extraction' extract -shard_images 50
expect "extraction without a tokenizer" 1 '-tokenizer nowhere.safetensors: there is no such file' extract -tokenizer nowhere.safetensors

# --- a folder of photographs: a part of it is of all its classes, and the model keeps their names
mkdir -p photos/cats photos/dogs "photos/grey birds"
for class in cats dogs "grey birds"; do
    for i in 1 2 3 4 5 6 7 8; do # noise of odd sizes
        { printf 'P6 %d %d 255\n' $((33 + i)) $((70 - i)); head -c $(((33 + i) * (70 - i) * 3)) /dev/urandom; } >"photos/$class/$i.ppm"
    done
done
photos() { dit -data photos -latents photo_latents "$@"; }
expect "extraction of 12 of 24 photographs" 0 '' photos -extract 1 -images 12
expect "the latents tell their shape and classes" 0 '' photos -out photos_run -steps 2 -grid_classes all
check "  three of them" grep -Eq '^latents +photo_latents: 12 of 4 x 4 with 8 channels, 3 classes' out
check "  which the configuration shows" grep -Eq '^\* -classes +3 +from the data' out
expect "exported with their names" 0 '' photos -out photos_run -export photos.safetensors
check "  which the file keeps" grep -aq 'cats.*dogs.*grey birds' photos.safetensors
expect "sample: a class by name" 0 '' draw -dit photos.safetensors -class "Grey Birds,cats" -n 1 -out birds.png
check "  says which" grep -Eq '^classes +2 grey birds' out
expect "sample: a part of a name" 0 '' draw -dit photos.safetensors -class bird -n 1 -out birds.png
expect "sample: several names fit" 1 'several are called so: 0 cats, 1 dogs, 2 grey birds; give one' draw -dit photos.safetensors -class s
expect "sample: the nearest name" 1 '-class cots: the model has 3 classes, 0 to 2, from cats to grey birds; did you mean cats\?' \
    draw -dit photos.safetensors -class cots

# --- images encoded beside the training: a run on latents goes on with the images that they were made of, whose crops, mirrored
# twins and draws of a posterior are the same; a run that begins so is normalised as the tokenizer says
expect "a tokenizer that draws its latents" 0 '' train_vavae -out gaussian -steps 2
for tokenizer in world gaussian; do
    beside() {
        photos -tokenizer "$tokenizer/stage1.safetensors" -latents "beside_$tokenizer" -images 12 -batch 6 -grid_classes all "$@"
    }
    expect "latents by $tokenizer" 0 '' beside -extract 1
    expect "  5 steps on them" 0 '' beside -out "kept_run_$tokenizer" -steps 5
    expect "  2 steps on them" 0 '' beside -out "beside_run_$tokenizer" -steps 2
    expect "  and 3 more on images" 0 '' beside -out "beside_run_$tokenizer" -steps 5 -latents none -workers 2 -extract_batch 4
    check "  as it says" grep -Eq '^latents +encoded beside the training: 12 of 4 x 4 with 8 channels, 3 classes, of tokenizer' out
    check "  the same bytes" cmp "kept_run_$tokenizer/dit.safetensors" "beside_run_$tokenizer/dit.safetensors"
done
expect "a run on images alone" 0 '' dit -out beside_run -steps 1 -latents none
check "  says what its loader can give" grep -Eq '^loader +[0-9]+ images/s, by 1 thread that also trains$' out
statistics() { tail -c 64 "$1" | cksum; } # mean and deviation of 8 channels
check "  the tokenizer's statistics" test "$(statistics beside_run/dit.safetensors)" = "$(statistics world/stage1.safetensors)"
expect "a plan with its tokenizer" 0 '' dit -latents none -dry_run 1
check "  which takes memory" grep -Eq '^tokenizer +world/stage1.safetensors: encodes 8 images at once .* MiB of weights' out
expect "a tokenizer without statistics" 1 'published_vavae.pt tells no mean and deviation of its latents.*-from' "$build/train_dit" \
    -data shapes -latents none -tokenizer "$here/tests/fixtures/published_vavae.pt" -batch 2 -out refused
expect "no images, no tokenizer" 1 'images are needed: give their folder with -data' dit -latents none -data= -tokenizer= -out refused
check "  both are said" grep -q -- '-latents none needs a tokenizer' said
expect "latents that are not to be kept" 1 '-extract 1 writes latents .* and -latents none is to have none' dit -latents none -extract 1
expect "other channels than the tokenizer's" 1 '-z_channels 16, but the images encoded by -tokenizer world/stage1.safetensors have 8' \
    dit -latents none -z_channels 16 -out refused
mkdir -p two_classes
cp -r photos/cats photos/dogs two_classes

# --- a run on ImageNet's folders in runs/: taken for what the miniature does not have, and named as ImageNet
mkdir folders
for i in $(seq 1001 2000); do # ln is faster than cp
    mkdir "folders/n0000$i"
    ln photos/cats/1.ppm "folders/n0000$i/1.ppm"
done
folders() { dit -data folders -latents folder_latents -out runs/dit_imagenet "$@"; }
expect "extraction of 40 of a thousand classes" 0 '' folders -extract 1 -images 40
expect "a DiT of a thousand classes" 0 '' folders -steps 1 -grid_classes 7
mkdir runs/imagenet
cp world/stage1.safetensors runs/imagenet/stage3.safetensors
cp -r "$here/miniature" .
expect "sample: the trained run has the class" 0 '' "$build/sample" -class "207,tabby" -steps 3 -n 1 -out dog.png
check "  and is named" grep -q '^preset         imagenet, whose run lies in runs/dit_imagenet/dit.safetensors' out
check "  with ImageNet's names, and whence" grep -q "ImageNet's names of its folders" out
check "  golden retriever" grep -q '^classes        207 golden retriever' out
expect "sample: the miniature, for what it has" 0 '' "$build/sample" -class Sneaker -steps 3 -n 1 -out shoe.png
check "  by its own names" grep -q '^classes        7 sneaker' out
expect "sample: -dit is obeyed" 1 '-class 207: the model has 10 classes' "$build/sample" -dit miniature/dit.safetensors -class 207

# --- in a fresh clone: what is missing, and what the miniature serves for
mkdir fresh
cp -r miniature fresh
expect "stage 2 in a fresh clone" 1 'nothing was done' sh -c "cd fresh && $build/train_tokenizer -stage 2"
check "  the one thing that is missing" test "$(grep -c '^  [^ ]' said)" -eq 1
check "  what makes it" grep -Eq '^ +make (build/[a-z]+/pretrain) && \1 && ./train_tokenizer -stage 1 && ./train_tokenizer -stage 2$' said
check "  the VGG is there" grep -q '^-lpips_weights  miniature/vgg.safetensors, which comes with this repository' out
expect "latents in a fresh clone" 0 '' sh -c "cd fresh && $build/train_dit -extract 1 -images 64"
expect "and a DiT on them" 0 '' sh -c "cd fresh && $build/train_dit -steps 2 -batch 8 -sample_steps 3 -grid_columns 1"
check "  whose pictures the miniature decodes" test -s fresh/runs/mini/dit_000002.png

# --- the images that latents are of
cp -r photos moved
expect "images that were moved" 0 '' dit -data moved -latents photo_latents -out moved_run -steps 1 -grid_classes all
mv moved/cats/1.ppm moved/cats/1b.ppm
expect "as many others" 1 'holds latents of other images \(24 of photos\) than those of -data \(24 of moved\)' \
    dit -data moved -latents photo_latents -out refused -steps 1 -grid_classes all
rm -r moved
expect "images that are gone" 0 '' dit -data moved -latents photo_latents -out moved_run -steps 2 -grid_classes all
expect "latents of other classes are not mixed in" 1 'is of another extraction' dit -data two_classes -latents photo_latents -extract 1 \
    -images 12

# --- training
expect "6 steps in one go" 0 '' dit -out run -steps 6
check "  a picture" test -s run/dit_000006.png
check "  every line is JSON" every_line_is_json run/dit.jsonl
check "  one for each step" test "$(wc -l <run/dit.jsonl)" -eq 6
expect "3 steps" 0 '' dit -out halves -steps 3
expect "and 3 more" 0 '' dit -out halves -steps 6
check "  from where the run was" grep -Eq '^resume +halves/dit.safetensors at step 3$' out
check "  the same bytes" cmp run/dit.safetensors halves/dit.safetensors
losses run/dit.jsonl >a
losses halves/dit.jsonl >b
check "  the same losses" cmp a b
check "  the same picture" same_pixels run/dit_000006.png halves/dit_000006.png
expect "with a worker and two threads" 0 '' env OMP_NUM_THREADS=2 "$build/train_dit" -data shapes -latents latents \
    -tokenizer world/stage1.safetensors -z_channels 8 -batch 8 -workers 1 -sample_steps 3 -grid_columns 1 \
    -grid_classes 0,9 -log_every 2 -grid_every 0 -save_every 4 -out threads -steps 6
check "  the same bytes" cmp run/dit.safetensors threads/dit.safetensors
expect "with recomputed activations" 0 '' dit -out recomputed -steps 6 -recompute 1
check "  the same bytes" cmp run/dit.safetensors recomputed/dit.safetensors
expect "a run that is complete says so" 0 '' dit -out run -steps 6
check "  and how it goes on" grep -q 'training is complete (6 steps); -restart 1 trains again' out
expect "unconditional" 0 '' dit -out uncond -steps 2 -uncond 1
expect "without a tokenizer there are no pictures" 0 'no pictures of samples' dit -out blind -steps 2 -tokenizer ''
check "  and none is there" test ! -e blind/dit_000002.png

rm $shard
expect "another extraction into the folder" 0 '' extract
check "  forgets the statistics" test ! -e latents/latents_stats.st
expect "and the next run" 0 '' dit -out again -steps 6
check "  computes the same" cmp run/dit.safetensors again/dit.safetensors
check "  and keeps them" test -s latents/latents_stats.st

expect "resuming with another -lr is refused" 1 'made with other settings' dit -out halves -steps 8 -lr 0.5
check "  with both values" grep -Eq -e '^-lr: saved 0.001, given 0.5$' said
check "  and it stays as it was" cmp run/dit.safetensors halves/dit.safetensors
expect "-change 1 goes on" 0 '' dit -out halves -steps 7 -lr 0.0005 -change 1
expect "-restart 1 begins again" 0 '' dit -out halves -steps 6 -restart 1
check "  with the same bytes" cmp run/dit.safetensors halves/dit.safetensors

mkdir empty torn exported_run
expect "-latents of an empty folder" 1 '-latents empty: there are no shards of latents' dit -latents empty -out refused -steps 2
expect "-latents of no folder" 1 '-latents nowhere: there are no shards of latents' dit -latents nowhere -out refused -steps 2
check "  the command that makes them" grep -Eq '^ +\./train_dit .*-latents nowhere .*-extract 1.* && \./train_dit .*-latents nowhere' said
expect "too few classes" 1 '-classes 4, but the shards in -latents latents have 10' dit -classes 4 -out refused -steps 2
expect "other channels" 1 '-z_channels 16, but the shards in -latents latents have 8' dit -z_channels 16 -out refused -steps 2
expect "the tokenizer of other latents" 1 'give the tokenizer that made them' dit -out refused -steps 2 \
    -tokenizer other/stage1.safetensors
head -c 100000 run/dit.safetensors >torn/dit.safetensors
expect "a torn checkpoint" 1 'torn/dit.safetensors: .*truncated' dit -out torn -steps 8
expect "-export" 0 '' dit -out run -export exported.safetensors
cp exported.safetensors exported_run/dit.safetensors
expect "exported weights are no checkpoint" 1 'written by -export' dit -out exported_run -steps 8
dit -extract 1 -images 16 -latents other_latents -tokenizer other/stage1.safetensors >out 2>said
expect "resuming on latents of another tokenizer is refused" 1 'was trained on latents of tokenizer' dit -out run -steps 8 \
    -latents other_latents -tokenizer other/stage1.safetensors

# --- the tokenizer's raw weights, or the average of the other width: latents, pictures and samples name the same ones
for weights in raw ema1; do
    expect "latents by the weights $weights" 0 '' dit -extract 1 -images 16 -latents "latents_$weights" -tokenizer_weights $weights
    check "  as is said" grep -Eq '^extract .*, (raw|averaged, EMA 0.1)\)$' out
    expect "  others do not decode them" 1 'or its weights with -tokenizer_weights' dit -latents "latents_$weights" -out refused -steps 2
    expect "  they do" 0 '' dit -latents "latents_$weights" -out "run_$weights" -steps 2 -tokenizer_weights $weights
    expect "  also where it draws" 0 '' "$build/sample" -dit "run_$weights/dit.safetensors" -tokenizer world/stage1.safetensors \
        -steps 3 -class 0 -n 1 -out weights.png -tokenizer_weights $weights
    expect "  and no others" 1 'would draw nonsense; give .* or its weights with -tokenizer_weights' "$build/sample" \
        -dit "run_$weights/dit.safetensors" -tokenizer world/stage1.safetensors -steps 3 -class 0 -n 1 -out weights.png
done

# --- text to image, on drawn scenes of three sizes
t2i() {
    "$build/train_dit" -preset t2i_mini -model t2i-nano -data scenes:32:mixed -image_size 32 -tokenizer world/stage1.safetensors \
        -latents scenes -batch 6 -workers 0 -warmup 2 -log_every 1 -grid_every 0 -save_every 0 "$@"
}
expect "latents of scenes" 0 '' t2i -extract 1 -images 60
check "  of three sizes" test "$(ls scenes | tr '\n' ' ')" = "latents_003x005_rank00_shard000.safetensors latents_004x004_rank00_shard000.safetensors \
latents_005x003_rank00_shard000.safetensors "
cp -r scenes scenes_before
rm scenes/latents_005x003*
expect "latents without a shard" 0 '-latents scenes: shards of [0-9]+ images are there, of 60: the others are missing' t2i -out lacking -steps 1
expect "a missing shard" 0 '' t2i -extract 1 -images 60 -extract_batch 7
check "  comes out alike" diff -r scenes scenes_before
expect "8 steps in one go" 0 '' t2i -out t2i_run -steps 8
check "  every line is JSON" every_line_is_json t2i_run/dit.jsonl
for latents in scenes none; do # by the same statistics
    { exec "$build/train_dit" -preset t2i_mini -model t2i-nano -data scenes:32:mixed -image_size 32 -tokenizer world/stage1.safetensors \
        -latents $latents -images 60 -batch 6 -workers 1 -warmup 2 -log_every 1 -grid_every 0 -save_every 2 -out t2i_killed_$latents \
        -from t2i_run/dit.safetensors -steps 5000 >out 2>said; } &
    process=$!
    while kill -0 $process 2>/dev/null && [ ! -e t2i_killed_$latents/dit.safetensors ]; do sleep 0.02; done
    kill -9 $process 2>/dev/null
    wait $process 2>/dev/null
    step=$(grep -ao '"step":"[0-9]*"' t2i_killed_$latents/dit.safetensors | tr -dc 0-9)
    check "-latents $latents, killed at a checkpoint" test "$step" -ge 2
    expect "  goes on" 0 '' t2i -out t2i_killed_$latents -steps $((step + 9)) -latents $latents -images 60
    expect "  beside one on latents that was not killed" 0 '' t2i -out t2i_whole_$latents -from t2i_run/dit.safetensors -steps $((step + 9))
    check "  with the same bytes" cmp t2i_killed_$latents/dit.safetensors t2i_whole_$latents/dit.safetensors
done
expect "a text cache" 0 '' t2i -extract_text 1 -text_cache words.st
expect "8 steps with it" 0 '' t2i -out t2i_cached -steps 8 -text_cache words.st -workers 1
losses t2i_run/dit.jsonl | cut -d, -f1-3 >a
losses t2i_cached/dit.jsonl | cut -d, -f1-3 >b
check "  the first losses are those of text encoded beside it" test "$(head -n 1 a)" = "$(head -n 1 b)"
expect "exported" 0 '' t2i -out t2i_run -export t2i.safetensors
check "  with what opens the text encoder again" grep -aq '"text":"fixed 16 1"' t2i.safetensors
expect "another run from its weights" 0 '' t2i -out t2i_more -from t2i_run/dit.safetensors -steps 1
check "  is told" grep -Eq '^from +t2i_run/dit.safetensors at its step 8' out
expect "-from of classes" 1 'run/dit.safetensors was trained with text encoder \(none: it reads classes\)' \
    t2i -out refused -from run/dit.safetensors -steps 1
# exported weights, and their averages, stay what they are where nothing is learnt; what is learnt begins as from the checkpoint
# where this one's average is the weights themselves
same_end() { test "$(tail -c 250000 "$1" | cksum)" = "$(tail -c 250000 "$2" | cksum)"; }
expect "a larger size from exported weights" 0 '' t2i -out t2i_larger -data scenes:64:mixed -image_size 64 -latents none -images 60 \
    -from t2i.safetensors -steps 2
check "  which has more positions" grep -Eq '^latents +encoded beside the training: 60 of 3 sizes up to 8 x 8' out
expect "another run from exported weights" 0 '' t2i -out t2i_idle -from t2i.safetensors -steps 1 -lr 0
check "  is told" grep -Eq '^from +t2i.safetensors at its step 8, the averaged weights alone' out
expect "  exported again" 0 '' t2i -out t2i_idle -export idle.safetensors
check "  the same numbers" same_end t2i.safetensors idle.safetensors
expect "  without an average" 0 '' t2i -out t2i_plain -ema 0 -steps 2
expect "  exported" 0 '' t2i -out t2i_plain -export plain.safetensors
expect "  from the checkpoint" 0 '' t2i -out t2i_from -from t2i_plain/dit.safetensors -steps 1
expect "  from the export" 0 '' t2i -out t2i_from_export -from plain.safetensors -steps 1
losses t2i_from/dit.jsonl >a
losses t2i_from_export/dit.jsonl >b
check "  the same first losses" cmp a b
expect "  in 16 bits" 0 '' t2i -out t2i_plain -export half_t2i.safetensors -export_type f16
expect "  from them" 0 '' t2i -out t2i_from_half -from half_t2i.safetensors -steps 1
losses t2i_from_half/dit.jsonl >b
if cmp -s a b; then fail "  are not those of 32"; else ok "  are not those of 32"; fi
expect "latents of classes for captions" 1 'tensor caption_id is missing; it is no shard of images with captions' \
    t2i -latents latents -out refused -steps 1
expect "latents of captions for classes" 1 'latents_003x005_rank00_shard000.safetensors holds latents of images with captions' dit -latents scenes -out refused -steps 1
mkdir captions
for i in 1 2 3; do
    cp "photos/cats/$i.ppm" "captions/$i.ppm"
    echo "a cat, number $i" >"captions/$i.txt"
done
expect "other captions than the latents'" 1 'is of other captions \(.*\) than the data set' \
    t2i -data captions:captions -out refused -steps 1
expect "latents of photographs with captions" 0 '' t2i -data captions:captions -latents photo_scenes -extract 1
check "  of which none is too small" grep -Eq '^images +3 of 3 pass the filters' out
expect "a filter that none passes" 1 'no image passes the filters; short side stops 3: loosen -short_side' \
    t2i -data captions:captions -latents refused -extract 1 -short_side 1000
mv captions/1.ppm captions/1b.ppm
mv captions/1.txt captions/1b.txt
expect "other images with the same captions" 1 'holds latents of other images \(3 of captions\) than those of -data' \
    t2i -data captions:captions -latents photo_scenes -out refused -steps 1
mv captions/1b.ppm captions/1.ppm
mv captions/1b.txt captions/1.txt
expect "no captions at all" 1 '-data shapes has no captions' t2i -data shapes -out refused -steps 1
expect "a text cache that is not there" 1 '-text_cache nowhere.st: there is no such file; -extract_text 1 makes it' \
    t2i -text_cache nowhere.st -out refused -steps 1
expect "a text cache of other captions" 1 'words.st is the cache of other captions: it has not that of' \
    t2i -data captions:captions -latents photo_scenes -text_cache words.st -out refused -steps 1
expect "a text cache of more rows" 1 'words.st was made by text encoder fixed .* at most 16 rows, which is not that of .*-text_len 12' \
    t2i -tokenizer= -text_cache words.st -text_len 12 -out refused -steps 1
expect "images with captions, encoded beside the training" 0 '' \
    t2i -data captions:captions -latents none -from t2i_run/dit.safetensors -out fewer -steps 1
rm captions/3.*
expect "  an image fewer when it goes on" 0 'has learnt from 3 images, and these are 2: .* another order' \
    t2i -data captions:captions -latents none -from t2i_run/dit.safetensors -out fewer -steps 2
expect "another text encoder than the run's" 1 'was trained with text encoder fixed table of 30 words in context, at most 16 rows, and this is' \
    t2i -text_len 12 -out t2i_run -steps 9 -change 1
expect "T5 that is not named" 1 '-text t5 needs T5 v1.1.s encoder' t2i -text t5 -out refused -steps 1
expect "flags of the other kind" 1 '-qk_norm is for LightningDiT' t2i -qk_norm 1 -out refused
expect "and the reverse" 1 '-text_cache is for text to image' dit -text_cache words.st -out refused
expect "2B says what it is and needs" 0 '' "$build/train_dit" -preset t2i_256 -batch 1 -dry_run 1
check "  2,242,863,136 parameters" grep -q '^parameters     2B: 2242863136$' out

# --- samples
expect "a picture of exported weights" 0 '' draw -class 0,1 -n 2 -out one.png
expect "in other batches" 0 '' draw -class 0,1 -n 2 -batch 3 -out two.png
check "  the same bytes" cmp one.png two.png
expect "from the checkpoint" 0 '' draw -class 0,1 -n 2 -out three.png -dit run/dit.safetensors
check "  the same pixels" same_pixels one.png three.png
expect "raw weights" 0 '' draw -class 0,1 -n 2 -out raw.png -dit run/dit.safetensors -raw 1
if same_pixels one.png raw.png >/dev/null 2>&1; then fail "  are others"; else ok "  are others"; fi
expect "16-bit weights" 0 '' dit -out run -export half.safetensors -export_type f16
check "  are half as large" test "$(wc -c <half.safetensors)" -lt $(($(wc -c <exported.safetensors) * 6 / 10))
expect "  and draw" 0 '' draw -dit half.safetensors -class 3 -n 1 -out half.png
expect "single PNGs" 0 '' draw -class 0,1 -n 2 -images all
check "  four of them" test "$(ls all | tr '\n' ' ')" = "000000.png 000001.png 000002.png 000003.png "
expect "single PNGs of one class" 0 '' draw -class 1 -n 2 -images class1
check "  image 0 of class 1 is the same" same_pixels all/000002.png class1/000000.png
check "  and image 1" same_pixels all/000003.png class1/000001.png
rm all/000001.png
cp all/000002.png kept.png
expect "single PNGs again" 0 '' draw -class 0,1 -n 2 -images all
check "  the missing one is back" test -s all/000001.png
check "  the others stay" cmp all/000002.png kept.png
npz() { draw -class balanced -n 30 -steps 30 -block 2 -npz "$@"; }
expect "an .npz" 0 '' npz whole.npz
check "  is no smaller than its pixels" test "$(wc -c <whole.npz)" -ge $((30 * 32 * 32 * 3))
{ exec "$build/sample" -dit exported.safetensors -tokenizer world/stage1.safetensors -class balanced -n 30 -steps 30 -block 2 \
    -npz killed.npz >out 2>said; } &
process=$!
while kill -0 $process 2>/dev/null && [ ! -e killed.npz.parts/000001 ]; do sleep 0.02; done
kill -9 $process 2>/dev/null
wait $process 2>/dev/null
check "  killed halfway: its parts are there" test -e killed.npz.parts/000001 -a ! -e killed.npz
expect "  other settings do not go on with them" 1 'drawn with other settings' npz killed.npz -seed 5
expect "  the same command does" 0 '' npz killed.npz -batch 5
check "  the same bytes" cmp whole.npz killed.npz
check "  no parts are left" test ! -e killed.npz.parts

expect "class 10 of 10" 1 'class 10: the model has 10 classes, 0 to 9, from disc to checker \(exported.safetensors\)' draw -class 10
expect "a class that is not there" 1 'class dog: the model has 10 classes' draw -class dog
expect "another tokenizer's decoder" 1 'would draw nonsense' draw -tokenizer other/stage1.safetensors
expect "a DiT that is not there" 1 'there is no such file' draw -dit nowhere.safetensors
expect "a tokenizer for a DiT" 1 'holds no LightningDiT' draw -dit world/stage1.safetensors
expect "a DiT for a tokenizer" 1 'exported.safetensors: not a tokenizer' \
    draw -tokenizer exported.safetensors
finish
