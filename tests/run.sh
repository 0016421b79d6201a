#!/bin/sh
# Runs every test of a build folder, as many at a time as there are processors, shows what fails, and ends with one line:
#     N passed, N failed
# Usage: tests/run.sh BUILD_FOLDER          everything: test programs, test scripts, and the emulated kernels: for build/cpu those of
#                                           build/emu, for build/sanitize those in it
#        tests/run.sh BUILD_FOLDER NAME     one of them, as it is called in the list
# The full output of each stands in BUILD_FOLDER/NAME.log.
set -u
build=$1

# test_nvcc belongs to `make test-gpu-build`; of the emulated and double programs, which two scripts are about, `make sanitize` has none,
# and a comparison of programs with themselves says nothing new there
left_out=nvcc
[ "$(basename "$build")" = cpu ] || left_out="nvcc|emulated|ranks|gpu_losses"

# a line "NAME COMMAND" for each test; the longest come first, so that no processor is left alone at the end
list() {
    { printf '%s\n' emulated aspect eval resume bad_input comm ranks; ls tests/test_*.sh | sed 's/.*test_\(.*\).sh/\1/'; } |
        awk '!listed[$0]++' | grep -Evx "$left_out" | sed "s|.*|test_&_script sh tests/test_&.sh $build|"
    if [ "$(basename "$build")" = cpu ]; then
        echo "kernels_step_bf16 build/emu/kernels_step_bf16"
        for test in build/emu/kernels_*_bf16 build/emu/kernels_*_fp32 build/emu/emulator_test build/emu/test_distribution; do
            echo "$(basename "$test" | sed s/^test_distribution/emulated_distribution/) $test"
        done | grep -v '^kernels_step'
        echo "kernels_full_size_99k env EMU_CAPABILITY=8.6 build/emu/kernels_full_size_bf16" # RTX 30: 99 KiB a block
    else
        for test in "$build"/kernels_*; do echo "$(basename "$test") $test"; done | grep -v '\.log '
    fi
    for source in tests/test_*.c; do
        name=$(basename "$source" .c)
        echo "$name $build/$name"
    done
}

# One test: its last line is "N passed, N failed"; a test that dies counts as one failure.
if [ $# -eq 2 ]; then
    name=$2
    command=$(list | sed -n "s/^$name //p")
    [ -n "$command" ] || { echo "error: there is no test '$name'" >&2; exit 1; }
    start=$(date +%s)
    # shellcheck disable=SC2086
    $command >"$build/$name.log" 2>&1
    status=$?
    last=$(tail -n 1 "$build/$name.log")
    p=$(printf '%s' "$last" | sed -n 's/^\([0-9]*\) passed, [0-9]* failed$/\1/p')
    f=$(printf '%s' "$last" | sed -n 's/^[0-9]* passed, \([0-9]*\) failed$/\1/p')
    [ -n "$p" ] || { p=0; f=1; }
    [ "$status" -eq 0 ] || [ "$f" -gt 0 ] || f=1
    note=$(grep -m 1 '^skipped:' "$build/$name.log")
    line=$(printf '%-32s %4d passed %4d failed %4ds  %s' "$name" "$p" "$f" "$(($(date +%s) - start))" "$note")
    [ "$f" -eq 0 ] || line=$(printf '%s\n' "$line"; grep -v '^ok ' "$build/$name.log" | tail -n 30)
    printf '%s\n' "$line" # at once: others print too
    exit 0
fi

processors=$(nproc)
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}" # threads that wait sleep: tests share the machine
list | cut -d ' ' -f 1 | xargs -P "$processors" -I NAME sh tests/run.sh "$build" NAME >"$build/tests.log"
cat "$build/tests.log"
awk '/^[a-z_0-9]+ +[0-9]+ passed +[0-9]+ failed/ { passed += $2; failed += $4 }
     END { print passed + 0 " passed, " failed + 0 " failed"; exit failed > 0 || passed == 0 }' "$build/tests.log"
