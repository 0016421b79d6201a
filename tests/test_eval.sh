#!/bin/sh
# eval as a user runs it: every mode on the trained miniature; scores that do not depend on batches, ranks, or on where samples
# come from; references that do not fit; a sweep that is stopped and goes on; files that it lists; mistakes.
# Usage: sh tests/test_eval.sh BUILD_FOLDER
. "$(dirname "$0")/programs.sh"
eval="$build/eval"
mini="-tokenizer $here/miniature/tokenizer.safetensors -dit $here/miniature/dit.safetensors
      -features $here/miniature/vgg.safetensors -lpips_weights $here/miniature/vgg.safetensors -data shapes"
measure() { # measure NAME FLAGS...: scores go to NAME.json, and what is printed to `out`
    json=$1.json
    shift
    # shellcheck disable=SC2086
    "$eval" $mini -images 40 -reference_images 60 -n 24 -steps 4 -cfg 1.5 -out pictures -json "$json" "$@" >out 2>said
}
value() { sed -n "s/.*\"$2\": \([-0-9.e+]*\).*/\1/p" "$1.json" | head -n 1; }  # value NAME SCORE
entry() { sed -n "s/.*\"$2\": \"\([^\"]*\)\".*/\1/p" "$1.json" | head -n 1; }  # entry NAME PROTOCOL_KEY
near() { # near A B TOLERANCE: relative
    awk -v a="$1" -v b="$2" -v t="$3" 'BEGIN { d = a - b; if (d < 0) d = -d; s = b < 0 ? -b : b
        exit !(a != "" && b != "" && d <= t * (s > 1e-6 ? s : 1e-6)) }'
}
same() { # same NAME OTHER TOLERANCE SCORES...
    a=$1
    b=$2
    tolerance=$3
    shift 3
    for score in "$@"; do
        near "$(value "$a" "$score")" "$(value "$b" "$score")" "$tolerance" ||
            { echo "$score: $(value "$a" "$score") and $(value "$b" "$score")" >&2; return 1; }
    done
}
[ -s "$here/miniature/dit.safetensors" ] || { echo "skipped: the trained miniature is not there (dev/miniature.sh)"; finish; }

# ---- reconstruction
mkdir photos
cp "$images/colour.jpg" "$images/palette.png" "$images/grey.png" photos
check "-recon" measure recon -recon
check "  scores of the miniature have its name" grep -q 'FD-mini.*PSNR.*SSIM.*LPIPS-mini' out
check "  the protocol is printed" grep -q 'protocol: images 40 . originals shapes, val split' out
check "  a sheet of images is written" test -s pictures/recon_tokenizer.png
measure recon7 -recon -batch 7
check "  the same in batches of 7" same recon recon7 1e-4 FD-mini PSNR SSIM LPIPS-mini L1 colour sharpness
check "  of the same originals" test "$(entry recon originals)" = "$(entry recon7 originals)"
check "-crop tv is another crop of images that are not square" measure tv -recon -crop tv -data photos
check "  and LPIPS of bytes" measure bytes -recon -lpips_u8
check "-recon of two tokenizers" measure twice -recon -tokenizer "$here/miniature/tokenizer.safetensors,$here/miniature/tokenizer.safetensors"
sed -n 2p twice.json >second.json
check "  makes the features of the originals once, for the same score" same recon second 1e-9 FD-mini PSNR SSIM LPIPS-mini
measure whole -recon -data photos
mkdir damaged
cp photos/* damaged
echo 'no image' >damaged/damaged.jpg
check "a damaged file" measure damaged -recon -data damaged
check "  is named" grep -q 'damaged.jpg.*left out' said
check "  and counted" grep -q 'unreadable 1 images left out' out
check "  and changes no score" same whole damaged 1e-4 FD-mini PSNR SSIM LPIPS-mini

# ---- numbers that are none
# nan_in FILE TENSOR COPY: the copy has a NaN as the first number of a tensor of F16
nan_in() {
    length=$(od -An -t u8 -N 8 "$1" | tr -d ' ')
    begin=$(head -c $((length + 8)) "$1" | tail -c "$length" | grep -o "\"$2\":{[^}]*}" | sed 's/.*data_offsets":\[\([0-9]*\).*/\1/')
    cp "$1" "$3"
    printf '\000\176' | dd of="$3" bs=1 seek=$((8 + length + begin)) conv=notrunc 2>/dev/null
}
nan_in "$here/miniature/dit.safetensors" blocks.0.attn.proj.bias nan_dit
nan_in "$here/miniature/tokenizer.safetensors" decoder.conv_in.bias nan_decoder
nan_in "$here/miniature/tokenizer.safetensors" adapter.fc1.bias nan_adapter
sampler="$build/sample -tokenizer $here/miniature/tokenizer.safetensors -class 3 -n 2 -steps 3"
# shellcheck disable=SC2086
expect "a NaN in the DiT: nothing is drawn" 1 'nan_dit, with .*draws NaN or infinity as image 0, of class 3 \(element 0 of its weight blocks.0.attn.proj.bias' \
    $sampler -dit nan_dit -out nan.png
