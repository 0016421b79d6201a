// pretrain.cu: makes the two pretrained networks of the miniature world.
//
//     build/cpu/pretrain                writes runs/mini/encoder.safetensors and runs/mini/vgg.safetensors
//
// No public weights come with this repository. So that the tokenizer's recipe can be run, seen and tested anywhere, two
// small classifiers are trained here on the miniature data set: a ViT, the stand-in for DINOv2, and a narrow VGG, the
// stand-in for the VGG16 inside LPIPS. Both are written under the public names (timm's; those of the lpips package),
// and are read by the code that reads the real ones.
//
//     ViT   patch tokens -> mean -> linear -> cross-entropy        (the patch tokens are what the adapter will see)
//           of two views of each image, cropped alike and differently coloured (view_make), whose tokens shall agree:
//           + agreement * mean over tokens of (1 - cos(first, second))
//     VGG   maximum of the last slice -> mean over positions -> linear -> cross-entropy
//     -recipe classes   the ViT learns as the VGG does, from labels alone: it may know colours, as SigLIP 2 does
//     -recipe pixels    the stand-in for MAE: 60% of the patches are grey, and each token tells the pixels of its patch
//           through a linear head; mean squared error, of all patches
//     AdamW (0.9, 0.999), learning rate with a warm-up and a cosine decay to zero, mirrored images
//
// The agreement makes the ViT forget colour, as DINOv2's training does, which asks a student to say of one jittered
// view what a teacher says of another. It is small: a large one is met at the start by tokens that are all the same.
// The LPIPS heads are constants here: there is no human judgement to fit them to, as the real ones were.
// A file that exists is kept. Look next at common/models/vit.h and common/models/lpips.h; train_tokenizer.cu uses the
// results.
#include <unistd.h>

// defines: cli_t, cli_flag_t, cli_parse
#include "common/program/cli.h"
// defines: dataset_t, dataset_open
#include "common/data/dataset.h"
// defines: smaller, larger
#include "common/data/shapes.h"
// defines: dataloader_t, dataloader_next
#include "common/data/dataloader.h"
// defines: vit_t, vit_forward, vit_backward
#include "common/models/vit.h"
// defines: lpips_t, vgg_forward, vgg_backward
#include "common/models/lpips.h"
// defines: weights_save
#include "common/models/weights.h"
// defines: make_folder
#include "common/files/folder.h"
// defines: clock_seconds, clock_duration
#include "common/program/clock.h"

#define WEIGHT_DECAY 0.02
#define WARM_UP 0.1            // part of the steps
#define LPIPS_HEAD 0.1         // about the mean of the published heads
#define MASKED 0.6f            // part of the patches that -recipe pixels hides
#define ACCURACY_IMAGES 2048   // most held-out images of the reported accuracy

typedef struct {
    const char *data, *out, *encoder, *vgg_channels;
    int batch, vit_steps, vgg_steps, image_size, factor, workers, recipe;
    double vit_lr, vgg_lr, agreement;
    size_t seed;
} options_t;

typedef enum { NETWORK_VIT, NETWORK_VGG } network_t;
typedef enum { RECIPE_VIEWS, RECIPE_CLASSES, RECIPE_PIXELS } recipe_t; // -recipe; the VGG learns classes

// One of the two networks with a linear head, on the mean of its features or on each of them.
typedef struct {
    network_t network;
    vit_t vit;
    lpips_t lpips;              // its vgg is the network; its heads go into the file
    vgg_acts_t acts;
    params_t params;
    plan_t plan;
    recipe_t recipe;
    int B, size, positions, channels;
    int rows, outputs;          // of the head: images, classes; or tokens, numbers of a patch
    int patch;                  // pixels of the image that become a token, each way
    int views;                  // of each image: B / views images, then the same again in other colours
    size_t head_weight, head_bias;
    uint8_t* bytes;             // (B, size, size, 3)
    uint8_t* drawn;             // (B, size, size, 3) on the host
    floatX* x;                  // (B, size, size, 3)
    floatX* mean;               // (B, channels)
    floatX* clean;              // (B, size, size, 3) unmasked
    floatX* target;             // (rows, outputs) of pixels
    floatX* out;                // (rows, outputs) of the head
    floatX* dout;               // (rows, outputs)
    floatS* loss;               // (B)
    floatX* dmean;              // (B, channels)
    floatX* dfeatures;          // (B, positions, channels)
    floatX* dagree;             // (B, positions, channels) of the agreement alone
    floatS* agreement;          // its weight
    int* labels;                // (B)
    floatS* host;               // (rows, outputs), or (B) losses, on the host
    stream_t stream;
} classifier_t;

