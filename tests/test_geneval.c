// test_geneval.c: GenEval's rules on hand-made boxes, and its files. Look next at common/measures/geneval.h.
#include <math.h>
#include <string.h>

// defines: geneval_*
#include "common/measures/geneval.h"
// defines: test_begin, test_case, check, test_uniform, test_end_case, test_finish
#include "tests/test.h"

enum { LEFT = 1, RIGHT = 2, ABOVE = 4, BELOW = 8 };

static void test_relations(void) {
    static const struct { double a[4], b[4]; int want; } cases[] = {
        {{0, 0, 10, 10}, {50, 0, 60, 10}, LEFT},   {{50, 0, 60, 10}, {0, 0, 10, 10}, RIGHT},
        {{0, 0, 10, 10}, {0, 50, 10, 60}, ABOVE},  {{0, 50, 10, 60}, {0, 0, 10, 10}, BELOW},
        {{0, 0, 10, 10}, {0, 0, 10, 10}, 0},       {{0, 0, 100, 100}, {20, 0, 120, 100}, 0}, // 20 - 20 is no offset
        {{0, 0, 100, 100}, {30, 0, 130, 100}, 0},  // 30 - 20 = 10 of 30
        {{0, 0, 100, 100}, {41, 0, 141, 100}, LEFT}, // 41 - 20 = 21 of 41
        {{0, 0, 2, 2}, {100, 100, 102, 102}, LEFT | ABOVE}, // each axis has 0.7 of the length
        {{0, 0, 2, 2}, {100, 40, 102, 42}, LEFT},  // 39.6 of 107.7
        {{10, 10, 0, 0}, {60, 10, 50, 0}, LEFT}};  // corners in the other order
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int got = geneval_relations(cases[i].a, cases[i].b);
        if (got != cases[i].want) printf("     case %zu: %d\n", i, got);
        check(got == cases[i].want, "the relations of two boxes");
    }
    for (int i = 0; i < 1000; i++) { // seen from the other one, all is turned about
        double a[4], b[4];
        for (int k = 0; k < 4; k++) a[k] = test_uniform(), b[k] = test_uniform();
        int one = geneval_relations(a, b), two = geneval_relations(b, a);
        check(two == ((one & 5) << 1 | (one & 10) >> 1), "turned about");
    }
}

// The verdict on a line; -1: it is refused.
static int verdict(const char* line) {
    geneval_picture_t p;
    char error[300];
    int good = geneval_read(&p, line, strlen(line), error, sizeof error);
    int correct = good ? geneval_is_correct(&p) : -1;
    geneval_free(&p);
    return correct;
}

#define DOG(score, box) "{\"class\": \"dog\", \"score\": " score ", \"box\": [" box "], \"color\": \"red\"}"
#define CAT(score, box) "{\"class\": \"cat\", \"score\": " score ", \"box\": [" box "], \"color\": null}"
#define SINGLE "{\"tag\": \"single_object\", \"include\": [{\"class\": \"dog\", \"count\": 1}], \"objects\": ["
#define TWO_DOGS "{\"tag\": \"counting\", \"include\": [{\"class\": \"dog\", \"count\": 2}], " \
                 "\"exclude\": [{\"class\": \"dog\", \"count\": 3}], \"objects\": ["
#define RED(colour) "{\"tag\": \"colors\", \"include\": [{\"class\": \"dog\", \"count\": 1, \"color\": \"" colour "\"}], " \
                    "\"objects\": ["
#define LEFT_OF "{\"tag\": \"position\", \"include\": [{\"class\": \"cat\", \"count\": 1}, " \
                "{\"class\": \"dog\", \"count\": 1, \"position\": [\"left of\", 0]}], \"objects\": ["

