#!/bin/sh
# The trained miniature in miniature/ draws what it drew when it was made: tests/fixtures/samples.npz, to the byte. In double, so
# that the order of a sum, which differs from processor to processor, shows in no byte; the float build may differ by one level in
# a few of them. How the golden file is made:
#     build/double/sample -class balanced -n 20 -steps 20 -npz tests/fixtures/samples.npz
# Usage: sh tests/test_sample.sh BUILD_FOLDER
set -u
passed=0
failed=0
ok() { printf 'ok   %s\n' "$1"; passed=$((passed + 1)); }
fail() { printf 'FAIL %s%s\n' "$1" "${2:+ ($2)}"; failed=$((failed + 1)); }
finish() { echo "$passed passed, $failed failed"; [ "$failed" -eq 0 ]; exit; }
build=$1
golden=tests/fixtures/samples.npz
work=$(mktemp -d "${TMPDIR:-/tmp}/aligntok_test_XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
draw() { "$1" -class balanced -n 20 -steps 20 -npz "$work/$2.npz" >"$work/out" 2>&1; }

if [ ! -s miniature/dit.safetensors ] || [ ! -s "$golden" ]; then
    echo "skipped: the trained miniature is not there (dev/miniature.sh)"
    finish
fi
double=$(dirname "$build")/double/sample
if [ ! -x "$double" ]; then
    echo "skipped: $double is not built"
elif draw "$double" double && cmp -s "$work/double.npz" "$golden"; then
    ok "the miniature draws the golden images, byte for byte, in double"
else
    fail "the miniature draws the golden images in double" "$(cmp "$work/double.npz" "$golden" 2>&1; tail -n 1 "$work/out")"
fi
# bytes that differ, by more than one level, as octal numbers of cmp -l; the last column is the checksum's and the sizes' too
far() {
    cmp -l "$1" "$2" | awk 'function value(o) { return int(o / 100) * 64 + int(o / 10) % 10 * 8 + o % 10 }
        { n++; d = value($2) - value($3); if (d * d > 1) far++ } END { print n + 0, far + 0 }'
}
if draw "$build/sample" float; then
    # shellcheck disable=SC2046
    set -- $(far "$work/float.npz" "$golden")
    bytes=$(wc -c <"$golden")
    if [ "$(wc -c <"$work/float.npz")" -eq "$bytes" ] && [ "$1" -le $((bytes / 100)) ] && [ "$2" -le 8 ]; then
        ok "in float at most one byte in a hundred differs, by one level ($1 of $bytes; the checksum stands twice in the file)"
    else
        fail "in float at most one byte in a hundred differs, by one level" "$1 differ, $2 by more"
    fi
else
    fail "the float build draws" "$(tail -n 1 "$work/out")"
fi
if "$build/sample" -class 207 >"$work/out" 2>&1; then
    fail "class 207 of a model with ten classes is refused"
elif grep -q 'golden retriever' "$work/out" && grep -q -- '-preset imagenet' "$work/out" && grep -q '0 to 9' "$work/out"; then
    ok "-class 207 says what it is, what it needs, and what can be drawn"
else
    fail "-class 207 says what it is, what it needs, and what can be drawn" "$(tail -n 1 "$work/out")"
fi
# refused NAME PATTERN FLAGS...: the program ends with exit code 1 and says so
refused() {
    name=$1
    pattern=$2
    shift 2
    "$build/sample" "$@" >"$work/out" 2>&1
    code=$?
    if [ $code -eq 1 ] && grep -Eq -e "$pattern" "$work/out"; then ok "$name"; else fail "$name" "$code, $(tail -n 1 "$work/out")"; fi
}
classes="-dit miniature/dit.safetensors -tokenizer miniature/tokenizer.safetensors"
# shellcheck disable=SC2086
refused "a prompt for a model of classes is refused" 'draws classes and reads no prompt: give -class' -prompt "a red circle" $classes
refused "so is a class beside a prompt" '-class and -prompt: give one of them' -prompt "a red circle" -class 7
refused "so is a size for classes" '-size: miniature/dit.safetensors draws classes' -class 7 -size 48x48
refused "so is a negative prompt for classes" '-negative: miniature/dit.safetensors draws classes' -class 7 -negative red
if [ -s miniature/t2i.safetensors ]; then
    refused "an empty prompt is refused" '-prompt is empty; say what to show' -prompt "  "
    refused "so is a file without one" 'there is no prompt in it' -prompts /dev/null
    refused "so is a class of a text-to-image transformer" 'is a text-to-image transformer: say what to draw with -prompt' \
        -preset t2i_mini -class 7
    refused "so is a size that the tokenizer cannot have" '-size 50x48: .*multiples of 8' -prompt "a red circle" -size 50x48
    refused "so is a negative prompt without guidance" '-negative: .*with -cfg 1 nothing is' -prompt red -negative blue -cfg 1
    refused "so is a picture in the place of a folder" 'cannot be written: Is a directory' -prompt red -steps 2 -out "$work"
    printf '{"prompt": "x"}' >"$work/p.json"
    refused "so is a .json that is no array" "wanted; want a JSON array of prompts" -prompts "$work/p.json"
    printf '\357\273\277["two red circles on a gray background",\n {"prompt": "a \\"\303\251\\""}]' >"$work/p.json"
    "$build/sample" -prompts "$work/p.json" -n 1 -steps 2 -images "$work/a/b" >"$work/out" 2>&1
    if grep -qa 'tEXtPrompt.two red circles' "$work/a/b/00000_0.png" && grep -qa 'a "é"' "$work/a/b/00001_0.png"; then
        ok "prompts in a JSON array"
    else
        fail "prompts in a JSON array" "$(tail -n 1 "$work/out")"
    fi
    printf '\357\273\277{"tag": "counting", "prompt": "two red circles on a gray background"}\n{"prompt": "a \360\237\231\202 \\u00e9"}\n' >"$work/p.jsonl"
    prompts() { "$build/sample" -prompts "$work/p.jsonl" -n 2 -steps 2 "$@" >"$work/out" 2>&1; }
    prompts -batch 1 -npz "$work/t1.npz"
    prompts -npz "$work/t4.npz"
    if [ -s "$work/t1.npz" ] && cmp -s "$work/t1.npz" "$work/t4.npz"; then
        ok "captions have the same pictures alone and in batches"
    else
        fail "captions have the same pictures alone and in batches" "$(tail -n 1 "$work/out")"
    fi
    prompts -images "$work/g" -size 40x56
    if [ "$(find "$work/g" -name '0000?.png' | wc -l)" -eq 4 ] && cmp -s "$work/g/00000/metadata.jsonl" - <<EOF
$(head -n 1 "$work/p.jsonl" | tail -c +4)
EOF
    then
        ok "prompts with JSON make GenEval's folders"
    else
        fail "prompts with JSON make GenEval's folders" "$(find "$work/g")"
    fi
    if grep -qa 'tEXtPrompt.two red circles' "$work/g/00000/samples/00001.png" && prompts -images "$work/g" -size 40x56 &&
        grep -q '0 images; 4 of the same settings were there' "$work/out"; then
        ok "  whose pictures name their prompt, and are kept"
    else
        fail "  whose pictures name their prompt, and are kept" "$(tail -n 1 "$work/out")"
    fi
    # shellcheck disable=SC2046
    "$build/sample" -prompt "$(printf 'red %.0s' $(seq 10000))" -n 1 -steps 2 -out "$work/long.png" >"$work/out" 2>&1
    if [ -s "$work/long.png" ] && grep -q 'and its end is cut' "$work/out"; then
        ok "a prompt of 10,000 words is cut, and that is said"
    else
        fail "a prompt of 10,000 words is cut, and that is said" "$(tail -n 1 "$work/out")"
    fi
else
    echo "skipped: the trained miniature of text to image is not there"
fi
"$build/sample" -class balanced -n 20 -steps 5 -batch 1 -npz "$work/one.npz" >/dev/null 2>&1
"$build/sample" -class balanced -n 20 -steps 5 -batch 7 -npz "$work/seven.npz" >/dev/null 2>&1
OMP_NUM_THREADS=1 "$build/sample" -class balanced -n 20 -steps 5 -npz "$work/all.npz" >/dev/null 2>&1
if [ -s "$work/one.npz" ] && cmp -s "$work/one.npz" "$work/seven.npz" && cmp -s "$work/one.npz" "$work/all.npz"; then
    ok "in float, too, an image has the same bytes alone, in batches of 7 and of 20, with one thread and with several"
else
    fail "an image has the same bytes in any batch" "$(cmp "$work/one.npz" "$work/seven.npz" 2>&1; cmp "$work/one.npz" "$work/all.npz" 2>&1)"
fi
"$build/sample" -class 7 -n 3 -steps 5 -out "$work/a.png" >/dev/null 2>&1
"$build/sample" -class 3,7 -n 3 -steps 5 -images "$work/b" >/dev/null 2>&1
if [ -s "$work/a.png" ] && [ "$(ls "$work/b" 2>/dev/null | wc -l)" -eq 6 ]; then
    ok "a picture, and single images"
else
    fail "a picture, and single images"
fi
again() { "$build/sample" -class 3,7 -n 3 -steps 5 -images "$work/b" "$@" >"$work/out" 2>&1; }
if again && grep -q '0 images; 6 of the same settings were there' "$work/out"; then
    ok "the same command keeps them, and says so"
else
    fail "the same command keeps them, and says so" "$(tail -n 1 "$work/out")"
fi
if again -seed 1; then
    fail "with other settings they are not kept"
elif grep -q '6 of the 6 pictures that are in .* were drawn with other settings' "$work/out"; then
    ok "with other settings they are not kept"
else
    fail "with other settings they are not kept" "$(tail -n 1 "$work/out")"
fi
cp -r miniature "$work/other" # the same names, other weights
printf '\000\074' | dd of="$work/other/dit.safetensors" bs=1 seek=600000 conv=notrunc 2>/dev/null
program=$(cd "$build" && pwd)/sample
if (cd "$work" && mv other miniature && "$program" -class 3,7 -n 3 -steps 5 -images b) >"$work/out" 2>&1; then
    fail "nor with another model of the same name"
elif grep -q '6 of the 6 pictures' "$work/out"; then
    ok "nor with another model of the same name"
else
    fail "nor with another model of the same name" "$(tail -n 1 "$work/out")"
fi
finish
