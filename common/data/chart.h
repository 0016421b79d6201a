// chart.h: line charts as pictures, drawn here: FID against sampling steps or guidance scale (Figure 4 of the AlignTok
// paper), curves of a training.
//
//   title                     A panel is one chart; chart_panels puts several side by side in one picture. Everything
//   -o- series  -s- series    is laid out from the text's scale s, which follows from the panel's size (2 for
//   |.......o....             520 x 600). Order: y ticks from the height, the left margin from their labels, x ticks
// y |..o.........             from the width, rows of the legend, and what is left is the plot.
//   |____________
//      x ticks                Axes: the drawable values, with a margin on both sides. Ticks stand at multiples of
//         x                   {1, 2, 5} 10^k; on a logarithmic axis at {1, 2, 5} 10^k themselves, or at powers of ten.
//
// Not measured yet is NaN: the line has a gap there, but the x axis keeps its place. Infinities, |v| > 1e200, and
// x <= 0 on a logarithmic axis are gaps too. Where all values are (nearly) equal, the axis goes 10% to both sides.
// Up to 16 points in a panel have their values written beside them, each on the side where the least ink lies already.
// Lines are antialiased: the cover of a pixel is clamp(half width + 1/2 - its distance from the line, 0, 1), and a
// series takes the maximum over its segments, so that joints and dense curves are no darker than the rest.
// Colours are Okabe and Ito's, which differ for colour-blind eyes too; markers differ by shape besides.
// Look next at common/data/text.h, which writes the letters.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// defines: image_t, image_create, image_free
#include "common/data/image.h"
// defines: calloc_check
#include "common/program/log.h"
// defines: image_blend, text_draw, text_draw_turned, text_width, text_cut
#include "common/data/text.h"

typedef struct {
    const char* name;       // in the legend; NULL or "": not there
    const double *x, *y;    // (count) each, x ascending; y is NaN where nothing was measured yet
    int count;
} chart_series_t;

typedef struct {
    const char *title, *x_label, *y_label; // NULL or "": none; too long ones are cut and end in ".."
    const chart_series_t* series;          // (series_count)
    int series_count;
    int logarithmic;                       // the x axis
    int ticks_at_points;                   // x ticks at the points themselves, such as 30, 50, 80, 120, 250
} chart_t;

enum { CHART_MAX_TICKS = 32, CHART_LABEL = 32, CHART_MAX_VALUES = 16, CHART_MAX_MARKERS = 40, CHART_COLOURS = 8 };

#define CHART_PAPER 0xFFFFFF
#define CHART_GRID 0xE4E4E4
#define CHART_INK 0x222222   // title and labels
#define CHART_FAINT 0x666666 // axes and their numbers
#define CHART_LARGEST 1e200
#define CHART_X_MARGIN 0.06  // of the range of the values, on both sides
#define CHART_Y_MARGIN 0.1   // values are written there

typedef struct { int x, y, width, height; } chart_box_t;
typedef struct { double low, high; int logarithmic; } chart_axis_t;
typedef struct { int count; double at[CHART_MAX_TICKS]; char label[CHART_MAX_TICKS][CHART_LABEL]; } chart_ticks_t;

// Where everything of a panel is. Pixel i covers [i, i + 1) of a place in double.
typedef struct {
    int scale;
    chart_box_t plot, legend;
    chart_axis_t x, y;
    chart_ticks_t x_ticks, y_ticks;
} chart_layout_t;

// ---------------------------------------------------------------------------------------------------------------------
// Axes

static inline int chart_drawable(double v, int logarithmic) {
    return fabs(v) <= CHART_LARGEST && (!logarithmic || v >= 1 / CHART_LARGEST);
}

static inline int chart_point_drawable(const chart_t* chart, const chart_series_t* series, int i) {
    return chart_drawable(series->x[i], chart->logarithmic) && chart_drawable(series->y[i], 0);
}

