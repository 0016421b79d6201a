// row_picture.h: a picture of rows of images, each row with its name at the left: what several tokenizers make of the
// same images.
//
//     row_picture_open(&p, columns, H, W);
//     uint8_t* row = row_picture_add(&p, "stage3.safetensors");      (columns, H, W, 3), to be filled
//     row_picture_write(&p, path, "what the rows are");
//     row_picture_close(&p);
//
// Look next at common/data/image.h and common/data/text.h.
#pragma once
// defines: image_t, image_create, image_grid, image_write_png, image_free
#include "common/data/image.h"
// defines: fatal, calloc_check
#include "common/program/log.h"
// defines: text_draw, text_width
#include "common/data/text.h"

enum { ROW_PICTURE_ROWS = 24 };

typedef struct {
    int rows, columns, H, W;
    char names[ROW_PICTURE_ROWS][80];
    uint8_t* cells; // (ROW_PICTURE_ROWS, columns, H, W, 3)
} row_picture_t;

static inline void row_picture_open(row_picture_t* p, int columns, int H, int W) {
    memset(p, 0, sizeof *p);
    p->columns = columns;
    p->H = H;
    p->W = W;
    p->cells = (uint8_t*)calloc_check((size_t)ROW_PICTURE_ROWS * columns * H * W, 3, "a picture");
}

static inline void row_picture_close(row_picture_t* p) {
    free(p->cells);
    memset(p, 0, sizeof *p);
}

// The next row, black; named after a file, without its folder. Past the last row, that is used again.
static inline uint8_t* row_picture_add(row_picture_t* p, const char* name) {
    const char* slash = strrchr(name, '/');
    int row = p->rows < ROW_PICTURE_ROWS ? p->rows++ : ROW_PICTURE_ROWS - 1;
    snprintf(p->names[row], sizeof p->names[0], "%s", slash ? slash + 1 : name);
    return p->cells + (size_t)row * p->columns * p->H * p->W * 3;
}

static inline void row_picture_write(const row_picture_t* p, const char* path, const char* what) {
    int zoom = p->H < 100 ? 3 : 1, margin = 0, scale = p->H * zoom < 80 ? 1 : 2;
    image_t grid = image_grid(p->cells, p->rows, p->columns, p->H, p->W, zoom);
    for (int r = 0; r < p->rows; r++) {
        if (text_width(scale, p->names[r]) > margin) margin = text_width(scale, p->names[r]);
    }
    margin += 16;
    image_t page = image_create(grid.height, grid.width + margin);
    memset(page.pixels, 255, (size_t)page.height * page.width * 3);
    for (int y = 0; y < grid.height; y++) {
        memcpy(page.pixels + ((size_t)y * page.width + margin) * 3, grid.pixels + (size_t)y * grid.width * 3,
               (size_t)grid.width * 3);
    }
    for (int r = 0; r < p->rows; r++) {
        text_draw(&page, 8, (int)((r + 0.5) * grid.height / p->rows) - 4 * scale, scale, 0x222222, p->names[r]);
    }
    char error[IMAGE_ERROR_SIZE];
    image_text_t text = {"Rows", what};
    if (!image_write_png(path, &page, &text, 1, error)) fatal("%s; choose another folder with -out", error);
    image_free(&grid);
    image_free(&page);
}
