// test_autoencoder.c: a trained tokenizer in use, against the tokenizer of the training, bit for bit.
//
//   use           encode and decode give what tokenizer_encode and _reconstruct give: raw and averaged weights, every
//                 stage, folded or not; fewer images than the memory is planned for; either half alone
//   export        the same in F32; within rounding in F16; the file holds nothing of the training
//   baselines     a latent that is drawn; raw weights that ship
//   fingerprint   the same for the same weights, another after one bit of one of them
//   refusals      foreign and exported files, missing tensors
// defines: bed_make, bed_randomise, bed_random_images, bed_image_values, bed_error, test_normal, ...
#include "tests/tokenizer_bed.h"
// defines: temporary_begin, temporary_end, temporary_path, temporary_run_child, check_message
#include "tests/temporary.h"
// defines: autoencoder_t and its functions
#include "common/drawing/autoencoder.h"

#define ROUNDING_F16 5e-3 // of 11 bits a weight, through the whole network
#define OTHER_BATCH 1e-5  // matrix products of another size may add in another order

static int same_bits(const void* a, const void* b, size_t n) { return !memcmp(a, b, n * sizeof(floatX)); }

// The decoder of the tokenizers that are made.
static const char* made_decoder = "ldm";

// The tokenizer that flags describe, and its configuration as JSON for the checkpoint. A stand-in of every part: a
// folded encoder with LayerScale, attention, two widths of ResBlocks.
static tokenizer_config_t parse_config(const char* flags, char** json) {
    static options_t options;
    static cli_t cli;
    static char text[600]; // as long-lived as the options, whose strings it holds
    char *argv[64], *rest = text;
    int n = 0;
    snprintf(text, sizeof text, "train_tokenizer -data shapes -encoder tiny -ch 8 -ch_mult 1,2,2,2 -z_channels 5 "
             "-ndf 4 -groups 4 -batch 6 -chunk 2 -vgg_channels 4,6,8 -adapter_hidden 10 -decoder %s -decoder_dim 24 "
             "-decoder_depth 2 -decoder_heads 3 -decoder_grid 3 %s", made_decoder, flags);
    for (char* word; n < 64 && (word = strtok_r(rest, " ", &rest)) != NULL;) argv[n++] = word;
    options_parse(&options, &cli, n, argv);
    *json = cli_to_json(&cli);
    tokenizer_config_t config = options_tokenizer(&options, 1);
    cli_free(&cli);
    return config;
}
static tokenizer_config_t make_config(const char* stage, const char* rank, const char* ema, const char* fold,
                                      char** json) {
    char flags[100];
    snprintf(flags, sizeof flags, "-stage %s -lora %s -ema %s -fold %s", stage, rank, ema, fold);
    return parse_config(flags, json);
}

// Saves a random tokenizer, whose averages are random too, as "checkpoint".
static void save_random(tokenizer_t* t, tokenizer_config_t config, char* json, char path[TEMPORARY_PATH]) {
    char error[1024];
    bed_make(t, config);
    bed_randomise(t);
    params_start_averages(&t->params);
    for (int i = 0; i < 2; i++) {
        for (size_t k = 0; k < params_trained(&t->params); k++) t->params.ema[i][k] += (floatS)(0.05 * test_normal());
    }
    floatS statistics[10];
    for (int i = 0; i < 10; i++) statistics[i] = (floatS)(i + 1);
    checkpoint_info_t info = {t->config.stage, 7, 42, 0, 0, 0, json, 7, 7};
    int saved = checkpoint_save(temporary_path(path, "checkpoint"), t, &info, statistics, statistics + 5, error,
                                sizeof error, 0);
    check(saved, "the checkpoint is written");
    free(json);
}
static void make_checkpoint_lora(tokenizer_t* t, const char* stage, const char* rank, const char* ema, const char* fold,
                                 char path[TEMPORARY_PATH]) {
    char* json;
    tokenizer_config_t config = make_config(stage, rank, ema, fold, &json);
    save_random(t, config, json, path);
}

