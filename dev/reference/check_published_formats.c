// check_published_formats.c: files in the published layouts at full size, loaded by the code that loads the originals.
//
//     python dev/reference/make_published_formats.py LightningDiT --full FOLDER
//     make build/cpu/check_published_formats && build/cpu/check_published_formats FOLDER
//
// Prints one line a file that is there: how far its outputs are from the original module's (float32 on both sides), how
// long opening and one pass took, and a bound. Not part of `make test`: it needs 9 GB of files and Python; the same
// comparisons with narrow files are tests/test_published_weights.c.
#include <unistd.h>

// defines: clock_seconds
#include "common/program/clock.h"
// defines: published_vavae, published_lightningdit, published_vit
#include "tests/published.h"

#define BOUND 1e-4

// 1 where a file of this name is in the folder; its path goes to `path`.
static int there(char path[1200], const char* folder, const char* name) {
    snprintf(path, 1200, "%s/%s", folder, name);
    return !access(path, R_OK);
}

// Prints what was seen; 1 beyond the bound.
static int report(const char* name, const char* what, double error, double seconds) {
    printf("%-40s %-28s %.2e  (bound %.0e)  %6.1f s\n", name, what, error, BOUND, seconds);
    fflush(stdout);
    return !(error <= BOUND);
}

static int check_vavae(const char* path, const char* name, const safetensors_t* answers) {
    static autoencoder_t a;
    double start = clock_seconds();
    published_vavae_t e = published_vavae(&a, path, answers);
    double seconds = clock_seconds() - start;
    printf("%-40s f%dd%d, %zu parameters, %d other tensors, %s\n", name, a.H / a.GH, a.z,
           param_count(&a.params.table, 0, a.params.table.total), a.others, a.fingerprint);
    int failed = report(name, "mean of the latent", e.mean, seconds);
    failed += report(name, "its deviation", e.std, seconds);
    failed += report(name, "reconstruction", e.image, seconds);
    autoencoder_close(&a);
    return failed;
}

static int check_lightningdit(const char* path, const char* name, const safetensors_t* answers) {
    lightningdit_config_t c;
    double start = clock_seconds();
    double error = published_lightningdit(path, answers, 0, &c);
    printf("%-40s %s, %d channels, side %d, %d classes\n", name, c.id, c.C, c.side, c.classes);
    return report(name, "velocity", error, clock_seconds() - start);
}

int main(int argc, char** argv) {
    static const char* const vits[][3] = {
        {"dinov2_vitl14_pretrain.pth", "dinov2", "dinov2-l"},
        {"dinov2_vitl14_reg4_pretrain.pth", "dinov2_reg", "dinov2-l-reg"},
        {"mae_pretrain_vit_large.pth", "mae", "mae-l"}};
    static const char* const vavae = "vavae-imagenet256-f16d32-dinov2.pt";
    static const char* const dit = "lightningdit-xl-imagenet256-800ep.pt";
    if (argc != 2) fatal("usage: check_published_formats FOLDER (see make_published_formats.py)");
    char path[1200];
    int failed = 0;
    safetensors_t answers;
    if (!there(path, argv[1], "published.safetensors")) fatal("%s is missing; make it first", path);
    safetensors_open_or_die(&answers, path);
    if (there(path, argv[1], vavae)) failed += check_vavae(path, vavae, &answers);
    if (there(path, argv[1], dit)) failed += check_lightningdit(path, dit, &answers);
    for (size_t i = 0; i < sizeof vits / sizeof vits[0]; i++) {
        if (!there(path, argv[1], vits[i][0])) continue;
        double start = clock_seconds();
        double error = published_vit(path, &answers, vits[i][1], vit_config_find(vits[i][2]));
        failed += report(vits[i][0], "tokens", error, clock_seconds() - start);
    }
    safetensors_close(&answers);
    return failed ? 1 : 0;
}
