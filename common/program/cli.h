// cli.h: the command line. One table of flags drives the parser, -h, the printed and the saved configuration.
//
// A program describes each of its flags once, with the place in its configuration where the value goes:
//
//     cli_flag_t flags[] = {
//         // group    name     type        value           default  allowed   help                  saving
//         {"Recipe", "stage",  CLI_INT,    &config.stage,  "1",     "[1, 3]", "training stage",     CLI_SAVED},
//         {NULL,     "lr",     CLI_NUMBER, &config.lr,     "1e-4",  "(0, 1]", "learning rate",      CLI_SAVED},
//         {NULL,     "vf",     CLI_CHOICE, &config.vf,     "cos",   "cos|l2", "semantic loss",      CLI_SAVED},
//         {"Run",    "preset", CLI_PRESET, &config.preset, "mini",  NULL,     "sets several flags", CLI_NOT_SAVED},
//     };
//     cli_t cli;
//     cli_init(&cli, "train", "Trains something.", flags, 4, presets, 2);
//     cli_parse(&cli, argc, argv);
//
// and is run as `train -stage 2 -lr 3e-4` (also --stage 2, -stage=2; a CLI_BOOL without a value is set to 1). A preset
// is a named list of such pairs. It counts as a change of the defaults: a flag on the command line wins over it,
// wherever -preset stands. Each value remembers where it came from. Given twice, the last one counts.
//
// There are no configuration files and no environment variables: a command line and a checkpoint, in which a
// configuration is saved (common/program/cli_saved.h), say everything about a run. Look next at train_tokenizer.cu,
// which has the longest table.
#pragma once
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// defines: fatal, calloc_check
#include "common/program/log.h"
// defines: json_text_t, json_append, json_text_free
#include "common/program/json.h"

#define CLI_COLUMNS 100  // width of -h
#define CLI_TEXT_SIZE 64 // room for a number or the name of a choice

typedef enum {
    CLI_INT,    // int
    CLI_SIZE,   // size_t, an integer from 0 on
    CLI_NUMBER, // double
    CLI_STRING, // const char*, which points into argv, the table or the cli_t; "" when there is none, never NULL
    CLI_BOOL,   // int, 0 or 1
    CLI_CHOICE, // int, the position in the list of choices; keep an enum in the same order
    CLI_PRESET, // const char*, the name of a preset, or ""; at most one such flag
} cli_type_t;

typedef enum { CLI_SAVED, CLI_NOT_SAVED } cli_saving_t; // whether checkpoints keep the value

typedef enum {
    CLI_FROM_DEFAULT, CLI_FROM_PRESET, CLI_FROM_SAVED, CLI_FROM_DATA, CLI_FROM_FLAG, CLI_FROM_COMMAND_LINE
} cli_source_t;

typedef struct {
    const char* group; // heading, or NULL: that of the flag before
    const char* name;  // without the dash
    cli_type_t type;
    void* value; // where it goes
    const char* default_text;
    const char* allowed; // numbers: an interval such as "[0, 1)" or "(0, inf)"; choices: "a|b|c"; NULL: anything
    const char* help;
    cli_saving_t saving;
} cli_flag_t;

typedef struct {
    const char* flag;
    const char* value;
} cli_setting_t;

// A setting of the flag of type CLI_PRESET, which comes first, names another preset: what that one sets counts too.
typedef struct {
    const char* name;
    const char* help;
    const cli_setting_t* settings; // the last one is {NULL, NULL}
} cli_preset_t;

typedef struct {
    const char* program;
    const char* about; // what the program does, for -h
    const cli_flag_t* flags;
    int n_flags;
    const cli_preset_t* presets;
    int n_presets;
    const char* notes;    // what -h prints below the flags, or NULL
    cli_source_t* source; // (n_flags) where each value came from
    char* saved_strings;  // strings that cli_from_json has read
} cli_t;

// A value of any type; the type of the flag says which member counts.
typedef struct {
    int integer; // CLI_INT, CLI_BOOL, CLI_CHOICE
    size_t size;
    double number;
    const char* string; // CLI_STRING, CLI_PRESET
} cli_value_t;

// ------------------------------------------------------------------------------------------------------------------
// Names: finding, and finding the nearest

