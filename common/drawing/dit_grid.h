// dit_grid.h: the picture that train_dit draws beside the training (dit_STEP.png): some classes or prompts, one a row,
// at the left by the raw weights, at the right by their average, from the same noise each time.
//
//     dit_grid_choose_prompts(&g, list);                  before the text encoder, which must take g.prompts at once
//     dit_grid_open(&g, &options, &dit, &source, s);      once weights and latent statistics are there
//     dit_grid_write(&g, step, configuration);            between two steps, by all processes: the first one draws
// Look next at common/drawing/dit_sampler.h, which draws, and common/data/row_picture.h, the page.
#pragma once
#include <unistd.h>

// defines: autoencoder_t, autoencoder_open, autoencoder_factor, autoencoder_image_values
#include "common/drawing/autoencoder.h"
// defines: class_names_t, class_names_read, class_name, class_names_free
#include "common/drawing/class_names.h"
// defines: dit_sampler_t, dit_sampler_open, dit_sampler_open_captions, dit_sampler_show, dit_sampler_draw
#include "common/drawing/dit_sampler.h"
// defines: latent_source_t
#include "common/drawing/latent_source.h"
// defines: row_picture_t, row_picture_add, row_picture_centre, row_picture_page; image_write_png
#include "common/data/row_picture.h"
// defines: caption_encoder_t, caption_encoder_open, caption_encoder_batch, caption_encoder_close
#include "common/models/caption_encoder.h"
// defines: progress_t, progress_begin, progress_say
#include "common/program/progress.h"
// defines: dit_t
#include "common/training/dit.h"
// defines: replicas_exchange_ema
#include "common/training/replicas.h"

enum { DIT_GRID_ROWS = ROW_PICTURE_ROWS };

// It must stay where it is.
typedef struct {
    const dit_options_t* options;
    dit_t* dit;
    latent_source_t* source;
    stream_t stream;
    int draws;                        // this process does
    autoencoder_t tokenizer;
    dit_sampler_t sampler;
    int rows;
    int labels[DIT_GRID_ROWS];        // classes, or places among the prompts
    char names[DIT_GRID_ROWS][80];
    char* prompts[1 + DIT_GRID_ROWS]; // the first is the empty one
    text_batch_t text;                // they, encoded
} dit_grid_t;

// ---------------------------------------------------------------------------------------------------------------------
// The rows

// Takes the prompts of -grid_prompts, with | between them, behind the empty one.
void dit_grid_choose_prompts(dit_grid_t* g, const char* list) {
    g->prompts[0] = string_copy("");
    while (*list && g->rows < DIT_GRID_ROWS) {
        size_t length = strcspn(list, "|");
        char* prompt = string_copy(list);
        prompt[length] = 0;
        snprintf(g->names[g->rows], sizeof g->names[0], "%s", prompt);
        g->labels[g->rows] = g->rows + 1;
        g->prompts[++g->rows] = prompt;
        list += length + (list[length] == '|');
    }
}

// Takes the classes of -grid_classes.
static inline void dit_grid_choose_classes(dit_grid_t* g) {
    const dit_options_t* o = g->options;
    int all = o->uncond || !strcmp(o->grid_classes, "all");
    char list[1024];
    class_names_t names;
    for (int i = 0; all && i < o->classes && i < DIT_GRID_ROWS; i++) g->labels[g->rows++] = i;
    snprintf(list, sizeof list, "%s", all ? "" : o->grid_classes);
    for (char* at = strtok(list, ","); at && g->rows < DIT_GRID_ROWS; at = strtok(NULL, ",")) {
        char* end;
        long label = strtol(at, &end, 10);
        if (end == at || *end || label < 0 || label >= o->classes) {
            fatal("-grid_classes %s: %s is no class; they are 0 to %d", o->grid_classes, at, o->classes - 1);
        }
        g->labels[g->rows++] = (int)label;
    }
    class_names_read(&names, g->source->class_names, o->classes, 0);
    for (int r = 0; r < g->rows; r++) {
        snprintf(g->names[r], sizeof g->names[0], "%d %s", g->labels[r], class_name(&names, g->labels[r]));
    }
    class_names_free(&names);
}

