// replicas.h: one model's training state in several processes, each of which sees its share of the batch.
//
// All processes hold all weights. Gradients are averaged over them; then there are two ways:
//   plain    every process holds all moments, master weights and averages, and takes the same step
//   sharded  (params_t.ranks > 1; ZeRO-1: Rajbhandari et al. 2020) each holds the state of an equal part of the trained
//            values, receives the mean of that part of the gradients only, steps it, and the new weights go to all
// A process that is alone (comm NULL, or of size 1) is the plain case without communication.
// In the plain way the mean is taken in parts, beside the backward: each begins as soon as the backward says that it
// adds nothing more there (params_grads_done). What waits for all of them waits for little more than the last.
// Every function here is called by all processes together. Look next at common/training/comm.h and
// common/models/params.h.
#pragma once
// defines: comm_t, comm_mean, comm_mean_begin, comm_mean_end, comm_reduce_scatter_mean, comm_all_gather, ...
#include "common/training/comm.h"
// defines: params_t, params_trained
#include "common/models/params.h"
// defines: adam_t, adam_update, sum_squares, exchange_weights
#include "common/ops.h"
// defines: HASH_START, hash_word
#include "common/program/hash.h"

enum { REPLICAS_PARTS = 16 }; // of the gradients' mean: DINOv2-L's tokenizer 22M values, 87 MB, half a millisecond

// How far the mean of a table's gradients has been begun.
typedef struct {
    params_t* p;
    comm_t* c;
    size_t begun; // the gradients from here on are on their way
} replicas_t;

static inline void replicas_begin(void* context, size_t from, stream_t s) {
    replicas_t* r = (replicas_t*)context;
    size_t n = from < r->begun ? r->begun - from : 0;
    if (n < params_trained(r->p) / REPLICAS_PARTS) return;
    comm_mean_begin(r->c, r->p->grads + from, n, s);
    r->begun = from;
}

// From now on backwards of p, which is allocated, begin the mean of its gradients; replicas_mean_grads is to follow
// each of them. r must stay where it is.
void replicas_open(replicas_t* r, params_t* p, comm_t* c) {
    *r = (replicas_t){p, c, params_trained(p)};
    if (!c || c->size == 1 || p->ranks > 1) return;
    p->grads_done = replicas_begin;
    p->grads_context = r;
}

// The gradients of all processes, averaged: all of them, or, sharded, those of this process's shard; the others are
// then undefined.
void replicas_mean_grads(replicas_t* r, stream_t s) {
    params_t* p = r->p;
    if (!r->c) return;
    if (p->ranks > 1) {
        comm_reduce_scatter_mean(r->c, p->grads, p->shard, s);
        return;
    }
    comm_mean_begin(r->c, p->grads, r->begun, s);
    comm_mean_end(r->c, s);
    r->begun = params_trained(p);
}

// out = the sum of the squares of the averaged gradients in [begin, end) of the trained range.
void replicas_sum_squares(floatS* out, // (1) device memory
                          const params_t* p, comm_t* c, size_t begin, size_t end, stream_t s) {
    if (p->ranks <= 1) {
        sum_squares(out, p->grads + begin, 1, end - begin, s);
        return;
    }
    size_t low = begin > p->shard_begin ? begin : p->shard_begin, shard_end = p->shard_begin + p->shard;
    size_t high = end < shard_end ? end : shard_end;
    if (low < high) sum_squares(out, p->grads + low, 1, high - low, s);
    else device_zero(out, sizeof(floatS), s);
    comm_mean(c, out, 1, s); // of the ranks' parts of the sum: replicas_square_factor makes it the sum
}
static inline double replicas_square_factor(const params_t* p) { return params_ranks(p); }

// The new weights of each shard go to all.
static inline void replicas_share_values(params_t* p, comm_t* c, stream_t s) {
    if (p->ranks > 1) comm_all_gather(c, p->values + p->first, p->shard * sizeof(floatX), s);
}

