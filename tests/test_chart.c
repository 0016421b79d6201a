// test_chart.c: letters and line charts: ink where it belongs, none elsewhere, numbers at ticks, values that cannot be
// drawn. Places are checked against the picture itself: a marker at a tick's value sits on that tick's grid lines.
// Look next at common/data/chart.h and common/data/text.h.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// defines: chart_t, chart_series_t, chart_panels, chart_layout, chart_x, chart_y, chart_linear_ticks
#include "common/data/chart.h"
// defines: image_t, image_create, image_free
#include "common/data/image.h"
// defines: text_draw, text_draw_turned, text_width, text_cut, text_font
#include "common/data/text.h"
// defines: test_begin, test_case, check, check_error, test_end_case, test_finish
#include "tests/test.h"

static image_t paper(int height, int width) {
    image_t image = image_create(height, width);
    memset(image.pixels, 0xFF, (size_t)height * width * 3);
    return image;
}

static uint32_t pixel(const image_t* image, int x, int y) {
    const uint8_t* p = image->pixels + ((size_t)y * image->width + x) * 3;
    return (uint32_t)p[0] << 16 | (uint32_t)p[1] << 8 | p[2];
}

// Pixels of exactly this colour in [left, right) x [top, bottom).
static int count_colour(const image_t* image, uint32_t colour, int left, int top, int right, int bottom) {
    int count = 0;
    for (int y = top; y < bottom; y++) {
        for (int x = left; x < right; x++) count += pixel(image, x, y) == colour;
    }
    return count;
}

static void test_letters(void) {
    if (!test_case("text: the dots of a letter, at every scale and place")) return;
    for (int scale = 1; scale <= 4; scale++) {
        image_t image = paper(50, 60);
        int wrong = 0;
        text_draw(&image, 7, 5, scale, 0x123456, "L"); // a stem 7 high and a foot 5 wide; no slanted stroke
        for (int y = 0; y < 50; y++) {
            for (int x = 0; x < 60; x++) {
                int row = y < 5 ? -1 : (y - 5) / scale, column = x < 7 ? -1 : (x - 7) / scale;
                int ink = (column == 0 && row >= 0 && row < 7) || (row == 6 && column >= 0 && column < 5);
                wrong += pixel(&image, x, y) != (ink ? 0x123456u : 0xFFFFFFu);
            }
        }
        check(wrong == 0, "an L is an L");
        check(text_width(scale, "L") == 5 * scale, "its width");
        image_free(&image);
    }
    check(text_width(2, "") == 0, "the width of nothing");
    check(text_width(3, "1.0") == 3 * (5 + 1 + 1 + 1 + 5), "digits are 5 wide, a point 1");
    check(text_width(1, "111") == text_width(1, "888"), "numbers stand in columns");
    test_end_case();
}

static void test_font(void) {
    if (!test_case("text: every character has a glyph of its own")) return;
    for (int i = 0; i <= TEXT_BOX - TEXT_FIRST; i++) {
        check(i == 0 ? !text_font[i] : text_font[i] != 0, "ink, but in the space");
        check(text_font[i] >> 45 == 0, "45 bits");
        for (int k = 0; k < i; k++) {
            int alike = TEXT_FIRST + k == '0' && TEXT_FIRST + i == 'O'; // the only two
            check((text_font[i] == text_font[k]) == alike, "glyphs differ");
        }
    }
    check(text_width(1, "\xC3\xA9") == 5 && text_width(1, "\xE2\x82\xAC") == 5, "one box a character of UTF-8");
    check(text_width(1, "\xFF\n") == 11 && text_width(1, "\xE2") == 5, "a box for what is no text");
    test_end_case();
}

static void test_rounding(void) {
    if (!test_case("text: corners of slanted strokes are filled half a dot deep")) return;
    image_t image = paper(40, 40);
    text_draw(&image, 0, 0, 2, 0x000000, "/"); // ....#, ....#, ...#., ..#.., ...
    // the dots (row 1, column 4) and (row 2, column 3) touch at the pixels' corner (8, 4)
    check(pixel(&image, 8, 3) == 0 && pixel(&image, 7, 4) == 0, "the two dots");
    check_error("above the corner", fabs((pixel(&image, 7, 3) & 255) - 127.5), 0.51);
    check_error("below the corner", fabs((pixel(&image, 8, 4) & 255) - 127.5), 0.51);
    check(pixel(&image, 6, 3) == 0xFFFFFF && pixel(&image, 9, 4) == 0xFFFFFF, "no more than that");
    image_free(&image);
    test_end_case();
}

