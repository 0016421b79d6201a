// autoencoder.h: a trained tokenizer in use: image -> latent -> image, with nothing of its training: no gradients, no
// discriminator, no LPIPS.
//
//     autoencoder_open(&a, "stage3.safetensors", AUTOENCODER_AVERAGED, batch, 1, 1);
//     const floatX* z = autoencoder_encode(&a, pixels, n, s);     // (n, H, W, 3) bytes -> (n, GH, GW, z)
//     const floatX* image = autoencoder_decode(&a, z, n, s);      // -> (n, H, W, 3), about [-1, 1]
//     autoencoder_close(&a);
//
// Images of another size than the training's, square or not: autoencoder_resize.
//
// It opens a checkpoint of train_tokenizer, of which it takes the weights that ship (-ema: an average where the stage
// averaged a tensor, or those as trained), or the raw ones, or those of the other average; or an exported file.
// Low-rank pairs (common/models/lora.h) are merged into the weights while they are read. A model of latents normalises
// by (z - mean) / std.
//
// And it opens the autoencoders of others as downloaded, VA-VAE and those of LDM (common/models/ldm_file.h). Their
// files keep no latent statistics.
//
// What encodes gives the latent itself, or mean mu and log-variance of a Gaussian (common/models/latent_encoder.h).
// Then the latent is mu, or with autoencoder_sample a draw mu + sigma eps, whose eps depends on (seed, draw, number of
// the image) alone.
//
// Fingerprint. Latents on a disk, and a model trained on them, belong to the weights that made them. All weights with
// their names, in the order of the table and as fp32, give a 64-bit number (common/program/hash.h, over 32-bit words).
// Each step is a bijection of h, so a change of one value always changes the result. The whole tokenizer is hashed,
// also where only one half of it is used, so encode and decode tell the same name.
//
// Exported file (-export of train_tokenizer): of encoder, adapter and decoder only the weights that ship; latent.mean,
// .std; metadata format, stage, step, images, config as in a checkpoint, "weights": "averaged" or "raw", "fingerprint".
// Weights in F16 are others and would have another name; yet their latents are the same up to rounding, and a model of
// latents must find its decoder. So the file names the fingerprint before rounding, together with that of what it
// holds ("fingerprint_stored"): the first counts as long as the second is true.
//
// Look next at common/training/tokenizer_checkpoint.h, whose files it reads, and at eval.cu, a user.
#pragma once
// defines: plan_t, plan_floatX, plan_uint8, plan_mark, plan_rewind, plan_allocate, plan_free
#include "common/models/plan.h"
// defines: params_t, params_allocate, params_keep_frozen, params_set, params_free
#include "common/models/params.h"
// defines: latent_encoder_t, latent_encoder_register, latent_encoder_plan_forward, latent_encoder_take, ..._forward
#include "common/models/latent_encoder.h"
// defines: decoder_t, decoder_register, decoder_plan_forward, decoder_forward
#include "common/models/decoder.h"
// defines: ldm_file_t, ldm_file_read, ldm_rules
#include "common/models/ldm_file.h"
// defines: autoencoder_weights_t, checkpoint_info_t, checkpoint_is_ours, checkpoint_read_info, _read_shipped, ...
#include "common/training/tokenizer_checkpoint.h"
// defines: options_t, options_read, options_tokenizer
#include "common/training/tokenizer_options.h"
// defines: tensor_file_open_or_die
#include "common/files/tensor_file.h"
// defines: HASH_START, hash_string, hash_text, hash_word
#include "common/program/hash.h"