// The prompts as text rows, by the encoder that runs beside the training, or by one for them alone. 0: there is none.
static inline int dit_grid_encode_prompts(dit_grid_t* g) {
    static caption_encoder_t own;
    const dit_options_t* o = g->options;
    caption_data_t* data = &g->source->captions;
    caption_encoder_t* e = data->cached ? &own : &data->encoder;
    text_batch_t made;
    if (data->cached && o->text.kind == TEXT_T5 && !o->text.t5[0]) {
        warn("no -t5, which would encode -grid_prompts: no pictures of samples are drawn");
        return 0;
    }
    if (data->cached) caption_encoder_open(&own, &o->text, 1 + g->rows);
    if (strcmp(e->name, data->text_encoder)) {
        fatal("-text_cache %s was made by text encoder %s, and this is %s; give that one", o->text_cache,
              data->text_encoder, e->name);
    }
    caption_encoder_batch(e, (const char* const*)g->prompts, 1 + g->rows, &made, g->stream);
    size_t rows = (size_t)made.B * made.L * e->dt * sizeof(floatX), vectors = (size_t)made.B * e->dv * sizeof(floatX);
    g->text = made;
    g->text.rows = (floatX*)device_malloc(rows, "the prompts of pictures");
    g->text.first = (int*)device_malloc(made.B * sizeof(int), "the prompts of pictures");
    g->text.pooled = e->dv ? (floatX*)device_malloc(vectors, "the prompts of pictures") : NULL;
    copy_on_device(g->text.rows, made.rows, rows, g->stream);
    copy_on_device(g->text.first, made.first, made.B * sizeof(int), g->stream);
    if (e->dv) copy_on_device(g->text.pooled, made.pooled, vectors, g->stream);
    stream_wait(g->stream);
    if (data->cached) caption_encoder_close(&own);
    return 1;
}

// ---------------------------------------------------------------------------------------------------------------------
// Opening

// The tokenizer decodes; it must be the one that made the latents.
static inline void dit_grid_open_tokenizer(dit_grid_t* g, int batch) {
    const dit_options_t* o = g->options;
    const char* wanted = g->source->tokenizer;
    autoencoder_open(&g->tokenizer, o->tokenizer, (autoencoder_weights_t)o->tokenizer_weights, batch, 0, 1);
    if (!wanted[0] || !strcmp(wanted, g->tokenizer.fingerprint)) return;
    fatal("-tokenizer %s has fingerprint %s (weights: %s), the latents in %s were made by %s; give the tokenizer that "
          "made them, or its weights with -tokenizer_weights", o->tokenizer, g->tokenizer.fingerprint,
          g->tokenizer.weights, o->latents, wanted);
}

void dit_grid_open(dit_grid_t* g, const dit_options_t* o, dit_t* d, latent_source_t* l, stream_t s) {
    int captions = l->with_captions;
    g->options = o;
    g->dit = d;
    g->source = l;
    g->stream = s;
    if (!comm_is_first(l->comm)) return;
    if (!o->tokenizer[0] || access(o->tokenizer, R_OK)) {
        warn("%s%s: no pictures of samples are drawn",
             o->tokenizer[0] ? "no tokenizer at -tokenizer " : "no -tokenizer", o->tokenizer);
        return;
    }
    if (captions && (!g->rows || !dit_grid_encode_prompts(g))) return;
    int tokens = captions ? d->mmdit.text_rows + d->mmdit.image_rows : lightningdit_tokens(&d->config.net);
    dit_sampler_options_t options = {FLOW_EULER, o->sample_steps, o->sample_shift,
                                     {o->uncond ? 1 : o->cfg, o->cfg_start, o->cfg_channels, captions},
                                     d->config.batch / 2 > 1 ? d->config.batch / 2 : 1, o->run.seed,
                                     PREDICTS_VELOCITY, DDPM_ANCESTRAL, 0};
    dit_grid_open_tokenizer(g, dit_sampler_batch(options.batch, tokens));
    if (captions) {
        dit_sampler_open_captions(&g->sampler, &d->mmdit, &d->params, &g->tokenizer, l->mean, l->std, options);
    } else {
        dit_grid_choose_classes(g);
        dit_sampler_open(&g->sampler, &d->net, &d->params, &g->tokenizer, l->mean, l->std, options);
    }
    g->draws = 1;
}

// ---------------------------------------------------------------------------------------------------------------------
// Drawing

