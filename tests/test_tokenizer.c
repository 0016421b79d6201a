// test_tokenizer.c: a training step of the tokenizer, its three stages and its checkpoints, in float.
//
//   fixture        whole steps of stage 2 and of VA-VAE against PyTorch: losses, weights, every gradient, running
//                  statistics
//   counts         parameters of the paper's recipe, trained and frozen, from the tables alone (AlignTok, Table 6), and
//                  the GFLOPS of its networks (Tables 7 and 8)
//   stage 2        its first step, where the latent is the target; recomputation; the cheap measure of omega_s
//   sizes          steps of images of several sizes in one memory: each has the bits of a tokenizer of that size alone
//   stages         what is frozen stays bit by bit, what learns moves; the discriminator's start; averages
//   checkpoints    the whole state there and back, a run that goes on, hand-over between stages, refusals
// The derivatives themselves are proved in tests/test_tokenizer_gradient.c.
// defines: bed_config, bed_make, bed_randomise, bed_copy, bed_check_gradients, bed_check_stage2_step, ...
#include "tests/tokenizer_bed.h"
// defines: temporary_begin, temporary_end, temporary_path, temporary_run_child, temporary_read, check_message
#include "tests/temporary.h"
// defines: checkpoint_save, checkpoint_open, checkpoint_resume, checkpoint_start_from; lora_merge
#include "common/training/tokenizer_checkpoint.h"
// defines: options_t, options_parse, options_tokenizer
#include "common/training/tokenizer_options.h"
// defines: network_t, network_register, network_paper_flops, network_free
#include "dev/bench/complexity.h"

#define ORIGINAL 1e-4 // agreement with the PyTorch original in float
#define ROUNDING 2e-5 // of two ways to the same result in float

static int same_bits(const void* a, const void* b, size_t n) { return !memcmp(a, b, n * sizeof(floatS)); }

static floatS* copy_buffer(const floatS* x, size_t n) {
    floatS* p = (floatS*)malloc_check(n * sizeof(floatS), "test buffer");
    memcpy(p, x, n * sizeof(floatS));
    return p;
}