static void make_checkpoint(tokenizer_t* t, const char* stage, const char* ema, const char* fold,
                            char path[TEMPORARY_PATH]) {
    make_checkpoint_lora(t, stage, "0", ema, fold, path);
}

// A tokenizer of stage 1 with the weights of a checkpoint: encoder frozen, and so folded where the flag says so.
static void open_reference_of(tokenizer_t* t, tokenizer_config_t config, const char* path, int ema) {
    bed_make(t, config);
    safetensors_t f;
    checkpoint_info_t info = checkpoint_open(&f, path);
    checkpoint_start_from(&f, &info, path, t, ema);
    safetensors_close(&f);
    tokenizer_freeze(t);
    bed_random_images(t);
    image_from_bytes(t->x, t->bytes, bed_image_values(t), 0);
    tokenizer_reconstruct(t, 0);
}

static void open_reference(tokenizer_t* t, const char* path, int ema, const char* fold) {
    char* json;
    tokenizer_config_t config = make_config("1", "0", "0", fold, &json);
    free(json);
    open_reference_of(t, config, path, ema);
}

// Everything that a call works in is NaN before it.
static void poison(autoencoder_t* a) { memset(a->work.memory, 0xFF, plan_bytes(&a->work)); }

static void check_use(autoencoder_t* a, const tokenizer_t* t) {
    size_t latents = 6 * autoencoder_latent_values(a), values = 6 * autoencoder_image_values(a);
    poison(a);
    const floatX* z = autoencoder_encode(a, t->bytes, 6, 0);
    check(z == a->latent && same_bits(z, latent_encoder_output(&t->encoder), latents), "the latent");
    poison(a);
    check(same_bits(autoencoder_decode(a, z, 6, 0), t->decoder.out, values), "the reconstruction");
    check(same_bits(z, latent_encoder_output(&t->encoder), latents), "decoding leaves the latent as it is");
}

// `average`: 0 raw, 1 the average that -ema names.
static void test_use(const char* stage, const char* ema, const char* fold, int average) {
    static tokenizer_t t, reference;
    static autoencoder_t a;
    char path[TEMPORARY_PATH];
    temporary_begin();
    make_checkpoint(&t, stage, ema, fold, path);
    open_reference(&reference, path, average ? atoi(ema) : -1, fold);
    autoencoder_open(&a, path, average ? AUTOENCODER_AVERAGED : AUTOENCODER_RAW, 6, 1, 1);
    check(a.encoder.vit.fold == atoi(fold), "folded as the flag says");
    check(a.info.stage == atoi(stage) && a.info.step == 7 && a.info.images == 42, "what the file tells");
    check(a.H == 32 && a.W == 32 && a.GH == 4 && a.GW == 4 && a.z == 5 && !strcmp(a.data, "shapes"), "sizes");
    check(a.mean[0] == 1 && a.mean[4] == 5 && a.std[0] == 6 && a.std[4] == 10, "latent statistics");
    check(a.params.grads == NULL && a.params.master == NULL && a.params.frozen == NULL, "weights alone");
    check(plan_bytes(&a.plan) + plan_bytes(&a.work) < (plan_bytes(&t.plan) + plan_bytes(&t.work)) / 2,
          "less than half of the training's memory");
    check_use(&a, &reference);
    autoencoder_close(&a);
    tokenizer_free(&t);
    tokenizer_free(&reference);
    temporary_end();
}

// Images of other sizes, larger in all than the training's and smaller, and back to those.
static void test_sizes(const char* fold) {
    static const int sizes[4][2] = {{48, 24}, {24, 40}, {24, 24}, {32, 32}};
    static tokenizer_t t, reference;
    static autoencoder_t a;
    char path[TEMPORARY_PATH], *json;
    temporary_begin();
    make_checkpoint(&t, "3", "0", fold, path);
    autoencoder_open(&a, path, AUTOENCODER_AVERAGED, 6, 1, 1);
    for (int i = 0; i < 4; i++) {
        tokenizer_config_t config = make_config("1", "0", "0", fold, &json);
        free(json);
        config.H = sizes[i][0];
        config.W = sizes[i][1];
        open_reference_of(&reference, config, path, 0);
        autoencoder_resize(&a, config.H, config.W);
        check(a.H == config.H && a.GH * 8 == config.H && a.GW * 8 == config.W, "sizes");
        check_use(&a, &reference);
        tokenizer_free(&reference);
    }
    autoencoder_close(&a);
    tokenizer_free(&t);
}

