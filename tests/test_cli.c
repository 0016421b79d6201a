// test_cli.c: the command line: parsing, messages, presets, help, the printed and the saved configuration.
//
// Most cases run a parse in a child process, because a mistake on a command line ends the program.
#include <sys/wait.h>
#include <unistd.h>

// defines: cli_t, cli_flag_t, cli_preset_t, cli_*
#include "common/program/cli.h"
// defines: cli_to_json, cli_from_json, cli_differences
#include "common/program/cli_saved.h"
// defines: test_begin, test_case, check
#include "tests/test.h"

// ------------------------------------------------------------------------------------------------------------------
// A program with a flag of each type

enum { N_FLAGS = 10, N_PRESETS = 2 };

typedef struct {
    int stage;
    double lr, beta;
    size_t batch, seed;
    const char* data;
    int loss, dry_run;
    const char* preset;
    int offset;
} config_t;

typedef struct {
    config_t config;
    cli_flag_t flags[N_FLAGS];
    cli_preset_t presets[N_PRESETS];
    cli_t cli;
} program_t;

void program_init(program_t* p) {
    static const cli_setting_t mini[] = {{"batch", "8"}, {"lr", "3e-3"}, {"loss", "l2"}, {NULL, NULL}};
    static const cli_setting_t imagenet[] = {{"batch", "64"}, {"data", "imagenet/train"}, {NULL, NULL}};
    config_t* c = &p->config;
    const cli_preset_t presets[N_PRESETS] = {{"mini", "a small world", mini},
                                             {"imagenet", "the recipe of the paper", imagenet}};
    const cli_flag_t flags[N_FLAGS] = {
        {"Recipe", "stage", CLI_INT, &c->stage, "1", "[1, 3]", "training stage", CLI_SAVED},
        {NULL, "lr", CLI_NUMBER, &c->lr, "1e-4", "(0, 1]", "learning rate", CLI_SAVED},
        {NULL, "beta", CLI_NUMBER, &c->beta, "0.9", "[0, 1)", "decay of the first moment", CLI_SAVED},
        {NULL, "loss", CLI_CHOICE, &c->loss, "cosine", "cosine|l2|none", "semantic loss", CLI_SAVED},
        {NULL, "offset", CLI_INT, &c->offset, "-3", NULL, "any integer", CLI_SAVED},
        {"Data", "data", CLI_STRING, &c->data, "", NULL,
         "folder of images whose first-level folders are the classes, or a folder of IDX files; an explanation that is "
         "long enough to need several lines of the help, so that the wrapping is seen", CLI_SAVED},
        {NULL, "batch", CLI_SIZE, &c->batch, "32", "[1, inf)", "images a step", CLI_SAVED},
        {NULL, "seed", CLI_SIZE, &c->seed, "0", NULL, "seed of all random numbers", CLI_SAVED},
        {"Run", "dry_run", CLI_BOOL, &c->dry_run, "0", NULL, "only print what would be done", CLI_NOT_SAVED},
        {NULL, "preset", CLI_PRESET, &c->preset, "", NULL, "sets several flags", CLI_NOT_SAVED},
    };
    memcpy(p->flags, flags, sizeof flags);
    memcpy(p->presets, presets, sizeof presets);
    memset(c, 0xFF, sizeof *c);
    cli_init(&p->cli, "train", "Trains a model.", p->flags, N_FLAGS, p->presets, N_PRESETS);
}

// Parses a command line given as one text with blanks between the arguments; the text is changed and must stay.
void program_parse(program_t* p, char* line) {
    char* argv[32];
    char program[] = "train";
    int argc = 0;
    argv[argc++] = program;
    for (char* word = strtok(line, " "); word; word = strtok(NULL, " ")) argv[argc++] = word;
    cli_parse(&p->cli, argc, argv);
}

typedef struct {
    int code;
    char out[20000];
    char errors[4000];
} result_t;

// Runs a parse in a child and keeps its exit code and what it printed.
void run_program(result_t* result, const char* line) {
    FILE* streams[2] = {tmpfile(), tmpfile()};
    if (!streams[0] || !streams[1]) fatal("no temporary file can be made for the test; free space in /tmp");
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        program_t p;
        char words[1000];
        dup2(fileno(streams[0]), 1);
        dup2(fileno(streams[1]), 2);
        snprintf(words, sizeof words, "%s", line);
        program_init(&p);
        program_parse(&p, words);
        _exit(7); // the parse came back
    }
    int status = 0;
    waitpid(child, &status, 0);
    result->code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    for (int i = 0; i < 2; i++) {
        char* text = i ? result->errors : result->out;
        size_t size = i ? sizeof result->errors : sizeof result->out;
        rewind(streams[i]);
        text[fread(text, 1, size - 1, streams[i])] = 0;
        fclose(streams[i]);
    }
}

