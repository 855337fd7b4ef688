/* Pooling and upsampling of images, channel by channel. */
#include "isa.h"
#include "minifm.h"
#include "sizes.h"
#include "threads.h"

#include <math.h>
#include <string.h>

typedef struct {
    float *out;
    const float *in;
    int64_t *place_out;
    const int64_t *place;
    const minifm_convolution *s;
} Pooling;

enum { COLUMNS = 1024, NARROW = 8, MOST_COUNTED = 1 << 24 };

/* The elements of the p-th window along an axis that lie in the image. */
typedef struct {
    int64_t first, end, at;     /* at: the image's element under the window's element 0 */
} Overlap;

static Overlap overlap_of(const minifm_convolution *s, int axis, int64_t p)
{
    const int64_t at = p * s->stride[axis] - s->padding[axis];
    return (Overlap){larger(0, -at), smaller(s->window[axis], s->image[axis] - at), at};
}

/* The windows begin ... end - 1 of a row whose element t lies in the image, of those from begin on
 * that are in a block. */
typedef struct { int64_t begin, end; } Columns;

static Columns columns_of(const minifm_convolution *s, int64_t t, int64_t begin, int64_t end)
{
    const int64_t stride = s->stride[1], left = s->padding[1] - t, right = s->image[1] + left;
    return (Columns){larger(begin, left > 0 ? ceil_div(left, stride) : 0),
                     smaller(end, right > 0 ? ceil_div(right, stride) : 0)};
}

static int64_t planes(const minifm_convolution *s) { return s->batch * s->groups; }
static int64_t pixels(const minifm_convolution *s) { return s->image[0] * s->image[1]; }
static int64_t area(const minifm_convolution *s) { return s->window[0] * s->window[1]; }

/* -- one window: of rows so short, and of windows so large, that there is little else to do ---------- */

/* The largest element of a window, the first of equals; NaN is larger than any number. */
static int64_t find_largest(const minifm_convolution *s, const float *x, Overlap row, Overlap col,
                            float *largest)
{
    int64_t place = -1;
    *largest = -INFINITY;
    for (int64_t r = row.first; r < row.end; r++)
        for (int64_t t = col.first; t < col.end; t++) {
            const float value = x[(row.at + r) * s->image[1] + col.at + t];
            if (place < 0 || value > *largest || (value != value && *largest == *largest)) {
                *largest = value;
                place = r * s->window[1] + t;
            }
        }
    return place < 0 ? 0 : place;
}

/* The sum of its columns' sums. */
static float mean_of(const minifm_convolution *s, const float *x, Overlap row, Overlap col)
{
    float sum = 0;
    for (int64_t t = col.first; t < col.end && row.first < row.end; t++) {
        const float *column = x + row.at * s->image[1] + col.at + t;
        float own = column[row.first * s->image[1]];
        for (int64_t r = row.first + 1; r < row.end; r++)
            own += column[r * s->image[1]];
        sum += own;
    }
    return sum / (float)area(s);
}

static void pool_alone(const Pooling *c, const float *x, Overlap row, int64_t i)
{
    for (int64_t q = 0; q < c->s->result[1]; q++, i++) {
        const Overlap col = overlap_of(c->s, 1, q);
        if (c->place_out)
            c->place_out[i] = find_largest(c->s, x, row, col, c->out + i);
        else
            c->out[i] = mean_of(c->s, x, row, col);
    }
}

/* -- windows side by side: each element of all of them in turn ---------------------------------------- */

/* So many windows of a row lie over no more than COLUMNS pixels; 0 where that is hardly any. */
static int64_t windows_at_once(const minifm_convolution *s)
{
    const int64_t n = (COLUMNS - s->window[1]) / s->stride[1] + 1;
    const int apart = n < NARROW || s->result[1] < NARROW || area(s) >= MOST_COUNTED;
    return apart || s->window[1] > COLUMNS ? 0 : n;
}

/* The pixels of a row under the windows begin ... end - 1. */
static Columns pixels_under(const minifm_convolution *s, int64_t begin, int64_t end)
{
    const int64_t first = begin * s->stride[1] - s->padding[1];
    const int64_t last = (end - 1) * s->stride[1] - s->padding[1] + s->window[1];
    const Columns c = {larger(first, 0), smaller(last, s->image[1])};
    return (Columns){c.begin, larger(c.begin, c.end)};
}

/* x[i * stride], i < n: themselves where they lie side by side, else in `room`. */
static const float *side_by_side(const float *x, int64_t stride, int64_t n, float room[COLUMNS])
{
    if (stride == 1)
        return x;
    if (stride == 2)
        for (int64_t i = 0; i < n; i++)
            room[i] = x[2 * i];
    else
        for (int64_t i = 0; i < n; i++)
            room[i] = x[i * stride];
    return room;
}

