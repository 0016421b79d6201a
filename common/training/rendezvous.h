// rendezvous.h: how the processes of one run find each other, and how each notices that another has ended.
//
// A launcher (torchrun, srun, mpirun) starts one process a GPU and tells each by environment variables who it is: its
// rank, how many there are, where rank 0 is. launcher_read reads them. The processes then need some bytes in common
// that rank 0 makes up (NCCL's unique id, of which NCCL builds its own connections):
//
//   rank 0     listens at its address and port; when all others have come, it answers each with the bytes
//   rank k     connects, again and again until rank 0 is there; says who it is; waits for the answer
//
// These connections then stay open, and nothing travels on them. When a process ends, however it ends, its machine
// closes them. So a thread of each process watches them, and an end without a goodbye ends this process too, with a
// message, within a tenth of a second; NCCL alone would wait for ever for a rank that was killed. The star goes through
// rank 0, which knows every process by name and tells the others who it was:
//
//   rank 2 is killed  ->  rank 0 sees its connection close, says so, tells ranks 1 and 3, ends  ->  they say so, end
//   rank 2 has an error  ->  fatal() tells rank 0 before it ends the process, and so on
//
// A machine that loses power closes nothing: TCP's keep-alive notices that within half a minute.
// Look next at common/cuda/comm.cuh, which uses this; processes of the CPU build are started and watched by MPI.
#pragma once
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

// defines: clock_seconds
#include "common/program/clock.h"
// defines: fatal, warn, malloc_check, log_on_fatal
#include "common/program/log.h"

// ---------------------------------------------------------------------------------------------------------------------
// Who am I

typedef struct {
    const char* name;         // "torchrun", "mpirun", "srun"; NULL: this process was started alone
    int rank, size;           // this process, of how many
    int local_rank;           // its number on its machine, among the GPUs that it sees
    int local_size;           // processes of the run on this machine
    char address[256];        // of rank 0; empty where the environment does not tell
    int port;
} launcher_t;

// A number in the environment, or `missing` where the variable is not set.
static inline int launcher_number(const char* name, int missing) {
    const char* text = getenv(name);
    if (!text || !*text) return missing;
    char* end = NULL;
    long value = strtol(text, &end, 10);
    if (*end || value < 0 || value > 1 << 20) {
        fatal(
            "the environment variable %s is \"%s\", wanted a number. Launchers set it (torchrun, srun, mpirun); to "
            "run a single process, unset it",
            name, text);
    }
    return (int)value;
}

// The first machine of a list as Slurm writes them: "gpu[001-004,007],login2" begins with gpu001, "r[1-2]n[07,9]" with
// r1n07.
static inline void launcher_first_host(char* host, size_t size, const char* list) {
    size_t n = 0;
    for (const char* c = list; *c && *c != ','; c++) {
        if (*c == '[') { // the first number in it, then what stands behind
            for (c++; *c && !strchr("-,]", *c); c++) {
                if (n + 1 < size) host[n++] = *c;
            }
            while (*c && *c != ']') c++;
            if (!*c) break;
        } else if (n + 1 < size) {
            host[n++] = *c;
        }
    }
    host[n] = 0;
}

// Where rank 0 is reached. Without MASTER_ADDR: this machine, where all processes are on it; else, under Slurm, the
// first machine of the step, which may be another one than srun was called on.
static inline void launcher_address(launcher_t* l) {
    const char* address = getenv("MASTER_ADDR");
    const char* nodes = getenv("SLURM_STEP_NODELIST");
    if (!nodes) nodes = getenv("SLURM_JOB_NODELIST");
    if (address) snprintf(l->address, sizeof l->address, "%s", address);
    else if (l->local_size == l->size) snprintf(l->address, sizeof l->address, "127.0.0.1");
    else if (!strcmp(l->name, "srun") && nodes) launcher_first_host(l->address, sizeof l->address, nodes);
    int job = launcher_number("SLURM_JOB_ID", 0) % 1000; // jobs that share a machine need a port each
    l->port = launcher_number("MASTER_PORT", 29500 + job);
    const char* agent = getenv("TORCHELASTIC_USE_AGENT_STORE");
    if (agent && !strcmp(agent, "True")) l->port++; // torchrun itself listens at MASTER_PORT
}