void check_contains(const char* text, const char* part) {
    if (strstr(text, part)) return;
    printf("     \"%s\" lacks \"%s\"\n", text, part);
    check(0, "the text holds what it should");
}

// What cli_print_configuration prints.
void printed_configuration(const cli_t* cli, char* text, size_t text_size) {
    FILE* file = tmpfile();
    if (!file) fatal("no temporary file can be made for the test; free space in /tmp");
    cli_print_configuration(cli, file);
    rewind(file);
    text[fread(text, 1, text_size - 1, file)] = 0;
    fclose(file);
}

// ------------------------------------------------------------------------------------------------------------------
// Parsing

void test_defaults(void) {
    if (!test_case("without arguments each value is its default")) return;
    program_t p;
    char line[] = "";
    program_init(&p);
    program_parse(&p, line);
    const config_t* c = &p.config;
    check(c->stage == 1 && c->lr == 1e-4 && c->beta == 0.9 && c->loss == 0 && c->offset == -3, "numbers");
    check(c->batch == 32 && c->seed == 0 && c->dry_run == 0 && !*c->data && !*c->preset, "the others");
    for (int i = 0; i < N_FLAGS; i++) check(p.cli.source[i] == CLI_FROM_DEFAULT, "the source is the default");
    cli_free(&p.cli);
    test_end_case();
}

void test_all_types(void) {
    if (!test_case("-flag value, --flag value, -flag=value, --flag=value; every type; the last one counts")) return;
    program_t p;
    char line[] = "-stage 2 --lr 2.5e-3 -beta=0 --loss=none -offset -70 -data=-x=y -batch 7 "
                  "--seed 18446744073709551615 -dry_run -stage 3";
    program_init(&p);
    program_parse(&p, line);
    const config_t* c = &p.config;
    check(c->stage == 3 && c->lr == 2.5e-3 && c->beta == 0 && c->loss == 2 && c->offset == -70, "numbers");
    check(c->batch == 7 && c->seed == UINT64_MAX && c->dry_run == 1 && !strcmp(c->data, "-x=y"), "the others");
    for (int i = 0; i < N_FLAGS - 1; i++) check(p.cli.source[i] == CLI_FROM_COMMAND_LINE, "the source of each value");
    check(cli_source(&p.cli, "preset") == CLI_FROM_DEFAULT, "what was not given is a default");
    cli_free(&p.cli);
    test_end_case();
}