// The memory plans hold addresses of this struct's members: it must stay where it is once it is open.
typedef struct {
    const char* path;       // as it was opened
    checkpoint_info_t info; // stage, step, images of the training; config is NULL
    char* data;             // -data of the training; "" where nobody knows
    int exported;           // the file is an exported one
    int ldm;                // the file is another's, in LDM's layout
    int others;             // ldm: tensors in the file that are not the autoencoder's
    char weights[40];       // which weights these are, for protocols
    char fingerprint[17];   // 16 hexadecimal digits
    int statistics;         // the file tells mean and std
    floatS *mean, *std;     // (z) of each latent channel, from the file; else 0 and 1
    int batch, H, W;        // the most images a call takes; their size
    int GH, GW, z;          // size of the latent, channels
    int encode, decode;     // which halves are there
    params_t params;        // of those halves
    latent_encoder_t encoder;
    decoder_t decoder;
    plan_t plan, work;      // what outlives a call; what encode and decode share
    plan_t folded;          // the encoder's folded weights, the same for all sizes of images
    uint8_t* bytes;         // (batch, H, W, 3) images on the device
    floatX* x;              // (batch, H, W, 3) in [-1, 1]
    floatX* latent;         // (batch, GH, GW, z) what encode leaves; where there is no encode, room for the caller's
} autoencoder_t;

static inline size_t autoencoder_image_values(const autoencoder_t* a) { return (size_t)a->H * a->W * 3; }
static inline size_t autoencoder_latent_values(const autoencoder_t* a) { return (size_t)a->GH * a->GW * a->z; }

// ---------------------------------------------------------------------------------------------------------------------
// The weights in a file

static inline uint64_t fingerprint_tensor(uint64_t h, const char* name,
                                          const floatS* values, // (n)
                                          size_t n) {
    h = hash_string(h, name);
    for (size_t i = 0; i < n; i++) {
        float value = (float)values[i];
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        h = hash_word(h, bits);
    }
    return h;
}

// host = the weights of `p`, which stand behind `prefix`; in a file of ours, where it is "", those that `ema` names.
static inline int autoencoder_read(const safetensors_t* f, const char* prefix, int ema, const param_t* p,
                                   floatS* host, // (count)
                                   checkpoint_mismatch_t* mismatch) {
    char name[400];
    if (!prefix[0]) return checkpoint_read_shipped(f, ema, p, host, mismatch);
    snprintf(name, sizeof name, "%s%s", prefix, p->name);
    return checkpoint_read_values(f, name, p, host, mismatch);
}

// Registers the tensors of one half or both, in the order of the tokenizer's table. Offsets are those of the last call.
static inline void autoencoder_register(autoencoder_t* a, param_table_t* table, int encode, int decode) {
    if (encode) latent_encoder_register(&a->encoder, table, "");
    if (decode) decoder_register(&a->decoder, table, "");
}

static inline void autoencoder_set_size(autoencoder_t* a, int size, int factor, int batch) {
    a->batch = batch;
    a->H = a->W = size;
    a->GH = a->GW = size / factor;
    a->z = a->decoder.config.z_channels;
}

// Takes over the models that a file of ours describes. size 0: that of the training's images. Returns the number of the
// average that is taken, or -1 for raw weights.
static inline int autoencoder_configure(autoencoder_t* a, const checkpoint_info_t* info, const char* path,
                                        autoencoder_weights_t weights, int size, int batch) {
    options_t o;
    memset(&o, 0, sizeof o);
    options_read(&o, info->config, path);
    o.stage = o.chunk = 1;
    o.batch = batch;
    if (size > 0) o.image_size = size;
    tokenizer_config_t c = options_tokenizer(&o, 1);
    a->info = *info;
    a->info.config = NULL; // it ends with the open file
    a->data = strdup(o.data);
    if (!a->data) fatal("no memory for the name of a data set");
    a->decoder.config = c.decoder;
    a->decoder.tokens.vit.config = c.decoder_vit;
    autoencoder_set_size(a, c.H, tokenizer_factor(&c), batch);
    tokenizer_configure_encoder(&a->encoder, &c);
    a->encoder.vit.fold = c.fold && !c.cnn;
    int ema = o.ema;
    if (weights == AUTOENCODER_RAW) ema = -1;
    if (weights == AUTOENCODER_EMA0 || weights == AUTOENCODER_EMA1) ema = weights == AUTOENCODER_EMA1;
    if (a->exported && ema != o.ema) {
        fatal("%s was written by -export and holds one set of weights, those of -ema %d; for others give the "
              "checkpoint that it was made from", path, o.ema);
    }
    if (ema < 0) snprintf(a->weights, sizeof a->weights, "raw");
    else snprintf(a->weights, sizeof a->weights, "averaged, EMA %g", ema ? o.ema1 : o.ema0);
    return ema;
}