// A baseline ships its raw weights; its latent is the mean, or a draw by seed, draw and number of the image.
static void check_baseline(const char* path, tokenizer_t* t) {
    static autoencoder_t a;
    size_t latents = 6 * tokenizer_latents(t) * t->z, values = bed_image_values(t);
    uint64_t numbers[6];
    for (uint64_t i = 0; i < 6; i++) numbers[i] = i;
    autoencoder_open(&a, path, AUTOENCODER_AVERAGED, 6, 1, 1);
    check(!strcmp(a.weights, "raw") && !a.ldm && a.statistics && a.mean[4] == 5, "what the file tells");
    image_from_bytes(t->x, t->bytes, values, 0);
    latent_encoder_forward(&t->encoder, &t->params, t->x, 0, 0);
    poison(&a);
    check(same_bits(autoencoder_encode(&a, t->bytes, 6, 0), latent_encoder_output(&t->encoder), latents), "the mean");
    tokenizer_draw_noise(t, 9, 2, 0);
    tokenizer_reconstruct(t, 0);
    poison(&a);
    const floatX* z = autoencoder_sample(&a, t->bytes, 6, 9, 2, numbers, 0);
    check(same_bits(z, latent_encoder_output(&t->encoder), latents), "a draw");
    check(same_bits(autoencoder_decode(&a, z, 6, 0), t->decoder.out, values), "its reconstruction");
    autoencoder_close(&a);
}

static void test_baseline(const char* flags) {
    static tokenizer_t t;
    char path[TEMPORARY_PATH], exported[TEMPORARY_PATH], *json;
    temporary_begin();
    tokenizer_config_t config = parse_config(flags, &json);
    save_random(&t, config, json, path);
    check_baseline(path, &t);
    autoencoder_export(path, temporary_path(exported, "exported"), ST_F32);
    check_baseline(exported, &t);
    tokenizer_free(&t);
    temporary_end();
}

// Fewer images than planned, as the last ones of a data set are; then all of them again.
static void test_part(void) {
    static tokenizer_t t, reference;
    static autoencoder_t a;
    char path[TEMPORARY_PATH];
    temporary_begin();
    make_checkpoint(&t, "3", "0", "1", path);
    open_reference(&reference, path, 0, "1");
    autoencoder_open(&a, path, AUTOENCODER_AVERAGED, 6, 1, 1);
    for (int n = 1; n < 6; n += 3) {
        size_t values = n * autoencoder_image_values(&a);
        poison(&a);
        const floatX* z = autoencoder_encode(&a, reference.bytes, n, 0);
        const floatX* want = latent_encoder_output(&reference.encoder);
        check_error("latent", bed_error(z, want, n * autoencoder_latent_values(&a)), OTHER_BATCH);
        poison(&a);
        check_error("image", bed_error(autoencoder_decode(&a, z, n, 0), reference.decoder.out, values), OTHER_BATCH);
    }
    check_use(&a, &reference);
    memcpy(a.bytes, reference.bytes, bed_image_values(&reference));
    const floatX* z = autoencoder_encode(&a, NULL, 6, 0);
    size_t latents = 6 * autoencoder_latent_values(&a);
    check(same_bits(z, latent_encoder_output(&reference.encoder), latents), "images that are there already");
    autoencoder_close(&a);
    tokenizer_free(&t);
    tokenizer_free(&reference);
    temporary_end();
}