check "  and no picture is left" test ! -e nan.png
# shellcheck disable=SC2086
expect "guidance that a float just holds" 1 'draws NaN or infinity as image 0, of class 3' \
    $sampler -dit "$here/miniature/dit.safetensors" -cfg 3e38 -out nan.png
# shellcheck disable=SC2086
expect "  nor measured" 1 'nan_dit, with .*draws NaN or infinity' "$eval" $mini -gen -dit nan_dit -n 8 -steps 3 -reference_images 20 -out ""
check "  no score is printed" test "$(grep -c 'FD-mini' out)" -eq 0
# shellcheck disable=SC2086
expect "a NaN in the decoder" 1 'nan_decoder: the reconstruction of image [0-9]+ of .* holds a NaN .*weight decoder.conv_in.bias' \
    "$eval" $mini -recon -tokenizer nan_decoder -images 8 -out ""
# shellcheck disable=SC2086
expect "a NaN in the encoder: the probe" 1 'nan_adapter: the latent of image [0-9]+ of .* holds a NaN .*weight adapter.fc1.bias' \
    "$eval" $mini -probe -tokenizer nan_adapter -probe_images 40 -images 8 -out ""
# shellcheck disable=SC2086
expect "  the latent space" 1 'nan_adapter: the latent of image' "$eval" $mini -latent -tokenizer nan_adapter -latent_images 8 -out ""
expect "  latents that are to be written" 1 'nan_adapter: the latent of image' \
    "$build/train_dit" -extract 1 -data shapes -images 8 -tokenizer nan_adapter -latents nan_latents
check "  no shard is left" test -z "$(ls nan_latents)"

# ---- labels of the val split
mkdir -p labels/train/a labels/train/b labels/val/b flat/val
cp "$images/colour.jpg" labels/train/a
cp "$images/grey.jpg" labels/train/b
cp "$images/grey.jpg" labels/val/b
cp -r labels/train flat/train
for i in 1 2 3; do cp "$images/grey.jpg" flat/val/ILSVRC2012_val_0000000$i.JPEG; done
probe="-probe -probe_images 0 -probe_epochs 30 -probe_batch 2"
# shellcheck disable=SC2086
check "val lacks a class of train" measure lacks $probe -data labels
check "  and keeps the labels" test "$(value lacks 'probe whole latent %')" = 100
# shellcheck disable=SC2086
expect "a flat val has no labels" 1 'flat/val lie in no class folders.*LOC_val_solution.csv' "$eval" $mini $probe -data flat -out ""
measure flat -recon -data flat
check "  reconstruction needs none" test -n "$(value flat PSNR)"
printf 'ImageId,PredictionString\n' >flat/LOC_val_solution.csv
for i in 1 2 3; do echo "ILSVRC2012_val_0000000$i,b 1 1 2 2" >>flat/LOC_val_solution.csv; done
# shellcheck disable=SC2086
check "  and with Kaggle's file it has" measure kaggle $probe -data flat
check "  the right ones" test "$(value kaggle 'probe whole latent %')" = 100