void test_mistakes(void) {
    if (!test_case("each mistake on the command line: exit code 1 and its message")) return;
    const char* list[][2] = {
        // command line, message
        {"-stagee 2", "error: unknown flag -stagee; did you mean -stage? (-h lists all)\n"},
        {"-dry-run 1", "error: unknown flag -dry-run; did you mean -dry_run? (-h lists all)\n"},
        {"--bacth=3", "error: unknown flag -bacth; did you mean -batch? (-h lists all)\n"},
        {"-quantize 2", "error: unknown flag -quantize (-h lists all)\n"},
        {"-- 2", "error: unknown flag - (-h lists all)\n"},
        {"stage 2", "error: unexpected argument \"stage\"; flags are written as -name value (-h lists all)\n"},
        {"-stage 2 3", "error: unexpected argument \"3\"; flags are written"},
        {"-", "error: unexpected argument \"-\"; flags are written"},
        {"-stage", "error: -stage needs a value; write for example -stage 1 (-h explains it)\n"},
        {"-data -stage 2", "error: -data needs a value; write for example -data VALUE (-h explains it)\n"},
        {"-lr --seed=3", "error: -lr needs a value; write for example -lr 1e-4 (-h explains it)\n"},
        {"-lr 1e-4x", "error: -lr 1e-4x is not a number; write for example -lr 1e-4\n"},
        {"-lr=", "error: -lr  is not a number; write for example -lr 1e-4\n"},
        {"-lr nan", "error: -lr nan is not a number"},
        {"-lr 1e999", "error: -lr 1e999 is not a number"},
        {"-lr inf", "error: -lr inf is not a number"},
        {"-stage 2.5", "error: -stage 2.5 is not an integer; write for example -stage 1\n"},
        {"-stage two", "error: -stage two is not an integer"},
        {"-offset 2147483648", "error: -offset 2147483648 is not an integer"},
        {"-offset 99999999999999999999", "error: -offset 99999999999999999999 is not an integer"},
        {"-seed -1", "error: -seed -1 is not an integer from 0 on; write for example -seed 0\n"},
        {"-seed 18446744073709551616", "error: -seed 18446744073709551616 is not an integer from 0 on"},
        {"-stage 4", "error: -stage 4 is out of range; choose an integer in [1, 3] (-h explains it)\n"},
        {"-stage 0", "error: -stage 0 is out of range"},
        {"-lr 0", "error: -lr 0 is out of range; choose a number in (0, 1] (-h explains it)\n"},
        {"-beta 1", "error: -beta 1 is out of range; choose a number in [0, 1) (-h explains it)\n"},
        {"-beta -0.1", "error: -beta -0.1 is out of range"},
        {"-batch 0", "error: -batch 0 is out of range; choose an integer from 0 on in [1, inf) (-h explains it)\n"},
        {"-loss cosin", "error: -loss cosin is none of: cosine, l2, none; did you mean cosine?\n"},
        {"-loss perceptual", "error: -loss perceptual is none of: cosine, l2, none\n"},
        {"-loss cosine|l2", "error: -loss cosine|l2 is none of: cosine, l2, none"},
        {"-loss=", "error: -loss  is none of: cosine, l2, none"},
        {"-dry_run yes", "error: -dry_run yes is neither 0 (no) nor 1 (yes)\n"},
        {"-preset imagnet", "error: -preset imagnet is none of: mini, imagenet; did you mean imagenet?\n"},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        result_t result;
        run_program(&result, list[i][0]);
        check(result.code == 1 && !result.out[0], list[i][0]);
        check(!strncmp(result.errors, list[i][1], strlen(list[i][1])), list[i][1]);
        check(strchr(result.errors, '\n') == result.errors + strlen(result.errors) - 1, "the message is one line");
    }
    test_end_case();
}

void test_range_ends(void) {
    if (!test_case("the ends of a range belong to it when it says so")) return;
    program_t p;
    char line[] = "-lr 1 -beta 0 -stage 3 -batch 1 -offset -2147483648";
    program_init(&p);
    program_parse(&p, line);
    check(p.config.lr == 1 && p.config.beta == 0 && p.config.stage == 3 && p.config.batch == 1, "the ends");
    check(p.config.offset == INT_MIN, "the least int");
    cli_free(&p.cli);
    test_end_case();
}

// ------------------------------------------------------------------------------------------------------------------
// Presets

void test_presets(void) {
    if (!test_case("a preset changes defaults, the command line wins, wherever -preset stands")) return;
    const char* lines[2] = {"-preset mini -lr 0.5 -stage 2", "-lr 0.5 -stage 2 -preset mini"};
    for (int i = 0; i < 2; i++) {
        program_t p;
        char line[100];
        snprintf(line, sizeof line, "%s", lines[i]);
        program_init(&p);
        program_parse(&p, line);
        check(p.config.lr == 0.5 && cli_source(&p.cli, "lr") == CLI_FROM_COMMAND_LINE, "the command line wins");
        check(p.config.batch == 8 && cli_source(&p.cli, "batch") == CLI_FROM_PRESET, "the preset sets the size");
        check(p.config.loss == 1 && cli_source(&p.cli, "loss") == CLI_FROM_PRESET, "the preset sets the choice");
        check(p.config.beta == 0.9 && cli_source(&p.cli, "beta") == CLI_FROM_DEFAULT, "the rest are defaults");
        check(!strcmp(p.config.preset, "mini"), "the preset has its name");
        cli_free(&p.cli);
    }
    program_t p;
    char line[] = "-batch 5";
    program_init(&p);
    program_parse(&p, line);
    cli_apply_preset(&p.cli, "imagenet");
    check(p.config.batch == 5 && !strcmp(p.config.data, "imagenet/train"), "a preset that the program chooses");
    check(!strcmp(p.config.preset, "imagenet") && cli_source(&p.cli, "preset") == CLI_FROM_PRESET, "shows its name");
    cli_free(&p.cli);
    test_end_case();
}

