// plan.h: memory, planned once. A list of (pointer, size, name) is filled by the models, then one block is allocated
// and cut up. The training loop never allocates.
//
// Two kinds of buffers: those that live through a whole step (saved activations) and those that live only while one
// model runs (gradients on their way through it). The second kind shares memory: between plan_mark() and plan_rewind()
// buffers are laid out one behind the other, and after the rewind the next model's start at the same place again.
//
//     plan_t plan = {0};
//     plan_floatX(&plan, &model->out, n, "out");     // ... for every buffer
//     size_t mark = plan_mark(&plan);
//     plan_floatX(&plan, &a->work, n, "a.work"); plan_rewind(&plan, mark);
//     plan_floatX(&plan, &b->work, n, "b.work"); plan_rewind(&plan, mark);   // same memory as a.work
//     plan_allocate(&plan, "activations");           // now every pointer is set
//
// Several sizes share one block: plan each of them, with plan_again() before the next, and plan_allocate() takes what
// the largest needs. Later plan_again(), the models' planning and plan_set() turn the block over to another of these
// sizes. Nothing is allocated then, and nothing that stood in the block may be relied on. Where sizes come up that
// nobody knew of, plan_allocate() in the place of plan_set() takes another block when this one is too small.
//
// `-dry_run` prints plan_bytes() without allocating. Look next at common/models/params.h, the other half of a model's
// memory.
#pragma once
#include <assert.h>

// defines: floatX, floatS, device_malloc
#include "common/device.h"

typedef struct {
    void* pointer;    // address of the pointer to set
    size_t offset;
    const char* name;
} plan_item_t;

typedef struct {
    plan_item_t* items;
    int n, capacity;
    size_t end, peak; // bytes laid out now, and the most that were
    size_t most;      // bytes of the largest plan so far
    size_t size;      // of the block
    char* memory;
} plan_t;

enum { PLAN_ALIGNMENT = 256 };

static inline void plan_bytes_for(plan_t* plan, void* pointer, size_t bytes, const char* name) {
    if (plan->n == plan->capacity) {
        plan->capacity = plan->capacity ? 2 * plan->capacity : 64;
        plan->items = (plan_item_t*)realloc(plan->items, plan->capacity * sizeof(plan_item_t));
        if (!plan->items) fatal("no memory for the memory plan");
    }
    plan_item_t item = {pointer, plan->end, name};
    plan->items[plan->n++] = item;
    plan->end += (bytes + PLAN_ALIGNMENT - 1) / PLAN_ALIGNMENT * PLAN_ALIGNMENT;
    if (plan->end > plan->peak) plan->peak = plan->end;
}

static inline void plan_floatX(plan_t* plan, floatX** pointer, size_t n, const char* name) {
    plan_bytes_for(plan, pointer, n * sizeof(floatX), name);
}
static inline void plan_floatS(plan_t* plan, floatS** pointer, size_t n, const char* name) {
    plan_bytes_for(plan, pointer, n * sizeof(floatS), name);
}
static inline void plan_int(plan_t* plan, int** pointer, size_t n, const char* name) {
    plan_bytes_for(plan, pointer, n * sizeof(int), name);
}
static inline void plan_uint8(plan_t* plan, uint8_t** pointer, size_t n, const char* name) {
    plan_bytes_for(plan, pointer, n, name);
}

static inline size_t plan_mark(const plan_t* plan) { return plan->end; }
static inline void plan_rewind(plan_t* plan, size_t mark) { plan->end = mark; }
static inline size_t plan_bytes(const plan_t* plan) { return plan->peak > plan->most ? plan->peak : plan->most; }

// Begins the plan anew, for other sizes.
static inline void plan_again(plan_t* plan) {
    plan->most = plan_bytes(plan);
    plan->n = 0;
    plan->end = plan->peak = 0;
}

// Sets every pointer, in the block that is there.
static inline void plan_set(plan_t* plan) {
    assert(plan->peak <= plan->size);
    for (int i = 0; i < plan->n; i++) {
        void* address = plan->memory + plan->items[i].offset;
        memcpy(plan->items[i].pointer, &address, sizeof address);
    }
}

// Allocates the block, unless there is one that is large enough, and sets every pointer.
static inline void plan_allocate(plan_t* plan, const char* what) {
    if (!plan->memory || plan->size < plan_bytes(plan)) {
        device_free(plan->memory);
        plan->size = plan_bytes(plan);
        plan->memory = (char*)device_malloc(plan->size, what);
    }
    plan_set(plan);
}

static inline void plan_free(plan_t* plan) {
    device_free(plan->memory);
    free(plan->items);
    memset(plan, 0, sizeof *plan);
}