static void test_rules(void) {
    check(verdict(SINGLE DOG("0.31", "0,0,1,1") "]}") == 1, "a dog");
    check(verdict(SINGLE DOG("0.3", "0,0,1,1") "]}") == 0, "not certain enough");
    check(verdict(SINGLE CAT("0.9", "0,0,1,1") "]}") == 0, "no dog");
    check(verdict(SINGLE "]}") == 0, "nothing");
    check(verdict(SINGLE DOG("0.5", "0,0,1,1") "," DOG("0.5", "0,0,1,1") "]}") == 1, "more of it is no fault");
    check(verdict(TWO_DOGS DOG("0.95", "0,0,1,1") "," DOG("0.91", "0,0,1,1") "]}") == 1, "two");
    check(verdict(TWO_DOGS DOG("0.95", "0,0,1,1") "," DOG("0.89", "0,0,1,1") "]}") == 0, "counting wants 0.9");
    check(verdict(TWO_DOGS DOG("0.95", "0,0,1,1") "," DOG("0.95", "0,0,1,1") "," DOG("0.92", "0,0,1,1") "]}") == 0,
          "three are too many");
    check(verdict(TWO_DOGS DOG("0.95", "0,0,1,1") "," DOG("0.95", "0,0,1,1") "," DOG("0.8", "0,0,1,1") "]}") == 1,
          "what is not certain does not count");
    check(verdict(RED("red") DOG("0.5", "0,0,1,1") "]}") == 1, "the colour");
    check(verdict(RED("blue") DOG("0.5", "0,0,1,1") "]}") == 0, "another colour");
    check(verdict(RED("red") "{\"class\": \"dog\", \"score\": 0.9, \"box\": [0,0,1,1], \"color\": \"blue\"},"
                  DOG("0.5", "0,0,1,1") "]}") == 0, "the most certain one is looked at");
    check(verdict(LEFT_OF DOG("0.5", "0,0,10,10") "," CAT("0.5", "50,0,60,10") "]}") == 1, "left of");
    check(verdict(LEFT_OF DOG("0.5", "70,0,80,10") "," CAT("0.5", "0,0,10,10") "]}") == 0, "right of");
    check(verdict(LEFT_OF DOG("0.5", "0,0,10,10") "]}") == 0, "left of nothing");
    check(verdict(LEFT_OF DOG("0.9", "0,0,10,10") "," DOG("0.5", "90,0,99,10") "," CAT("0.5", "50,0,60,10") "]}") == 1,
          "the most certain dog counts");
    char many[4000] = TWO_DOGS; // 20 sure dogs: 16 are kept
    for (int i = 0; i < 20; i++) strcat(strcat(many, i ? "," : ""), DOG("0.99", "0,0,1,1"));
    check(verdict(strcat(many, "]}")) == 0, "many");
}

static void test_most(void) {
    geneval_object_t objects[40];
    geneval_picture_t p;
    const geneval_object_t* found[GENEVAL_MOST];
    memset(&p, 0, sizeof p);
    p.object = objects;
    p.objects = 40;
    for (int i = 0; i < 40; i++) {
        objects[i] = (geneval_object_t){i % 2 ? "dog" : "cat", NULL, 0.4 + 0.01 * (i * 7 % 40), {0, 0, 1, 1}};
    }
    check(geneval_find(&p, "dog", found) == GENEVAL_MOST, "16 of 20");
    for (int i = 1; i < GENEVAL_MOST; i++) check(found[i - 1]->score > found[i]->score, "in order");
    int better = 0;
    for (int i = 0; i < 40; i++) better += i % 2 && objects[i].score > found[GENEVAL_MOST - 1]->score;
    check(better == GENEVAL_MOST - 1, "the most certain ones");
}