static void classifier_create(classifier_t* c, network_t network, const options_t* o, int classes, stream_t s) {
    memset(c, 0, sizeof *c);
    c->stream = s;
    c->network = network;
    c->B = o->batch;
    c->size = o->image_size;
    c->recipe = network == NETWORK_VIT ? (recipe_t)o->recipe : RECIPE_CLASSES;
    c->views = c->recipe == RECIPE_VIEWS ? 2 : 1;
    c->patch = o->factor;
    c->outputs = c->recipe == RECIPE_PIXELS ? 3 * c->patch * c->patch : classes;
    param_table_t* table = &c->params.table;
    if (network == NETWORK_VIT) {
        c->vit.config = *vit_config_find(o->encoder);
        vit_register(&c->vit, table, "");
        c->channels = c->vit.config.dim;
    } else {
        c->lpips.config = vgg16_config();
        c->lpips.config.slices = cli_integers("vgg_channels", o->vgg_channels, c->lpips.config.channels, VGG_SLICES);
        lpips_register(&c->lpips, table, "");
        c->channels = c->lpips.config.channels[c->lpips.config.slices - 1];
    }
    c->head_weight = param_matrix(table, "", "head.weight", c->outputs, c->channels, init_normal(0, 0.02));
    c->head_bias = param_vector(table, "", "head.bias", c->outputs, init_constant(0));
    params_allocate(&c->params, 0, 0, "parameters");
    params_init(&c->params, o->seed);

    plan_t* plan = &c->plan;
    int B = c->B, size = c->size;
    if (network == NETWORK_VIT) {
        vit_plan(&c->vit, plan, B, size, size, o->factor, 1);
        vit_plan_work(&c->vit, plan);
        c->positions = c->vit.GH * c->vit.GW;
    } else {
        int side = size >> c->lpips.config.slices;
        vgg_plan(&c->lpips.vgg, &c->acts, plan, B, size, size, VGG_KEEP_ALL);
        vgg_plan_work(&c->lpips.vgg, plan, B, size, size);
        c->positions = side * side;
    }
    c->rows = c->recipe == RECIPE_PIXELS ? B * c->positions : B;
    size_t outputs = (size_t)c->rows * c->outputs;
    plan_uint8(plan, &c->bytes, (size_t)B * size * size * 3, "images (bytes)");
    plan_floatX(plan, &c->x, (size_t)B * size * size * 3, "images");
    plan_floatX(plan, &c->mean, (size_t)B * c->channels, "mean");
    plan_floatX(plan, &c->clean, (size_t)B * size * size * 3, "unmasked images");
    plan_floatX(plan, &c->target, outputs, "patches");
    plan_floatX(plan, &c->out, outputs, "head");
    plan_floatX(plan, &c->dout, outputs, "d head");
    plan_floatS(plan, &c->loss, B, "loss");
    plan_floatX(plan, &c->dmean, (size_t)B * c->channels, "d mean");
    plan_floatX(plan, &c->dfeatures, (size_t)B * c->positions * c->channels, "d features");
    plan_floatX(plan, &c->dagree, (size_t)B * c->positions * c->channels, "d agreement");
    plan_floatS(plan, &c->agreement, 1, "agreement");
    plan_int(plan, &c->labels, B, "labels");
    plan_allocate(plan, "activations");
    c->host = (floatS*)malloc_check((outputs + B) * sizeof(floatS), "the head's output");
    c->drawn = (uint8_t*)malloc_check((size_t)B * size * size * 3, "views");
    floatS agreement = (floatS)o->agreement;
    copy_to_device(c->agreement, &agreement, sizeof agreement, s);
    stream_wait(s);
}

static void classifier_free(classifier_t* c) {
    params_free(&c->params);
    plan_free(&c->plan);
    free(c->host);
    free(c->drawn);
}

