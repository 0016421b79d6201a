// latent_source.h: where the latents that train_dit learns come from, and what comes with them.
//
// Images of classes give latents of one square size, with labels; images with captions give latents of several sizes,
// with text. Latents of either kind lie in shards on a disk, which `./train_dit -extract 1` has made, or are encoded
// beside the training (-latents none). A training knows little of which of the four it is: a step's batch arrives in
// the dit_t, normalised by mean and std, which a checkpoint keeps.
//
//     latent_source_choose(&l, &options, &cli, &comm);
//     latent_source_take_shape(&l);              channels, side and classes go from the latents into the flags
//     latent_source_open_classes(&l);            or, as the network takes its sizes and widths from it, before that:
//     latent_source_open_captions(&l, &config, prompts);
//     latent_source_measure(&l);                 mean and std, where no checkpoint gives them
//     latent_source_start(&l, step);             batches from this step on are prepared ahead
//     latent_source_next(&l, &dit, s);           the next step's, into the dit_t
//     latent_source_check(&l);                   was the text of that step finite?
//     latent_source_stop(&l);
// Look next at common/data/latents.h and bucket_latents.h, which read shards, and common/drawing/image_latents.h, which
// encodes beside the training.
#pragma once
#include <unistd.h>

// defines: cli_t, cli_source, cli_take_from_data
#include "common/program/cli.h"
// defines: latents_t, latents_are_there, latents_shape, latents_open, latents_statistics, latent_files_check_images
#include "common/data/latents.h"
// defines: bucket_latents_t, bucket_latents_open, bucket_latents_open_sizes, bucket_latents_statistics
#include "common/data/bucket_latents.h"
// defines: latent_loader_t, latent_loader_open, latent_loader_next, latent_loader_close
#include "common/data/latent_loader.h"
// defines: extract_latents, extract_class_names
#include "common/drawing/extract.h"
// defines: image_latents_t, image_latents_describe, _open, _start, _encode, _stop
#include "common/drawing/image_latents.h"
// defines: bucket_loader_t, bucket_loader_open, bucket_loader_next, bucket_loader_close
#include "common/training/bucket_loader.h"
// defines: caption_data_t, caption_data_open_set, caption_data_open_text, caption_data_take, caption_data_check
#include "common/training/caption_data.h"
// defines: comm_t, comm_is_first
#include "common/training/comm.h"
// defines: dit_t, dit_config_t, dit_set_size
#include "common/training/dit.h"
// defines: dit_options_t, dit_options_captions, dit_options_encodes
#include "common/training/dit_options.h"
// defines: needs_t, needs_images
#include "common/training/needs.h"
// defines: size_text
#include "common/training/run.h"

// It must stay where it is.
typedef struct {
    const dit_options_t* options;
    cli_t* cli;
    comm_t* comm;
    int with_captions, encodes; // else of classes; else in shards
    const char* name;           // where latents come from, for status lines
    latents_t latents;          // of classes: shards,
    dataset_t images;           // or what is encoded
    latent_loader_t loader;
    bucket_latents_t buckets;   // of captions: shards, or, of what is encoded, the sizes alone
    caption_data_t captions;
    bucket_loader_t bucket_loader;
    image_latents_t beside;     // what encodes
    const batch_ring_t* ring;   // in which batches are prepared
    const char* tokenizer;      // fingerprint of the one that made the latents; "" where nobody knows
    size_t count;               // images
    const char *class_names, *text_encoder, *text; // as a checkpoint keeps them (dit_info_t)
    floatS *mean, *std;         // (C) by which latents are normalised
} latent_source_t;

// Which of the four the flags mean.
void latent_source_choose(latent_source_t* l, const dit_options_t* o, cli_t* cli, comm_t* comm) {
    memset(l, 0, sizeof *l);
    l->options = o;
    l->cli = cli;
    l->comm = comm;
    l->with_captions = dit_options_captions(o);
    l->encodes = dit_options_encodes(o);
    l->name = l->encodes ? "encoded beside the training" : o->latents;
    l->class_names = l->text_encoder = l->text = "";
}