// The same for an autoencoder of LDM's kind. size 0: LDM_IMAGE_SIZE; -n: that of n x n latents.
static inline void autoencoder_configure_ldm(autoencoder_t* a, const ldm_file_t* l, const char* path, int size,
                                             int batch) {
    a->ldm = 1;
    snprintf(a->weights, sizeof a->weights, "as published");
    a->data = strdup("");
    if (!a->data) fatal("no memory for the name of a data set");
    latent_encoder_configure_cnn(&a->encoder, &l->encoder);
    a->decoder.config = l->decoder;
    int factor = 1 << (l->encoder.levels - 1);
    if (!size) size = LDM_IMAGE_SIZE;
    if (size < 0) size = -size * factor;
    if (size % factor) {
        fatal("%s: images of %d x %d do not suit an autoencoder whose latent is %d times smaller; height and width "
              "have to be multiples of %d", path, size, size, factor, factor);
    }
    autoencoder_set_size(a, size, factor, batch);
}

// ---------------------------------------------------------------------------------------------------------------------
// Opening

static inline void autoencoder_plan(autoencoder_t* a) {
    plan_t *plan = &a->plan, *work = &a->work;
    size_t image = autoencoder_image_values(a);
    plan_again(plan), plan_again(work), plan_again(&a->folded);
    if (a->encode) {
        plan_uint8(plan, &a->bytes, a->batch * image, "images (bytes)");
        plan_floatX(plan, &a->x, a->batch * image, "images");
        size_t mark = plan_mark(work);
        latent_encoder_plan_forward(&a->encoder, plan, work, a->batch, a->H, a->W, a->H / a->GH);
        vit_plan_folded(&a->encoder.vit, &a->folded);
        plan_rewind(work, mark);
    }
    plan_floatX(plan, &a->latent, a->encode ? 0 : a->batch * autoencoder_latent_values(a), "latents");
    if (a->decode) {
        decoder_plan_forward(&a->decoder, plan, work, a->batch, a->GH, a->GW);
    }
}

// Sets the weights of the halves that are there, and hashes those of all.
static inline uint64_t autoencoder_load(autoencoder_t* a, const safetensors_t* f, const char* path, const char* prefix,
                                        int ema, const param_table_t* all) {
    checkpoint_mismatch_t mismatch = {0, 0, "", ""};
    uint64_t h = HASH_START;
    size_t longest = params_longest(all);
    floatS* host = (floatS*)malloc_check(2 * longest * sizeof(floatS), "a checkpoint's tensor");
    for (int i = 0; i < all->n; i++) {
        const param_t* p = param_find(&a->params.table, all->items[i].name);
        if (!autoencoder_read(f, prefix, ema, &all->items[i], host, &mismatch)) continue;
        h = fingerprint_tensor(h, all->items[i].name, host, all->items[i].count);
        if (!p) continue;
        params_set(&a->params, PARAM_VALUE, p, host, host + longest);
    }
    free(host);
    checkpoint_report(path, &mismatch);
    return h;
}

// What the file calls its latent space, when it holds the rounded weights that it was made with; else what it is.
static inline void autoencoder_name(autoencoder_t* a, const safetensors_t* f, uint64_t h) {
    const char* stored = safetensors_metadata(f, "fingerprint_stored");
    const char* original = safetensors_metadata(f, "fingerprint");
    hash_text(a->fingerprint, h);
    if (!stored || !original || strlen(original) != 16 || strcmp(stored, a->fingerprint)) return;
    snprintf(a->fingerprint, sizeof a->fingerprint, "%s", original);
}

