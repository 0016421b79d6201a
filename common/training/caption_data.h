// caption_data.h: what a text-to-image training reads beside latents: images with captions, and their text.
//
// Text comes as rows out of a cache, or from the encoders, which then run beside the training, for each step's
// captions.
//
//     caption_data_open_set(&data.set, &options);
//     caption_data_open_text(&data, &options, B);      // after the device: encoders may live on it
//     caption_data_take(&data, batch, &dit, s);        // a step's text, into the dit_t
//     caption_data_check(&data);                       // was it finite? For a loss that is not
// Look next at common/training/bucket_loader.h, which makes the batches, common/models/caption_encoder.h and
// common/drawing/latent_source.h, the user.
#pragma once
// defines: bucket_batch_t
#include "common/training/bucket_loader.h"
// defines: caption_encoder_t, caption_encoder_open, _batch, _forward, _check, _tokenize, _suits
#include "common/models/caption_encoder.h"
// defines: dit_t
#include "common/training/dit.h"
// defines: dit_options_t
#include "common/training/dit_options.h"

// It must stay where it is.
typedef struct {
    dataset_t set;
    int cached;                // text comes out of a cache
    text_cache_t cache;
    int* sets;                 // (images) each image's set in it
    caption_encoder_t encoder; // else
    text_batch_t step;         // a step's text, of up to B captions of text_rows rows
    const bucket_batch_t* batch; // the captions of which it is
    int dt, dv;                // widths of text rows and pooled vectors
    const char* text_encoder;  // its name
    char text[CAPTION_ENCODER_SAVED];
} caption_data_t;

// The images of -data that pass the filters.
static inline void caption_data_open_set(dataset_t* set, const dit_options_t* o) {
    dataset_open(set, o->data, SPLIT_TRAIN);
    if (set->kind != DATASET_CAPTIONS && set->kind != DATASET_SCENES) {
        fatal("-data %s has no captions, and -model %s reads them; give captions:FOLDER or scenes", o->data, o->model);
    }
    if (set->kind != DATASET_CAPTIONS) return;
    int short_side = o->short_side < 0 ? o->image_size / 2 : o->short_side;
    caption_filter_t filter = {o->punsafe, o->pwatermark, o->aesthetic, short_side, o->aspect};
    size_t counts[CAPTION_FILTERS], all = set->count;
    dataset_filter(set, &filter, counts);
    printf("images         %zu of %zu pass the filters; the others fail by", set->count, all);
    for (int k = 0; k < CAPTION_FILTERS; k++) printf("%s %s %zu", k ? "," : "", caption_filters[k], counts[k]);
    printf("\n");
}

// The text of at most B captions at once.
static inline void caption_data_open_text(caption_data_t* data, const dit_options_t* o, int B) {
    caption_encoder_saved(data->text, &o->text);
    data->cached = o->text_cache[0] != 0;
    if (!data->cached) {
        caption_encoder_open(&data->encoder, &o->text, B);
        data->dt = data->encoder.dt;
        data->dv = data->encoder.dv;
        data->text_encoder = data->encoder.name;
        return;
    }
    text_cache_open(&data->cache, o->text_cache, "");
    if (!caption_encoder_suits(&o->text, data->cache.encoder)) {
        fatal("-text_cache %s was made by text encoder %s, which is not that of -text, -text_len %d and -text_mask %d: "
              "what is trained could not be drawn with; give the flags that it was made with", o->text_cache,
              data->cache.encoder, o->text.length, o->text.mask);
    }
    data->dt = data->cache.dt;
    data->dv = data->cache.dv;
    data->text_encoder = data->cache.encoder;
    data->sets = text_cache_sets(&data->cache, &data->set);
    size_t rows = (size_t)B * o->text.length;
    data->step.rows = (floatX*)device_malloc(rows * data->dt * sizeof(floatX), "a step's text");
    data->step.pooled = (floatX*)device_malloc((size_t)B * data->dv * sizeof(floatX), "a step's text");
    data->step.first = (int*)device_malloc(B * sizeof(int), "a step's text");
}

// The text of a step's batch, into d.
static inline void caption_data_take(caption_data_t* data, const bucket_batch_t* batch, dit_t* d, stream_t s) {
    size_t B = (size_t)d->config.batch;
    text_batch_t* text = &data->step;
    data->batch = batch;
    if (data->cached) {
        text->L = batch->L;
        copy_to_device(text->rows, batch->rows, B * batch->L * data->dt * sizeof(floatX), s);
        copy_to_device(text->pooled, batch->pooled, B * data->dv * sizeof(floatX), s);
        copy_to_device(text->first, batch->first, B * sizeof(int), s);
    } else {
        caption_encoder_forward(&data->encoder, (const char* const*)batch->captions, (int)B, text, s);
    }
    d->captions.L = text->L;
    d->captions.text = text->rows;
    d->captions.first = text->first;
    d->captions.pooled = data->dv ? text->pooled : NULL;
}

// Ends the program, with the caption's name, where the encoder has made a NaN or an infinity for the last step.
static inline void caption_data_check(const caption_data_t* data) {
    if (!data->cached) caption_encoder_check(&data->encoder, (const char* const*)data->batch->captions, &data->step);
}

// Encodes all captions of -data into the file -text_cache.
static inline void caption_data_extract_text(const dit_options_t* o, stream_t s) {
    const size_t together = 64;
    static caption_encoder_t e;
    dataset_t set;
    text_cache_writer_t w;
    text_batch_t batch;
    caption_data_open_set(&set, o);
    string_list_t captions = text_cache_captions(&set);
    caption_encoder_open(&e, &o->text, (int)together);
    size_t n = captions.count, longest = (size_t)o->text.length;
    int* lengths = (int*)malloc_check(n * sizeof(int), "the captions' lengths");
    for (size_t i = 0; i < n; i += together) {
        int B = (int)(n - i < together ? n - i : together);
        caption_encoder_tokenize(&e, (const char* const*)captions.items + i, B);
        memcpy(lengths + i, e.counts, B * sizeof(int));
    }
    floatS* rows = (floatS*)malloc_check(together * longest * e.dt * sizeof(floatS), "rows of captions");
    floatS* pooled = (floatS*)calloc_check(together * (size_t)e.dv + 1, sizeof(floatS), "captions' vectors");
    progress_t progress = progress_begin("captions", (double)n, 1);
    text_cache_begin(&w, o->text_cache, e.name, lengths, n, e.dt, e.dv);
    for (size_t i = 0; i < n; i += together) {
        int B = (int)(n - i < together ? n - i : together);
        caption_encoder_batch(&e, (const char* const*)captions.items + i, B, &batch, s);
        stream_wait(s);
        copy_floats_to_host(rows, batch.rows, (size_t)B * batch.L * e.dt);
        if (e.dv) copy_floats_to_host(pooled, batch.pooled, (size_t)B * e.dv);
        for (int b = 0; b < B; b++) {
            size_t begin = (size_t)b * batch.L + (size_t)(batch.L - lengths[i + b]);
            text_cache_add(&w, captions.items[i + b], rows + begin * e.dt, pooled + (size_t)b * e.dv);
        }
        progress_say(&progress, (double)(i + B));
    }
    text_cache_end(&w);
    printf("text           %s: %zu captions, by %s\n", o->text_cache, n, e.name);
    free(rows);
    free(pooled);
    free(lengths);
    string_list_free(&captions);
    caption_encoder_close(&e);
    dataset_close(&set);
}
