// sample.cu: draws images of classes or of captions with a diffusion transformer and the tokenizer whose latents it was
// trained on.
//
//     make sample && ./sample -class sneaker           the trained miniature in this repository, at once
//     ./sample -prompt "two red circles on a gray background"           the miniature of text to image
//     ./sample -class 3,7 -n 16 -steps 50 -cfg 2       a PNG with one class a row
//     ./sample -class 207                              a model trained on ImageNet, where one lies in runs/
//     ./sample -preset imagenet -dit DIT -tokenizer TOKENIZER -class "golden retriever"
//     ./sample -preset imagenet ... -class random -n 50000 -npz samples.npz     for ADM's evaluator
//     ./sample -preset imagenet -dit lightningdit-xl-imagenet256-800ep.pt -tokenizer vavae-imagenet256-f16d32-dinov2.pt
//         -latent_stats latents_stats.pt -class 207        LightningDiT and VA-VAE as published, without conversion
//     ./sample -preset dit -class 207                  DiT-XL/2 as published, with Stable Diffusion's autoencoder; or
//     sit
//     ./sample -preset t2i -t5 T5 -t5_vocabulary spiece.model -text_clip CLIP -text_clip_vocabulary merges.txt
//         -size 512x384 -prompt "a harbour in the morning" -negative "people"      a text-to-image transformer
//     ./sample -preset t2i ... -prompts prompts.jsonl -n 4 -images FOLDER             for GenEval's tools
//
// Image j of a class or a prompt is drawn from noise that the seed and j determine: the same whatever else is drawn, in
// whatever batch and by however many processes. With -class random or balanced, -n images are numbered through.
// On several GPUs, one process each (torchrun, srun, mpirun), an .npz and single PNGs are shared among all.
//
// Reading order here: flags; what is to be drawn: classes, then prompts; the three kinds of output; main. Look next at
// common/drawing/pipeline.h.
#include <unistd.h>

// defines: cli_t, cli_flag_t, cli_parse
#include "common/program/cli.h"
// defines: cli_to_json
#include "common/program/cli_saved.h"
// defines: clock_seconds, clock_duration
#include "common/program/clock.h"
// defines: comm_t, comm_options_*, comm_open, comm_attach, comm_close, comm_is_first, comm_any
#include "common/training/comm.h"
// defines: make_folder, make_folder_of
#include "common/files/folder.h"
// defines: drawing_options_t, drawing_flags, drawing_text_flags, drawing_sampler, drawing_open, drawing_open_text, ...
#include "common/drawing/drawing_options.h"
// defines: pipeline_t, pipeline_hash, pipeline_load, pipeline_draw, pipeline_draw_captions, pipeline_label
#include "common/drawing/pipeline.h"
// defines: image_grid, image_read_text, image_write_png
#include "common/data/image.h"
// defines: class_names_t, class_names_read, class_names_find, class_names_nearest, class_name
#include "common/drawing/class_names.h"
// defines: prompts_t, prompts_add, prompts_read, prompt_path, prompt_make_folder
#include "common/drawing/prompts.h"
// defines: npz_writer_t
#include "common/files/npz_writer.h"
// defines: HASH_START, hash_string, hash_text, hash_word
#include "common/program/hash.h"

typedef struct {
    drawing_options_t drawing; // the DiT, and how it is used
    const char *preset, *tokenizer, *classes, *prompt, *prompts, *out, *images, *npz;
    int n, batch, tokenizer_weights, block, time_limit;
    size_t seed;
} sample_options_t;

typedef struct {
    sample_options_t options;
    cli_t cli;
    comm_t comm;
    stream_t stream;
    pipeline_t model;
    class_names_t names;
    // what is to be drawn
    int is_text;          // prompts, and not classes
    prompts_t prompts;
    int* rows;            // [row_count] classes or prompts with a row each; NULL: classes are drawn for each image
    int row_count;
    size_t total;         // images
    // progress
    size_t drawn, mine;   // images of this process
    char* settings;       // all that an image depends on, as JSON
    double start, said;
} sample_t;

// ---------------------------------------------------------------------------------------------------------------------
// Flags

static const cli_setting_t sample_preset_mini[] = {{"dit", "miniature/dit.safetensors"},
    {"tokenizer", "miniature/tokenizer.safetensors"}, {"cfg", "2"}, {"shift", "1"}, {NULL, NULL}};
static const cli_setting_t sample_preset_imagenet[] = {{"dit", "runs/dit_imagenet/dit.safetensors"},
    {"tokenizer", "runs/imagenet/stage3.safetensors"}, {NULL, NULL}};
