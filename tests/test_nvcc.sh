#!/bin/sh
# What the compiler says of the GPU build, on a machine that has nvcc but need not have a GPU: the kernels and a program compile
# for the A100 (sm_80) and the H100 (sm_90), with WERROR=1 without a warning; no kernel spills registers to memory; those that
# multiply matrices do so with tensor cores and asynchronous copies. (`make test-gpu-build` compiles and links the others.)
# Usage: sh tests/test_nvcc.sh BUILD_FOLDER
set -u
passed=0
failed=0
ok() { printf 'ok   %s\n' "$1"; passed=$((passed + 1)); }
fail() { printf 'FAIL %s%s\n' "$1" "${2:+ ($2)}"; failed=$((failed + 1)); }
finish() { echo "$passed passed, $failed failed"; [ "$failed" -eq 0 ]; exit; }
if ! command -v nvcc >/dev/null 2>&1; then
    echo "skipped: no nvcc here"
    finish
fi
folder=$(dirname "$1")/gpu
log=$1/nvcc.log
rm -f "$folder/ops.o" "$folder/train_tokenizer.o" # so that the compiler says everything again
if NVCC_APPEND_FLAGS=-Xptxas=-v make --no-print-directory "$folder/train_tokenizer" GPU_ARCH="80 90" >"$log" 2>&1; then
    ok "train_tokenizer compiles for 80 and 90"
else
    fail "train_tokenizer compiles for 80 and 90" "$(grep -m 3 -E 'error|warning' "$log")"
fi

# which code is made: GPU_ARCH for what nvidia-smi answers
fake=$(mktemp -d)
code() { # NAME WANTED COMPUTE_CAPABILITIES
    printf '#!/bin/sh\nprintf "%s"\n' "$3" >"$fake/nvidia-smi"
    chmod +x "$fake/nvidia-smi"
    got=$(PATH="$fake:$PATH" env -u MAKEFLAGS -u GPU_ARCH make --no-print-directory -pn help 2>/dev/null |
        sed -n "s/^GPU_ARCH := //p;s/^GPU_NEWEST := /ptx /p" | sort | xargs)
    if [ "$got" = "$2" ]; then ok "code for $1"; else fail "code for $1" "$got"; fi
}
code "one GPU" "90 ptx 90" '9.0\n'
code "different GPUs, one of them too old" "80 86 ptx 86" '8.6\n7.5\n8.0\n8.6\n'
code "a GPU that nvcc does not know" "80 90 ptx 90" '99.0\n'
code "a driver that does not tell" "80 90 ptx 90" 'Field "compute_cap" is not a valid field to query.\n'
rm -r "$fake"
if ! nvidia-smi -L >/dev/null 2>&1; then
    weights=$PWD/miniature/vgg.safetensors # any file that is there: what is missing is said first
    said=$(cd "$(mktemp -d)" && "$OLDPWD/$folder/train_tokenizer" -data shapes -out here -encoder_weights "$weights" \
        -lpips_weights "$weights" 2>&1 >/dev/null)
    status=$?
    case "$status $said" in
    "1 error: no GPU can be used"*"make CPU=1"*) ok "without a GPU the program says so, and what to do" ;;
    *) fail "without a GPU the program says so, and what to do" "exit code $status: $said" ;;
    esac
fi

# "name arch spill-bytes registers" for each kernel
awk '/Compiling entry function/ { split($0, q, "\047"); name = q[2]; arch = q[4] }
     /bytes spill stores/ { match($0, /[0-9]+ bytes spill stores/); spill = substr($0, RSTART, RLENGTH) + 0 }
     /Used [0-9]+ registers/ { match($0, /Used [0-9]+/); print name, arch, spill, substr($0, RSTART + 5, RLENGTH - 5) }' "$log" >"$log.kernels"
kernels=$(wc -l <"$log.kernels")
spilling=$(awk '$3 > 0 { print $1 " (" $2 ", " $3 " bytes)" }' "$log.kernels")
if [ "$kernels" -lt 100 ]; then fail "the compiler's report covers all kernels" "only $kernels"
elif [ -z "$spilling" ]; then ok "none of $kernels kernels (both architectures) spills registers"
else fail "no kernel spills registers" "$(echo "$spilling" | head -n 5 | tr '\n' ' ')"
fi

# the machine code of each kernel: matrix instructions, asynchronous copies, matrices from shared memory, local memory
objdump=$(command -v cuobjdump || ls build/tools/nvidia/cu*/bin/cuobjdump 2>/dev/null | head -n 1)
if [ -z "$objdump" ]; then
    echo "note: no cuobjdump, so nobody looked at the machine code (make deps fetches it with pip)"
    finish
fi
if "$objdump" -lptx "$folder/train_tokenizer" 2>/dev/null | grep -q sm_90; then ok "PTX for GPUs to come"; else fail "PTX for GPUs to come"; fi
PATH="$(dirname "$objdump"):$PATH" "$objdump" -sass "$folder/train_tokenizer" 2>/dev/null | awk '
    /Function :/ { name = $3; found[name] = 1; next }
    /HMMA/ { mma[name]++ } /LDGSTS/ { copies[name]++ } /LDSM/ { matrices[name]++ }
    /[ \t](LDL|STL)[. ]/ { locals[name]++ }
    END { for (name in found) print name, mma[name] + 0, copies[name] + 0, matrices[name] + 0, locals[name] + 0 }' >"$log.sass"

# has KERNEL COLUMN WHAT: every instance of a kernel has such instructions
has() {
    grep "$1" "$log.sass" >"$log.some"
    without=$(awk -v c="$2" '$c == 0' "$log.some" | wc -l)
    if [ -s "$log.some" ] && [ "$without" -eq 0 ]; then ok "$1: $3 in all $(wc -l <"$log.some") instances"
    else fail "$1: $3" "$without of $(wc -l <"$log.some") instances have none"; fi
}
for kernel in conv_gemm_kernel conv_weight_kernel attention_forward_kernel attention_backward_kernel; do
    has $kernel 2 "tensor-core products (HMMA)"
    has $kernel 3 "asynchronous copies (LDGSTS)"
    has $kernel 4 "matrices from shared memory (LDSM)"
done
for kernel in conv_narrow_expand_kernel conv_narrow_contract_kernel conv_narrow_correlate_kernel; do
    has $kernel 2 "tensor-core products (HMMA)"
done
# (but for three that take a handful of values: two with sines of the library, and noise for latents of an odd size)
locals=$(awk '$5 > 0 && $1 !~ /timestep_features|rope_grid|flow_path_kernelILi1E/ { print $1 }' "$log.sass" | head -n 5)
if [ -z "$locals" ]; then ok "no kernel has arrays in local memory"; else fail "no kernel has arrays in local memory" "$(echo "$locals" | tr '\n' ' ')"; fi
finish
