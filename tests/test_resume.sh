#!/bin/sh
# A training run that is killed or stopped at any moment, and started again by the same command until it is done, ends with
# the same bytes as one that was left alone; so does one with other numbers of threads. Checkpoints that cannot be resumed
# are refused, and stay as they are.
# Usage: sh tests/test_resume.sh BUILD_FOLDER
. tests/programs.sh "$1"
steps=24
kills=2

# from STAGE: the flag that hands the stage before over
from() {
    [ "$1" -eq 1 ] || echo "-from whole/stage$(($1 - 1)).safetensors"
}

# a fraction of a second, different each time
random_pause() {
    sleep "0.$(od -An -N2 -tu2 /dev/urandom | awk '{printf "%02d", $1 % 15}')"
}

# wait_for PID COMMAND...: until the command succeeds or the process has ended
wait_for() {
    process=$1
    shift
    while kill -0 "$process" 2>/dev/null && ! "$@" 2>/dev/null; do sleep 0.02; done
}

# killed_run STAGE: kill -9 a moment after a checkpoint was written, several times, then the rest. Sets `struck`.
killed_run() {
    struck=0
    for i in $(seq $kills); do
        : >mark
        sleep 0.02
        # shellcheck disable=SC2046
        start -stage "$1" $(from "$1") -out killed -steps $steps -save_every 3
        wait_for "$process" test "killed/stage$1.safetensors" -nt mark
        random_pause
        kill -9 $process 2>/dev/null && struck=$((struck + 1))
        wait $process 2>/dev/null
    done
    # shellcheck disable=SC2046
    train -stage "$1" $(from "$1") -out killed -steps $steps -save_every 3 >out 2>said
}

# stopped_run STAGE SIGNAL CODE: the run must save where the signal finds it, as nothing else saves before the end, at once:
# with the statistics of before, not those of 100,000 images
stopped_run() {
    # shellcheck disable=SC2046
    start -stage "$1" $(from "$1") -out stopped -steps $steps -log_every 1 -latent_images 100000
    wait_for "$process" test -s "stopped/stage$1.jsonl"
    before=$(date +%s)
    kill "-$2" $process
    wait $process
    check "stage $1: $2 saves and stops, with exit code $3" test $? -eq "$3" -a -s "stopped/stage$1.safetensors"
    check "stage $1: within seconds" test $(($(date +%s) - before)) -le 10
    check "stage $1: and says so, with the time of writing" \
        grep -Eq "^saved +stopped/stage$1.safetensors at step [0-9]+: [0-9.]+ MiB in [0-9.]+ s, after" out
    check "stage $1: and what to do" grep -Eq "^stopped +at step [0-9]+ of $steps; the same command goes on" out
    if [ "$1" -lt 3 ]; then
        expect "stage $1: half of it does not start stage $(($1 + 1))" 1 "has only [0-9]+ of $steps steps of stage $1.*-stage $1. with" \
            train -out stopped -stage $(($1 + 1)) -latent_images 100000
        cp "stopped/stage$1.safetensors" half.safetensors
    fi
    # shellcheck disable=SC2046
    expect "stage $1: the same command resumes" 0 '' train -stage "$1" $(from "$1") -out stopped -steps $steps -log_every 1 \
        -change 1
    check "stage $1: in the middle" grep -Eq '^resume .* at step [1-9]' out
}

