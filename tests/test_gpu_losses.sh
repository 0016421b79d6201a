#!/bin/sh
# tests/gpu_losses.sh, which `make gpu-check` runs on a GPU, with the CPU's programs in the place of the GPU's: that its commands
# are understood and its comparisons hold where both sides are the same. Usage: sh tests/test_gpu_losses.sh BUILD_FOLDER
set -u
[ $# -eq 1 ] && [ -x "$1/train_tokenizer" ] || { echo "usage: sh $0 BUILD_FOLDER, with the programs in it" >&2; exit 1; }
build=$(cd "$1" && pwd)
kinds=$(mktemp -d "${TMPDIR:-/tmp}/aligntok_test_XXXXXX") || exit 1
trap 'rm -rf "$kinds"' EXIT
for kind in cpu gpu gpu_fp32; do ln -s "$build" "$kinds/$kind"; done
sh tests/gpu_losses.sh "$kinds/cpu"
