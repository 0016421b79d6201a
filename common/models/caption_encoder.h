// caption_encoder.h: from captions to what a text-to-image transformer reads of them: rows, and one pooled vector. One
// way for training, drawing and measuring.
//
//     -text fixed   the rows of common/text/word_rows.h, for the miniature world: nothing is read from a file
//     -text t5      T5's encoder makes the rows and CLIP's text tower the vector; without -text_clip there is no vector
//
//     caption_encoder_open(&e, &options, 64);                    // at most so many captions at once
//     caption_encoder_batch(&e, captions, n, &batch, s);         // batch: see text_batch_t
//     caption_encoder_close(&e);
//
// A training calls caption_encoder_forward, which looks for no NaN, and caption_encoder_check once its loss is one.
//
// The rows of a caption stand at the end of its L: it ends at row L - 1 and begins at row first_b. What it becomes does
// not depend on the captions beside it. With -text_mask 0 every caption has all -text_len rows, padding behind it, as
// FLUX's published weights want it.
//
// `name` tells all that decides the output. It stands in text caches (common/data/text_cache.h) and in the metadata of
// what was trained (text_encoder), and `saved` beside it (text), which opens the same encoder again but for the paths.
// Any bytes are a caption: both tokenizers count what is no UTF-8 as U+FFFD. What is too long is cut, and said once.
// Look next at common/models/t5.h, common/models/clip.h and common/models/mmdit.h.
#pragma once
// defines: t5_t, t5_forward, clip_text_t, clip_text_forward, t5_load, clip_load_text, *_config_of_file
#include "common/models/text_weights.h"
// defines: cli_flag_t
#include "common/program/cli.h"
// defines: json_text_t, json_append_string
#include "common/program/json.h"
// defines: text_batch_t
#include "common/text/text_batch.h"
// defines: clip_bpe_t, clip_bpe_open, clip_bpe_encode, CLIP_LENGTH
#include "common/text/clip_bpe.h"
// defines: unigram_t, unigram_open, unigram_encode
#include "common/text/unigram.h"
// defines: word_rows_t, word_rows_open, word_rows, word_next
#include "common/text/word_rows.h"
// defines: HASH_START, hash_bytes, hash_string, hash_text, hash_word
#include "common/program/hash.h"

enum { TEXT_FIXED, TEXT_T5 }; // -text
#define TEXT_KINDS "fixed|t5"
#define TEXT_ROWS_ALLOWED "[2, 512]" // to TEXT_ROWS_MOST

enum {
    CAPTION_ENCODER_FLAGS = 7,
    CAPTION_ENCODER_NAME = 160,
    CAPTION_ENCODER_SAVED = 40,
    CAPTION_ROWS_STEP = 16,  // rows of a batch are a multiple of it, or all there may be
    CAPTION_SHOWN = 60       // bytes of a caption in a message
};

typedef struct {
    int kind;   // TEXT_FIXED, ...
    const char *t5, *t5_vocabulary, *clip, *clip_vocabulary; // paths
    int length; // most rows of a caption
    int mask;   // 1: padding is left out; 0: it counts as text
} caption_encoder_options_t;

// It must stay where it is: memory plans point into it.
typedef struct {
    caption_encoder_options_t options;
    int dt, dv;   // widths of a row and of the pooled vector (0: none)
    char name[CAPTION_ENCODER_NAME];
    char saved[CAPTION_ENCODER_SAVED];
    int capacity;
    int said_cut;          // that captions are cut has been said
    char unknown[400];     // words that have been named as unknown, with blanks around
    int *ids, *counts;     // (capacity, length), (capacity) on the host
    text_batch_t batch;    // what the last call made, but for the rows of T5
    word_rows_t* words;
    unigram_t unigram;
    clip_bpe_t bpe;
    t5_t t5;
    clip_text_t clip;
    params_t params;       // of T5, then of CLIP
    plan_t plan;
} caption_encoder_t;