// Takes memory for the size that is set, unless there is enough, and sets every pointer.
static inline void autoencoder_place(autoencoder_t* a) {
    plan_allocate(&a->plan, "activations");
    plan_allocate(&a->work, "working memory");
    plan_allocate(&a->folded, "the encoder's folded weights");
    if (a->encode) a->latent = latent_encoder_output(&a->encoder);
}

// Allocates what the configured models need. `all` receives the tensors of both halves.
static inline void autoencoder_allocate(autoencoder_t* a, param_table_t* all, int encode, int decode) {
    a->encode = encode;
    a->decode = decode;
    autoencoder_register(a, all, 1, 1);
    autoencoder_register(a, &a->params.table, encode, decode);
    autoencoder_plan(a);
    params_allocate(&a->params, a->params.table.total, 0, "the tokenizer's parameters");
    autoencoder_place(a);
    // the fold reads full-precision weights: where the operations read others, both are kept until then
    if (encode && a->encoder.vit.fold) params_keep_frozen(&a->params, "the tokenizer in full precision");
    a->mean = (floatS*)malloc_check(2 * a->z * sizeof(floatS), "latent statistics");
    a->std = a->mean + a->z;
    for (int c = 0; c < a->z; c++) a->mean[c] = 0;
    for (int c = 0; c < a->z; c++) a->std[c] = 1;
}

// What an open file of ours holds.
static inline void autoencoder_open_ours(autoencoder_t* a, const safetensors_t* f, const char* path,
                                         autoencoder_weights_t weights, int size, int batch, int encode, int decode) {
    checkpoint_info_t info = checkpoint_read_info(f, path);
    a->exported = checkpoint_is_exported(f);
    int ema = autoencoder_configure(a, &info, path, weights, size, batch);
    param_table_t all = {NULL, 0, 0, 0};
    autoencoder_allocate(a, &all, encode, decode);
    autoencoder_name(a, f, autoencoder_load(a, f, path, "", ema, &all));
    if (encode) vit_fold(&a->encoder.vit, &a->params);
    device_free(a->params.frozen);
    a->params.frozen = NULL;
    a->statistics = 1;
    checkpoint_read_vector(f, path, "latent.mean", a->mean, a->z);
    checkpoint_read_vector(f, path, "latent.std", a->std, a->z);
    free(all.items);
}

// What an open file in LDM's layout holds.
static inline void autoencoder_open_ldm(autoencoder_t* a, const safetensors_t* f, const char* path, const ldm_file_t* l,
                                        int size, int batch, int encode, int decode) {
    autoencoder_configure_ldm(a, l, path, size, batch);
    param_table_t all = {NULL, 0, 0, 0};
    autoencoder_register(a, &all, 1, 1);
    a->others = weights_check_file(f, &all, l->prefix, NULL, ldm_rules, ": it is an autoencoder in LDM's layout");
    free(all.items);
    memset(&all, 0, sizeof all);
    autoencoder_allocate(a, &all, encode, decode);
    hash_text(a->fingerprint, autoencoder_load(a, f, path, l->prefix, -1, &all));
    free(all.items);
}

// Opens the file. 1: it is ours; 0: it has LDM's layout, as *ldm tells. Ends with a message when it is neither.
static inline int autoencoder_open_file(autoencoder_t* a, const char* path, safetensors_t* file, ldm_file_t* ldm) {
    memset(a, 0, sizeof *a);
    a->path = path;
    tensor_file_open_or_die(file, path);
    if (checkpoint_is_ours(file)) return 1;
    if (ldm_file_read(ldm, file)) return 0;
    fatal("%s: not a tokenizer checkpoint, and no autoencoder in LDM's layout either (VA-VAE): a tensor "
          "encoder.down.0.block.0.conv1.weight is missing, also behind state_dict. and model.; give a file that "
          "train_tokenizer wrote, or one with LDM's names", path);
}