// A table or preset with a mistake of its author; the child ends in cli_init.
int run_broken(const char* default_text, const char* preset_flag, const char* preset_value, result_t* result) {
    FILE* captured = tmpfile();
    if (!captured) fatal("no temporary file can be made for the test; free space in /tmp");
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        int stage;
        const cli_flag_t flag = {"Recipe", "stage", CLI_INT, &stage, default_text, "[1, 3]", "its help", CLI_SAVED};
        const cli_setting_t settings[2] = {{preset_flag, preset_value}, {NULL, NULL}};
        const cli_preset_t preset = {"mini", "small", settings};
        cli_t cli;
        dup2(fileno(captured), 2);
        cli_init(&cli, "train", "Trains.", &flag, 1, &preset, 1);
        _exit(7);
    }
    int status = 0;
    waitpid(child, &status, 0);
    rewind(captured);
    result->errors[fread(result->errors, 1, sizeof result->errors - 1, captured)] = 0;
    fclose(captured);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void test_broken_tables(void) {
    if (!test_case("defaults and presets are checked at the start")) return;
    result_t result;
    check(run_broken("1", "stage", "2", &result) == 7, "a good table passes");
    check(run_broken("7", "stage", "2", &result) == 1, "a bad default is found");
    check_contains(result.errors, "the default of train: -stage 7 is out of range");
    check(run_broken("1", "stage", "x", &result) == 1, "a bad preset value is found");
    check_contains(result.errors, "preset mini of train: -stage x is not an integer");
    check(run_broken("1", "phase", "2", &result) == 1, "an unknown preset flag is found");
    check_contains(result.errors, "preset mini sets -phase, which is no flag of train");
    test_end_case();
}

// ------------------------------------------------------------------------------------------------------------------
// Help and the printed configuration

void test_help(void) {
    if (!test_case("-h lists exactly the flags, in 100 columns, with exit code 0")) return;
    const char* lines[4] = {"-h", "--help", "-stage 2 -h", "-nonsense -h"};
    program_t p;
    program_init(&p);
    for (int k = 0; k < 4; k++) {
        result_t result;
        int found[N_FLAGS] = {0};
        int strangers = 0, n = 0;
        run_program(&result, lines[k]);
        check(result.code == 0 && !result.errors[0], "exit code 0 and no error");
        check_contains(result.out, "Trains a model.\n\nusage: train [-flag value]...\n\nRecipe\n");
        check_contains(result.out, "\n  -stage INTEGER        training stage (in [1, 3]; default 1)\n");
        check_contains(result.out, "semantic loss (one of cosine, l2, none; default cosine)\n");
        check_contains(result.out, "\n  -dry_run [0|1]        only print what would be done (default 0)\n");
        check_contains(result.out, "default none)");
        check_contains(result.out, "\n  mini                  a small world\n"
                                   "                        sets: batch=8 lr=3e-3 loss=l2\n");
        for (char* line = strtok(result.out, "\n"); line; line = strtok(NULL, "\n")) {
            char name[64] = "";
            check(strlen(line) <= 100, "a line has at most 100 columns");
            if (sscanf(line, "  -%63s", name) != 1 || strncmp(line, "  -", 3)) continue;
            int i = cli_find(&p.cli, name);
            n++;
            if (i < 0) strangers++;
            else found[i]++;
        }
        check(n == N_FLAGS && strangers == 0, "no stranger is listed");
        for (int i = 0; i < N_FLAGS; i++) check(found[i] == 1, p.flags[i].name);
    }
    cli_free(&p.cli);
    test_end_case();
}

// What a preset changes is shown beside the default, with the preset's name.
void test_help_of_a_preset(void) {
    if (!test_case("-h with a preset shows what it sets")) return;
    const char* lines[2] = {"-preset mini -h", "-h --preset mini"};
    for (int k = 0; k < 2; k++) {
        result_t result;
        run_program(&result, lines[k]);
        check(result.code == 0, "exit code 0");
        check_contains(result.out, "default 32; by preset mini: 8)");
        check_contains(result.out, "training stage (in [1, 3]; default 1)\n");
    }
    test_end_case();
}