// Whole steps, each on other images.
static void train_steps(tokenizer_t* t, int steps) {
    for (int i = 0; i < steps; i++) {
        bed_random_images(t);
        tokenizer_gradients(t, t->params.t, 0);
        tokenizer_update(t, t->params.t, 0);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Counts

static void check_count(const char* what, size_t got, size_t want) {
    if (got != want) printf("     %s: %zu, wanted %zu\n", what, got, want);
    check(got == want, what);
}

// A preset at one stage, with a kind of decoder, and low-rank pairs of this rank.
static tokenizer_config_t preset_config(const char* preset, const char* stage, const char* decoder, const char* rank) {
    options_t options;
    cli_t cli;
    const char* words[11] = {"train_tokenizer", "-preset", preset, "-stage", stage, "-dry_run",
                             "1", "-decoder", decoder, "-lora", rank};
    char* argv[11];
    for (int i = 0; i < 11; i++) argv[i] = (char*)words[i];
    memset(&options, 0, sizeof options);
    options_parse(&options, &cli, 11, argv);
    tokenizer_config_t config = options_tokenizer(&options, 1);
    cli_free(&cli);
    return config;
}

// Table 6 does not count the frozen adapter of stage 2.
static void test_counts(const char* preset, const char* stage, const char* kind, const char* rank, size_t encoder,
                        size_t decoder, size_t trained, size_t frozen) {
    static tokenizer_t t;
    tokenizer_register(&t, preset_config(preset, stage, kind, rank));
    const param_table_t *table = &t.params.table, *disc = &t.disc_params.table, *lpips = &t.lpips_params.table;
    size_t first = tokenizer_first_trained(&t), all = table->total;
    size_t pairs = param_count(table, t.lora_begin, t.adapter_begin);
    check_count("low-rank pairs", pairs, atoi(rank) ? 6291456 : 0);
    check_count("encoder, and what follows it", param_count(table, 0, t.decoder_begin) - pairs, encoder);
    check_count("decoder", param_count(table, t.decoder_begin, all), decoder);
    check_count("discriminator", param_count(disc, 0, disc->total), 2765633);
    check_count("trained", param_count(table, first, all) + param_count(disc, 0, disc->total), trained);
    size_t target = param_count(&t.target_params.table, 0, t.config.stage == 2 ? t.lora_begin : SIZE_MAX);
    check_count("frozen", param_count(table, 0, first) + param_count(lpips, 0, lpips->total) + target, frozen);
    tokenizer_free(&t);
}

// Parameters and GFLOPS of Tables 7 and 8, which are cut or rounded at their fourth digit.
static void check_published(const char* what, double got, const char* published) {
    const char* point = strchr(published, '.');
    double unit = point ? pow(10, -(double)strlen(point + 1)) : 1;
    check_error(what, fabs(got - strtod(published, NULL)) / unit, 1);
}

static void test_complexity(void) {
    static const struct {
        network_kind_t kind;
        const char *name, *parameters, *giga[3];
    } rows[] = {
        {NETWORK_ALIGNED, "DINOv2-L and adapter", "304.4", {"77.85", "310.4", "1241"}},
        {NETWORK_CNN_ENCODER, "CNN encoder", "28.41", {"69.21", "279.2", "1155"}},
        {NETWORK_DECODER, "decoder", "41.42", {"126.5", "509.3", "2089"}},
    };
    static network_t n;
    tokenizer_config_t config = preset_config("imagenet", "1", "ldm", "0");
    for (int r = 0; r < 3; r++) {
        network_register(&n, rows[r].kind, &config);
        size_t parameters = param_count(&n.params.table, 0, n.params.table.total);
        check_published(rows[r].name, 1e-6 * (double)parameters, rows[r].parameters);
        for (int i = 0; i < 3; i++) {
            check_published(rows[r].name, 1e-9 * network_paper_flops(&n, 256 << i), rows[r].giga[i]);
        }
        network_free(&n);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Stage 2

// Where encoder and adapter are still the frozen ones, z = z0 to the bit, although one pass keeps its activations and
// the other does not: no semantic loss, no gradient of it, and omega_s times nothing is nothing.
// (Low-rank pairs begin with B = 0.)
static void test_first_step(tokenizer_config_t config) {
    static tokenizer_t t, without;
    bed_make(&t, config);
    bed_randomise(&t);
    for (int i = 0; i < t.params.table.n; i++) {
        const param_t* p = &t.params.table.items[i];
        if (strstr(p->name, "lora_B")) memset(t.params.values + p->offset, 0, p->count * sizeof(floatX));
    }
    tokenizer_set_target(&t, 0);
    config.w_sem = 0;
    bed_make(&without, config);
    bed_copy(&without, &t);
    tokenizer_gradients(&t, 0, 0);
    tokenizer_gradients(&without, 0, 0);
    size_t image_latent = tokenizer_latents(&t) * t.z, latent = t.config.batch * image_latent;
    size_t held = t.config.batch * tokenizer_latents(&t) * tokenizer_semantic_channels(&t);
    const floatX* now = config.semantic_place == SEMANTIC_OF_TOKENS ? t.encoder.vit.features : t.encoder.adapter.z;
    check(same_bits(t.z0, now, held), "z0 = z");
    for (size_t i = 0; i < held; i++) check(t.dz_sem[i] == 0, "gradient of the semantic loss");
    for (int k = 0; k < t.chunks; k++) {
        check(t.measures.semantic[k] == 0 && t.measures.squares_sem[k] == 0, "semantic loss and its norm");
        if (k >= t.extra / t.config.chunk) continue; // measured in the first alone
        double ratio = sqrt((double)t.measures.squares_rec_latent[k]) * t.chunks / 1e-4;
        check_error("omega_s", fabs(t.measures.omega_s[k] / fmin(ratio, 1e8) - 1), ROUNDING);
    }
    check_error("dz", bed_error(t.dz + t.extra * image_latent, without.dz, latent), ROUNDING);
    for (int i = 0; i < t.params.table.n; i++) { // (of A there is none yet, where B = 0)
        const param_t* p = &t.params.table.items[i];
        const floatS *got = params_grad(&t.params, p->offset), *want = params_grad(&without.params, p->offset);
        if (got) check_error(p->name, bed_error(got, want, p->count), ROUNDING);
        if (got) check(bed_norm(want, p->count) > 0 || strstr(p->name, "lora_A"), p->name);
    }
    floatX* z0 = copy_buffer(t.z0, held);
    tokenizer_update(&t, 0, 0);
    tokenizer_gradients(&t, 1, 0);
    check(t.measures.semantic[0] > 0 && !same_bits(t.z0, now, held), "the second step has left z0");
    check(same_bits(t.z0, z0, held), "and z0 stays");
    free(z0);
    tokenizer_free(&t);
    tokenizer_free(&without);
}

// Recomputation runs the same operations on the same numbers.
static void test_recompute(tokenizer_config_t config) {
    static tokenizer_t kept, again;
    bed_make(&kept, config);
    bed_randomise(&kept);
    config.recompute = 1;
    bed_make(&again, config);
    bed_copy(&again, &kept);
    tokenizer_gradients(&kept, 0, 0);
    tokenizer_gradients(&again, 0, 0);
    check(plan_bytes(&again.plan) < plan_bytes(&kept.plan), "less is kept");
    check(same_bits(kept.measure_block, again.measure_block, tokenizer_measure_count(&kept)), "measures");
    check(same_bits(kept.params.grads, again.params.grads, params_trained(&kept.params)), "gradients");
    check(bed_norm(kept.params.grads, params_trained(&kept.params)) > 0, "there are gradients");
    tokenizer_free(&kept);
    tokenizer_free(&again);
}

// The folded teacher is the teacher, in every step.
static void test_folded_teacher(void) {
    static tokenizer_t plain, folded;
    tokenizer_config_t config = bed_vavae_config();
    bed_make(&plain, config);
    bed_randomise(&plain);
    config.fold = 1;
    bed_make(&folded, config);
    bed_copy(&folded, &plain);
    tokenizer_freeze(&folded);
    check(folded.vf.teacher.fold, "it is folded");
    for (int step = 0; step < 2; step++) {
        tokenizer_gradients(&plain, 0, 0);
        tokenizer_gradients(&folded, 0, 0);
        check_error("VF", bed_error(folded.measures.semantic, plain.measures.semantic, 2), ROUNDING);
        bed_check_gradients(&folded.params, plain.params.grads, ORIGINAL);
    }
    tokenizer_free(&plain);
    tokenizer_free(&folded);
}

// With one chunk there is no other than the first.
static void test_first_chunk(void) {
    static tokenizer_t exact, first;
    tokenizer_config_t config = bed_config(2);
    config.batch = config.chunk;
    bed_make(&exact, config);
    bed_randomise(&exact);
    config.semantic_measure = SEMANTIC_FIRST_CHUNK;
    bed_make(&first, config);
    bed_copy(&first, &exact);
    tokenizer_gradients(&exact, 0, 0);
    tokenizer_gradients(&first, 0, 0);
    check(exact.measures.omega_s[0] > 0, "there is a weight");
    check(same_bits(exact.measure_block, first.measure_block, tokenizer_measure_count(&exact)), "measures");
    check(same_bits(exact.params.grads, first.params.grads, params_trained(&exact.params)), "gradients");
    tokenizer_free(&exact);
    tokenizer_free(&first);
}

// ---------------------------------------------------------------------------------------------------------------------
// Stages

// Every tensor of a table: frozen before `first`, moved from there on.
static void check_moved(const params_t* p, const floatX* before, size_t first) {
    for (int i = 0; i < p->table.n; i++) {
        const param_t* t = &p->table.items[i];
        int same = same_bits(p->values + t->offset, before + t->offset, t->count);
        check(same == (t->offset < first), t->name);
    }
}

// Three updates: what a stage freezes keeps its bits, and each trained tensor moves.
static void test_frozen(tokenizer_config_t config) {
    static tokenizer_t t;
    int stage = tokenizer_is_baseline(&config) ? 2 : config.stage; // a baseline trains all, as stage 2 does
    bed_make(&t, config);
    bed_randomise(&t);
    const params_t* tables[4] = {&t.params, &t.disc_params, &t.lpips_params, &t.target_params};
    size_t encoder = config.lora.rank ? t.lora_begin : 0;
    const size_t first[4] = {stage == 1 ? t.adapter_begin : stage == 2 ? encoder : t.decoder_begin, 0, SIZE_MAX,
                             SIZE_MAX};
    floatX* before[4];
    for (int i = 0; i < 4; i++) {
        before[i] = tables[i]->values ? copy_buffer(tables[i]->values, tables[i]->table.total) : NULL;
    }
    floatS* running = copy_buffer(t.disc.running, t.disc.running_table.total);
    train_steps(&t, 3);
    for (int i = 0; i < 4; i++) {
        if (before[i]) check_moved(tables[i], before[i], first[i]);
        free(before[i]);
    }
    check(!same_bits(running, t.disc.running, t.disc.running_table.total), "running statistics move");
    check(t.disc.batches_tracked == 9, "three updates of the running statistics a step");
    check(t.params.t == 3 && t.disc_params.t == 3, "three steps");
    free(running);
    tokenizer_free(&t);
}

// The discriminator learns nothing before it starts, but its steps are counted; the rest trains as without it.
static void test_disc_start(void) {
    static tokenizer_t late, never;
    tokenizer_config_t config = bed_config(1);
    config.disc_start = 2;
    bed_make(&late, config);
    bed_randomise(&late);
    config.disc_start = 0;
    config.w_gan = 0;
    bed_make(&never, config);
    bed_copy(&never, &late);
    size_t n = late.disc_params.table.total;
    floatX* before = copy_buffer(late.disc_params.values, n);
    for (int i = 0; i < 2; i++) {
        bed_random_images(&late);
        memcpy(never.bytes, late.bytes, bed_image_values(&late));
        tokenizer_gradients(&late, i, 0);
        tokenizer_gradients(&never, i, 0);
        tokenizer_update(&late, i, 0);
        tokenizer_update(&never, i, 0);
    }
    check(same_bits(late.disc_params.values, before, n), "weights stay");
    check(same_bits(never.disc_params.values, before, n), "weights stay without a GAN");
    check(bed_norm(late.disc_params.m, n) == 0 && bed_norm(late.disc_params.v, n) == 0, "moments stay");
    check(late.disc.batches_tracked == 0, "running statistics stay");
    check(late.disc_params.t == 2 && never.disc_params.t == 2, "steps are counted");
    check(late.measures.omega_g[0] == 0 && late.measures.hinge[0] == 0, "nothing is measured");
    check(same_bits(late.params.values, never.params.values, late.params.table.total), "the rest trains without it");
    train_steps(&late, 1);
    train_steps(&never, 1);
    check(late.measures.omega_g[0] > 0, "then it acts");
    check(!same_bits(late.disc_params.values, before, n) && late.disc_params.t == 3, "then it learns");
    check(same_bits(never.disc_params.values, before, n) && never.disc_params.t == 3, "w_gan 0: it never does");
    free(before);
    tokenizer_free(&late);
    tokenizer_free(&never);
}

// The power-function average is the weights after the first update, and lies behind them after the second.
static void test_averages(void) {
    static tokenizer_t t;
    bed_make(&t, bed_config(1));
    bed_randomise(&t);
    params_t* p = &t.params;
    size_t n = params_trained(p);
    params_start_averages(p);
    train_steps(&t, 1);
    check(same_bits(p->ema[0], p->master, n) && same_bits(p->ema[1], p->master, n), "one update: averages = weights");
    train_steps(&t, 1);
    check(!same_bits(p->ema[0], p->master, n) && !same_bits(p->ema[0], p->ema[1], n), "two updates: three things");
    floatX* values = copy_buffer(p->values, p->table.total);
    floatS* average = copy_buffer(p->ema[1], n);
    replicas_exchange_ema(p, 1, NULL, 0);
    check(same_bits(p->values + p->first, average, n) && same_bits(p->ema[1], values + p->first, n), "exchanged");
    replicas_exchange_ema(p, 1, NULL, 0);
    check(same_bits(p->values, values, p->table.total) && same_bits(p->ema[1], average, n), "and back");
    free(values);
    free(average);
    tokenizer_free(&t);
}

// ---------------------------------------------------------------------------------------------------------------------
// Checkpoints

static void save_checkpoint(tokenizer_t* t, const char* path) {
    floatS mean[8], std[8];
    char error[512] = "";
    for (int i = 0; i < t->z; i++) mean[i] = (floatS)(0.1 * i), std[i] = (floatS)(1 + i);
    int64_t steps = t->params.t;
    checkpoint_info_t info = {t->config.stage, steps, steps * t->config.batch, 0, 0, 0, "{\"ch\": 8}", steps, steps};
    check(checkpoint_save(path, t, &info, mean, std, error, sizeof error, 0), "saved");
    check(!error[0], error);
}

// A tokenizer that has trained for three steps, so that no buffer is zero, saved as "checkpoint".
static void make_checkpoint(tokenizer_t* t, tokenizer_config_t config, char path[TEMPORARY_PATH]) {
    bed_make(t, config);
    bed_randomise(t);
    params_start_averages(&t->params);
    train_steps(t, 3);
    save_checkpoint(t, temporary_path(path, "checkpoint"));
}

static void check_same_state(const tokenizer_t* a, const tokenizer_t* b) {
    const params_t *p = &a->params, *q = &b->params, *d = &a->disc_params, *e = &b->disc_params;
    size_t n = params_trained(p), m = params_trained(d);
    check(same_bits(p->values, q->values, p->table.total), "weights");
    check(same_bits(p->m, q->m, n) && same_bits(p->v, q->v, n), "moments");
    check(same_bits(p->ema[0], q->ema[0], n) && same_bits(p->ema[1], q->ema[1], n), "averages");
    check(same_bits(d->values, e->values, m), "discriminator");
    check(same_bits(d->m, e->m, m) && same_bits(d->v, e->v, m), "moments of the discriminator");
    check(same_bits(a->disc.running, b->disc.running, a->disc.running_table.total), "running statistics");
    check(p->t == q->t && d->t == e->t && a->disc.batches_tracked == b->disc.batches_tracked, "counts");
    if (a->config.stage == 2) {
        check(same_bits(a->target_params.values, b->target_params.values, a->target_params.table.total), "frozen copy");
    }
}

// Saved, loaded into another tokenizer, and both go on: the same bits, now and after two more steps.
static void test_resume(tokenizer_config_t config) {
    static tokenizer_t t, fresh;
    char path[TEMPORARY_PATH];
    temporary_begin();
    make_checkpoint(&t, config, path);
    bed_make(&fresh, config);
    bed_randomise(&fresh);
    if (tokenizer_is_baseline(&config)) { // the teacher is loaded, as LPIPS is
        memcpy(fresh.target_params.values, t.target_params.values, t.target_params.table.total * sizeof(floatX));
    }
    memcpy(fresh.lpips_params.values, t.lpips_params.values, t.lpips_params.table.total * sizeof(floatX));
    safetensors_t f;
    checkpoint_info_t info = checkpoint_open(&f, path);
    check(info.stage == config.stage && info.step == 3 && info.images == 18, "metadata");
    check(!strcmp(info.config, "{\"ch\": 8}"), "configuration");
    checkpoint_resume(&f, &info, path, &fresh);
    floatS std[8];
    checkpoint_read_vector(&f, path, "latent.std", std, t.z);
    check(std[0] == 1 && std[t.z - 1] == (floatS)t.z, "latent.std");
    safetensors_close(&f);
    check_same_state(&t, &fresh);
    check(bed_norm(t.params.m, params_trained(&t.params)) > 0 && bed_norm(t.disc_params.v, 8) > 0, "nothing is empty");
    for (int i = 0; i < 2; i++) {
        bed_random_images(&t);
        memcpy(fresh.bytes, t.bytes, bed_image_values(&t));
        tokenizer_t* both[2] = {&t, &fresh};
        for (int k = 0; k < 2; k++) {
            tokenizer_gradients(both[k], 3 + i, 0);
            tokenizer_update(both[k], 3 + i, 0);
        }
    }
    check(same_bits(t.measure_block, fresh.measure_block, tokenizer_measure_count(&t)), "measures two steps later");
    check_same_state(&t, &fresh);
    tokenizer_free(&t);
    tokenizer_free(&fresh);
    temporary_end();
}

// The next stage starts from a checkpoint's raw weights (ema -1) or from an average; what was frozen there has none.
static void test_start_from(int stage, int ema) {
    static tokenizer_t t, next;
    char path[TEMPORARY_PATH];
    temporary_begin();
    make_checkpoint(&t, bed_config(stage), path);
    bed_make(&next, bed_config(stage + 1));
    bed_randomise(&next);
    safetensors_t f;
    checkpoint_info_t info = checkpoint_open(&f, path);
    checkpoint_start_from(&f, &info, path, &next, ema);
    safetensors_close(&f);
    const params_t *p = &t.params, *q = &next.params;
    const floatS* want = ema < 0 ? p->master : p->ema[ema];
    check(same_bits(q->values, p->values, p->first), "what was frozen");
    check(same_bits(q->values + p->first, want, params_trained(p)), "what was trained");
    check(same_bits(next.disc_params.values, t.disc_params.values, t.disc_params.table.total), "raw discriminator");
    check(same_bits(next.disc.running, t.disc.running, t.disc.running_table.total), "running statistics");
    check(next.disc.batches_tracked == t.disc.batches_tracked, "their count");
    check(q->t == 0 && next.disc_params.t == 0 && bed_norm(q->m, params_trained(q)) == 0, "optimisers begin again");
    if (stage == 1) {
        tokenizer_set_target(&next, 0);
        check(same_bits(next.target_params.values, q->values, next.decoder_begin), "the frozen copy");
    }
    tokenizer_free(&t);
    tokenizer_free(&next);
    temporary_end();
}

// Low-rank pairs between stages: stage 1's weights go past them, in either table; stage 3 has W + s B A in their place,
// of raw or of averaged factors.
static void test_lora_hand_over(void) {
    static tokenizer_t t, second, third;
    char path[TEMPORARY_PATH];
    safetensors_t f;
    tokenizer_config_t config = bed_config(2);
    config.lora = bed_lora;
    temporary_begin();
    make_checkpoint(&t, bed_config(1), path);
    bed_make(&second, config);
    bed_randomise(&second);
    floatX* pairs = copy_buffer(second.params.values, second.params.table.total);
    checkpoint_info_t info = checkpoint_open(&f, path);
    checkpoint_start_from(&f, &info, path, &second, -1);
    safetensors_close(&f);
    tokenizer_set_target(&second, 0);
    size_t encoder = second.lora_begin, adapter = second.adapter_begin, rest = t.params.table.total - encoder;
    check(same_bits(second.params.values, t.params.values, encoder), "encoder");
    check(same_bits(second.params.values + adapter, t.params.values + encoder, rest), "adapter and decoder");
    check(same_bits(second.params.values + encoder, pairs + encoder, adapter - encoder), "pairs keep their start");
    check(same_bits(second.target_params.values, t.params.values, t.decoder_begin), "the frozen copy");
    tokenizer_free(&second);

    make_checkpoint(&second, config, path);
    for (int ema = -1; ema < 2; ema++) {
        bed_make(&third, bed_config(3));
        info = checkpoint_open(&f, path);
        checkpoint_start_from(&f, &info, path, &third, ema);
        safetensors_close(&f);
        const floatS* trained = ema < 0 ? second.params.master : second.params.ema[ema];
        for (int i = 0; i < third.params.table.n; i++) {
            const param_t *p = &third.params.table.items[i], *q = param_find(&second.params.table, p->name);
            floatS* want = (floatS*)malloc_check(p->count * sizeof(floatS), "weights");
            memcpy(want, q->offset < encoder ? second.params.values + q->offset : trained + (q->offset - encoder),
                   p->count * sizeof(floatS));
            for (int k = 0; k < 8; k++) {
                const vit_block_t* b = &second.encoder.vit.blocks[k / 4];
                const lora_pair_t* pairs[4] = {&b->qkv_lora, &b->proj_lora, &b->fc1_lora, &b->fc2_lora};
                const size_t weights[4] = {b->qkv_weight, b->proj_weight, b->fc1_weight, b->fc2_weight};
                const lora_pair_t* pair = pairs[k % 4];
                if (weights[k % 4] != q->offset) continue;
                lora_merge(want, trained + (pair->a - encoder), trained + (pair->b - encoder), bed_lora.alpha, pair->OC,
                           pair->C, bed_lora.rank);
                check(!same_bits(want, second.params.values + q->offset, p->count), "a pair changes its weights");
            }
            check(same_bits(third.params.values + p->offset, want, p->count), p->name);
            free(want);
        }
        tokenizer_free(&third);
    }
    free(pairs);
    tokenizer_free(&t);
    tokenizer_free(&second);
}

// A baseline that starts from another: its raw weights, and what the file lacks stays.
static void test_start_baseline(recipe_t recipe, recipe_t next_recipe) {
    static tokenizer_t t, next;
    char path[TEMPORARY_PATH];
    temporary_begin();
    make_checkpoint(&t, bed_baseline(recipe, 1), path);
    bed_make(&next, bed_baseline(next_recipe, 1));
    bed_randomise(&next);
    floatX* before = copy_buffer(next.params.values, next.params.table.total);
    safetensors_t f;
    safetensors_open_or_die(&f, path);
    int has = checkpoint_start_baseline(&f, "", path, &next);
    safetensors_close(&f);
    int both = recipe == RECIPE_VAVAE && next_recipe == RECIPE_VAVAE;
    check(has == (START_DISCRIMINATOR | (both ? START_PROJECTION : 0)), "what the file had");
    for (int i = 0; i < next.params.table.n; i++) {
        const param_t *p = &next.params.table.items[i], *from = param_find(&t.params.table, p->name);
        int projection = !strcmp(p->name, "linear_proj.weight");
        const floatX* want = projection && !both ? before + p->offset : t.params.values + from->offset;
        check(same_bits(next.params.values + p->offset, want, p->count), p->name);
    }
    check(same_bits(next.disc_params.values, t.disc_params.values, t.disc_params.table.total), "the discriminator");
    check(same_bits(next.disc.running, t.disc.running, t.disc.running_table.total), "running statistics");
    check(next.params.t == 0 && next.disc_params.t == 0, "optimisers begin again");
    free(before);
    tokenizer_free(&t);
    tokenizer_free(&next);
    temporary_end();
}

// In a child: resumes the checkpoint with another configuration.
static void resume_wrong(const char* what) {
    static tokenizer_t t;
    char path[TEMPORARY_PATH];
    tokenizer_config_t config = bed_config(1);
    if (!strcmp(what, "latent channels")) config.decoder.z_channels++;
    if (!strcmp(what, "decoder level")) config.decoder.ch_mult[2]++;
    if (!strcmp(what, "depth")) config.encoder.depth++;
    if (!strcmp(what, "discriminator")) config.disc.ndf++;
    if (!strcmp(what, "stage")) config.stage = 2;
    if (!strcmp(what, "VA-VAE")) config = bed_baseline(RECIPE_VAVAE, 1);
    if (!strcmp(what, "VA-VAE with a ViT")) config = bed_baseline(RECIPE_VAVAE, 0);
    bed_make(&t, config);
    safetensors_t f;
    temporary_path(path, !strcmp(what, "foreign") ? "foreign" : "checkpoint");
    checkpoint_info_t info = checkpoint_open(&f, path);
    checkpoint_resume(&f, &info, path, &t);
}

// A file that is safetensors, but no checkpoint.
static void write_foreign(void) {
    char path[TEMPORARY_PATH], error[512];
    st_writer_t w;
    floatS zero = 0;
    size_t one = 1;
    safetensors_writer_init(&w);
    safetensors_writer_tensor(&w, "x", ST_F32, 1, &one);
    safetensors_writer_begin(&w, temporary_path(path, "foreign"));
    safetensors_writer_data(&w, &zero, 1);
    check(safetensors_writer_finish(&w, error, sizeof error), "written");
}

// What does not fit is refused, with the file, the first tensors and what to do.
static void test_refusals(void) {
    static const char* const asked[][3] = {
        {"latent channels", "do not fit this configuration", "adapter.fc2.weight"},
        {"decoder level", "use the flags that the file was made with", "decoder.conv_in.weight"},
        {"depth", "missing", "encoder.blocks.2.norm1.weight"},
        {"discriminator", "of another shape", "loss.discriminator.main.0.weight"},
        {"stage", "missing", "ema.0.encoder.cls_token"},
        {"VA-VAE", "missing", "encoder.conv_in.weight"},
        {"VA-VAE with a ViT", "do not fit this configuration", "adapter.fc2.weight"},
        {"foreign", "not a tokenizer checkpoint", "give a file that train_tokenizer wrote"}};
    static tokenizer_t t;
    char path[TEMPORARY_PATH];
    temporary_begin();
    make_checkpoint(&t, bed_config(1), path);
    write_foreign();
    for (size_t i = 0; i < sizeof asked / sizeof asked[0]; i++) {
        check_message(resume_wrong, asked[i][0], asked[i][1], asked[i][2]);
        char* said = temporary_read("stderr", NULL);
        const char* file = strcmp(asked[i][0], "foreign") ? "/checkpoint: " : "/foreign: ";
        check(said && strstr(said, file) != NULL, "the message names the file");
        free(said);
    }
    check(temporary_run_child(resume_wrong, "nothing") == 0, "the right configuration is taken");
    tokenizer_free(&t);
    temporary_end();
}

// ---------------------------------------------------------------------------------------------------------------------
// Sizes

// Steps of other sizes, in turn, and in memory that holds nothing but NaN each time. `alone` is made for one size.
static void test_sizes(tokenizer_config_t config) {
    static const int sizes[5][2] = {{20, 12}, {12, 24}, {12, 12}, {24, 12}, {12, 20}};
    static tokenizer_t t, alone;
    bed_make_sizes(&t, config, sizes, 4);
    bed_randomise(&t);
    tokenizer_freeze(&t);
    size_t most = 0, room = plan_bytes(&t.plan);
    for (int i = 0; i < 5; i++) {
        config.H = sizes[i][0];
        config.W = sizes[i][1];
        bed_make(&alone, config);
        if (plan_bytes(&alone.plan) > most) most = plan_bytes(&alone.plan);
        bed_poison(&t);
        tokenizer_resize(&t, config.H, config.W);
        bed_random_images(&t);
        bed_copy(&alone, &t);
        tokenizer_freeze(&alone);
        tokenizer_gradients(&t, 0, 0);
        tokenizer_gradients(&alone, 0, 0);
        check(bed_norm(alone.params.grads, params_trained(&alone.params)) > 0, "there are gradients");
        check(same_bits(t.params.grads, alone.params.grads, params_trained(&t.params)), "gradients");
        size_t n = params_trained(&t.disc_params);
        check(same_bits(t.disc_params.grads, alone.disc_params.grads, n), "and the other's");
        check(same_bits(t.measure_block, alone.measure_block, tokenizer_measure_count(&t)), "measures");
        check(same_bits(t.decoder.out, alone.decoder.out, bed_image_values(&t)), "reconstructions");
        tokenizer_update(&t, 0, 0);
        tokenizer_free(&alone);
    }
    check(plan_bytes(&t.plan) == room && room == most, "the memory of the largest, and no more");
    tokenizer_free(&t);
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    tokenizer_config_t cheap = bed_config(2), fc2 = bed_config(2), tokens = bed_config(2), lora = bed_config(2);
    const size_t of_ldm = 41417603, large = 351285859;
    tokenizer_config_t vavae = bed_baseline(RECIPE_VAVAE, 1), vavae_vit = bed_baseline(RECIPE_VAVAE, 0);
    cheap.recompute = 1;
    cheap.semantic_measure = SEMANTIC_FIRST_CHUNK;
    fc2.semantic_tensor = tokens.semantic_tensor = SEMANTIC_AT_FC2;
    tokens.semantic_place = SEMANTIC_OF_TOKENS;
    lora.lora = bed_lora;
    if (test_case("fixture stage2_step")) { bed_check_stage2_step(ORIGINAL); test_end_case(); }
    if (test_case("fixture stage2_step, omega_s at mlp.fc2")) { bed_check_stage2_fc2(ORIGINAL); test_end_case(); }
    if (test_case("fixture stage2_tokens")) { bed_check_stage2_tokens(ORIGINAL); test_end_case(); }
    if (test_case("fixture vavae_step")) { bed_check_vavae_step(ORIGINAL); test_end_case(); }
    if (test_case("counts of imagenet, stage 1")) {
        test_counts("imagenet", "1", "ldm", "0", 304435296, of_ldm, 44250916, 319083776);
        test_end_case();
    }
    if (test_case("counts of imagenet, stage 2")) {
        test_counts("imagenet", "2", "ldm", "0", 304435296, of_ldm, 348618532, 319083776);
        test_end_case();
    }
    if (test_case("counts of imagenet, stage 3")) {
        test_counts("imagenet", "3", "ldm", "0", 304435296, of_ldm, 44183236, 319151456);
        test_end_case();
    }
    if (test_case("counts of imagenet, larger decoder")) {
        test_counts("imagenet", "1", "large", "0", 304435296, large, 44250916 - of_ldm + large, 319083776);
        test_end_case();
    }
    // a CNN comes with quant_conv, 4,160, and post_quant_conv, 1,056; VA-VAE's projection has 32,768
    if (test_case("counts of vae")) {
        test_counts("vae", "1", "ldm", "0", 28417408, 41418659, 72601700, 14716160);
        test_end_case();
    }
    if (test_case("counts of vavae")) {
        test_counts("vavae", "1", "ldm", "0", 28450176, 41418659, 72634468, 319083776);
        test_end_case();
    }
    if (test_case("counts of vavae_vit")) {
        test_counts("vavae_vit", "1", "ldm", "0", 304470144, 41417603, 348653380, 319083776);
        test_end_case();
    }
    if (test_case("counts of imagenet, stage 2 with low-rank pairs")) {
        test_counts("imagenet", "2", "ldm", "16", 304435296, of_ldm, 44250916 + 6291456, 319083776 + 304367616);
        test_end_case();
    }
    if (test_case("complexity (error in units of the last published digit)")) { test_complexity(); test_end_case(); }
    if (test_case("stage 2, first step")) { test_first_step(bed_config(2)); test_end_case(); }
    if (test_case("stage 2, first step, recompute, first chunk")) { test_first_step(cheap); test_end_case(); }
    if (test_case("stage 2, first step, at mlp.fc2")) { test_first_step(fc2); test_end_case(); }
    if (test_case("stage 2, first step, tokens")) { test_first_step(tokens); test_end_case(); }
    if (test_case("stage 2, first step, low-rank pairs")) { test_first_step(lora); test_end_case(); }
    if (test_case("recompute gives the same bits")) { test_recompute(bed_config(2)); test_end_case(); }
    if (test_case("recompute gives the same bits, at mlp.fc2")) { test_recompute(fc2); test_end_case(); }
    if (test_case("recompute gives the same bits, tokens")) { test_recompute(tokens); test_end_case(); }
    if (test_case("recompute gives the same bits, low-rank pairs")) { test_recompute(lora); test_end_case(); }
    if (test_case("recompute gives the same bits, stage 2, larger decoder")) {
        test_recompute(bed_large_config(2));
        test_end_case();
    }
    if (test_case("recompute gives the same bits, stage 1, larger decoder")) {
        test_recompute(bed_large_config(1));
        test_end_case();
    }
    if (test_case("first chunk of one is exact")) { test_first_chunk(); test_end_case(); }
    cheap.encoder = *vit_config_find("tiny-reg");
    tokenizer_config_t folded = bed_config(1), last = bed_config(3);
    folded.fold = last.fold = 1;
    tokenizer_config_t pairs = bed_config(2);
    pairs.lora = bed_lora;
    if (test_case("sizes in turn, stage 1, folded")) { test_sizes(folded); test_end_case(); }
    if (test_case("sizes in turn, stage 2")) { test_sizes(bed_config(2)); test_end_case(); }
    if (test_case("sizes in turn, stage 2, registers, recompute, first chunk")) { test_sizes(cheap); test_end_case(); }
    if (test_case("sizes in turn, stage 2, larger decoder")) { test_sizes(bed_large_config(2)); test_end_case(); }
    if (test_case("sizes in turn, stage 2, low-rank pairs")) { test_sizes(pairs); test_end_case(); }
    if (test_case("sizes in turn, stage 3, folded")) { test_sizes(last); test_end_case(); }
    if (test_case("the folded teacher is the teacher")) { test_folded_teacher(); test_end_case(); }
    if (test_case("stage 1 freezes the encoder")) { test_frozen(bed_config(1)); test_end_case(); }
    if (test_case("stage 2 freezes the copy alone")) { test_frozen(bed_config(2)); test_end_case(); }
    if (test_case("stage 2 with low-rank pairs freezes the encoder")) { test_frozen(lora); test_end_case(); }
    if (test_case("stage 3 freezes encoder and adapter")) { test_frozen(bed_config(3)); test_end_case(); }
    if (test_case("stage 3 trains all of the larger decoder")) { test_frozen(bed_large_config(3)); test_end_case(); }
    if (test_case("VA-VAE freezes the teacher alone")) { test_frozen(vavae); test_end_case(); }
    if (test_case("VA-VAE with a ViT freezes the teacher alone")) { test_frozen(vavae_vit); test_end_case(); }
    if (test_case("the discriminator's start")) { test_disc_start(); test_end_case(); }
    if (test_case("averages")) { test_averages(); test_end_case(); }
    if (test_case("resume, stage 1")) { test_resume(bed_config(1)); test_end_case(); }
    if (test_case("resume, stage 2")) { test_resume(bed_config(2)); test_end_case(); }
    if (test_case("resume, stage 2, low-rank pairs")) { test_resume(lora); test_end_case(); }
    if (test_case("low-rank pairs between stages")) { test_lora_hand_over(); test_end_case(); }
    if (test_case("resume, stage 3")) { test_resume(bed_config(3)); test_end_case(); }
    if (test_case("resume, stage 2, larger decoder")) { test_resume(bed_large_config(2)); test_end_case(); }
    if (test_case("resume, VA-VAE")) { test_resume(vavae); test_end_case(); }
    if (test_case("resume, VA-VAE with a ViT")) { test_resume(vavae_vit); test_end_case(); }
    if (test_case("stage 2 from raw weights")) { test_start_from(1, -1); test_end_case(); }
    if (test_case("stage 2 from an average")) { test_start_from(1, 1); test_end_case(); }
    if (test_case("stage 3 from raw weights")) { test_start_from(2, -1); test_end_case(); }
    if (test_case("stage 3 from an average")) { test_start_from(2, 0); test_end_case(); }
    if (test_case("VA-VAE from VA-VAE")) { test_start_baseline(RECIPE_VAVAE, RECIPE_VAVAE); test_end_case(); }
    if (test_case("VA-VAE from a VAE")) { test_start_baseline(RECIPE_VAE, RECIPE_VAVAE); test_end_case(); }
    if (test_case("a VAE from VA-VAE")) { test_start_baseline(RECIPE_VAVAE, RECIPE_VAE); test_end_case(); }
    if (test_case("refusals")) { test_refusals(); test_end_case(); }
    return test_finish();
}