// What a tokenizer's file describes, for up to `batch` images a call: models, sizes, and the memory that they will
// take, of which this takes none.
void autoencoder_describe(autoencoder_t* a, const char* path, autoencoder_weights_t weights, int batch, int encode,
                          int decode) {
    safetensors_t file;
    ldm_file_t ldm;
    if (autoencoder_open_file(a, path, &file, &ldm)) {
        checkpoint_info_t info = checkpoint_read_info(&file, path);
        a->exported = checkpoint_is_exported(&file);
        autoencoder_configure(a, &info, path, weights, 0, batch);
    } else {
        autoencoder_configure_ldm(a, &ldm, path, 0, batch);
    }
    safetensors_close(&file);
    a->encode = encode;
    a->decode = decode;
    autoencoder_register(a, &a->params.table, encode, decode);
    autoencoder_plan(a);
}

// Opens a tokenizer's file for up to `batch` images a call. Others' files hold one set of weights. `size`: height and
// width of the images, 0: those it was trained on; -n: those that make latents of n x n, for an autoencoder of LDM's
// kind, which takes any. Ends with a message when the file does not serve.
void autoencoder_open_sized(autoencoder_t* a, const char* path, autoencoder_weights_t weights, int size, int batch,
                            int encode, int decode) {
    safetensors_t file;
    ldm_file_t ldm;
    if (autoencoder_open_file(a, path, &file, &ldm)) {
        autoencoder_open_ours(a, &file, path, weights, size, batch, encode, decode);
    } else {
        autoencoder_open_ldm(a, &file, path, &ldm, size, batch, encode, decode);
    }
    safetensors_close(&file);
}

void autoencoder_open(autoencoder_t* a, const char* path, autoencoder_weights_t weights, int batch, int encode,
                      int decode) {
    autoencoder_open_sized(a, path, weights, 0, batch, encode, decode);
}

// Pixels of a latent position, each way: what height and width are multiples of.
static inline int autoencoder_factor(const autoencoder_t* a) { return 1 << (a->decoder.config.levels - 1); }

// Bytes of what the plans hold.
static inline size_t autoencoder_plan_bytes(const autoencoder_t* a) {
    return plan_bytes(&a->plan) + plan_bytes(&a->work) + plan_bytes(&a->folded);
}

// The first half of a turn to images of H x W, any multiples of that; the second is autoencoder_place. Returns the bytes
// that such images take.
size_t autoencoder_plan_size(autoencoder_t* a, int H, int W) {
    int factor = autoencoder_factor(a);
    autoencoder_check_size(&a->decoder.config, H, W);
    a->H = H;
    a->W = W;
    a->GH = H / factor;
    a->GW = W / factor;
    autoencoder_plan(a);
    return autoencoder_plan_bytes(a);
}

// Turns to images of H x W.
void autoencoder_resize(autoencoder_t* a, int H, int W) {
    if (a->H == H && a->W == W) return;
    autoencoder_plan_size(a, H, W);
    autoencoder_place(a);
}

void autoencoder_close(autoencoder_t* a) {
    params_free(&a->params);
    plan_free(&a->plan);
    plan_free(&a->work);
    plan_free(&a->folded);
    free(a->mean);
    free(a->data);
    memset(a, 0, sizeof *a);
}

// ---------------------------------------------------------------------------------------------------------------------
// Use

// Images on the host -> a->x. The networks take n images from here on.
static inline void autoencoder_take(autoencoder_t* a,
                                    const uint8_t* pixels, // (n, H, W, 3), or NULL: a->bytes are set
                                    int n, stream_t s) {
    assert(a->encode && n > 0 && n <= a->batch);
    size_t values = n * autoencoder_image_values(a);
    if (pixels) copy_to_device(a->bytes, pixels, values, s);
    image_from_bytes(a->x, a->bytes, values, s);
    latent_encoder_take(&a->encoder, n);
}

