// test_drawing.c: whole drawings, from noise to latents, beside DiT's and SiT's own loops on a network of their kind:
// times, guidance on three channels, learned variance, noise, solvers, in the order in which a drawing has them. And
// from captions to pictures, with a text-to-image transformer of random weights.
//
// The answers of the first are tests/fixtures/drawing.safetensors. Look next at test_ddpm.c and test_flow.c, where each
// part is tested by itself.

// defines: pipeline_t, pipeline_*; by dit_sampler.h: dit_sampler_t, dit_sampler_*
#include "common/drawing/pipeline.h"
// defines: prompts_t, prompts_read, prompt_path, prompt_make_folder
#include "common/drawing/prompts.h"
// defines: fixture_open, fixture_tensor, fixture_parameters
#include "tests/fixture.h"
// makes this a test in double
#include "tests/gradient.h"
// defines: bed_t, bed_config, bed_make, bed_randomise, bed_free
#include "tests/mmdit_bed.h"
// defines: temporary_begin, temporary_path, temporary_write, temporary_read, check_message, temporary_end
#include "tests/temporary.h"

enum { B = 2, C = 4, HW = 16, IMAGE = HW * C };

typedef struct {
    safetensors_t file;
    lightningdit_t net;
    params_t params;
    plan_t plan;
    int labels[B];
} classic_t;

static void classic_open(classic_t* m) {
    memset(m, 0, sizeof *m);
    fixture_open(&m->file, "drawing");
    lightningdit_config_t config = {"fixture", 2, 40, 2, 2, 1, 0, 0, 1, 1, C, 4, 7};
    m->net.config = config;
    lightningdit_register(&m->net, &m->params.table, "");
    params_allocate(&m->params, m->params.table.total, 0, "parameters");
    lightningdit_plan(&m->net, &m->plan, 2 * B, 0);
    lightningdit_plan_work(&m->net, &m->plan);
    plan_allocate(&m->plan, "activations");
    fixture_parameters(&m->file, &m->params);
    lightningdit_set_tables(&m->net, &m->params);
    floatS* labels = fixture_tensor(&m->file, "input.labels");
    for (int b = 0; b < B; b++) m->labels[b] = (int)labels[b];
    free(labels);
}

static void classic_close(classic_t* m) {
    safetensors_close(&m->file);
    params_free(&m->params), plan_free(&m->plan);
}

// What is drawn, and how `sample -preset dit` or sit says it.
typedef struct {
    const char* name;
    int count; // images: the file's numbers, from the first on
    dit_prediction_t predicts;
    flow_solver_t solver;
    ddpm_kind_t process;
    int points;
    double w;
    double rtol; // 0: the sampler's own
} drawing_t;

static void check_drawing(classic_t* m, const drawing_t* r) {
    static const uint64_t images[B] = {3, 8};
    static dit_sampler_t d;
    static autoencoder_t tokenizer; // of which only the shape of the latent is asked for
    tokenizer.z = C, tokenizer.GH = 4;
    floatS mean[C] = {0}, std[C] = {1, 1, 1, 1}, want[B * IMAGE];
    dit_sampler_options_t options = {r->solver, r->points, 0, {r->w, 0, 3, 0}, B, 11, r->predicts, r->process, 0};
    dit_sampler_open(&d, &m->net, &m->params, &tokenizer, mean, std, options);
    memset(d.plan.memory, 0xFF, plan_bytes(&d.plan)); // NaN
    if (r->rtol > 0) d.sampler.rtol = r->rtol, d.sampler.atol = r->rtol / 100;
    dit_sampler_latents(&d, images, m->labels, r->count, 0);
    char name[64];
    snprintf(name, sizeof name, "output.%s", r->name);
    floatS* file = fixture_tensor(&m->file, name); // (count, C, HW)
    check(safetensors_find(&m->file, name)->numel == (size_t)r->count * IMAGE, name);
    for (int i = 0; i < r->count * IMAGE; i++) want[i] = file[i / IMAGE * IMAGE + i % C * HW + i % IMAGE / C];
    check_error(name, relative_error_double(d.x, want, (size_t)r->count * IMAGE), 1e-6);
    free(file);
    dit_sampler_close(&d);
}