// From values to an axis around them, which has a width even where the values have none. low > high: no value.
static inline chart_axis_t chart_axis(double low, double high, double share, int logarithmic) {
    chart_axis_t axis = {0, 1, logarithmic};
    if (low > high) {
        if (logarithmic) axis.low = 1, axis.high = 10;
        return axis;
    }
    double largest = fmax(fabs(low), fabs(high));
    if (logarithmic) {
        double factor = high / low - 1 < 1e-9 ? 2 : pow(high, share) / pow(low, share);
        axis.low = low / factor, axis.high = high * factor;
    } else {
        double margin = share * (high - low);
        int equal = high - low < fmax(1e-9 * largest, 1 / CHART_LARGEST);
        if (equal) margin = largest > 1 / CHART_LARGEST ? 0.1 * largest : 1;
        axis.low = low - margin, axis.high = high + margin;
    }
    return axis;
}

static inline chart_axis_t chart_x_axis(const chart_t* chart) {
    double low = INFINITY, high = -INFINITY;
    for (int s = 0; s < chart->series_count; s++) {
        for (int i = 0; i < chart->series[s].count; i++) {
            double x = chart->series[s].x[i];
            if (chart_drawable(x, chart->logarithmic)) low = fmin(low, x), high = fmax(high, x);
        }
    }
    return chart_axis(low, high, CHART_X_MARGIN, chart->logarithmic);
}

static inline chart_axis_t chart_y_axis(const chart_t* chart) {
    double low = INFINITY, high = -INFINITY;
    for (int s = 0; s < chart->series_count; s++) {
        const chart_series_t* series = &chart->series[s];
        for (int i = 0; i < series->count; i++) {
            if (chart_point_drawable(chart, series, i)) low = fmin(low, series->y[i]), high = fmax(high, series->y[i]);
        }
    }
    return chart_axis(low, high, CHART_Y_MARGIN, 0);
}

// 0 at the low end, 1 at the high end.
static inline double chart_fraction(const chart_axis_t* axis, double v) {
    if (axis->logarithmic) return (log(v) - log(axis->low)) / (log(axis->high) - log(axis->low));
    return (v - axis->low) / (axis->high - axis->low);
}
static inline double chart_x(const chart_layout_t* layout, double v) {
    return layout->plot.x + layout->plot.width * chart_fraction(&layout->x, v);
}
static inline double chart_y(const chart_layout_t* layout, double v) {
    return layout->plot.y + layout->plot.height * (1 - chart_fraction(&layout->y, v));
}

// ---------------------------------------------------------------------------------------------------------------------
// Numbers as text, and ticks

// "1.5e-07" becomes "1.5e-7", "1e+06" becomes "1e6".
static inline void chart_shorten_exponent(char* text) {
    char* from = strchr(text, 'e');
    if (!from) return;
    char* to = ++from;
    if (*from == '-') to++;
    if (*from == '-' || *from == '+') from++;
    while (*from == '0' && from[1]) from++;
    memmove(to, from, strlen(from) + 1);
}

// The number at a tick, with the digits that tell it from its neighbours a `step` away.
static inline void chart_tick_text(char* out, double v, double step, double largest) { // (CHART_LABEL)
    int decimals = -(int)floor(log10(step) + 1e-9);
    if (v == 0) {
        snprintf(out, CHART_LABEL, "0");
    } else if (largest < 1e6 && decimals <= 4) {
        snprintf(out, CHART_LABEL, "%.*f", decimals > 0 ? decimals : 0, v);
    } else {
        int digits = (int)floor(log10(fabs(v)) + 1e-9) + decimals;
        snprintf(out, CHART_LABEL, "%.*e", digits < 0 ? 0 : digits > 12 ? 12 : digits, v);
        chart_shorten_exponent(out);
    }
}

// The value beside a point: hundredths from 1 on, fewer of larger ones, more where the axis shows finer differences.
static inline void chart_value_text(char* out, double v, double step) { // (CHART_LABEL)
    double size = fabs(v), unit = size >= 1e4 ? 1 : size >= 100 ? 0.1 : size >= 1 ? 0.01 : 0.001;
    if (size >= 1e6 || (size > 0 && size < 1e-2)) unit = pow(10, floor(log10(size)) - 2);
    chart_tick_text(out, v, fmax(fmin(unit, step / 5), 1 / CHART_LARGEST), size);
}

