// prompts.h: what is to be drawn, in words: one prompt, or a file of them, and where their pictures go in a folder.
//
//     FILE.txt      a prompt on each line                     FOLDER/00003_1.png: picture 1 of prompt 3
//     FILE.json     a JSON array of prompts, as HPSv2 has     likewise
//                   them, or of objects with a "prompt"
//     FILE.jsonl    a JSON object on each line, of which      FOLDER/00003/samples/00001.png, and beside `samples` the
//                   "prompt" is read, as GenEval has them     line itself as metadata.jsonl, which its tools read
//
// Prompts are numbered from 0; empty lines and a byte order mark do not count. Any bytes are a prompt, and are kept as
// the captions of a training are. Look next at sample.cu.
#pragma once
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// defines: caption_append; image_read_file
#include "common/data/captions.h"
// defines: string_list_t, string_list_add, string_copy, path_name
#include "common/data/listing.h"
// defines: make_folder
#include "common/files/folder.h"
// defines: json_reader_t, json_expect, json_more, json_key, json_string, json_skip_mark
#include "common/program/json.h"

enum { PROMPT_PATH = 1200 };

typedef struct {
    string_list_t prompts;
    string_list_t lines; // of a .jsonl, as they stand there; else none
} prompts_t;

// Adds a prompt; 0 where the text is empty.
static inline int prompts_add(prompts_t* p, const char* text) {
    json_text_t prompt = {NULL, 0, 0};
    caption_append(&prompt, (const unsigned char*)text, strlen(text));
    if (!prompt.length) return 0;
    string_list_add(&p->prompts, prompt.text);
    return 1;
}

// Begins to read a text of JSON; `strings` has room for as many bytes.
static inline void prompt_json_begin(json_reader_t* r, const char* text, size_t size, char* strings, char* error,
                                     size_t error_size) {
    memset(r, 0, sizeof *r);
    r->begin = r->at = (const unsigned char*)text;
    r->end = r->at + size;
    r->strings = strings;
    r->error = error;
    r->error_size = error_size;
    json_skip_mark(r);
}

// The "prompt" of an object, for the caller to free; NULL: it has none.
static inline char* prompt_of_object(json_reader_t* r) {
    char* prompt = NULL;
    json_expect(r, '{');
    for (int first = 1; json_more(r, '}', first); first = 0) {
        int is_prompt = !strcmp(json_key(r), "prompt") && !prompt;
        if (is_prompt) prompt = string_copy(json_string(r));
        else json_skip_value(r, 0);
    }
    return prompt;
}

// The prompt of a line of JSON, for the caller to free.
static inline char* prompt_of_json(const char* line, const char* path, size_t number) {
    json_reader_t r;
    char error[700], *strings = (char*)malloc_check(strlen(line) + 1, "a prompt");
    prompt_json_begin(&r, line, strlen(line), strings, error, sizeof error);
    json_where(&r, "%.200s, line %zu", path, number);
    char* prompt = prompt_of_object(&r);
    json_end(&r);
    if (r.failed) fatal("%s; want a JSON object on each line, {\"prompt\": \"...\", ...}", error);
    if (!prompt) fatal("%s, line %zu has no \"prompt\"; want {\"prompt\": \"...\", ...} on each line", path, number);
    free(strings);
    return prompt;
}

// Reads an array of prompts.
static inline void prompts_read_array(prompts_t* p, const char* path) {
    json_reader_t r;
    size_t size = 0;
    char error[700], *text = (char*)image_read_file(path, &size);
    if (!text) fatal("-prompts %s: %s; give a file of prompts", path, strerror(errno));
    char* strings = (char*)malloc_check(size + 1, "prompts");
    prompt_json_begin(&r, text, size, strings, error, sizeof error);
    json_where(&r, "-prompts %.200s", path);
    json_expect(&r, '[');
    for (int first = 1; json_more(&r, ']', first); first = 0) {
        char* prompt = json_peek(&r) == '{' ? prompt_of_object(&r) : string_copy(json_string(&r));
        if (!r.failed && (!prompt || !prompts_add(p, prompt))) {
            fatal("-prompts %s: item %zu has no prompt, or an empty one; take it out", path, p->prompts.count + 1);
        }
        free(prompt);
    }
    json_end(&r);
    if (r.failed) fatal("%s; want a JSON array of prompts, or a file that ends in .jsonl or .txt", error);
    free(strings);
    free(text);
}

// Reads prompts, one on each line.
static inline void prompts_read_lines(prompts_t* p, const char* path, int json) {
    size_t room = 0, number = 0;
    char* line = NULL;
    FILE* f = fopen(path, "rb");
    if (!f) fatal("-prompts %s: %s; give a file with a prompt on each line", path, strerror(errno));
    for (ssize_t n; (n = getline(&line, &room, f)) >= 0;) {
        if (++number == 1 && n >= 3 && !memcmp(line, "\xEF\xBB\xBF", 3)) memmove(line, line + 3, (size_t)(n -= 3) + 1);
        if (strlen(line) != (size_t)n) fatal("%s, line %zu: holds a zero byte; want text", path, number);
        while (n && strchr(" \t\r\n", line[n - 1])) line[--n] = 0;
        if (!n) continue;
        char* prompt = json ? prompt_of_json(line, path, number) : string_copy(line);
        if (!prompts_add(p, prompt)) fatal("%s, line %zu: the prompt is empty; take the line out", path, number);
        if (json) string_list_add(&p->lines, string_copy(line));
        free(prompt);
    }
    if (ferror(f)) fatal("-prompts %s: %s; give a file with a prompt on each line", path, strerror(errno));
    fclose(f);
    free(line);
}

// Reads a file of prompts.
static inline void prompts_read(prompts_t* p, const char* path) {
    const char* ending = strrchr(path_name(path), '.');
    memset(p, 0, sizeof *p);
    if (ending && !strcmp(ending, ".json")) prompts_read_array(p, path);
    else prompts_read_lines(p, path, ending && !strcmp(ending, ".jsonl"));
    if (!p->prompts.count) fatal("-prompts %s: there is no prompt in it; want one on each line", path);
}

// The place of picture `k` of prompt `number` in a folder.
static inline const char* prompt_path(char path[PROMPT_PATH], const prompts_t* p, const char* folder, size_t number,
                                      size_t k) {
    if (p->lines.count) snprintf(path, PROMPT_PATH, "%s/%05zu/samples/%05zu.png", folder, number, k);
    else snprintf(path, PROMPT_PATH, "%s/%05zu_%zu.png", folder, number, k);
    return path;
}

// Makes the folders of GenEval's layout for a prompt, with its line. A file that is there already stays.
static inline void prompt_make_folder(const prompts_t* p, const char* folder, size_t number) {
    char path[PROMPT_PATH];
    if (!p->lines.count) return;
    snprintf(path, sizeof path, "%s/%05zu/samples", folder, number);
    make_folder(path);
    snprintf(path, sizeof path, "%s/%05zu/metadata.jsonl", folder, number);
    FILE* f = fopen(path, "wx");
    if (!f && errno == EEXIST) return;
    if (!f || fprintf(f, "%s\n", p->lines.items[number]) < 0 || fclose(f)) {
        fatal("cannot write %s: %s; make room, or choose another folder with -images", path, strerror(errno));
    }
}