// Images on the host -> latents: returns a->latent (n, GH, GW, z), which the next call overwrites. Of a distribution
// the mean.
const floatX* autoencoder_encode(autoencoder_t* a,
                                 const uint8_t* pixels, // (n, H, W, 3), or NULL: a->bytes are set
                                 int n, stream_t s) {
    autoencoder_take(a, pixels, n, s);
    latent_encoder_forward(&a->encoder, &a->params, a->x, 0, s);
    return a->latent;
}

// The same, but of a distribution draw number `draw` of each image's own, in whatever batches they come. An encoder
// that has no distribution gives its latent.
const floatX* autoencoder_sample(autoencoder_t* a,
                                 const uint8_t* pixels, // (n, H, W, 3), or NULL: a->bytes are set
                                 int n, uint64_t seed, uint64_t draw,
                                 const uint64_t* images, // (n) their numbers
                                 stream_t s) {
    if (!a->encoder.gaussian) return autoencoder_encode(a, pixels, n, s);
    autoencoder_take(a, pixels, n, s);
    size_t latent = autoencoder_latent_values(a), values = n * latent;
    floatS* noise = (floatS*)malloc_check(values * sizeof(floatS), "noise of the latents");
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < values; i++) {
        noise[i] = (floatS)random_normal(seed, RANDOM_POSTERIOR, draw, images[i / latent] * latent + i % latent);
    }
    stream_wait(s); // the last call's noise has been read
    copy_to_device(a->encoder.noise, noise, values * sizeof(floatS), 0);
    free(noise);
    latent_encoder_forward(&a->encoder, &a->params, a->x, 1, s);
    return a->latent;
}

// Latents as autoencoder_encode gives them, on the device -> images: returns (n, H, W, 3), about [-1, 1] and not
// clamped, which the next call overwrites.
const floatX* autoencoder_decode(autoencoder_t* a,
                                 const floatX* latent, // (n, GH, GW, z)
                                 int n, stream_t s) {
    assert(a->decode && n > 0 && n <= a->batch);
    decoder_set_batch(&a->decoder, n);
    decoder_forward(&a->decoder, &a->params, latent, s);
    return a->decoder.out;
}

// The first weight that is no number, as " (its weight NAME holds one)", or what else may be wrong; for messages.
static inline const char* params_blame(const params_t* p, char* text, size_t size) {
    snprintf(text, size, " (its weights are all finite: other settings, or another file, may be too large for it)");
    for (int i = 0; i < p->table.n; i++) {
        const param_t* t = &p->table.items[i];
        size_t at = device_first_not_finite(params_at(p, t->offset), NULL, t->stored);
        if (at == t->stored) continue;
        snprintf(text, size, " (element %zu of its weight %s is one: the file is damaged, or of a training that "
                 "diverged)", at, t->name);
        break;
    }
    return text;
}

// Ends the program: what the tokenizer has made of an image, its "latent" or "reconstruction", is not finite.
__attribute__((noreturn)) static inline void autoencoder_not_finite(const autoencoder_t* a, const char* what,
                                                                    const char* image) {
    char blame[300];
    fatal("tokenizer %s: the %s of %s holds a NaN or an infinity%s; give another tokenizer", a->path, what, image,
          params_blame(&a->params, blame, sizeof blame));
}

// ---------------------------------------------------------------------------------------------------------------------
// Export

