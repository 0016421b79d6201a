#!/bin/sh
# The programs are C11 and C++20 at once: the text that gcc compiles here is what nvcc and g++ compile for the other builds.
# Compiles as C++ each program that no test has in the emulator (build/emu), which is C++ too; with WERROR=1, as in CI, without
# a warning. Skipped, and said so, where there is no g++.
set -u
passed=0
failed=0
if ! command -v g++ >/dev/null 2>&1; then
    echo "skipped: no g++"
    echo "0 passed, 0 failed"
    exit 0
fi
strict=$([ "${WERROR:-0}" != 1 ] || echo -Werror)
for source in sample.cu dev/pretrain.cu dev/plot.cu; do
    if g++ -x c++ -std=c++20 -fsyntax-only -Wall -Wextra $strict -fopenmp -DLAPACK=1 -I. "$source"; then
        echo "ok   $source as C++20"
        passed=$((passed + 1))
    else
        echo "FAIL $source as C++20"
        failed=$((failed + 1))
    fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
