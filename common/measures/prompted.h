// prompted.h: a folder of pictures that were drawn from prompts, each picture with its own.
//
//     GenEval    FOLDER/00000/metadata.jsonl, whose first line has the "prompt", and its pictures in
//                FOLDER/00000/samples/
//     others     images anywhere below the folder, each with its prompt in NAME.txt or, of a PNG, in its text "Prompt"
//
// These are what `./sample -prompts FILE` writes. The order is that of the paths. A picture without a prompt and a
// prompt without a picture end the program: a mean over what happens to be there is no score.
// Look next at common/measures/eval_captions.h.
#pragma once
// defines: caption_append, caption_sibling
#include "common/data/captions.h"
// defines: prompt_of_json
#include "common/drawing/prompts.h"
// defines: image_read_text, image_read_file
#include "common/data/image.h"
// defines: listing_t, string_list_t, dataset_list_folder, dataset_list_tree
#include "common/data/listing.h"

typedef struct {
    string_list_t pictures, prompts; // paths, and the prompt of each
    size_t distinct;                 // neighbours with one prompt count once
} prompted_t;

static inline void prompted_close(prompted_t* p) {
    string_list_free(&p->pictures);
    string_list_free(&p->prompts);
}

// Takes over `picture`. The prompt is kept as captions are: white space around it and control characters are gone.
static inline void prompted_add(prompted_t* p, char* picture, const char* prompt) {
    json_text_t text = {NULL, 0, 0};
    caption_append(&text, (const unsigned char*)prompt, strlen(prompt));
    if (!text.length) fatal("%s: its prompt is empty", picture);
    size_t n = p->prompts.count;
    p->distinct += !n || strcmp(p->prompts.items[n - 1], text.text) != 0;
    string_list_add(&p->pictures, picture);
    string_list_add(&p->prompts, text.text);
}

// A text file's bytes with a 0 behind, for the caller to free; NULL where there is none.
static inline char* prompted_read(const char* path) {
    size_t size = 0;
    uint8_t* bytes = image_read_file(path, &size);
    if (!bytes) return NULL;
    char* text = (char*)malloc_check(size + 1, "a prompt");
    memcpy(text, bytes, size);
    text[size] = 0;
    free(bytes);
    return text;
}

// ---------------------------------------------------------------------------------------------------------------------
// GenEval's folders

// The pictures of one prompt. Returns 0 where the folder is none of GenEval's.
static inline int prompted_add_geneval(prompted_t* p, const char* folder) {
    listing_t l;
    char *path = dataset_join(folder, "metadata.jsonl"), *samples = dataset_join(folder, "samples");
    char* text = prompted_read(path);
    if (text) {
        text[strcspn(text, "\n")] = 0;
        char* prompt = prompt_of_json(text, path, 1);
        if (!path_is_folder(samples)) fatal("%s has a prompt but no pictures: there is no %s", folder, samples);
        memset(&l, 0, sizeof l);
        dataset_list_folder(samples, &l);
        if (!l.images.count) fatal("%s holds no pictures of its prompt \"%.80s\"", samples, prompt);
        string_list_sort(&l.images);
        for (size_t i = 0; i < l.images.count; i++) prompted_add(p, l.images.items[i], prompt);
        free(l.images.items); // the strings are the list's of pictures by now
        string_list_free(&l.folders);
        free(prompt);
    }
    free(path);
    free(samples);
    free(text);
    return text != NULL;
}

// ---------------------------------------------------------------------------------------------------------------------
// Other folders

// The prompt of a picture, from its text file or its PNG.
static inline char* prompted_find(const char* picture) {
    char *path = caption_sibling(picture, ".txt"), *prompt = prompted_read(path);
    free(path);
    return prompt ? prompt : image_read_text(picture, "Prompt");
}

static inline void prompted_add_tree(prompted_t* p, const char* folder) {
    listing_t l;
    string_list_t texts = {NULL, 0, 0}; // that pictures may have
    memset(&l, 0, sizeof l);
    l.also = "txt";
    dataset_list_tree(folder, NULL, &l);
    string_list_sort(&l.images);
    for (size_t i = 0; i < l.images.count; i++) {
        char *picture = l.images.items[i], *prompt = prompted_find(picture);
        if (!prompt) {
            fatal("%s has no prompt: neither a text file of its name (.txt) nor, in a PNG, a text \"Prompt\"; ./sample "
                  "-prompts writes it", picture);
        }
        string_list_add(&texts, caption_sibling(picture, ".txt"));
        prompted_add(p, picture, prompt);
        free(prompt);
    }
    string_list_sort(&texts);
    for (size_t i = 0; i < l.files.count; i++) {
        char* path = l.files.items[i];
        if (texts.count && bsearch(&path, texts.items, texts.count, sizeof path, string_list_compare)) continue;
        fatal("%s is a prompt without a picture; draw that, or take the file away", path);
    }
    free(l.images.items); // the strings are the list's of pictures by now
    string_list_free(&texts);
    string_list_free(&l.files);
}

// ---------------------------------------------------------------------------------------------------------------------

static inline void prompted_open(prompted_t* p, const char* folder) {
    listing_t l;
    memset(p, 0, sizeof *p);
    memset(&l, 0, sizeof l);
    if (!path_is_folder(folder)) fatal("%s is no folder; give one of pictures with their prompts", folder);
    dataset_list_folder(folder, &l);
    string_list_sort(&l.folders);
    size_t geneval = 0;
    for (size_t i = 0; i < l.folders.count; i++) geneval += (size_t)prompted_add_geneval(p, l.folders.items[i]);
    if (geneval && geneval < l.folders.count) {
        fatal("%s: %zu of its %zu folders have no metadata.jsonl, and the others have; take them away", folder,
              l.folders.count - geneval, l.folders.count);
    }
    string_list_free(&l.folders);
    string_list_free(&l.images);
    if (!geneval) prompted_add_tree(p, folder);
    if (!p->pictures.count) fatal("%s holds no pictures (" DATASET_ENDINGS ")", folder);
}

// Ends the program unless two folders have the same prompts, each as often.
static inline void prompted_check_same(const prompted_t* a, const char* path_a, const prompted_t* b,
                                       const char* path_b) {
    size_t na = a->pictures.count, nb = b->pictures.count;
    if (na != nb) {
        fatal("%s has %zu pictures and %s %zu; both systems must draw the same prompts, each as often", path_a, na,
              path_b, nb);
    }
    for (size_t i = 0; i < na; i++) {
        if (!strcmp(a->prompts.items[i], b->prompts.items[i])) continue;
        fatal("picture %zu of %s was drawn from \"%.80s\" and that of %s from \"%.80s\"; both systems must draw the "
              "same prompts, in one order", i, path_a, a->prompts.items[i], path_b, b->prompts.items[i]);
    }
}
