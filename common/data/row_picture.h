// row_picture.h: a picture of rows of images, each row with its name at the left: what several tokenizers make of the
// same images.
//
//     row_picture_open(&p, columns, H, W);
//     uint8_t* row = row_picture_add(&p, "stage3.safetensors");      (columns, H, W, 3), to be filled
//     row_picture_write(&p, path, "what the rows are");                or row_picture_page(&p), to be written otherwise
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

enum { ROW_PICTURE_ROWS = 64 };

typedef struct {
    int rows, columns, H, W;
    char names[ROW_PICTURE_ROWS][80];
    const char* halves[2]; // what stands above the left and the right half of the columns, or NULL
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

// An image into the middle of a cell that is at least as large; around it the cell is white.
static inline void row_picture_centre(uint8_t* cell, int H, int W,                   // (H, W, 3)
                                      const uint8_t* image, int height, int width) { // (height, width, 3)
    size_t row = (size_t)width * 3;
    memset(cell, 255, (size_t)H * W * 3);
    for (int y = 0; y < height; y++) {
        memcpy(cell + ((size_t)((H - height) / 2 + y) * W + (W - width) / 2) * 3, image + y * row, row);
    }
}

// The whole picture; letters grow with the images. To be freed by image_free.
static inline image_t row_picture_page(const row_picture_t* p) {
    int zoom = p->H < 100 ? 3 : 1, margin = 0, scale = (p->H * zoom + 40) / 64;
    if (scale < 1) scale = 1;
    image_t grid = image_grid(p->cells, p->rows, p->columns, p->H, p->W, zoom);
    for (int r = 0; r < p->rows; r++) {
        if (text_width(scale, p->names[r]) > margin) margin = text_width(scale, p->names[r]);
    }
    margin += 16;
    int top = p->halves[0] ? (TEXT_ROWS + 4) * scale : 0;
    image_t page = image_create(top + grid.height, margin + grid.width);
    memset(page.pixels, 255, (size_t)page.height * page.width * 3);
    for (int y = 0; y < grid.height; y++) {
        memcpy(page.pixels + ((size_t)(top + y) * page.width + margin) * 3, grid.pixels + (size_t)y * grid.width * 3,
               (size_t)grid.width * 3);
    }
    for (int h = 0; h < 2 && top; h++) {
        text_draw(&page, margin + h * grid.width / 2, 2 * scale, scale, 0x222222, p->halves[h]);
    }
    for (int r = 0; r < p->rows; r++) {
        int middle = top + (int)((r + 0.5) * grid.height / p->rows);
        text_draw(&page, 8, middle - 4 * scale, scale, 0x222222, p->names[r]);
    }
    image_free(&grid);
    return page;
}

static inline void row_picture_write(const row_picture_t* p, const char* path, const char* what) {
    image_t page = row_picture_page(p);
    char error[IMAGE_ERROR_SIZE];
    image_text_t text = {"Rows", what};
    if (!image_write_png(path, &page, &text, 1, error)) fatal("%s; choose another folder with -out", error);
    image_free(&page);
}
