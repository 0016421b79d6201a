// inception.h: Inception-v3 as the Frechet Inception distance has it: features in which sets of images are compared.
//
// The network is TensorFlow's frozen graph of 2015 (Szegedy et al. 2016), whose weights everybody gets from
// pytorch-fid's pt_inception-2015-12-05-6726825d.pth. It is not torchvision's Inception: other weights, 1008 outputs,
// means that do not count what lies outside the map, and a maximum in the last block where the one before has a mean.
//
//   convolution   conv without bias -> BatchNorm -> ReLU;  94 of them
//   block         branches of convolutions on one input, their outputs side by side along the channels
//   network       bytes -> 299 x 299 -> 3 + 2 convolutions and 2 maxima -> 11 blocks -> mean over 8 x 8 -> fc
//
// What comes out, of B images:
//   pool      (B, 2048)  the last map's mean: FID, KID, precision and recall
//   spatial   (B, 2023)  sFID: 7 channels of a map of 17 x 17, position by position (the first 7 of branch1x1 of
//                        Mixed_6d behind its ReLU: "mixed_6/conv" of ADM's evaluator.py)
//   logits    (B, 1008)  pool fc^T without the bias, as the Inception score's own code has it
//   early     (B, 64), (B, 192), (B, 768)  means of earlier maps (pytorch-fid's -dims)
//
// BatchNorm is folded into the convolutions when the weights are loaded, in double: with s = gamma / sqrt(var + 1e-3),
// W' = s W and bias' = beta - s mean. So a layer is one operation. Branches write straight to their channels of the
// block's output (conv_t.out_row): concatenation costs nothing. Four buffers carry everything: input and output of a
// block, which change places, and two for what lies within a branch; 3 M values an image.
//
// The table below is the network. inception_build turns it into a list of steps with shapes and places, which
// registration, planning and the forward walk through. Nothing depends on the number of images in a call.
//
// 23,885,392 numbers in the file; 5.713 G multiply-accumulates an image. Left out: gradients, the auxiliary head,
// fc.bias (read and not used). In bf16 features are off by some 7e-3: both sides of a comparison need one precision.
// Look next at common/measures/frechet.h, which compares the features.
#pragma once
#include <assert.h>
// defines: conv2d_forward, maxpool3_forward, avgpool3_forward, mean_positions_forward, bytes_resize_forward, ...
#include "common/ops.h"
// defines: params_t, param_table_t, param_add, params_at, params_store, params_read_frozen, params_keep_frozen
#include "common/models/params.h"
// defines: plan_t, plan_floatX
#include "common/models/plan.h"
// defines: weights_rule_t, weights_load_mapped
#include "common/models/weights.h"

enum {
    INCEPTION_SIZE = 299,     // of the network's input
    INCEPTION_POOL = 2048,    // features
    INCEPTION_SPATIAL = 2023, // 17 x 17 positions
    INCEPTION_CHANNELS = 7,   //   x 7 channels
    INCEPTION_CLASSES = 1008,
    INCEPTION_CONVS = 94,
    INCEPTION_STEPS = 107,    // convolutions and pools
};
#define INCEPTION_BN_EPS 1e-3

// ---------------------------------------------------------------------------------------------------------------------
// The table

// The maps of a block. OUT: behind the channels that branches above have written.
typedef enum { MAP_NONE, MAP_IN, MAP_OUT, MAP_A, MAP_B } inception_map_t;

typedef struct {
    const char* name;   // NULL: the block's pool
    int KH, KW, stride; // kernel
    int same;           // 1: the map keeps its size; 0: no padding
    int OC;             // 0: the block's `channels`
    inception_map_t from, to;
} inception_row_t;

static const inception_row_t inception_stem1[] = {
    {"Conv2d_1a_3x3", 3, 3, 2, 0, 32, MAP_IN, MAP_A},
    {"Conv2d_2a_3x3", 3, 3, 1, 0, 32, MAP_A, MAP_B},
    {"Conv2d_2b_3x3", 3, 3, 1, 1, 64, MAP_B, MAP_A},
    {NULL, 0, 0, 0, 0, 0, MAP_A, MAP_OUT},
    {NULL, 0, 0, 0, 0, 0, MAP_NONE, MAP_NONE}};

