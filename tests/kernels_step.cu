// kernels_step.cu: one whole training step on the kernels: in it nothing is allocated and the host never waits for the
// device; and the same step with the threads in another order gives the same bits.
//
// The tokenizer is as small as its structure allows: 24 pixels, two chunks of one image, stage 2, which has everything
// that the other stages have, as the paper has it and with its variations, and VA-VAE. Its losses are compared with the
// CPU build's in tests/test_emulated.sh. Look next at common/training/tokenizer.h.

// defines: options_t, options_parse, options_tokenizer; tokenizer_t and its functions
#include "common/training/tokenizer_options.h"
// defines: algorithms_step
#include "common/training/algorithms.h"
// defines: test_begin, test_case, check, test_uniform
#include "tests/test.h"

static void make_tokenizer(tokenizer_t* t, const char* flags, stream_t s) {
    static options_t options;
    static cli_t cli;
    char text[600];
    snprintf(text, sizeof text, "kernels_step %s -data shapes -image_size 24 -batch 2 -chunk 1 -vgg_channels 8,8 -ch 8 "
             "-ch_mult 1,1,2,2 -groups 4 -ndf 4 -z_channels 8 -adapter_hidden 16 -disc_start 0 -lr 1e-3", flags);
    char* arguments[64];
    int n = 0;
    for (char* at = strtok(text, " "); at; at = strtok(NULL, " ")) arguments[n++] = at;
    options_parse(&options, &cli, n, arguments);
    tokenizer_register(t, options_tokenizer(&options, 1));
    cli_free(&cli);
    tokenizer_plan(t);
    tokenizer_allocate(t);
    params_init(&t->params, 1);
    params_init(&t->disc_params, 2);
    params_init(&t->lpips_params, 3);
    params_start_averages(&t->params);
    if (t->config.stage == 2) tokenizer_set_target(t, s);
    else params_init(&t->target_params, 4);
    tokenizer_freeze(t);
    size_t bytes = t->config.batch * 3 * tokenizer_pixels(t);
    uint8_t* images = (uint8_t*)malloc_check(bytes, "images");
    for (size_t i = 0; i < bytes; i++) images[i] = (uint8_t)(127.5 * (test_uniform() + 1));
    copy_to_device(t->bytes, images, bytes, 0);
    free(images);
}

static void step(tokenizer_t* t, int64_t number, stream_t s) {
    algorithms_step(s, 1);
    tokenizer_gradients(t, number, s);
    algorithms_step(s, 0);
    tokenizer_update(t, number, s);
}

// A second step; the first has measured the algorithms of every product.
static void check_another_step(tokenizer_t* t, stream_t s) {
#ifdef EMU
    size_t allocations = emu_allocations(), synchronisations = emu_synchronisations();
#endif
    step(t, 1, s);
#ifdef EMU
    check(emu_allocations() == allocations, "no allocation in a step");
    check(emu_synchronisations() == synchronisations, "no wait of the host in a step");
#endif
    stream_wait(s);
}

// The weights after a step, on the host; free() them. With order 0 another step follows.
static floatS* train(const char* flags, stream_t s, int order, size_t* n, tokenizer_report_t* report) {
    static tokenizer_t t;
#ifdef EMU
    emu_set_order(order);
#endif
    make_tokenizer(&t, flags, s);
    step(&t, 0, s);
    floatS* measures = (floatS*)malloc_check(tokenizer_measure_count(&t) * sizeof(floatS), "measures");
    *report = tokenizer_read(&t, measures, s);
    free(measures);
    *n = params_trained(&t.params);
    floatS* weights = (floatS*)malloc_check(*n * sizeof(floatS), "weights");
    copy_to_host(weights, t.params.master, *n * sizeof(floatS), 0);
    if (order == 0) check_another_step(&t, s);
    tokenizer_free(&t);
    return weights;
}

static void test_step(stream_t s, const char* name, const char* flags) {
    if (!test_case(name)) return;
    size_t n, m;
    tokenizer_report_t first, second;
    s->multiprocessors = 3;
    floatS* one = train(flags, s, 0, &n, &first);
    test_case(name); // the same images
    floatS* other = train(flags, s, 77, &m, &second);
    check(n == m && !memcmp(one, other, n * sizeof(floatS)), "the same weights, bit for bit");
    check(!memcmp(&first, &second, sizeof first), "the same report, bit for bit");
    check(first_not_finite(one, n) == n && isfinite(first.nll) && first.norm[0] > 0, "ordinary numbers");
    free(one);
    free(other);
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    stream_t s = device_open(0);
    test_step(s, "a step neither allocates nor waits, and does not depend on the order of threads",
              "-preset mini -stage 2 -encoder tiny");
    test_step(s, "the same of low-rank pairs, and of a semantic loss at the tokens",
              "-preset mini -stage 2 -encoder tiny -lora 3 -sem_at tokens");
    test_step(s, "the same of VA-VAE", "-preset mini_vavae -teacher tiny");
    device_close(s);
    return test_finish();
}