static void test_turned(void) {
    if (!test_case("text: turned text is upright text, turned; ink beyond the picture is left out")) return;
    const char* words = "FID-50k (g)";
    int wide = text_width(2, words), wrong = 0;
    image_t upright = paper(30, wide), turned = paper(wide, 30), part = paper(9, 11);
    text_draw(&upright, 0, 3, 2, 0x0072B2, words);
    text_draw_turned(&turned, 3, wide, 2, 0x0072B2, words);
    for (int y = 0; y < 30; y++) {
        for (int x = 0; x < wide; x++) wrong += pixel(&upright, x, y) != pixel(&turned, y, wide - 1 - x);
    }
    check(wrong == 0 && count_colour(&upright, 0x0072B2, 0, 0, wide, 30) > 100, "the same pixels");
    for (int x = -wide; x < 11; x += 5) {
        for (int y = -30; y < 9; y += 7) {
            text_draw(&part, x, y, 2, 0x0072B2, words); // the sanitizers watch
            text_draw_turned(&part, y, x + wide, 2, 0x0072B2, words);
        }
    }
    image_free(&upright);
    image_free(&turned);
    image_free(&part);
    test_end_case();
}

static void test_cut(void) {
    if (!test_case("text: what is too long ends in two points")) return;
    char out[64];
    const char* words = "guidance scale";
    for (int width = 0; width <= text_width(2, words) + 1; width++) {
        text_cut(out, sizeof out, 2, width, words);
        size_t length = strlen(out);
        check(text_width(2, out) <= width, "it fits");
        if (width >= text_width(2, words)) check(!strcmp(out, words), "whole where there is room");
        else if (length) check(!strcmp(out + length - 2, "..") && !strncmp(out, words, length - 2), "the beginning");
        else check(width < text_width(2, ".."), "nothing only where the points have no room");
    }
    check(!strcmp(text_cut(out, 7, 1, 1000, words), "guid.."), "as many bytes as there are");
    test_end_case();
}

static void check_ticks(double low, double high, int logarithmic, int most, const char* want) {
    chart_axis_t axis = {low, high, logarithmic};
    chart_ticks_t ticks;
    char got[512] = "";
    if (logarithmic) chart_logarithmic_ticks(&ticks, &axis, most);
    else chart_linear_ticks(&ticks, &axis, most);
    for (int i = 0; i < ticks.count; i++) {
        strcat(got, i ? " " : "");
        strcat(got, ticks.label[i]);
        check(ticks.at[i] >= low && ticks.at[i] <= high, "ticks lie on the axis");
        double spelt = strtod(ticks.label[i], NULL);
        check_error("a label", fabs(spelt - ticks.at[i]) / fmax(fabs(ticks.at[i]), 1e-250), 1e-9);
    }
    if (strcmp(got, want)) printf("     got \"%s\", want \"%s\"\n", got, want);
    check(!strcmp(got, want), "the labels");
}

static void test_ticks(void) {
    if (!test_case("axes: ticks at 1, 2, 5 times powers of ten, with the digits they need")) return;
    check_ticks(1.8, 7.4, 0, 8, "2 3 4 5 6 7");
    check_ticks(0, 1, 0, 5, "0 0.2 0.4 0.6 0.8 1.0");
    check_ticks(-0.27, 0.31, 0, 6, "-0.2 -0.1 0 0.1 0.2 0.3");
    check_ticks(2.865, 2.875, 0, 5, "2.866 2.868 2.870 2.872 2.874");
    check_ticks(-4000, 104000, 0, 6, "0 20000 40000 60000 80000 100000");
    check_ticks(-1e5, 2.6e6, 0, 6, "0 5e5 1.0e6 1.5e6 2.0e6 2.5e6");
    check_ticks(1e-6, 3.2e-6, 0, 5, "1.0e-6 1.5e-6 2.0e-6 2.5e-6 3.0e-6");
    check_ticks(-1.2e200, 1.2e200, 0, 5, "-1.0e200 -5e199 0 5e199 1.0e200");
    check_ticks(1e9 + 0.8, 1e9 + 3.2, 0, 3, "1.000000001e9 1.000000002e9 1.000000003e9");
    check_ticks(25, 290, 1, 6, "50 100 200");
    check_ticks(0.9, 1.1e3, 1, 5, "1 10 100 1000");
    check_ticks(1e-4, 1e4, 1, 5, "0.0001 0.01 1 100 10000");
    check_ticks(1e-6, 1e6, 1, 5, "1e-6 0.001 1 1000 1e6");
    check_ticks(31, 43, 1, 6, "32 34 36 38 40 42"); // no 1, 2, 5 in it
    test_end_case();
}