for stage in 1 2 3; do
    file=stage$stage.safetensors
    # shellcheck disable=SC2046
    expect "stage $stage in one go" 0 '' train -stage $stage $(from $stage) -out whole -steps $steps
    killed_run $stage
    if [ $struck -gt 0 ]; then ok "stage $stage: killed $struck times"; else fail "stage $stage: ended before any kill"; fi
    check "stage $stage: the same bytes after kill -9" cmp whole/$file killed/$file
    check "stage $stage: no temporary file is left" test ! -e killed/$file.tmp
    if [ $stage -eq 2 ]; then stopped_run $stage INT 130; else stopped_run $stage TERM 143; fi
    check "stage $stage: the same bytes after the signal" cmp whole/$file stopped/$file
    for threads in "0 1" "3 2"; do
        workers=${threads% *}
        OMP_NUM_THREADS=${threads#* }
        # shellcheck disable=SC2046
        train -stage $stage $(from $stage) -out threads -steps $steps -workers "$workers" -restart 1 >out 2>said
        check "stage $stage: the same bytes with $workers workers, $OMP_NUM_THREADS threads" cmp whole/$file threads/$file
    done
    OMP_NUM_THREADS=1
    for run in whole killed stopped; do
        check "stage $stage: $run: every line is JSON" every_line_is_json $run/stage$stage.jsonl
    done
    check "stage $stage: a resumed run goes on in the same JSON lines" awk -F '[:,]' -v steps=$steps '
        $2 <= last { exit 1 }
        { last = $2 }
        END { if (NR != steps || last != steps) exit 1 }' stopped/stage$stage.jsonl
done

# low-rank pairs: their dropout is a function of the step; what they leave is an ordinary tokenizer
pairs="-stage 2 -from whole/stage1.safetensors -lora 3 -lora_dropout 0.3"
# shellcheck disable=SC2086
{
    expect "low-rank pairs in one go" 0 '' train $pairs -out lora -steps 8
    expect "  half of it" 0 '' train $pairs -out lora_halves -steps 3
    expect "  and the rest" 0 '' train $pairs -out lora_halves -steps 8
    check "  the same bytes" cmp lora/stage2.safetensors lora_halves/stage2.safetensors
    OMP_NUM_THREADS=2
    expect "  with other threads, recomputed" 0 '' train $pairs -out lora_threads -steps 8 -workers 2 -recompute 1
    OMP_NUM_THREADS=1
    check "  the same bytes" cmp lora/stage2.safetensors lora_threads/stage2.safetensors
    expect "  with other dropout it does not go on" 1 '^-lora_dropout: saved 0.3, given 0.1' train $pairs -out lora -steps 9 \
        -lora_dropout 0.1
}
expect "  stage 3 goes on from it" 0 '' train -stage 3 -from lora/stage2.safetensors -out lora -steps 2
expect "  exported" 0 '' train -stage 2 -out lora -export lora.safetensors
check "  without the pairs" test "$(grep -ac lora_A lora.safetensors)" -eq 0
for weights in ema raw ema0 ema1; do
    expect "  measured with -tokenizer_weights $weights" 0 '' "$build/eval" -recon -tokenizer lora/stage2.safetensors -data shapes \
        -features "" -lpips_weights "" -images 20 -out "" -tokenizer_weights $weights
    grep -o 'weights raw\|weights averaged, EMA [0-9.]*[0-9]' out >>used
done
check "  the protocol says which" test "$(tr '\n' ';' <used)" = \
    "weights averaged, EMA 0.05;weights raw;weights averaged, EMA 0.05;weights averaged, EMA 0.1;"
expect "VA-VAE in one go" 0 '' train_vavae -out vavae -steps $steps
expect "half of it" 0 '' train_vavae -out vavae_halves -steps $((steps / 2))
OMP_NUM_THREADS=2
expect "and the rest, with other threads" 0 '' train_vavae -out vavae_halves -steps $steps -workers 0
OMP_NUM_THREADS=1
check "the same bytes" cmp vavae/stage1.safetensors vavae_halves/stage1.safetensors
check "every line is JSON" every_line_is_json vavae/stage1.jsonl
check "with KL and VF" grep -q '"kl": .*"vf": .*"omega_vf": ' vavae/stage1.jsonl

expect "half a stage that is named starts the next one, with a warning" 0 'half.safetensors has only [0-9]+ of 24 steps of stage 2' \
    train -stage 3 -from half.safetensors -out named -steps 2

# the signal comes while a checkpoint's statistics are measured, which would take a minute
start -out measuring -steps $steps -log_every 3 -save_every 3 -latent_images 2000000
wait_for "$process" test -s measuring/stage1.jsonl
sleep 0.5
before=$(date +%s)
kill -TERM $process
wait $process
check "SIGTERM while the latents are measured: exit code 143" test $? -eq 143
check "  within seconds" test $(($(date +%s) - before)) -le 10
check "  both saves are done" test "$(grep -c '^saved' out)" -eq 2
expect "  and the same command goes on" 0 '' train -out measuring -steps $steps -change 1
check "  with the same bytes as one run" cmp whole/stage1.safetensors measuring/stage1.safetensors

# a slow disk: each flush takes four seconds
cat >slow.c <<'END'
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int fsync(int file) {
    struct timespec left = {4, 0};
    while (nanosleep(&left, &left)) {}
    return (int)syscall(SYS_fsync, file);
}
END
# slow_run OUT SIGNAL: a run that gets a signal, and the same again three seconds later, while it writes
slow_run() {
    (
        export LD_PRELOAD="$work/slow.so" ASAN_OPTIONS="$ASAN_OPTIONS:verify_asan_link_order=0"
        # shellcheck disable=SC2086
        exec "$build/train_tokenizer" -data shapes $nano -out "$1" -steps $steps -log_every 1 >out 2>said
    ) &
    process=$!
    wait_for "$process" test -s "$1/stage1.jsonl"
    kill "-$2" $process
    sleep 3
    kill "-$2" $process
    wait $process
}
if ${CC:-gcc} -shared -fPIC slow.c -o slow.so 2>/dev/null; then
    slow_run slow TERM
    check "two SIGTERMs on a slow disk: exit code 143" test $? -eq 143
    check "  the run is saved, and the time that it took is said" \
        grep -Eq "^saved +slow/stage1.safetensors at step [0-9]+: [0-9.]+ MiB in [4-9][0-9.]* s, after" out
    check "  what more signals do is said, once" \
        test "$(grep -c '^stopping: .* a second Ctrl-C ends this at once$' said)" -eq 1
    expect "  and goes on" 0 '' train -out slow -steps $steps -log_every 1
    check "  with the same bytes as one run" cmp whole/stage1.safetensors slow/stage1.safetensors
    slow_run hasty INT
    check "a second Ctrl-C ends at once: exit code 130" test $? -eq 130
    check "  and nothing is saved" test ! -e hasty/stage1.safetensors
fi

expect "a finished stage says so" 0 '' train -out whole -steps $steps
check "and how it goes on" grep -q 'stage 1 is complete (24 steps); -restart 1 trains it again, a larger -steps goes on' out
train -out longer -steps 12 >out 2>said
expect "a larger -steps goes on" 0 '' train -out longer -steps $steps
check "with the same bytes as one run" cmp whole/stage1.safetensors longer/stage1.safetensors

start -out busy -steps 2000
wait_for "$process" test -s busy/stage1.jsonl
expect "a second run in the same folder is refused" 1 'busy/stage1.jsonl is being written by another run' train -out busy -steps 2000
kill -9 "$process"
wait "$process" 2>/dev/null

train -out leftover -steps 12 >out 2>said
head -c 1000 whole/stage1.safetensors >leftover/stage1.safetensors.tmp
expect "a leftover temporary file does no harm" 0 '' train -out leftover -steps $steps
check "the same bytes" cmp whole/stage1.safetensors leftover/stage1.safetensors
check "and it is gone" test ! -e leftover/stage1.safetensors.tmp

# refused NAME PATTERN SOURCE FLAGS...: SOURCE as the checkpoint of stage 1 in a folder: refused, and left alone
refused() {
    name=$1
    pattern=$2
    mkdir -p refused
    cp "$3" refused/stage1.safetensors
    cp "$3" before
    shift 3
    expect "$name" 1 "$pattern" train -out refused -steps $steps "$@"
    check "  and it stays as it was" cmp before refused/stage1.safetensors
    check "  with nothing beside it" test "$(ls refused)" = stage1.safetensors
}
head -c 100000 whole/stage1.safetensors >torn
head -c 4 whole/stage1.safetensors >stub
: >empty
refused "a torn checkpoint" 'refused/stage1.safetensors: .*truncated.*-restart 1' torn
refused "a checkpoint of four bytes" 'refused/stage1.safetensors: .*4 bytes.*-restart 1' stub
refused "an empty checkpoint" 'refused/stage1.safetensors: the file is empty.*-restart 1' empty
refused "a torn checkpoint at the start of stage 2" 'refused/stage1.safetensors: .*truncated' torn -stage 2
refused "the checkpoint of another stage" 'refused/stage1.safetensors is a checkpoint of stage 2, not 1' whole/stage2.safetensors
refused "a file that is no checkpoint" 'stage1.safetensors: not a tokenizer checkpoint: its metadata field "format"' \
    world/encoder.safetensors
refused "other flags" 'made with other settings' whole/stage1.safetensors -lr 0.5 -seed 7
check "each flag with both values" grep -Eq -e '^-lr: saved 1e-3, given 0.5$' said
check "the seed too" grep -q -e '^-seed: saved 1, given 7$' said
cp whole/stage1.safetensors refused/
expect "-change 1 resumes with other flags" 0 '' train -out refused -steps 26 -lr 1e-4 -change 1
check "  from where the run was" grep -Eq '^resume .* at step 24$' out
cp torn refused/stage1.safetensors
expect "-restart 1 begins again over a torn checkpoint" 0 '' train -out refused -steps $steps -restart 1
check "  with the same bytes as at first" cmp whole/stage1.safetensors refused/stage1.safetensors
finish