// ---------------------------------------------------------------------------------------------------------------------
// Captions to latents

enum { PASS = 3, ROWS = 5, STEPS = 4 }; // images that the network takes at once; text rows of a caption

// One image by itself as minFM draws it, its time from 1 to 0: a caption's row of the batch and row 0 without it.
static void draw_by_hand(bed_t* m, const text_batch_t* text, int row, uint64_t number, const dit_sampler_options_t* o,
                         floatS* x) { // (h, w, C)
    const mmdit_config_t* c = &m->net.config;
    size_t n = (size_t)c->h * c->w * c->C;
    floatS v[2][64];
    int rows[2] = {row, 0};
    floatS told = o->guidance.w; // of a distilled network, which makes one pass
    double w = c->guidance ? 1 : o->guidance.w, a = exp(0.5 + 0.65 * (c->h * c->w - 256) / 3840.0);
    flow_noise(x, &number, 1, n, o->seed, 0);
    for (int i = 0; i < STEPS; i++) {
        double tau = 1 - (double)i / STEPS, next = 1 - (i + 1.0) / STEPS, wanted = 0, energy = 0;
        floatS t = a / (a + 1 / tau - 1);
        next = next > 0 ? a / (a + 1 / next - 1) : 0;
        for (int k = 0; k < 2; k++) {
            mmdit_input_t in = {1, text->L, x, &t, text->rows + (size_t)rows[k] * text->L * c->text,
                                text->first + rows[k], text->pooled + rows[k] * c->vector,
                                c->guidance ? &told : NULL};
            mmdit_forward(&m->net, &m->params, in, 0);
            memcpy(v[k], m->net.v, n * sizeof(floatS));
        }
        for (size_t e = 0; e < n; e++) {
            wanted += v[0][e] * v[0][e];
            v[1][e] = v[1][e] + w * (v[0][e] - v[1][e]);
            energy += v[1][e] * v[1][e];
        }
        for (size_t e = 0; e < n; e++) x[e] += (next - t) * v[1][e] * (o->guidance.energy ? sqrt(wanted / energy) : 1);
    }
}

// A tokenizer's shape, which is all that drawing latents asks for: its latents are as large as its images.
static autoencoder_t* shape_of_latents(int h, int w, int z) {
    static autoencoder_t a;
    a.z = z, a.decoder.config.levels = 1, a.H = a.GH = h, a.W = a.GW = w;
    return &a;
}

// Images of captions in one batch and of two sizes, against each by itself.
static void check_captions(const char* name, dit_sampler_options_t options, int steps_are_points, int distilled) {
    static dit_sampler_t d;
    bed_t m;
    char title[80];
    snprintf(title, sizeof title, "captions: %s, as minFM draws each by itself", name);
    if (!test_case(title)) return;
    mmdit_config_t config = bed_config(2, 1, 6, distilled);
    bed_make(&m, config, PASS, ROWS, 0, 0);
    bed_randomise(&m);
    text_batch_t text = {PASS, ROWS, m.text, m.first, m.pooled};
    static const uint64_t images[4] = {3, 8, 3, 1000000007};
    static const int labels[4] = {2, 1, 1, 2};
    floatS mean[5] = {0}, std[5] = {1, 1, 1, 1, 1}, together[4 * 30], alone[30];
    options.points = steps_are_points ? STEPS : STEPS + 1;
    dit_sampler_open_captions(&d, &m.net, &m.params, shape_of_latents(2, 3, 5), mean, std, options);
    if (!distilled) memset(d.plan.memory, 0xFF, plan_bytes(&d.plan)); // NaN; else the guidance is there already
    for (int size = 0; size < 3; size++) {
        int h = size == 1 ? 4 : 2, w = size == 1 ? 1 : 3, n = h * w * 5;
        shape_of_latents(h, w, 5);
        dit_sampler_show(&d, &text, h, w);
        dit_sampler_latents(&d, images, labels, 4, 0);
        memcpy(together, d.x, 4 * (size_t)n * sizeof(floatS));
        for (int b = 0; b < 4; b++) {
            draw_by_hand(&m, &text, labels[b], images[b], &options, alone);
            check_error("by hand", relative_error_double(together + b * n, alone, (size_t)n), 1e-11);
            dit_sampler_latents(&d, images + b, labels + b, 1, 0);
            check(!memcmp(d.x, together + b * n, (size_t)n * sizeof(floatS)), "the same bits alone");
        }
    }
    dit_sampler_close(&d);
    bed_free(&m);
    test_end_case();
}