// A view of an image (all size x size x 3): a square part of it, at least 0.85 of its side, brought to the full
// side; then other colours. With m = (R + G + B) / 3, the brightness, a pixel's colour is m and its place in the plane
// across the grey axis; the plane is mapped by a random 2 x 2 matrix (hues turn, part and mirror, saturation grows and
// shrinks), and m is scaled. `where` draws the part, `colours` the matrix, of normal deviates.
static void view_make(uint8_t* out, const uint8_t* image, int size, philox4_t where, philox4_t colours) {
    float side = size * (0.85f + 0.15f * uniform_from_bits(where.v[0])), scale = side / size;
    float top = (size - side) * uniform_from_bits(where.v[1]), left = (size - side) * uniform_from_bits(where.v[2]);
    float gain = 0.8f + 0.4f * uniform_from_bits(where.v[3]);
    normal4_t m = normal4_from_bits(colours);
    for (int p = 0; p < size * size; p++) {
        float v = smaller(larger(top + (p / size + 0.5f) * scale - 0.5f, 0), size - 1);
        float u = smaller(larger(left + (p % size + 0.5f) * scale - 0.5f, 0), size - 1);
        int row = (int)v, column = (int)u, down = row + 1 < size, right = column + 1 < size;
        float fv = v - row, fu = u - column, rgb[3];
        const uint8_t* at = image + ((size_t)row * size + column) * 3;
        for (int k = 0; k < 3; k++, at++) {
            const uint8_t* below = at + down * size * 3;
            rgb[k] = (1 - fv) * ((1 - fu) * at[0] + fu * at[right * 3]) +
                     fv * ((1 - fu) * below[0] + fu * below[right * 3]);
        }
        float grey = (rgb[0] + rgb[1] + rgb[2]) / 3;
        float a = rgb[0] - grey, b = (rgb[1] - rgb[2]) * 0.577350269f; // across the grey axis
        float a2 = m.v[0] * a + m.v[1] * b, b2 = m.v[2] * a + m.v[3] * b;
        const float turned[3] = {a2, -0.5f * a2 + 0.866025404f * b2, -0.5f * a2 - 0.866025404f * b2};
        for (int k = 0; k < 3; k++) {
            out[p * 3 + k] = (uint8_t)smaller(larger(gain * grey + 0.7f * turned[k] + 0.5f, 0), 255);
        }
    }
}

// B images to what the head says of them; their `count` labels belong to each view in turn.
static void classifier_forward(classifier_t* c, const uint8_t* pixels, const int* labels, int count) {
    size_t n = (size_t)c->B * c->size * c->size * 3;
    const params_t* p = &c->params;
    const floatX* features;
    stream_t s = c->stream;
    copy_to_device(c->bytes, pixels, n, s);
    for (int b = 0; b < c->B; b += count) copy_to_device(c->labels + b, labels, count * sizeof(int), s);
    image_from_bytes(c->x, c->bytes, n, s);
    if (c->network == NETWORK_VIT) {
        vit_forward(&c->vit, p, c->x, s);
        features = c->vit.features;
    } else {
        // x is overwritten by VGG's scaled input, which its backward reads again
        floatX* scaled = c->lpips.vgg.spare[0];
        resize_bilinear_forward(scaled, c->x, c->lpips.scaling, c->B, c->size, c->size, c->size, c->size, s);
        copy_on_device(c->x, scaled, n * sizeof(floatX), s);
        vgg_forward(&c->lpips.vgg, p, &c->acts, c->x, s);
        features = c->acts.features;
    }
    mean_tokens_forward(c->mean, features, c->B, c->positions, c->channels, s);
    matmul_forward(c->out, c->recipe == RECIPE_PIXELS ? features : c->mean, params_at(p, c->head_weight),
                   params_at(p, c->head_bias), c->rows, c->channels, c->outputs, s);
}

// Hides patches of an image, each by lot.
static void patches_mask(uint8_t* image, int size, int patch, uint64_t seed, uint64_t step, int b) { // (size, size, 3)
    int columns = size / patch;
    for (int k = 0; k < columns * columns; k++) {
        if (random_uniform(seed, RANDOM_VIEWS, 2 * step, (uint64_t)b * columns * columns + k) >= MASKED) continue;
        for (int y = k / columns * patch; y < (k / columns + 1) * patch; y++) {
            memset(image + ((size_t)y * size + k % columns * patch) * 3, 128, 3 * patch);
        }
    }
}