// What the data tell is taken, unless the command line says otherwise; then it is found.
void test_from_data(void) {
    if (!test_case("values from the data")) return;
    program_t p;
    program_init(&p);
    char* given[3] = {(char*)"train", (char*)"-stage", (char*)"2"};
    cli_parse(&p.cli, 3, given);
    check(cli_take_from_data(&p.cli, "offset", 7) && p.config.offset == 7, "taken");
    check(cli_source(&p.cli, "offset") == CLI_FROM_DATA, "and remembered");
    check(cli_take_from_data(&p.cli, "stage", 2), "the command line says the same");
    check(!cli_take_from_data(&p.cli, "stage", 3) && p.config.stage == 2, "the command line says otherwise");
    cli_free(&p.cli);
    test_end_case();
}

void test_printed(void) {
    if (!test_case("the printed configuration is aligned, marks changes and names sources")) return;
    program_t p;
    char line[] = "-preset mini -stage 2 -beta 0.90 -seed 12345678901234567890";
    char text[4000];
    program_init(&p);
    program_parse(&p, line);
    printed_configuration(&p.cli, text, sizeof text);
    const char* wanted = "configuration (* where it is not the default)\n"
                         "Recipe\n"
                         "* -stage    2                     command line\n"
                         "* -lr       0.003                 preset\n"
                         "  -beta     0.9                   command line\n"
                         "* -loss     l2                    preset\n"
                         "  -offset   -3                    default\n"
                         "Data\n"
                         "  -data                           default\n"
                         "* -batch    8                     preset\n"
                         "* -seed     12345678901234567890  command line\n"
                         "Run\n"
                         "  -dry_run  0                     default\n"
                         "* -preset   mini                  command line\n";
    if (strcmp(text, wanted)) printf("%s", text);
    check(!strcmp(text, wanted), "the table");
    cli_free(&p.cli);
    test_end_case();
}

void test_number_texts(void) {
    if (!test_case("numbers are printed with the fewest digits that read back the same")) return;
    const cli_flag_t flag = {"Recipe", "x", CLI_NUMBER, NULL, "0", NULL, "a number", CLI_SAVED};
    const double numbers[] = {0, 1e-4, 0.1, 1.0 / 3, 1e300, -2.5, 5e-324, 123456789};
    const char* texts[] = {"0", "0.0001", "0.1", "0.3333333333333333", "1e+300", "-2.5", "5e-324", "123456789"};
    char buffer[CLI_TEXT_SIZE];
    cli_value_t value;
    memset(&value, 0, sizeof value);
    for (int i = 0; i < 8; i++) {
        value.number = numbers[i];
        check(!strcmp(cli_text(NULL, &flag, value, buffer), texts[i]), texts[i]);
    }
    for (int i = 0; i < 10000; i++) {
        value.number = ldexp(test_uniform(), (int)(test_uniform() * 1000));
        check(strtod(cli_text(NULL, &flag, value, buffer), NULL) == value.number, "the text reads back as the number");
    }
    test_end_case();
}

void test_distance(void) {
    if (!test_case("edit distance")) return;
    check(cli_distance("", "") == 0 && cli_distance("stage", "stage") == 0, "equal words");
    check(cli_distance("", "abc") == 3 && cli_distance("abc", "") == 3, "an empty word");
    check(cli_distance("kitten", "sitting") == 3 && cli_distance("sitting", "kitten") == 3, "three letters");
    check(cli_distance("bacth", "batch") == 2 && cli_distance("flaw", "lawn") == 2, "two letters");
    char long_word[500];
    memset(long_word, 'a', sizeof long_word - 1);
    long_word[sizeof long_word - 1] = 0;
    check(cli_distance(long_word, "a") == 498, "a long first word");
    check(cli_distance("a", long_word) == CLI_TEXT_SIZE - 2, "a long second word is cut");
    test_end_case();
}

// ------------------------------------------------------------------------------------------------------------------
// Saving, reading back, comparing

