// algorithms.h: which of cuBLASLt's algorithms a training run on a GPU computes its matrix products with.
//
// The library has several for each product, and which is the fastest is found by measuring (common/cuda/blas.cuh). They
// add up in different orders, so the choice is a part of what makes two runs the same bit for bit. It stands beside the
// checkpoint, in FOLDER/algorithms.txt, a line for each product:
//
//     aligntok-algorithms-1
//     NVIDIA H100 80GB HBM3, 132 multiprocessors, cuBLASLt 130101, bf16
//     M N K flags alignments lda ldb ldd batch stride_a stride_b stride_d   the algorithm, 8 words in base 16
//
// A run that goes on takes the choices of the file, and so does one that begins in a folder that has a file: one that
// is to repeat another's bits elsewhere is given a copy. A file of another GPU, library or precision means nothing
// here, and neither does one that is damaged: the run says so in one line, measures for itself, and writes its own.
//
// All processes of a run choose alike: they read the same file, and add up what they measure. In the CPU build there is
// nothing to choose, and the functions below do nothing.
//
//     algorithms_open(folder, &comm, s);             before the first step
//     algorithms_step(s, 1); ...; algorithms_step(s, 0);   around what a step computes
//     algorithms_save(folder, &comm, s);             before each checkpoint, which then never has choices that are lost
// Look next at common/cuda/blas.cuh.
#pragma once
#include <errno.h>
#include <unistd.h>

// defines: comm_t, comm_is_first, comm_sum_host, comm_any
#include "common/training/comm.h"
#ifdef USE_CUDA
// defines: matmul_cache, matmul_table_entry, matmul_identity
#include "common/cuda/blas.cuh"
#endif
// defines: HASH_START, hash_bytes
#include "common/program/hash.h"

#ifdef USE_CUDA
#define ALGORITHMS_FORMAT "aligntok-algorithms-1"
enum { ALGORITHMS_WORDS = 8, ALGORITHMS_LINE = 1024 };

static inline void algorithms_path(char* path, size_t size, const char* folder) {
    snprintf(path, size, "%s/algorithms.txt", folder);
}

static inline void algorithms_add_up(void* comm, double* values, int n) { comm_sum_host((comm_t*)comm, values, n); }

// The next `count` numbers of a line; where the last of them ends, or NULL.
static inline const char* algorithms_numbers(const char* line, uint64_t* numbers, int count, int base) {
    for (int i = 0; line && i < count; i++) {
        char* end;
        numbers[i] = strtoull(line, &end, base);
        line = end > line ? end : NULL;
    }
    return line;
}

// One line of the file. 0: it is damaged.
static inline int algorithms_parse(const char* line, matmul_entry_t* entry) {
    static_assert(sizeof entry->algo == ALGORITHMS_WORDS * sizeof(uint64_t), "an algorithm is 8 words");
    line = algorithms_numbers(line, entry->key, MATMUL_KEY_WORDS, 10);
    line = algorithms_numbers(line, entry->algo.data, ALGORITHMS_WORDS, 16);
    entry->answer = MATMUL_READ;
    return line && !strcmp(line, "\n");
}

// Reads the file. Returns how many choices stand in it for this machine; else 0, and in `remark` why.
static inline int algorithms_read(const char* path, matmul_entry_t* entries, // (MATMUL_CACHE_SIZE)
                                  char* remark, size_t size) {
    char line[ALGORITHMS_LINE], identity[ALGORITHMS_LINE];
    FILE* file = fopen(path, "r");
    int n = 0;
    remark[0] = 0;
    if (!file) {
        if (errno != ENOENT) snprintf(remark, size, "cannot be read: %s", strerror(errno));
        return 0;
    }
    matmul_identity(identity, sizeof identity);
    if (!fgets(line, sizeof line, file) || strcmp(line, ALGORITHMS_FORMAT "\n")) {
        snprintf(remark, size, "does not begin with " ALGORITHMS_FORMAT);
    } else if (!fgets(line, sizeof line, file)
               || strncmp(line, identity, strlen(identity)) || strcmp(line + strlen(identity), "\n")) {
        snprintf(remark, size, "is of %.300s", line);
        remark[strcspn(remark, "\n")] = 0;
    }
    while (!remark[0] && fgets(line, sizeof line, file)) {
        if (n < MATMUL_CACHE_SIZE && algorithms_parse(line, &entries[n])) n++;
        else snprintf(remark, size, "is damaged in line %d", n + 3);
    }
    fclose(file);
    return remark[0] ? 0 : n;
}