// Index of the flag, or -1.
static inline int cli_find(const cli_t* cli, const char* name) {
    for (int i = 0; i < cli->n_flags; i++) {
        if (!strcmp(cli->flags[i].name, name)) return i;
    }
    return -1;
}

// Copies the i-th choice of the flag (or name of a preset) to `name`; 0 past the last one.
static inline int cli_choice_name(const cli_t* cli, const cli_flag_t* flag, int i, char* name) { // (CLI_TEXT_SIZE)
    if (flag->type == CLI_PRESET) {
        if (i < cli->n_presets) snprintf(name, CLI_TEXT_SIZE, "%s", cli->presets[i].name);
        return i < cli->n_presets;
    }
    const char* at = flag->allowed;
    while (i-- > 0 && at) {
        at = strchr(at, '|');
        if (at) at++;
    }
    if (at) snprintf(name, CLI_TEXT_SIZE, "%.*s", (int)strcspn(at, "|"), at);
    return at != NULL;
}

// Levenshtein's distance: the fewest insertions, deletions and replacements of a letter that turn a into b.
// row[j] is the distance between the first i letters of a and the first j of b.
static inline int cli_distance(const char* a, const char* b) {
    int row[CLI_TEXT_SIZE];
    int n = (int)strlen(b) < CLI_TEXT_SIZE - 1 ? (int)strlen(b) : CLI_TEXT_SIZE - 1;
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int replaced = diagonal + (a[i - 1] != b[j - 1]);
            int longer = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            diagonal = row[j];
            row[j] = replaced < longer ? replaced : longer;
        }
    }
    return row[n];
}

// Two words are near when at most about a third of the letters differ.
static inline int cli_is_near(int distance, const char* word) { return distance <= 1 + (int)strlen(word) / 3; }

// "; did you mean -stage?" for a name that is near to a flag, else "".
static inline void cli_suggest_flag(const cli_t* cli, const char* name, char* text, size_t text_size) {
    int best = INT_MAX;
    text[0] = 0;
    for (int i = 0; i < cli->n_flags; i++) {
        int distance = cli_distance(name, cli->flags[i].name);
        if (distance >= best || !cli_is_near(distance, name)) continue;
        best = distance;
        snprintf(text, text_size, "; did you mean -%s?", cli->flags[i].name);
    }
}

// ------------------------------------------------------------------------------------------------------------------
// Values: from text, to text, to and from the configuration

typedef struct {
    double low, high;
    int low_excluded, high_excluded;
} cli_interval_t;

// "[0, 1)" means 0 <= value < 1. Without a text everything is allowed.
static inline cli_interval_t cli_interval(const char* text) {
    cli_interval_t range = {-INFINITY, INFINITY, 0, 0};
    if (!text) return range;
    char opening = 0, closing = 0;
    int fields = sscanf(text, " %c %lf , %lf %c", &opening, &range.low, &range.high, &closing);
    assert(fields == 4 && strchr("[(", opening) && strchr("])", closing) && "an interval is written like [0, 1)");
    (void)fields;
    range.low_excluded = opening == '(';
    range.high_excluded = closing == ')';
    return range;
}

static inline int cli_in_interval(double value, cli_interval_t range) {
    int low_good = range.low_excluded ? value > range.low : value >= range.low;
    int high_good = range.high_excluded ? value < range.high : value <= range.high;
    return low_good && high_good;
}

// Numbers of flags end up in floats: what one cannot hold is none (1e39, nan).
static inline int cli_is_float(double value) { return fabs(value) <= FLT_MAX; }

// Reads an integer or a number. 1, or 0 with a sentence in `error`.
static inline int cli_parse_number(const cli_flag_t* flag, const char* text, cli_value_t* value, char* error,
                                   size_t error_size) {
    const char* kind = flag->type == CLI_NUMBER ? "a number" : "an integer";
    if (flag->type == CLI_SIZE) kind = "an integer from 0 on";
    char* end = NULL;
    int good = text[0] && !isspace((unsigned char)text[0]);
    errno = 0;
    if (flag->type == CLI_INT) {
        long integer = strtol(text, &end, 10);
        good = good && errno == 0 && integer >= INT_MIN && integer <= INT_MAX;
        value->integer = good ? (int)integer : 0;
        value->number = value->integer;
    } else if (flag->type == CLI_SIZE) {
        unsigned long long size = strtoull(text, &end, 10);
        good = good && errno == 0 && text[0] != '-' && size <= SIZE_MAX;
        value->size = good ? (size_t)size : 0;
        value->number = (double)value->size;
    } else {
        value->number = strtod(text, &end);
        good = good && cli_is_float(value->number); // 1e-999 is 0
    }
    if (!good || *end) {
        snprintf(error, error_size, "-%s %s is not %s; write for example -%s %s", flag->name, text, kind, flag->name,
                 flag->default_text);
        return 0;
    }
    if (!cli_in_interval(value->number, cli_interval(flag->allowed))) {
        snprintf(error, error_size, "-%s %s is out of range; choose %s in %s (-h explains it)", flag->name, text, kind,
                 flag->allowed);
        return 0;
    }
    return 1;
}