// Both hashes of what is to be exported: before and after rounding to `dtype`. Values beyond F16 end the program.
static inline void autoencoder_hash_export(const safetensors_t* f, const char* path, int ema, const param_table_t* all,
                                           st_dtype_t dtype, floatS* host, uint64_t h[2]) {
    checkpoint_mismatch_t mismatch = {0, 0, "", ""};
    h[0] = h[1] = HASH_START;
    for (int i = 0; i < all->n; i++) {
        const param_t* p = &all->items[i];
        if (!autoencoder_read(f, "", ema, p, host, &mismatch)) continue;
        h[0] = fingerprint_tensor(h[0], p->name, host, p->count);
        for (size_t j = 0; dtype == ST_F16 && j < p->count; j++) {
            unsigned char half[2];
            uint16_t bits;
            st_store(ST_F16, (double)host[j], half);
            memcpy(&bits, half, 2);
            host[j] = st_from_f16(bits);
            if (!isfinite(host[j])) fatal("%s: a value of %s is beyond F16; give -export_type f32", path, p->name);
        }
        h[1] = fingerprint_tensor(h[1], p->name, host, p->count);
    }
    checkpoint_report(path, &mismatch);
}

static inline void autoencoder_declare(st_writer_t* w, const checkpoint_info_t* info, const param_table_t* all,
                                       st_dtype_t dtype, const uint64_t h[2], size_t z, int averaged) {
    char text[17];
    safetensors_writer_metadata(w, "format", CHECKPOINT_FORMAT);
    checkpoint_number(w, "stage", info->stage);
    checkpoint_number(w, "step", info->step);
    checkpoint_number(w, "images", info->images);
    safetensors_writer_metadata(w, "config", info->config);
    safetensors_writer_metadata(w, "weights", averaged ? "averaged" : "raw");
    safetensors_writer_metadata(w, "fingerprint", hash_text(text, h[0]));
    safetensors_writer_metadata(w, "fingerprint_stored", hash_text(text, h[1]));
    for (int i = 0; i < all->n; i++) {
        const param_t* p = &all->items[i];
        size_t shape[4];
        for (int k = 0; k < p->ndim; k++) shape[k] = (size_t)p->shape[k];
        safetensors_writer_tensor(w, p->name, dtype, p->ndim, shape);
    }
    safetensors_writer_tensor(w, "latent.mean", ST_F32, 1, &z);
    safetensors_writer_tensor(w, "latent.std", ST_F32, 1, &z);
}

// Writes the tokenizer in a checkpoint as one file for use, weights as `dtype` (ST_F32 or ST_F16). Needs no device.
void autoencoder_export(const char* checkpoint, const char* path, st_dtype_t dtype) {
    static autoencoder_t a; // for its models, to register them
    safetensors_t file;
    checkpoint_info_t info = checkpoint_open(&file, checkpoint);
    memset(&a, 0, sizeof a);
    int ema = autoencoder_configure(&a, &info, checkpoint, AUTOENCODER_AVERAGED, 0, 1);
    param_table_t all = {NULL, 0, 0, 0};
    autoencoder_register(&a, &all, 1, 1);
    floatS* host = (floatS*)malloc_check(params_longest(&all) * sizeof(floatS), "a tensor"); // decoder.conv_in has > z
    uint64_t h[2];
    autoencoder_hash_export(&file, checkpoint, ema, &all, dtype, host, h);

    st_writer_t w;
    checkpoint_mismatch_t mismatch = {0, 0, "", ""}; // all of them fit: they have been hashed
    safetensors_writer_init(&w);
    autoencoder_declare(&w, &info, &all, dtype, h, a.z, ema >= 0);
    safetensors_writer_begin(&w, path);
    for (int i = 0; i < all.n; i++) {
        autoencoder_read(&file, "", ema, &all.items[i], host, &mismatch);
        safetensors_writer_data(&w, host, all.items[i].count);
    }
    checkpoint_read_vector(&file, checkpoint, "latent.mean", host, a.z);
    safetensors_writer_data(&w, host, a.z);
    checkpoint_read_vector(&file, checkpoint, "latent.std", host, a.z);
    safetensors_writer_data(&w, host, a.z);
    safetensors_writer_finish_or_die(&w);
    free(host);
    free(all.items);
    free(a.data);
    safetensors_close(&file);
}
