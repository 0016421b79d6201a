// trouble.c: ranks that average again and again, until one of them does something it should not. tests/test_comm.sh
// looks at how the others end.
//
// Usage: trouble TIME_LIMIT alike    while options are checked all have the same error, rank 0 a second later
//        trouble TIME_LIMIT own      rank size - 1 has it alone
//        trouble TIME_LIMIT WHAT     what rank size - 1 does at its third step: fatal, kill, absent, leave, differ (in
//                                    the hash of its weights), late (it comes after the time limit to where that is
//                                    no mistake), or nothing
#include <signal.h>
#include <unistd.h>

#include "common/training/comm.h"

static void check_options(const comm_t* c, const char* what) {
    if (!strcmp(what, "own") && c->rank < c->size - 1) sleep(60);
    if (c->rank == 0) sleep(1);
    fatal("no batch for %d ranks, say", c->size);
}

int main(int argc, char** argv) {
    if (argc < 3) fatal("usage: trouble TIME_LIMIT WHAT");
    comm_t comm;
    memset(&comm, 0, sizeof comm);
    comm.time_limit = atof(argv[1]);
    const char* what = argv[2];
    int options = !strcmp(what, "alike") || !strcmp(what, "own");
    if (options) comm_options_begin(&comm);
    comm_open(&comm);
    if (options) check_options(&comm, what);
    stream_t s = device_open(0);
    comm_attach(&comm, s);
    floatS* values = (floatS*)device_malloc(1000 * sizeof(floatS), "test");
    device_zero(values, 1000 * sizeof(floatS), 0);
    for (int step = 0; step < 5; step++) {
        if (step == 3 && comm.rank == comm.size - 1) {
            if (!strcmp(what, "fatal")) fatal("step %d: a NaN, say", step);
            if (!strcmp(what, "kill")) raise(SIGKILL);
            if (!strcmp(what, "absent")) sleep(60);
            if (!strcmp(what, "leave")) _exit(0);
            if (!strcmp(what, "late")) sleep(4);
        }
        if (!strcmp(what, "late")) comm_wait_for_all(&comm);
        comm_mean(&comm, values, 1000, s);
        uint64_t hash = 0x123456789abcdefull + (!strcmp(what, "differ") && step == 3 && comm.rank == comm.size - 1);
        comm_check_same(&comm, hash, step);
        if (comm_any(&comm, 0)) fatal("no flag was set");
    }
    comm_close(&comm);
    device_free(values);
    device_close(s);
    return 0;
}
