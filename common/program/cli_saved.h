// cli_saved.h: a configuration as a checkpoint keeps it: a JSON object of flag names and values, which can be read back
// or compared with another command line.
//
//     char* json = cli_to_json(&cli);                                    // {"stage": 2, "lr": 0.0001, "vf": "cos"}
//     if (!cli_from_json(&cli, json, error, sizeof error)) ...           // the command line wins over what is saved
//     int n = cli_differences(&cli, json, &lines, error, sizeof error);  // "-batch: saved 32, given 64"
//
// Look next at common/training/run.h, which refuses to go on with another configuration.
#pragma once
// defines: cli_t, cli_flag_t, cli_find, cli_text, cli_plain_text, cli_load, cli_store, cli_parse_value
#include "common/program/cli.h"
// defines: json_text_t, json_append, json_append_string, json_reader_t, json_more, json_key, json_string, json_number
#include "common/program/json.h"

// The configuration as a JSON object, {"stage": 2, "vf": "cos", ...}, without the flags that are not saved.
// The caller frees it.
char* cli_to_json(const cli_t* cli) {
    json_text_t json = {NULL, 0, 0};
    char buffer[CLI_TEXT_SIZE];
    const char* separator = "";
    json_append(&json, "{");
    for (int i = 0; i < cli->n_flags; i++) {
        const cli_flag_t* flag = &cli->flags[i];
        if (flag->saving == CLI_NOT_SAVED) continue;
        const char* text = cli_text(cli, flag, cli_load(flag), buffer);
        json_append(&json, "%s\"%s\": ", separator, flag->name);
        if (flag->type == CLI_STRING || flag->type == CLI_PRESET || flag->type == CLI_CHOICE) {
            json_append_string(&json, text);
        } else {
            json_append(&json, "%s", text);
        }
        separator = ", ";
    }
    json_append(&json, "}");
    return json.text;
}

// Reads a saved object into saved[i], the text of flag i or NULL where it has none; a name that is no flag of this
// program gets a line in `unknown`. 1, or 0 with a message. *strings holds the texts; the caller frees it.
static inline int cli_read_json(const cli_t* cli, const char* json, const char** saved, json_text_t* unknown,
                                char** strings, char* error, size_t error_size) {
    json_reader_t r;
    memset(&r, 0, sizeof r);
    memset(saved, 0, (size_t)cli->n_flags * sizeof *saved);
    *strings = (char*)malloc_check(strlen(json) + 1, "the saved configuration");
    r.begin = r.at = (const unsigned char*)json;
    r.end = r.begin + strlen(json);
    r.strings = *strings;
    r.error = error;
    r.error_size = error_size;
    json_where(&r, "saved configuration");
    json_expect(&r, '{');
    for (int first = 1; json_more(&r, '}', first); first = 0) {
        const char* name = json_key(&r);
        const char* text = json_peek(&r) == '"' ? json_string(&r) : json_number(&r);
        int i = cli_find(cli, name);
        if (r.failed) break;
        if (i < 0) json_append(unknown, "-%s: saved %s, no flag of %s\n", name, text, cli->program);
        else if (saved[i]) json_fail(&r, "-%s stands there twice", name);
        else if (cli->flags[i].saving == CLI_SAVED) saved[i] = text;
    }
    json_end(&r);
    return !r.failed;
}

// Takes over a saved configuration, except for flags of the command line. 1, or 0 with a message and nothing changed.
// Done at most once for a cli_t, which keeps the strings.
int cli_from_json(cli_t* cli, const char* json, char* error, size_t error_size) {
    assert(cli->saved_strings == NULL && "one configuration is read back");
    const char** saved = (const char**)calloc_check((size_t)cli->n_flags, sizeof *saved, "the saved configuration");
    cli_value_t* values = (cli_value_t*)calloc_check((size_t)cli->n_flags, sizeof *values, "the saved configuration");
    json_text_t unknown = {NULL, 0, 0};
    char* strings = NULL;
    char problem[512] = "";
    int good = cli_read_json(cli, json, saved, &unknown, &strings, error, error_size);
    if (good && unknown.text) {
        snprintf(error, error_size, "saved configuration: %.*s", (int)strcspn(unknown.text, "\n"), unknown.text);
        good = 0;
    }
    for (int i = 0; good && i < cli->n_flags; i++) {
        if (!saved[i]) continue;
        good = cli_parse_value(cli, &cli->flags[i], saved[i], &values[i], problem, sizeof problem);
        if (!good) snprintf(error, error_size, "saved configuration: %s", problem);
    }
    for (int i = 0; good && i < cli->n_flags; i++) {
        if (!saved[i] || cli->source[i] == CLI_FROM_COMMAND_LINE) continue;
        cli_store(&cli->flags[i], &values[i]);
        cli->source[i] = CLI_FROM_SAVED;
    }
    if (good) {
        cli->saved_strings = strings;
    } else {
        free(strings);
    }
    json_text_free(&unknown);
    free(values);
    free(saved);
    return good;
}

// Compares a saved configuration with the present one: adds a line such as "-batch: saved 32, given 64" to `lines` for
// each difference. A flag that the save lacks counts as saved with its default. Returns the number of differences, or
// -1 with a message.
int cli_differences(const cli_t* cli, const char* json, json_text_t* lines, char* error, size_t error_size) {
    const char** saved = (const char**)calloc_check((size_t)cli->n_flags, sizeof *saved, "the saved configuration");
    char* strings = NULL;
    size_t before = lines->length;
    int count = 0;
    int good = cli_read_json(cli, json, saved, lines, &strings, error, error_size);
    for (int i = 0; good && i < cli->n_flags; i++) {
        const cli_flag_t* flag = &cli->flags[i];
        char then_buffer[CLI_TEXT_SIZE], given_buffer[CLI_TEXT_SIZE];
        if (flag->saving == CLI_NOT_SAVED) continue;
        const char* then = cli_plain_text(cli, flag, saved[i] ? saved[i] : flag->default_text, then_buffer);
        const char* given = cli_text(cli, flag, cli_load(flag), given_buffer);
        if (!strcmp(then, given)) continue;
        json_append(lines, "-%s: saved %s%s, given %s\n", flag->name, *then ? then : "nothing",
                    saved[i] ? "" : " (by default)", *given ? given : "nothing");
    }
    for (size_t i = before; i < lines->length; i++) count += lines->text[i] == '\n';
    free(strings);
    free(saved);
    return good ? count : -1;
}