static const inception_row_t inception_stem2[] = {
    {"Conv2d_3b_1x1", 1, 1, 1, 1, 80, MAP_IN, MAP_A},
    {"Conv2d_4a_3x3", 3, 3, 1, 0, 192, MAP_A, MAP_B},
    {NULL, 0, 0, 0, 0, 0, MAP_B, MAP_OUT},
    {NULL, 0, 0, 0, 0, 0, MAP_NONE, MAP_NONE}};

static const inception_row_t inception_a[] = {
    {"branch1x1", 1, 1, 1, 1, 64, MAP_IN, MAP_OUT},
    {"branch5x5_1", 1, 1, 1, 1, 48, MAP_IN, MAP_A},
    {"branch5x5_2", 5, 5, 1, 1, 64, MAP_A, MAP_OUT},
    {"branch3x3dbl_1", 1, 1, 1, 1, 64, MAP_IN, MAP_A},
    {"branch3x3dbl_2", 3, 3, 1, 1, 96, MAP_A, MAP_B},
    {"branch3x3dbl_3", 3, 3, 1, 1, 96, MAP_B, MAP_OUT},
    {NULL, 0, 0, 0, 0, 0, MAP_IN, MAP_A},
    {"branch_pool", 1, 1, 1, 1, 0, MAP_A, MAP_OUT},
    {NULL, 0, 0, 0, 0, 0, MAP_NONE, MAP_NONE}};

static const inception_row_t inception_b[] = {
    {"branch3x3", 3, 3, 2, 0, 384, MAP_IN, MAP_OUT},
    {"branch3x3dbl_1", 1, 1, 1, 1, 64, MAP_IN, MAP_A},
    {"branch3x3dbl_2", 3, 3, 1, 1, 96, MAP_A, MAP_B},
    {"branch3x3dbl_3", 3, 3, 2, 0, 96, MAP_B, MAP_OUT},
    {NULL, 0, 0, 0, 0, 0, MAP_IN, MAP_OUT},
    {NULL, 0, 0, 0, 0, 0, MAP_NONE, MAP_NONE}};

static const inception_row_t inception_c[] = {
    {"branch1x1", 1, 1, 1, 1, 192, MAP_IN, MAP_OUT},
    {"branch7x7_1", 1, 1, 1, 1, 0, MAP_IN, MAP_A},
    {"branch7x7_2", 1, 7, 1, 1, 0, MAP_A, MAP_B},
    {"branch7x7_3", 7, 1, 1, 1, 192, MAP_B, MAP_OUT},
    {"branch7x7dbl_1", 1, 1, 1, 1, 0, MAP_IN, MAP_A},
    {"branch7x7dbl_2", 7, 1, 1, 1, 0, MAP_A, MAP_B},
    {"branch7x7dbl_3", 1, 7, 1, 1, 0, MAP_B, MAP_A},
    {"branch7x7dbl_4", 7, 1, 1, 1, 0, MAP_A, MAP_B},
    {"branch7x7dbl_5", 1, 7, 1, 1, 192, MAP_B, MAP_OUT},
    {NULL, 0, 0, 0, 0, 0, MAP_IN, MAP_A},
    {"branch_pool", 1, 1, 1, 1, 192, MAP_A, MAP_OUT},
    {NULL, 0, 0, 0, 0, 0, MAP_NONE, MAP_NONE}};

static const inception_row_t inception_d[] = {
    {"branch3x3_1", 1, 1, 1, 1, 192, MAP_IN, MAP_A},
    {"branch3x3_2", 3, 3, 2, 0, 320, MAP_A, MAP_OUT},
    {"branch7x7x3_1", 1, 1, 1, 1, 192, MAP_IN, MAP_A},
    {"branch7x7x3_2", 1, 7, 1, 1, 192, MAP_A, MAP_B},
    {"branch7x7x3_3", 7, 1, 1, 1, 192, MAP_B, MAP_A},
    {"branch7x7x3_4", 3, 3, 2, 0, 192, MAP_A, MAP_OUT},
    {NULL, 0, 0, 0, 0, 0, MAP_IN, MAP_OUT},
    {NULL, 0, 0, 0, 0, 0, MAP_NONE, MAP_NONE}};