// Either half alone: its own weights only, the same results, the name of the whole.
static void test_halves(void) {
    static tokenizer_t t, reference;
    static autoencoder_t a, encoder, decoder;
    char path[TEMPORARY_PATH];
    temporary_begin();
    make_checkpoint(&t, "2", "1", "1", path);
    open_reference(&reference, path, 1, "1");
    autoencoder_open(&a, path, AUTOENCODER_AVERAGED, 6, 1, 1);
    autoencoder_open(&encoder, path, AUTOENCODER_AVERAGED, 6, 1, 0);
    autoencoder_open(&decoder, path, AUTOENCODER_AVERAGED, 6, 0, 1);
    check(encoder.params.table.total == t.decoder_begin, "encoder and adapter alone");
    check(decoder.params.table.total == t.params.table.total - t.decoder_begin, "the decoder alone");
    check(!strcmp(encoder.fingerprint, a.fingerprint) && !strcmp(decoder.fingerprint, a.fingerprint), "fingerprints");
    size_t latents = 6 * autoencoder_latent_values(&a), values = 6 * autoencoder_image_values(&a);
    const floatX* z = autoencoder_encode(&encoder, reference.bytes, 6, 0);
    check(same_bits(z, latent_encoder_output(&reference.encoder), latents), "the latent");
    memcpy(decoder.latent, z, latents * sizeof(floatX));
    const floatX* image = autoencoder_decode(&decoder, decoder.latent, 6, 0);
    check(same_bits(image, reference.decoder.out, values), "the reconstruction");
    autoencoder_close(&a);
    autoencoder_close(&encoder);
    autoencoder_close(&decoder);
    tokenizer_free(&t);
    tokenizer_free(&reference);
    temporary_end();
}

// Images of another size than the training's: more positions, the same name and the same weights.
static void test_other_size(void) {
    static tokenizer_t t;
    static autoencoder_t a, wide;
    char path[TEMPORARY_PATH];
    temporary_begin();
    make_checkpoint(&t, "3", "0", "1", path);
    autoencoder_open(&a, path, AUTOENCODER_AVERAGED, 1, 1, 1);
    autoencoder_open_sized(&wide, path, AUTOENCODER_AVERAGED, 48, 1, 1, 1);
    check(wide.H == 48 && wide.GH == 6 && wide.GW == 6 && !strcmp(wide.fingerprint, a.fingerprint), "sizes and name");
    size_t values = autoencoder_image_values(&wide);
    uint8_t* grey = (uint8_t*)malloc_check(values, "pixels");
    memset(grey, 100, values);
    poison(&wide);
    const floatX* image = autoencoder_decode(&wide, autoencoder_encode(&wide, grey, 1, 0), 1, 0);
    int finite = 1;
    for (size_t i = 0; i < values; i++) finite &= isfinite(image[i]);
    check(finite, "every pixel is written");
    autoencoder_close(&wide);
    autoencoder_open_sized(&wide, path, AUTOENCODER_AVERAGED, -9, 1, 1, 1);
    check(wide.H == 32, "a side of the latents counts for autoencoders of LDM's kind alone");
    const floatX* z = autoencoder_encode(&wide, grey, 1, 0);
    check(same_bits(autoencoder_encode(&a, grey, 1, 0), z, autoencoder_latent_values(&a)), "the same latent");
    autoencoder_close(&wide);
    autoencoder_close(&a);
    tokenizer_free(&t);
    free(grey);
    temporary_end();
}

// Copies a file, but for the tensor `skip`, and with the first value of tensor `change` times `factor`.
static void copy_file(const char* from, const char* to, const char* skip, const char* change, double factor) {
    safetensors_t f;
    st_writer_t w;
    safetensors_open_or_die(&f, from);
    safetensors_writer_init(&w);
    for (int i = 0; i < f.n_metadata; i++) safetensors_writer_metadata(&w, f.metadata[i].key, f.metadata[i].value);
    for (int i = 0; i < f.n; i++) {
        const st_tensor_t* t = &f.tensors[i];
        if (strcmp(t->name, skip)) safetensors_writer_tensor(&w, t->name, t->dtype, t->ndim, t->shape);
    }
    safetensors_writer_begin(&w, to);
    for (int i = 0; i < f.n; i++) {
        const st_tensor_t* t = &f.tensors[i];
        if (!strcmp(t->name, skip)) continue;
        floatS* values = (floatS*)malloc_check(t->numel * sizeof(floatS), "a tensor");
        safetensors_read(t, values);
        if (!strcmp(t->name, change)) values[0] = (floatS)(values[0] * factor);
        safetensors_writer_data(&w, values, t->numel);
        free(values);
    }
    safetensors_writer_finish_or_die(&w);
    safetensors_close(&f);
}

