#!/bin/sh
# What a user can get wrong: flags, data, files, disks. Each mistake ends with exit code 1 and a message that says what was
# wrong, where, and what to do, and leaves no half-written file and the good ones as they were. Images of unusual kinds are
# accepted. The images in tests/images are a few hundred bytes each: gradients of 1 to 64 pixels, made with PIL.
# Usage: sh tests/test_bad_input.sh BUILD_FOLDER
. tests/programs.sh "$1"
tokenizer=$build/train_tokenizer
eval=$build/eval

# on_data FOLDER FLAGS...: a short run on a folder of images
on_data() {
    folder=$1
    shift
    rm -rf run
    train -data "$folder" -out run -steps 6 "$@"
}

# limited BLOCKS COMMAND...: with a limit on the size of files, as a full disk would have it
limited() (
    ulimit -f "$1"
    shift
    "$@"
)

# ---- flags
expect "unknown flag" 1 'unknown flag -stge; did you mean -stage\?' "$tokenizer" -stge 2
expect "flag without a value" 1 '-stage needs a value; write for example -stage 1' "$tokenizer" -stage
expect "word that is no flag" 1 'unexpected argument "stage"' "$tokenizer" stage 2
expect "bad integer" 1 '-batch x is not an integer' "$tokenizer" -batch x
expect "out of range" 1 '-stage 4 is out of range; choose an integer in \[1, 3\]' "$tokenizer" -stage 4
expect "bad number" 1 '-w_sem 1,5 is not a number' "$tokenizer" -w_sem 1,5
expect "bad list of numbers" 1 '-lr 1e-4,1e-5: want one number .*or three with commas' "$tokenizer" -lr 1e-4,1e-5
expect "learning rate below zero" 1 '-lr -1: want one number \(at least 0\)' "$tokenizer" -lr -1
expect "half a step" 1 '-steps 1.5: want one whole number' "$tokenizer" -steps 1.5
expect "a number beyond a float" 1 '-w_sem 1e39 is not a number' "$tokenizer" -w_sem 1e39
expect "a list beyond a float" 1 '-lr 1e39: want one number' "$tokenizer" -lr 1e39
expect "sample: guidance beyond a float" 1 '-cfg 1e39 is not a number' "$build/sample" -cfg 1e39
expect "eval: a sweep beyond a float" 1 '-sweep_cfg 1,1e39: want 1 to 32 numbers' "$eval" -sweep -sweep_cfg 1,1e39 \
    -dit "$here/miniature/dit.safetensors" -tokenizer "$here/miniature/tokenizer.safetensors" -data shapes -n 4 -reference_images 20 \
    -features "$here/miniature/vgg.safetensors" -out sweeps
expect "unknown choice" 1 '-sem_loss l3 is none of: l2, cosine' "$tokenizer" -sem_loss l3
expect "low-rank pairs in stage 1" 1 '-lora 4: low-rank pairs are trained in stage 2, this is stage 1; leave -lora out' \
    "$tokenizer" -stage 1 -lora 4
expect "  and in stage 3" 1 'this is stage 3; leave -lora out \(the encoder of stage 2 comes with its pairs merged in\)' \
    "$tokenizer" -stage 3 -lora 4
expect "a loss at the tokens, measured at the adapter" 1 '-sem_at tokens: the loss does not reach the adapter.*give -sem_tensor fc2' \
    "$tokenizer" -stage 2 -sem_at tokens -sem_tensor adapter