// -extract 1: makes the shards.
void latent_source_extract(latent_source_t* l, stream_t s) {
    dataset_t* set = l->with_captions ? &l->captions.set : NULL;
    if (set) caption_data_open_set(set, l->options);
    extract_latents(l->options, set, l->comm, s);
}

// ---------------------------------------------------------------------------------------------------------------------
// What the latents will be

// Is there what tells their shape?
int latent_source_is_there(const latent_source_t* l) {
    return l->encodes ? !access(l->options->tokenizer, R_OK) : latents_are_there(l->options->latents);
}

// The shape of latents that the tokenizer will make, and the images' classes.
static inline latents_shape_t latent_source_describe(latent_source_t* l) {
    const dit_options_t* o = l->options;
    image_latents_describe(&l->beside, o, l->comm);
    if (!l->with_captions && !o->run.dry_run) dataset_open(&l->images, o->data, SPLIT_TRAIN);
    latents_shape_t shape = {l->beside.tokenizer.z, l->beside.tokenizer.GH, l->images.class_count};
    return shape;
}

// The latents' shape and number of classes become those of the flags; flags that say otherwise end the program. From
// here on there is room for mean and std.
void latent_source_take_shape(latent_source_t* l) {
    const dit_options_t* o = l->options;
    latents_shape_t shape = l->encodes ? latent_source_describe(l) : latents_shape(o->latents);
    const struct { const char* flag; const int* place; int value; } told[3] = {
        {"z_channels", &o->z_channels, shape.C}, {"latent_side", &o->latent_side, shape.side},
        {"classes", &o->classes, o->uncond ? 0 : shape.classes}};
    for (int i = 0; i < (l->with_captions ? 1 : 3); i++) { // latents with captions have many sizes
        if (told[i].value <= 0 || cli_take_from_data(l->cli, told[i].flag, told[i].value)) continue;
        fatal("-%s %d, but %s %s have %d; leave the flag out, or give the right latents", told[i].flag, *told[i].place,
              l->encodes ? "the images encoded by -tokenizer" : "the shards in -latents",
              l->encodes ? o->tokenizer : o->latents, told[i].value);
    }
    l->mean = (floatS*)calloc_check(2 * o->z_channels, sizeof(floatS), "latent statistics");
    l->std = l->mean + o->z_channels;
}

// The tokenizer that encodes beside the training takes memory of its own.
void latent_source_print_tokenizer(const latent_source_t* l) {
    const autoencoder_t* a = &l->beside.tokenizer;
    char size[2][32];
    if (!l->encodes) return;
    if (!a->path) { // a dry run without it
        printf("tokenizer      none at -tokenizer %s: what encodes beside the training takes memory on top\n",
               l->options->tokenizer);
        return;
    }
    printf("tokenizer      %s: encodes %d images at once beside the training, in %s of weights and %s of activations "
           "on top\n", a->path, a->batch, size_text(size[0], a->params.table.total * sizeof(floatX)),
           size_text(size[1], autoencoder_plan_bytes(a)));
}

// ---------------------------------------------------------------------------------------------------------------------
// Opening

// Are shards of classes those of the images that the command line names? Training needs no images: a preset's -data is
// not asked, and neither are images that are gone.
static inline void latent_source_check_images(const latent_source_t* l) {
    const char* data = l->options->data;
    needs_t gone = {{NULL, 0, 0}, 0};
    dataset_t set;
    if (!comm_is_first(l->comm) || cli_source(l->cli, "data") != CLI_FROM_COMMAND_LINE || !data[0]) return;
    needs_images(&gone, data);
    json_text_free(&gone.list);
    if (gone.count) return;
    dataset_open(&set, data, SPLIT_TRAIN);
    latent_files_check_images(l->latents.files, l->latents.n_files, &set);
    dataset_close(&set);
}