static void read_fingerprint(char out[17], const char* path, int average) {
    static autoencoder_t a;
    autoencoder_open(&a, path, average, 1, 0, 1);
    memcpy(out, a.fingerprint, 17);
    autoencoder_close(&a);
}

static void test_export(const char* stage, st_dtype_t dtype) {
    static tokenizer_t t, reference;
    static autoencoder_t a;
    char path[TEMPORARY_PATH], exported[TEMPORARY_PATH], name[17];
    temporary_begin();
    make_checkpoint(&t, stage, "1", "1", path);
    open_reference(&reference, path, 1, "1");
    autoencoder_export(path, temporary_path(exported, "exported"), dtype);
    safetensors_t f;
    safetensors_open_or_die(&f, exported);
    check(f.n == t.params.table.n + 2, "the weights and the latent's mean and deviation, no more");
    check(safetensors_find(&f, "decoder.conv_in.weight")->dtype == dtype, "type of the weights");
    check(safetensors_find(&f, "latent.mean")->dtype == ST_F32, "type of the statistics");
    safetensors_close(&f);
    read_fingerprint(name, path, AUTOENCODER_AVERAGED);
    autoencoder_open(&a, exported, AUTOENCODER_AVERAGED, 6, 1, 1);
    check(!strcmp(a.fingerprint, name), "the same fingerprint");
    check(a.mean[0] == 1 && a.std[4] == 10 && a.info.step == 7 && a.exported, "what the file tells");
    if (dtype == ST_F32) {
        check_use(&a, &reference);
    } else {
        const floatX* z = autoencoder_encode(&a, reference.bytes, 6, 0);
        size_t latents = 6 * autoencoder_latent_values(&a), values = 6 * autoencoder_image_values(&a);
        check_error("latent", bed_error(z, latent_encoder_output(&reference.encoder), latents), ROUNDING_F16);
        check(!same_bits(z, latent_encoder_output(&reference.encoder), latents), "the weights are rounded");
        const floatX* image = autoencoder_decode(&a, z, 6, 0);
        check_error("image", bed_error(image, reference.decoder.out, values), ROUNDING_F16);
    }
    autoencoder_close(&a);
    tokenizer_free(&t);
    tokenizer_free(&reference);
    temporary_end();
}

// One bit of one value, wherever it is; raw and averaged weights; values in F16 that are not those that were exported.
static void test_fingerprint(void) {
    static tokenizer_t t;
    static const char* const changed[4] = {"ema.0.encoder.cls_token", "ema.0.encoder.blocks.1.attn.qkv.weight",
                                           "ema.0.adapter.fc2.bias", "ema.0.decoder.conv_out.bias"};
    char path[TEMPORARY_PATH], copy[TEMPORARY_PATH], name[17], other[17];
    temporary_begin();
    make_checkpoint(&t, "2", "0", "1", path);
    temporary_path(copy, "copy");
    read_fingerprint(name, path, AUTOENCODER_AVERAGED);
    check(strlen(name) == 16 && strspn(name, "0123456789abcdef") == 16, "16 digits");
    copy_file(path, copy, "", "", 1);
    read_fingerprint(other, copy, AUTOENCODER_AVERAGED);
    check(!strcmp(other, name), "the same weights");
    copy_file(path, copy, "", "encoder.cls_token", 2);
    read_fingerprint(other, copy, AUTOENCODER_AVERAGED);
    check(!strcmp(other, name), "the same averages, other raw weights");
    read_fingerprint(other, path, AUTOENCODER_RAW);
    check(strcmp(other, name), "raw weights have another name");
    for (int i = 0; i < 4; i++) {
        copy_file(path, copy, "", changed[i], 1 + ldexp(1, -22));
        read_fingerprint(other, copy, AUTOENCODER_AVERAGED);
        check(strcmp(other, name), changed[i]);
    }
    char half[TEMPORARY_PATH];
    autoencoder_export(path, temporary_path(half, "half"), ST_F16);
    copy_file(half, copy, "", "decoder.conv_out.bias", 1.01);
    read_fingerprint(other, copy, AUTOENCODER_AVERAGED);
    check(strcmp(other, name), "values in F16 that were changed");
    tokenizer_free(&t);
    temporary_end();
}