// The flags, for the tables of train_dit, sample and eval.
static inline int caption_encoder_flags(caption_encoder_options_t* o, cli_flag_t out[CAPTION_ENCODER_FLAGS]) {
    const cli_flag_t flags[CAPTION_ENCODER_FLAGS] = {
        {"Text encoder", "text", CLI_CHOICE, &o->kind, "t5", TEXT_KINDS,
         "t5: T5 and CLIP; fixed: a table of the miniature world's words", CLI_SAVED},
        {NULL, "t5", CLI_STRING, &o->t5, "", NULL,
         "T5 v1.1's encoder as published: a file, or the folder or index of one in several", CLI_NOT_SAVED},
        {NULL, "t5_vocabulary", CLI_STRING, &o->t5_vocabulary, "", NULL, "its spiece.model", CLI_NOT_SAVED},
        {NULL, "text_clip", CLI_STRING, &o->clip, "", NULL,
         "CLIP as published, for the pooled vector; none: the transformer reads T5 alone", CLI_NOT_SAVED},
        {NULL, "text_clip_vocabulary", CLI_STRING, &o->clip_vocabulary, "", NULL,
         "its merges.txt or bpe_simple_vocab_16e6.txt.gz", CLI_NOT_SAVED},
        {NULL, "text_len", CLI_INT, &o->length, "256", TEXT_ROWS_ALLOWED,
         "most rows of a caption; what is longer is cut", CLI_SAVED},
        {NULL, "text_mask", CLI_BOOL, &o->mask, "1", NULL,
         "padding is left out; 0: it counts as text, as FLUX's published weights want it (with -text_len 512)",
         CLI_SAVED},
    };
    memcpy(out, flags, sizeof flags);
    return CAPTION_ENCODER_FLAGS;
}

// ---------------------------------------------------------------------------------------------------------------------
// Names

// A hash of a model's file or files: all names, and of each tensor at most 4,096 bytes, evenly spaced. Models of ten
// gigabytes are told from one another without reading them twice.
static inline uint64_t caption_encoder_hash(const char* path) {
    enum { LOOKS = 1024 };
    safetensors_t f;
    uint64_t h = HASH_START;
    tensor_file_open_or_die(&f, path);
    for (int i = 0; i < f.n; i++) {
        const st_tensor_t* t = f.by_name[i];
        size_t words = (t->end - t->begin) / 4, step = words / LOOKS + 1;
        h = hash_string(h, t->name);
        for (size_t k = 0; k < words; k += step) {
            uint32_t word;
            memcpy(&word, t->data + 4 * k, sizeof word);
            h = hash_word(h, word);
        }
    }
    safetensors_close(&f);
    return h;
}

// A hash of a small file's bytes.
static inline uint64_t caption_encoder_file_hash(const char* path) {
    char error[512];
    size_t size;
    unsigned char* map = (unsigned char*)file_map(path, "a vocabulary", &size, error, sizeof error);
    if (!map) fatal("%s: %s; check the path", path, error);
    uint64_t h = hash_bytes(HASH_START, map, size);
    munmap(map, size);
    return h;
}

// All options but the paths, for caption_encoder_take_saved.
static inline void caption_encoder_saved(char text[CAPTION_ENCODER_SAVED], const caption_encoder_options_t* o) {
    snprintf(text, CAPTION_ENCODER_SAVED, "%s %d %d", o->kind == TEXT_FIXED ? "fixed" : "t5", o->length, o->mask);
}

// How a name ends.
static inline const char* caption_encoder_rows(char rows[48], const caption_encoder_options_t* o) {
    snprintf(rows, 48, "at most %d rows%s", o->length, o->mask ? "" : ", padding counts");
    return rows;
}

// Do these options, whatever the files, make an encoder of this name?
static inline int caption_encoder_suits(const caption_encoder_options_t* o, const char* name) {
    char rows[48];
    size_t tail = strlen(caption_encoder_rows(rows, o)), length = strlen(name);
    int kind = strncmp(name, "fixed", 5) ? TEXT_T5 : TEXT_FIXED;
    return kind == o->kind && length > tail && !strcmp(name + length - tail, rows);
}

static inline void caption_encoder_set_name(caption_encoder_t* e) {
    const caption_encoder_options_t* o = &e->options;
    char rows[48], hash[4][17] = {"", "", "-", "-"};
    caption_encoder_rows(rows, o);
    caption_encoder_saved(e->saved, o);
    if (o->kind == TEXT_FIXED) {
        snprintf(e->name, sizeof e->name, "fixed table of %d words in context, %s", WORD_COUNT, rows);
        return;
    }
    hash_text(hash[0], caption_encoder_hash(o->t5));
    hash_text(hash[1], caption_encoder_file_hash(o->t5_vocabulary));
    if (e->dv) hash_text(hash[2], caption_encoder_hash(o->clip));
    if (e->dv) hash_text(hash[3], caption_encoder_file_hash(o->clip_vocabulary));
    snprintf(e->name, sizeof e->name, "T5 %s %s CLIP %s %s, %s", hash[0], hash[1], hash[2], hash[3], rows);
}