static void test_refused(void) {
    static const char* const wrong[] = {
        "", "{}", "[]", SINGLE, "{\"tag\": \"cooking\", \"include\": [{\"class\": \"dog\", \"count\": 1}]}",
        "{\"tag\": \"colors\", \"include\": [{\"class\": \"dog\", \"count\": 0}]}",
        "{\"tag\": \"colors\", \"include\": [{\"class\": \"dog\", \"count\": 99}]}",
        "{\"tag\": \"colors\", \"include\": [{\"count\": 1}]}",
        "{\"tag\": \"position\", \"include\": [{\"class\": \"dog\", \"count\": 1, \"position\": [\"left of\", 0]}]}",
        "{\"tag\": \"position\", \"include\": [{\"class\": \"dog\", \"count\": 1, \"position\": [\"in\", 0]}]}",
        SINGLE "{\"class\": \"dog\", \"score\": 1}]}", SINGLE "{\"class\": \"dog\", \"score\": 1, \"box\": [1,2,3]}]}",
        SINGLE "{\"class\": \"dog\", \"score\": 1, \"box\": [1,2,3,4,5]}]}", SINGLE "]} x"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) check(verdict(wrong[i]) == -1, wrong[i]);
    const char* whole = LEFT_OF DOG("0.5", "0,0,10,10") "," CAT("0.5", "50,0,60,10") "]}";
    char part[600];
    for (size_t cut = 0; cut < strlen(whole); cut++) {
        snprintf(part, sizeof part, "%.*s", (int)cut, whole);
        check(verdict(part) == -1, "a line that is cut off");
    }
}

// What is written is what is read; the overall score is the mean of the tasks.
static void test_results(void) {
    static const int right[GENEVAL_TASKS] = {9, 1, 2, 3, 0, 5}, all[GENEVAL_TASKS] = {10, 2, 8, 4, 7, 5};
    geneval_scores_t written, read;
    json_text_t text = {NULL, 0, 0};
    char line[400], error[300];
    memset(&written, 0, sizeof written);
    memset(&read, 0, sizeof read);
    for (int k = 0; k < GENEVAL_TASKS; k++) {
        for (int i = 0; i < all[k]; i++) {
            geneval_picture_t p;
            snprintf(line, sizeof line, "{\"filename\": \"a\\\"%d\", \"prompt\": \"\\u00e9\", \"tag\": \"%s\", \"include\": "
                     "[{\"class\": \"dog\", \"count\": 1}], \"objects\": [%s]}", i, geneval_tasks[k],
                     i < right[k] ? DOG("0.99", "0,0,1,1") : "");
            check(geneval_read(&p, line, strlen(line), error, sizeof error), error);
            geneval_add(&written, &text, &p);
            geneval_free(&p);
        }
    }
    for (char *rest = text.text, *at; (at = strsep(&rest, "\n")) && *at;) {
        check(geneval_add_result(&read, at, strlen(at), error, sizeof error), error);
    }
    check(!memcmp(&written, &read, sizeof read), "what is written is what is read");
    double want = 0;
    for (int k = 0; k < GENEVAL_TASKS; k++) {
        check(geneval_score(&read, k) == (double)right[k] / all[k], geneval_tasks[k]);
        want += (double)right[k] / all[k] / 6;
    }
    check(fabs(geneval_overall(&read) - want) < 1e-12, "the mean of the tasks");
    read.pictures[4] = 0;
    check(isnan(geneval_overall(&read)), "of all six");
    const char* theirs = "{\"filename\": \"x/00000.png\", \"tag\": \"color_attr\", \"prompt\": \"a\", \"correct\": true, "
                         "\"reason\": \"\", \"metadata\": \"{\\\"tag\\\": 1}\", \"details\": {\"dog\": [[1, 2.5]]}}";
    memset(&read, 0, sizeof read);
    check(geneval_add_result(&read, theirs, strlen(theirs), error, sizeof error), "a line with more in it");
    check(read.correct[5] == 1, "is counted");
    for (size_t cut = 0; cut < strlen(theirs); cut++) {
        check(!geneval_add_result(&read, theirs, cut, error, sizeof error), "cut off");
    }
    check(read.pictures[5] == 1, "nothing of it is counted");
    json_text_free(&text);
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    if (test_case("relations of boxes")) { test_relations(); test_end_case(); }
    if (test_case("rules")) { test_rules(); test_end_case(); }
    if (test_case("the most certain boxes")) { test_most(); test_end_case(); }
    if (test_case("lines that are refused")) { test_refused(); test_end_case(); }
    if (test_case("results")) { test_results(); test_end_case(); }
    return test_finish();
}
