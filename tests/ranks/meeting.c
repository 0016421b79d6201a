// meeting.c: one process of several that meet by common/training/rendezvous.h, and how it ends. tests/test_comm.sh
// starts them, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
//
// Usage: meeting TIME_LIMIT WHAT
//     WHAT  close     meet, say what rank 0 has sent, part
//           fatal     meet, then end with an error
//           wait      meet, then wait to be ended
//           leave     meet, then exit without parting
//           knock     connect to rank 0's port, say something else, go
//           read      say what the environment tells, and meet nobody
#include "common/training/rendezvous.h"

int main(int argc, char** argv) {
    if (argc < 3) fatal("usage: meeting TIME_LIMIT WHAT");
    const char* what = argv[2];
    launcher_t l = launcher_read();
    if (!strcmp(what, "read")) {
        printf("%s rank %d of %d, local %d of %d, at %s:%d\ncores %d\n", l.name ? l.name : "alone", l.rank, l.size,
               l.local_rank, l.local_size, l.address, l.port, machine_cores(l.local_size));
        return 0;
    }
    if (!strcmp(what, "knock")) {
        double begin = clock_seconds();
        int connection = rendezvous_connect(&l, begin, atof(argv[1]));
        return !rendezvous_send(connection, "GET / HTTP/1.0\r\n\r\n", 18, begin + 5);
    }
    log_rank = l.rank;
    log_size = l.size;
    char id[128];
    for (int i = 0; i < 128; i++) id[i] = l.rank == 0 ? (char)(i * 5 + 3) : 0;
    rendezvous_t r;
    rendezvous_open(&r, &l, atof(argv[1]), id, sizeof id);
    rendezvous_watch(&r, NULL, NULL);
    for (int i = 0; i < 128; i++) {
        if (id[i] != (char)(i * 5 + 3)) fatal("byte %d of rank 0's is wrong", i);
    }
    printf("rank %d has the bytes\n", l.rank);
    fflush(stdout);
    if (!strcmp(what, "fatal")) fatal("a NaN, say");
    if (!strcmp(what, "wait")) sleep(60);
    if (!strcmp(what, "leave")) return 0;
    rendezvous_close(&r);
    return 0;
}