expect "  without it, at the last block" 0 '' "$tokenizer" -stage 2 -sem_at tokens -dry_run 1
check "  as the configuration says" grep -Eq '^\* -sem_tensor +fc2 +from another flag$' out
# weight ENCODER W_SEM [FLAGS...]: what the configuration says
weight() {
    encoder=$1
    w_sem=$2
    shift 2
    expect "$encoder $*" 0 '' "$tokenizer" -preset imagenet -stage 2 -dry_run 1 -encoder "$encoder" "$@"
    check "  has -w_sem $w_sem" grep -Eq "^. -w_sem +$w_sem +" out
}
weight dinov2-l 1
weight mae-l 1
weight siglip2-l 3
weight siglip2-l 1 -w_sem 1
weight siglip2-l 0.5 -preset imagenet_d64_star
expect "low-rank pairs of ViT-L" 0 '' "$tokenizer" -preset imagenet -stage 2 -lora 16 -dry_run 1
check "  their number" grep -q '^low-rank pairs 6291456 parameters: rank 16, alpha 32, dropout 0.1' out
check "  and all that is trained" grep -q '^stage 2 .*trainable 50.54M, ' out
expect "-h ends in the paper's ablations" 0 '' "$tokenizer" -h
check "  as flags" grep -q '^  LoRA fine-tuning .*-lora 16' out
expect "eval: raw weights of no DiT" 1 '-tokenizer_weights raw' "$eval" -recon -raw 1
expect "a teacher without VA-VAE" 1 '-teacher_weights belongs to recipe vavae, and this is recipe vae' "$tokenizer" -preset mini_vae \
    -teacher_weights x
expect "a weight of VA-VAE without it" 1 '-w_vf belongs to recipe vavae, and this is recipe aligntok' "$tokenizer" -w_vf 1
expect "no weight for VA-VAE" 1 '-w_vf 0 is out of range' "$tokenizer" -preset mini_vavae -w_vf 0
expect "a semantic loss of a baseline" 1 '-w_sem belongs to AlignTok.s stage 2; recipe vavae has no semantic loss, leave it out' \
    "$tokenizer" -preset mini_vavae -w_sem 2
expect "KL without a distribution" 1 '-w_kl belongs to the baselines' "$tokenizer" -w_kl 1
expect "a CNN for AlignTok" 1 '-encoder cnn belongs to the baselines' "$tokenizer" -encoder cnn
expect "a second stage of a baseline" 1 '-stage 2: recipe vavae has one stage' "$tokenizer" -preset mini_vavae -stage 2
expect "weights of a ViT for a CNN" 1 '-encoder_weights x: there are no such weights for -encoder cnn' "$tokenizer" -preset mini_vae \
    -encoder_weights x