# ---- samples: drawn, in an .npz, in a folder
check "-gen draws its samples" measure gen -gen
check "  and scores them" grep -q 'FD-mini.*precision-mini.*recall-mini.*KID-mini' out
measure gen5 -gen -batch 5
check "  the same in batches of 5" same gen gen5 1e-9 FD-mini sFD-mini precision-mini recall-mini KID-mini IS-mini
sample="$build/sample -dit $here/miniature/dit.safetensors -tokenizer $here/miniature/tokenizer.safetensors -class random -n 24 -steps 4 -cfg 1.5"
$sample -npz samples.npz >/dev/null 2>&1
$sample -images samples >/dev/null 2>&1
measure npz -gen -samples samples.npz
check "  those of sample's .npz are the same" same gen npz 1e-9 FD-mini sFD-mini precision-mini recall-mini KID-mini
measure folder -gen -samples samples -n 100
check "  and those of its folder of PNGs" same gen folder 1e-9 FD-mini sFD-mini precision-mini recall-mini KID-mini
check "  by their hash too" test "$(entry gen samples)" = "$(entry folder samples)"

# ---- DiT and SiT, a small network in their files' layout: what is measured is what sample draws
classic="-dit $here/tests/fixtures/published_dit.pt -tokenizer $here/tests/fixtures/published_vavae.pt -cfg_channels 1"
for how in "dit" "dit -process ddim -eta 0.5" "sit" "sit -process sde" "sit -solver euler"; do
    rm -f classic.npz classic.json read.json
    # shellcheck disable=SC2086
    check "-gen -preset $how" measure classic -gen -preset $how $classic
    # shellcheck disable=SC2086
    "$build/sample" -preset $how $classic -class random -n 24 -steps 4 -cfg 1.5 -npz classic.npz >/dev/null 2>&1
    measure read -gen -samples classic.npz
    check "  the images of sample -preset $how" test -n "$(entry read samples)" -a "$(entry read samples)" = "$(entry classic samples)"
    entry classic samples >>hashes
done
check "  each way has its own" test "$(sort -u hashes | wc -l)" -eq 5
check "  the protocol names the last one's times" test "$(entry classic sampler)" = "euler, 4 times, shift 0, seed 0"
# shellcheck disable=SC2086
expect "a network that may be DiT's or SiT's" 1 'their files do not tell which it is; give -preset dit or -preset sit' \
    "$eval" $mini $classic -gen -n 8 -reference_images 20 -out ""
classic_sweep() { measure sweep -sweep -sweep_steps 3 -sweep_cfg "" -n 8 -out classic -preset dit $classic "$@"; }
check "-sweep of a DiT" classic_sweep
check "  another process is another curve" classic_sweep -process ddim
check "  of its own" test "$(cut -d ' ' -f 1 classic/sweep.txt | sort -u | wc -l)" -eq 2

# ---- the GPU's kernels, emulated, in bf16
emulated="$build/../emu/eval"
if [ -x "$emulated" ]; then
    # shellcheck disable=SC2086
    check "emulated kernels measure too" "$emulated" $mini -recon -gen -images 4 -n 4 -steps 2 -reference_images 4 -batch 4 -out "" \
        -json emulated.json
    # shellcheck disable=SC2086
    "$eval" $mini -recon -gen -images 4 -n 4 -steps 2 -reference_images 4 -out "" -json plain.json >/dev/null 2>&1
    check "  reconstructions as the CPU's" same plain emulated 2e-2 FD-mini PSNR SSIM LPIPS-mini
    sed -n '/"measure": "gen"/p' emulated.json >ge.json
    sed -n '/"measure": "gen"/p' plain.json >gp.json
    check "  samples as the CPU's" same gp ge 2e-2 FD-mini sFD-mini
fi

