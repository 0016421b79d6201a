// params.h: a model's parameters: one table of named tensors over flat buffers.
//
// A model registers its tensors once (name, shape, initialiser); each gets an offset. The same offset serves the
// values, gradients, Adam moments and moving averages, so that the optimiser, the norms and the files need no
// per-model code. Several models may share a table: the tokenizer puts encoder, adapter and decoder behind one another.
//
// Names and shapes are those of the public checkpoints. Three things differ in memory (params_to_file_order, and back):
//   LAYOUT_CONV    convolution weights are (OC, C, K, K) in files and (OC, K, K, C) here
//   LAYOUT_PADDED  a matrix, or several behind one another, has rows and columns of zeros behind its own, so that rows
//                  are whole pieces of 16 bytes. What reads the zeros must give them no gradient: then they stay zero.
//   LAYOUT_COLUMNS a matrix's first columns stand in memory, as a matrix, in front of the matrix of the others: a layer
//                  whose input stands in two places is the sum of two products
// `count` is a tensor's number of values in files, `stored` that in memory.
//
// Trained is the part of the buffers from `first` on: what a stage freezes stands before what it trains. Several
// processes may share the optimiser's state, each keeping a part of it (common/training/replicas.h).
// Look next at common/training/tokenizer_checkpoint.h, which reads and writes tables, and common/models/vit.h, which
// registers one.
#pragma once

// defines: RANDOM_INIT, random_normal, random_uniform
#include "common/program/rng.h"
// defines: floatX, floatS, device_malloc, fatal
#include "common/device.h"
// defines: hash_string
#include "common/program/hash.h"

typedef enum { LAYOUT_PLAIN, LAYOUT_CONV, LAYOUT_PADDED, LAYOUT_COLUMNS } layout_t;
typedef enum {
    INIT_CONSTANT, // value
    INIT_NORMAL,   // value * N(0, 1) + mean
    INIT_UNIFORM,  // uniform in (-value, value)
} init_kind_t;

typedef struct {
    init_kind_t kind;
    double value, mean;
} init_t;

typedef struct {
    char name[120];
    int ndim;
    int shape[4];          // as in files
    layout_t layout;
    int parts;             // of LAYOUT_PADDED: so many matrices (rows, columns) in files, (padded_rows, padded_columns)
    int rows, columns, padded_rows, padded_columns; // in memory; of LAYOUT_COLUMNS: rows, and the first columns
    init_t init;
    int decay;             // weight decay applies
    size_t count;          // values in files
    size_t offset, stored; // place and length in the flat buffers
} param_t;

typedef struct {
    param_t* items;
    int n, capacity;
    size_t total;          // length of a flat buffer, padding included
} param_table_t;

static inline init_t init_constant(double value) { init_t i = {INIT_CONSTANT, value, 0}; return i; }
static inline init_t init_normal(double mean, double std) { init_t i = {INIT_NORMAL, std, mean}; return i; }
static inline init_t init_uniform(double bound) { init_t i = {INIT_UNIFORM, bound, 0}; return i; }
// PyTorch's default for a linear or convolution layer, weight and bias alike: uniform in +-1/sqrt(fan_in).
static inline init_t init_fan_in(int fan_in) { return init_uniform(1.0 / sqrt((double)fan_in)); }

enum { PARAM_ALIGNMENT = 8 }; // elements: 16 bytes of bf16

// Appends an entry of `ndim` dimensions, stored as it is in files. param_place is to follow.
static inline param_t* param_append(param_table_t* table, const char* name, int ndim, const int* shape, init_t init) {
    if (table->n == table->capacity) {
        table->capacity = table->capacity ? 2 * table->capacity : 256;
        table->items = (param_t*)realloc(table->items, table->capacity * sizeof(param_t));
        if (!table->items) fatal("no memory for the parameter table");
    }
    param_t* p = &table->items[table->n++];
    memset(p, 0, sizeof *p);
    if (snprintf(p->name, sizeof p->name, "%s", name) >= (int)sizeof p->name)
        fatal("parameter name too long: %s", name);
    p->ndim = ndim;
    p->count = 1;
    for (int i = 0; i < ndim; i++) {
        p->shape[i] = shape[i];
        p->count *= (size_t)shape[i];
    }
    p->stored = p->count;
    p->init = init;
    p->decay = ndim >= 2;
    return p;
}