static const inception_row_t inception_e[] = {
    {"branch1x1", 1, 1, 1, 1, 320, MAP_IN, MAP_OUT},
    {"branch3x3_1", 1, 1, 1, 1, 384, MAP_IN, MAP_A},
    {"branch3x3_2a", 1, 3, 1, 1, 384, MAP_A, MAP_OUT},
    {"branch3x3_2b", 3, 1, 1, 1, 384, MAP_A, MAP_OUT},
    {"branch3x3dbl_1", 1, 1, 1, 1, 448, MAP_IN, MAP_A},
    {"branch3x3dbl_2", 3, 3, 1, 1, 384, MAP_A, MAP_B},
    {"branch3x3dbl_3a", 1, 3, 1, 1, 384, MAP_B, MAP_OUT},
    {"branch3x3dbl_3b", 3, 1, 1, 1, 384, MAP_B, MAP_OUT},
    {NULL, 0, 0, 0, 0, 0, MAP_IN, MAP_A},
    {"branch_pool", 1, 1, 1, 1, 192, MAP_A, MAP_OUT},
    {NULL, 0, 0, 0, 0, 0, MAP_NONE, MAP_NONE}};

// All 3x3: the maximum at stride 2; the mean, or the maximum, at stride 1.
typedef enum { POOL_HALVE, POOL_MEAN, POOL_MAX } inception_pool_t;
// What is taken from a block's output.
typedef enum { TAP_NONE, TAP_64, TAP_192, TAP_768, TAP_SPATIAL, TAP_POOL } inception_tap_t;

typedef struct {
    const char* name; // what stands before the rows' names
    const inception_row_t* rows;
    int channels;
    inception_pool_t pool;
    inception_tap_t tap;
} inception_block_t;

enum { INCEPTION_BLOCKS = 13 };
static const inception_block_t inception_blocks[INCEPTION_BLOCKS] = {
    {"", inception_stem1, 0, POOL_HALVE, TAP_64},               // 299 -> 73,   64 channels
    {"", inception_stem2, 0, POOL_HALVE, TAP_192},              //  73 -> 35,  192
    {"Mixed_5b.", inception_a, 32, POOL_MEAN, TAP_NONE},        //  35,        256
    {"Mixed_5c.", inception_a, 64, POOL_MEAN, TAP_NONE},        //  35,        288
    {"Mixed_5d.", inception_a, 64, POOL_MEAN, TAP_NONE},
    {"Mixed_6a.", inception_b, 0, POOL_HALVE, TAP_NONE},        //  35 -> 17,  768
    {"Mixed_6b.", inception_c, 128, POOL_MEAN, TAP_NONE},
    {"Mixed_6c.", inception_c, 160, POOL_MEAN, TAP_NONE},
    {"Mixed_6d.", inception_c, 160, POOL_MEAN, TAP_SPATIAL},
    {"Mixed_6e.", inception_c, 192, POOL_MEAN, TAP_768},
    {"Mixed_7a.", inception_d, 0, POOL_HALVE, TAP_NONE},        //  17 -> 8,  1280
    {"Mixed_7b.", inception_e, 0, POOL_MEAN, TAP_NONE},         //   8,       2048
    {"Mixed_7c.", inception_e, 0, POOL_MAX, TAP_POOL}};

// ---------------------------------------------------------------------------------------------------------------------
// The steps

typedef struct {
    const inception_row_t* row;
    const inception_block_t* block;
    conv_t conv;         // of pools: C alone
    size_t weight, bias; // in the folded table
    int H, W, OH, OW;    // input and output size
    int from, to;        // buffers
    int first, channels; // output: where its channels begin in the buffer's map, and how many the map has
    inception_tap_t tap; // of a block's last step
} inception_step_t;

typedef struct {
    inception_step_t steps[INCEPTION_STEPS];
    size_t fc;             // (1008, 2048) in the folded table
    params_t params;       // folded, frozen
    int B;                 // images of one call, at most
    floatX* buffer[4];     // (B, H, W, C): input and output of a block, changing places; two within branches
    floatS* pool;          // (B, 2048) where the caller wants logits alone
} inception_t;