// What the network sees of a batch: its images, or two views of each, all first ones before all second ones. A crop is
// an image's own, colours are a view's.
static void classifier_draw(classifier_t* c, const batch_t* batch, uint64_t seed) {
    int count = batch->count;
    size_t image = (size_t)c->size * c->size * 3;
    #pragma omp parallel for schedule(static)
    for (int b = 0; b < c->B; b++) {
        uint8_t* out = c->drawn + b * image;
        const uint8_t* in = batch->pixels + b % count * image;
        philox4_t where = philox(seed, RANDOM_VIEWS, 2 * batch->step, b % count);
        philox4_t colours = philox(seed, RANDOM_VIEWS, 2 * batch->step + 1, b);
        if (c->recipe == RECIPE_VIEWS) view_make(out, in, c->size, where, colours);
        else memcpy(out, in, image);
        if (c->recipe == RECIPE_PIXELS) patches_mask(out, c->size, c->patch, seed, batch->step, b);
    }
}

// Adds the gradient of the agreement: each view's tokens are the other's target, so that the sum of both halves is the
// gradient of the one distance.
static void classifier_agree(classifier_t* c, stream_t s) {
    size_t rows = (size_t)c->B / 2 * c->positions, half = rows * c->channels;
    const floatX *first = c->vit.features, *second = first + half;
    semantic_cosine_backward(c->dagree, first, second, 1, 1, rows, c->channels, s);
    semantic_cosine_backward(c->dagree + half, second, first, 1, 1, rows, c->channels, s);
    add_scaled_groups(c->dfeatures, c->dfeatures, c->dagree, c->agreement, 1, 2 * half, s);
}

// The loss of the head's output, (B), and its gradient: cross-entropy, or the mean squared error of pixels in [-1, 1].
static void classifier_loss(classifier_t* c, const batch_t* batch, stream_t s) {
    size_t n = (size_t)c->B * c->size * c->size * 3, patches = (size_t)c->positions * c->outputs;
    if (c->recipe != RECIPE_PIXELS) {
        cross_entropy(c->loss, c->dout, c->out, c->labels, 1.0 / c->B, c->B, c->outputs, s);
        return;
    }
    copy_to_device(c->bytes, batch->pixels, n, s);
    image_from_bytes(c->clean, c->bytes, n, s);
    patchify_forward(c->target, c->clean, c->B, c->size, c->size, 3, c->patch, s);
    semantic_l2_forward(c->loss, c->out, c->target, c->B, patches, s);
    semantic_l2_backward(c->dout, c->out, c->target, 1.0 / c->B, c->B, patches, s);
}

// Mean loss of a batch on the host.
static double classifier_mean_loss(classifier_t* c) {
    double sum = 0;
    copy_to_host(c->host, c->loss, c->B * sizeof(floatS), 0);
    for (int b = 0; b < c->B; b++) sum += c->host[b];
    return sum / c->B;
}

// Mean loss of a batch, with all gradients.
static double classifier_gradients(classifier_t* c, const batch_t* batch, uint64_t seed) {
    params_t* p = &c->params;
    stream_t s = c->stream;
    int pixels = c->recipe == RECIPE_PIXELS;
    classifier_draw(c, batch, seed);
    classifier_forward(c, c->drawn, batch->labels, batch->count);
    classifier_loss(c, batch, s);
    params_zero_grads(p, s);
    matmul_backward(pixels ? c->dfeatures : c->dmean, params_grad(p, c->head_weight), params_grad(p, c->head_bias),
                    c->dout, pixels ? c->vit.features : c->mean, params_at(p, c->head_weight), c->rows, c->channels,
                    c->outputs, s);
    if (!pixels) mean_tokens_backward(c->dfeatures, c->dmean, c->B, c->positions, c->channels, s);
    if (c->views == 2) classifier_agree(c, s);
    if (c->network == NETWORK_VIT) vit_backward(&c->vit, p, c->dfeatures, s);
    else vgg_backward(&c->lpips.vgg, p, &c->acts, c->dfeatures, s);
    return classifier_mean_loss(c);
}

