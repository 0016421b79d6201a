#!/bin/sh
# Rehearses `make gpu-check` on a machine without a GPU: the whole of it, in a bare root such as a rented GPU machine has: shell,
# make, compiler, CUDA Toolkit; no network, git, MPI, BLAS, NCCL, zlib, stb; a plain copy of this tree with what dev/carry.sh put
# into build/carried. On Debian or Ubuntu, as root, with nvcc; two busy cores took half an hour for the build. Its own limit of
# time (GPU_CHECK_SECONDS, of which build and demo may each take a third) is for what hangs: others may be using the cores.
#     sh dev/gpu_rehearsal.sh [PART...]      as for dev/gpu_check.sh; prints its summary; all it leaves is in build/rehearsal/out
#
# Real are the build, the scripts, their time limits and files. nvcc compiles and links every program for the GPU (an H100's), and
# what it made must find its libraries. Since nothing can run it here, this then takes its place:
#   programs          the CPU build's, which gcc made in the same root; but eval's, with its LAPACK, outside
#   kernels' tests    a script that passes (make test runs them in the emulator)
#   benchmarks        a script that writes the lines of a benchmark
#   nvidia-smi, compute-sanitizer, python3 with torch     scripts that answer as these do
# So figures in what it prints are those of a CPU, and say nothing of a GPU.
set -eu
cd "$(dirname "$0")/.."
to=$PWD/build/rehearsal
root=$to/root
cuda=$(realpath "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")
cuda=${cuda%/bin/nvcc}
if [ "$(id -u)" != 0 ] || ! command -v dpkg >/dev/null || [ ! -x "$cuda/bin/nvcc" ] || ! unshare -m -n true; then
    echo "error: the rehearsal needs Debian or Ubuntu, root, mount namespaces, and nvcc" >&2
    exit 1
fi

# ---- the bare root: files of a few packages and what these depend on; as links to the machine's, which nobody can write there
if [ ! -f "$root/ready" ]; then
    rm -rf "$root"
    mkdir -p "$root/proc" "$root/dev" "$root/tmp" "$root/machine" "$root/etc" "$root/usr/local/bin" "$root/usr/local/cuda"
    for folder in bin sbin lib lib64; do
        mkdir -p "$root/usr/$folder"
        ln -s "usr/$folder" "$root/$folder"
    done
    packages="bash coreutils dash debianutils diffutils findutils g++ grep libc-bin make mawk sed"
    # shellcheck disable=SC2086
    apt-cache depends --recurse --installed --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
        $packages | grep '^[a-z]' | sort -u | xargs dpkg -L 2>/dev/null | sort -u | grep '^/' |
        grep -v '/share/\(doc\|man\|locale\|info\)' |
        while read -r file; do
            if [ -d "$file" ] && [ ! -L "$file" ]; then continue; fi
            mkdir -p "$root$(dirname "$file")"
            cp -al "$file" "$root$file" 2>/dev/null || true # what was removed since
        done
    for name in awk cc c++; do cp -L "/usr/bin/$name" "$root/usr/bin/$name"; done
    cp -al "$cuda/." "$root/usr/local/cuda"
    rm -rf "$root"/usr/local/cuda/include/nccl* "$root"/usr/local/cuda/lib*/libnccl*
    mv "$root/usr/local/cuda/bin/nvcc" "$root/usr/local/cuda/bin/nvcc_real"
    touch "$root/ready"
fi

# ---- stand-ins
stand_in() { # FILE: a program of the root, from standard input
    cat >"$root/$1"
    chmod +x "$root/$1"
}
stand_in usr/local/cuda/bin/nvcc <<'END'
#!/bin/sh
# nvcc, and in the place of a program for the GPU, once it is compiled and linked, one that runs here
/usr/local/cuda/bin/nvcc_real "$@" || exit
for argument; do
    [ "${last:-}" != -o ] || made=$argument
    last=$argument