static inline int inception_is_conv(const inception_step_t* step) { return step->row->name != NULL; }

// Shape, sizes and places of one step, whose input has C channels; from, to and first are the caller's.
static inline void inception_step_shape(inception_step_t* step, int C, int H, int W) {
    const inception_row_t* r = step->row;
    int OC = r->OC ? r->OC : step->block->channels, down = r->same ? r->KH / 2 : 0, right = r->same ? r->KW / 2 : 0;
    conv_t conv = {C, OC, r->KH, r->KW, r->stride, down, down, right, right, 0};
    conv_t halve = {C, C, 3, 3, 2, 0, 0, 0, 0, 0}, keep = {C, C, 3, 3, 1, 1, 1, 1, 1, 0};
    step->conv = inception_is_conv(step) ? conv : step->block->pool == POOL_HALVE ? halve : keep;
    step->H = H, step->W = W;
    step->OH = conv_out_height(H, step->conv), step->OW = conv_out_width(W, step->conv);
}

// The steps of a block on a map of C channels; returns behind the last. The output's channels are known at the end.
static inline inception_step_t* inception_block_steps(inception_step_t* step, const inception_block_t* block, int in,
                                                      int C, int H, int W) {
    int channels[5] = {0, C, 0, 0, 0}, rows[5] = {0, H, 0, 0, 0}, columns[5] = {0, W, 0, 0, 0};
    int buffer[5] = {-1, in, 1 - in, 2, 3};
    inception_step_t* begin = step;
    for (const inception_row_t* r = block->rows; r->to != MAP_NONE; r++, step++) {
        step->row = r;
        step->block = block;
        inception_step_shape(step, channels[r->from], rows[r->from], columns[r->from]);
        step->from = buffer[r->from], step->to = buffer[r->to];
        step->first = r->to == MAP_OUT ? channels[MAP_OUT] : 0;
        channels[r->to] = step->first + step->conv.OC;
        rows[r->to] = step->OH, columns[r->to] = step->OW;
        step->channels = step->conv.OC;
    }
    for (inception_step_t* k = begin; k < step; k++) {
        if (k->row->to == MAP_OUT) k->channels = channels[MAP_OUT];
        k->conv.out_row = k->channels;
    }
    step[-1].tap = block->tap;
    return step;
}

static inline void inception_build(inception_t* m) {
    inception_step_t* step = m->steps;
    int C = 3, H = INCEPTION_SIZE, W = INCEPTION_SIZE;
    memset(m, 0, sizeof *m);
    for (int b = 0; b < INCEPTION_BLOCKS; b++) {
        step = inception_block_steps(step, &inception_blocks[b], b % 2, C, H, W);
        C = step[-1].channels, H = step[-1].OH, W = step[-1].OW;
    }
    assert(step == m->steps + INCEPTION_STEPS && C == INCEPTION_POOL);
}

// Multiply-accumulates of an image.
static inline uint64_t inception_macs(const inception_t* m) {
    uint64_t macs = (uint64_t)INCEPTION_CLASSES * INCEPTION_POOL;
    for (const inception_step_t* k = m->steps; k < m->steps + INCEPTION_STEPS; k++) {
        uint64_t taps = (uint64_t)k->conv.KH * k->conv.KW * k->conv.C;
        if (inception_is_conv(k)) macs += (uint64_t)k->OH * k->OW * k->conv.OC * taps;
    }
    return macs;
}

// ---------------------------------------------------------------------------------------------------------------------
// Parameters

// The name of a convolution's tensor: "Mixed_5b.branch1x1" + suffix.
static inline const char* inception_name(char* name, const inception_step_t* k, const char* suffix) { // (PARAM_NAME)
    char path[PARAM_NAME];
    snprintf(path, sizeof path, "%s%s", k->block->name, k->row->name);
    return param_name(name, path, suffix);
}

enum { INCEPTION_PARTS = 4 };
static const char* const inception_parts[INCEPTION_PARTS] = {".bn.weight", ".bn.bias", ".bn.running_mean",
                                                             ".bn.running_var"};