static const cli_setting_t sample_preset_paper[] = {{"dit", "runs/dit_imagenet/dit.safetensors"},
    {"tokenizer", "runs/imagenet/stage3.safetensors"}, {"steps", "250"}, {"cfg", "10"}, {"cfg_channels", "3"},
    {"cfg_start", "0.11"}, {"class", "random"}, {"n", "50000"}, {"npz", "samples.npz"}, {NULL, NULL}};

static const cli_setting_t sample_preset_t2i[] = {{"preset", "t2i_method"}, {"dit", "runs/t2i_512/dit.safetensors"},
    {"tokenizer", "runs/laion/stage3.safetensors"}, {"size", "512x512"}, {"n", "4"}, {NULL, NULL}};
static const cli_setting_t sample_preset_t2i_mini[] = {{"preset", "t2i_method"}, {"dit", "miniature/t2i.safetensors"},
    {"tokenizer", "miniature/t2i_tokenizer.safetensors"}, {NULL, NULL}};

static const cli_preset_t presets[] = {
    {"mini", "the trained miniature that comes with this repository (garments, 32 pixels)", sample_preset_mini},
    {"imagenet", "LightningDiT-XL/1 on ImageNet, as train_dit -preset imagenet leaves it", sample_preset_imagenet},
    {"paper", "its 50,000 images for FID, as LightningDiT and the paper draw them", sample_preset_paper},
    {"dit", "DiT-XL/2 and Stable Diffusion's autoencoder, files as published, in this folder", drawing_preset_dit},
    {"sit", "SiT-XL/2, likewise", drawing_preset_sit},
    {"t2i_mini", "the trained miniature of text to image (drawn scenes, 48 pixels): for -prompt where none is named",
     sample_preset_t2i_mini},
    {"t2i", "the paper's text-to-image transformer, as train_dit -preset t2i_512 leaves it", sample_preset_t2i},
    {"t2i_method", "how both draw, with another -dit and -tokenizer", drawing_preset_t2i_method},
};

static int make_flags(sample_options_t* o, cli_flag_t* out) {
    const cli_flag_t what[] = {
        {"What to draw", "preset", CLI_PRESET, &o->preset, "mini", NULL,
         "sets the flags listed at the end, unless they are given", CLI_NOT_SAVED},
        {NULL, "class", CLI_STRING, &o->classes, "all", NULL,
         "a class by number or name, several with commas, or all: one row each; random or balanced: -n images in all",
         CLI_SAVED},
        {NULL, "prompt", CLI_STRING, &o->prompt, "", NULL,
         "or what to show, in words, with a text-to-image transformer", CLI_NOT_SAVED}, // a hash of it is
        {NULL, "prompts", CLI_STRING, &o->prompts, "", NULL,
         "or a file with a prompt on each line; .json: an array of them; .jsonl: {\"prompt\": ...} on each line, and "
         "-images has GenEval's folders",
         CLI_NOT_SAVED},
        {NULL, "n", CLI_INT, &o->n, "8", "[1, 100000000]", "images of each class or prompt, or in all", CLI_SAVED},
        {NULL, "seed", CLI_SIZE, &o->seed, "0", NULL, "seed of the noise", CLI_SAVED},
        {NULL, "tokenizer", CLI_STRING, &o->tokenizer, "", NULL,
         "checkpoint of train_tokenizer, an exported one, VA-VAE's file as published, or Stable Diffusion's in LDM's "
         "layout", CLI_SAVED},
        {NULL, "tokenizer_weights", CLI_CHOICE, &o->tokenizer_weights, "ema", AUTOENCODER_WEIGHTS,
         AUTOENCODER_WEIGHTS_HELP, CLI_NOT_SAVED}, // its fingerprint is
    };
    const cli_flag_t where[] = {
        {"Output", "out", CLI_STRING, &o->out, "samples.png", NULL, "the picture, one class or prompt a row",
         CLI_NOT_SAVED},
        {NULL, "images", CLI_STRING, &o->images, "", NULL,
         "a folder for single PNGs instead; the same command again goes on", CLI_NOT_SAVED},
        {NULL, "npz", CLI_STRING, &o->npz, "", NULL,
         "an .npz file instead (arr_0, uint8), what ADM's evaluator reads; the same command again goes on",
         CLI_NOT_SAVED},
        {NULL, "block", CLI_INT, &o->block, "500", "[1, 100000]", ".npz: images between two savings", CLI_NOT_SAVED},
        {"Machine", "batch", CLI_INT, &o->batch, "32", "[1, 4096]",
         "most images drawn at once; a CPU takes up to 1024 tokens", CLI_NOT_SAVED},
        {NULL, "time_limit", CLI_INT, &o->time_limit, "86400", "[1, inf)",
         "several processes: seconds to wait for one another before giving up", CLI_NOT_SAVED},
    };
    int n = sizeof what / sizeof what[0];
    memcpy(out, what, sizeof what);
    n += drawing_flags(&o->drawing, "4", out + n);
    n += drawing_text_flags(&o->drawing, out + n);
    memcpy(out + n, where, sizeof where);
    return n + (int)(sizeof where / sizeof where[0]);
}