static inline void chart_add_tick(chart_ticks_t* ticks, double v) {
    if (ticks->count == CHART_MAX_TICKS) return;
    ticks->at[ticks->count] = v;
    snprintf(ticks->label[ticks->count], CHART_LABEL, "%.6g", v);
    chart_shorten_exponent(ticks->label[ticks->count++]);
}

// The smallest 1, 2 or 5 times a power of ten with at most `most` steps in `range`.
static inline double chart_step(double range, int most) {
    double power = pow(10, floor(log10(range / most)));
    static const double multiples[] = {1, 2, 5, 10, 20};
    for (int i = 0; i < 4; i++) {
        if (range <= multiples[i] * power * most) return multiples[i] * power;
    }
    return multiples[4] * power; // where rounding made the power too small
}

static inline void chart_linear_ticks(chart_ticks_t* ticks, const chart_axis_t* axis, int most) {
    double step = chart_step(axis->high - axis->low, most);
    double largest = fmax(fabs(axis->low), fabs(axis->high));
    ticks->count = 0;
    for (double i = ceil(axis->low / step); i * step <= axis->high && ticks->count < CHART_MAX_TICKS; i++) {
        chart_add_tick(ticks, i == 0 ? 0 : i * step); // no -0
        chart_tick_text(ticks->label[ticks->count - 1], ticks->at[ticks->count - 1], step, largest);
    }
}

// Powers of ten, every one or every few, each with its double and its fivefold where there is room.
static inline void chart_logarithmic_ticks(chart_ticks_t* ticks, const chart_axis_t* axis, int most) {
    static const double multiples[] = {1, 2, 5};
    int first = (int)floor(log10(axis->low)), last = (int)ceil(log10(axis->high));
    for (int level = 0; level <= last - first; level++) { // all three, then powers of ten, then every second, ...
        int of_each = level ? 1 : 3, stride = level ? level : 1;
        ticks->count = 0;
        int found = 0;
        for (int k = first; k <= last; k++) {
            for (int m = 0; m < of_each; m++) {
                double v = multiples[m] * pow(10, k);
                if (k % stride || v < axis->low || v > axis->high) continue;
                chart_add_tick(ticks, v);
                found++;
            }
        }
        if (found <= most) break;
    }
    if (ticks->count < 2) chart_linear_ticks(ticks, axis, most); // less than a decade
}

// One tick at each x there is. Returns 0 where there are none, or too many.
static inline int chart_point_ticks(chart_ticks_t* ticks, const chart_t* chart) {
    ticks->count = 0;
    for (int s = 0; s < chart->series_count; s++) {
        for (int i = 0; i < chart->series[s].count; i++) {
            double x = chart->series[s].x[i], at[CHART_MAX_TICKS];
            int known = 0, below = 0, count = ticks->count;
            if (!chart_drawable(x, chart->logarithmic)) continue;
            for (int k = 0; k < count; k++) known |= ticks->at[k] == x, below += ticks->at[k] < x;
            if (known) continue;
            if (count == CHART_MAX_TICKS) return 0;
            memcpy(at, ticks->at, sizeof at);
            ticks->count = 0;
            for (int k = 0; k <= count; k++) chart_add_tick(ticks, k < below ? at[k] : k == below ? x : at[k - 1]);
        }
    }
    return ticks->count > 0;
}

// The left end of a tick's label under the x axis: centred, but inside of the picture.
static inline int chart_x_label_left(const chart_layout_t* layout, int tick, int width) {
    int wide = text_width(layout->scale, layout->x_ticks.label[tick]);
    int left = (int)floor(chart_x(layout, layout->x_ticks.at[tick]) - 0.5 * wide + 0.5);
    int rightmost = width - 2 * layout->scale - wide;
    if (left > rightmost) left = rightmost;
    return left > 0 ? left : 0;
}

static inline int chart_x_labels_collide(const chart_layout_t* layout, int width) {
    int free_from = 0;
    for (int i = 0; i < layout->x_ticks.count; i++) {
        int left = chart_x_label_left(layout, i, width);
        if (left < free_from) return 1;
        free_from = left + text_width(layout->scale, layout->x_ticks.label[i]) + 7 * layout->scale;
    }
    return 0;
}

