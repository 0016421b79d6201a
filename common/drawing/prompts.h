// prompts.h: what is to be drawn, in words: one prompt, or a file of them, and where their pictures go in a folder.
//
//     FILE.txt      a prompt on each line                     FOLDER/00003_1.png: picture 1 of prompt 3
//     FILE.jsonl    a JSON object on each line, of which      FOLDER/00003/samples/00001.png, and beside `samples` the
//                   "prompt" is read, as GenEval has them     line itself as metadata.jsonl, which its tools read
//
// Prompts are numbered from 0; empty lines do not count. Any bytes are a prompt, and are kept as the captions of a
// training are. Look next at sample.cu.
#pragma once
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// defines: caption_append
#include "common/data/captions.h"
// defines: string_list_t, string_list_add, string_copy
#include "common/data/listing.h"
// defines: make_folder
#include "common/files/folder.h"
// defines: json_reader_t, json_more, json_key, json_string
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

// The prompt of a line of JSON, for the caller to free.
static inline char* prompt_of_json(const char* line, const char* path, size_t number) {
    json_reader_t r;
    char error[700], *prompt = NULL, *strings = (char*)malloc_check(strlen(line) + 1, "a prompt");
    memset(&r, 0, sizeof r);
    r.begin = r.at = (const unsigned char*)line;
    r.end = r.at + strlen(line);
    r.strings = strings;
    r.error = error;
    r.error_size = sizeof error;
    json_where(&r, "%.200s, line %zu", path, number);
    json_expect(&r, '{');
    for (int first = 1; json_more(&r, '}', first); first = 0) {
        int is_prompt = !strcmp(json_key(&r), "prompt") && !prompt;
        if (is_prompt) prompt = string_copy(json_string(&r));
        else json_skip_value(&r, 0);
    }
    json_end(&r);
    if (r.failed) fatal("%s; want a JSON object on each line, {\"prompt\": \"...\", ...}", error);
    if (!prompt) fatal("%s, line %zu has no \"prompt\"; want {\"prompt\": \"...\", ...} on each line", path, number);
    free(strings);
    return prompt;
}

// Reads a file of prompts.
static inline void prompts_read(prompts_t* p, const char* path) {
    size_t length = strlen(path), room = 0, number = 0;
    int json = length > 6 && !strcmp(path + length - 6, ".jsonl");
    char* line = NULL;
    memset(p, 0, sizeof *p);
    FILE* f = fopen(path, "rb");
    if (!f) fatal("-prompts %s: %s; give a file with a prompt on each line", path, strerror(errno));
    for (ssize_t n; (n = getline(&line, &room, f)) >= 0;) {
        number++;
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
