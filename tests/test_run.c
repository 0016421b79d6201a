// test_run.c: the small pieces around a training run: the folder that is tried, exit codes, what is missing, numbers of
// a status line, threads of the loader, cores, names of classes.
#include <unistd.h>

// defines: class_names_t and its functions
#include "common/drawing/class_names.h"
// defines: needs_t and its functions
#include "common/training/needs.h"
// defines: run_try_folder, run_exit_code
#include "common/training/run.h"
// defines: run_options_t, run_options_workers
#include "common/training/run_options.h"
// defines: status_t, status_cell, status_waits
#include "common/training/status.h"
// defines: temporary_begin, temporary_path, temporary_end
#include "tests/temporary.h"
// defines: test_begin, test_case, check, test_end_case, test_finish
#include "tests/test.h"

static void test_folder(void) {
    char path[TEMPORARY_PATH], error[1200] = "";
    temporary_path(path, "runs/new");
    check(run_try_folder(path, 1000, error, sizeof error), "a folder is made, and can be written to");
    check(rmdir(path) == 0, "nothing is left in it");
    check(!run_try_folder(path, (size_t)1 << 60, error, sizeof error), "an exbibyte does not fit");
    check(strstr(error, "has room for") && strstr(error, "needs 1073741824.00 GiB"), "how much there is and is needed");
    check(!run_try_folder("/proc", 1, error, sizeof error) && strstr(error, "cannot write into /proc"), "no place");
}

static void test_stopping(void) {
    check(run_exit_code(0) == 0, "a run that ended well");
    check(run_exit_code(1) == 143, "one that another process stopped");
    run_catch_signals();
    raise(SIGINT);
    check(stop_signal == SIGINT && run_exit_code(1) == 130 && run_exit_code(0) == 0, "Ctrl-C");
    raise(SIGTERM);
    check(run_exit_code(1) == 143, "SIGTERM");
}

static void test_cells(void) {
    const struct { int width; const char* format; double value; const char* text; } cells[5] = {
        {7, "%7.4f", -0.00001, " 0.0000"}, {7, "%7.2f", -0.0, "   0.00"}, {7, "%7.4f", -0.0001, "-0.0001"},
        {8, "%8.2e", -0.0, "0.00e+00"}, {7, "%7.4f", 0.00001, " 0.0000"}};
    char text[32];
    for (int i = 0; i < 5; i++) {
        check(!strcmp(status_cell(text, cells[i].width, cells[i].format, cells[i].value, 1), cells[i].text), text);
    }
    check(!strcmp(status_cell(text, 7, "%7.4f", 1, 0), "      -"), "a number that is not there");
    check(strlen(status_cell(text, 7, "%7.2f", -123456.0, 1)) <= 8, "one that is too long");
}

static void test_waiting(void) {
    status_t s;
    memset(&s, 0, sizeof s);
    s.time = s.since = 7; // the first line, in which all was waiting
    s.waited = s.waited_since = 5;
    check(!status_waits(&s), "the first line has the start in it");
    s.time = 8.5;
    s.waited = 6;
    check(!status_waits(&s), "not yet two seconds");
    s.time = 10; // of 3 seconds 1.5
    s.waited = 6.5;
    check(status_waits(&s) && s.wait == 0.5 && !status_waits(&s), "said once");
    s.warned = 0;
    s.time = 20; // of the 10 seconds since then 1
    s.waited = 7.5;
    check(!status_waits(&s) && s.wait == 0.1, "a little is no reason");
}

static void test_workers(void) {
    run_options_t o;
    memset(&o, 0, sizeof o);
    for (o.workers = 0; o.workers < 4; o.workers++) check(run_options_workers(&o, 2) == o.workers, "as given");
    o.workers = WORKERS_CHOSEN;
    for (int local = 1; local < 300; local *= 2) {
        int n = run_options_workers(&o, local);
        check(n >= 1 && n <= WORKERS_MOST, "at least one, at most eight");
        check(n == 1 || n < machine_cores(local), "and a core is left");
    }
    check(machine_cores(1) >= machine_cores(2), "processes share the cores");
    check(machine_share(128, 128, 8) == 16, "a whole machine");
    check(machine_share(16, 128, 8) == 16, "each has its own");
    check(machine_share(16, 16, 8) == 2, "a job's part of a machine");
    check(machine_share(4, 4, 8) == 1, "fewer than processes");
}