static void check_value(double v, double step, const char* want) {
    char got[CHART_LABEL];
    chart_value_text(got, v, step);
    if (strcmp(got, want)) printf("     got \"%s\", want \"%s\"\n", got, want);
    check(!strcmp(got, want), "the number");
}

static void test_values(void) {
    if (!test_case("axes: the number beside a point")) return;
    check_value(2.8749, 1, "2.87");
    check_value(0.26, 1, "0.260");
    check_value(123.456, 50, "123.5");
    check_value(12345.6, 5000, "12346");
    check_value(-7.5, 1, "-7.50");
    check_value(0, 1, "0");
    check_value(2.8749, 0.01, "2.875");
    check_value(1.2345e-5, 1e-5, "1.23e-5");
    check_value(1.5e6, 1e6, "1.50e6");
    test_end_case();
}

static const double three[] = {1, 2, 3};

static chart_t one_series(chart_series_t* series, const double* x, const double* y, int count) {
    chart_t chart;
    memset(&chart, 0, sizeof chart);
    series->name = "series", series->x = x, series->y = y, series->count = count;
    chart.title = "title", chart.x_label = "x axis", chart.y_label = "y axis";
    chart.series = series, chart.series_count = 1;
    return chart;
}

// The marker of a point whose x and y both have ticks lies where their grid lines cross.
static void check_marker(const image_t* image, const chart_layout_t* layout, double x, double y, uint32_t colour) {
    int u = (int)chart_x(layout, x), v = (int)chart_y(layout, y), s = layout->scale;
    int bottom = layout->plot.y + layout->plot.height, right = layout->plot.x + layout->plot.width;
    check(count_colour(image, colour, u - s, v - s, u + s, v + s) == 4 * s * s, "the middle of the marker");
    check(count_colour(image, CHART_FAINT, u - 1, bottom + s, u + 2, bottom + s + 1) > 0, "a tick below it");
    check(count_colour(image, CHART_GRID, right - 2, v - 1, right - 1, v + 2) > 0, "a grid line beside it");
}

static void test_places(void) {
    if (!test_case("chart: markers, lines and gaps are where the axes say")) return;
    static const double x[] = {1, 2, 3, 4, 5, 6}, y[] = {2, 4, 3, NAN, 6, 5};
    chart_series_t series;
    chart_t chart = one_series(&series, x, y, 6);
    for (int scale = 1; scale <= 3; scale++) {
        int height = 260 * scale, width = 300 * scale;
        image_t image = chart_panels(&chart, 1, height, width);
        chart_layout_t layout = chart_layout(&chart, height, width);
        uint32_t blue = chart_colour(0);
        check(layout.scale == scale, "the scale");
        for (int i = 0; i < 6; i++) {
            if (i != 3) check_marker(&image, &layout, x[i], y[i], blue);
        }
        int left = layout.plot.x, right = left + layout.plot.width;
        int top = layout.plot.y, bottom = top + layout.plot.height;
        for (double at = 1.25; at < 6; at += 0.5) { // beside the markers: a line but in the gap from 3 to 5
            int u = (int)chart_x(&layout, at), ink = 0;
            for (int v = top; v < bottom; v++) {
                uint32_t p = pixel(&image, u, v);
                ink += (p >> 16 & 255) < 0x60 && (p & 255) > 0xA0; // blue, at least half
            }
            check((ink > 0) == (at < 3 || at > 5), "a line, or a gap");
        }
        double low_x = chart_x(&layout, layout.x.low), low_y = chart_y(&layout, layout.y.low);
        double high_x = chart_x(&layout, layout.x.high), high_y = chart_y(&layout, layout.y.high);
        check_error("the low ends", hypot(low_x - left, low_y - bottom), 1e-9);
        check_error("the high ends", hypot(high_x - right, high_y - top), 1e-9);
        check(chart_x(&layout, 1) > left + 2 * scale && chart_x(&layout, 6) < right - 2 * scale, "a margin beside");
        check(chart_y(&layout, 6) > top + 2 * scale && chart_y(&layout, 2) < bottom - 2 * scale, "a margin above");
        check(count_colour(&image, blue, 0, top, left - 2 * scale, height) == 0, "no line left of the axis");
        check(count_colour(&image, blue, 0, bottom + 2 * scale, width, height) == 0, "no line below the axis");
        image_free(&image);
    }
    test_end_case();
}

