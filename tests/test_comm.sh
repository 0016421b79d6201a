#!/bin/sh
# Several processes at once (common/training/comm.h): that they find each other, compute the same, and all end when one of them
# does. Programs: tests/ranks/*.c, built here. The collectives run over MPI for the CPU build, over MPI in the emulator,
# and as common/cuda/nccl.cuh with a stand-in for NCCL; where there is no MPI those parts are skipped. Usage: sh
# tests/test_comm.sh BUILD_FOLDER
set -u
[ $# -eq 1 ] && mkdir -p "$1/ranks" || { echo "usage: sh $0 BUILD_FOLDER" >&2; exit 1; }
bin=$(cd "$1/ranks" && pwd)
passed=0
failed=0
# mpirun: as root, more ranks than cores, each rank on any core, and no access to another process's memory (containers)
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_btl_vader_single_copy_mechanism=none
export ASAN_OPTIONS=detect_leaks=0 # MPI's own
work=$(mktemp -d "${TMPDIR:-/tmp}/aligntok_test_XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

ok() { echo "ok   $1"; passed=$((passed + 1)); }
fail() { echo "FAIL $1"; failed=$((failed + 1)); shift; [ $# -eq 0 ] || head -n 20 "$@"; }

# says NAME FILE PATTERN: a line of the file fits the extended regular expression
says() { if grep -Eq -e "$3" "$2"; then ok "$1"; else fail "$1: wanted /$3/" "$2"; fi; }

finish() { echo "$passed passed, $failed failed"; [ "$failed" -eq 0 ]; exit; }

# ---------------------------------------------------------------------------------------------------------------------
# Building

strict="-Wall -Wextra $([ "${WERROR:-0}" != 1 ] || echo -Werror) -D_GNU_SOURCE -I. -g"
strict="$strict -fsanitize=address -fsanitize=undefined -fno-sanitize-recover=all"
pieces="-DCOMM_PIECE=((size_t)1000) -DCOMM_BUCKET=((size_t)1000)" # small, so that small data take many
build_c() { ${CC:-gcc} -std=c11 $strict "$@" -lm -lpthread; }
build_emu() { ${CXX:-g++} -x c++ -std=c++20 $strict -DUSE_CUDA -DEMU "$@" -lm -lpthread; }

build_c tests/ranks/meeting.c -o "$bin/meeting" || { fail "the programs compile"; finish; }
kinds=""
if command -v mpicc >/dev/null 2>&1 && command -v mpirun >/dev/null 2>&1; then
    mpi="-DMPI=1 $(mpicc --showme:compile | sed 's/-I/-isystem /g')"
    libs=$(mpicc --showme:link)
    kinds="cpu"
    build_c $mpi $pieces tests/ranks/collectives.c -o "$bin/collectives_cpu" $libs &&
        build_c $mpi $pieces tests/ranks/trouble.c -o "$bin/trouble_cpu" $libs ||
        { fail "the programs compile with MPI"; finish; }
    if command -v "${CXX:-g++}" >/dev/null 2>&1; then
        kinds="cpu emu nccl"
        stand_in="-DCOMM_NCCL=1 -Itests/ranks/stand_in"
        build_emu $mpi $pieces tests/ranks/collectives.c -o "$bin/collectives_emu" -fopenmp $libs &&
            build_emu $mpi $pieces $stand_in tests/ranks/collectives.c -o "$bin/collectives_nccl" -fopenmp $libs &&
            build_emu $mpi $pieces $stand_in tests/ranks/trouble.c -o "$bin/trouble_nccl" -fopenmp $libs ||
            { fail "the programs compile with the emulator"; finish; }
    fi
else
    echo "skipped: the collectives need MPI (Debian, Ubuntu: apt-get install libopenmpi-dev openmpi-bin)"
fi

# ---------------------------------------------------------------------------------------------------------------------
# What launchers tell

# told NAME EXPECTED VARIABLE=VALUE...: how a process understands its environment
told() {
    name=$1
    expected=$2
    shift 2
    env -i "$@" "$bin/meeting" 1 read >"$work/said" 2>&1
    says "$name" "$work/said" "$expected"
}
told "no launcher" '^alone rank 0 of 1, local 0 of 1' A=1
told "a world of one needs no rank" '^alone rank 0 of 1, local 0' WORLD_SIZE=1 SLURM_PROCID=0 SLURM_NTASKS=4
told "torchrun" '^torchrun rank 9 of 16, local 1 of 8, at node7:1234$' RANK=9 WORLD_SIZE=16 LOCAL_RANK=1 LOCAL_WORLD_SIZE=8 \
    MASTER_ADDR=node7 MASTER_PORT=1234
told "torchrun, which listens at the port itself" ', at node7:1235$' RANK=9 WORLD_SIZE=16 LOCAL_RANK=1 \
    MASTER_ADDR=node7 MASTER_PORT=1234 TORCHELASTIC_USE_AGENT_STORE=True
told "mpirun on one machine" '^mpirun rank 3 of 4, local 3 of 4, at 127.0.0.1:29500$' OMPI_COMM_WORLD_RANK=3 \
    OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=3 OMPI_COMM_WORLD_LOCAL_SIZE=4
told "mpirun on several" '^mpirun rank 3 of 4, local 1 of 2, at :29500$' OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 \
    OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=2

# srun_told NAME EXPECTED VARIABLE=VALUE...: the same in a task of srun that was called on another machine
srun_told() {
    told "$@" SLURM_PROCID=5 SLURM_NTASKS=8 SLURM_STEP_NUM_TASKS=8 SLURM_LOCALID=1 SLURM_STEP_TASKS_PER_NODE='4(x2)' \
        SLURM_STEP_NUM_NODES=2 SLURM_LAUNCH_NODE_IPADDR=10.0.0.7 SLURM_JOB_ID=77042
}
srun_told "srun: rank 0 is on the step's first machine" '^srun rank 5 of 8, local 1 of 4, at gpu001:29542$' \
    'SLURM_STEP_NODELIST=gpu[001-004,007],login2' 'SLURM_JOB_NODELIST=gpu[000-007]'
srun_told "srun, the job's first machine" ', at r1n07:29542$' 'SLURM_JOB_NODELIST=r[1-2]n[07,9],gpu1'
srun_told "srun, machines without brackets" ', at node-7.cluster:29542$' SLURM_STEP_NODELIST=node-7.cluster,node-8.cluster
srun_told "srun, one machine" ', at login2:29542$' SLURM_STEP_NODELIST=login2
srun_told "srun, brackets that do not close" ', at gpu01:29542$' 'SLURM_STEP_NODELIST=gpu[01'
srun_told "srun, with an address given" ', at node7:29542$' 'SLURM_STEP_NODELIST=gpu[001-004]' MASTER_ADDR=node7
srun_told "srun, each task with a GPU of its own" '^srun rank 5 of 8, local 0 of 4,' CUDA_VISIBLE_DEVICES=1
told "srun, all on one machine" '^srun rank 1 of 4, local 1 of 4, at 127.0.0.1:29500$' SLURM_PROCID=1 SLURM_LOCALID=1 \
    SLURM_STEP_NUM_TASKS=4 SLURM_STEP_NUM_NODES=1 SLURM_STEP_NODELIST=gpu1
told "srun, a step of fewer tasks than its job" '^alone rank 0 of 1' SLURM_PROCID=0 SLURM_NTASKS=8 \
    SLURM_STEP_NUM_TASKS=1
told "a batch script" '^alone rank 0 of 1, local 0 of 1' SLURM_PROCID=0 SLURM_NTASKS=8 SLURM_LOCALID=0 SLURM_NODEID=0 \
    SLURM_JOB_ID=77042 'SLURM_JOB_NODELIST=gpu[001-002]'
told "torchrun in a batch script" '^torchrun rank 9 of 16, local 1 of 8, at node7:1234$' RANK=9 WORLD_SIZE=16 LOCAL_RANK=1 \
    LOCAL_WORLD_SIZE=8 MASTER_ADDR=node7 MASTER_PORT=1234 SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_JOB_ID=77042
told "MPICH's mpirun" '^mpirun rank 1 of 2, local 1 of 2, at 127.0.0.1:29500$' PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1 \
    MPI_LOCALNRANKS=2
told "a shell in a Slurm allocation" '^alone rank 0 of 1' SLURM_NTASKS=8 SLURM_JOB_ID=77042
cores=$(env -u OMP_NUM_THREADS nproc)
group=/sys/fs/cgroup
quota=$(cat $group/cpu.max 2>/dev/null || cat $group/cpu/cpu.cfs_quota_us $group/cpu/cpu.cfs_period_us 2>/dev/null)
# shellcheck disable=SC2086
quota=$(echo $quota | awk '$1 + 0 > 0 { print int(($1 + $2 - 1) / $2) }')
[ "${quota:-$cores}" -ge "$cores" ] || cores=$quota
told "all cores count: OMP_NUM_THREADS, which torchrun sets, does not" "^cores $cores\$" OMP_NUM_THREADS=1
told "cores are shared out between the processes of a machine" "^cores $((cores / 2 ? cores / 2 : 1))\$" RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 \
    LOCAL_WORLD_SIZE=2 OMP_NUM_THREADS=1
told "srun without binding: a task has the cores that it asked for" '^cores 1$' SLURM_PROCID=1 SLURM_LOCALID=1 \
    SLURM_STEP_NUM_TASKS=4 SLURM_STEP_NUM_NODES=1 SLURM_STEP_NODELIST=gpu1 SLURM_CPUS_PER_TASK=1
told "a size without a rank" '^error: .*WORLD_SIZE=2, and RANK is not set' WORLD_SIZE=2
told "a rank that is too large" '^error: .*WORLD_SIZE=2, and RANK is 2; it must be 0 to 1' WORLD_SIZE=2 RANK=2
told "a rank that is no number" '^error: .*RANK is "1x"' WORLD_SIZE=2 RANK=1x

# ---------------------------------------------------------------------------------------------------------------------
# Meeting

port=$((20000 + $$ % 9000))
# come RANK SIZE LIMIT WHAT: a process in the background; its output is in rank<RANK>
come() {
    env RANK="$1" WORLD_SIZE="$2" LOCAL_RANK="$1" MASTER_ADDR=127.0.0.1 MASTER_PORT=$port "$bin/meeting" "$3" "$4" \
        >"$work/rank$1" 2>&1 &
    last=$!
}
# all_end NAME SECONDS CODE PID...: the processes end in time, each with this code
all_end() {
    name=$1
    by=$(($(date +%s) + $2))
    code=$3
    shift 3
    for process in "$@"; do
        while kill -0 "$process" 2>/dev/null && [ "$(date +%s)" -le $by ]; do sleep 0.05; done
        kill -9 "$process" 2>/dev/null # nothing may be left
        wait "$process" 2>/dev/null
        status=$?
        [ $status -eq "$code" ] || { fail "$name: exit code $status, wanted $code" "$work"/rank?; return; }
    done
    ok "$name"
}
begin() { rm -f "$work"/rank?; port=$((port + 1)); }
met() {
    i=0
    while ! grep -q "has the bytes" "$work/rank$1" 2>/dev/null && [ $i -lt 100 ]; do i=$((i + 1)); sleep 0.05; done
}

begin
come 2 4 10 close; a=$last
come 1 4 10 close; b=$last
come 3 4 10 close; c=$last
sleep 0.5
come 0 4 10 close
all_end "four meet, rank 0 comes late" 5 0 $a $b $c $last
for i in 0 1 2 3; do says "rank $i has what rank 0 sent" "$work/rank$i" "^rank $i has the bytes"; done

begin
come 0 2 10 close; a=$last
come 7 8 10 knock; wait $last
sleep 0.2
come 1 2 10 close
all_end "a stranger at the port disturbs nobody" 5 0 $a $last

begin
come 0 3 1 close; a=$last
come 1 3 1 close
all_end "a rank does not come: the others end" 5 1 $a $last
says "rank 0 says which, and where it waited" "$work/rank0" "^error \(rank 0 of 3\): .*127.0.0.1:$port .*not come: 2\."
says "rank 1 hears it" "$work/rank1" '^error \(rank 1 of 3\): rank 0 at .*have not come: 2\.'

begin
come 1 2 1 close
all_end "rank 0 does not come: rank 1 ends" 5 1 $last
says "and says where it tried" "$work/rank1" "^error \(rank 1 of 2\): .* no rank 0 at 127.0.0.1:$port .*refused"

begin
come 0 2 5 close; a=$last
come 1 3 5 close
all_end "different sizes: both end" 4 1 $a $last
says "rank 0 says why" "$work/rank0" 'came as rank 1 of 3, while rank 0 was started as one of 2'
says "rank 1 too" "$work/rank1" 'came as rank 1 of 3, while rank 0 was started as one of 2'

begin
come 0 3 5 close; a=$last
come 1 3 5 close; b=$last
sleep 0.2
env RANK=1 WORLD_SIZE=3 MASTER_ADDR=127.0.0.1 MASTER_PORT=$port "$bin/meeting" 5 close >"$work/rank9" 2>&1 &
all_end "a rank comes twice: all end" 4 1 $a $b $!
says "and say which" "$work/rank1" 'two processes say that they are rank 1: process [0-9]+ on .* and process'

begin
come 0 2 5 close; a=$last
sleep 0.2
env RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=$port "$bin/meeting" 5 close >"$work/rank9" 2>&1
says "two runs at one port" "$work/rank9" "^error \(rank 0 of 2\): .*cannot listen at port $port: .*in use"
come 1 2 5 close
all_end "the first goes on" 4 0 $a $last

begin
come 0 3 20 close; a=$last
come 1 3 20 close; b=$last
sleep 0.3
kill -9 $b
wait $b 2>/dev/null
all_end "a rank is killed before all have come: rank 0 ends" 4 1 $a
says "and says which" "$work/rank0" 'rank 1 \(process [0-9]+ on .*\) has ended while others were still to come'

# ends_all NAME WHAT RANK MESSAGE: one of three that have met does something; the others end and name it
ends_all() {
    begin
    others=""
    for i in 0 1 2; do
        if [ $i -eq "$3" ]; then come $i 3 10 "$2"; one=$last; else come $i 3 10 wait; others="$others $last"; fi
    done
    met "$3"
    [ "$2" != wait ] || kill -9 $one
    wait $one 2>/dev/null
    all_end "$1" 3 1 $others
    for i in 0 1 2; do
        [ $i -eq "$3" ] || says "rank $i names it" "$work/rank$i" "^error \(rank $i of 3\): rank $3 \(.*\) $4"
    done
}
ends_all "rank 2 has an error: all end" fatal 2 'has ended with an error'
ends_all "rank 0 has an error: all end" fatal 0 'has ended with an error'
ends_all "rank 1 is killed: all end" wait 1 'has ended without a message'
ends_all "rank 0 is killed: all end" wait 0 'has ended without a message'
ends_all "rank 2 leaves: all end" leave 2 'has ended without a message'

# ---------------------------------------------------------------------------------------------------------------------
# The collectives

# collectives KIND RANKS [bf16]
collectives() {
    timeout 30 mpirun -np "$2" "$bin/collectives_$1" ${3:-} >"$work/said" 2>&1
    status=$?
    grep '^ok ' "$work/said" | sed "s/^ok  /ok   $1${3:+, $3}:/"
    p=$(sed -n 's/^\([0-9]*\) passed, 0 failed$/\1/p' "$work/said")
    if [ $status -eq 0 ] && [ -n "$p" ]; then passed=$((passed + p)); else fail "$1, $2 ranks ${3:-}" "$work/said"; fi
}
for kind in $kinds; do
    case $kind in
    cpu) for ranks in 1 2 3 4; do collectives cpu $ranks; done ;;
    *)
        for ranks in 1 4; do collectives $kind $ranks; done
        collectives $kind 3 bf16
        ;;
    esac
done

# threads NAME EXPECTED VARIABLE=VALUE...: threads on the host of two processes that torchrun would have started on two machines
threads() {
    name=$1
    expected=$2
    shift 2
    # shellcheck disable=SC2016
    timeout 30 mpirun -np 2 env "$@" LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 sh -c \
        'RANK=$OMPI_COMM_WORLD_RANK WORLD_SIZE=2 exec "$0" threads' "$bin/collectives_emu" >"$work/said" 2>&1
    if [ "$(grep -c "^threads $expected\$" "$work/said")" -eq 2 ]; then ok "$name"; else fail "$name" "$work/said"; fi
}
case $kinds in *emu*)
    threads "torchrun's OMP_NUM_THREADS=1 leaves no core idle" "$cores" OMP_NUM_THREADS=1
    threads "another number is obeyed" 3 OMP_NUM_THREADS=3
    ;;
esac

# trouble KIND WHAT CODE MESSAGE: one of four ranks does something, all end soon
trouble() {
    before=$(date +%s)
    timeout 20 mpirun -np 4 "$bin/trouble_$1" 2 "$2" >"$work/said" 2>&1
    status=$?
    took=$(($(date +%s) - before))
    if [ $status -eq "$3" ] && [ $took -le 10 ]; then ok "$1: $2: all end, after $took s"
    else fail "$1: $2: exit code $status, wanted $3; after $took s" "$work/said"; fi
    [ -z "$4" ] || says "$1: $2: and say why" "$work/said" "$4"
}
for kind in $kinds; do
    case $kind in
    cpu) killed='mpirun noticed that process rank 3 .* exited on signal 9' ;;
    nccl) killed='^error \(rank [012] of 4\): rank 3 \(process [0-9]+ on .*\) has ended without a message' ;;
    emu) continue ;; # the same as cpu
    esac
    trouble $kind nothing 0 ''
    trouble $kind fatal 1 '^error \(rank 3 of 4\): step 3: a NaN, say'
    trouble $kind kill 137 "$killed"
    trouble $kind late 0 ''
    trouble $kind differ 1 '^error \(rank 0 of 4\): step 3: the weights .* bits: rank 3 \([^)]+\) differs from the others'
    trouble $kind own 1 '^error \(rank 3 of 4\): no batch for 4 ranks, say'
    trouble $kind alike 1 '^error \(rank 0 of 4\): no batch for 4 ranks, say'
    if [ "$(grep -c '^error' "$work/said")" -eq 1 ]; then ok "$kind: alike: and say it once"
    else fail "$kind: alike: said more than once" "$work/said"; fi
    trouble $kind absent 1 '^error \(rank [012] of 4\): comm_mean \(collective [0-9]+, 4000 bytes\) has not ended'
done
finish
