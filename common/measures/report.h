// report.h: what has been measured: lines and a table for people, JSON lines for programs, and with each score the
// protocol that it was measured by.
//
//     result_t* r = report_begin(&report, "recon", "tokenizer", "stage3.safetensors");
//     report_protocol(r, "images", "%d", 50000);
//     report_score(r, "PSNR", "%.2f", 25.83);
//     report_end(&report, r);         prints scores and protocol, appends {"measure": "recon", "PSNR": 25.83, ...}
//     report_tables(&report);         all subjects of a kind, one a row, their scores side by side
//
// A score without its protocol means nothing: published rFIDs of one tokenizer differ by a fifth between pipelines. So
// nothing prints a score but this file, and it prints the protocol behind it. What was not measured is a dash in
// the table; a NaN is no score, and ends the program. Look next at eval.cu.
#pragma once
#include <math.h>
#include <stdarg.h>

// defines: clock_seconds, clock_duration
#include "common/program/clock.h"
// defines: json_text_t, json_append, json_append_string
#include "common/program/json.h"
// defines: fatal
#include "common/program/log.h"

enum { REPORT_RESULTS = 256, REPORT_SCORES = 24, REPORT_PROTOCOL = 32, REPORT_NAME = 32, REPORT_TEXT = 200 };

typedef struct {
    char name[REPORT_NAME];
    char format[16]; // printf's, for a double
    double value;
    int detail; // 1: in no table
} score_t;

typedef struct {
    char key[REPORT_NAME], value[REPORT_TEXT];
} protocol_entry_t;

typedef struct {
    char measure[REPORT_NAME], kind[REPORT_NAME], subject[REPORT_TEXT]; // "recon", "tokenizer", a path
    int scores, entries;
    score_t score[REPORT_SCORES];
    protocol_entry_t protocol[REPORT_PROTOCOL];
    double start, seconds;
} result_t;

typedef struct {
    const char* json_path; // "": none
    int count;
    result_t* results[REPORT_RESULTS];
} report_t;

// `kind` is what the subject is: subjects of one kind share a table.
static inline result_t* report_begin(report_t* report, const char* measure, const char* kind, const char* subject) {
    if (report->count == REPORT_RESULTS) fatal("more than %d measurements; ask for fewer at once", REPORT_RESULTS);
    result_t* r = (result_t*)calloc_check(1, sizeof *r, "a result");
    snprintf(r->measure, sizeof r->measure, "%s", measure);
    snprintf(r->kind, sizeof r->kind, "%s", kind);
    snprintf(r->subject, sizeof r->subject, "%s", subject);
    r->start = clock_seconds();
    report->results[report->count++] = r;
    return r;
}

static inline void report_score(result_t* r, const char* name, const char* format, double value) {
    assert(r->scores < REPORT_SCORES);
    if (isnan(value)) fatal("%s of %s: %s comes out as NaN; check the files that it is measured with", r->measure,
                            r->subject, name);
    score_t* s = &r->score[r->scores++];
    snprintf(s->name, sizeof s->name, "%s", name);
    snprintf(s->format, sizeof s->format, "%s", format);
    s->value = value;
}

// A score that is printed and saved, but stands in no table.
static inline void report_detail(result_t* r, const char* name, const char* format, double value) {
    report_score(r, name, format, value);
    r->score[r->scores - 1].detail = 1;
}

__attribute__((format(printf, 3, 4))) static inline void report_protocol(result_t* r, const char* key,
                                                                         const char* format, ...) {
    assert(r->entries < REPORT_PROTOCOL);
    protocol_entry_t* e = &r->protocol[r->entries++];
    snprintf(e->key, sizeof e->key, "%s", key);
    va_list args;
    va_start(args, format);
    vsnprintf(e->value, sizeof e->value, format, args);
    va_end(args);
}

// Which weights were measured: raw, or an average whose width is known or not (0).
static inline void report_weights(result_t* r, const char* whose, int raw, double ema) {
    if (raw) report_protocol(r, whose, "raw");
    else if (ema > 0) report_protocol(r, whose, "averaged, EMA %g", ema);
    else report_protocol(r, whose, "averaged (as published)");
}

// NaN is a dash; what is rounded to nothing has no sign.
static inline void report_format(char* text, size_t size, const char* format, double value) {
    if (isnan(value)) snprintf(text, size, "-");
    else snprintf(text, size, format, value);
    if (text[0] == '-' && text[1] && strspn(text + 1, "0.") == strlen(text + 1)) memmove(text, text + 1, strlen(text));
}