static void test_logarithmic(void) {
    if (!test_case("chart: a logarithmic axis with ticks at the points")) return;
    static const double steps[] = {30, 50, 80, 120, 250}, other[] = {0, 40, 80, -3};
    static const double fid[] = {7, 5, 4, 3, 3}, other_fid[] = {7, 5, 6, 3};
    chart_series_t series[2];
    chart_t chart = one_series(series, steps, fid, 5);
    series[1].name = "other", series[1].x = other, series[1].y = other_fid, series[1].count = 4;
    chart.series_count = 2;
    chart.logarithmic = chart.ticks_at_points = 1;
    image_t image = chart_panels(&chart, 1, 520, 600);
    chart_layout_t layout = chart_layout(&chart, 520, 600);
    static const double want[] = {30, 40, 50, 80, 120, 250}; // both series', in order; not 0 and -3
    check(layout.x_ticks.count == 6 && !memcmp(layout.x_ticks.at, want, sizeof want), "the ticks");
    double unit = chart_x(&layout, 60) - chart_x(&layout, 30);
    check_error("a factor is a distance", fabs(chart_x(&layout, 240) - chart_x(&layout, 120) - unit) / unit, 1e-12);
    for (int i = 0; i < 5; i++) check_marker(&image, &layout, steps[i], fid[i], chart_colour(0));
    check_marker(&image, &layout, 40, 5, chart_colour(1));
    image_free(&image);
    test_end_case();
}

static void test_long_curve(void) {
    if (!test_case("chart: a curve of many points, with one alone between gaps")) return;
    enum { N = 1000 };
    double x[N], y[N];
    for (int i = 0; i < N; i++) x[i] = i, y[i] = i < 500 ? 1 : i == 700 ? 2 : i < 900 ? NAN : 3;
    chart_series_t series;
    chart_t chart = one_series(&series, x, y, N);
    image_t image = chart_panels(&chart, 1, 520, 600);
    chart_layout_t layout = chart_layout(&chart, 520, 600);
    int u = (int)chart_x(&layout, 700), v = (int)chart_y(&layout, 2);
    check(pixel(&image, u, v) == chart_colour(0), "the one alone is a dot");
    check(count_colour(&image, chart_colour(0), u - 9, layout.plot.y, u + 10, 520) < 16, "and nothing else is there");
    int first = (int)chart_x(&layout, 1), last = (int)chart_x(&layout, 498), thick = 0, thin = 4;
    for (int column = first; column <= last; column++) {
        int there = 0, row = (int)chart_y(&layout, 1);
        for (int k = row - 4; k <= row + 4; k++) there += (pixel(&image, column, k) >> 16) < 0xD0;
        thick = there > thick ? there : thick, thin = there < thin ? there : thin;
    }
    check(thin >= 1 && thick <= 3 && thin == thick, "a level line is evenly thick, however many points it has");
    image_free(&image);
    test_end_case();
}