// ---------------------------------------------------------------------------------------------------------------------
// What is to be drawn

// Does this file hold a text-to-image transformer?
static int holds_text(const char* dit) {
    safetensors_t file;
    tensor_file_open_or_die(&file, dit);
    int holds = mmdit_file_holds(&file);
    safetensors_close(&file);
    return holds;
}

// What classes a model has: how many, and their names.
static class_names_t read_names(const char* dit, int raw) {
    safetensors_t file;
    class_names_t names;
    tensor_file_open_or_die(&file, dit);
    const char* json = safetensors_metadata(&file, "class_names");
    int ours = safetensors_metadata(&file, "config") != NULL;
    class_names_read(&names, json ? json : "", dit_describe(&file, dit, raw).classes, !ours);
    safetensors_close(&file);
    return names;
}

// Each image has its own class.
static int each_its_own(const sample_options_t* o) {
    return !strcmp(o->classes, "random") || !strcmp(o->classes, "balanced");
}

// Says in `error` why a text is no class of this model, and what is.
static void no_such_class(const class_names_t* c, const char* text, const int* found, int n, char* error, size_t size) {
    int used = snprintf(error, size, "-class %s: ", text), nearest = class_names_nearest(c, text);
    for (int i = 0; n > 1 && i < n && i < 8; i++) {
        used += snprintf(error + used, size - (size_t)used, "%s%d %s", i ? ", " : "several are called so: ", found[i],
                         class_name(c, found[i]));
    }
    if (n > 1) {
        snprintf(error + used, size - (size_t)used, "%s; give one of them, whole or by number", n > 8 ? ", ..." : "");
        return;
    }
    const char *first = class_name(c, 0), *last = class_name(c, c->classes - 1);
    used += snprintf(error + used, size - (size_t)used, "the model has %d classes, 0 to %d%s%s%s%s", c->classes,
                     c->classes - 1, *first ? ", from " : "", first, *first ? " to " : "", last);
    if (nearest >= 0) snprintf(error + used, size - (size_t)used, "; did you mean %s?", class_name(c, nearest));
    else if (!c->names) snprintf(error + used, size - (size_t)used, "; their names are not in its file: give a number");
}

// Reads -class into `rows` (as many as it may have), for a model with these classes. Returns how many, or 0 and why.
static int read_classes(const char* text, const class_names_t* c, int* rows, char* error, size_t size) {
    char list[8192];
    int n = 0;
    snprintf(list, sizeof list, "%s", text);
    if (!strcmp(text, "all")) {
        for (; n < c->classes; n++) rows[n] = n;
        return n;
    }
    for (char *rest = list, *one; (one = strsep(&rest, ",")) != NULL;) {
        int found[8], count = class_names_find(c, one, found, 8);
        if (count != 1) {
            no_such_class(c, one, found, count, error, size);
            return 0;
        }
        rows[n++] = found[0];
    }
    return n;
}

// Is there a trained run of a preset that knows the classes asked for? Then that one is taken.
static int take_trained_run(sample_t* r, const char* preset, int* rows) {
    sample_options_t* o = &r->options;
    char error[1024];
    const cli_preset_t* p = cli_preset(&r->cli, preset);
    const char* dit = cli_preset_value(&r->cli, p, "dit");
    const char* tokenizer = cli_preset_value(&r->cli, p, "tokenizer");
    if (access(dit, R_OK) || access(tokenizer, R_OK)) return 0;
    class_names_t names = read_names(dit, o->drawing.raw);
    int n = read_classes(o->classes, &names, rows, error, sizeof error);
    if (!n) {
        class_names_free(&names);
        return 0;
    }
    class_names_free(&r->names);
    r->names = names;
    cli_apply_preset(&r->cli, preset);
    printf("preset         %s, whose run lies in %s: the miniature has no class %s\n", preset, dit, o->classes);
    return n;
}