// Gives the entry its place behind all others and returns the offset.
static inline size_t param_place(param_table_t* table, param_t* p) {
    p->offset = table->total;
    table->total += (p->stored + PARAM_ALIGNMENT - 1) / PARAM_ALIGNMENT * PARAM_ALIGNMENT;
    return p->offset;
}

// Registers a tensor and returns its offset. Shape entries behind `ndim` are ignored. Weight decay applies to tensors
// of two and more dimensions unless the caller changes `decay`.
size_t param_add(param_table_t* table, const char* name, int ndim, int d0, int d1, int d2, int d3, layout_t layout,
                 init_t init) {
    int shape[4] = {d0, d1, d2, d3};
    param_t* p = param_append(table, name, ndim, shape, init);
    p->layout = layout;
    return param_place(table, p);
}

// Registers a tensor whose values are, in the order of the file, `parts` matrices (rows, columns), a vector being a
// matrix of one column, or of one row. In memory each is (padded_rows, padded_columns).
size_t param_add_padded(param_table_t* table, const char* name, int ndim, const int* shape, int parts, int rows,
                        int columns, int padded_rows, int padded_columns, init_t init) {
    param_t* p = param_append(table, name, ndim, shape, init);
    if ((size_t)parts * rows * columns != p->count || padded_rows < rows || padded_columns < columns) {
        fatal("parameter %s of %zu values cannot be %d times %d x %d padded to %d x %d", name, p->count, parts, rows,
              columns, padded_rows, padded_columns);
    }
    p->layout = LAYOUT_PADDED;
    p->parts = parts;
    p->rows = rows;
    p->columns = columns;
    p->padded_rows = padded_rows;
    p->padded_columns = padded_columns;
    p->stored = (size_t)parts * padded_rows * padded_columns;
    return param_place(table, p);
}

enum { PARAM_NAME = 160 };
// prefix + suffix
static inline const char* param_name(char* name, const char* prefix, const char* suffix) { // (PARAM_NAME)
    if (snprintf(name, PARAM_NAME, "%s%s", prefix, suffix) >= PARAM_NAME) {
        fatal("parameter name too long: %s%s", prefix, suffix);
    }
    return name;
}

// The usual shapes.
size_t param_vector(param_table_t* table, const char* prefix, const char* suffix, int n, init_t init) {
    char name[PARAM_NAME];
    return param_add(table, param_name(name, prefix, suffix), 1, n, 0, 0, 0, LAYOUT_PLAIN, init);
}
size_t param_matrix(param_table_t* table, const char* prefix, const char* suffix, int rows, int columns, init_t init) {
    char name[PARAM_NAME];
    return param_add(table, param_name(name, prefix, suffix), 2, rows, columns, 0, 0, LAYOUT_PLAIN, init);
}
size_t param_conv(param_table_t* table, const char* prefix, const char* suffix, int OC, int C, int K, init_t init) {
    char name[PARAM_NAME];
    return param_add(table, param_name(name, prefix, suffix), 4, OC, C, K, K, LAYOUT_CONV, init);
}

// A matrix (rows, columns) in LAYOUT_COLUMNS: in memory (rows, first), then (rows, columns - first).
size_t param_matrix_columns(param_table_t* table, const char* prefix, const char* suffix, int rows, int columns,
                            int first, init_t init) {
    size_t offset = param_matrix(table, prefix, suffix, rows, columns, init);
    param_t* p = &table->items[table->n - 1];
    p->layout = LAYOUT_COLUMNS;
    p->rows = rows;
    p->columns = first;
    return offset;
}

// The table's entry of this name, or NULL.
const param_t* param_find(const param_table_t* table, const char* name) {
    for (int i = 0; i < table->n; i++) {
        if (!strcmp(table->items[i].name, name)) return &table->items[i];
    }
    return NULL;
}

// Number of parameters (without padding) at offsets in [begin, end).
size_t param_count(const param_table_t* table, size_t begin, size_t end) {
    size_t count = 0;
    for (int i = 0; i < table->n; i++) {
        if (table->items[i].offset >= begin && table->items[i].offset < end) count += table->items[i].count;
    }
    return count;
}

// ---------------------------------------------------------------------------------------------------------------------
// File order