# ---- references
check "-save_reference" measure saved -gen -samples samples.npz -save_reference reference.npz
measure stored -gen -samples samples.npz -reference reference.npz
check "  statistics from the file give the same distance" same saved stored 1e-9 FD-mini sFD-mini
check "  without images there is no recall" test -z "$(value stored recall-mini)"
check "  and the protocol names the file and its data set" grep -q 'gFID reference reference.npz (shapes, train split.*hash' out
refuse() { # refuse NAME PATTERN FLAGS...
    name=$1
    pattern=$2
    shift 2
    # shellcheck disable=SC2086
    expect "$name" 1 "$pattern" "$eval" $mini -images 20 -n 20 -steps 3 -out pictures "$@"
}
refuse "the val split as reference of samples" 'a gFID compares samples with the training set' -gen -reference val
"$build/pretrain" -data shapes -out other -encoder tiny -vit_steps 1 -vgg_steps 2 >/dev/null 2>&1
for recipe in classes pixels; do
    check "pretrain -recipe $recipe" "$build/pretrain" -data shapes -out "$recipe" -encoder tiny -vit_steps 2 -vgg_steps 1 -recipe $recipe
done
refuse "statistics of another network" 'was made with another network.*Make it again with -save_reference' \
    -gen -samples samples.npz -reference reference.npz -features other/vgg.safetensors
# shellcheck disable=SC2086
check "  unless it is forced" "$eval" $mini -n 20 -gen -samples samples.npz -reference reference.npz -features other/vgg.safetensors \
    -force

# ---- a sweep that is stopped
check "-sweep" measure sweep -sweep -sweep_steps 3 -sweep_cfg ""
check "  goes on" measure sweep -sweep -sweep_steps 3,5 -sweep_cfg 2
check "  and measures no point twice" test "$(wc -l <pictures/sweep.txt)" -eq 3
check "  and draws its curves" test -s pictures/sweep.png
measure one -gen -steps 5
check "  a point is what -gen measures" near "$(awk '$2 == 5 { print $4 }' pictures/sweep.txt)" "$(value one FD-mini)" 1e-9

# ---- drawn scenes
scenes() { # scenes NAME FLAGS...
    json=$1.json
    shift
    "$eval" -tokenizer "$here/miniature/tokenizer.safetensors" -scenes -data scenes:32:mixed -images 40 -json "$json" "$@" >out 2>said
}
check "-scenes of reconstructions" scenes scenes
check "  one number for each kind, and their mean" grep -q 'single.*counting.*two.*position.*overall.*ground.*number' out
scenes scenes5 -batch 5
check "  the same in batches of 5" same scenes scenes5 1e-9 single counting two position overall ground number colours
if [ -s "$here/miniature/t2i.safetensors" ]; then
    cp -r "$here/miniature" . # where the preset looks for it
    draws() { "$eval" -preset t2i_mini -scenes -images 9 -steps 2 -json "$1.json" -batch "$2" >out 2>said; }
    check "-scenes of a text-to-image transformer" draws drawn 64
    check "  beside the tokenizer's ceiling" test "$(grep -c '"overall"' drawn.json)" -eq 2
    check "  with how it was drawn" grep -q '"text encoder": "fixed.*"sampler": "ddim, eta 1, 2 steps' drawn.json
    draws drawn4 4
    sed -n '/"generator"/p' drawn.json >d64.json
    sed -n '/"generator"/p' drawn4.json >d4.json
    check "  the same in batches of 4" same d64 d4 1e-9 single counting two position overall ground number colours
    mkdir same_caption # then image i has the noise that sample gives it
    for i in 1 2 3 4 5 6; do
        cp "$images/colour.jpg" same_caption/$i.jpg
        echo "two red circles on a gray background" >same_caption/$i.txt
    done
    captioned() { # captioned NAME FLAGS...
        json=$1.json
        shift
        "$eval" -preset t2i_mini -data captions:same_caption -n 24 -steps 2 -out captioned -json "$json" "$@" >out 2>said
    }
    check "-gen of held-out captions" captioned text -gen -size 40x40
    check "  one image of each, by the protocol" grep -q 'drawn captions of captions:same_caption, val split, by lot, in 40 x 40' out
    captioned text4 -gen -size 40x40 -batch 4
    check "  the same in batches of 4" same text text4 1e-9 FD-mini sFD-mini precision-mini recall-mini KID-mini
    "$build/sample" -prompt "two red circles on a gray background" -n 6 -steps 2 -size 40x40 -npz text.npz >/dev/null 2>&1
    captioned text_npz -gen -samples text.npz
    check "  the images of sample -prompt" test -n "$(entry text samples)" -a "$(entry text samples)" = "$(entry text_npz samples)"
    check "-sweep of them" captioned text_sweep -sweep -sweep_steps 2 -sweep_cfg "" -size 40x40
    check "  a point is what -gen measures" near "$(cut -d ' ' -f 4 captioned/sweep.txt)" "$(value text FD-mini)" 1e-9
    check "  away from something" captioned text_sweep -sweep -sweep_steps 2 -sweep_cfg "" -size 40x40 -negative "a blue square"
    check "  is another curve" test "$(cut -d ' ' -f 1 captioned/sweep.txt | sort -u | wc -l)" -eq 2
    expect "-gen of captions, of a data set without" 1 'shapes has no captions, and .* draws them' captioned none -gen -data shapes