// What a class that a model of other classes lacks is in ImageNet, and what would draw it; or "".
static const char* imagenet_hint(const char* text, const class_names_t* lacking, char* hint, size_t size) {
    class_names_t all;
    int found[8];
    hint[0] = 0;
    if (lacking->classes == 1000 || class_names_find(lacking, text, found, 8)) return hint;
    class_names_read(&all, "", 1000, 1);
    if (class_names_find(&all, text, found, 8)) {
        snprintf(hint, size, ". In ImageNet, %d is \"%s\": for that, give a DiT trained on ImageNet and its tokenizer "
                 "(-preset imagenet -dit FILE -tokenizer FILE; train_dit makes one)", found[0],
                 class_name(&all, found[0]));
    }
    class_names_free(&all);
    return hint;
}

// -class. Sets rows, or leaves them NULL where each image has its own class. Who names neither a model nor a preset,
// and asks for what the miniature does not have, gets the ImageNet run in runs/, where there is one.
static void choose_classes(sample_t* r) {
    const sample_options_t* o = &r->options;
    char error[1024];
    r->names = read_names(o->drawing.dit, o->drawing.raw);
    r->total = (size_t)o->n;
    if (each_its_own(o)) return;
    size_t most = strlen(o->classes) + 1 > 1000000 ? strlen(o->classes) + 1 : 1000000;
    r->rows = (int*)malloc_check(most * sizeof(int), "classes");
    r->row_count = read_classes(o->classes, &r->names, r->rows, error, sizeof error);
    int free_to_choose = cli_source(&r->cli, "preset") != CLI_FROM_COMMAND_LINE &&
                         cli_source(&r->cli, "dit") != CLI_FROM_COMMAND_LINE &&
                         cli_source(&r->cli, "tokenizer") != CLI_FROM_COMMAND_LINE;
    if (!r->row_count && free_to_choose) r->row_count = take_trained_run(r, "imagenet", r->rows);
    if (!r->row_count) {
        char hint[400];
        fatal("%s (%s)%s", error, o->drawing.dit, imagenet_hint(o->classes, &r->names, hint, sizeof hint));
    }
    r->total *= (size_t)r->row_count;
}

// -prompt, -prompts.
static void choose_prompts(sample_t* r) {
    const sample_options_t* o = &r->options;
    if (o->prompts[0]) {
        prompts_read(&r->prompts, o->prompts);
    } else if (!prompts_add(&r->prompts, o->prompt)) {
        fatal("-prompt is empty; say what to show, such as -prompt \"a red circle on a white background\"");
    }
    r->row_count = (int)r->prompts.prompts.count;
    r->rows = (int*)malloc_check(r->row_count * sizeof(int), "prompts");
    for (int i = 0; i < r->row_count; i++) r->rows[i] = i;
    r->total = (size_t)o->n * r->row_count;
}

// Is the command about prompts? Then those who name no preset mean the miniature of text to image, and its method.
static int takes_prompts(sample_t* r) {
    const sample_options_t* o = &r->options;
    int prompt = cli_source(&r->cli, "prompt") == CLI_FROM_COMMAND_LINE;
    if (prompt && o->prompts[0]) fatal("-prompt and -prompts: give one of them");
    if (!prompt && !o->prompts[0]) return 0;
    if (cli_source(&r->cli, "class") == CLI_FROM_COMMAND_LINE) fatal("-class and -prompt: give one of them");
    if (cli_source(&r->cli, "preset") != CLI_FROM_COMMAND_LINE) cli_apply_preset(&r->cli, "t2i_mini");
    return 1;
}

// What is to be drawn, with a model that can.
static void choose_subjects(sample_t* r, int prompts) {
    const char* dit = r->options.drawing.dit;
    r->is_text = holds_text(dit);
    if (r->is_text && !prompts) {
        fatal("%s is a text-to-image transformer: say what to draw with -prompt \"...\" or -prompts FILE; -class is "
              "for one that was trained on classes", dit);
    }
    if (!r->is_text && prompts) {
        fatal("%s draws classes and reads no prompt: give -class, or a text-to-image transformer with -dit, or none of "
              "-preset and -dit for the miniature", dit);
    }
    if (prompts) choose_prompts(r);
    else choose_classes(r);
}

// Number and label of image k of all: its class, or which prompt.
static void image_of(const sample_t* r, size_t k, uint64_t* number, int* label) {
    const sample_options_t* o = &r->options;
    *number = r->rows ? k % (size_t)o->n : k;
    *label = r->rows ? r->rows[k / (size_t)o->n]
                     : pipeline_label(&r->model, !strcmp(o->classes, "balanced"), o->seed, k);
}

static const char* prompt_of(const sample_t* r, int label) { return r->prompts.prompts.items[label]; }

