#!/bin/sh
# Puts what programs and `make gpu-check` need besides compilers, CUDA Toolkit and Python into build/carried (33 MB): zlib, stb,
# Fashion-MNIST. For a machine that has no network: copy the tree with that folder. The Makefile finds it.
# (NCCL is not among them: its library is 200 MB, and belongs to the machine.)
set -eu
cd "$(dirname "$0")/.."
to=build/carried
mkdir -p $to/include $to/lib
find_header() { # the folder in which the compiler finds a header
    echo "#include <$1>" | gcc -x c -E - 2>/dev/null | sed -n "s|^# 1 \"\(/.*\)/$1\".*|\1|p" | head -n 1
}
for header in zlib.h zconf.h stb; do
    case $header in stb) folder=$(find_header stb/stb_image.h) ;; *) folder=$(find_header $header) ;; esac
    [ -n "$folder" ] || { echo "error: $header is not here; make deps installs it" >&2; exit 1; }
    cp -r "$folder/$header" $to/include
done
cp "$(gcc -print-file-name=libz.a)" $to/lib
data=/usr/share/datasets/fashion-mnist
if [ -d $data ]; then cp -rL $data $to; else echo "note: no Fashion-MNIST in $data; the demo will draw its shapes" >&2; fi
du -sh $to