// Finds the text among the choices. 1, or 0 with a sentence that lists them in `error`.
static inline int cli_parse_choice(const cli_t* cli, const cli_flag_t* flag, const char* text, cli_value_t* value,
                                   char* error, size_t error_size) {
    char name[CLI_TEXT_SIZE], nearest[CLI_TEXT_SIZE];
    int best = INT_MAX;
    json_text_t list = {NULL, 0, 0};
    value->string = text;
    for (int i = 0; cli_choice_name(cli, flag, i, name); i++) {
        int distance = cli_distance(text, name);
        if (distance < best) memcpy(nearest, name, sizeof name);
        if (distance < best) best = distance;
        json_append(&list, "%s%s", i ? ", " : "", name);
        if (!strcmp(text, name)) {
            value->integer = i;
            json_text_free(&list);
            return 1;
        }
    }
    int n = snprintf(error, error_size, "-%s %s is none of: %s", flag->name, text, list.text ? list.text : "(nothing)");
    if (best != INT_MAX && cli_is_near(best, text) && (size_t)n < error_size) {
        snprintf(error + n, error_size - (size_t)n, "; did you mean %s?", nearest);
    }
    json_text_free(&list);
    return 0;
}

// Reads `text` as a value of the flag. 1, or 0 with a sentence in `error`. Strings are not copied.
static inline int cli_parse_value(const cli_t* cli, const cli_flag_t* flag, const char* text, cli_value_t* value,
                                  char* error, size_t error_size) {
    memset(value, 0, sizeof *value);
    value->string = text;
    switch (flag->type) {
    case CLI_STRING:
        return 1;
    case CLI_BOOL:
        value->integer = !strcmp(text, "1");
        if (value->integer || !strcmp(text, "0")) return 1;
        snprintf(error, error_size, "-%s %s is neither 0 (no) nor 1 (yes)", flag->name, text);
        return 0;
    case CLI_PRESET:
        if (!*text) return 1;
        return cli_parse_choice(cli, flag, text, value, error, error_size);
    case CLI_CHOICE:
        return cli_parse_choice(cli, flag, text, value, error, error_size);
    default:
        return cli_parse_number(flag, text, value, error, error_size);
    }
}

static inline void cli_store(const cli_flag_t* flag, const cli_value_t* value) {
    if (flag->type == CLI_SIZE) *(size_t*)flag->value = value->size;
    else if (flag->type == CLI_NUMBER) *(double*)flag->value = value->number;
    else if (flag->type == CLI_STRING || flag->type == CLI_PRESET) *(const char**)flag->value = value->string;
    else *(int*)flag->value = value->integer;
}

static inline cli_value_t cli_load(const cli_flag_t* flag) {
    cli_value_t value;
    memset(&value, 0, sizeof value);
    if (flag->type == CLI_SIZE) value.size = *(const size_t*)flag->value;
    else if (flag->type == CLI_NUMBER) value.number = *(const double*)flag->value;
    else if (flag->type == CLI_STRING || flag->type == CLI_PRESET) value.string = *(const char* const*)flag->value;
    else value.integer = *(const int*)flag->value;
    return value;
}