// Takes from what was trained (its metadata field "text") all options but the paths.
static inline void caption_encoder_take_saved(caption_encoder_options_t* o, const char* saved, const char* path) {
    char kind[8];
    if (sscanf(saved, "%7s %d %d", kind, &o->length, &o->mask) != 3 || (strcmp(kind, "fixed") && strcmp(kind, "t5")) ||
        o->length < 2 || o->length > TEXT_ROWS_MOST || o->mask < 0 || o->mask > 1) {
        fatal("%s: metadata field \"text\" is \"%.80s\", which is no text encoder of ours; the file is damaged", path,
              saved);
    }
    o->kind = strcmp(kind, "fixed") ? TEXT_T5 : TEXT_FIXED;
}

// Ends the program unless the encoder's rows and vectors have the widths that a transformer in `path` reads.
static inline void caption_encoder_check_widths(const caption_encoder_t* e, int dt, int dv, const char* path) {
    if (e->dt != dt) {
        fatal("%s reads text rows of %d values, and the encoder's have %d: give the T5 that it was trained with (-t5: "
              "XXL has 4096, XL 2048, large 1024, base 768, small 512), or -text fixed in the miniature world (%d)",
              path, dt, e->dt, WORD_WIDTH);
    }
    if (e->dv != dv) {
        fatal("%s reads pooled vectors of %d values, and the encoder's have %d (0: none): give the CLIP that it was "
              "trained with (-text_clip: L/14 has 768, B/32 512, H/14 1024), or none", path, dv, e->dv);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Opening

static inline void caption_encoder_need(const char* flag, const char* path, const char* what) {
    if (!path[0]) fatal("-text t5 needs %s: give it with -%s, or -text fixed for the miniature world", what, flag);
    if (access(path, R_OK)) fatal("-%s %s: %s; give %s", flag, path, strerror(errno), what);
}

static inline void caption_encoder_open_models(caption_encoder_t* e) {
    const caption_encoder_options_t* o = &e->options;
    caption_encoder_need("t5", o->t5, "T5 v1.1's encoder");
    caption_encoder_need("t5_vocabulary", o->t5_vocabulary, "T5's spiece.model");
    int has_clip = o->clip[0] != 0;
    if (has_clip) caption_encoder_need("text_clip", o->clip, "CLIP's weights");
    if (has_clip) caption_encoder_need("text_clip_vocabulary", o->clip_vocabulary, "CLIP's merges.txt");
    unigram_open(&e->unigram, o->t5_vocabulary);
    e->t5.config = t5_config_of_file(o->t5);
    e->dt = e->t5.config.dim;
    if (e->unigram.n > e->t5.config.vocabulary || e->unigram.n < 3) {
        fatal("-t5_vocabulary %s has %d pieces, and -t5 %s has rows for %d; give the spiece.model of that T5",
              o->t5_vocabulary, e->unigram.n, o->t5, e->t5.config.vocabulary);
    }
    t5_register(&e->t5, &e->params.table, "t5.");
    t5_plan(&e->t5, &e->plan, e->capacity, o->length);
    if (has_clip) {
        const clip_config_t* config = clip_config_of_file(o->clip);
        clip_bpe_open(&e->bpe, o->clip_vocabulary);
        if (e->bpe.end + 1 != config->vocabulary) {
            fatal("-text_clip_vocabulary %s has %d numbers, and -text_clip %s has rows for %d; give CLIP's own whole "
                  "vocabulary", o->clip_vocabulary, e->bpe.end + 1, o->clip, config->vocabulary);
        }
        e->dv = config->text_dim;
        clip_register_text(&e->clip, config, &e->params.table, "clip.");
        clip_plan_text(&e->clip, &e->plan, e->capacity, CLIP_LENGTH);
    }
    params_allocate(&e->params, e->params.table.total, 0, "the text encoders' weights");
    plan_allocate(&e->plan, "the text encoders' activations");
    t5_load(&e->params, "t5.", o->t5);
    if (has_clip) clip_load_text(&e->params, "clip.", o->clip);
}

// capacity: most captions at once.
static inline void caption_encoder_open(caption_encoder_t* e, const caption_encoder_options_t* o, int capacity) {
    memset(e, 0, sizeof *e);
    e->options = *o;
    e->capacity = capacity;
    if (o->kind == TEXT_FIXED) {
        e->words = (word_rows_t*)malloc_check(sizeof(word_rows_t), "the table of words");
        word_rows_open(e->words);
        e->dt = e->dv = WORD_WIDTH;
        size_t values = (size_t)capacity * o->length * e->dt;
        e->batch.rows = (floatX*)device_malloc(values * sizeof(floatX), "rows of captions");
        e->batch.first = (int*)device_malloc(capacity * sizeof(int), "rows of captions");
    } else {
        caption_encoder_open_models(e);
    }
    int longest = o->kind == TEXT_T5 && o->length < CLIP_LENGTH ? CLIP_LENGTH : o->length;
    e->ids = (int*)malloc_check((size_t)capacity * (longest + 1) * sizeof(int), "the numbers of words");
    e->counts = (int*)malloc_check(capacity * sizeof(int), "the numbers of words");
    if (e->dv) e->batch.pooled = (floatX*)device_malloc((size_t)capacity * e->dv * sizeof(floatX), "captions' vectors");
    caption_encoder_set_name(e);
}

static inline void caption_encoder_close(caption_encoder_t* e) {
    if (e->words) {
        device_free(e->batch.rows);
        device_free(e->batch.first);
    } else {
        unigram_close(&e->unigram);
        if (e->dv) clip_bpe_close(&e->bpe);
        params_free(&e->params);
        plan_free(&e->plan);
    }
    if (e->dv) device_free(e->batch.pooled);
    free(e->words);
    free(e->ids);
    free(e->counts);
    memset(e, 0, sizeof *e);
}

// Bytes of the published encoders' weights whose rows and vectors have these widths, without opening them; 0: unknown.
static inline size_t caption_encoder_published_bytes(int dt, int dv) {
    static t5_t t5;
    static clip_text_t clip;
    param_table_t table = {NULL, 0, 0, 0};
    for (int i = 0; i < T5_CONFIGS; i++) {
        if (t5_configs[i].dim != dt) continue;
        t5.config = t5_configs[i];
        t5_register(&t5, &table, "t5.");
    }
    for (int i = CLIP_CONFIGS - 1; table.n && i >= 0; i--) {
        if (clip_configs[i].text_dim != dv) continue;
        clip_register_text(&clip, &clip_configs[i], &table, "clip.");
        break;
    }
    free(table.items);
    return table.total * sizeof(floatX);
}

// ---------------------------------------------------------------------------------------------------------------------
// Encoding

static inline void caption_encoder_say_cut(caption_encoder_t* e, const char* caption) {
    if (e->said_cut) return;
    e->said_cut = 1;
    warn("a caption is longer than the %d rows of -text_len, and its end is cut: \"%.*s...\"; further ones are cut too",
         e->options.length, CAPTION_SHOWN, caption);
}

// Each unknown word is named once, as long as there is room to note that it was.
static inline void caption_encoder_name_unknown(caption_encoder_t* e, const char* word) {
    json_text_t text = {NULL, 0, 0};
    char noted[WORD_LONGEST + 2];
    snprintf(noted, sizeof noted, " %s ", word);
    if (strstr(e->unknown, noted) || strlen(e->unknown) + strlen(noted) > sizeof e->unknown) return;
    strcat(e->unknown, noted);
    json_append_string(&text, word);
    json_append(&text, " is no word of the miniature world and says nothing");
    int first = !strcmp(e->unknown, noted);
    for (int i = 0; first && i < WORDS; i++) json_append(&text, "%s %s", i ? "" : "; its words are", word_list[i]);
    warn("%s", text.text);
    json_text_free(&text);
}

// A caption as numbers of the rows' encoder, with the mark of the end, padding behind. Returns how many there are with
// that mark; more than `length` where it is too long. ids has room for length + 1.
static inline int caption_encoder_numbers(caption_encoder_t* e, const char* caption, int* ids) {
    int length = e->options.length, n = 0, id;
    if (e->options.kind == TEXT_T5) return unigram_encode(&e->unigram, caption, ids, length + 1);
    for (char word[WORD_LONGEST]; n < length && (id = word_next(&caption, word));) {
        if (id == WORD_UNKNOWN) caption_encoder_name_unknown(e, word);
        ids[n++] = id;
    }
    ids[n++] = WORD_END;
    for (int i = n; i <= length; i++) ids[i] = WORD_PAD;
    return n;
}

// Rows of a batch whose longest caption has `longest`, where `most` are possible.
static inline int caption_rows(int longest, int most) {
    int rows = (longest + CAPTION_ROWS_STEP - 1) / CAPTION_ROWS_STEP * CAPTION_ROWS_STEP;
    return rows < most ? rows : most;
}

// All captions as numbers, (n, L) of them, and their counts. Returns L.
static inline int caption_encoder_tokenize(caption_encoder_t* e, const char* const* captions, int n) {
    int length = e->options.length, stride = length + 1, longest = 1, end = e->words ? WORD_END : e->unigram.end;
    for (int b = 0; b < n; b++) {
        int* ids = e->ids + (size_t)b * stride;
        int count = caption_encoder_numbers(e, captions[b], ids);
        if (count > length) {
            caption_encoder_say_cut(e, captions[b]);
            ids[length - 1] = end;
            count = length;
        }
        e->counts[b] = e->options.mask ? count : length;
        longest = e->counts[b] > longest ? e->counts[b] : longest;
    }
    int L = caption_rows(longest, length);
    for (int b = 0; b < n; b++) memmove(e->ids + (size_t)b * L, e->ids + (size_t)b * stride, L * sizeof(int));
    return L;
}

static inline void caption_encoder_fixed(caption_encoder_t* e, int n, int L, stream_t s) {
    size_t values = (size_t)n * L * WORD_WIDTH;
    floatS* rows = (floatS*)calloc_check(values + (size_t)n * WORD_WIDTH, sizeof(floatS), "rows of captions");
    floatS* pooled = rows + values;
    int* first = (int*)malloc_check(n * sizeof(int), "rows of captions");
    for (int b = 0; b < n; b++) {
        first[b] = L - e->counts[b];
        word_rows(e->words, e->ids + (size_t)b * L, e->counts[b], rows + ((size_t)b * L + first[b]) * WORD_WIDTH,
                  pooled + (size_t)b * WORD_WIDTH);
    }
    stream_wait(s); // of who reads the batch before
    copy_floats_to_device(e->batch.rows, rows, values);
    copy_floats_to_device(e->batch.pooled, pooled, (size_t)n * WORD_WIDTH);
    copy_to_device(e->batch.first, first, n * sizeof(int), 0);
    free(rows);
    free(first);
}

static inline void caption_encoder_models(caption_encoder_t* e, const char* const* captions, int n, int L, stream_t s) {
    e->t5.B = e->clip.blocks.B = n;
    e->t5.T = L;
    t5_forward(&e->t5, &e->params, e->ids, e->options.mask ? e->counts : NULL, s);
    if (!e->dv) return;
    int longest = 1;
    for (int b = 0; b < n; b++) {
        int count = clip_bpe_encode(&e->bpe, captions[b], e->ids + b * CLIP_LENGTH, CLIP_LENGTH);
        longest = count > longest ? count : longest;
    }
    for (int b = 0; b < n; b++) memmove(e->ids + b * longest, e->ids + b * CLIP_LENGTH, longest * sizeof(int));
    e->clip.blocks.T = longest;
    clip_text_forward(&e->clip, &e->params, e->ids, s);
    to_floatX(e->batch.pooled, e->clip.pooled, (size_t)n * e->dv, s);
}

// n captions, at most `capacity`. What *out points at is the encoder's, and stays until the next call.
static inline void caption_encoder_forward(caption_encoder_t* e, const char* const* captions, int n, text_batch_t* out,
                                           stream_t s) {
    assert(n > 0 && n <= e->capacity);
    int L = caption_encoder_tokenize(e, captions, n);
    *out = e->batch;
    out->B = n;
    out->L = L;
    if (e->words) {
        caption_encoder_fixed(e, n, L, s);
        return;
    }
    caption_encoder_models(e, captions, n, L, s);
    out->rows = e->t5.rows;
    out->first = e->t5.first;
}

// Ends the program where what was made of captions holds a number that is not finite, and names the first of them.
static inline void caption_encoder_check(const caption_encoder_t* e, const char* const* captions,
                                         const text_batch_t* made) {
    size_t n = (size_t)made->B, rows = (size_t)made->L * e->dt;
    size_t row = device_first_not_finite(made->rows, NULL, n * rows) / rows;
    size_t vector = e->dv ? device_first_not_finite(made->pooled, NULL, n * e->dv) / e->dv : n;
    if (row == n && vector == n) return;
    fatal("the text encoder %s makes a NaN or an infinity of the caption \"%.*s\"; copy its file again",
          row < n ? e->options.t5 : e->options.clip, CAPTION_SHOWN, captions[row < n ? row : vector]);
}

// The same as caption_encoder_forward, checked, for which it waits.
static inline void caption_encoder_batch(caption_encoder_t* e, const char* const* captions, int n, text_batch_t* out,
                                         stream_t s) {
    caption_encoder_forward(e, captions, n, out, s);
    stream_wait(s);
    caption_encoder_check(e, captions, out);
}
