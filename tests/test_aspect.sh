#!/bin/sh
# Images of every aspect ratio, as a user has them: a folder of photographs of all shapes, some of them broken, trains the preset
# laion with a tiny encoder in all three stages; resumed, with other threads, by two processes, and on the GPU's emulated kernels it
# does what it does in one go. eval measures such images, and one image of any size.
# Usage: sh tests/test_aspect.sh BUILD_FOLDER; programs in double and emulated ones stand beside it where there are any
. tests/programs.sh "$1"
. "$here/tests/same_losses.sh"
kinds=$(dirname "$build")
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

# photo FILE WIDTH HEIGHT SEED: a drawn picture
photo() {
    LC_ALL=C awk -v w="$2" -v h="$3" -v s="$4" 'BEGIN {
        printf "P6 %d %d 255\n", w, h
        for (y = 0; y < h; y++) for (x = 0; x < w; x++)
            printf "%c%c%c", 1 + (x * 3 + s * 31) % 250, 1 + (y * 5 + s * 57) % 250, 1 + ((x + y) * 2 + s * 11) % 250
    }' >"$1"
}

# all shapes, one pixel, and panoramas of 1:20; none of them a multiple of 8
mkdir -p photos/a
i=0
for size in 49x49 65x49 49x65 85x49 49x85 97x49 49x97 50x33 33x50 200x10 10x200 3x5 1x1 81x60 60x81; do
    for k in 1 2; do
        i=$((i + 1))
        photo photos/a/$i.ppm ${size%x*} ${size#*x} $i
    done
done
cp -r photos broken
head -c 60 photos/a/1.ppm >broken/a/cut.ppm
echo text >broken/a/text.png

# the preset with a tiny encoder; batches of 4, of which most shapes have fewer images
laion() {
    program=$1
    shift
    # shellcheck disable=SC2086
    "$program" -preset laion -data photos $nano -image_size 24 -batch 4 -chunk 2 -lr 1e-3 -disc_lr 1e-3 -disc_start 2,0,0 -log_every 1 "$@"
}
tokenizer=$build/train_tokenizer
steps=5

# ---- the three stages
for stage in 1 2 3; do
    expect "stage $stage" 0 '' laion "$tokenizer" -stage $stage -out whole -steps $steps
    [ $stage -eq 1 ] && cp out first
    rm -rf halves
    mkdir halves
    cp whole/stage*.safetensors halves
    rm halves/stage$stage.safetensors
    expect "  half of it" 0 '' laion "$tokenizer" -stage $stage -out halves -steps 2 -workers 0
    expect "  and the rest, by three threads" 0 '' laion "$tokenizer" -stage $stage -out halves -steps $steps -workers 3
    check "  ends with the same bytes" cmp whole/stage$stage.safetensors halves/stage$stage.safetensors
    check "  and shows images of several shapes" test -s whole/stage${stage}_00000$steps.png
done
check "memory is planned for all sizes" grep -Eq '^sizes +7, from 24 x 24 to 48 x 24 and 24 x 48; memory and cost are of the largest' first
check "what has images is said" grep -Eq '^sizes +7 of the 7 have images; 4 images are longer than 48:24 and lose their ends$' first
check "and what has few" grep -Eq '^sizes +[0-9] with fewer images than a batch of 4, in which some then come more than once; .* has the fewest, [0-9]+$' first
check "the sizes are kept" grep -q '^81 60 a/30.ppm$' photos/.image_sizes
recompute() { laion "$tokenizer" -stage 2 -out recompute -from whole/stage1.safetensors -steps $steps -recompute 1; }
expect "stage 2 with -recompute 1" 0 '' recompute
if compare_losses whole/stage2.jsonl recompute/stage2.jsonl 1e-12 >difference; then ok "  has the same losses: $(cat difference)"
else fail "  has the same losses" "$(cat difference)"; fi
expect "the order of batches depends on the seed" 0 '' laion "$tokenizer" -out seed -steps $steps -seed 2
check "  and so do the weights" sh -c '! cmp -s seed/stage1.safetensors whole/stage1.safetensors'

# ---- what is broken
expect "a file that is cut off, and one that is none" 0 'broken/a/cut.ppm: cannot be read .*another image takes its place' \
    laion "$tokenizer" -data broken -out broken_run -steps $steps
check "  the one without a header is left out" grep -q '1 files have no header that tells .*the first is broken/a/text.png' said
mkdir -p nothing/a one/a
echo text >nothing/a/a.png
cp photos/a/19.ppm one/a
expect "no image at all" 1 '^error: 1 images in a row cannot be read in nothing .*check the data' laion "$tokenizer" -data nothing -out bad
expect "a single panorama" 0 '' laion "$tokenizer" -data one -out single -steps 2
expect "an aspect below one" 1 '-aspect 0.5 is out of range' laion "$tokenizer" -aspect 0.5
expect "no aspect is a square" 0 '' laion "$tokenizer" -aspect 1 -out square -steps 2
check "  of which nothing is read beforehand" test "$(grep -c '^sizes' out)" -eq 0
if [ "$(id -u)" -ne 0 ]; then
    cp -r photos closed
    rm -f closed/.image_sizes
    chmod a-w closed
    expect "a folder that cannot be written" 0 'headers will be read again' laion "$tokenizer" -data closed -out closed_run -steps 2
    chmod u+w closed
fi

# ---- two processes as one
double=$kinds/double/train_tokenizer
if command -v mpirun >/dev/null 2>&1 && [ -x "$double" ]; then
    ranks() { mpirun --oversubscribe -n "$@"; }
    for stage in 1 2; do
        # shellcheck disable=SC2086
        flags="-preset laion -data photos $nano -image_size 24 -disc_start 2,0,0 -log_every 1 -chunk 2 -steps $steps -stage $stage"
        [ $stage -eq 2 ] && flags="$flags -from one/stage1.safetensors"
        # shellcheck disable=SC2086
        expect "stage $stage, one process" 0 '' "$double" $flags -out one
        rm -f photos/.image_sizes
        # shellcheck disable=SC2086
        expect "  two, which read the sizes together" 0 '' ranks 2 "$double" $flags -out two
        check "  and write them down" grep -q '^81 60 a/30.ppm$' photos/.image_sizes
        if compare_losses one/stage$stage.jsonl two/stage$stage.jsonl 1e-5 >difference; then ok "  have the losses of one: $(cat difference)"
        else fail "  have the losses of one" "$(cat difference)"; fi
    done
else
    echo "no mpirun, or no program in double: several processes are left out"
fi

# ---- the GPU's kernels, in fp32, which proves what is computed (bf16: tests/test_emulated.sh); in stage 2, in which all is trained
emulated=$kinds/emu_fp32/train_tokenizer
if [ -x "$emulated" ]; then
    flags="-stage 2 -from whole/stage1.safetensors -batch 2 -chunk 1 -disc_start 0 -lr 2e-5 -disc_lr 2e-5 -steps 2 -seed 3"
    # shellcheck disable=SC2086
    expect "stage 2 in the CPU build" 0 '' laion "$tokenizer" $flags -out cpu
    # shellcheck disable=SC2086
    expect "  in the emulator" 0 '' laion "$emulated" $flags -out emulated
    if compare_losses cpu/stage2.jsonl emulated/stage2.jsonl 1e-4 >difference; then ok "  has its losses: $(cat difference)"
    else fail "  has its losses within 1e-4" "$(cat difference)"; fi
fi

# ---- eval
mini="-tokenizer $here/miniature/tokenizer.safetensors -features $here/miniature/vgg.safetensors -lpips_weights $here/miniature/vgg.safetensors"
value() { sed -n "s/.*\"$2\": \([-0-9.e+]*\).*/\1/p" "$1" | tail -n 1; } # value FILE SCORE
near() { awk -v a="$1" -v b="$2" 'BEGIN { d = a - b; if (d < 0) d = -d; exit !(a != "" && b != "" && d <= 1e-4 * (b < 0 ? -b : b)) }'; }
measure() { # measure NAME FLAGS...
    json=$1.json
    shift
    # shellcheck disable=SC2086
    expect "eval $*" 0 '' "$build/eval" $mini -out pictures -json "$json" "$@"
}
measure aspect -recon -crop aspect -data photos
measure seven -recon -crop aspect -data photos -batch 7
for score in FD-mini PSNR SSIM LPIPS-mini; do
    check "  the same $score in batches of 7" near "$(value aspect.json $score)" "$(value seven.json $score)"
done
measure squares -recon -crop tv -data shapes -images 20
measure shapes -recon -crop aspect -data shapes -images 20
check "  squares are what they are" near "$(value squares.json PSNR)" "$(value shapes.json PSNR)"
measure ours -recon -crop aspect -data photos -tokenizer whole/stage3.safetensors,whole/stage2.safetensors -features "" -lpips_weights ""
measure latent -latent -crop aspect -data photos -draws 1 -pca 0,9,18
check "  with a picture" test -s pictures/pca.png
if command -v mpirun >/dev/null 2>&1 && ldd "$build/eval" | grep -q libmpi; then
    # shellcheck disable=SC2086
    expect "eval by two processes" 0 '' mpirun --oversubscribe -n 2 "$build/eval" $mini -recon -latent -crop aspect -data photos -draws 1 \
        -out two -json two.json
    sed -n 1p two.json >two_recon.json
    check "  the same PSNR" near "$(value aspect.json PSNR)" "$(value two_recon.json PSNR)"
    check "  the same CKNNA" near "$(value latent.json CKNNA)" "$(value two.json CKNNA)"
fi
# limited KILOBYTES COMMAND...: with so many addresses
limited() (
    ulimit -v "$1"
    shift
    "$@"
)
measure image -recon -image photos/a/27.ppm -out beside.png
check "  of its own size" grep -q 'size 81 x 60 . padded 88 x 64 by its mirror image' out
check "  the picture" test -s beside.png
measure ours -recon -image photos/a/27.ppm -side 33 -tokenizer whole/stage3.safetensors,whole/stage1.safetensors
check "  resized" grep -q 'size 45 x 33, resized' out
photo exact.ppm 32 32 5
mkdir -p exact/a
cp exact.ppm exact/a/a.ppm
cp exact.ppm exact/a/b.ppm
measure image -recon -image exact.ppm
measure set -recon -crop aspect -data exact
for score in PSNR SSIM LPIPS-mini; do
    check "  an image that needs no padding has the data set's $score" near "$(value image.json $score)" "$(value set.json $score)"
done
measure pixel -recon -image photos/a/25.ppm
check "  one pixel has a PSNR and no SSIM" test -n "$(value pixel.json PSNR)" -a -z "$(value pixel.json SSIM)"
# shellcheck disable=SC2086
expect "an image that is not there" 1 '-image nowhere.jpg: there is no such file' "$build/eval" $mini -recon -image nowhere.jpg
# shellcheck disable=SC2086
expect "an image that is none" 1 '-image: broken/a/text.png: cannot be read as an image' "$build/eval" $mini -recon -image broken/a/text.png
grep -q __asan_init "$build/eval" || { # whose addresses have no limit
    { printf 'P6 3000 2000 255\n'; head -c 18000000 /dev/zero; } >large.ppm
    # shellcheck disable=SC2086
    expect "an image beyond the memory" 1 'large.ppm: 3000 x 2000 pixels take [0-9.]+ GiB, and 1.0 are left; .*-side [0-9]+$' \
        limited 1000000 "$build/eval" $mini -recon -image large.ppm -out large.png
    check "  no picture" test ! -e large.png
}
expect "an image and something else" 1 '-image x is for -recon alone' "$build/eval" -latent -image x
expect "-crop aspect of a probe" 1 '-crop aspect is for -recon and -latent' "$build/eval" -probe -crop aspect
# shellcheck disable=SC2086
expect "a VA-VAE" 0 '' "$build/eval" $mini -recon -image photos/a/27.ppm -tokenizer "$here/tests/fixtures/published_vavae.pt" -json vavae.json
check "  too" grep -q 'size 81 x 60 . padded 96 x 64 by its mirror image' out
check "  with its measures" test -n "$(value vavae.json SSIM)"
# shellcheck disable=SC2086
expect "  of a set" 0 '' "$build/eval" $mini -recon -crop aspect -data exact -tokenizer "$here/tests/fixtures/published_vavae.pt" -features "" \
    -lpips_weights ""
finish