/* Results begin ... end - 1 of a row; y and place are where the row's first ones go. */
static void largest_of_windows(const minifm_convolution *s, const float *x, Overlap row, float *y,
                               int64_t *place, int64_t begin, int64_t end)
{
    float room[COLUMNS], places[COLUMNS];
    const float first = row.first < row.end ? (float)(row.first * s->window[1]) : 0;
    for (int64_t q = begin; q < end; q++)
        y[q] = -INFINITY, places[q - begin] = first;
    for (int64_t r = row.first; r < row.end; r++)
        for (int64_t t = 0; t < s->window[1]; t++) {
            const Columns q = columns_of(s, t, begin, end);
            const int64_t at = (row.at + r) * s->image[1] + q.begin * s->stride[1] + t;
            if (q.begin < q.end)
                kernels->keep_larger(
                    y + q.begin, places + q.begin - begin,
                    side_by_side(x + at - s->padding[1], s->stride[1], q.end - q.begin, room),
                    q.end - q.begin, (float)(r * s->window[1] + t));
        }
    for (int64_t q = begin; q < end; q++)
        place[q] = (int32_t)places[q - begin];
    for (int64_t q = begin; q < end; q++)
        if (y[q] == -INFINITY) /* the first pixel, perhaps none: padding never wins */
            place[q] = find_largest(s, x, row, overlap_of(s, 1, q), y + q);
}

/* The columns' sums over the windows' rows, and of these, theirs. */
static void means_of_windows(const minifm_convolution *s, const float *x, Overlap row, float *y,
                             int64_t begin, int64_t end)
{
    float sums[COLUMNS], room[COLUMNS], count = (float)area(s);
    const Columns under = pixels_under(s, begin, end);
    const int64_t width = under.end - under.begin;
    for (int64_t r = row.first; r < row.end; r++) {
        const float *in = x + (row.at + r) * s->image[1] + under.begin;
        if (r == row.first)
            memcpy(sums, in, (size_t)width * sizeof *sums);
        else
            kernels->binary(sums, sums, in, width, 1, 1, MINIFM_ADD);
    }
    memset(y + begin, 0, (size_t)(end - begin) * sizeof *y);
    for (int64_t t = 0; t < s->window[1] && row.first < row.end; t++) {
        const Columns q = columns_of(s, t, begin, end);
        const int64_t at = q.begin * s->stride[1] + t - s->padding[1] - under.begin;
        if (q.begin < q.end)
            kernels->binary(y + q.begin, y + q.begin,
                            side_by_side(sums + at, s->stride[1], q.end - q.begin, room),
                            q.end - q.begin, 1, 1, MINIFM_ADD);
    }
    kernels->binary(y + begin, y + begin, &count, end - begin, 1, 0, MINIFM_DIVIDE);
}

static void pool_rows(void *context, int64_t begin, int64_t end)
{
    const Pooling *c = context;
    const minifm_convolution *s = c->s;
    const int64_t P = s->result[0], Q = s->result[1], n = windows_at_once(s);
    for (int64_t i = begin; i < end; i++) {
        const float *x = c->in + i / P * pixels(s);
        const Overlap row = overlap_of(s, 0, i % P);
        if (n == 0)
            pool_alone(c, x, row, i * Q);
        else if (c->place_out)
            for (int64_t q = 0; q < Q; q += n)
                largest_of_windows(s, x, row, c->out + i * Q, c->place_out + i * Q, q,
                                   smaller(q + n, Q));
        else
            for (int64_t q = 0; q < Q; q += n)
                means_of_windows(s, x, row, c->out + i * Q, q, smaller(q + n, Q));
    }
}

/* -- and back ------------------------------------------------------------------------------------------ */

/* To the pixel that won. */
static void return_row(const Pooling *c, float *dx, Overlap row, int64_t i)
{
    const minifm_convolution *s = c->s;
    for (int64_t q = 0; q < s->result[1]; q++, i++) {
        const Overlap col = overlap_of(s, 1, q);
        const uint32_t place = (uint32_t)c->place[i], width = (uint32_t)s->window[1];
        const int64_t r = place / width, t = place % width;
        if (r >= row.first && r < row.end && t >= col.first && t < col.end)
            dx[(row.at + r) * s->image[1] + col.at + t] += c->in[i];
    }
}

