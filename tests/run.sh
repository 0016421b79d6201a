#!/bin/sh
# Runs every test program of a build folder and every test script, shows what fails, and ends with one line:
#     N passed, N failed
# Usage: tests/run.sh BUILD_FOLDER. The full output of each stands in BUILD_FOLDER/<test>.log.
set -u
build=$1
passed=0
failed=0
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(nproc)}"
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}" # threads that wait sleep: tests may share the machine

# One test: its last line is "N passed, N failed"; a test that dies counts as one failure.
run_test() {
    name=$1
    shift
    start=$(date +%s)
    "$@" >"$build/$name.log" 2>&1
    status=$?
    last=$(tail -n 1 "$build/$name.log")
    p=$(printf '%s' "$last" | sed -n 's/^\([0-9]*\) passed, [0-9]* failed$/\1/p')
    f=$(printf '%s' "$last" | sed -n 's/^[0-9]* passed, \([0-9]*\) failed$/\1/p')
    [ -n "$p" ] || { p=0; f=1; }
    [ "$status" -eq 0 ] || [ "$f" -gt 0 ] || f=1
    passed=$((passed + p))
    failed=$((failed + f))
    printf '%-28s %4d passed %4d failed %4ds\n' "$name" "$p" "$f" "$(($(date +%s) - start))"
    [ "$f" -eq 0 ] || grep -v '^ok ' "$build/$name.log" | tail -n 30
}

for source in tests/test_*.c; do
    name=$(basename "$source" .c)
    run_test "$name" "$build/$name"
done
for script in tests/test_*.sh; do
    [ -e "$script" ] || continue
    run_test "$(basename "$script" .sh)_script" sh "$script" "$build"
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