// The value as text, in one way only, so that equal values have equal texts; numbers with the fewest digits that read
// back as the same double. The result is `buffer` or the string itself.
static inline const char* cli_text(const cli_t* cli, const cli_flag_t* flag, cli_value_t value,
                                   char* buffer) { // (CLI_TEXT_SIZE)
    switch (flag->type) {
    case CLI_STRING:
    case CLI_PRESET:
        return value.string;
    case CLI_CHOICE:
        if (!cli_choice_name(cli, flag, value.integer, buffer)) snprintf(buffer, CLI_TEXT_SIZE, "%d", value.integer);
        break;
    case CLI_SIZE:
        snprintf(buffer, CLI_TEXT_SIZE, "%zu", value.size);
        break;
    case CLI_NUMBER:
        for (int digits = 1; digits <= 17; digits++) {
            snprintf(buffer, CLI_TEXT_SIZE, "%.*g", digits, value.number);
            if (strtod(buffer, NULL) == value.number) break;
        }
        break;
    default:
        snprintf(buffer, CLI_TEXT_SIZE, "%d", value.integer);
    }
    return buffer;
}

// The text that cli_text gives for a value that is still text; `text` itself when it is no value of the flag.
static inline const char* cli_plain_text(const cli_t* cli, const cli_flag_t* flag, const char* text,
                                         char* buffer) { // (CLI_TEXT_SIZE)
    cli_value_t value;
    char error[256];
    return cli_parse_value(cli, flag, text, &value, error, sizeof error) ? cli_text(cli, flag, value, buffer) : text;
}

static inline int cli_differs_from_default(const cli_t* cli, const cli_flag_t* flag) {
    char now[CLI_TEXT_SIZE], before[CLI_TEXT_SIZE];
    return strcmp(cli_text(cli, flag, cli_load(flag), now), cli_plain_text(cli, flag, flag->default_text, before)) != 0;
}

// ------------------------------------------------------------------------------------------------------------------
// Set-up and parsing

// A value that the table or a preset gives; what is wrong there is a bug of the program, named as such.
static inline cli_value_t cli_own_value(const cli_t* cli, const char* owner, const char* name, const char* text) {
    char error[512];
    cli_value_t value;
    int i = cli_find(cli, name);
    if (i < 0) fatal("%s sets -%s, which is no flag of %s; this is a bug, please report it", owner, name, cli->program);
    if (!cli_parse_value(cli, &cli->flags[i], text, &value, error, sizeof error)) {
        fatal("%s of %s: %s; this is a bug, please report it", owner, cli->program, error);
    }
    return value;
}

// Checks the table and the presets and puts the defaults in place. All texts must outlive `cli`.
void cli_init(cli_t* cli, const char* program, const char* about, const cli_flag_t* flags, int n_flags,
              const cli_preset_t* presets, int n_presets) {
    memset(cli, 0, sizeof *cli);
    cli->program = program;
    cli->about = about;
    cli->flags = flags;
    cli->n_flags = n_flags;
    cli->presets = presets;
    cli->n_presets = n_presets;
    cli->source = (cli_source_t*)calloc_check((size_t)n_flags, sizeof(cli_source_t), "the flags");
    for (int i = 0; i < n_flags; i++) {
        assert(cli_find(cli, flags[i].name) == i && "no two flags have the same name");
        assert((i > 0 || flags[i].group) && "the first flag has a heading");
        cli_value_t value = cli_own_value(cli, "the default", flags[i].name, flags[i].default_text);
        cli_store(&flags[i], &value);
    }
    for (int i = 0; i < n_presets; i++) {
        char owner[128];
        snprintf(owner, sizeof owner, "preset %s", presets[i].name);
        for (const cli_setting_t* s = presets[i].settings; s->flag; s++) cli_own_value(cli, owner, s->flag, s->value);
    }
}

void cli_free(cli_t* cli) {
    free(cli->source);
    free(cli->saved_strings);
    memset(cli, 0, sizeof *cli);
}

// Where the value of a flag came from; the flag must exist.
cli_source_t cli_source(const cli_t* cli, const char* name) {
    int i = cli_find(cli, name);
    assert(i >= 0);
    return cli->source[i];
}

// The preset of this name, or NULL.
static inline const cli_preset_t* cli_preset(const cli_t* cli, const char* name) {
    for (int i = 0; i < cli->n_presets; i++) {
        if (!strcmp(cli->presets[i].name, name)) return &cli->presets[i];
    }
    return NULL;
}