static void print_prompts(const sample_t* r) {
    enum { SHOWN = 20, LETTERS = 100 };
    const pipeline_t* g = &r->model;
    for (int i = 0; i < r->row_count && i < SHOWN; i++) {
        const char* prompt = prompt_of(r, i);
        printf("%s %.*s%s\n", i ? "              " : "prompts       ", LETTERS, prompt,
               strlen(prompt) > LETTERS ? "..." : "");
    }
    if (r->row_count > SHOWN) printf("               and %d more\n", r->row_count - SHOWN);
    if (g->negative[0]) printf("negative       %.*s\n", LETTERS, g->negative);
    printf("text encoder   %s\n", g->encoder.name);
    printf("size           %d x %d pixels, latents of %d x %d\n", g->tokenizer.W, g->tokenizer.H, g->mmdit.config.w,
           g->mmdit.config.h);
}

static void print_classes(const sample_t* r) {
    for (int i = 0; r->rows && i < r->row_count && i < 20; i++) {
        printf("%s %d %s\n", i ? "              " : "classes       ", r->rows[i], class_name(&r->names, r->rows[i]));
    }
    if (r->names.origin[0]) printf("               (%s)\n", r->names.origin);
    if (r->row_count > 20) printf("               and %d more\n", r->row_count - 20);
    if (!r->rows) printf("classes        %s of %d\n", r->options.classes, r->model.net.config.classes);
}

static void print_method(const sample_t* r) {
    const dit_sampler_t* d = &r->model.sampler;
    const flow_guidance_t* g = &d->network.guidance;
    char text[120];
    int evaluations = (g->w > 1 ? 2 : 1) * d->options.points;
    if (!dit_sampler_in_process(&d->options)) evaluations = flow_evaluations(&d->sampler, g);
    dit_sampler_text(text, sizeof text, &d->options);
    printf("sampler        %s", text);
    if (evaluations) printf(": %d evaluations of the network an image", evaluations);
    dit_sampler_guidance_text(text, sizeof text, d);
    printf("\nguidance       %s\n", text);
    fflush(stdout); // what follows takes its time
}

// ---------------------------------------------------------------------------------------------------------------------
// Drawing

// Called by the solver after each step: a line every few seconds.
static void progress(void* run, int step, int steps, double t) {
    sample_t* r = (sample_t*)run;
    double now = clock_seconds();
    if (now - r->said < 5) return;
    r->said = now;
    double part = (double)r->drawn + (steps > 0 ? (double)step / steps : t) * r->model.sampler.options.batch;
    char left[24] = "?";
    if (part > 0) clock_duration(left, sizeof left, (now - r->start) * ((double)r->mine - part) / part);
    printf("drawing        %zu of %zu images done, step %d, %s left\n", r->drawn, r->mine, step, left);
    fflush(stdout);
}

// Images drawn at once.
static size_t batch_of(const sample_t* r) { return (size_t)r->model.sampler.options.batch; }

// The images with these numbers among all, at most batch_of.
static void draw_batch(sample_t* r, uint8_t* pixels, const size_t* which, size_t n) { // (n, H, W, 3), (n)
    uint64_t* numbers = (uint64_t*)malloc_check(n * sizeof(uint64_t), "images");
    int* labels = (int*)malloc_check(n * sizeof(int), "labels");
    const char** captions = (const char**)malloc_check(n * sizeof *captions, "captions");
    for (size_t i = 0; i < n; i++) {
        image_of(r, which[i], &numbers[i], &labels[i]);
        if (r->is_text) captions[i] = prompt_of(r, labels[i]);
    }
    if (r->is_text) pipeline_draw_captions(&r->model, pixels, numbers, captions, (int)n, r->stream);
    else pipeline_draw(&r->model, pixels, numbers, labels, (int)n, r->stream);
    r->drawn += n;
    free(numbers);
    free(labels);
    free(captions);
}

// Images [first, first + count) of all.
static void draw(sample_t* r, uint8_t* pixels, size_t first, size_t count) {
    size_t image = autoencoder_image_values(&r->model.tokenizer), batch = batch_of(r);
    size_t* which = (size_t*)malloc_check(batch * sizeof(size_t), "images");
    for (size_t k = 0; k < count; k += batch) {
        size_t n = count - k < batch ? count - k : batch;
        for (size_t i = 0; i < n; i++) which[i] = first + k + i;
        draw_batch(r, pixels + k * image, which, n);
    }
    free(which);
}