expect "mlp.fc2 of a CNN" 1 '-sem_tensor fc2: -encoder cnn has no mlp.fc2' "$tokenizer" -preset mini_vae -sem_tensor fc2
expect "a CNN before the larger decoder" 1 '-decoder large: -encoder cnn is the mirror image' "$tokenizer" -preset mini_vae -decoder large
expect "unknown teacher" 1 "no encoder named 'cnn'; choose one of: dinov2-s, " "$tokenizer" -preset mini_vavae -teacher cnn
expect "unknown preset" 1 '-preset imagnet is none of: .*did you mean imagenet\?' "$tokenizer" -preset imagnet
expect "unknown encoder" 1 "no encoder named 'dinov3'; choose one of: dinov2-s, " "$tokenizer" -encoder dinov3
expect "preset without data" 1 'preset imagenet needs images: -data FOLDER' "$tokenizer" -preset imagenet
expect "batch of broken chunks" 1 '-batch 12 is not a multiple of -chunk 8' "$tokenizer" -batch 12
expect "image size against the factor" 1 '-image_size 36 is no multiple of 8' "$tokenizer" -image_size 36
expect "image too small" 1 'too small for a PatchGAN' "$tokenizer" -image_size 16
expect "groups against channels" 1 'level 0 of the decoder has 16 channels, no multiple of -groups 3' "$tokenizer" -groups 3
expect "bad multiples" 1 '-ch_mult 1,x: want 1 to 8 whole numbers' "$tokenizer" -ch_mult 1,x
expect "eval: unknown flag" 1 'unknown flag -tokeniser; did you mean -tokenizer\?' "$eval" -tokeniser x
expect "eval: nothing to measure" 1 'what shall be measured\? Give -recon, ' "$eval"
expect "pretrain: an odd batch" 1 'the ViT sees each image twice' "$build/pretrain" -data shapes -batch 7
expect "garments without their files" 1 'has no IDX files; -data garments:FOLDER' "$build/pretrain" -data "garments:$images"
expect "pretrain: unknown flag" 1 'unknown flag -dat; did you mean -data\?' "$build/pretrain" -dat shapes
expect "train_dit: unknown flag" 1 'unknown flag -latent; did you mean -latents\?' "$build/train_dit" -latent x
expect "train_dit: unknown size" 1 "no diffusion transformer named 'XL/3'; choose one of: B/1, " "$build/train_dit" -model XL/3 -dry_run 1
expect "train_dit: two ways of sharing" 1 'leave -reduce_bf16 out, or -zero' "$build/train_dit" -zero 1 -reduce_bf16 1
expect "train_dit: no latents" 1 '-latents nowhere: there are no shards of latents' "$build/train_dit" -latents nowhere -out run
check "  and the command that makes them" grep -q '^ *./train_dit -latents nowhere -out run -extract 1 && ./train_dit' said
expect "sample: unknown solver" 1 '-solver eule is none of: euler, ' "$build/sample" -solver eule
expect "sample: no model" 1 '-dit nowhere: there is no such file' "$build/sample" -dit nowhere
mini_dit="-dit $here/miniature/dit.safetensors"
mini_tokenizer="-tokenizer $here/miniature/tokenizer.safetensors"
classic="-dit $here/tests/fixtures/published_dit.pt -tokenizer $here/tests/fixtures/published_vavae.pt -cfg_channels 1 -class 1"
# draws NAME PATTERN FLAGS...: sample refuses
draws() {
    name=$1
    pattern=$2
    shift 2
    expect "sample: $name" 1 "$pattern" "$build/sample" -out drawn.png "$@"
}
# shellcheck disable=SC2086
{
draws "DiT's file with an autoencoder of other latents" 'latents of 4 x 4 with 16 channels, the DiT was trained on 4 x 4 with 2; give' \
    -preset dit $classic $mini_tokenizer
draws "another autoencoder than that of the latents" 'its decoder would draw nonsense; give the tokenizer that made the latents' $mini_dit \
    -tokenizer "$here/tests/fixtures/published_vavae.pt"
draws "DiT's file that may be SiT's" 'their files do not tell which it is; give -preset dit or -preset sit' $classic
draws "a velocity taken for noise" '-predicts noise is for DiT.s, which has twice as many' -preset dit $mini_dit $mini_tokenizer
draws "noise taken for a velocity's equation" '-process sde: it follows a velocity, .*choose ddpm or ddim' -preset dit $classic -process sde
draws "more steps than times" '-steps 1001: the diffusion process has 1000 times, so 1 to 1000' -preset dit $classic -steps 1001
draws "noise guided from a time on" '-cfg_start 0.1: a network that predicts noise is guided at all times' -preset dit $classic -cfg_start 0.1
draws "latents of no scale" 'tells mean and deviation of the latents; give .*-latent_stats, or -latent_scale' -preset dit $classic -latent_scale 0
}
check "  nothing is drawn" test ! -e drawn.png
expect "-h shows what a preset sets" 0 '' "$tokenizer" -preset imagenet_d64 -h
tr -s ' \n' ' ' <out >words
check "  value and name" grep -q 'default 32; by preset imagenet_d64: 64)' words
expect "-h shows what a preset's own preset sets" 0 '' "$tokenizer" -preset vavae_vit -h
tr -s ' \n' ' ' <out >words
check "  and what it changes" grep -q '(one of aligntok, vae, vavae; default aligntok; by preset vavae_vit: vavae).*default 64; by preset vavae_vit: 64)' words
check "  and the columns of a status line" grep -Eq '^\|rec\|W, \|gan\|W +gradient norms' out
for program in train_tokenizer train_dit sample eval pretrain; do
    expect "$program -h" 0 '' "$build/$program" -h
    check "  fits 100 columns" awk 'length($0) > 100 { exit 1 }' out
done