// Sets what the preset says, except where the command line has spoken. cli_parse does it for the flag of type
// CLI_PRESET; a program calls it when it chooses a preset by itself.
void cli_apply_preset(cli_t* cli, const char* name) {
    const cli_preset_t* preset = cli_preset(cli, name);
    if (!preset) fatal("there is no preset %s; -h lists them", name);
    for (const cli_setting_t* s = preset->settings; s->flag; s++) {
        int k = cli_find(cli, s->flag);
        if (cli->flags[k].type == CLI_PRESET) {
            cli_apply_preset(cli, s->value);
            continue;
        }
        if (cli->source[k] == CLI_FROM_COMMAND_LINE) continue;
        cli_value_t value = cli_own_value(cli, "preset", s->flag, s->value);
        cli_store(&cli->flags[k], &value);
        cli->source[k] = CLI_FROM_PRESET;
    }
    for (int k = 0; k < cli->n_flags; k++) { // the configuration shows which preset it was
        if (cli->flags[k].type != CLI_PRESET || cli->source[k] == CLI_FROM_COMMAND_LINE) continue;
        *(const char**)cli->flags[k].value = preset->name;
        cli->source[k] = CLI_FROM_PRESET;
    }
}

// Takes an integer that the data tell, and returns 1; or 0, and nothing is changed, where the command line has another.
int cli_take_from_data(cli_t* cli, const char* name, int value) {
    int i = cli_find(cli, name);
    assert(i >= 0 && cli->flags[i].type == CLI_INT);
    int* place = (int*)cli->flags[i].value;
    if (cli->source[i] == CLI_FROM_COMMAND_LINE) return *place == value;
    *place = value;
    cli->source[i] = CLI_FROM_DATA;
    return 1;
}

// Where nobody has spoken, neither the command line nor a preset, another flag may choose a default.
void cli_follow(cli_t* cli, const char* name, const char* text) {
    int i = cli_find(cli, name);
    assert(i >= 0);
    if (cli->source[i] != CLI_FROM_DEFAULT) return;
    cli_value_t value = cli_own_value(cli, "what follows from other flags", name, text);
    cli_store(&cli->flags[i], &value);
    cli->source[i] = CLI_FROM_FLAG;
}

// Splits "-name", "--name" or "-name=value" and returns the flag's index; *value is NULL when none is attached.
static inline int cli_match(const cli_t* cli, const char* argument, const char** value) {
    char name[256], suggestion[128];
    if (argument[0] != '-' || !argument[1]) {
        fatal("unexpected argument \"%s\"; flags are written as -name value (-h lists all)", argument);
    }
    const char* start = argument + (argument[1] == '-' ? 2 : 1);
    snprintf(name, sizeof name, "%.*s", (int)strcspn(start, "="), start);
    *value = strchr(start, '=');
    if (*value) ++*value;
    int i = cli_find(cli, name);
    if (i >= 0) return i;
    cli_suggest_flag(cli, name, suggestion, sizeof suggestion);
    fatal("unknown flag -%s%s (-h lists all)", name, suggestion);
}

// Whether the argument after a flag looks like a flag itself, so that the value was forgotten. "-3" and "-" do not.
static inline int cli_is_flag(const char* argument) {
    return argument[0] == '-' && (argument[1] == '-' || isalpha((unsigned char)argument[1]));
}

void cli_print_help(const cli_t* cli, FILE* out);

// Is -h among the arguments? `-preset NAME` beside it says whose values the help shows.
static inline int cli_asks_for_help(cli_t* cli, int argc, char** argv) {
    int asks = 0;
    for (int i = 1; i < argc; i++) {
        asks |= !strcmp(argv[i], "-h") || !strcmp(argv[i], "-help") || !strcmp(argv[i], "--help");
        const char* name = argv[i] + strspn(argv[i], "-");
        int k = argv[i][0] == '-' && i + 1 < argc ? cli_find(cli, name) : -1;
        if (k >= 0 && cli->flags[k].type == CLI_PRESET) *(const char**)cli->flags[k].value = argv[i + 1];
    }
    return asks;
}

