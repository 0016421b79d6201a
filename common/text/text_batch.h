// text_batch.h: captions as a text-to-image transformer reads them, on the device.
//
// A caption's rows stand at the end of its L: it ends at row L - 1 and begins at row first_b; what is before that is
// padding. Written by common/models/caption_encoder.h, or from a cache of its work (common/data/text_cache.h); read by
// common/drawing/dit_sampler.h and in training. The memory belongs to who made it.
#pragma once
// defines: floatX
#include "common/device.h"

typedef struct {
    int B, L;
    floatX* rows;   // (B, L, dt)
    int* first;     // (B)
    floatX* pooled; // (B, dv), or NULL where there is none
} text_batch_t;