/* To each of the window its share: one row of them for all rows under the windows. */
static void share_row(const Pooling *c, float *dx, Overlap row, int64_t i)
{
    const minifm_convolution *s = c->s;
    const int64_t Q = s->result[1], n = larger(1, windows_at_once(s));
    const float share = 1 / (float)area(s), *dy = c->in + i;
    float sums[COLUMNS];
    for (int64_t begin = 0; begin < Q; begin += n) {
        const int64_t end = smaller(begin + n, Q);
        const Columns under = pixels_under(s, begin, end);
        for (int64_t at = under.begin; at < under.end; at += COLUMNS) {
            const int64_t width = smaller(COLUMNS, under.end - at);
            memset(sums, 0, (size_t)width * sizeof *sums);
            if (n == 1)
                for (int64_t j = 0; j < width; j++)
                    sums[j] = dy[begin] * share;
            for (int64_t t = 0; t < s->window[1] && n > 1; t++) {
                const Columns q = columns_of(s, t, begin, end);
                float *to = sums + t - s->padding[1] - at;
                for (int64_t j = q.begin; j < q.end; j++)
                    to[j * s->stride[1]] += dy[j] * share;
            }
            for (int64_t r = row.first; r < row.end; r++) {
                float *out = dx + (row.at + r) * s->image[1] + at;
                for (int64_t j = 0; j < width; j++)
                    out[j] += sums[j];
            }
        }
    }
}

static void spread_planes(void *context, int64_t begin, int64_t end)
{
    const Pooling *c = context;
    const int64_t P = c->s->result[0], Q = c->s->result[1];
    for (int64_t plane = begin; plane < end; plane++) {
        float *dx = c->out + plane * pixels(c->s);
        memset(dx, 0, (size_t)pixels(c->s) * sizeof *dx);
        for (int64_t p = 0; p < P; p++)
            (c->place ? return_row : share_row)(c, dx, overlap_of(c->s, 0, p), (plane * P + p) * Q);
    }
}

void minifm_max_pool(float *y, int64_t *place, const float *x, const minifm_convolution *s)
{
    Pooling c = {.out = y, .place_out = place, .in = x, .s = s};
    parallel_for(planes(s) * s->result[0], grain_of(s->result[1] * area(s)), pool_rows, &c);
}

void minifm_max_pool_backward(float *dx, const float *dy, const int64_t *place,
                              const minifm_convolution *s)
{
    Pooling c = {.out = dx, .in = dy, .place = place, .s = s};
    parallel_for(planes(s), grain_of(pixels(s)), spread_planes, &c);
}

void minifm_average_pool(float *y, const float *x, const minifm_convolution *s)
{
    Pooling c = {.out = y, .in = x, .s = s};
    parallel_for(planes(s) * s->result[0], grain_of(s->result[1] * area(s)), pool_rows, &c);
}

void minifm_average_pool_backward(float *dx, const float *dy, const minifm_convolution *s)
{
    Pooling c = {.out = dx, .in = dy, .s = s};
    parallel_for(planes(s), grain_of(pixels(s)), spread_planes, &c);
}

/* -- upsampling: rows of `cols` pixels, each a block of down x right ------------------------------- */

typedef struct {
    float *out;
    const float *in;
    int64_t cols, down, right;
} Upsampling;

static void repeat_rows(void *context, int64_t begin, int64_t end)
{
    const Upsampling *c = context;
    const int64_t width = c->cols * c->right;
    for (int64_t row = begin; row < end; row++) {
        const float *x = c->in + row * c->cols;
        float *y = c->out + row * c->down * width;
        if (c->right == 2)
            for (int64_t q = 0; q < c->cols; q++)
                y[2 * q] = y[2 * q + 1] = x[q];
        else
            for (int64_t q = 0; q < width; q++)
                y[q] = x[q / c->right];
        for (int64_t r = 1; r < c->down; r++)
            memcpy(y + r * width, y, (size_t)width * sizeof *y);
    }
}

static void sum_blocks(void *context, int64_t begin, int64_t end)
{
    const Upsampling *c = context;
    const int64_t width = c->cols * c->right;
    for (int64_t row = begin; row < end; row++)
        for (int64_t q = 0; q < c->cols; q++) {
            const float *dy = c->in + row * c->down * width + q * c->right;
            float sum = 0;
            for (int64_t r = 0; r < c->down; r++)
                for (int64_t t = 0; t < c->right; t++)
                    sum += dy[r * width + t];
            c->out[row * c->cols + q] = sum;
        }
}

void minifm_upsample(float *y, const float *x, int64_t rows, int64_t cols, int64_t down,
                     int64_t right)
{
    Upsampling c = {y, x, cols, down, right};
    parallel_for(rows, grain_of(cols * down * right), repeat_rows, &c);
}

void minifm_upsample_backward(float *dx, const float *dy, int64_t rows, int64_t cols,
                              int64_t down, int64_t right)
{
    Upsampling c = {dx, dy, cols, down, right};
    parallel_for(rows, grain_of(cols * down * right), sum_blocks, &c);
}