static inline void chart_x_ticks(chart_layout_t* layout, const chart_t* chart, int width) {
    if (chart->ticks_at_points && chart_point_ticks(&layout->x_ticks, chart)) return;
    for (int most = layout->plot.width / (22 * layout->scale); ; most--) {
        if (most > 12) most = 12;
        if (most < 2) most = 2;
        if (layout->x.logarithmic) chart_logarithmic_ticks(&layout->x_ticks, &layout->x, most);
        else chart_linear_ticks(&layout->x_ticks, &layout->x, most);
        if (most == 2 || !chart_x_labels_collide(layout, width)) return;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Drawing

static inline void chart_fill(image_t* image, int x, int y, int width, int height, uint32_t colour) {
    for (int v = y; v < y + height; v++) {
        for (int u = x; u < x + width; u++) image_blend(image, u, v, colour, 1);
    }
}

static inline uint32_t chart_colour(int series) {
    static const uint32_t colours[CHART_COLOURS] = {0x0072B2, 0xD55E00, 0x009E73, 0xCC79A7,
                                                    0xE69F00, 0x56B4E9, 0x000000, 0xF0E442};
    return colours[series % CHART_COLOURS];
}

// The colour of text that belongs to a series: darker, for thin letters on white.
static inline uint32_t chart_text_colour(int series) {
    uint32_t c = chart_colour(series);
    return (c >> 16 & 255) * 3 / 4 << 16 | (c >> 8 & 255) * 3 / 4 << 8 | (c & 255) * 3 / 4;
}

// The distance of (dx, dy) from the rim of a marker of radius r, about; negative inside.
static inline double chart_marker_distance(int series, double dx, double dy, double r) {
    switch ((series + series / CHART_COLOURS) % 4) {
        case 0: return hypot(dx, dy) - r;                                               // circle
        case 1: return fmax(fabs(dx), fabs(dy)) - 0.88 * r;                             // square
        case 2: return fmax(0.866 * fabs(dx) - 0.5 * dy - 0.62 * r, dy - 0.75 * r);     // triangle
        default: return (fabs(dx) + fabs(dy) - 1.3 * r) * 0.7071;                       // diamond
    }
}

// A marker with a rim of paper that parts it from lines below it.
static inline void chart_marker(image_t* image, int series, int scale, double x, double y) {
    double r = 2.4 * scale, rim = 0.6 * scale;
    for (int v = (int)(y - 2 * r) - 1; v <= (int)(y + 2 * r) + 1; v++) {
        for (int u = (int)(x - 2 * r) - 1; u <= (int)(x + 2 * r) + 1; u++) {
            double distance = chart_marker_distance(series, u + 0.5 - x, v + 0.5 - y, r);
            image_blend(image, u, v, CHART_PAPER, fmax(0, fmin(1, rim + 0.5 - distance)));
            image_blend(image, u, v, chart_colour(series), fmax(0, fmin(1, 0.5 - distance)));
        }
    }
}

// Raises `cover` (height, width; 255 is full) to that of a line with round ends from (x0, y0) to (x1, y1).
static inline void chart_stroke(uint8_t* cover, int height, int width, double x0, double y0, double x1, double y1,
                                double half_width) {
    double reach = half_width + 1, dx = x1 - x0, dy = y1 - y0, squared = dx * dx + dy * dy;
    int top = (int)fmax(0, fmin(y0, y1) - reach), bottom = (int)fmin(height - 1, fmax(y0, y1) + reach);
    int left = (int)fmax(0, fmin(x0, x1) - reach), right = (int)fmin(width - 1, fmax(x0, x1) + reach);
    for (int v = top; v <= bottom; v++) {
        for (int u = left; u <= right; u++) {
            double px = u + 0.5 - x0, py = v + 0.5 - y0;
            double along = squared > 0 ? fmax(0, fmin(1, (px * dx + py * dy) / squared)) : 0;
            double distance = hypot(px - along * dx, py - along * dy);
            uint8_t value = (uint8_t)(255 * fmax(0, fmin(1, half_width + 0.5 - distance)) + 0.5);
            if (value > cover[(size_t)v * width + u]) cover[(size_t)v * width + u] = value;
        }
    }
}

// The line of one series. A point without neighbours is a dot, which is seen where there are no markers.
static inline void chart_line(image_t* image, const chart_layout_t* layout, const chart_t* chart, int index) {
    const chart_series_t* series = &chart->series[index];
    int height = image->height, width = image->width;
    uint8_t* cover = (uint8_t*)calloc_check((size_t)height * width, 1, "a line of a chart"); // (height, width)
    double half = series->count > CHART_MAX_MARKERS ? 0.45 * layout->scale : 0.55 * layout->scale;
    int connected = 0; // the point before this one is drawable
    for (int i = 0; i < series->count; i++) {
        int drawable = chart_point_drawable(chart, series, i);
        int next = i + 1 < series->count && chart_point_drawable(chart, series, i + 1);
        if (drawable) {
            double x = chart_x(layout, series->x[i]), y = chart_y(layout, series->y[i]);
            if (next) {
                chart_stroke(cover, height, width, x, y, chart_x(layout, series->x[i + 1]),
                             chart_y(layout, series->y[i + 1]), half);
            } else if (!connected) {
                chart_stroke(cover, height, width, x, y, x, y, 2 * half);
            }
        }
        connected = drawable;
    }
    for (int v = 0; v < height; v++) {
        for (int u = 0; u < width; u++) {
            uint8_t value = cover[(size_t)v * width + u];
            if (value) image_blend(image, u, v, chart_colour(index), value / 255.0);
        }
    }
    free(cover);
}

// How many pixels of a box are drawn on; those out of the picture count too.
static inline int chart_ink(const image_t* image, chart_box_t box) {
    int ink = 0;
    for (int y = box.y; y < box.y + box.height; y++) {
        for (int x = box.x; x < box.x + box.width; x++) {
            int inside = x >= 0 && y >= 0 && x < image->width && y < image->height;
            const uint8_t* p = image->pixels + ((size_t)y * image->width + x) * 3;
            ink += !inside || p[0] < 0xD0 || p[1] < 0xD0 || p[2] < 0xD0; // darker than the grid
        }
    }
    return ink;
}

// Writes `text` beside the marker at (x, y): above it, or where less is drawn already; with a rim of paper.
static inline void chart_value(image_t* image, int scale, uint32_t colour, double x, double y, const char* text) {
    static const int sides[8][2] = {{0, -1}, {0, 1}, {1, -1}, {-1, -1}, {1, 1}, {-1, 1}, {1, 0}, {-1, 0}};
    int wide = text_width(scale, text), high = TEXT_HEIGHT * scale, least = 0;
    chart_box_t best = {0, 0, 0, 0};
    for (int i = 0; i < 8; i++) {
        double away_x = sides[i][1] ? 0.5 * wide + scale : 0.5 * wide + 5 * scale; // from the marker to the middle
        double away_y = sides[i][0] && !sides[i][1] ? 0 : 0.5 * high + 5 * scale;
        chart_box_t box = {(int)floor(x + sides[i][0] * away_x - 0.5 * wide + 0.5) - scale,
                           (int)floor(y + sides[i][1] * away_y - 0.5 * high + 0.5) - scale,
                           wide + 2 * scale, high + 2 * scale};
        int rightmost = image->width - 2 * scale - box.width;
        if (box.x > rightmost) box.x = rightmost;
        if (box.x < 2 * scale) box.x = 2 * scale;
        int ink = chart_ink(image, box);
        if (i == 0 || ink < least) least = ink, best = box;
    }
    for (int v = -scale; v <= scale; v += scale) {
        for (int u = -scale; u <= scale; u += scale) {
            text_draw(image, best.x + scale + u, best.y + scale + v, scale, CHART_PAPER, text);
        }
    }
    text_draw(image, best.x + scale, best.y + scale, scale, colour, text);
}

// The legend's rows inside of `box`, drawn where `image` is given; returns their height. What does not fit into
// box.height is left out.
static inline int chart_legend(image_t* image, const chart_t* chart, int scale, chart_box_t box) {
    int sample = 18 * scale, gap = 5 * scale, row = 13 * scale, x = box.x, y = box.y;
    int drawn = 0;
    for (int i = 0; i < chart->series_count; i++) {
        char name[256];
        if (!chart->series[i].name || !chart->series[i].name[0]) continue;
        text_cut(name, sizeof name, scale, box.width - sample - gap, chart->series[i].name);
        int wide = sample + gap + text_width(scale, name);
        if (drawn && x + wide > box.x + box.width) x = box.x, y += row;
        if (y + row > box.y + box.height) return y - box.y;
        if (image) {
            int middle = y + TEXT_HEIGHT * scale / 2;
            chart_fill(image, x, middle - scale / 2, sample, scale, chart_colour(i));
            if (chart->series[i].count <= CHART_MAX_MARKERS) {
                chart_marker(image, i, scale, x + 0.5 * sample, middle - scale / 2 + 0.5 * scale);
            }
            text_draw(image, x + sample + gap, y, scale, CHART_INK, name);
        }
        drawn = 1;
        x += wide + 14 * scale;
    }
    return drawn ? y + row - box.y : 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// A panel

static inline int chart_has(const char* text) { return text && text[0]; }

static inline chart_layout_t chart_layout(const chart_t* chart, int height, int width) {
    chart_layout_t layout;
    memset(&layout, 0, sizeof layout);
    int s = height / 200 < width / 280 ? height / 200 : width / 280;
    if (s < 1) s = 1;
    layout.scale = s;
    layout.x = chart_x_axis(chart);
    layout.y = chart_y_axis(chart);

    int most = height / (32 * s);
    chart_linear_ticks(&layout.y_ticks, &layout.y, most > 10 ? 10 : most < 2 ? 2 : most);
    int widest = 0;
    for (int i = 0; i < layout.y_ticks.count; i++) {
        char* label = layout.y_ticks.label[i];
        char whole[CHART_LABEL];
        memcpy(whole, label, sizeof whole);
        text_cut(label, CHART_LABEL, s, width / 3, whole);
        widest = text_width(s, label) > widest ? text_width(s, label) : widest;
    }
    int left = 8 * s + (chart_has(chart->y_label) ? 16 * s : 0) + widest + 6 * s;
    layout.plot.x = left;
    layout.plot.width = width - left - 10 * s > 1 ? width - left - 10 * s : 1;
    chart_x_ticks(&layout, chart, width);

    int top = 9 * s + (chart_has(chart->title) ? 17 * s : 0);
    chart_box_t legend = {left, top, layout.plot.width, height / 3};
    layout.legend = legend;
    top += chart_legend(NULL, chart, s, legend) + 3 * s;
    int bottom = 6 * s + TEXT_HEIGHT * s + 10 * s + (chart_has(chart->x_label) ? 13 * s : 0);
    layout.plot.y = top;
    layout.plot.height = height - top - bottom > 1 ? height - top - bottom : 1;
    return layout;
}

static inline void chart_axes(image_t* image, const chart_layout_t* layout) {
    int s = layout->scale, thin = s > 1 ? s / 2 : 1, free_from = 0;
    chart_box_t plot = layout->plot;
    int bottom = plot.y + plot.height;
    for (int i = 0; i < layout->y_ticks.count; i++) {
        int y = (int)floor(chart_y(layout, layout->y_ticks.at[i]) - 0.5 * thin + 0.5);
        int wide = text_width(s, layout->y_ticks.label[i]);
        chart_fill(image, plot.x, y, plot.width, thin, CHART_GRID);
        text_draw(image, plot.x - 6 * s - wide, y + thin / 2 - TEXT_HEIGHT * s / 2, s, CHART_FAINT,
                  layout->y_ticks.label[i]);
    }
    for (int i = 0; i < layout->x_ticks.count; i++) {
        int x = (int)floor(chart_x(layout, layout->x_ticks.at[i]) - 0.5 * thin + 0.5);
        int left = chart_x_label_left(layout, i, image->width);
        chart_fill(image, x, plot.y, thin, plot.height, CHART_GRID);
        chart_fill(image, x, bottom, thin, 3 * s, CHART_FAINT);
        if (left < free_from) continue; // it would run into its neighbour
        text_draw(image, left, bottom + 6 * s, s, CHART_FAINT, layout->x_ticks.label[i]);
        free_from = left + text_width(s, layout->x_ticks.label[i]) + 4 * s;
    }
    chart_fill(image, plot.x - thin, plot.y, thin, plot.height + thin, CHART_FAINT);
    chart_fill(image, plot.x - thin, bottom, plot.width + thin, thin, CHART_FAINT);
}

static inline void chart_names(image_t* image, const chart_layout_t* layout, const chart_t* chart) {
    char text[512];
    int s = layout->scale;
    chart_box_t plot = layout->plot;
    if (chart_has(chart->title)) {
        text_cut(text, sizeof text, s, plot.width, chart->title);
        for (int bold = 0; bold < (s > 1 ? 2 : 1); bold++) text_draw(image, plot.x + bold, 9 * s, s, CHART_INK, text);
    }
    if (chart_has(chart->x_label)) {
        text_cut(text, sizeof text, s, plot.width, chart->x_label);
        text_draw(image, plot.x + (plot.width - text_width(s, text)) / 2, plot.y + plot.height + 19 * s, s, CHART_INK,
                  text);
    }
    if (chart_has(chart->y_label)) {
        text_cut(text, sizeof text, s, plot.height, chart->y_label);
        text_draw_turned(image, 8 * s, plot.y + (plot.height + text_width(s, text)) / 2, s, CHART_INK, text);
    }
}

static inline image_t chart_panel(const chart_t* chart, int height, int width) {
    image_t image = image_create(height, width);
    memset(image.pixels, 0xFF, (size_t)height * width * 3);
    chart_layout_t layout = chart_layout(chart, height, width);
    chart_axes(&image, &layout);
    chart_names(&image, &layout, chart);
    chart_legend(&image, chart, layout.scale, layout.legend);

    int points = 0;
    double step = chart_step(layout.y.high - layout.y.low, layout.y_ticks.count);
    for (int s = 0; s < chart->series_count; s++) {
        chart_line(&image, &layout, chart, s);
        for (int i = 0; i < chart->series[s].count; i++) points += chart_point_drawable(chart, &chart->series[s], i);
    }
    for (int values = 0; values < 2; values++) { // all markers, then all values
        for (int s = 0; s < chart->series_count; s++) {
            const chart_series_t* series = &chart->series[s];
            if (series->count > CHART_MAX_MARKERS || (values && points > CHART_MAX_VALUES)) continue;
            for (int i = 0; i < series->count; i++) {
                char text[CHART_LABEL];
                if (!chart_point_drawable(chart, series, i)) continue;
                double x = chart_x(&layout, series->x[i]), y = chart_y(&layout, series->y[i]);
                chart_value_text(text, series->y[i], step);
                if (values) chart_value(&image, layout.scale, chart_text_colour(s), x, y, text);
                else chart_marker(&image, s, layout.scale, x, y);
            }
        }
    }
    if (!points) {
        const char* nothing = "nothing measured yet";
        text_draw(&image, layout.plot.x + (layout.plot.width - text_width(layout.scale, nothing)) / 2,
                  layout.plot.y + layout.plot.height / 2, layout.scale, CHART_FAINT, nothing);
    }
    return image;
}

// `count` charts side by side in one picture of (height, width), which the caller frees; each has the same share of the
// width. Below about 200 x 280 a panel the letters become too large for the picture, and what does not fit is cut.
static inline image_t chart_panels(const chart_t* charts, int count, int height, int width) {
    image_t image = image_create(height, width);
    for (int i = 0; i < count; i++) {
        int left = (int)((int64_t)width * i / count), right = (int)((int64_t)width * (i + 1) / count);
        image_t panel = chart_panel(&charts[i], height, right - left);
        for (int y = 0; y < height; y++) {
            memcpy(image.pixels + ((size_t)y * width + left) * 3, panel.pixels + (size_t)y * panel.width * 3,
                   (size_t)panel.width * 3);
        }
        image_free(&panel);
    }
    return image;
}