void latent_source_open_classes(latent_source_t* l) {
    const dit_options_t* o = l->options;
    if (l->encodes) {
        image_latents_open(&l->beside, &l->images);
        l->count = l->beside.sizes.images;
        l->tokenizer = l->beside.tokenizer.fingerprint;
        l->class_names = extract_class_names(&l->images);
    } else {
        latents_open(&l->latents, o->latents, o->z_channels, o->latent_side, o->uncond ? 0 : o->classes);
        latent_source_check_images(l);
        l->count = l->latents.count;
        l->tokenizer = l->latents.tokenizer;
        l->class_names = l->latents.class_names;
    }
    if (o->uncond) l->class_names = "";
    printf("latents        %s: %zu of %d x %d with %d channels, %d classes%s%s\n", l->name, l->count, o->latent_side,
           o->latent_side, o->z_channels, o->classes, l->tokenizer[0] ? ", of tokenizer " : "", l->tokenizer);
}

// Where the text encoder runs beside the training, its memory comes on top.
static inline void latent_source_print_text(const caption_data_t* data) {
    const caption_encoder_t* e = &data->encoder;
    char size[2][32];
    printf("text           %s\n", data->text_encoder);
    if (data->cached || e->words) return;
    printf("               beside the training, in %s of weights and %s of activations\n",
           size_text(size[0], e->params.table.total * sizeof(floatX)), size_text(size[1], plan_bytes(&e->plan)));
}

// The network takes the latents' largest size and the text's widths. The text encoder must also take so many prompts.
void latent_source_open_captions(latent_source_t* l, dit_config_t* config, int prompts) {
    const dit_options_t* o = l->options;
    caption_data_t* data = &l->captions;
    bucket_latents_t* buckets = &l->buckets;
    caption_data_open_set(&data->set, o);
    if (l->encodes) {
        const autoencoder_t* a = &l->beside.tokenizer;
        image_latents_open(&l->beside, &data->set);
        bucket_latents_open_sizes(buckets, &l->beside.sizes, autoencoder_factor(a), a->z, a->fingerprint);
    } else {
        char captions[17];
        bucket_latents_open(buckets, o->latents, o->z_channels, captions_fingerprint(captions, &data->set),
                            data->set.count);
        latent_files_check_images(buckets->files, buckets->n_files, &data->set);
    }
    caption_data_open_text(data, o, config->batch > prompts ? config->batch : prompts);
    const aspect_bucket_t* largest = aspect_largest(&buckets->sizes);
    config->mmdit.h = largest->H;
    config->mmdit.w = largest->W;
    config->mmdit.text = data->dt;
    config->mmdit.vector = data->dv;
    l->count = buckets->sizes.images;
    l->tokenizer = buckets->tokenizer;
    l->text_encoder = data->text_encoder;
    l->text = data->text;
    printf("latents        %s: %zu of %d sizes up to %d x %d with %d channels, of tokenizer %s\n", l->name,
           l->count, buckets->sizes.count, largest->H, largest->W, o->z_channels, l->tokenizer);
    latent_source_print_text(data);
}

// The statistics that images are encoded with: those that the tokenizer's training has measured.
static inline void latent_source_take_statistics(latent_source_t* l) {
    const autoencoder_t* a = &l->beside.tokenizer;
    int good = a->statistics;
    for (int c = 0; c < a->z; c++) {
        l->mean[c] = a->mean[c];
        l->std[c] = a->std[c];
        good = good && isfinite((double)a->mean[c]) && isfinite((double)a->std[c]) && a->std[c] > 0;
    }
    if (good) return;
    fatal("-latents none: tokenizer %s tells no mean and deviation of its latents, by which training normalises them; "
          "begin with those of a checkpoint (-from), or measure them: latents of -extract 1 in -latents FOLDER",
          a->path);
}