static dit_sampler_options_t caption_options(double w, int energy, ddpm_kind_t process, double eta) {
    dit_sampler_options_t o = {FLOW_EULER, STEPS, SHIFT_BY_SIZE, {w, 0, 0, energy}, 4, 11, PREDICTS_UNKNOWN, process,
                               eta};
    return o;
}

// ---------------------------------------------------------------------------------------------------------------------
// Prompts to pictures: a transformer in a file, with a tokenizer as published

#define VAVAE "tests/fixtures/published_vavae.pt" // latents of two channels, one position for 16 pixels

// Writes a small transformer of random weights as train_dit does; with `metadata` NULL as FLUX's are.
static void write_transformer(const char* name, const char* tokenizer, const char* text, const char* encoder) {
    static mmdit_t net;
    char path[TEMPORARY_PATH], tensor[200];
    params_t p;
    st_writer_t w;
    size_t C = 2;
    memset(&net, 0, sizeof net);
    memset(&p, 0, sizeof p);
    net.config = (mmdit_config_t){"small", 128, 4, 1, 1, {8, 12, 12}, WORD_WIDTH, WORD_WIDTH, 0, (int)C, 3, 3};
    mmdit_register(&net, &p.table, "");
    params_allocate(&p, p.table.total, 0, "weights");
    params_init(&p, 5);
    for (size_t i = 0; i < p.table.total; i++) p.values[i] += 0.02 * test_normal();
    if (!tokenizer) {
        weights_save(&p, "", temporary_path(path, name), "");
        params_free(&p);
        return;
    }
    safetensors_writer_init(&w);
    safetensors_writer_metadata(&w, "format", DIT_FORMAT);
    safetensors_writer_metadata(&w, "tokenizer", tokenizer);
    safetensors_writer_metadata(&w, "text", text);
    safetensors_writer_metadata(&w, "text_encoder", encoder);
    for (int k = 0; k < 2; k++) for (int i = 0; i < p.table.n; i++) {
        size_t shape[4];
        for (int j = 0; j < p.table.items[i].ndim; j++) shape[j] = (size_t)p.table.items[i].shape[j];
        snprintf(tensor, sizeof tensor, "%s%s", k ? "ema." : "", p.table.items[i].name);
        safetensors_writer_tensor(&w, tensor, ST_F32, p.table.items[i].ndim, shape);
    }
    safetensors_writer_tensor(&w, "latent.mean", ST_F32, 1, &C);
    safetensors_writer_tensor(&w, "latent.std", ST_F32, 1, &C);
    safetensors_writer_begin(&w, temporary_path(path, name));
    size_t longest = params_longest(&p.table);
    floatS* host = random_buffer(2 * longest);
    for (int k = 0; k < 2; k++) for (int i = 0; i < p.table.n; i++) {
        const param_t* t = &p.table.items[i];
        params_get(&p, params_state(&p, PARAM_VALUE), t, host, host + longest);
        for (size_t e = 0; !k && e < t->count; e++) host[e] *= 2; // the raw weights are others
        safetensors_writer_data(&w, host, t->count);
    }
    safetensors_writer_data(&w, (floatS[2]){0.5, -0.25}, C);
    safetensors_writer_data(&w, (floatS[2]){1.5, 2}, C);
    safetensors_writer_finish_or_die(&w);
    free(host);
    params_free(&p);
}