// The tensors of the file: 94 x 5 + 2.
static inline void inception_register_file(const inception_t* m, param_table_t* table) {
    char name[PARAM_NAME];
    for (const inception_step_t* k = m->steps; k < m->steps + INCEPTION_STEPS; k++) {
        conv_t c = k->conv;
        if (!inception_is_conv(k)) continue;
        param_add(table, inception_name(name, k, ".conv.weight"), 4, c.OC, c.C, c.KH, c.KW, LAYOUT_CONV,
                  init_normal(0, sqrt(2.0 / (c.C * c.KH * c.KW))));
        for (int part = 0; part < INCEPTION_PARTS; part++) {
            param_vector(table, inception_name(name, k, inception_parts[part]), "", c.OC, init_constant(part % 3 == 0));
        }
    }
    param_matrix(table, "fc.", "weight", INCEPTION_CLASSES, INCEPTION_POOL, init_fan_in(INCEPTION_POOL));
    param_vector(table, "fc.", "bias", INCEPTION_CLASSES, init_constant(0));
}

// Everything but the weights: the steps, and the memory of the folded parameters. inception_load or inception_fold is
// to follow.
void inception_register(inception_t* m) {
    char name[PARAM_NAME];
    inception_build(m);
    param_table_t* table = &m->params.table;
    for (inception_step_t* k = m->steps; k < m->steps + INCEPTION_STEPS; k++) {
        conv_t c = k->conv;
        if (!inception_is_conv(k)) continue;
        k->weight = param_add(table, inception_name(name, k, ".weight"), 4, c.OC, c.C, c.KH, c.KW, LAYOUT_CONV,
                              init_constant(0));
        k->bias = param_vector(table, inception_name(name, k, ".bias"), "", c.OC, init_constant(0));
    }
    m->fc = param_matrix(table, "fc.", "weight", INCEPTION_CLASSES, INCEPTION_POOL, init_constant(0));
    params_allocate(&m->params, table->total, 0, "Inception");
}

// The values of a tensor of the file, in memory order.
static inline const param_t* inception_read(const params_t* file, const char* name, floatS* host) {
    const param_t* t = param_find(&file->table, name);
    assert(t && "inception_register_file has made the table");
    params_read_frozen(file, t->offset, host, t->stored);
    return t;
}

// Sets the folded parameters from those of a file, in full precision (params_keep_frozen).
void inception_fold(inception_t* m, const params_t* file) {
    char name[PARAM_NAME];
    size_t longest = params_longest(&file->table);
    floatS* weight = (floatS*)malloc_check((longest + (INCEPTION_PARTS + 1) * 512) * sizeof(floatS), "a tensor");
    floatS* part = weight + longest; // (INCEPTION_PARTS, 512)
    floatS* bias = part + INCEPTION_PARTS * 512;
    for (const inception_step_t* k = m->steps; k < m->steps + INCEPTION_STEPS; k++) {
        if (!inception_is_conv(k)) continue;
        int OC = k->conv.OC;
        assert(OC <= 512);
        const param_t* t = inception_read(file, inception_name(name, k, ".conv.weight"), weight);
        for (int i = 0; i < INCEPTION_PARTS; i++) {
            inception_read(file, inception_name(name, k, inception_parts[i]), part + i * 512);
        }
        size_t row = t->stored / OC;
        for (int o = 0; o < OC; o++) {
            double scale = part[o] / sqrt((double)part[3 * 512 + o] + INCEPTION_BN_EPS);
            bias[o] = (floatS)(part[512 + o] - scale * part[2 * 512 + o]);
            for (size_t i = 0; i < row; i++) weight[o * row + i] = (floatS)(scale * weight[o * row + i]);
        }
        params_store(&m->params, k->weight, weight, t->stored);
        params_store(&m->params, k->bias, bias, OC);
    }
    const param_t* fc = inception_read(file, "fc.weight", weight);
    params_store(&m->params, m->fc, weight, fc->stored);
    free(weight);
}