else
    echo "skipped: the trained miniature of text to image is not there"
fi
# shellcheck disable=SC2086
expect "-scenes by a transformer of classes" 1 'draws classes and reads no captions' \
    "$eval" $mini -scenes -data scenes:32 -images 4
# shellcheck disable=SC2086
expect "-scenes of what are none" 1 'shapes are no scenes; give -data scenes:48:mixed' "$eval" $mini -scenes -out ""

# ---- pictures with prompts
fixture=$here/tests/fixtures/captions.safetensors # CLIP of the smallest size, with an aesthetic head
cp -r photos prompted
for i in colour palette grey; do echo "two red circles on a gray background" >prompted/$i.txt; done
printf '#version: 0.2\na b\nab c</w>\n' >merges.txt
suits="-clip $fixture -clip_vocabulary merges.txt -aesthetic $fixture -hps $fixture -pick_model $fixture"
# shellcheck disable=SC2086
check "-captions and -pick" measure captions -captions prompted -pick prompted,prompted $suits
check "  all scores, with their networks" grep -q 'CLIP score.*aesthetic.*HPSv2' out
check "  a system against itself" test "$(sed -n 2p captions.json | sed 's/.*"PickScore": \([0-9.]*\).*/\1/')" = 0.5
# shellcheck disable=SC2086
measure captions2 -captions prompted -batch 2 $suits
check "  the same in batches of 2" same captions captions2 1e-6 "CLIP score" aesthetic HPSv2
check "-scenes of a folder" measure folder_scenes -scenes -samples prompted
check "  photographs show none" test "$(value folder_scenes overall)" = 0
for i in single_object two_object counting colors position color_attr colors; do
    echo "{\"tag\": \"$i\", \"correct\": true}"
done | sed '$s/true/false/' >results.jsonl
check "-geneval" measure geneval -geneval results.jsonl
check "  the mean of the tasks" near "$(value geneval GenEval)" 0.9166667 1e-6
# shellcheck disable=SC2086
expect "-captions without a network" 1 'by which network' "$eval" -captions prompted -clip_vocabulary merges.txt
expect "-pick of one folder" 1 'give two folders' "$eval" -pick prompted -clip_vocabulary merges.txt

# ---- probe and latent space
check "-probe" measure probe -probe -probe_images 60
check "  both readings" grep -q 'probe whole latent %.*probe mean latent %' out
check "  with crops and mirrored images in each epoch" measure augmented -probe -probe_augment -probe_images 0 -probe_epochs 1 \
    -probe_batch 512 -batch 256
