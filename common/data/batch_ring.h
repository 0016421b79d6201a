// batch_ring.h: a thread that prepares the batches of coming steps while the training works on this one.
//
// Batches live in the slots of a ring: that of step s in slot s % BATCH_RING. The owner has the memory and says how a
// batch is made, from nothing but its step; so the thread changes nothing but the time it takes.
//
//     batch_ring_open(&ring, make, owner, workers, first_step);
//     slot = batch_ring_next(&ring);      // of the next step; the slot before may be overwritten from here on
//     batch_ring_close(&ring);
// Look next at common/data/latent_loader.h and common/training/bucket_loader.h, the owners.
#pragma once
#include <pthread.h>
#include <stdint.h>
#include <string.h>

// defines: clock_seconds
#include "common/program/clock.h"
// defines: fatal
#include "common/program/log.h"

enum { BATCH_RING = 4 }; // batches that are held: the one in use and those prepared

typedef void (*batch_make_fn)(void* owner, int slot, uint64_t step);

typedef struct {
    batch_make_fn make;
    void* owner;
    int workers;           // 0: batch_ring_next makes the batch itself; else a thread does
    pthread_t thread;
    pthread_mutex_t mutex; // guards what follows
    pthread_cond_t room, ready;
    uint64_t made, taken;  // steps before `made` are prepared, those before `taken` may be overwritten
    uint64_t next;         // the step of what batch_ring_next returns
    int stop;
    double seconds_waited;
} batch_ring_t;

static inline void* batch_ring_worker(void* argument) {
    batch_ring_t* ring = (batch_ring_t*)argument;
    pthread_mutex_lock(&ring->mutex);
    while (!ring->stop) {
        if (ring->made == ring->taken + BATCH_RING) {
            pthread_cond_wait(&ring->room, &ring->mutex);
            continue;
        }
        uint64_t step = ring->made;
        pthread_mutex_unlock(&ring->mutex);
        ring->make(ring->owner, (int)(step % BATCH_RING), step);
        pthread_mutex_lock(&ring->mutex);
        ring->made++;
        pthread_cond_signal(&ring->ready);
    }
    pthread_mutex_unlock(&ring->mutex);
    return NULL;
}

// The owner's memory must be there, and outlive the ring.
static inline void batch_ring_open(batch_ring_t* ring, batch_make_fn make, void* owner, int workers,
                                   uint64_t first_step) {
    memset(ring, 0, sizeof *ring);
    ring->make = make;
    ring->owner = owner;
    ring->workers = workers;
    ring->made = ring->taken = ring->next = first_step;
    pthread_mutex_init(&ring->mutex, NULL);
    pthread_cond_init(&ring->room, NULL);
    pthread_cond_init(&ring->ready, NULL);
    if (!workers) return;
    int code = pthread_create(&ring->thread, NULL, batch_ring_worker, ring);
    if (code) fatal("the thread that prepares batches cannot be started: %s; give -workers 0", strerror(code));
}

// The slot of the next step's batch.
static inline int batch_ring_next(batch_ring_t* ring) {
    double start = clock_seconds();
    uint64_t step = ring->next++;
    if (ring->workers) {
        pthread_mutex_lock(&ring->mutex);
        ring->taken = step;
        pthread_cond_signal(&ring->room);
        while (ring->made <= step) pthread_cond_wait(&ring->ready, &ring->mutex);
        pthread_mutex_unlock(&ring->mutex);
    } else {
        ring->make(ring->owner, (int)(step % BATCH_RING), step);
    }
    ring->seconds_waited += clock_seconds() - start;
    return (int)(step % BATCH_RING);
}

static inline void batch_ring_close(batch_ring_t* ring) {
    pthread_mutex_lock(&ring->mutex);
    ring->stop = 1;
    pthread_cond_signal(&ring->room);
    pthread_mutex_unlock(&ring->mutex);
    if (ring->workers) pthread_join(ring->thread, NULL);
    pthread_mutex_destroy(&ring->mutex);
    pthread_cond_destroy(&ring->room);
    pthread_cond_destroy(&ring->ready);
    memset(ring, 0, sizeof *ring);
}