// A control group with this file, if there is a text.
static void put(int group, const char* file, const char* text) {
    char name[64];
    snprintf(name, sizeof name, "group%d/%s", group, file);
    if (text) temporary_write(name, text, strlen(text));
}

static void test_quota(void) {
    const struct { const char *v2, *quota, *period; int cores; } groups[7] = {
        {"max 100000\n", NULL, NULL, 0}, {"250000 100000\n", NULL, NULL, 3}, {"5000 100000\n", NULL, NULL, 1},
        {NULL, NULL, NULL, 0}, {NULL, "-1\n", "100000\n", 0}, {NULL, "1200000\n", "100000\n", 12},
        {NULL, "1200001\n", "100000\n", 13}};
    char group[TEMPORARY_PATH], name[32];
    for (int i = 0; i < 7; i++) {
        snprintf(name, sizeof name, "group%d/cpu", i);
        make_folder(temporary_path(group, name));
        group[strlen(group) - 4] = 0;
        put(i, "cpu.max", groups[i].v2);
        put(i, "cpu/cpu.cfs_quota_us", groups[i].quota);
        put(i, "cpu/cpu.cfs_period_us", groups[i].period);
        check(machine_quota(group) == groups[i].cores, name);
    }
    check(machine_bounded(64, group, 1) == 13 && machine_bounded(8, group, 1) == 8, "the least counts");
    check(machine_bounded(64, group, 4) == 3 && machine_bounded(64, group, 32) == 1, "processes share a quota");
}

static void test_slurm(void) {
    const char* none = "/nowhere";
    unsetenv("SLURM_STEP_NUM_TASKS");
    unsetenv("SLURM_CPUS_PER_TASK");
    unsetenv("SLURM_JOB_CPUS_PER_NODE");
    unsetenv("LOCAL_WORLD_SIZE");
    check(machine_bounded(128, none, 8) == 128, "nothing is said");
    setenv("SLURM_JOB_CPUS_PER_NODE", "32(x2),64,8", 1);
    check(machine_bounded(128, none, 1) == 64, "a batch script");
    check(machine_bounded(128, none, 8) == 8 && machine_bounded(4, none, 8) == 4, "a part of a job");
    check(machine_bounded(128, none, 100) == 1, "at least one");
    setenv("SLURM_CPUS_PER_TASK", "12", 1);
    check(machine_bounded(128, none, 8) == 8, "the job's tasks, of which a batch script is none");
    setenv("SLURM_STEP_NUM_TASKS", "8", 1);
    check(machine_bounded(128, none, 8) == 12, "a task");
    setenv("LOCAL_WORLD_SIZE", "4", 1);
    check(machine_bounded(128, none, 4) == 3, "torchrun in a task");
}

static void test_missing(void) {
    needs_t needs = {{NULL, 0, 0}, 0};
    needs_file(&needs, "a", "/proc/self/status", "is there");
    check(needs.count == 0, "nothing is missing");
    needs_file(&needs, "lpips", "/nowhere/1,/proc/self/status,/nowhere/2", "two of three");
    check(needs.count == 2, "two");
    check(strstr(needs.list.text, "-lpips /nowhere/2: there is no such file (two of three)") != NULL, "each by name");
    needs_images(&needs, "shapes");
    needs_images(&needs, "/proc");
    check(needs.count == 2, "images that are there");
    needs_images(&needs, "/nowhere");
    check(needs.count == 3 && strstr(needs.list.text, "the data folder /nowhere cannot be found"), "and that are not");
    json_text_free(&needs.list);
}