// `subject`: what it shows.
static void write_picture(const sample_t* r, const char* path, const image_t* picture, const char* subject) {
    char error[IMAGE_ERROR_SIZE];
    image_text_t texts[5] = {{"Program", "sample (aligntok.c)"}, {r->is_text ? "Prompt" : "Classes", subject},
                             {"Tokenizer", r->model.tokenizer.fingerprint}, {"Settings", r->settings},
                             {"Negative", r->options.drawing.negative}};
    if (!image_write_png(path, picture, texts, r->options.drawing.negative[0] ? 5 : 4, error)) {
        fatal("%s; choose another place", error);
    }
}

// One class or prompt a row; where each image has its own class, rows of eight.
static void draw_grid(sample_t* r) {
    const sample_options_t* o = &r->options;
    if (!comm_is_first(&r->comm)) return;
    size_t image = autoencoder_image_values(&r->model.tokenizer);
    int columns = r->rows || o->n < 8 ? o->n : 8, rows = (int)((r->total + columns - 1) / columns);
    if (r->total > 10000) fatal("%zu images do not go into one picture; give -npz FILE or -images FOLDER", r->total);
    make_folder_of(o->out);
    uint8_t* pixels = (uint8_t*)malloc_check((size_t)rows * columns * image, "images");
    memset(pixels, 255, (size_t)rows * columns * image);
    r->mine = r->total;
    draw(r, pixels, 0, r->total);
    int H = r->model.tokenizer.H, W = r->model.tokenizer.W;
    image_t picture = image_grid(pixels, rows, columns, H, W, H < 100 ? 3 : 1);
    json_text_t subject = {NULL, 0, 0};
    if (!r->is_text) json_append(&subject, "%s", o->classes);
    for (int i = 0; r->is_text && i < r->row_count; i++) json_append(&subject, "%s%s", i ? "\n" : "", prompt_of(r, i));
    write_picture(r, o->out, &picture, subject.text);
    printf("wrote          %s: %zu images of %d x %d\n", o->out, r->total, W, H);
    json_text_free(&subject);
    image_free(&picture);
    free(pixels);
}

static const char* single_path(const sample_t* r, size_t k, char path[PROMPT_PATH]) {
    size_t n = (size_t)r->options.n;
    if (r->is_text) return prompt_path(path, &r->prompts, r->options.images, k / n, k % n);
    snprintf(path, PROMPT_PATH, "%s/%06zu.png", r->options.images, k);
    return path;
}

// How many of this process's images are there. Those that were drawn with other settings, or by another program, end
// the program.
static size_t singles_there(const sample_t* r) {
    char path[PROMPT_PATH], first[600] = "";
    size_t there = 0, others = 0;
    for (size_t k = (size_t)r->comm.rank; k < r->total; k += (size_t)r->comm.size) {
        if (access(single_path(r, k, path), F_OK)) continue;
        there++;
        char* settings = image_read_text(path, "Settings");
        int same = settings && !strcmp(settings, r->settings);
        if (!same && !others++) snprintf(first, sizeof first, "%s", settings ? settings : "none that it names");
        free(settings);
    }
    if (others) {
        fatal("%zu of the %zu pictures that are in %s already were drawn with other settings: %s. Give those, or "
              "another folder with -images, or empty this one", others, there, r->options.images, first);
    }
    return there;
}

static void write_singles(sample_t* r, uint8_t* pixels, const size_t* which, size_t n) { // (n, H, W, 3), (n)
    size_t image = autoencoder_image_values(&r->model.tokenizer);
    for (size_t i = 0; i < n; i++) {
        char path[PROMPT_PATH], class_number[32];
        uint64_t number;
        int label;
        image_of(r, which[i], &number, &label);
        snprintf(class_number, sizeof class_number, "%d", label);
        image_t picture = {r->model.tokenizer.H, r->model.tokenizer.W, pixels + i * image};
        write_picture(r, single_path(r, which[i], path), &picture, r->is_text ? prompt_of(r, label) : class_number);
    }
}

// Images rank, rank + W, ... of W processes, one PNG each, a batch drawn at once; those of the same settings that are
// there are kept.
static void draw_single(sample_t* r) {
    const sample_options_t* o = &r->options;
    size_t W = (size_t)r->comm.size, batch = batch_of(r), n = 0;
    make_folder(o->images);
    r->mine = (r->total + W - 1 - r->comm.rank) / W - singles_there(r);
    double drawn = (double)r->mine;
    comm_sum_host(&r->comm, &drawn, 1); // all have looked before one draws
    uint8_t* pixels = (uint8_t*)malloc_check(batch * autoencoder_image_values(&r->model.tokenizer), "pictures");
    size_t* which = (size_t*)malloc_check(batch * sizeof(size_t), "images");
    for (size_t k = (size_t)r->comm.rank; k < r->total; k += W) {
        char path[PROMPT_PATH];
        if (r->is_text) prompt_make_folder(&r->prompts, o->images, k / (size_t)o->n);
        if (access(single_path(r, k, path), F_OK)) which[n++] = k;
        if (!n || (n < batch && k + W < r->total)) continue;
        draw_batch(r, pixels, which, n);
        write_singles(r, pixels, which, n);
        n = 0;
    }
    free(pixels);
    free(which);
    comm_any(&r->comm, 0);
    printf("wrote          %s: %.0f images", o->images, drawn);
    if (drawn < (double)r->total) printf("; %.0f of the same settings were there", (double)r->total - drawn);
    printf("\n");
}