// In a child: what a user may try with the files of test_refusals.
static void use_wrong(const char* what) {
    static autoencoder_t a;
    char path[TEMPORARY_PATH], out[TEMPORARY_PATH];
    safetensors_t f;
    if (!strcmp(what, "resume")) checkpoint_open(&f, temporary_path(path, "exported"));
    if (!strcmp(what, "raw")) autoencoder_open(&a, temporary_path(path, "exported"), AUTOENCODER_RAW, 1, 1, 1);
    if (!strcmp(what, "export")) {
        autoencoder_export(temporary_path(path, "huge"), temporary_path(out, "half"), ST_F16);
    }
    autoencoder_open(&a, temporary_path(path, what), AUTOENCODER_AVERAGED, 1, 0, 1);
}

static void test_refusals(void) {
    static const char* const asked[][3] = {
        {"foreign", "foreign: not a tokenizer checkpoint", "give a file that train_tokenizer wrote"},
        {"no_tensor", "no_tensor: the tensors do not fit", "1 missing (encoder.blocks.1.attn.qkv.weight)"},
        {"no_mean", "no_mean: tensor latent.mean is missing", "the file is damaged"},
        {"resume", "exported was written by -export", "stage2.safetensors in the -out of its run"},
        {"raw", "exported was written by -export", "give the checkpoint that it was made from"},
        {"export", "huge: a value of decoder.conv_in.weight is beyond F16", "give -export_type f32"}};
    static tokenizer_t t;
    char path[TEMPORARY_PATH], exported[TEMPORARY_PATH], other[TEMPORARY_PATH];
    temporary_begin();
    make_checkpoint(&t, "2", "0", "1", path);
    autoencoder_export(path, temporary_path(exported, "exported"), ST_F32);
    copy_file(exported, temporary_path(other, "no_tensor"), "encoder.blocks.1.attn.qkv.weight", "", 1);
    copy_file(exported, temporary_path(other, "no_mean"), "latent.mean", "", 1);
    copy_file(path, temporary_path(other, "huge"), "", "ema.0.decoder.conv_in.weight", 1e9);
    st_writer_t w;
    safetensors_writer_init(&w);
    safetensors_writer_begin(&w, temporary_path(other, "foreign"));
    safetensors_writer_finish_or_die(&w);
    for (size_t i = 0; i < sizeof asked / sizeof asked[0]; i++) {
        check_message(use_wrong, asked[i][0], asked[i][1], asked[i][2]);
    }
    check(access(temporary_path(other, "half"), F_OK) != 0, "a refused export leaves no file");
    check(temporary_run_child(use_wrong, "exported") == 0, "the right file is taken");
    tokenizer_free(&t);
    temporary_end();
}

