#!/bin/sh
# Checks for what the CPU build needs. Installs it on Debian and Ubuntu when run as root; otherwise, and with -check, prints
# the line to run (`-check gpu`: for the GPU build, which has cuSOLVER in place of LAPACK); with -demo, only what `make demo` takes.
# Needed: a C compiler, zlib, stb, and LAPACK for eval: OpenBLAS, or another. Used where present: Fashion-MNIST (else drawn
# shapes), Open MPI (else a single process, and tests/test_comm.sh skips the collectives), g++ (for the emulated kernels in
# make test).
# Where nvcc is, cuobjdump and nvdisasm too, by pip into build/tools: tests/test_nvcc.sh looks at the machine code with it.
set -u

has() { printf '%s\n' "$1" | ${CC:-gcc} -x c - -o /dev/null $2 2>/dev/null; }

needed=""
optional=""
command -v "${CC:-gcc}" >/dev/null 2>&1 || needed="$needed gcc libc6-dev"
has '#include <zlib.h>
int main(void) { return !zlibVersion(); }' -lz || needed="$needed zlib1g-dev"
has '#include <stb/stb_image.h>
#include <stb/stb_image_write.h>
int main(void) { return 0; }' "" || needed="$needed libstb-dev"
lapack='void dgemm_(void), dsyevd_(void), dgesdd_(void);
int main(void) { dgemm_(); dsyevd_(); dgesdd_(); return 0; }'
if ! has "$lapack" -lopenblas; then
    if [ "${2:-}" = gpu ] || has "$lapack" "-llapack -lblas"; then optional="$optional libopenblas-dev"
    else needed="$needed libopenblas-dev"; fi
fi
images=""
[ -f /usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz ] || images=" dataset-fashion-mnist"
optional="$optional$images"
command -v mpicc >/dev/null 2>&1 && command -v mpirun >/dev/null 2>&1 || optional="$optional libopenmpi-dev openmpi-bin"
command -v "${CXX:-g++}" >/dev/null 2>&1 || optional="$optional g++"
[ "${1:-}" = -demo ] && optional=$images
if [ -z "${1:-}" ] && command -v nvcc >/dev/null 2>&1 && ! command -v cuobjdump >/dev/null 2>&1 && [ ! -d build/tools ]; then
    python3 -m pip install -q --target build/tools 'nvidia-cuda-cuobjdump>=13,<14' 'nvidia-cuda-nvdisasm>=13,<14' >/dev/null 2>&1 || rm -rf build/tools
fi
[ -z "$needed$optional" ] && exit 0

line="apt-get update && apt-get install -y$needed$optional"
if [ "${1:-}" != -check ] && command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    echo "installing:$needed$optional"
    log=$(mktemp)
    once="-o Acquire::Retries=0 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20" # there may be no network
    if apt-get $once update >"$log" 2>&1 && DEBIAN_FRONTEND=noninteractive apt-get install -y $needed $optional >>"$log" 2>&1; then
        rm -f "$log"
        exit 0
    fi
    tail -n 5 "$log" >&2
    rm -f "$log"
fi
if [ -n "$needed" ]; then
    echo "missing:$needed. On Debian or Ubuntu, run: sudo sh -c '$line'" >&2
    exit 1
fi
[ "${1:-}" = -check ] || echo "note: works without, but better with:$optional (sudo sh -c '$line')"