// One optimiser step; weight decay acts on matrices and kernels only.
static void classifier_update(classifier_t* c, double lr) {
    params_t* p = &c->params;
    p->t++;
    for (int i = 0; i < p->table.n; i++) {
        const param_t* t = &p->table.items[i];
        adam_t adam = {lr, 0.9, 0.999, 1e-8, t->decay ? WEIGHT_DECAY : 0, p->t, {0, 0}, 1};
        adam_update(p->values + t->offset, p->master + t->offset, p->m + t->offset, p->v + t->offset, NULL, NULL,
                    p->grads + t->offset, t->stored, adam, c->stream);
    }
}

// How many held-out images the accuracy is measured on: no image counts twice.
static int accuracy_images(const dataset_t* set) {
    return set->count < ACCURACY_IMAGES ? (int)set->count : ACCURACY_IMAGES;
}

// Part of the held-out images that are recognised; of pixels, their mean squared error.
static double classifier_score(classifier_t* c, const dataset_t* set, const options_t* o) {
    dataloader_t loader;
    dataloader_options_t options = {c->B, c->size, 0, 0, 1, 0, 1, o->workers, o->seed, NULL}; // by lot: of all classes
    dataloader_open(&loader, set, &options, 0);
    double right = 0;
    int seen = 0, images = accuracy_images(set);
    while (seen < images) {
        const batch_t* batch = dataloader_next(&loader);
        if (c->recipe == RECIPE_PIXELS) {
            classifier_draw(c, batch, o->seed);
            classifier_forward(c, c->drawn, batch->labels, c->B);
            classifier_loss(c, batch, c->stream);
            right += classifier_mean_loss(c) * c->B;
            seen += c->B;
            continue;
        }
        classifier_forward(c, batch->pixels, batch->labels, c->B);
        copy_floats_to_host(c->host, c->out, (size_t)c->B * c->outputs);
        for (int b = 0; b < c->B && seen < images; b++, seen++) {
            int best = 0;
            for (int k = 1; k < c->outputs; k++) {
                if (c->host[b * c->outputs + k] > c->host[b * c->outputs + best]) best = k;
            }
            right += best == batch->labels[b];
        }
    }
    dataloader_close(&loader);
    return right / seen;
}

static double learning_rate(double peak, int step, int steps) {
    double warm = WARM_UP * steps, at = step + 1;
    if (at < warm) return peak * at / warm;
    return peak * 0.5 * (1 + cos(acos(-1.0) * (at - warm) / (steps - warm)));
}

static void classifier_train(classifier_t* c, const char* name, const dataset_t* set, const options_t* o, int steps,
                             double peak) {
    dataloader_t loader;
    dataloader_options_t options = {c->B / c->views, c->size, 1, 1, 1, 0, 1, o->workers, o->seed, NULL};
    dataloader_open(&loader, set, &options, 0);
    double start = clock_seconds(), loss = 0;
    int every = steps / 5 > 0 ? steps / 5 : 1;
    for (int step = 0; step < steps; step++) {
        loss += classifier_gradients(c, dataloader_next(&loader), o->seed);
        classifier_update(c, learning_rate(peak, step, steps));
        if ((step + 1) % every) continue;
        double elapsed = clock_seconds() - start;
        char left[24];
        clock_duration(left, sizeof left, elapsed / (step + 1) * (steps - step - 1));
        printf("%s  step %d/%d  loss %.4f  %.0f images/s  %s left\n", name, step + 1, steps, loss / every,
               (double)(step + 1) * c->B / elapsed, left);
        fflush(stdout);
        loss = 0;
    }
    dataloader_close(&loader);
}

