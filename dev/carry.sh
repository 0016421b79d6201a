#!/bin/sh
# Puts the headers and libraries that the programs need besides the CUDA Toolkit (zlib, stb, NCCL's header) into build/carried, for a
# machine that has no network: copy the tree with that folder. dev/gpu_check.sh finds it.
set -eu
cd "$(dirname "$0")/.."
to=build/carried
mkdir -p $to/include $to/lib
find_header() { # the folder in which the compiler finds a header
    echo "#include <$1>" | gcc -x c -E -I /usr/local/cuda/include - 2>/dev/null | sed -n "s|^# 1 \"\(/.*\)/$1\".*|\1|p" | head -n 1
}
cp "$(find_header zlib.h)/zlib.h" $to/include
cp "$(dirname "$(find_header zconf.h)/x")/zconf.h" $to/include
cp -r "$(find_header stb/stb_image.h)/stb" $to/include
nccl=$(find_header nccl.h)
[ -z "$nccl" ] || cp "$nccl/nccl.h" $to/include
cp "$(gcc -print-file-name=libz.a)" $to/lib
du -sh $to