static caption_encoder_options_t fixed_captions(void) {
    caption_encoder_options_t o = {TEXT_FIXED, "", "", "", "", 16, 1};
    return o;
}

static void open_pipeline(pipeline_t* g, const char* name, int raw, int batch, const char* negative, int H, int W) {
    static char path[TEMPORARY_PATH];
    caption_encoder_options_t text = fixed_captions();
    dit_sampler_options_t o = caption_options(3, 1, DDPM_DDIM, 1);
    o.batch = batch, o.points = 2;
    pipeline_open(g, temporary_path(path, name), raw, VAVAE, AUTOENCODER_AVERAGED, o);
    check(g->is_text, "it holds a text-to-image transformer");
    if (g->statistics == STATISTICS_NONE) pipeline_use_scale(g, 0.5);
    pipeline_use_text(g, &text, negative, H, W);
    pipeline_load(g);
}

static const char* const shown[5] = {"a red circle on a white background", "two blue squares on a black background",
                                     "two blue squares on a black background", "a", "a green triangle"};

// The pictures of all five captions.
static uint8_t* draw_pictures(const char* name, int raw, int batch, const char* negative, int H, int W) {
    static pipeline_t g;
    static const uint64_t numbers[5] = {0, 0, 1, 0, 7};
    open_pipeline(&g, name, raw, batch, negative, H, W);
    uint8_t* pixels = (uint8_t*)malloc_check((size_t)5 * g.tokenizer.H * g.tokenizer.W * 3, "pictures");
    check(!H || (g.tokenizer.H == H && g.tokenizer.W == W), "the size that is asked for");
    pipeline_draw_captions(&g, pixels, numbers, shown, 5, 0);
    pipeline_close(&g);
    return pixels;
}

// Loaded for 48 x 48 and turned to 32 x 48, it draws what it draws when it is loaded for that.
static void check_turn(const uint8_t* all) { // (5, 32, 48, 3)
    static pipeline_t g;
    static uint8_t pixels[5 * 48 * 48 * 3];
    static const uint64_t numbers[5] = {0, 0, 1, 0, 7};
    open_pipeline(&g, "dit", 0, 2, "", 48, 48);
    pipeline_draw_captions(&g, pixels, numbers, shown, 5, 0);
    pipeline_turn(&g, 32, 48);
    memset(pixels, 0xA5, sizeof pixels);
    pipeline_draw_captions(&g, pixels, numbers, shown, 5, 0);
    check(!memcmp(all, pixels, 5 * 32 * 48 * 3), "turned to another size");
    pipeline_close(&g);
}

static void test_pictures(const char* fingerprint, const char* encoder) {
    if (!test_case("captions: pictures of a checkpoint, whatever the batch")) return;
    enum { ONE = 32 * 48 * 3 };
    write_transformer("dit", fingerprint, "fixed 16 1", encoder);
    uint8_t* all = draw_pictures("dit", 0, 5, "", 32, 48);
    for (int batch = 1; batch < 5; batch += 2) {
        uint8_t* again = draw_pictures("dit", 0, batch, "", 32, 48);
        check(!memcmp(all, again, 5 * ONE), "the same bytes");
        free(again);
    }
    check(memcmp(all, all + ONE, ONE) && memcmp(all + ONE, all + 2 * ONE, ONE), "captions and numbers matter");
    for (int other = 0; other < 2; other++) {
        uint8_t* different = draw_pictures("dit", other, 5, other ? "" : "red", 32, 48);
        check(memcmp(all, different, 5 * ONE), other ? "the raw weights draw otherwise" : "so does a negative prompt");
        free(different);
    }
    check_turn(all);
    free(all);
    free(draw_pictures("dit", 0, 2, "", 0, 0));
    test_end_case();
    if (!test_case("captions: a transformer as FLUX's is published")) return;
    free(draw_pictures("flux", 0, 3, "", 48, 16));
    test_end_case();
}