# ---- -dry_run: the paper's Table 6 (which truncates 304.44 and 348.62), within a small part of the memory that it prints
dry_run() (
    grep -q __asan_init "$tokenizer" || ulimit -v 4000000
    "$tokenizer" -dry_run 1 "$@"
)
trainable="44.25M 348.62M 44.18M"
for stage in 1 2 3; do
    for preset in mini imagenet imagenet_d64 imagenet_d64_star laion; do
        expect "-dry_run of $preset, stage $stage" 0 '' dry_run -preset $preset -stage $stage
        [ $preset = imagenet ] && cp out table
    done
    check "  the paper's sizes" grep -Eq 'encoder with adapter 304.44M, decoder 41.42M, discriminator 2.77M$' table
    check "  trainable $(echo "$trainable" | cut -d ' ' -f $stage)" \
        grep -q "^stage $stage .*trainable $(echo "$trainable" | cut -d ' ' -f $stage)," table
done

for baseline in "vae 28.41M, 1x1 .* decoder 41.42M 72.60M, frozen 14.72M" "vavae 28.41M, 1x1 .* decoder 41.42M 72.63M, frozen 319.08M" \
    "vavae_vit with adapter 304.47M, decoder 41.42M 348.65M, frozen 319.08M"; do
    preset=${baseline%% *}
    sizes=${baseline#* }
    expect "-dry_run of $preset" 0 '' dry_run -preset "$preset"
    check "  the paper's sizes" grep -Eq "encoder ${sizes% * frozen*}, discriminator 2.77M$" out
    check "  and trainable ${sizes#*41.42M }" grep -Eq "^baseline +trainable ${sizes#*41.42M } " out
    expect "-dry_run of mini_$preset" 0 '' dry_run -preset "mini_$preset"
done

expect "-dry_run of LightningDiT-XL/1" 0 '' "$build/train_dit" -preset imagenet -dry_run 1
check "  675.26M parameters" grep -Eq '^parameters +XL/1: 675.257M, of which 674.962M are trained' out
check "  118.63 G multiply-accumulates" grep -Eq '^cost +118.63 G multiply-accumulates an image forward' out

# ---- data
mkdir -p empty no_images/a no_images/b corrupt/a mixed/a mixed/b kinds/a kinds/b single/a halves/train
touch no_images/a/readme.txt
cp "$images/colour.jpg" single/a
cp "$images"/*.png "$images"/*.jpg kinds/a
cp "$images"/colour.jpg "$images"/grey.png kinds/b
cp "$images"/*.png mixed/a
cp "$images"/*.jpg mixed/b
for i in 1 2 3; do head -c 200 "$images/colour.jpg" >corrupt/a/cut$i.jpg; done
cp corrupt/a/cut1.jpg mixed/b/cut.jpg
echo "not an image" >mixed/a/text.png
expect "missing data folder" 1 'the data folder nowhere cannot be found: .*-data takes a folder' on_data nowhere
expect "data folder is a file" 1 'out is not a folder' on_data out
expect "empty data folder" 1 'the data folder empty holds no images .*name another with -data' on_data empty
expect "class folder without images" 1 'the class folder no_images/a holds no images \(jpg, .*remove it or fill it' on_data no_images
mkdir -p halves/val
rmdir halves/train
expect "val without train" 1 'has a folder val but none called train' on_data halves
mkdir -p root/ILSVRC/Data/CLS-LOC/train/a root/ILSVRC/Data/CLS-LOC/val/a
cp "$images"/colour.jpg root/ILSVRC/Data/CLS-LOC/train/a
cp "$images"/colour.jpg root/ILSVRC/Data/CLS-LOC/val/a
expect "a folder above train and val" 1 'root/ILSVRC/Data/CLS-LOC has; give -data root/ILSVRC/Data/CLS-LOC' on_data root
expect "only corrupt images" 1 '^error: 3 images in a row cannot be read in corrupt; check the data' on_data corrupt
check "  each is named" test "$(grep -c '^warning: corrupt/a/cut[123].jpg: cannot be read as an image: the JPEG' said)" -eq 3
check "  no checkpoint is written" test ! -e run/stage1.safetensors
expect "some corrupt images: the run goes on" 0 '' on_data mixed -save_every 2
check "  they are counted" grep -q '^warning: 2 files could not be read and were replaced by others$' said
for file in a/text.png b/cut.jpg; do
    n=$(grep -c "^warning: mixed/$file: cannot be read as an image: " said)
    # the folder is opened twice, as training and as validation set
    check "  $file is named once a set" test "$n" -ge 1 -a "$n" -le 2
done
expect "one image: the whole data set" 0 '' on_data single
mkdir -p clump/a clump/b strays/a
for i in 0 1 2 3 4 5 6 7 8 9; do
    touch clump/a/0$i.png
    for k in 1 2 3; do cp "$images/colour.jpg" clump/a/$k$i.jpg && cp "$images/grey.jpg" clump/b/$k$i.jpg; done
    cp "$images/colour.jpg" strays/a/$i.jfif
    touch strays/a/$i.webp strays/a/._$i.jpg
done
expect "ten empty files side by side: the run goes on" 0 '10 files could not be read' on_data clump -save_every 2
check "  and is saved" test -s run/stage1.safetensors
mkfifo strays/a/pipe.png
expect "a named pipe, .webp, .jfif, a Mac's files" 0 'left out: .webp \(10\), no ordinary files \(1\); read are jpg, jpeg, jpe, jfif' \
    timeout 300 "$tokenizer" -data strays $nano -out run -restart 1 -steps 2
check "  named once" test "$(grep -c 'left out' said)" -eq 1
check "  ten images" grep -Eq '^data .*strays: 10 training images' out
expect "1x1, grey, 16-bit, alpha, palette, CMYK" 0 '' on_data kinds -steps 8
check "  none is refused" test "$(grep -Evc 'no folders train and val|training waits for images' said)" -eq 0
mkdir -p large/a
{ printf 'P6 4000 3000 255\n'; head -c 36000000 /dev/zero; } >large/a/1.ppm
cp large/a/1.ppm large/a/2.ppm
expect "a loader that is too slow" 0 '^warning: training waits for images [0-9]+% of the time: [0-9]+ a second come from 1 thread that also trains. Give more -w' \
    on_data large -workers 0 -steps 20
check "  the warning comes once" test "$(grep -c 'training waits' said)" -eq 1
check "  what the loader gives is said at the start" grep -Eq '^loader +[0-9]+ images/s, by 1 thread that also trains$' out
rm -r large
expect "pretrain: missing data folder" 1 'the data folder nowhere cannot be found' "$build/pretrain" -data nowhere -out p

# ---- the checkpoint of the stage before
expect "stage 1 on drawn images" 0 '' train -out good -steps 6
good=good/stage1.safetensors
cp "$good" kept
expect "stage 2 without stage 1" 1 'stage 2 starts from stage 1.s checkpoint, and there is none at run2/stage1.safetensors' \
    train -out run2 -stage 2
check "  and the command that makes it, with the same flags" \
    grep -q '^ *./train_tokenizer -stage 1 -data shapes .*-out run2.* && ./train_tokenizer -stage 2 -data shapes' said
expect "all that is missing is told at once" 1 'nothing was done, because this is missing' train -data nowhere -out run2 \
    -encoder_weights none1 -lpips_weights none2,none3
for missing in 'the data folder nowhere cannot' '-encoder_weights none1: ' '-lpips_weights none2: ' '-lpips_weights none3: '; do
    check "  $missing" grep -q -e "^  $missing" said
done
check "  and what makes it" grep -Eq '^ +make build/[a-z]+/pretrain && build/[a-z]+/pretrain && ./train_tokenizer -stage 1' said
expect "stage 3 from stage 1" 1 "$good is a checkpoint of stage 1; stage 3 starts from one of stage 2" \
    train -out run2 -stage 3 -from "$good"
expect "stage 1 from a checkpoint" 1 'stage 1 starts from -encoder_weights, not from a checkpoint' train -from "$good" -out run2
expect "-from a file that is not there" 1 'there is none at nowhere ' train -out run2 -stage 2 -from nowhere
expect "-from a folder" 1 'good: it is a folder; give the path of a .safetensors file' train -out run2 -stage 2 -from good
expect "-from weights" 1 'encoder.safetensors: not a tokenizer checkpoint: its metadata field "format" is pt' \
    train -out run2 -stage 2 -from world/encoder.safetensors
expect "-from another configuration" 1 "$good: the tensors do not fit .*adapter.fc2.weight.*use the flags that" \
    train -out run2 -stage 2 -from "$good" -z_channels 16
check "  none of them wrote a file" test -z "$(ls run2)"

# ---- baselines
baseline=baseline/stage1.safetensors
expect "VA-VAE on drawn images" 0 '' train_vavae -out baseline -steps 6
expect "resumed with another weight" 1 'made with other settings' train_vavae -out baseline -w_vf 0.2
check "  which is named" grep -q -e '^-w_vf: saved 0.1, given 0.2$' said
expect "a baseline resumed as AlignTok" 1 'made with other settings' train -out baseline
check "  the recipe is named" grep -q -e '^-recipe: saved vavae, given aligntok$' said
expect "  also where flags may change" 1 'the tensors do not fit .*missing .encoder.cls_token' train -out baseline -change 1
expect "AlignTok resumed as a baseline" 1 'made with other settings' train_vavae -out good
check "  the recipe is named" grep -q -e '^-recipe: saved aligntok, given vavae$' said
expect "  also where flags may change" 1 'the tensors do not fit .*missing .encoder.conv_in.weight' train_vavae -out good -change 1
expect "stage 2 from a baseline" 1 "$baseline is a baseline's checkpoint, and this run is a stage of AlignTok" \
    train -out run2 -stage 2 -from "$baseline"
expect "a baseline from a stage" 1 "$good is a checkpoint of AlignTok's stages, and this run is a baseline" \
    train_vavae -out run2 -from "$good"
expect "a baseline from weights" 1 'encoder.safetensors: no checkpoint of a baseline, and no autoencoder in LDM.s layout' \
    train_vavae -out run2 -from world/encoder.safetensors
expect "a baseline from nothing" 1 '-from nowhere: there is no such file \(weights to start from\)' train_vavae -out run2 -from nowhere
expect "a teacher that is not there" 1 '-teacher_weights nowhere: there is no such file' train_vavae -out run2 -teacher_weights nowhere
expect "a teacher of another size" 1 'does not fit the model mini: ' train_vavae -out run2 -teacher mini
published=$here/tests/fixtures/published_vavae.pt
narrow="-image_size 48 -ch 4 -ch_mult 1,1,2,2,4 -res_blocks 2 -z_channels 2 -ndf 2"
# shellcheck disable=SC2086
expect "a published VA-VAE of other sizes" 1 'is an autoencoder of -encoder cnn -ch 4 -ch_mult 1,1,2,2,4 -res_blocks 2 -groups 4 -z_chan' \
    train_vavae -out run2 -from "$published" $narrow -groups 2
# shellcheck disable=SC2086
expect "a published VA-VAE of another teacher" 1 'of another shape or type \(state_dict.linear_proj.weight\)' \
    train_vavae -out run2 -from "$published" $narrow
check "  none of them wrote a file" test -z "$(ls run2)"
# shellcheck disable=SC2086
expect "a published VA-VAE as a start" 0 '' train -recipe vae -encoder cnn -encoder_weights "" -out published -from "$published" $narrow -steps 2
check "  with its discriminator" grep -Eq '^start +/.*published_vavae.pt; discriminator too$' out
expect "a next phase" 0 '' train_vavae -out phase -from "$baseline" -w_vf 0.5 -distmat_margin 0 -cos_margin 0 -disc_start 0 -steps 2
check "  with discriminator and projection" grep -Eq '^start +baseline/stage1.safetensors; discriminator too, projection too$' out
check "  eval measures a baseline" "$eval" -recon -latent -tokenizer "$baseline" -features "" -lpips_weights "" -data kinds -out "" \
    -latent_images 8 -encoder tiny -encoder_weights world/encoder.safetensors
expect "  -export" 0 '' train_vavae -out baseline -export vavae.safetensors
check "  and the exported one" "$eval" -recon -tokenizer vavae.safetensors -tokenizer_weights raw -features "" -lpips_weights "" -data kinds -out ""
expect "  latents of it" 0 '' "$build/train_dit" -extract 1 -images 8 -data shapes -tokenizer vavae.safetensors -latents baseline_latents

# ---- a tokenizer exported for use
expect "-export" 0 '' train -out good -export use.safetensors -export_type f16
check "  eval measures it" "$eval" -recon -tokenizer use.safetensors -features "" -lpips_weights "" -data kinds -out ""
expect "-export without a checkpoint" 1 '-export x: stage 2 has no checkpoint at good/stage2.safetensors; give the -out' \
    train -out good -stage 2 -export x
expect "-export onto the checkpoint" 1 'is the checkpoint itself, which would lose the state' train -out good -export "$good"
check "  byte for byte" cmp kept "$good"
expect "-from an exported file" 1 'use.safetensors was written by -export: .*give the checkpoint that it was made from' \
    train -out run2 -stage 2 -from use.safetensors
mkdir used
cp use.safetensors used/stage1.safetensors
expect "resume an exported file" 1 'used/stage1.safetensors was written by -export: ' train -out used -steps 12
expect "eval: raw weights of an exported file" 1 'was written by -export and holds one set of weights, those of -ema 0' \
    "$eval" -recon -tokenizer use.safetensors -tokenizer_weights raw
expect "eval: the other average of one" 1 'holds one set of weights, those of -ema 0; for others give the checkpoint' \
    "$eval" -recon -tokenizer use.safetensors -tokenizer_weights ema1

# ---- weights
truncate_at() { head -c "$2" "world/$1.safetensors" >"cut_$1.safetensors"; }
truncate_at encoder 20000
truncate_at vgg 6
for kind in encoder lpips; do
    other=vgg
    [ $kind = lpips ] && other=encoder
    expect "$kind weights missing" 1 "-${kind}_weights nowhere: there is no such file" \
        train -out run3 -${kind}_weights nowhere
    expect "$kind weights of another network" 1 "world/$other.safetensors (holds no vision transformer|does not fit the model)" \
        train -out run3 -${kind}_weights world/$other.safetensors
done
expect "encoder weights truncated" 1 'cut_encoder.safetensors: .*the file is truncated' \
    train -out run3 -encoder_weights cut_encoder.safetensors
expect "LPIPS weights truncated" 1 'cut_vgg.safetensors: .*damaged' train -out run3 -lpips_weights cut_vgg.safetensors
expect "encoder weights of another size" 1 'does not fit the model mini: .*width 24.*as tiny' train -out run3 -encoder mini
expect "LPIPS weights of another size" 1 'net.slice2.5.weight is \[8, 8, 3, 3\], wanted \[16, 8, 3, 3\]' \
    train -out run3 -vgg_channels 8,16
check "  none of them wrote a file" test -z "$(ls run3)"

# ---- places that cannot be written
expect "-out below a file" 1 'cannot make the folder /dev/null/x: Not a directory; choose another one with -out' train -out /dev/null/x
expect "-out is a file" 1 'cannot write into kept: Not a directory' train -out kept
if [ "$(id -u)" -ne 0 ]; then # root may write anywhere
    mkdir -m 555 closed
    expect "-out may not be written to" 1 'cannot write into closed: Permission denied' train -out closed
fi
long=$(printf '%01000d' 0)
expect "-out with a name too long" 1 'has over [0-9]+ letters; choose a shorter one' train -out "$long"
trap '' XFSZ
expect "full disk: checkpoint" 1 'stage1.safetensors: cannot .*: File too large; the file needs [0-9]+ bytes' \
    limited 60 train -out full -steps 6 -log_every 1 -grid_every 3
check "  picture: training went on" grep -Eq '^warning: full/stage1_000003.png: cannot be written: File too large; training goes on' said
check "  nothing half-written is left" test "$(ls full)" = stage1.jsonl
expect "full disk: the checkpoint before it is unharmed" 1 'the earlier file of this name is unharmed' \
    limited 60 train -out good -steps 12
check "  byte for byte" cmp kept "$good"
expect "full disk: JSON lines" 1 '^warning: cannot write short/stage1.jsonl: ' \
    limited 2 train -out short -steps 12 -log_every 1
check "  the warning comes once" test "$(grep -c 'cannot write' said)" -eq 1
check "  what is there is whole lines" every_line_is_json short/stage1.jsonl
trap - XFSZ
if [ -e /dev/full ]; then
    mkdir device
    ln -s /dev/full device/stage1.jsonl
    expect "full disk: JSON lines alone: the run goes on" 0 'device/stage1.jsonl lacks 6 lines' \
        train -out device -steps 6 -log_every 1
    check "  and saves" test -s device/stage1.safetensors
    expect "eval: full disk" 1 'cannot write /dev/full: No space left on device; make room' \
        "$eval" -recon -tokenizer "$good" -features "" -lpips_weights "" -data kinds -out "" -json /dev/full
fi

# ---- two signals: the first saves, a later one ends at once
start -out patient -steps 100000000 -save_every 0
while [ ! -s patient/stage1.jsonl ] && kill -0 $process; do sleep 0.2; done
kill -TERM $process
kill -TERM $process # as timeout(1) does it
wait $process
check "SIGTERM, twice at once: the run is saved" test $? -eq 143 -a -s patient/stage1.safetensors

# ---- numbers that run away
expect "learning rate 1e30" 1 '^error: step [23]: NaN or infinity in .* \(element [0-9]+\)\. .*has no checkpoint yet' \
    train -out nan -steps 12 -lr 1e30
check "  no checkpoint is written" test ! -e nan/stage1.safetensors
expect "learning rate 1e30, each step saved" 1 'step 1: NaN or infinity in the .*weights after this step are not saved' \
    train -out nan -steps 12 -lr 1e30 -save_every 1
check "  none is written here either" test ! -e nan/stage1.safetensors
expect "learning rate 1e30 in mid-run" 1 "The last good checkpoint is $good: the same command with -change 1 and a lower -lr" \
    train -out good -steps 12 -lr 1e30 -change 1 -save_every 1
check "  which is as it was" cmp kept "$good"
expect "discriminator at 1e30" 1 'NaN or infinity in ' train -out nan2 -steps 24 -disc_lr 1e30
expect "and goes on as the message says" 0 '' train -out good -steps 12 -lr 1e-4 -change 1
expect "a discriminator that has won has a gradient of zero" 1 \
    '^error: step [0-9]+: the gradient of the discriminator has been exactly zero for 100 steps' \
    train -data kinds -out dead -steps 3000 -lr 0 -disc_lr 1e-2 -disc_start 0

# ---- eval
expect "eval: missing file" 1 '-tokenizer nowhere: there is no such file' "$eval" -recon -tokenizer nowhere
head -c 50000 kept >torn
expect "eval: torn file" 1 'torn: .*the file is truncated' "$eval" -recon -tokenizer torn
expect "eval: no checkpoint" 1 'not a tokenizer checkpoint' "$eval" -recon -tokenizer world/vgg.safetensors
expect "eval: a picture below a file" 1 'cannot make the folder /dev/null/x: .*choose another one with -out' \
    "$eval" -recon -tokenizer kept -features "" -lpips_weights "" -data kinds -out /dev/null/x
expect "eval: fewer images than asked for" 0 '' "$eval" -recon -probe -tokenizer kept -features "" -lpips_weights "" -data kinds -out "" -json lines
check "  are not measured twice" grep -q '"images": "12"' lines
finish