// A thousand names like ImageNet's folders: n00000001 and so on, with one that spoils the order, or none.
static char* thousand(int spoilt) {
    json_text_t json = {NULL, 0, 0};
    for (int i = 0; i < 1000; i++) json_append(&json, "%s\"n%08d\"", i ? ", " : "[", i == spoilt ? 0 : i + 1);
    json_append(&json, "]");
    return json.text;
}

static void test_names(void) {
    class_names_t c;
    int found[8];
    class_names_read(&c, "[\"T-shirt\", \"shirt\", \"grey \\u00fcbird\", \"7\"]", 4, 0);
    check(!strcmp(class_name(&c, 0), "T-shirt") && !*class_name(&c, 4) && !*class_name(&c, -1) && !*c.origin, "names");
    check(class_names_find(&c, "2", found, 8) == 1 && found[0] == 2, "a number");
    check(class_names_find(&c, "7", found, 8) == 1 && found[0] == 3, "a name that looks like a number");
    check(class_names_find(&c, "SHIRT", found, 8) == 1 && found[0] == 1, "a whole name comes before a part");
    check(class_names_find(&c, "irt", found, 8) == 2 && found[1] == 1, "several");
    check(class_names_find(&c, "irt", found, 1) == 2, "more than there is room for");
    check(class_names_find(&c, "", found, 8) == 0 && class_names_find(&c, "cat", found, 8) == 0, "none");
    check(class_names_nearest(&c, "shrit") == 1 && class_names_nearest(&c, "elephant") == -1, "the nearest");
    class_names_free(&c);
    const char* bad[4] = {"", "[\"a\", \"b\"]", "[\"a\", \"b\", \"c\", \"d\"]", "{\"a\": 1}"};
    for (int i = 0; i < 4; i++) {
        class_names_read(&c, bad[i], 3, 0);
        check(!c.names && !*class_name(&c, 0) && class_names_nearest(&c, "a") == -1, "names that do not fit");
        check(class_names_find(&c, "1", found, 8) == 1 && !class_names_find(&c, "a", found, 8), "numbers still count");
        class_names_free(&c);
    }
}

static void test_imagenet_names(void) {
    class_names_t c;
    char *folders = thousand(-1), *spoilt = thousand(500);
    class_names_read(&c, folders, 1000, 0);
    check(!strcmp(class_name(&c, 207), "golden retriever") && *c.origin, "ImageNet's folders, and it is said");
    class_names_free(&c);
    class_names_read(&c, spoilt, 1000, 0);
    check(!strcmp(class_name(&c, 207), "n00000208") && !*c.origin, "a thousand others keep their names");
    class_names_free(&c);
    class_names_read(&c, "", 1000, 0);
    check(!c.names, "a thousand classes of ours without names are not guessed");
    class_names_free(&c);
    class_names_read(&c, "", 1000, 1);
    check(!strcmp(class_name(&c, 207), "golden retriever") && *c.origin, "those of a published file are ImageNet's");
    class_names_free(&c);
    class_names_read(&c, "", 10, 1);
    check(!c.names, "ten are not");
    class_names_free(&c);
    free(folders);
    free(spoilt);
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    temporary_begin();
    if (test_case("the folder of a run is tried")) { test_folder(); test_end_case(); }
    if (test_case("exit codes of a run that is stopped")) { test_stopping(); test_end_case(); }
    if (test_case("numbers of a status line")) { test_cells(); test_end_case(); }
    if (test_case("waiting for data")) { test_waiting(); test_end_case(); }
    if (test_case("threads of the loader")) { test_workers(); test_end_case(); }
    if (test_case("cores of a quota")) { test_quota(); test_end_case(); }
    if (test_case("cores of a Slurm job")) { test_slurm(); test_end_case(); }
    if (test_case("what is missing")) { test_missing(); test_end_case(); }
    if (test_case("names of classes")) { test_names(); test_end_case(); }
    if (test_case("ImageNet's names")) { test_imagenet_names(); test_end_case(); }
    temporary_end();
    return test_finish();
}
