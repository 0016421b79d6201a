// pretrain.cu: makes the two pretrained networks of the miniature world.
//
//     build/cpu/pretrain                writes runs/mini/encoder.safetensors and runs/mini/vgg.safetensors
//
// No public weights come with this repository. So that the tokenizer's recipe can be run, seen and tested anywhere, two
// small classifiers are trained here on the miniature data set (Fashion-MNIST): a ViT, the stand-in for DINOv2, and a
// narrow VGG, the stand-in for the VGG16 inside LPIPS. Both are written under the public names (timm's; those of the
// lpips package), and are read by the code that reads the real ones.
//
//     ViT   patch tokens -> mean -> linear -> cross-entropy        (the patch tokens are what the adapter will see)
//     VGG   maximum of the last slice -> mean over positions -> linear -> cross-entropy
//     AdamW (0.9, 0.999), learning rate with a warm-up and a cosine decay to zero, mirrored images
//
// The LPIPS heads are constants here: there is no human judgement to fit them to, as the real ones were.
// A file that exists is kept. Look next at common/models/vit.h and common/models/lpips.h; train_tokenizer.cu uses the
// results.
#include <unistd.h>

// defines: cli_t, cli_flag_t, cli_parse
#include "common/program/cli.h"
// defines: dataset_t, dataset_open
#include "common/data/dataset.h"
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
#define ACCURACY_IMAGES 2048   // most held-out images of the reported accuracy

typedef struct {
    const char *data, *out, *encoder, *vgg_channels;
    int batch, vit_steps, vgg_steps, image_size, factor, workers;
    double vit_lr, vgg_lr;
    size_t seed;
} options_t;

typedef enum { NETWORK_VIT, NETWORK_VGG } network_t;

// One of the two networks with a linear head on the mean of its features.
typedef struct {
    network_t network;
    vit_t vit;
    lpips_t lpips;              // its vgg is the network; its heads go into the file
    vgg_acts_t acts;
    params_t params;
    plan_t plan;
    int B, size, positions, channels, classes;
    size_t head_weight, head_bias;
    uint8_t* bytes;             // (B, size, size, 3)
    floatX* x;                  // (B, size, size, 3)
    floatX* mean;               // (B, channels)
    floatX* logits;             // (B, classes)
    floatS* loss;               // (B)
    floatX* dmean;              // (B, channels)
    floatX* dfeatures;          // (B, positions, channels)
    int* labels;                // (B)
    floatS* host;               // (B, classes) logits, or (B) losses, on the host
    stream_t stream;
} classifier_t;

static void classifier_create(classifier_t* c, network_t network, const options_t* o, int classes, stream_t s) {
    memset(c, 0, sizeof *c);
    c->stream = s;
    c->network = network;
    c->B = o->batch;
    c->size = o->image_size;
    c->classes = classes;
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
    c->head_weight = param_matrix(table, "", "head.weight", classes, c->channels, init_normal(0, 0.02));
    c->head_bias = param_vector(table, "", "head.bias", classes, init_constant(0));
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
    plan_uint8(plan, &c->bytes, (size_t)B * size * size * 3, "images (bytes)");
    plan_floatX(plan, &c->x, (size_t)B * size * size * 3, "images");
    plan_floatX(plan, &c->mean, (size_t)B * c->channels, "mean");
    plan_floatX(plan, &c->logits, (size_t)B * classes, "logits");
    plan_floatS(plan, &c->loss, B, "loss");
    plan_floatX(plan, &c->dmean, (size_t)B * c->channels, "d mean");
    plan_floatX(plan, &c->dfeatures, (size_t)B * c->positions * c->channels, "d features");
    plan_int(plan, &c->labels, B, "labels");
    plan_allocate(plan, "activations");
    c->host = (floatS*)malloc_check((size_t)B * classes * sizeof(floatS), "logits");
}

static void classifier_free(classifier_t* c) {
    params_free(&c->params);
    plan_free(&c->plan);
    free(c->host);
}

// Images to logits.
static void classifier_forward(classifier_t* c, const batch_t* batch) {
    size_t n = (size_t)c->B * c->size * c->size * 3;
    const params_t* p = &c->params;
    const floatX* features;
    stream_t s = c->stream;
    copy_to_device(c->bytes, batch->pixels, n, s);
    copy_to_device(c->labels, batch->labels, c->B * sizeof(int), 0);
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
    matmul_forward(c->logits, c->mean, params_at(p, c->head_weight), params_at(p, c->head_bias), c->B, c->channels,
                   c->classes, s);
}