// Block `b` of the images, in a file of its own until all are there.
static const char* block_path(const sample_t* r, size_t b, char* path, size_t size) {
    snprintf(path, size, "%s.parts/%06zu", r->options.npz, b);
    return path;
}

static int block_is_there(const sample_t* r, size_t b, size_t bytes) {
    char path[1200];
    FILE* f = fopen(block_path(r, b, path, sizeof path), "rb");
    if (!f) return 0;
    fseek(f, 0, SEEK_END);
    long size = ftell(f);
    fclose(f);
    return size >= 0 && (size_t)size == bytes;
}

static void block_write(const sample_t* r, size_t b, const uint8_t* pixels, size_t bytes) {
    char path[1200], temporary[1300];
    block_path(r, b, path, sizeof path);
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    FILE* f = fopen(temporary, "wb");
    if (!f || fwrite(pixels, 1, bytes, f) != bytes || fclose(f) || rename(temporary, path)) {
        fatal("cannot write %s; make room, and give the same command again: it goes on from here", path);
    }
}

static void blocks_join(sample_t* r, size_t blocks) {
    size_t image = autoencoder_image_values(&r->model.tokenizer), per = (size_t)r->options.block;
    uint8_t* pixels = (uint8_t*)malloc_check(image, "an image");
    npz_writer_t npz;
    char path[1200];
    npz_begin(&npz, r->options.npz, r->total, r->model.tokenizer.H, r->model.tokenizer.W);
    for (size_t b = 0; b < blocks; b++) {
        size_t count = r->total - b * per < per ? r->total - b * per : per;
        FILE* f = fopen(block_path(r, b, path, sizeof path), "rb");
        for (size_t i = 0; i < count; i++) {
            if (!f || fread(pixels, 1, image, f) != image) fatal("cannot read %s; remove it and draw again", path);
            npz_image(&npz, pixels);
        }
        fclose(f);
    }
    npz_end(&npz);
    for (size_t b = 0; b < blocks; b++) remove(block_path(r, b, path, sizeof path));
    snprintf(path, sizeof path, "%s.parts/settings.json", r->options.npz);
    remove(path);
    snprintf(path, sizeof path, "%s.parts", r->options.npz);
    rmdir(path);
    free(pixels);
}

// Blocks left by a command with other settings are of other images.
static void blocks_check(const sample_t* r) {
    char path[1200], saved[8192] = "";
    const char* settings = r->settings;
    snprintf(path, sizeof path, "%s.parts", r->options.npz);
    make_folder(path);
    snprintf(path, sizeof path, "%s.parts/settings.json", r->options.npz);
    FILE* f = fopen(path, "rb");
    if (f) {
        saved[fread(saved, 1, sizeof saved - 1, f)] = 0;
        fclose(f);
        if (strcmp(saved, settings)) {
            fatal("%s.parts holds images drawn with other settings (settings.json in it); give those, or remove the "
                  "folder", r->options.npz);
        }
    } else if (comm_is_first(&r->comm)) {
        f = fopen(path, "wb");
        if (!f || fputs(settings, f) < 0 || fclose(f)) fatal("cannot write %s", path);
    }
}

static void draw_npz(sample_t* r) {
    size_t image = autoencoder_image_values(&r->model.tokenizer), per = (size_t)r->options.block;
    size_t blocks = (r->total + per - 1) / per;
    make_folder_of(r->options.npz);
    blocks_check(r);
    comm_any(&r->comm, 0);
    uint8_t* pixels = (uint8_t*)malloc_check(per * image, "a block of images");
    for (int counting = 1; counting >= 0; counting--) { // first how much there is to do, for the time left
        for (size_t b = (size_t)r->comm.rank; b < blocks; b += (size_t)r->comm.size) {
            size_t count = r->total - b * per < per ? r->total - b * per : per;
            if (block_is_there(r, b, count * image)) continue;
            if (counting) {
                r->mine += count;
                continue;
            }
            draw(r, pixels, b * per, count);
            block_write(r, b, pixels, count * image);
        }
    }
    free(pixels);
    comm_any(&r->comm, 0);
    if (comm_is_first(&r->comm)) blocks_join(r, blocks);
    printf("wrote          %s: arr_0, uint8 (%zu, %d, %d, 3)\n", r->options.npz, r->total, r->model.tokenizer.H,
           r->model.tokenizer.W);
}