// The size of the picture's cells: the largest height and width of what is drawn.
static inline void dit_grid_cell(const dit_grid_t* g, int* H, int* W) {
    const aspect_t* sizes = &g->source->buckets.sizes; // none where there are classes
    int factor = autoencoder_factor(&g->tokenizer);
    *H = sizes->count ? 0 : g->tokenizer.H;
    *W = sizes->count ? 0 : g->tokenizer.W;
    for (int k = 0; k < sizes->count && k < g->rows; k++) {
        if (sizes->buckets[k].H * factor > *H) *H = sizes->buckets[k].H * factor;
        if (sizes->buckets[k].W * factor > *W) *W = sizes->buckets[k].W * factor;
    }
}

// Draws the left or the right half of all rows. Prompts take turns with the sizes of the latents. 0 where a sample is
// none (a NaN, an infinity).
static inline int dit_grid_draw(dit_grid_t* g, row_picture_t* picture, int right, progress_t* progress) {
    int columns = picture->columns / 2, H = picture->H, W = picture->W, good = 1;
    size_t cell = (size_t)H * W * 3;
    uint8_t* made = (uint8_t*)malloc_check(columns * cell, "a row of samples");
    uint64_t* numbers = (uint64_t*)malloc_check(columns * sizeof(uint64_t), "a row of samples");
    int* labels = (int*)malloc_check(columns * sizeof(int), "a row of samples");
    const aspect_t* sizes = &g->source->buckets.sizes;
    const autoencoder_t* a = &g->tokenizer;
    for (int r = 0; r < g->rows && good; r++) {
        for (int c = 0; c < columns; c++) {
            numbers[c] = (uint64_t)r * columns + c;
            labels[c] = g->labels[r];
        }
        const aspect_bucket_t* b = sizes->count ? &sizes->buckets[r % sizes->count] : NULL;
        if (b) dit_sampler_show(&g->sampler, &g->text, b->H, b->W);
        good = dit_sampler_draw(&g->sampler, made, numbers, labels, columns, g->stream) == columns;
        uint8_t* at = picture->cells + ((size_t)r * 2 + right) * columns * cell;
        for (int c = 0; c < columns; c++) {
            row_picture_centre(at + c * cell, H, W, made + c * autoencoder_image_values(a), a->H, a->W);
        }
        progress_say(progress, (double)(right * g->rows + r + 1) * columns);
    }
    free(made);
    free(numbers);
    free(labels);
    return good;
}

static inline void dit_grid_write_page(const dit_grid_t* g, const row_picture_t* picture, int64_t step,
                                       const char* configuration) {
    char path[1200], error[IMAGE_ERROR_SIZE], number[32], rows[100];
    image_t page = row_picture_page(picture);
    snprintf(number, sizeof number, "%lld", (long long)step);
    snprintf(path, sizeof path, "%s/dit_%06lld.png", g->options->run.out, (long long)step);
    snprintf(rows, sizeof rows, "one %s each; left half: raw weights, right half: averaged, same noise",
             g->source->with_captions ? "prompt" : "class");
    image_text_t texts[4] = {{"Rows", rows}, {"Program", "train_dit"}, {"Step", number},
                             {"Configuration", configuration}};
    if (image_write_png(path, &page, texts, 4, error)) printf("samples        %s\n", path);
    else warn("%s; training goes on", error);
    image_free(&page);
}

void dit_grid_write(dit_grid_t* g, int64_t step, const char* configuration) { // JSON
    params_t* params = &g->dit->params;
    comm_t* comm = g->source->comm;
    row_picture_t picture;
    progress_t progress = progress_begin("drawing", 2.0 * g->rows * g->options->grid_columns, g->draws);
    int good = 1, H, W;
    if (g->draws) {
        dit_grid_cell(g, &H, &W);
        row_picture_open(&picture, 2 * g->options->grid_columns, H, W);
        picture.halves[0] = "raw weights";
        picture.halves[1] = "averaged, the same noise";
        for (int r = 0; r < g->rows; r++) row_picture_add(&picture, g->names[r]);
        good = dit_grid_draw(g, &picture, 0, &progress);
    }
    replicas_exchange_ema(params, 0, comm, g->stream);
    if (g->draws) good &= dit_grid_draw(g, &picture, 1, &progress);
    replicas_exchange_ema(params, 0, comm, g->stream);
    if (!g->draws) return;
    if (good) dit_grid_write_page(g, &picture, step, configuration);
    else warn("step %lld: a sample holds a NaN or an infinity, no picture is drawn; training goes on", (long long)step);
    row_picture_close(&picture);
}