// Reads pytorch-fid's weights and folds them.
void inception_load(inception_t* m, const char* path) {
    params_t file;
    char names[INCEPTION_CONVS][PARAM_NAME]; // "....bn.num_batches_tracked", which files may have
    weights_rule_t rules[INCEPTION_CONVS + 2];
    int n = 0;
    memset(&file, 0, sizeof file);
    memset(rules, 0, sizeof rules);
    inception_register_file(m, &file.table);
    params_allocate(&file, file.table.total, 0, "the weights of Inception");
    params_keep_frozen(&file, "the weights of Inception");
    for (const inception_step_t* k = m->steps; k < m->steps + INCEPTION_STEPS; k++) {
        if (inception_is_conv(k)) rules[n].file = inception_name(names[n], k, ".bn.num_batches_tracked"), n++;
    }
    rules[n].file = rules[n].ours = "*";
    weights_load_mapped(&file, "", path, "", rules);
    inception_fold(m, &file);
    params_free(&file);
}

// ---------------------------------------------------------------------------------------------------------------------
// The forward

// Plans the memory of a call with up to B images.
void inception_plan(inception_t* m, plan_t* plan, int B) {
    size_t size[4] = {(size_t)INCEPTION_SIZE * INCEPTION_SIZE * 3, 0, 0, 0};
    for (const inception_step_t* k = m->steps; k < m->steps + INCEPTION_STEPS; k++) {
        size_t n = (size_t)k->OH * k->OW * k->channels;
        if (n > size[k->to]) size[k->to] = n;
    }
    m->B = B;
    for (int i = 0; i < 4; i++) plan_floatX(plan, &m->buffer[i], B * size[i], "Inception maps");
    plan_floatS(plan, &m->pool, (size_t)B * INCEPTION_POOL, "Inception features");
}

// What is wanted of B images, in device memory; NULL: not that.
typedef struct {
    floatS* pool;    // (B, 2048)
    floatS* spatial; // (B, 2023)
    floatS* logits;  // (B, 1008)
    floatS* early64; // (B, 64)
    floatS* early192;
    floatS* early768;
} inception_features_t;

static inline void inception_step(const inception_t* m, const inception_step_t* k, int B, stream_t s) {
    const floatX* x = m->buffer[k->from];
    floatX* out = m->buffer[k->to] + k->first;
    int C = k->conv.C;
    if (inception_is_conv(k)) {
        conv2d_forward(out, x, params_at(&m->params, k->weight), params_at(&m->params, k->bias), NULL, B, k->H, k->W,
                       k->conv, ACT_RELU, s);
    } else if (k->block->pool == POOL_MEAN) {
        avgpool3_forward(out, x, B, k->H, k->W, C, s);
    } else {
        maxpool3_forward(out, x, B, k->H, k->W, C, k->conv.stride, k->conv.pad_top, k->channels, s);
    }
}

// Features from the output of a block.
static inline void inception_take(const inception_t* m, const inception_step_t* k, const inception_features_t* out,
                                  int B, stream_t s) {
    const floatX* map = m->buffer[k->to]; // (B, OH, OW, channels)
    floatS* means[6] = {NULL, out->early64, out->early192, out->early768, NULL, out->pool};
    int positions = k->OH * k->OW;
    if (means[k->tap]) mean_positions_forward(means[k->tap], map, B, positions, k->channels, s);
    if (k->tap == TAP_SPATIAL && out->spatial) {
        first_channels_forward(out->spatial, map, (size_t)B * positions, k->channels, INCEPTION_CHANNELS, s);
    }
}

// Features of B images of H x W pixels, up to the B of the plan.
void inception_forward(const inception_t* m, inception_features_t out,
                       const uint8_t* bytes, // (B, H, W, 3) device memory
                       inception_input_t input, int B, int H, int W, stream_t s) {
    assert(B <= m->B);
    if (out.logits && !out.pool) out.pool = m->pool;
    bytes_resize_forward(m->buffer[m->steps[0].from], bytes, input, B, H, W, INCEPTION_SIZE, INCEPTION_SIZE, s);
    for (const inception_step_t* k = m->steps; k < m->steps + INCEPTION_STEPS; k++) {
        inception_step(m, k, B, s);
        if (k->tap != TAP_NONE) inception_take(m, k, &out, B, s);
    }
    const floatX* fc = params_at(&m->params, m->fc);
    if (out.logits) features_matmul_forward(out.logits, out.pool, fc, B, INCEPTION_POOL, INCEPTION_CLASSES, s);
}

void inception_free(inception_t* m) { params_free(&m->params); }