sed -n 's/^loader .* by/by/p' out >threads
train -steps 1 -workers -1 -out threads_of_training >out 2>said
check "  by as many threads as in training: $(cat threads)" grep -q "^loader .* $(cat threads)\$" out
check "-latent" measure latent -latent -latent_images 40 -draws 2 -pca 0,3
check "  all of its measures" grep -q 'CKNNA.*spatial var.*total var.*density CV.*Gini.*entropy' out
check "  and a picture" test -s pictures/pca.png
measure all -recon -probe -gen -probe_images 60
check "several at once end in a table for each kind" sh -c "tail -n 5 out | grep -q '^tokenizer  *FD-mini  *PSNR' && grep -q '^generator ' out"

# ---- several processes
columns() { grep -a -o 'Images.*' "$1" | tr '\000,' '\n\n' | sed -n 's/^[^0-9]*\([0-9]*\): .*/\1/p'; } # columns SHEET: its images
columns pictures/recon_tokenizer.png >sheet # of the last -recon, of 40 images
check "the sheet names 4 of the worst, the middling and the best images" test "$(wc -l <sheet)" -eq 12
if command -v mpirun >/dev/null 2>&1 && ldd "$eval" | grep -q libmpi; then
    for n in 2 3; do
        # shellcheck disable=SC2086
        mpirun --allow-run-as-root --oversubscribe -np $n "$eval" $mini -images 40 -reference_images 60 -n 24 -steps 4 -cfg 1.5 \
            -out ranks -json "ranks$n.json" -recon -gen -probe -latent -probe_images 60 -latent_images 40 -draws 2 >out 2>said
        sed -n 1p "ranks$n.json" >"r$n.json"
        sed -n '/"measure": "gen"/p' "ranks$n.json" >"g$n.json"
        sed -n '/"measure": "probe"/p' "ranks$n.json" >"p$n.json"
        sed -n '/"measure": "latent"/p' "ranks$n.json" >"l$n.json"
        columns ranks/recon_tokenizer.png >sheet$n
        check "$n processes: the sheet shows the same images" cmp sheet sheet$n
        check "$n processes: reconstruction" same recon "r$n" 1e-4 FD-mini PSNR SSIM LPIPS-mini colour sharpness
        check "$n processes: samples" same gen "g$n" 1e-9 FD-mini sFD-mini precision-mini recall-mini KID-mini IS-mini
        check "$n processes: probe" same probe "p$n" 1e-4 "probe whole latent %" "probe mean latent %"
        check "$n processes: latent space" same latent "l$n" 1e-3 CKNNA "spatial var" "total var"
    done
else
    echo "skipped: no mpirun, or a build without MPI"
fi

# ---- inspect
expect "-inspect: safetensors" 0 '' "$eval" -inspect "$here/miniature/dit.safetensors"
check "  lists tensors" grep -q 'blocks.0.attn.qkv.weight  *F16  *.384, 128.' out
expect "-inspect: an array of numpy" 0 '' "$eval" -inspect samples.npz
check "  lists it" grep -q 'arr_0  *|*[uU]1* *.*24, 32, 32, 3' out
expect "-inspect: a PyTorch file" 0 '' "$eval" -inspect "$here/tests/fixtures/published_mae.pth"
expect "-inspect: no file" 1 'nowhere: .*cannot be opened' "$eval" -inspect nowhere

# ---- mistakes
refuse "features of something else" 'is no feature network' -recon -features "$here/miniature/tokenizer.safetensors"
cp photos/colour.jpg samples
refuse "samples of several sizes" 'samples have one size' -gen -samples samples -n 100 -reference_images 20
refuse "one sample" '-n 1 is out of range' -gen -n 1
refuse "a list that is none" '-sweep_cfg 1,x: want 1 to 32 numbers' -sweep -sweep_cfg 1,x
refuse "a PCA picture of an image that is not there" 'image 99 is not among the 40' -latent -latent_images 40 -pca 99
refuse "no data set" 'the data folder nowhere cannot be found' -recon -data nowhere
finish