// A chart must come out whole: finite places inside of the plot for all that is drawable.
static void check_chart(const chart_t* chart, const char* what) {
    chart_layout_t layout = chart_layout(chart, 300, 400);
    image_t image = chart_panels(chart, 1, 300, 400);
    int points = 0;
    for (int s = 0; s < chart->series_count; s++) {
        for (int i = 0; i < chart->series[s].count; i++) {
            if (!chart_point_drawable(chart, &chart->series[s], i)) continue;
            double u = chart_x(&layout, chart->series[s].x[i]), v = chart_y(&layout, chart->series[s].y[i]);
            check(u > layout.plot.x && u < layout.plot.x + layout.plot.width, what);
            check(v > layout.plot.y && v < layout.plot.y + layout.plot.height, what);
            check(u > 0 && v > 0 && pixel(&image, (int)u, (int)v) == chart_colour(s), what);
            points++;
        }
    }
    check(layout.x_ticks.count >= 1 && layout.y_ticks.count >= 2, "ticks");
    check(layout.plot.width >= 200 && layout.plot.height >= 100, "a plot of some size");
    int ink = count_colour(&image, CHART_FAINT, layout.plot.x + 1, layout.plot.y, 400,
                           layout.plot.y + layout.plot.height);
    check((ink > 20) == (points == 0), "\"nothing measured yet\", where nothing is");
    image_free(&image);
}

static void test_edges(void) {
    if (!test_case("chart: one point, equal, huge, tiny, close, infinite and absent values")) return;
    static const double values[][3] = {
        {2.87, 2.87, 2.87}, {0, 0, 0}, {-5, -5, -5}, {1e200, -1e200, 3e199}, {1e-190, 2e-190, 3e-190},
        {1e-300, 2e-300, 5e-324}, {1e8 + 1, 1e8 + 2, 1e8 + 3}, {1, 1 + 1e-15, 1}, {INFINITY, 1, -INFINITY},
        {NAN, NAN, NAN}, {NAN, 3, NAN}, {1e201, 5, 1.7e308}, {-1e-3, 1e6, 0}};
    chart_series_t series;
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        chart_t chart = one_series(&series, three, values[i], 3);
        check_chart(&chart, "values as y");
        for (int logarithmic = 0; logarithmic < 2; logarithmic++) {
            chart = one_series(&series, values[i], three, 3);
            chart.logarithmic = logarithmic;
            check_chart(&chart, "values as x");
        }
    }
    chart_t chart = one_series(&series, three, three + 1, 1);
    check_chart(&chart, "one point");
    chart = one_series(&series, NULL, NULL, 0);
    check_chart(&chart, "an empty series");
    memset(&chart, 0, sizeof chart);
    check_chart(&chart, "no series, no text");
    chart.logarithmic = chart.ticks_at_points = 1;
    check_chart(&chart, "no series, logarithmic");
    test_end_case();
}

static void test_panels(void) {
    if (!test_case("chart: panels side by side; texts too long and pictures too small are cut")) return;
    char endless[2000];
    memset(endless, 'm', sizeof endless);
    endless[sizeof endless - 1] = 0;
    chart_series_t series[12];
    chart_t charts[3];
    for (int i = 0; i < 12; i++) {
        one_series(&series[i], three, three, 3);
        series[i].name = i % 2 ? endless : "short";
    }
    for (int i = 0; i < 3; i++) {
        charts[i] = one_series(&series[0], three, three, 3);
        charts[i].series_count = 4 * i + 4;
    }
    charts[1].title = charts[1].x_label = charts[1].y_label = endless;
    image_t image = chart_panels(charts, 3, 300, 1000);
    int wrong = 0;
    for (int i = 0; i < 3; i++) {
        int left = 1000 * i / 3, right = 1000 * (i + 1) / 3;
        image_t alone = chart_panels(&charts[i], 1, 300, right - left);
        for (int y = 0; y < 300; y++) {
            for (int x = left; x < right; x++) wrong += pixel(&image, x, y) != pixel(&alone, x - left, y);
        }
        image_free(&alone);
        check(count_colour(&image, 0xFFFFFF, right - 3, 0, right, 300) == 900, "white between the panels");
    }
    check(wrong == 0, "each panel is what it is alone");
    image_free(&image);
    for (int size = 1; size < 120; size += 7) { // the sanitizers watch
        image = chart_panels(charts, 3, size, 121 - size + 3);
        image_free(&image);
    }
    test_end_case();
}

int main(int argc, char** argv) {
    test_begin(argc, argv);
    test_letters();
    test_font();
    test_rounding();
    test_turned();
    test_cut();
    test_ticks();
    test_values();
    test_places();
    test_logarithmic();
    test_long_curve();
    test_edges();
    test_panels();
    return test_finish();
}