// Mean loss of a batch, with all gradients.
static double classifier_gradients(classifier_t* c, const batch_t* batch) {
    params_t* p = &c->params;
    stream_t s = c->stream;
    classifier_forward(c, batch);
    cross_entropy(c->loss, c->logits, c->logits, c->labels, 1.0 / c->B, c->B, c->classes, s);
    params_zero_grads(p, s);
    matmul_backward(c->dmean, params_grad(p, c->head_weight), params_grad(p, c->head_bias), c->logits, c->mean,
                    params_at(p, c->head_weight), c->B, c->channels, c->classes, s);
    mean_tokens_backward(c->dfeatures, c->dmean, c->B, c->positions, c->channels, s);
    if (c->network == NETWORK_VIT) vit_backward(&c->vit, p, c->dfeatures, s);
    else vgg_backward(&c->lpips.vgg, p, &c->acts, c->dfeatures, s);
    copy_to_host(c->host, c->loss, c->B * sizeof(floatS), 0);
    double sum = 0;
    for (int b = 0; b < c->B; b++) sum += c->host[b];
    return sum / c->B;
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

// Part of the held-out images that are recognised.
static double classifier_accuracy(classifier_t* c, const dataset_t* set, const options_t* o) {
    dataloader_t loader;
    dataloader_options_t options = {c->B, c->size, 0, 0, 1, 0, 1, o->workers, o->seed, NULL}; // by lot: of all classes
    dataloader_open(&loader, set, &options, 0);
    int right = 0, seen = 0, images = accuracy_images(set);
    while (seen < images) {
        const batch_t* batch = dataloader_next(&loader);
        classifier_forward(c, batch);
        copy_floats_to_host(c->host, c->logits, (size_t)c->B * c->classes);
        for (int b = 0; b < c->B && seen < images; b++, seen++) {
            int best = 0;
            for (int k = 1; k < c->classes; k++) {
                if (c->host[b * c->classes + k] > c->host[b * c->classes + best]) best = k;
            }
            right += best == batch->labels[b];
        }
    }
    dataloader_close(&loader);
    return (double)right / seen;
}

static double learning_rate(double peak, int step, int steps) {
    double warm = WARM_UP * steps, at = step + 1;
    if (at < warm) return peak * at / warm;
    return peak * 0.5 * (1 + cos(acos(-1.0) * (at - warm) / (steps - warm)));
}

static void classifier_train(classifier_t* c, const char* name, const dataset_t* set, const options_t* o, int steps,
                             double peak) {
    dataloader_t loader;
    dataloader_options_t options = {c->B, c->size, 1, 1, 1, 0, 1, o->workers, o->seed, NULL};
    dataloader_open(&loader, set, &options, 0);
    double start = clock_seconds(), loss = 0;
    int every = steps / 5 > 0 ? steps / 5 : 1;
    for (int step = 0; step < steps; step++) {
        loss += classifier_gradients(c, dataloader_next(&loader));
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
    double accuracy = classifier_accuracy(&c, &val_set, o);
    for (int i = 0; network == NETWORK_VGG && i < c.lpips.config.slices; i++) {
        int channels = c.lpips.config.channels[i];
        floatS* head = (floatS*)malloc_check(channels * sizeof(floatS), "an LPIPS head");
        for (int k = 0; k < channels; k++) head[k] = LPIPS_HEAD;
        params_store(&c.params, c.lpips.head[i], head, channels);
        free(head);
    }
    if (network == NETWORK_VIT) c.params.table.n -= 2; // eval.cu scores images with the VGG's classifying head
    weights_save(&c.params, "", path, "");
    printf("%s  accuracy %.2f%% on %d held-out images  %s\n", name, 100 * accuracy, accuracy_images(&val_set), path);
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
        {NULL, "factor", CLI_INT, &o.factor, "8", "[1, 64]", "pixels that become a token of the ViT, each way",
         CLI_SAVED},
        {NULL, "vgg_channels", CLI_STRING, &o.vgg_channels, "16,32,64", NULL, "channels of the VGG's slices",
         CLI_SAVED},
        {NULL, "batch", CLI_INT, &o.batch, "64", "[1, 4096]", "images a step", CLI_SAVED},
        {NULL, "vit_steps", CLI_INT, &o.vit_steps, "2000", "[1, inf)", "steps of the ViT", CLI_SAVED},
        {NULL, "vgg_steps", CLI_INT, &o.vgg_steps, "500", "[1, inf)", "steps of the VGG", CLI_SAVED},
        {NULL, "vit_lr", CLI_NUMBER, &o.vit_lr, "1e-3", "(0, 1)", "peak learning rate of the ViT", CLI_SAVED},
        {NULL, "vgg_lr", CLI_NUMBER, &o.vgg_lr, "2e-3", "(0, 1)", "peak learning rate of the VGG", CLI_SAVED},
        {NULL, "workers", CLI_INT, &o.workers, "1", "[0, 64]", "threads that prepare images", CLI_SAVED},
        {NULL, "seed", CLI_SIZE, &o.seed, "1", NULL, "seed of everything random", CLI_SAVED},
    };
    cli_t cli;
    cli_init(&cli, "build/cpu/pretrain", "Trains the miniature world's encoder and VGG as classifiers.", flags,
             sizeof flags / sizeof flags[0], NULL, 0);
    cli_parse(&cli, argc, argv);
    make_folder(o.out);
    stream_t s = device_open(0);
    pretrain(NETWORK_VIT, &o, s);
    pretrain(NETWORK_VGG, &o, s);
    device_close(s);
    return 0;
}