// How many processes share this machine. Slurm says how many tasks a machine has, "8(x2),4", or on how many machines
// the step is.
static inline int launcher_local_size(const launcher_t* l, const char* variable) {
    if (strcmp(l->name, "srun")) return launcher_number(variable, 1);
    if (launcher_number("SLURM_STEP_NUM_NODES", 0) == 1) return l->size;
    const char* tasks = getenv(variable);
    int size = tasks ? atoi(tasks) : 0;
    return size > 0 ? size : 1;
}

// A batch script, a shell in an allocation and what they start are no tasks of srun, though they have most of its
// variables: only a step has a number of tasks.
static inline launcher_t launcher_read(void) {
    static const struct { const char *name, *rank, *size, *local_rank, *local_size; } known[4] = {
        {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"},
        {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
         "OMPI_COMM_WORLD_LOCAL_SIZE"},
        {"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"},
        {"mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"}, // MPICH's
    };
    launcher_t l = {NULL, 0, 1, 0, 1, "", 0};
    for (int i = 0; i < 4; i++) {
        int size = launcher_number(known[i].size, 0), rank = launcher_number(known[i].rank, -1);
        if (size == 0 || (rank < 0 && i >= 2)) continue;
        if (size == 1) return l;
        if (rank < 0 || rank >= size) {
            fatal(
                "the environment has %s=%d, and %s is %s; it must be 0 to %d, another in each process. A launcher "
                "sets both (torchrun, srun, mpirun); to run a single process, unset both",
                known[i].size, size, known[i].rank, getenv(known[i].rank) ? getenv(known[i].rank) : "not set",
                size - 1);
        }
        l.name = known[i].name;
        l.rank = rank;
        l.size = size;
        l.local_rank = launcher_number(known[i].local_rank, rank);
        l.local_size = launcher_local_size(&l, known[i].local_size);
        const char* visible = getenv("CUDA_VISIBLE_DEVICES");
        if (visible && *visible && !strchr(visible, ',')) l.local_rank = 0; // each process sees its own GPU alone
        launcher_address(&l);
        return l;
    }
    return l;
}

// The cores of a process that may use `mine`, where `local_size` processes of the run share `all`: those that it is
// bound to, or its part of those that all may use.
static inline int machine_share(int mine, int all, int local_size) {
    int cores = mine <= all / local_size ? mine : mine / local_size;
    return cores > 0 ? cores : 1;
}

// The cores that the CPU quota of a control group is worth, rounded up; 0: it has none. Version 2 has cpu.max, "250000
// 100000" or "max 100000": microseconds of work in each so many; version 1 a file for each number, and -1 for no quota.
static inline int machine_quota(const char* group) {
    static const char* const names[3] = {"cpu.max", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"};
    long long work = -1, period = 0;
    for (int i = 0; i < 3; i++) {
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", group, names[i]);
        FILE* file = fopen(path, "r");
        if (!file) continue;
        int read = i == 0 ? fscanf(file, "%lld %lld", &work, &period) : fscanf(file, "%lld", i == 1 ? &work : &period);
        fclose(file);
        if (read < 1) return 0;
    }
    return work > 0 && period > 0 ? (int)((work + period - 1) / period) : 0;
}

// The cores that Slurm has given to this process, which may be bound to none; 0: it does not say. In a step those of
// its task, which torchrun's processes share; else its part of the job's on a machine, of "64(x2),32" the most.
static inline int machine_slurm(int local_size) {
    int task = launcher_number("SLURM_CPUS_PER_TASK", 0), most = 0;
    if (task && getenv("SLURM_STEP_NUM_TASKS")) most = getenv("LOCAL_WORLD_SIZE") ? task : task * local_size;
    const char* list = most ? NULL : getenv("SLURM_JOB_CPUS_PER_NODE");
    for (; list; list = strchr(list, ',')) {
        list += *list == ',';
        if (atoi(list) > most) most = atoi(list);
    }
    return most > 0 && most < local_size ? 1 : most / local_size;
}

// Of `cores` those that the quota of `group` and Slurm leave to one of `local_size` processes.
static inline int machine_bounded(int cores, const char* group, int local_size) {
    int quota = machine_quota(group), slurm = machine_slurm(local_size);
    if (quota && quota / local_size < cores) cores = quota / local_size;
    if (slurm && slurm < cores) cores = slurm;
    return cores > 0 ? cores : 1;
}

// The cores that this process may keep busy. Not OMP_NUM_THREADS, which torchrun sets to 1. torchrun binds nobody: its
// processes share the cores that it has itself, which in a job are a part of the machine's.
static inline int machine_cores(int local_size) {
    cpu_set_t set;
    int all = (int)sysconf(_SC_NPROCESSORS_ONLN), mine = all;
    if (!sched_getaffinity(0, sizeof set, &set)) mine = CPU_COUNT(&set);
    if (getenv("LOCAL_WORLD_SIZE") && !sched_getaffinity(getppid(), sizeof set, &set)) all = CPU_COUNT(&set);
    return machine_bounded(machine_share(mine, all, local_size), "/sys/fs/cgroup", local_size); // a container's own
}

// ---------------------------------------------------------------------------------------------------------------------
// What travels

typedef enum { ENDED_WELL, ENDED_WITH_MESSAGE, ENDED_SILENTLY } rendezvous_end_t;

#define RENDEZVOUS_MAGIC "aligntk1" // others may knock at a port

// Rank k to rank 0.
typedef struct { char magic[8]; int32_t rank, size; char who[96]; } rendezvous_hello_t;
// Rank 0 to rank k, and `bytes` bytes behind it: those that all shall have, or the reason why it is not welcome.
typedef struct { char magic[8]; int32_t welcome, bytes; } rendezvous_answer_t;
// Later, either way: who has ended, and how.
typedef struct { int32_t rank, how; char who[96]; } rendezvous_notice_t;

typedef struct {
    int rank, size;
    int* connection;           // (size) rank 0: to each of the others; rank k: [0], to rank 0. -1: none
    char (*who)[96];           // (size) rank 0: "process 4711 on node3"
    pthread_t watcher;
    int watching, stop;
    void (*check)(void*);      // the watcher calls it ten times a second
    void* context;
    rendezvous_notice_t ended; // whose end has reached this process; rank -1: nobody's
} rendezvous_t;

#define RENDEZVOUS_NOTE_AFTER 10.0 // seconds of waiting that are worth a line

// Sends or receives exactly `bytes` bytes. Returns 0, and errno says why, when the connection ends or the time is up
// (`deadline`, on clock_seconds).
static inline int rendezvous_transfer(int connection, void* data, size_t bytes, double deadline, int sending) {
    char* p = (char*)data;
    while (bytes) {
        double left = deadline - clock_seconds();
        if (left <= 0) {
            errno = ETIMEDOUT;
            return 0;
        }
        struct pollfd wait = {connection, (short)(sending ? POLLOUT : POLLIN), 0};
        if (poll(&wait, 1, left < 1000 ? (int)(1000 * left) + 1 : 1000000) == 0) continue;
        ssize_t n = sending ? send(connection, p, bytes, MSG_NOSIGNAL | MSG_DONTWAIT)
                            : recv(connection, p, bytes, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        if (n == 0) errno = ECONNRESET;
        if (n <= 0) return 0;
        p += n;
        bytes -= (size_t)n;
    }
    return 1;
}
static inline int rendezvous_send(int connection, const void* data, size_t bytes, double deadline) {
    return rendezvous_transfer(connection, (void*)data, bytes, deadline, 1);
}
static inline int rendezvous_receive(int connection, void* data, size_t bytes, double deadline) {
    return rendezvous_transfer(connection, data, bytes, deadline, 0);
}

// A connection of a run: small messages at once, and a lost machine noticed after 10 + 3 * 5 seconds.
static inline void rendezvous_set_options(int connection) {
    int yes = 1, idle = 10, every = 5, probes = 3;
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    setsockopt(connection, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof yes);
    setsockopt(connection, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(connection, IPPROTO_TCP, TCP_KEEPINTVL, &every, sizeof every);
    setsockopt(connection, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
}

static inline void rendezvous_answer(int connection, int welcome, const void* data, size_t bytes) {
    rendezvous_answer_t answer = {"", welcome, (int32_t)bytes};
    memcpy(answer.magic, RENDEZVOUS_MAGIC, sizeof answer.magic);
    double deadline = clock_seconds() + 5;
    if (rendezvous_send(connection, &answer, sizeof answer, deadline))
        rendezvous_send(connection, data, bytes, deadline);
}

// ---------------------------------------------------------------------------------------------------------------------
// Rank 0

// A socket that listens: on all interfaces of the machine, or inside it where the address says so. IPv6 takes IPv4 too.
static inline int rendezvous_listen(const launcher_t* l) {
    int inside = !strncmp(l->address, "127.", 4) || !strcmp(l->address, "localhost") || !strcmp(l->address, "::1");
    struct addrinfo hints, *list = NULL;
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_PASSIVE;
    char port[16];
    snprintf(port, sizeof port, "%d", l->port);
    int found = getaddrinfo(inside ? l->address : NULL, port, &hints, &list), problem = EADDRNOTAVAIL;
    if (found) fatal("rank 0 cannot listen at %s:%d: %s", l->address, l->port, gai_strerror(found));
    for (int round = 0; round < 2; round++) {
        for (struct addrinfo* a = list; a; a = a->ai_next) {
            if (a->ai_family != (round ? AF_INET : AF_INET6)) continue;
            int listener = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1, no = 0;
            if (listener < 0) continue;
            setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes); // a run before has just ended
            if (round == 0) setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
            if (!bind(listener, a->ai_addr, a->ai_addrlen) && !listen(listener, 1024)) {
                freeaddrinfo(list);
                return listener;
            }
            problem = errno;
            close(listener);
        }
    }
    fatal(
        "rank 0 cannot listen at port %d: %s. If another run uses it, give this one its own: MASTER_PORT, the same "
        "for all ranks",
        l->port, strerror(problem));
}

// The ranks that have not come, as text: "2, 3".
static inline const char* rendezvous_missing(const rendezvous_t* r, char* text, size_t size) {
    size_t used = 0;
    text[0] = 0;
    for (int k = 1; k < r->size && used + 16 < size; k++) {
        if (r->connection[k] < 0) used += (size_t)snprintf(text + used, size - used, "%s%d", used ? ", " : "", k);
    }
    return text;
}

// Ends rank 0, and tells those that have come, and the one at `stranger` if any, why.
static inline void rendezvous_refuse(const rendezvous_t* r, int stranger, const char* why) {
    for (int k = 1; k < r->size; k++) {
        if (r->connection[k] >= 0) rendezvous_answer(r->connection[k], 0, why, strlen(why));
    }
    if (stranger >= 0) rendezvous_answer(stranger, 0, why, strlen(why));
    fatal("%s", why);
}

// Those that have come must stay until all are there.
static inline void rendezvous_check_present(const rendezvous_t* r) {
    for (int k = 1; k < r->size; k++) {
        char byte, why[256];
        if (r->connection[k] < 0 || recv(r->connection[k], &byte, 1, MSG_PEEK | MSG_DONTWAIT) != 0) continue;
        snprintf(why, sizeof why, "rank %d (%s) has ended while others were still to come; look at what it printed", k,
                 r->who[k]);
        rendezvous_refuse(r, -1, why);
    }
}

// One that has connected says who it is. What does not speak our language is let go.
static inline void rendezvous_greet(rendezvous_t* r, int connection) {
    rendezvous_hello_t hello;
    if (!rendezvous_receive(connection, &hello, sizeof hello, clock_seconds() + 2) ||
        memcmp(hello.magic, RENDEZVOUS_MAGIC, sizeof hello.magic)) {
        close(connection);
        return;
    }
    hello.who[sizeof hello.who - 1] = 0;
    char why[512] = "";
    if (hello.size != r->size || hello.rank < 1 || hello.rank >= r->size) {
        snprintf(why, sizeof why,
                 "%s came as rank %d of %d, while rank 0 was started as one of %d processes: start all with the same "
                 "WORLD_SIZE and their own RANK",
                 hello.who, hello.rank, hello.size, r->size);
    } else if (r->connection[hello.rank] >= 0) {
        snprintf(why, sizeof why,
                 "two processes say that they are rank %d: %s and %s. Each needs its own RANK; if two runs share this "
                 "machine, give each its own MASTER_PORT",
                 hello.rank, r->who[hello.rank], hello.who);
    }
    if (why[0]) rendezvous_refuse(r, connection, why);
    rendezvous_set_options(connection);
    r->connection[hello.rank] = connection;
    memcpy(r->who[hello.rank], hello.who, sizeof hello.who);
}

static inline void rendezvous_gather(rendezvous_t* r, const launcher_t* l, double time_limit, const void* data,
                                     size_t bytes) {
    int listener = rendezvous_listen(l), noted = 0;
    double begin = clock_seconds();
    char missing[256], why[768];
    while (*rendezvous_missing(r, missing, sizeof missing)) {
        double waited = clock_seconds() - begin;
        if (waited > time_limit) {
            snprintf(
                why, sizeof why,
                "rank 0 has waited at %s:%d (MASTER_ADDR, MASTER_PORT) for %g s, and of %d processes these ranks have "
                "not come: %s. Look at what they printed: they ended, were not started, or cannot reach this machine",
                l->address, l->port, time_limit, r->size, missing);
            rendezvous_refuse(r, -1, why);
        }
        if (!noted && waited > RENDEZVOUS_NOTE_AFTER) {
            warn("waiting at %s:%d for ranks %s. (To run a single process, set WORLD_SIZE=1)", l->address, l->port,
                 missing);
            noted = 1;
        }
        rendezvous_check_present(r);
        struct pollfd wait = {listener, POLLIN, 0};
        if (poll(&wait, 1, 100) < 1) continue;
        int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (connection >= 0) rendezvous_greet(r, connection);
    }
    close(listener);
    for (int k = 1; k < r->size; k++) rendezvous_answer(r->connection[k], 1, data, bytes);
}

// ---------------------------------------------------------------------------------------------------------------------
// The others

// One try. Returns the connection, or -1 and what was in the way.
static inline int rendezvous_try(const launcher_t* l, const char** problem) {
    struct addrinfo hints, *list = NULL;
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    char port[16];
    snprintf(port, sizeof port, "%d", l->port);
    int found = getaddrinfo(l->address, port, &hints, &list), connection = -1;
    if (found) *problem = gai_strerror(found);
    for (struct addrinfo* a = found ? NULL : list; a && connection < 0; a = a->ai_next) {
        connection = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        int error = connection < 0 ? errno : 0;
        socklen_t size = sizeof error;
        if (connection >= 0 && connect(connection, a->ai_addr, a->ai_addrlen)) {
            struct pollfd wait = {connection, POLLOUT, 0};
            if (errno != EINPROGRESS) error = errno;
            else if (poll(&wait, 1, 5000) < 1) error = ETIMEDOUT;
            else getsockopt(connection, SOL_SOCKET, SO_ERROR, &error, &size);
        }
        if (!error) break;
        *problem = strerror(error);
        if (connection >= 0) close(connection);
        connection = -1;
    }
    if (!found) freeaddrinfo(list);
    return connection;
}

// Connects as soon as rank 0 listens.
static inline int rendezvous_connect(const launcher_t* l, double begin, double time_limit) {
    int noted = 0;
    useconds_t pause = 20000;
    while (1) {
        const char* problem = "no answer";
        int connection = rendezvous_try(l, &problem);
        if (connection >= 0) return connection;
        double waited = clock_seconds() - begin;
        if (waited > time_limit) {
            fatal("rank %d finds no rank 0 at %s:%d (MASTER_ADDR, MASTER_PORT) within %g s: %s. Check that rank 0 is "
                  "running there, and that no firewall closes the port",
                  l->rank, l->address, l->port, time_limit, problem);
        }
        if (!noted && waited > RENDEZVOUS_NOTE_AFTER) {
            warn("waiting for rank 0 at %s:%d: %s", l->address, l->port, problem);
            noted = 1;
        }
        usleep(pause);
        if (pause < 500000) pause *= 2;
    }
}

// Says who this is, and receives the answer. Returns 0 when what listens there breaks off: it is not rank 0, or has
// ended.
static inline int rendezvous_introduce(int connection, const launcher_t* l, double deadline, void* data, size_t bytes) {
    rendezvous_hello_t hello;
    memset(&hello, 0, sizeof hello);
    memcpy(hello.magic, RENDEZVOUS_MAGIC, sizeof hello.magic);
    hello.rank = l->rank;
    hello.size = l->size;
    char machine[64] = "?";
    gethostname(machine, sizeof machine - 1);
    snprintf(hello.who, sizeof hello.who, "process %d on %s", (int)getpid(), machine);
    rendezvous_answer_t answer;
    char why[1024] = "";
    if (!rendezvous_send(connection, &hello, sizeof hello, deadline)) return 0;
    if (!rendezvous_receive(connection, &answer, sizeof answer, deadline)) return 0;
    if (memcmp(answer.magic, RENDEZVOUS_MAGIC, sizeof answer.magic) || answer.bytes < 0) return 0;
    if (answer.welcome) return (size_t)answer.bytes == bytes && rendezvous_receive(connection, data, bytes, deadline);
    if ((size_t)answer.bytes >= sizeof why || !rendezvous_receive(connection, why, (size_t)answer.bytes, deadline))
        return 0;
    fatal("rank 0 at %s:%d calls the run off: %s", l->address, l->port, why);
}

// ---------------------------------------------------------------------------------------------------------------------
// All together

// Returns when all ranks are connected and have rank 0's `bytes` bytes in `data`, or ends the process with a message
// after `time_limit` seconds.
static inline void rendezvous_open(rendezvous_t* r, const launcher_t* l, double time_limit, void* data, size_t bytes) {
    memset(r, 0, sizeof *r);
    r->rank = l->rank;
    r->size = l->size;
    r->ended.rank = -1;
    r->connection = (int*)malloc_check((size_t)r->size * sizeof(int), "connections");
    r->who = (char(*)[96])calloc_check((size_t)r->size, sizeof *r->who, "connections");
    for (int k = 0; k < r->size; k++) r->connection[k] = -1;
    if (!l->address[0]) {
        fatal("rank %d of %d does not know where rank 0 is: set MASTER_ADDR to the name or address of its machine "
              "(127.0.0.1 where all processes are on one machine)",
              l->rank, l->size);
    }
    if (r->rank == 0) {
        rendezvous_gather(r, l, time_limit, data, bytes);
        return;
    }
    snprintf(r->who[0], sizeof r->who[0], "at %.80s:%d", l->address, l->port);
    double begin = clock_seconds(), patience = 10; // rank 0, which can name those that are missing, shall speak first
    do {
        int connection = rendezvous_connect(l, begin, time_limit);
        rendezvous_set_options(connection);
        if (rendezvous_introduce(connection, l, begin + time_limit + patience, data, bytes)) {
            r->connection[0] = connection;
            return;
        }
        close(connection);
        usleep(200000);
    } while (clock_seconds() - begin < time_limit);
    fatal("rank %d reaches %s:%d (MASTER_ADDR, MASTER_PORT), but has no answer of a rank 0 within %g s. Rank 0 ended "
          "before all had come, or another program listens there: then set another MASTER_PORT, the same for all ranks",
          l->rank, l->address, l->port, time_limit);
}

// Sends a notice to all that are connected.
static inline void rendezvous_tell(rendezvous_t* r, rendezvous_notice_t notice) {
    for (int k = 0; k < r->size; k++) {
        if (r->connection[k] >= 0) rendezvous_send(r->connection[k], &notice, sizeof notice, clock_seconds() + 1);
    }
}

static rendezvous_t* rendezvous_watched; // for rendezvous_abort, which fatal() calls

// Tells the others that this process ends. It ends at once: exit() would wait for kernels on the GPU that wait for the
// other ranks.
static inline void rendezvous_abort(void) {
    rendezvous_notice_t notice = {rendezvous_watched->rank, ENDED_WITH_MESSAGE, ""};
    __atomic_store_n(&rendezvous_watched->stop, 1, __ATOMIC_RELEASE); // what others do now follows from this
    rendezvous_tell(rendezvous_watched, rendezvous_watched->ended.rank >= 0 ? rendezvous_watched->ended : notice);
    _exit(1);
}

// Rank 0 hears from rank k, rank k from rank 0: the sender's own end, or that of a third which rank 0 has noticed.
static inline void rendezvous_hear(rendezvous_t* r, int k) {
    rendezvous_notice_t notice;
    memset(&notice, 0, sizeof notice);
    if (!rendezvous_receive(r->connection[k], &notice, sizeof notice, clock_seconds() + 1)) {
        notice.rank = k;
        notice.how = ENDED_SILENTLY;
    }
    if (__atomic_load_n(&r->stop, __ATOMIC_ACQUIRE)) return; // this process ends itself
    if (notice.rank == k) memcpy(notice.who, r->who[k], sizeof notice.who);
    notice.who[sizeof notice.who - 1] = 0;
    if (notice.rank == k) { // it is gone
        close(r->connection[k]);
        r->connection[k] = -1;
    }
    if (notice.how == ENDED_WELL) return;
    r->ended = notice;
    if (log_alike && notice.rank == 0 && notice.how == ENDED_WITH_MESSAGE) _exit(1); // it has said it
    log_alike = 0;
    if (notice.how == ENDED_WITH_MESSAGE) {
        fatal("rank %d (%s) has ended with an error, which it has printed; so this one ends too", notice.rank,
              notice.who);
    }
    fatal(
        "rank %d (%s) has ended without a message, so this one ends too. It was killed, or crashed: look for its last "
        "lines, and for \"out of memory\" in dmesg or the scheduler's log of its machine",
        notice.rank, notice.who);
}

static inline void* rendezvous_watch_thread(void* argument) {
    rendezvous_t* r = (rendezvous_t*)argument;
    struct pollfd* wait = (struct pollfd*)malloc_check((size_t)r->size * sizeof *wait, "connections");
    while (!__atomic_load_n(&r->stop, __ATOMIC_ACQUIRE)) {
        for (int k = 0; k < r->size; k++) {
            struct pollfd one = {r->connection[k], POLLIN, 0}; // poll passes over what is negative
            wait[k] = one;
        }
        if (poll(wait, (nfds_t)r->size, 100) > 0) {
            for (int k = 0; k < r->size; k++) {
                if (wait[k].fd >= 0 && wait[k].revents) rendezvous_hear(r, k);
            }
        }
        if (r->check) r->check(r->context);
    }
    free(wait);
    return NULL;
}

// From here on the end of one process ends all. `check`, or NULL, is called ten times a second.
static inline void rendezvous_watch(rendezvous_t* r, void (*check)(void*), void* context) {
    r->check = check;
    r->context = context;
    rendezvous_watched = r;
    log_on_fatal = rendezvous_abort;
    if (pthread_create(&r->watcher, NULL, rendezvous_watch_thread, r))
        fatal("cannot start the thread that watches the ranks");
    r->watching = 1;
}

// This process leaves the run in peace.
static inline void rendezvous_close(rendezvous_t* r) {
    if (r->watching) {
        log_on_fatal = NULL;
        __atomic_store_n(&r->stop, 1, __ATOMIC_RELEASE);
        pthread_join(r->watcher, NULL);
        rendezvous_notice_t goodbye = {r->rank, ENDED_WELL, ""};
        rendezvous_tell(r, goodbye);
    }
    for (int k = 0; k < r->size; k++) {
        if (r->connection[k] >= 0) close(r->connection[k]);
    }
    free(r->connection);
    free(r->who);
    memset(r, 0, sizeof *r);
}