done
case ${made:-} in
*.o) exit 0 ;;
build/gpu*) ;;
*) exit 0 ;;
esac
if ldd "$made" | grep 'not found' >&2; then exit 1; fi
case $made in
*/kernels_* | */test_*) cp /usr/local/bin/stand_in_test "$made" ;;
*/bench_*) cp /usr/local/bin/stand_in_bench "$made" ;;
*/eval) cp /usr/local/bin/stand_in_eval "$made" ;;
*) cp "build/cpu/$(basename "$made")" "$made" ;;
esac
END
stand_in usr/local/bin/stand_in_eval <<'END'
#!/bin/sh
LD_LIBRARY_PATH=/usr/local/lib/stand_in exec /machine/tree/build/cpu/eval "$@"
END
stand_in usr/local/bin/stand_in_test <<'END'
#!/bin/sh
echo "ok   stand-in for $0"
echo "1 passed, 0 failed"
END
stand_in usr/local/bin/stand_in_bench <<'END'
#!/bin/sh
# bench_ops or bench_models [-only MODELS] -json FILE
for argument; do
    case ${last:-} in
    -json) file=$argument ;;
    -only) models=$argument ;;
    esac
    last=$argument
done
echo "limits: none of a GPU, stand-in"
for model in $(echo "${models:-}" | tr , ' '); do
    echo '{"kind": "model", "name": "'"$model"'", "images": 1, "seconds": 1, "gflops": 1, "share": 0.5, "planned_gib": 1}'
done >"$file"
case $0 in *bench_ops)
    echo '{"kind": "op", "name": "stand_in", "where": "nowhere", "us": 1, "compute_share": 0.5, "memory_share": 0.5}' >"$file"
    ;;
esac
END
stand_in usr/local/bin/nvidia-smi <<'END'
#!/bin/sh
case "$*" in
-L) echo "GPU 0: rehearsal (no GPU)" ;;
*compute_cap*) echo "9.0" ;;
*) echo "rehearsal (no GPU), 0 MiB, 0" ;;
esac
END
stand_in usr/local/bin/compute-sanitizer <<'END'
#!/bin/sh
# compute-sanitizer --tool TOOL --error-exitcode N PROGRAM
"$5"
case $2 in
racecheck) echo "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings), stand-in" ;;
*) echo "========= ERROR SUMMARY: 0 errors, stand-in" ;;
esac
END
stand_in usr/local/bin/python3 <<'END'
#!/bin/sh
# has torch; the benchmarks of PyTorch answer with our own times
case "$*" in *"import torch"*) exit 0 ;; esac
for file; do
    case $file in
    *.py | -*) ;;
    */*) sed '/"kind": "limits"/d; s/}$/, "mode": "eager", "peak_gib": 0, "torch": "stand-in"}/' "$file" ;;
    esac
done
END

# ---- a plain copy of the tree: what is tracked, or new and not ignored; and what is carried
rm -rf "$to/tree" "$to/out"
mkdir -p "$to/tree/build" "$to/out"
sh dev/carry.sh
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$to/tree"
cp -r build/carried "$to/tree/build/"
make -C "$to/tree" --no-print-directory MPI=0 build/cpu/eval
mkdir -p "$root/usr/local/lib/stand_in"
ldd "$to/tree/build/cpu/eval" | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p' | xargs cp -t "$root/usr/local/lib/stand_in"

# ---- the check
cat >"$to/inside.sh" <<'END'
mount --bind "$1/root" "$1/root"
mount -o remount,ro,bind "$1/root"
mount -t proc proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
mount -t tmpfs tmpfs "$1/root/tmp"
mount --bind "$1" "$1/root/machine"
folder=$1
shift
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin OUT=/machine/out \
    GPU_CHECK_SECONDS="${GPU_CHECK_SECONDS:-18000}" OMP_WAIT_POLICY=passive chroot "$folder/root" /bin/sh -c '
    cd /machine/tree || exit
    make -k -j "$(nproc)" build/cpu/train_tokenizer build/cpu/train_dit build/cpu/sample build/cpu/pretrain \
        >/machine/out/stand_ins.log 2>&1 || { tail -n 5 /machine/out/stand_ins.log; exit 1; }
    exec make gpu-check PARTS="$*"' sh "$@"
END
unshare -m -n sh "$to/inside.sh" "$to" "$@" 2>&1