static void pretrain(network_t network, const options_t* o, stream_t s) {
    static classifier_t c;
    const char* name = network == NETWORK_VIT ? "mini ViT" : "mini VGG";
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", o->out, network == NETWORK_VIT ? "encoder.safetensors" : "vgg.safetensors");
    if (!access(path, R_OK)) {
        printf("%s  %s exists\n", name, path);
        return;
    }
    dataset_t train_set, val_set;
    dataset_open(&train_set, o->data, SPLIT_TRAIN);
    dataset_open(&val_set, o->data, SPLIT_VAL);
    classifier_create(&c, network, o, train_set.class_count, s);
    classifier_train(&c, name, &train_set, o, network == NETWORK_VIT ? o->vit_steps : o->vgg_steps,
                     network == NETWORK_VIT ? o->vit_lr : o->vgg_lr);
    double score = classifier_score(&c, &val_set, o);
    for (int i = 0; network == NETWORK_VGG && i < c.lpips.config.slices; i++) {
        int channels = c.lpips.config.channels[i];
        floatS* head = (floatS*)malloc_check(channels * sizeof(floatS), "an LPIPS head");
        for (int k = 0; k < channels; k++) head[k] = LPIPS_HEAD;
        params_store(&c.params, c.lpips.head[i], head, channels);
        free(head);
    }
    if (network == NETWORK_VIT) c.params.table.n -= 2; // eval.cu scores images with the VGG's classifying head
    weights_save(&c.params, "", path, "");
    printf(c.recipe == RECIPE_PIXELS ? "%s  error %.4f of pixels in [-1, 1], on %d held-out images  %s\n"
                                     : "%s  accuracy %.2f%% on %d held-out images  %s\n",
           name, c.recipe == RECIPE_PIXELS ? score : 100 * score, accuracy_images(&val_set), path);
    classifier_free(&c);
    dataset_close(&train_set);
    dataset_close(&val_set);
}

int main(int argc, char** argv) {
    options_t o;
    const cli_flag_t flags[] = {
        {"Miniature world", "data", CLI_STRING, &o.data, "auto", NULL, "data set, as for train_tokenizer",
         CLI_SAVED},
        {NULL, "out", CLI_STRING, &o.out, "runs/mini", NULL, "folder of the two files", CLI_SAVED},
        {NULL, "image_size", CLI_INT, &o.image_size, "32", "[8, 1024]", "pixels", CLI_SAVED},
        {NULL, "encoder", CLI_STRING, &o.encoder, "mini", NULL, "configuration of the ViT: mini or tiny", CLI_SAVED},
        {NULL, "recipe", CLI_CHOICE, &o.recipe, "views", "views|classes|pixels",
         "what the ViT learns: to know classes in any colours (as DINOv2), classes (as SigLIP 2), pixels (as MAE)",
         CLI_SAVED},
        {NULL, "factor", CLI_INT, &o.factor, "8", "[1, 64]", "pixels that become a token of the ViT, each way",
         CLI_SAVED},
        {NULL, "vgg_channels", CLI_STRING, &o.vgg_channels, "16,32,64", NULL, "channels of the VGG's slices",
         CLI_SAVED},
        {NULL, "batch", CLI_INT, &o.batch, "64", "[2, 4096]", "images a step; the ViT's are half as many, seen twice",
         CLI_SAVED},
        {NULL, "vit_steps", CLI_INT, &o.vit_steps, "2000", "[1, inf)", "steps of the ViT", CLI_SAVED},
        {NULL, "vgg_steps", CLI_INT, &o.vgg_steps, "400", "[1, inf)", "steps of the VGG", CLI_SAVED},
        {NULL, "vit_lr", CLI_NUMBER, &o.vit_lr, "1e-3", "(0, 1)", "peak learning rate of the ViT", CLI_SAVED},
        {NULL, "agreement", CLI_NUMBER, &o.agreement, "0.2", "[0, inf)", "ViT: weight of the agreement of two views",
         CLI_SAVED},
        {NULL, "vgg_lr", CLI_NUMBER, &o.vgg_lr, "2e-3", "(0, 1)", "peak learning rate of the VGG", CLI_SAVED},
        {NULL, "workers", CLI_INT, &o.workers, "1", "[0, 64]", "threads that prepare images", CLI_SAVED},
        {NULL, "seed", CLI_SIZE, &o.seed, "1", NULL, "seed of everything random", CLI_SAVED},
    };
    cli_t cli;
    cli_init(&cli, "build/cpu/pretrain", "Trains the miniature world's encoder and VGG as classifiers.", flags,
             sizeof flags / sizeof flags[0], NULL, 0);
    cli_parse(&cli, argc, argv);
    if (o.batch % 2) fatal("-batch %d: the ViT sees each image twice; give an even number", o.batch);
    make_folder(o.out);
    stream_t s = device_open(0);
    pretrain(NETWORK_VIT, &o, s);
    pretrain(NETWORK_VGG, &o, s);
    device_close(s);
    return 0;
}