// Copies one tensor from memory order (stored values) to file order (count values): see the layouts above.
void params_to_file_order(floatS* file, const floatS* memory, const param_t* t) {
    if (t->layout == LAYOUT_CONV) {
        int OC = t->shape[0], C = t->shape[1], KK = t->shape[2] * t->shape[3];
        for (int o = 0; o < OC; o++) {
            for (int k = 0; k < KK; k++) {
                for (int c = 0; c < C; c++) file[((size_t)o * C + c) * KK + k] = memory[((size_t)o * KK + k) * C + c];
            }
        }
    } else if (t->layout == LAYOUT_PADDED) {
        for (int r = 0; r < t->parts * t->rows; r++) {
            size_t row = (size_t)(r / t->rows) * t->padded_rows + r % t->rows;
            memcpy(file + (size_t)r * t->columns, memory + row * t->padded_columns, t->columns * sizeof(floatS));
        }
    } else if (t->layout == LAYOUT_COLUMNS) {
        size_t first = t->columns, others = t->shape[1] - first;
        const floatS* behind = memory + t->rows * first;
        for (size_t r = 0; r < (size_t)t->rows; r++) {
            memcpy(file + r * (first + others), memory + r * first, first * sizeof(floatS));
            memcpy(file + r * (first + others) + first, behind + r * others, others * sizeof(floatS));
        }
    } else {
        memcpy(file, memory, t->count * sizeof(floatS));
    }
}

