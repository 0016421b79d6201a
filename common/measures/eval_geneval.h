// eval_geneval.h: `./eval -geneval FILE`: GenEval's scores, summed as its paper does: the share of correct pictures of
// each task, and the mean of the tasks.
//
// FILE has a JSON line for each picture: a result, as GenEval's evaluate_images.py writes it and as we do, or the boxes
// that a detector saw, which our rules judge; the results then go to OUT/geneval_FILE.jsonl. Look next at
// common/measures/geneval.h, the rules.
#pragma once
// defines: eval_t, eval_output_path
#include "common/measures/eval_options.h"
// defines: geneval_scores_t, geneval_read, geneval_add, geneval_add_result, geneval_score, geneval_overall
#include "common/measures/geneval.h"

// Takes a line up: a result, or else boxes, whose result is added to `results`. 1, or 0 with a message.
static inline int geneval_take(geneval_scores_t* s, json_text_t* results, const char* line, size_t size, char* error,
                               size_t error_size) {
    geneval_picture_t p;
    char first[300];
    if (geneval_add_result(s, line, size, first, sizeof first)) return 1;
    int boxes = geneval_read(&p, line, size, error, error_size);
    if (boxes) geneval_add(s, results, &p);
    else if (!strstr(line, "\"objects\"")) snprintf(error, error_size, "%s", first);
    geneval_free(&p);
    return boxes;
}

// Returns how many lines there are.
static inline size_t geneval_read_file(geneval_scores_t* s, json_text_t* results, const char* path) {
    char* line = NULL;
    char error[300];
    size_t room = 0, number = 0, n = 0;
    FILE* f = fopen(path, "rb");
    if (!f) fatal("-geneval %s: %s; give GenEval's file of results", path, strerror(errno));
    for (ssize_t size; (size = getline(&line, &room, f)) >= 0;) {
        number++;
        while (size && strchr(" \r\n", line[size - 1])) line[--size] = 0;
        if (!size) continue;
        if (!geneval_take(s, results, line, (size_t)size, error, sizeof error)) {
            fatal("%s, line %zu: %s; give GenEval's file of results, or of boxes (common/measures/geneval.h)", path,
                  number, error);
        }
        n++;
    }
    if (ferror(f)) fatal("-geneval %s: %s", path, strerror(errno));
    fclose(f);
    free(line);
    if (!n) fatal("-geneval %s is empty; give GenEval's file of results", path);
    return n;
}

// By the first process.
static inline void eval_geneval(eval_t* e) {
    const char* file = e->options.geneval;
    char path[1200], error[IMAGE_ERROR_SIZE];
    geneval_scores_t s;
    json_text_t results = {NULL, 0, 0};
    memset(&s, 0, sizeof s);
    if (!comm_is_first(&e->comm)) return;
    result_t* result = report_begin(&e->report, "geneval", "pictures", file);
    size_t n = geneval_read_file(&s, &results, file);
    size_t missing = 0;
    for (int k = 0; k < GENEVAL_TASKS; k++) {
        missing += !s.pictures[k];
        if (s.pictures[k]) report_score(result, geneval_tasks[k], "%.4f", geneval_score(&s, k));
    }
    if (!missing) report_score(result, "GenEval", "%.4f", geneval_overall(&s));
    report_protocol(result, "pictures", "%zu", n);
    if (missing) report_protocol(result, "overall", "not measured: %zu of the tasks have no pictures", missing);
    else report_protocol(result, "overall", "GenEval, the mean of the tasks");
    if (results.length) report_protocol(result, "judged by", "common/measures/geneval.h, from boxes");
    report_end(&e->report, result);
    if (results.length && e->options.out[0]) {
        eval_output_path(e, path, sizeof path, "geneval", file, "jsonl");
        if (!image_write_file(path, (const uint8_t*)results.text, results.length, error)) {
            fatal("%s; choose another folder with -out", error);
        }
        printf("  results: %s\n", path);
    }
    json_text_free(&results);
}