// Each in a child; the name of the file says what is wrong.
static void draw_badly(const char* what) {
    static pipeline_t g;
    int H = !strcmp(what, "size") ? 40 : !strcmp(what, "long") ? 4112 : 48;
    open_pipeline(&g, what, !strcmp(what, "flux"), 1, "", H, 48);
}

static void read_prompts(const char* name) {
    char path[TEMPORARY_PATH];
    prompts_t p;
    prompts_read(&p, temporary_path(path, name));
}

static void test_bad_captions(const char* fingerprint, const char* encoder) {
    if (!test_case("captions: what cannot be drawn is refused")) return;
    write_transformer("size", fingerprint, "fixed 16 1", encoder);
    write_transformer("long", fingerprint, "fixed 16 1", encoder);
    write_transformer("tokenizer", "0123456789abcdef", "fixed 16 1", encoder);
    write_transformer("encoder", fingerprint, "fixed 16 1", "T5 of somebody else");
    write_transformer("text", fingerprint, "words 16 1", encoder);
    write_transformer("t5", fingerprint, "t5 64 1", "T5");
    write_transformer("flux", NULL, NULL, NULL);
    check_message(draw_badly, "size", "-size 48x40: ", "multiples of 16 from 16 to 4096");
    check_message(draw_badly, "long", "-size 48x4112: ", "multiples of 16 from 16 to 4096");
    check_message(draw_badly, "tokenizer", "trained on latents of tokenizer 0123456789abcdef", "-tokenizer");
    check_message(draw_badly, "encoder", "trained with the text encoder \"T5 of somebody else\"", "-t5, -text_clip");
    check_message(draw_badly, "text", "\"words 16 1\"", "damaged");
    check_message(draw_badly, "t5", "-text t5 needs T5 v1.1's encoder", "give it with -t5");
    check_message(draw_badly, "flux", "-raw is for checkpoints of train_dit", "is none");
    test_end_case();
}

static void test_prompts(void) {
    if (!test_case("prompts: files of them, and where their pictures go")) return;
    static const char plain[] = "a red  circle\r\n\n \ttwo \xFF squares \n\nlast \xF0\x9F\x99\x82";
    static const char json[] = "{\"tag\": \"colors\", \"prompt\": \"a \\\"red\\\" dog\"}\n\n{\"prompt\": \"b\"}\n";
    char path[TEMPORARY_PATH], place[PROMPT_PATH];
    prompts_t p;
    temporary_write("plain.txt", plain, sizeof plain - 1);
    temporary_write("prompts.jsonl", json, sizeof json - 1);
    temporary_write("zero.txt", "a\0b\n", 4);
    temporary_write("nothing.txt", "\n \n", 3);
    temporary_write("other.jsonl", "{\"prompt\": \"a\"}\n{\"caption\": \"b\"}\n", 34);
    temporary_write("broken.jsonl", "{\"prompt\": \"a\"\n", 16);
    prompts_read(&p, temporary_path(path, "plain.txt"));
    check(p.prompts.count == 3 && !p.lines.count, "three lines that are not empty");
    check(!strcmp(p.prompts.items[0], "a red  circle") && !strcmp(p.prompts.items[1], "two \xEF\xBF\xBD squares") &&
          !strcmp(p.prompts.items[2], "last \xF0\x9F\x99\x82"), "as captions are kept");
    check(!strcmp(prompt_path(place, &p, "out", 2, 11), "out/00002_11.png"), "a picture's name");
    string_list_free(&p.prompts), string_list_free(&p.lines);
    prompts_read(&p, temporary_path(path, "prompts.jsonl"));
    check(p.prompts.count == 2 && !strcmp(p.prompts.items[0], "a \"red\" dog"), "from JSON");
    check(!strcmp(prompt_path(place, &p, "out", 1, 3), "out/00001/samples/00003.png"), "GenEval's name");
    for (int again = 0; again < 2; again++) prompt_make_folder(&p, temporary_path(path, "geneval"), 0);
    char* line = temporary_read("geneval/00000/metadata.jsonl", NULL);
    check(line && !strncmp(line, json, strlen(line)) && strlen(line) == strcspn(json, "\n") + 1, "the line itself");
    free(line);
    string_list_free(&p.prompts), string_list_free(&p.lines);
    check_message(read_prompts, "none.txt", "none.txt: No such file", "a prompt on each line");
    check_message(read_prompts, "zero.txt", "line 1: holds a zero byte", "want text");
    check_message(read_prompts, "nothing.txt", "there is no prompt in it", "one on each line");
    check_message(read_prompts, "other.jsonl", "line 2 has no \"prompt\"", "on each line");
    check_message(read_prompts, "broken.jsonl", "line 1: ", "want a JSON object on each line");
    test_end_case();
}

