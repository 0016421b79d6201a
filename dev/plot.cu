// plot.cu: curves as a picture: from lines of text to a PNG file of charts side by side.
//
//     build/cpu/plot FILE.png < POINTS
//
// Each line is a point: panel, label of the x axis, of the y axis, "linear" or "points" (a logarithmic x axis with
// ticks at the points), series, x, y, with tabs between them. Panels, and the series of each, come in the order in which
// they are first named; the points of a series in ascending x. Without any point there is one empty panel.
// dev/paper.sh draws the paper's figures with it. Look next at common/data/chart.h, which draws, and
// dev/paper/page.awk, which makes the lines.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// defines: chart_t, chart_series_t, chart_panels
#include "common/data/chart.h"
// defines: image_write_png, image_free
#include "common/data/image.h"
// defines: fatal
#include "common/program/log.h"

enum { PANELS = 8, SERIES = 8, POINTS = 256, FIELDS = 7, LINE = 1024, PANEL_HEIGHT = 520, PANEL_WIDTH = 600 };

typedef struct {
    char name[LINE];
    double x[POINTS], y[POINTS];
} curve_t;

typedef struct {
    char title[LINE], x_label[LINE], y_label[LINE];
    curve_t curves[SERIES];
    chart_series_t series[SERIES];
} panel_t;

// The text's fields between tabs, cut in place. Ends with a message where they are not as many as they should be.
static void split_fields(char* line, char** fields, int number) {
    int n = 0;
    line[strcspn(line, "\n")] = 0;
    for (char* at = line; at; n++) {
        if (n < FIELDS) fields[n] = at;
        at = strchr(at, '\t');
        if (at) *at++ = 0;
    }
    if (n != FIELDS) {
        fatal("line %d has %d fields, not %d: give panel, x label, y label, linear or points, series, x, y with tabs "
              "between them", number, n, FIELDS);
    }
}

static double read_number(const char* text, int number) {
    char* end;
    double value = strtod(text, &end);
    if (end == text || *end) fatal("line %d: \"%.40s\" is no number; give one", number, text);
    return value;
}

// The chart with this title, or the next one.
static chart_t* find_panel(chart_t* charts, panel_t* panels, int* count, char** fields, int number) {
    int k = 0;
    while (k < *count && strcmp(panels[k].title, fields[0])) k++;
    if (k < *count) return &charts[k];
    if (k == PANELS) fatal("line %d begins a panel more than the %d that there may be; draw fewer", number, PANELS);
    panel_t* p = &panels[(*count)++];
    int points = !strcmp(fields[3], "points");
    if (!points && strcmp(fields[3], "linear")) fatal("line %d: an axis is linear or points, not %.40s", number, fields[3]);
    strcpy(p->title, fields[0]), strcpy(p->x_label, fields[1]), strcpy(p->y_label, fields[2]);
    chart_t chart = {p->title, p->x_label, p->y_label, p->series, 0, points, points};
    charts[k] = chart;
    return &charts[k];
}

static void add_point(chart_t* chart, panel_t* panel, char** fields, int number) {
    int k = 0;
    while (k < chart->series_count && strcmp(panel->curves[k].name, fields[4])) k++;
    if (k == SERIES) fatal("line %d begins a series more than the %d that a panel may have; draw fewer", number, SERIES);
    curve_t* c = &panel->curves[k];
    chart_series_t* s = &panel->series[k];
    if (k == chart->series_count) {
        strcpy(c->name, fields[4]);
        chart_series_t empty = {c->name, c->x, c->y, 0};
        *s = empty;
        chart->series_count++;
    }
    if (s->count == POINTS) fatal("line %d: a series has at most %d points; give fewer", number, POINTS);
    c->x[s->count] = read_number(fields[5], number);
    c->y[s->count] = read_number(fields[6], number);
    if (s->count && c->x[s->count] < c->x[s->count - 1]) fatal("line %d: x goes back; give ascending points", number);
    s->count++;
}

int main(int argc, char** argv) {
    static panel_t panels[PANELS];
    static chart_t charts[PANELS];
    char line[LINE], *fields[FIELDS], error[IMAGE_ERROR_SIZE];
    int count = 0, number = 0;
    if (argc != 2) fatal("usage: %s FILE.png < POINTS (what a line is: dev/plot.cu)", argv[0]);
    while (fgets(line, sizeof line, stdin)) {
        split_fields(line, fields, ++number);
        chart_t* chart = find_panel(charts, panels, &count, fields, number);
        add_point(chart, &panels[chart - charts], fields, number);
    }
    if (ferror(stdin)) fatal("cannot read the points: %s", strerror(errno));
    int shown = count ? count : 1;
    image_t picture = chart_panels(charts, shown, PANEL_HEIGHT, PANEL_WIDTH * shown);
    image_text_t text = {"Program", "plot (aligntok.c)"};
    if (!image_write_png(argv[1], &picture, &text, 1, error)) fatal("%s; choose another file", error);
    image_free(&picture);
    return 0;
}
