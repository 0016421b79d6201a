# programs.sh: what the test scripts share, which run the programs as a user would: a temporary folder, checks that are
# counted, and the flags of a tokenizer so small that a training step takes milliseconds.
# A script begins with `. tests/programs.sh "$1"` and ends with `finish`.
set -u
[ $# -eq 1 ] && [ -x "$1/train_tokenizer" ] || {
    echo "usage: sh $0 BUILD_FOLDER, with train_tokenizer, eval and pretrain in it" >&2
    exit 1
}
build=$(cd "$1" && pwd)
here=$(pwd)
images=$here/tests/images
export ASAN_OPTIONS=detect_leaks=0 # a program that ends with a message frees nothing, and need not
export OMP_NUM_THREADS=1 # a user's threads are the subject of one test, and waste time in the others
passed=0
failed=0
work=$(mktemp -d "${TMPDIR:-/tmp}/aligntok_test_XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
cd "$work" || exit 1

ok() {
    printf 'ok   %s\n' "$1"
    passed=$((passed + 1))
}

# fail NAME [WHY]
fail() {
    printf 'FAIL %s%s\n' "$1" "${2:+ ($2)}"
    failed=$((failed + 1))
}

# check NAME COMMAND...: the command succeeds
check() {
    name=$1
    shift
    if "$@" >/dev/null 2>&1; then ok "$name"; else fail "$name" "$*"; fi
}

# expect NAME EXIT_CODE PATTERN COMMAND...: the command ends with this exit code, and what it says on stderr (file `said`)
# fits the extended regular expression, if there is one. What it prints goes to the file `out`.
expect() {
    name=$1
    code=$2
    pattern=$3
    shift 3
    "$@" >out 2>said
    got=$?
    if [ "$got" -ne "$code" ]; then
        fail "$name" "exit code $got, wanted $code: $(tail -n 2 said)"
    elif [ -n "$pattern" ] && ! grep -Eq -e "$pattern" said; then
        fail "$name" "wanted /$pattern/, said: $(tail -n 2 said)"
    else
        ok "$name"
    fi
}

finish() {
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ]
    exit
}

# every_line_is_json FILE: each line is an object of numbers, as a training run writes them
every_line_is_json() {
    number='-?[0-9]+(\.[0-9]+)?(e[-+][0-9]+)?'
    [ -s "$1" ] && ! grep -Evq "^\{\"[a-z0-9_]+\": $number(, \"[a-z0-9_]+\": $number)*\}\$" "$1"
}

# The nano tokenizer: pretrained weights of a few steps, a decoder of four narrow levels.
"$build/pretrain" -data shapes -out world -encoder tiny -vit_steps 3 -vgg_steps 3 -vgg_channels 8,8 >out 2>said || {
    cat said
    fail "pretrain makes the nano world"
    finish
}
nano="-encoder tiny -encoder_weights world/encoder.safetensors -lpips_weights world/vgg.safetensors -vgg_channels 8,8
    -batch 8 -chunk 4 -ch 8 -ch_mult 1,1,2,2 -res_blocks 1 -groups 4 -ndf 4 -z_channels 8 -adapter_hidden 16 -disc_start 5,0,0 -latent_images 8
    -log_every 5 -grid_every 0 -save_every 0"

# train FLAGS...: a run on the drawn images; a flag given here wins over the nano tokenizer's
train() {
    # shellcheck disable=SC2086
    "$build/train_tokenizer" -data shapes $nano "$@"
}

# train_vavae FLAGS...: the same of the nano VA-VAE
train_vavae() {
    train -recipe vavae -encoder cnn -encoder_weights "" -teacher tiny -teacher_weights world/encoder.safetensors -ema -1 -disc_start 3 "$@"
}

# start FLAGS...: the same in the background; its number is in $process
start() {
    # shellcheck disable=SC2086
    { exec "$build/train_tokenizer" -data shapes $nano "$@" >out 2>said; } &
    process=$!
}