static void test_captions(void) {
    static autoencoder_t tokenizer;
    caption_encoder_t encoder;
    caption_encoder_options_t text = fixed_captions();
    temporary_begin();
    autoencoder_open_sized(&tokenizer, VAVAE, AUTOENCODER_AVERAGED, 48, 1, 0, 1);
    caption_encoder_open(&encoder, &text, 1);
    test_bad_captions(tokenizer.fingerprint, encoder.name); // first: its children lack the threads of what has computed
    check_captions("Euler", caption_options(1, 0, DDPM_ANCESTRAL, 0), 0, 0);
    check_captions("Euler, guided", caption_options(3, 0, DDPM_ANCESTRAL, 0), 0, 0);
    check_captions("DDIM, eta 0, energy kept", caption_options(3, 1, DDPM_DDIM, 0), 1, 0);
    check_captions("a distilled network", caption_options(3, 1, DDPM_DDIM, 0), 1, 1);
    test_pictures(tokenizer.fingerprint, encoder.name);
    test_prompts();
    caption_encoder_close(&encoder);
    autoencoder_close(&tokenizer);
    temporary_end();
}

int main(int argc, char** argv) {
    static const drawing_t drawings[] = {
        {"dit_ddpm_250_cfg", 2, PREDICTS_NOISE, FLOW_EULER, DDPM_ANCESTRAL, 250, 4, 0},
        {"dit_ddpm_20", 2, PREDICTS_NOISE, FLOW_EULER, DDPM_ANCESTRAL, 20, 1, 0},
        {"dit_ddim_20_cfg", 2, PREDICTS_NOISE, FLOW_EULER, DDPM_DDIM, 20, 4, 0},
        {"sit_euler_50_cfg", 2, PREDICTS_VELOCITY, FLOW_EULER, DDPM_ANCESTRAL, 50, 4, 0},
        {"sit_dopri5", 1, PREDICTS_VELOCITY, FLOW_DOPRI5, DDPM_ANCESTRAL, 2, 1, 0},
        {"sit_dopri5_cfg", 2, PREDICTS_VELOCITY, FLOW_DOPRI5, DDPM_ANCESTRAL, 2, 4, 1e-9},
        {"sit_sde_250_cfg", 2, PREDICTS_VELOCITY, FLOW_EULER, DDPM_SDE, 250, 4, 0},
        {"sit_sde_20", 2, PREDICTS_VELOCITY, FLOW_EULER, DDPM_SDE, 20, 1, 0},
    };
    static classic_t m;
    test_begin(argc, argv);
    test_captions();
    classic_open(&m);
    for (size_t i = 0; i < sizeof drawings / sizeof *drawings; i++) {
        char name[80];
        snprintf(name, sizeof name, "as the originals draw: %s", drawings[i].name);
        if (!test_case(name)) continue;
        check_drawing(&m, &drawings[i]);
        test_end_case();
    }
    classic_close(&m);
    return test_finish();
}