// ---------------------------------------------------------------------------------------------------------------------

static void need_file(const sample_t* r, const char* flag, const char* path) {
    if (path[0] && !access(path, R_OK)) return;
    int is_mini = !strcmp(r->options.preset, "mini") || !strcmp(r->options.preset, "t2i_mini");
    fatal("-%s %s: there is no such file. Give one, or leave -preset out: the miniature comes with this repository and "
          "draws at once (./sample -class 7)%s", flag, path[0] ? path : "(empty)",
          is_mini ? ". It is missing here: run in the folder of the repository" : "");
}

// The flags, and what they do not tell: what was in the files that they name.
static char* all_settings(const sample_t* r, uint64_t dit) {
    char hash[3][17], *flags = cli_to_json(&r->cli);
    uint64_t words = HASH_START;
    json_text_t text = {NULL, 0, 0};
    json_append(&text, "%.*s, \"dit_hash\": \"%s\", \"tokenizer_hash\": \"%s\", \"statistics_hash\": \"%s\"",
                (int)strlen(flags) - 1, flags, hash_text(hash[0], dit), r->model.tokenizer.fingerprint,
                hash_text(hash[1], pipeline_statistics_hash(&r->model)));
    for (int i = -1; r->is_text && i < r->row_count; i++) {
        const char* prompt = i < 0 ? r->model.negative : prompt_of(r, i);
        words = hash_string(words, prompt);
        words = hash_word(words, '\n');
    }
    if (r->is_text) json_append(&text, ", \"prompts_hash\": \"%s\"", hash_text(hash[2], words));
    if (r->is_text) json_append(&text, ", \"text_encoder\": \"%s\"", r->model.encoder.name);
    json_append(&text, "}");
    free(flags);
    return text.text;
}

static void open_models(sample_t* r) {
    const sample_options_t* o = &r->options;
    int prompts = takes_prompts(r);
    need_file(r, "dit", o->drawing.dit);
    choose_subjects(r, prompts);
    need_file(r, "tokenizer", o->tokenizer);
    pipeline_t* g = &r->model;
    drawing_open(g, &o->drawing, o->tokenizer, (autoencoder_weights_t)o->tokenizer_weights,
                 drawing_sampler(&o->drawing, o->batch, o->seed));
    drawing_open_text(g, &o->drawing);
    r->settings = all_settings(r, pipeline_hash(g));
    pipeline_load(g);
    g->sampler.sampler.progress = progress;
    g->sampler.sampler.progress_context = r;
    g->sampler.ddpm.progress = progress;
    g->sampler.ddpm.progress_context = r;
}

int main(int argc, char** argv) {
    static sample_t r;
    static cli_flag_t flags[48];
    sample_options_t* o = &r.options;
    int n = make_flags(o, flags);
    cli_init(&r.cli, "./sample", "Draws images of classes, or of what a prompt says.", flags, n, presets,
             sizeof presets / sizeof presets[0]);
    comm_options_begin(&r.comm);
    cli_parse(&r.cli, argc, argv);
    if (o->npz[0] && o->images[0]) fatal("-npz and -images: give one of them");
    r.comm.time_limit = o->time_limit;
    comm_open(&r.comm);
    if (!comm_is_first(&r.comm) && !freopen("/dev/null", "w", stdout)) warn("this rank's output is not silenced");
    r.stream = device_open(r.comm.local_rank);
    comm_attach(&r.comm, r.stream);
    open_models(&r);
    printf("model          %s (%s), tokenizer %s (%s, %s)\n", o->drawing.dit,
           r.is_text ? "text to image" : r.model.net.config.id, o->tokenizer, r.model.tokenizer.fingerprint,
           r.model.tokenizer.weights);
    if (r.is_text) print_prompts(&r);
    else print_classes(&r);
    print_method(&r);
    comm_options_end();
    r.start = r.said = clock_seconds();
    if (o->npz[0]) draw_npz(&r);
    else if (o->images[0]) draw_single(&r);
    else draw_grid(&r);
    char took[24];
    clock_duration(took, sizeof took, clock_seconds() - r.start);
    printf("took           %s, %.2f images/s\n", took, (double)r.drawn / (clock_seconds() - r.start));
    comm_close(&r.comm);
    device_close(r.stream);
    return 0;
}