// Reads the command line into the configuration. A mistake ends the program with a message; -h prints the help and
// ends it with exit code 0.
void cli_parse(cli_t* cli, int argc, char** argv) {
    if (cli_asks_for_help(cli, argc, argv)) {
        cli_print_help(cli, stdout);
        exit(0);
    }
    for (int i = 1; i < argc; i++) {
        char error[512];
        const char* text = NULL;
        cli_value_t value;
        int k = cli_match(cli, argv[i], &text);
        const cli_flag_t* flag = &cli->flags[k];
        if (!text && i + 1 < argc && !cli_is_flag(argv[i + 1])) text = argv[++i];
        if (!text && flag->type == CLI_BOOL) text = "1";
        if (!text) {
            fatal("-%s needs a value; write for example -%s %s (-h explains it)", flag->name, flag->name,
                  flag->default_text[0] ? flag->default_text : "VALUE");
        }
        if (!cli_parse_value(cli, flag, text, &value, error, sizeof error)) fatal("%s", error);
        cli_store(flag, &value);
        cli->source[k] = CLI_FROM_COMMAND_LINE;
    }
    for (int i = 0; i < cli->n_flags; i++) {
        if (cli->flags[i].type != CLI_PRESET) continue;
        const char* preset = *(const char* const*)cli->flags[i].value;
        if (*preset) cli_apply_preset(cli, preset);
    }
}

// ------------------------------------------------------------------------------------------------------------------
// Printing

// Prints words from `column` on, and further lines indented.
static inline void cli_print_wrapped(FILE* out, const char* text, int indent, int column) {
    while (*text) {
        int word = (int)strcspn(text, " ");
        if (column > indent && column + 1 + word > CLI_COLUMNS) {
            fprintf(out, "\n%*s", indent, "");
            column = indent;
        }
        column += fprintf(out, "%s%.*s", column > indent ? " " : "", word, text);
        text += word;
        text += strspn(text, " ");
    }
    fputc('\n', out);
}

// "-vf cos|l2": a flag with the kind of value that it takes.
static inline void cli_usage(const cli_flag_t* flag, char* text, size_t text_size) {
    static const char* const kinds[] = {"INTEGER", "SIZE", "NUMBER", "TEXT", "[0|1]", "CHOICE", "PRESET"};
    const char* kind = kinds[flag->type];
    if (flag->type == CLI_CHOICE && strlen(flag->allowed) <= 16) kind = flag->allowed;
    snprintf(text, text_size, "  -%s %s", flag->name, kind);
}

// Column where the explanations begin: after the longest flag, but not beyond a third of the line.
static inline int cli_help_column(const cli_t* cli) {
    char usage[256];
    size_t longest = 0;
    for (int i = 0; i < cli->n_flags; i++) {
        cli_usage(&cli->flags[i], usage, sizeof usage);
        if (strlen(usage) > longest) longest = strlen(usage);
    }
    return longest + 2 < CLI_COLUMNS / 3 ? (int)longest + 2 : CLI_COLUMNS / 3;
}

// What a preset, or the one that it builds on, sets a flag to, or NULL.
static inline const char* cli_preset_value(const cli_t* cli, const cli_preset_t* preset, const char* flag) {
    const char* value = NULL;
    for (const cli_setting_t* s = preset ? preset->settings : NULL; s && s->flag; s++) {
        if (!strcmp(s->flag, flag)) return s->value;
        if (cli->flags[cli_find(cli, s->flag)].type != CLI_PRESET) continue;
        value = cli_preset_value(cli, cli_preset(cli, s->value), flag);
    }
    return value;
}

// The preset that is in use: what the flag of type CLI_PRESET says, or NULL.
static inline const cli_preset_t* cli_preset_in_use(const cli_t* cli) {
    for (int i = 0; i < cli->n_flags; i++) {
        if (cli->flags[i].type == CLI_PRESET) return cli_preset(cli, *(const char* const*)cli->flags[i].value);
    }
    return NULL;
}

static inline void cli_print_flag_help(const cli_t* cli, const cli_flag_t* flag, int column, FILE* out) {
    const cli_preset_t* preset = cli_preset_in_use(cli);
    const char* set = cli_preset_value(cli, preset, flag->name);
    char usage[256];
    json_text_t text = {NULL, 0, 0};
    cli_usage(flag, usage, sizeof usage);
    json_append(&text, "%s (", flag->help);
    if (flag->allowed && flag->type == CLI_CHOICE) {
        json_append(&text, "one of ");
        for (const char* c = flag->allowed; *c; c++) {
            if (*c == '|') json_append(&text, ", ");
            else json_append(&text, "%c", *c);
        }
        json_append(&text, "; ");
    } else if (flag->allowed) {
        json_append(&text, "in %s; ", flag->allowed);
    }
    json_append(&text, "default %s", flag->default_text[0] ? flag->default_text : "none");
    json_append(&text, set ? "; by preset %s: %s)" : ")", set ? preset->name : "", set);
    int used = fprintf(out, "%s", usage);
    if (used + 2 > column) {
        fputc('\n', out);
        used = 0;
    }
    fprintf(out, "%*s", column - used, "");
    cli_print_wrapped(out, text.text, column, column);
    json_text_free(&text);
}