// And back; padding becomes zero.
void params_from_file_order(floatS* memory, const floatS* file, const param_t* t) {
    if (t->layout == LAYOUT_CONV) {
        int OC = t->shape[0], C = t->shape[1], KK = t->shape[2] * t->shape[3];
        for (int o = 0; o < OC; o++) {
            for (int k = 0; k < KK; k++) {
                for (int c = 0; c < C; c++) memory[((size_t)o * KK + k) * C + c] = file[((size_t)o * C + c) * KK + k];
            }
        }
    } else if (t->layout == LAYOUT_PADDED) {
        memset(memory, 0, t->stored * sizeof(floatS));
        for (int r = 0; r < t->parts * t->rows; r++) {
            size_t row = (size_t)(r / t->rows) * t->padded_rows + r % t->rows;
            memcpy(memory + row * t->padded_columns, file + (size_t)r * t->columns, t->columns * sizeof(floatS));
        }
    } else if (t->layout == LAYOUT_COLUMNS) {
        size_t first = t->columns, others = t->shape[1] - first;
        floatS* behind = memory + t->rows * first;
        for (size_t r = 0; r < (size_t)t->rows; r++) {
            memcpy(memory + r * first, file + r * (first + others), first * sizeof(floatS));
            memcpy(behind + r * others, file + r * (first + others) + first, others * sizeof(floatS));
        }
    } else {
        memcpy(memory, file, t->count * sizeof(floatS));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The flat buffers

typedef struct {
    param_table_t table;
    size_t first;       // offset of the first trained tensor; table.total: all frozen
    int ranks, rank;    // set before params_allocate where several processes share the optimiser's state; else 0
    size_t shard_begin; // this process holds the state of the trained values from here on,
    size_t shard;       // so many of them; alone: all
    floatX* values;     // (first + ranks shard) what the operations read; behind `total` padding
    floatS* frozen;     // (first) full-precision weights of what is frozen, so that a file gets back the numbers that
                        //         came from one; NULL where values are full-precision themselves, and in a table
                        //         that is frozen whole, which nobody saves, unless it calls params_keep_frozen
    floatS* grads;      // (ranks shard) of all trained values
    floatS* master;     // (shard)  full-precision weights; where floatX is floatS, the memory of values
    floatS* m;          // (shard)  Adam's first moment
    floatS* v;          // (shard)  and second
    floatS* ema[2];     // (shard)  moving averages, or NULL
    int64_t t;          // optimiser steps taken
    // Set where several processes train (common/training/replicas.h): whom params_grads_done tells, and its own.
    void (*grads_done)(void* context, size_t from, stream_t s);
    void* grads_context;
} params_t;

static inline const floatX* params_at(const params_t* p, size_t offset) { return p->values + offset; }

// Where a tensor's gradient accumulates; NULL when it is frozen, and then the operations do not compute it.
static inline floatS* params_grad(const params_t* p, size_t offset) {
    return p->grads && offset >= p->first ? p->grads + (offset - p->first) : NULL;
}

// Said by a backward on its way: nothing more is added to the gradients from `offset` to the end of the table. Tables
// are in the order of the forward, and so their gradients are whole from the end on.
static inline void params_grads_done(const params_t* p, size_t offset, stream_t s) {
    if (p->grads_done && params_grad(p, offset)) p->grads_done(p->grads_context, offset - p->first, s);
}

static inline size_t params_trained(const params_t* p) { return p->table.total - p->first; }
static inline int params_ranks(const params_t* p) { return p->ranks > 1 ? p->ranks : 1; }

// Is a weight kept twice, as floatX for the operations and in full precision?
enum { PARAMS_TWICE = sizeof(floatX) != sizeof(floatS) };

// Values that each of `ranks` processes holds the state of: equal parts, aligned. Alone: exactly all.
static inline size_t params_shard(size_t trained, int ranks) {
    if (ranks <= 1) return trained;
    size_t unit = (size_t)ranks * PARAM_ALIGNMENT;
    return (trained + unit - 1) / unit * PARAM_ALIGNMENT;
}

// Bytes of all buffers of a table of which everything from `first` on is trained, with `n_ema` averages.
size_t params_bytes(const param_table_t* table, size_t first, int n_ema, int ranks) {
    size_t trained = table->total - first, shard = params_shard(trained, ranks);
    size_t padded = shard * (ranks > 1 ? ranks : 1);
    size_t floats = trained ? padded + (2 + n_ema + PARAMS_TWICE) * shard + PARAMS_TWICE * first : 0;
    return (first + padded) * sizeof(floatX) + floats * sizeof(floatS);
}

static inline void* params_buffer(size_t bytes, const char* what) {
    void* p = device_malloc(bytes, what);
    device_zero(p, bytes, 0);
    return p;
}

// Allocates the buffers for the tensors registered so far. Gradients and moments start at zero.
void params_allocate(params_t* p, size_t first, int n_ema, const char* what) {
    p->first = first;
    size_t trained = params_trained(p);
    p->shard = params_shard(trained, p->ranks);
    p->shard_begin = p->shard * (p->ranks > 1 ? p->rank : 0);
    size_t padded = p->shard * params_ranks(p), bytes = p->shard * sizeof(floatS);
    p->values = (floatX*)params_buffer((first + padded) * sizeof(floatX), what);
    if (!trained) return;
    p->grads = (floatS*)params_buffer(padded * sizeof(floatS), what);
    if (PARAMS_TWICE) {
        p->frozen = (floatS*)params_buffer(first * sizeof(floatS), what);
        p->master = (floatS*)params_buffer(bytes, what);
    } else {
        p->master = (floatS*)(p->values + first + p->shard_begin);
    }
    p->m = (floatS*)params_buffer(bytes, what);
    p->v = (floatS*)params_buffer(bytes, what);
    for (int i = 0; i < n_ema; i++) p->ema[i] = (floatS*)params_buffer(bytes, what);
}

// Full-precision copies for a table that is frozen whole, before its values are set: for weights that are to be
// computed with, once, before they are rounded (params_read_frozen).
void params_keep_frozen(params_t* p, const char* what) {
    if (PARAMS_TWICE && !p->frozen) p->frozen = (floatS*)params_buffer(p->first * sizeof(floatS), what);
}

void params_free(params_t* p) {
    if (PARAMS_TWICE) device_free(p->master);
    device_free(p->frozen);
    device_free(p->values);
    device_free(p->grads);
    device_free(p->m);
    device_free(p->v);
    device_free(p->ema[0]);
    device_free(p->ema[1]);
    free(p->table.items);
    memset(p, 0, sizeof *p);
}

void params_zero_grads(params_t* p, stream_t s) {
    if (p->grads) device_zero(p->grads, params_trained(p) * sizeof(floatS), s);
}

// Length of the longest tensor: the working space that params_init, params_get and params_set need.
size_t params_longest(const param_table_t* table) {
    size_t longest = 1;
    for (int i = 0; i < table->n; i++) {
        if (table->items[i].stored > longest) longest = table->items[i].stored; // never less than count
    }
    return longest;
}

// Writes n values, those of the trained range from `begin` on, to a buffer of this process's shard: the part that lies
// in it.
static inline void params_store_shard(const params_t* p, floatS* shard, size_t begin, const floatS* host, size_t n) {
    size_t low = begin > p->shard_begin ? begin : p->shard_begin, end = p->shard_begin + p->shard;
    size_t high = begin + n < end ? begin + n : end;
    if (low >= high) return;
    copy_to_device(shard + (low - p->shard_begin), host + (low - begin), (high - low) * sizeof(floatS), 0);
}

// Sets n weights of one tensor from the host, in memory order: what the operations read, and the full-precision copy.
void params_store(params_t* p, size_t offset, const floatS* host, size_t n) {
    copy_floats_to_device(p->values + offset, host, n);
    if (!PARAMS_TWICE) return;
    if (offset >= p->first) params_store_shard(p, p->master, offset - p->first, host, n);
    else if (p->frozen) copy_to_device(p->frozen + offset, host, n * sizeof(floatS), 0);
}

// Reads n weights of a frozen tensor, in memory order.
void params_read_frozen(const params_t* p, size_t offset, floatS* host, size_t n) {
    if (p->frozen) copy_to_host(host, p->frozen + offset, n * sizeof(floatS), 0);
    else copy_floats_to_host(host, p->values + offset, n);
}

// Fills every value by its initialiser. A number depends on (seed, tensor's name, element), so that adding a tensor
// does not change the others; the element is the one in memory order, of padded tensors that in file order.
void params_init(params_t* p, uint64_t seed) {
    size_t longest = params_longest(&p->table);
    floatS* values = (floatS*)malloc_check(2 * longest * sizeof(floatS), "initial weights");
    floatS* padded = values + longest;
    for (int i = 0; i < p->table.n; i++) {
        const param_t* t = &p->table.items[i];
        uint64_t key = hash_string(1469598103934665603ull, t->name) >> 8; // a step has 56 bits
        #pragma omp parallel for
        for (size_t j = 0; j < t->count; j++) {
            double value = t->init.value;
            if (t->init.kind == INIT_NORMAL) value = t->init.mean + value * random_normal(seed, RANDOM_INIT, key, j);
            if (t->init.kind == INIT_UNIFORM) value *= 2 * random_uniform(seed, RANDOM_INIT, key, j) - 1;
            values[j] = (floatS)value;
        }
        if (t->layout == LAYOUT_PADDED) params_from_file_order(padded, values, t);
        params_store(p, t->offset, t->layout == LAYOUT_PADDED ? padded : values, t->stored);
    }
    free(values);
}

// ---------------------------------------------------------------------------------------------------------------------
// Single tensors, in file order, on the host

typedef enum { PARAM_VALUE, PARAM_ADAM_M, PARAM_ADAM_V, PARAM_EMA0, PARAM_EMA1 } param_kind_t;

// The buffer of this kind: (shard) values.
static inline floatS* params_state(const params_t* p, param_kind_t kind) {
    floatS* buffers[5] = {p->master, p->m, p->v, p->ema[0], p->ema[1]};
    return buffers[kind];
}

// Copies one tensor to `host` (count values, file order). `state` is the buffer of the wanted kind, whole: of a process
// that is alone params_state(), else what replicas_collect() gathered; a frozen tensor has a value only. `memory` is
// working space for `stored` values.
void params_get(const params_t* p, const floatS* state, const param_t* t, floatS* host, floatS* memory) {
    if (t->offset < p->first) params_read_frozen(p, t->offset, memory, t->stored);
    else copy_to_host(memory, state + (t->offset - p->first), t->stored * sizeof(floatS), 0);
    params_to_file_order(host, memory, t);
}

// Sets one tensor from `host`, as above.
void params_set(params_t* p, param_kind_t kind, const param_t* t, const floatS* host, floatS* memory) {
    params_from_file_order(memory, host, t);
    if (kind == PARAM_VALUE) params_store(p, t->offset, memory, t->stored);
    else params_store_shard(p, params_state(p, kind), t->offset - p->first, memory, t->stored);
}

// A moving average starts as a copy of what it averages.
void params_start_averages(params_t* p) {
    for (int i = 0; i < 2; i++) {
        if (p->ema[i]) copy_on_device(p->ema[i], p->master, p->shard * sizeof(floatS), 0);
    }
}