void latent_source_measure(latent_source_t* l) {
    const dit_options_t* o = l->options;
    if (l->encodes) latent_source_take_statistics(l);
    else if (!l->with_captions) latents_statistics(&l->latents, o->run.seed, o->stats_images, l->mean, l->std);
    else bucket_latents_statistics(&l->buckets, o->run.seed, (size_t)o->stats_images, l->mean, l->std);
}

// ---------------------------------------------------------------------------------------------------------------------
// Batches

void latent_source_start(latent_source_t* l, int64_t step) {
    const dit_options_t* o = l->options;
    const comm_t* c = l->comm;
    dataloader_t* images = l->encodes ? &l->beside.loader : NULL;
    if (l->encodes) image_latents_start(&l->beside, (uint64_t)step);
    if (l->with_captions) {
        bucket_loader_options_t options = {o->batch, c->rank, c->size, o->run.workers, o->run.seed, l->mean, l->std,
                                           o->label_drop, o->text.length, images};
        const caption_data_t* data = &l->captions;
        bucket_loader_open(&l->bucket_loader, &l->buckets, &data->set, data->cached ? &data->cache : NULL, data->sets,
                           &options, (uint64_t)step);
        l->ring = &l->bucket_loader.ring;
    } else {
        latent_loader_options_t options = {o->batch, c->rank, c->size, o->run.workers, o->run.seed, o->flip,
                                           l->mean, l->std, 1.0, o->label_drop, o->uncond, o->classes,
                                           (uint64_t)o->uniform_from, o->shuffle_labels, images};
        latent_loader_open(&l->loader, &l->latents, &options, (uint64_t)step);
        l->ring = &l->loader.ring;
    }
}

void latent_source_next(latent_source_t* l, dit_t* d, stream_t s) {
    const batch_t* images; // yet to be encoded, or NULL
    const floatS *x1, *t;
    size_t B = (size_t)d->config.batch;
    if (l->with_captions) {
        const bucket_batch_t* batch = bucket_loader_next(&l->bucket_loader);
        images = batch->pixels, x1 = batch->x1, t = batch->t;
        dit_set_size(d, batch->h, batch->w);
        caption_data_take(&l->captions, batch, d, s);
    } else {
        const latent_batch_t* batch = latent_loader_next(&l->loader);
        images = batch->images, x1 = batch->x1, t = batch->t;
        copy_to_device(d->labels, batch->labels, B * sizeof(int), s);
    }
    if (images) x1 = image_latents_encode(&l->beside, images, l->mean, l->std, s);
    copy_to_device(d->x1, x1, B * d->n * sizeof(floatS), s);
    copy_to_device(d->t, t, B * sizeof(floatS), s);
}

// Ends the program where the text of the last step is what is not finite.
void latent_source_check(const latent_source_t* l) {
    if (l->with_captions) caption_data_check(&l->captions);
}

void latent_source_stop(latent_source_t* l) {
    if (l->with_captions) bucket_loader_close(&l->bucket_loader);
    else latent_loader_close(&l->loader);
    if (l->encodes) image_latents_stop(&l->beside);
}

// Behind the first step: what the loader of images can give.
void latent_source_print_speed(latent_source_t* l) {
    if (l->encodes) dataloader_print_speed(&l->beside.loader);
}

// Says that the training waits for this part of its time.
void latent_source_warn(latent_source_t* l, double wait) {
    if (l->encodes) {
        char who[DATALOADER_THREADS_TEXT];
        warn("training waits for images %.0f%% of the time: %.0f a second come from %s. Give more -workers, or put "
             "smaller images on a faster disk", 100 * wait, dataloader_speed(&l->beside.loader),
             dataloader_threads_text(&l->beside.loader, who));
        return;
    }
    warn("training waits for latents %.0f%% of the time; put -latents %s on a faster disk, or make room in memory for "
         "it%s", 100 * wait, l->options->latents, l->options->run.workers ? "" : ", and leave -workers 0 out");
}