// {"measure": ..., "subject": ..., scores, "protocol": {...}, "seconds": ...}
static inline void report_append_json(const report_t* report, const result_t* r) {
    if (!report->json_path[0]) return;
    FILE* f = fopen(report->json_path, "a");
    if (!f) fatal("cannot write %s: %s; choose another file with -json", report->json_path, strerror(errno));
    json_text_t line = {NULL, 0, 0};
    json_append(&line, "{\"measure\": \"%s\", \"%s\": ", r->measure, r->kind);
    json_append_string(&line, r->subject);
    for (int i = 0; i < r->scores; i++) {
        if (isfinite(r->score[i].value)) json_append(&line, ", \"%s\": %.17g", r->score[i].name, r->score[i].value);
        else json_append(&line, ", \"%s\": null", r->score[i].name);
    }
    json_append(&line, ", \"protocol\": {");
    for (int i = 0; i < r->entries; i++) {
        json_append(&line, "%s\"%s\": ", i ? ", " : "", r->protocol[i].key);
        json_append_string(&line, r->protocol[i].value);
    }
    json_append(&line, "}, \"seconds\": %.3f}\n", r->seconds);
    int written = fputs(line.text, f) >= 0;
    json_text_free(&line);
    if (fclose(f) || !written) {
        fatal("cannot write %s: %s; make room or choose another file with -json", report->json_path, strerror(errno));
    }
}

// Words and phrases of a line, broken so that it stays below 120 columns.
static inline void report_phrase(int* column, const char* indent, const char* phrase) {
    int length = (int)strlen(phrase), first = *column == 0;
    if (!first && *column + length + 3 > 119) {
        printf("\n");
        *column = 0;
        first = 1;
    }
    *column += printf("%s%s", first ? indent : " | ", phrase);
}

// Prints the result and appends it to the JSON file.
static inline void report_end(report_t* report, result_t* r) {
    char text[48], phrase[REPORT_NAME + REPORT_TEXT + 8], took[24];
    int column = 0;
    r->seconds = clock_seconds() - r->start;
    clock_duration(took, sizeof took, r->seconds);
    printf("%s %s (%s)\n", r->measure, r->subject, took);
    for (int i = 0; i < r->scores; i++) {
        report_format(text, sizeof text, r->score[i].format, r->score[i].value);
        snprintf(phrase, sizeof phrase, "%s %s", r->score[i].name, text);
        report_phrase(&column, "  ", phrase);
    }
    printf("\n");
    column = 0;
    for (int i = 0; i < r->entries; i++) {
        snprintf(phrase, sizeof phrase, "%s %s", r->protocol[i].key, r->protocol[i].value);
        report_phrase(&column, i ? "            " : "  protocol: ", phrase);
    }
    printf("\n");
    fflush(stdout);
    report_append_json(report, r);
}

// ---------------------------------------------------------------------------------------------------------------------
// Tables

enum { REPORT_COLUMNS = 48 };

static inline int report_column(score_t* columns, int* n, const score_t* wanted) {
    for (int i = 0; i < *n; i++) {
        if (!strcmp(columns[i].name, wanted->name)) return i;
    }
    if (*n < REPORT_COLUMNS) columns[(*n)++] = *wanted;
    return *n - 1;
}

// One table: the subjects of a kind are rows; all their scores, of whatever measure, stand side by side.
static inline void report_table(const report_t* report, const char* kind) {
    static score_t columns[REPORT_COLUMNS];
    int n = 0, width = (int)strlen(kind);
    for (int i = 0; i < report->count; i++) {
        result_t* r = report->results[i];
        if (strcmp(r->kind, kind)) continue;
        for (int k = 0; k < r->scores; k++) {
            if (!r->score[k].detail) report_column(columns, &n, &r->score[k]);
        }
        if ((int)strlen(r->subject) > width) width = (int)strlen(r->subject);
    }
    printf("\n%-*s", width, kind);
    for (int k = 0; k < n; k++) printf("  %*s", (int)strlen(columns[k].name) < 7 ? 7 : (int)strlen(columns[k].name),
                                       columns[k].name);
    printf("\n");
    for (int i = 0; i < report->count; i++) {
        const char* subject = report->results[i]->subject;
        int seen = strcmp(report->results[i]->kind, kind) != 0;
        for (int j = 0; j < i && !seen; j++) {
            seen = !strcmp(report->results[j]->kind, kind) && !strcmp(report->results[j]->subject, subject);
        }
        if (seen) continue;
        for (int k = 0; k < n; k++) columns[k].value = NAN;
        for (int j = i; j < report->count; j++) {
            result_t* r = report->results[j];
            if (strcmp(r->kind, kind) || strcmp(r->subject, subject)) continue;
            for (int k = 0; k < r->scores; k++) {
                if (!r->score[k].detail) columns[report_column(columns, &n, &r->score[k])].value = r->score[k].value;
            }
        }
        printf("%-*s", width, subject);
        for (int k = 0; k < n; k++) {
            char text[48];
            report_format(text, sizeof text, columns[k].format, columns[k].value);
            printf("  %*s", (int)strlen(columns[k].name) < 7 ? 7 : (int)strlen(columns[k].name), text);
        }
        printf("\n");
    }
}

// A table for each kind of subject, in the order in which they came.
static inline void report_tables(const report_t* report) {
    for (int i = 0; i < report->count; i++) {
        int seen = 0;
        for (int j = 0; j < i; j++) seen |= !strcmp(report->results[j]->kind, report->results[i]->kind);
        if (!seen) report_table(report, report->results[i]->kind);
    }
    fflush(stdout);
}

static inline void report_free(report_t* report) {
    for (int i = 0; i < report->count; i++) free(report->results[i]);
    report->count = 0;
}