static inline void cli_print_preset_help(const cli_preset_t* preset, int column, FILE* out) {
    json_text_t settings = {NULL, 0, 0};
    int used = fprintf(out, "  %s", preset->name);
    if (used + 2 > column) {
        fputc('\n', out);
        used = 0;
    }
    fprintf(out, "%*s", column - used, "");
    cli_print_wrapped(out, preset->help, column, column);
    json_append(&settings, "sets:");
    for (const cli_setting_t* s = preset->settings; s->flag; s++) json_append(&settings, " %s=%s", s->flag, s->value);
    fprintf(out, "%*s", column, "");
    cli_print_wrapped(out, settings.text, column, column);
    json_text_free(&settings);
}

// What -h prints.
void cli_print_help(const cli_t* cli, FILE* out) {
    int column = cli_help_column(cli);
    cli_print_wrapped(out, cli->about, 0, 0);
    fprintf(out, "\nusage: %s [-flag value]...\n", cli->program);
    for (int i = 0; i < cli->n_flags; i++) {
        if (cli->flags[i].group) fprintf(out, "\n%s\n", cli->flags[i].group);
        cli_print_flag_help(cli, &cli->flags[i], column, out);
    }
    if (cli->notes) fprintf(out, "\n%s\n", cli->notes);
    if (cli->n_presets) fprintf(out, "\nPresets (a flag on the command line wins over them)\n");
    for (int i = 0; i < cli->n_presets; i++) cli_print_preset_help(&cli->presets[i], column, out);
}

// Prints the configuration as it will be used: one aligned line a flag, * where it is not the default, and the source.
void cli_print_configuration(const cli_t* cli, FILE* out) {
    static const char* const sources[] = {"default", "preset", "saved", "from the data", "from another flag",
                                          "command line"};
    char buffer[CLI_TEXT_SIZE];
    int name_width = 0, value_width = 0;
    for (int i = 0; i < cli->n_flags; i++) {
        int name = (int)strlen(cli->flags[i].name);
        int value = (int)strlen(cli_text(cli, &cli->flags[i], cli_load(&cli->flags[i]), buffer));
        if (name > name_width) name_width = name;
        if (value > value_width && value <= 40) value_width = value; // a long path may stand out
    }
    fprintf(out, "configuration (* where it is not the default)\n");
    for (int i = 0; i < cli->n_flags; i++) {
        const cli_flag_t* flag = &cli->flags[i];
        const char* text = cli_text(cli, flag, cli_load(flag), buffer);
        if (flag->group) fprintf(out, "%s\n", flag->group);
        fprintf(out, "%c -%-*s  %-*s  %s\n", cli_differs_from_default(cli, flag) ? '*' : ' ', name_width, flag->name,
                value_width, text, sources[cli->source[i]]);
    }
}

// ------------------------------------------------------------------------------------------------------------------
// Lists

// The list of integers in "1,1,2,2,4". Returns how many.
static inline int cli_integers(const char* name, const char* text, int* out, int max) {
    int n = 0;
    for (const char* at = text;; at++) {
        char* end;
        long value = strtol(at, &end, 10);
        if (end == at || value < 1 || value > 1 << 20 || (*end && *end != ',') || n == max) {
            fatal("-%s %s: want 1 to %d whole numbers with commas between them, such as 1,2,4", name, text, max);
        }
        out[n++] = (int)value;
        at = end;
        if (!*at) return n;
    }
}

// The same of numbers of any kind: "1,1.5,2".
static inline int cli_numbers(const char* name, const char* text, double* out, int max) {
    int n = 0;
    for (const char* at = text;; at++) {
        char* end;
        double value = strtod(at, &end);
        if (end == at || !cli_is_float(value) || (*end && *end != ',') || n == max) {
            fatal("-%s %s: want 1 to %d numbers with commas between them, such as 1,1.5,2", name, text, max);
        }
        out[n++] = value;
        at = end;
        if (!*at) return n;
    }
}