// Of low-rank pairs nothing is seen where a tokenizer is used: raw, either average, exported; and what is used is what
// the training's own forward gives without dropout, but for the rounding of the merged weights.
static void test_lora(void) {
    static tokenizer_t t, reference;
    static autoencoder_t a;
    static const autoencoder_weights_t weights[4] = {AUTOENCODER_RAW, AUTOENCODER_EMA0, AUTOENCODER_EMA1,
                                                     AUTOENCODER_AVERAGED};
    static const char* const said[4] = {"raw", "averaged, EMA 0.05", "averaged, EMA 0.1", "averaged, EMA 0.1"};
    char path[TEMPORARY_PATH], exported[TEMPORARY_PATH], name[17];
    temporary_begin();
    make_checkpoint_lora(&t, "2", "3", "1", "1", path);
    for (int i = 0; i < 4; i++) {
        open_reference(&reference, path, i < 3 ? i - 1 : 1, "1");
        autoencoder_open(&a, path, weights[i], 6, 1, 1);
        check(!strcmp(a.weights, said[i]), said[i]);
        check_use(&a, &reference);
        memcpy(t.x, reference.x, bed_image_values(&t) * sizeof(floatX));
        if (i) replicas_exchange_ema(&t.params, i < 3 ? i - 1 : 1, NULL, 0);
        const floatX* image = tokenizer_reconstruct(&t, 0);
        check_error("as trained", bed_error(image, reference.decoder.out, bed_image_values(&t)), OTHER_BATCH);
        if (i) replicas_exchange_ema(&t.params, i < 3 ? i - 1 : 1, NULL, 0);
        snprintf(name, sizeof name, "%s", a.fingerprint);
        autoencoder_close(&a);
        tokenizer_free(&reference);
    }
    autoencoder_export(path, temporary_path(exported, "exported"), ST_F32);
    safetensors_t f;
    safetensors_open_or_die(&f, exported);
    check(f.n == t.params.table.n - 16 + 2, "no pairs in the exported file");
    safetensors_close(&f);
    autoencoder_open(&a, exported, AUTOENCODER_EMA1, 6, 1, 1);
    check(!strcmp(a.fingerprint, name), "the same fingerprint");
    autoencoder_close(&a);
    tokenizer_free(&t);
    temporary_end();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    if (test_case("stage 1, average 0")) { test_use("1", "0", "1", 1); test_end_case(); }
    if (test_case("stage 2, average 0")) { test_use("2", "0", "1", 1); test_end_case(); }
    if (test_case("stage 2, average 1, not folded")) { test_use("2", "1", "0", 1); test_end_case(); }
    if (test_case("stage 2, raw")) { test_use("2", "0", "1", 0); test_end_case(); }
    if (test_case("stage 3, average 1")) { test_use("3", "1", "1", 1); test_end_case(); }
    if (test_case("fewer images than planned")) { test_part(); test_end_case(); }
    if (test_case("images of other sizes")) { test_sizes("0"); test_end_case(); }
    if (test_case("images of other sizes, folded")) { test_sizes("1"); test_end_case(); }
    if (test_case("either half alone")) { test_halves(); test_end_case(); }
    if (test_case("another size of images")) { test_other_size(); test_end_case(); }
    made_decoder = "large"; // its position table is resampled, to another grid where the images are larger
    if (test_case("larger decoder, stage 1, average 0")) { test_use("1", "0", "1", 1); test_end_case(); }
    if (test_case("larger decoder, fewer images than planned")) { test_part(); test_end_case(); }
    if (test_case("larger decoder, either half alone")) { test_halves(); test_end_case(); }
    if (test_case("larger decoder, another size of images")) { test_other_size(); test_end_case(); }
    if (test_case("larger decoder, exported F32, stage 2")) { test_export("2", ST_F32); test_end_case(); }
    if (test_case("larger decoder, exported F16, stage 3")) { test_export("3", ST_F16); test_end_case(); }
    made_decoder = "ldm";
    if (test_case("exported F32, stage 2")) { test_export("2", ST_F32); test_end_case(); }
    if (test_case("exported F32, stage 3")) { test_export("3", ST_F32); test_end_case(); }
    if (test_case("exported F16, stage 2")) { test_export("2", ST_F16); test_end_case(); }
    if (test_case("low-rank pairs are merged")) { test_lora(); test_end_case(); }
    if (test_case("VA-VAE")) { test_baseline("-preset mini_vavae -encoder cnn -teacher tiny"); test_end_case(); }
    if (test_case("VA-VAE with a ViT")) { // which the training does not fold
        test_baseline("-preset mini_vavae_vit -teacher tiny -fold 0");
        test_end_case();
    }
    if (test_case("fingerprint")) { test_fingerprint(); test_end_case(); }
    if (test_case("refusals")) { test_refusals(); test_end_case(); }
    return test_finish();
}