// adam_update of the trained values [begin, end), as far as this process holds them.
static inline void replicas_update_range(params_t* p, adam_t adam, size_t begin, size_t end, stream_t s) {
    size_t low = begin > p->shard_begin ? begin : p->shard_begin, shard_end = p->shard_begin + p->shard;
    size_t high = end < shard_end ? end : shard_end, at = low - p->shard_begin;
    if (low >= high) return;
    adam_update(p->values + p->first + low, p->master + at, p->m + at, p->v + at, p->ema[0] ? p->ema[0] + at : NULL,
                p->ema[1] ? p->ema[1] + at : NULL, p->grads + low, high - low, adam, s);
}

// One step of Adam on the averaged gradients; the weight decay acts on matrices and kernels only. Tensors behind one
// another that are alike in that take one call.
void replicas_update_matrices_decay(params_t* p, adam_t adam, comm_t* c, stream_t s) {
    double decay = adam.decay;
    for (int i = 0, next; i < p->table.n; i = next) {
        const param_t* t = &p->table.items[i];
        for (next = i + 1; next < p->table.n && p->table.items[next].decay == t->decay;) next++;
        size_t end = next < p->table.n ? p->table.items[next].offset : p->table.total;
        adam.decay = t->decay ? decay : 0;
        if (end > p->first) replicas_update_range(p, adam, t->offset > p->first ? t->offset - p->first : 0,
                                                  end - p->first, s);
    }
    replicas_share_values(p, c, s);
}

// One step of Adam on the averaged gradients.
void replicas_update(params_t* p, adam_t adam, comm_t* c, stream_t s) {
    adam_update(p->values + p->first + p->shard_begin, p->master, p->m, p->v, p->ema[0], p->ema[1],
                p->grads + p->shard_begin, p->shard, adam, s);
    replicas_share_values(p, c, s);
}

// Exchanges the trained weights with their moving average; a second call puts them back, bit for bit.
void replicas_exchange_ema(params_t* p, int which, comm_t* c, stream_t s) {
    exchange_weights(p->values + p->first + p->shard_begin, p->master, p->ema[which], p->shard, s);
    replicas_share_values(p, c, s);
}

// All trained values of one kind, (trained) in device memory, valid until the next step: gradients are overwritten.
const floatS* replicas_collect(params_t* p, param_kind_t kind, comm_t* c, stream_t s) {
    floatS* state = params_state(p, kind);
    if (p->ranks <= 1) return state;
    copy_on_device(p->grads + p->shard_begin, state, p->shard * sizeof(floatS), s);
    comm_all_gather(c, p->grads, p->shard * sizeof(floatS), s);
    stream_wait(s);
    return p->grads;
}

// ---------------------------------------------------------------------------------------------------------------------
// Are they still the same?

// A hash of the weights that the operations read, FNV-1a on words of 64 bits.
static inline uint64_t replicas_hash(uint64_t h, const params_t* p) {
    const size_t piece = 1 << 20;
    const char* at = (const char*)p->values;
    size_t bytes = (p->table.total * sizeof(floatX)) / 8 * 8;
    uint64_t* host = (uint64_t*)malloc_check(piece, "weights");
    for (size_t done = 0; done < bytes; done += piece) {
        size_t n = bytes - done < piece ? bytes - done : piece;
        copy_to_host(host, at + done, n, 0);
        for (size_t i = 0; i < n / 8; i++) h = hash_word(h, host[i]);
    }
    free(host);
    return h;
}

// Ends the run when the weights of the ranks are not the same bits: nothing else would notice that one of them has gone
// its own way.
void replicas_check_same(const params_t* const* tables, int n, comm_t* c, int64_t step) {
    if (!c || c->size == 1) return;
    uint64_t h = HASH_START;
    for (int i = 0; i < n; i++) h = replicas_hash(h, tables[i]);
    comm_check_same(c, h, step);
}