// A number that differs where the choices do; exact in double.
static inline double algorithms_fingerprint(const matmul_entry_t* entries, int n) {
    return (double)(hash_bytes(HASH_START, entries, n * sizeof *entries) >> 12);
}

static inline void algorithms_open(const char* folder, comm_t* comm, stream_t s) {
    struct matmul_cache* cache = matmul_cache(s);
    char path[1200], remark[400];
    algorithms_path(path, sizeof path, folder);
    matmul_entry_t* entries = (matmul_entry_t*)calloc_check(MATMUL_CACHE_SIZE, sizeof *entries, "algorithms");
    int n = algorithms_read(path, entries, remark, sizeof remark);
    double mine = algorithms_fingerprint(entries, n), first = comm_is_first(comm) ? mine : 0;
    comm_sum_host(comm, &first, 1);
    if (comm_any(comm, mine != first)) { // processes on GPUs of different kinds
        n = 0;
        snprintf(remark, sizeof remark, "does not suit the GPUs of all processes");
    }
    matmul_table_t* table = &cache->tables[1];
    for (int i = 0; i < n; i++) *matmul_table_entry(table, entries[i].key) = entries[i];
    free(entries);
    cache->add_up = algorithms_add_up;
    cache->context = comm;
    if (n) printf("algorithms     %s: %d products\n", path, n);
    if (remark[0]) printf("algorithms     %s %s: products are measured anew\n", path, remark);
}

static inline void algorithms_step(stream_t s, int begins) { matmul_cache(s)->in_step = begins; }

// Writes the choices, under a temporary name first. A failure is a warning: the checkpoint that follows does without.
static inline void algorithms_save(const char* folder, comm_t* comm, stream_t s) {
    if (!comm_is_first(comm)) return;
    const matmul_table_t* table = &matmul_cache(s)->tables[1];
    char path[1200], temporary[1210], identity[ALGORITHMS_LINE];
    algorithms_path(path, sizeof path, folder);
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    FILE* file = fopen(temporary, "w");
    int good = file != NULL;
    if (good) {
        fprintf(file, ALGORITHMS_FORMAT "\n%s\n", matmul_identity(identity, sizeof identity));
        for (int i = 0; i < MATMUL_CACHE_SIZE; i++) {
            const matmul_entry_t* entry = &table->entries[i];
            if (entry->answer != MATMUL_FOUND && entry->answer != MATMUL_READ) continue;
            for (int k = 0; k < MATMUL_KEY_WORDS; k++) fprintf(file, "%llu ", (unsigned long long)entry->key[k]);
            for (int k = 0; k < ALGORITHMS_WORDS; k++) fprintf(file, " %llx", (unsigned long long)entry->algo.data[k]);
            fprintf(file, "\n");
        }
        good = !fflush(file) && !ferror(file) && !fsync(fileno(file));
        good = !fclose(file) && good;
    }
    if (!good || rename(temporary, path)) {
        warn("%s cannot be written: %s. The run goes on; resumed, it may have other last bits", path, strerror(errno));
        unlink(temporary);
    }
}
#else
static inline void algorithms_open(const char* folder, comm_t* comm, stream_t s) { (void)folder, (void)comm, (void)s; }
static inline void algorithms_step(stream_t s, int begins) { (void)s, (void)begins; }
static inline void algorithms_save(const char* folder, comm_t* comm, stream_t s) { (void)folder, (void)comm, (void)s; }
#endif