void test_json(void) {
    if (!test_case("the configuration as JSON, read back; the command line wins over it")) return;
    program_t a, b;
    char line_a[] = "-stage 3 -lr 0.1 -loss none -data a\"b\\c\xC3\xA9 -seed 18446744073709551615 -dry_run 1 "
                    "-offset -9";
    char line_b[] = "-lr 0.25 -dry_run 0";
    char error[512] = "";
    program_init(&a);
    program_parse(&a, line_a);
    char* json = cli_to_json(&a.cli);
    const char* wanted = "{\"stage\": 3, \"lr\": 0.1, \"beta\": 0.9, \"loss\": \"none\", \"offset\": -9, "
                         "\"data\": \"a\\\"b\\\\c\xC3\xA9\", \"batch\": 32, \"seed\": 18446744073709551615}";
    if (strcmp(json, wanted)) printf("%s\n", json);
    check(!strcmp(json, wanted), "the JSON text");
    program_init(&b);
    program_parse(&b, line_b);
    check(cli_from_json(&b.cli, json, error, sizeof error), "it is read back");
    check(b.config.stage == 3 && b.config.loss == 2 && b.config.seed == UINT64_MAX && b.config.offset == -9, "values");
    check(!strcmp(b.config.data, "a\"b\\c\xC3\xA9") && cli_source(&b.cli, "data") == CLI_FROM_SAVED, "the string");
    check(b.config.lr == 0.25 && cli_source(&b.cli, "lr") == CLI_FROM_COMMAND_LINE, "the command line wins");
    check(b.config.dry_run == 0, "what is not saved is not read");
    free(json);
    cli_free(&a.cli);
    cli_free(&b.cli);
    test_end_case();
}

void test_bad_json(void) {
    if (!test_case("a damaged saved configuration is refused and changes nothing")) return;
    const char* list[][2] = {
        {"", "saved configuration: the text ends at byte 0"},
        {"{\"stage\": 2", "saved configuration: the text ends at byte 11"},
        {"{\"stage\": 2} x", "saved configuration: byte 13"},
        {"{\"stage\": [2]}", "saved configuration: byte 10"},
        {"{\"stage\": 2, \"stage\": 2}", "saved configuration: -stage stands there twice"},
        {"{\"batch\": 3, \"stage\": 7}", "saved configuration: -stage 7 is out of range"},
        {"{\"batch\": 3, \"loss\": \"l3\"}", "saved configuration: -loss l3 is none of: cosine, l2, none"},
        {"{\"batch\": 3, \"phase\": 7}", "saved configuration: -phase: saved 7, no flag of train"},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        program_t p;
        char line[] = "";
        char error[512] = "";
        json_text_t lines = {NULL, 0, 0};
        program_init(&p);
        program_parse(&p, line);
        check(!cli_from_json(&p.cli, list[i][0], error, sizeof error), list[i][0]);
        check(!strncmp(error, list[i][1], strlen(list[i][1])), list[i][1]);
        check(p.config.stage == 1 && p.config.batch == 32, "nothing has changed");
        int count = cli_differences(&p.cli, list[i][0], &lines, error, sizeof error);
        check(i < 5 ? count == -1 : count > 0, "a comparison refuses the text or lists the value");
        json_text_free(&lines);
        cli_free(&p.cli);
    }
    test_end_case();
}

void test_differences(void) {
    if (!test_case("differences between a saved and a given configuration are listed")) return;
    program_t p;
    char line[] = "-batch 64 -lr 1e-4 -loss l2 -beta 0.5 -dry_run 1";
    char error[512] = "";
    json_text_t lines = {NULL, 0, 0};
    program_init(&p);
    program_parse(&p, line);
    char* json = cli_to_json(&p.cli);
    check(cli_differences(&p.cli, json, &lines, error, sizeof error) == 0 && lines.length == 0, "none to itself");
    const char* saved = "{\"batch\": 32, \"lr\": 0.00010, \"loss\": \"cosine\", \"data\": \"x\", \"dry_run\": 0, "
                        "\"phase\": 2}";
    check(cli_differences(&p.cli, saved, &lines, error, sizeof error) == 5, "five differences");
    const char* wanted = "-phase: saved 2, no flag of train\n"
                         "-beta: saved 0.9 (by default), given 0.5\n"
                         "-loss: saved cosine, given l2\n"
                         "-data: saved x, given nothing\n"
                         "-batch: saved 32, given 64\n";
    if (!lines.text || strcmp(lines.text, wanted)) printf("%s", lines.text ? lines.text : "");
    check(lines.text && !strcmp(lines.text, wanted), "the lines");
    free(json);
    json_text_free(&lines);
    cli_free(&p.cli);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    test_defaults();
    test_all_types();
    test_mistakes();
    test_range_ends();
    test_presets();
    test_broken_tables();
    test_help();
    test_help_of_a_preset();
    test_from_data();
    test_printed();
    test_number_texts();
    test_distance();
    test_json();
    test_bad_json();
    test_differences();
    return test_finish();
}
