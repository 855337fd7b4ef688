/* Pooling and upsampling of images, channel by channel. */
#include "minifm.h"
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

/* The elements of the p-th window along an axis that lie in the image. */
typedef struct {
    int64_t first, end, at;     /* at: the image's element under the window's element 0 */
} Overlap;

static Overlap overlap_of(const minifm_convolution *s, int axis, int64_t p)
{
    const int64_t at = p * s->stride[axis] - s->padding[axis], left = s->image[axis] - at;
    return (Overlap){at < 0 ? -at : 0, left < s->window[axis] ? left : s->window[axis], at};
}

static int64_t planes(const minifm_convolution *s) { return s->batch * s->groups; }
static int64_t pixels(const minifm_convolution *s) { return s->image[0] * s->image[1]; }

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

static float mean_of(const minifm_convolution *s, const float *x, Overlap row, Overlap col)
{
    float sum = 0;
    for (int64_t r = row.first; r < row.end; r++)
        for (int64_t t = col.first; t < col.end; t++)
            sum += x[(row.at + r) * s->image[1] + col.at + t];
    return sum / (float)(s->window[0] * s->window[1]);
}

static void pool_planes(void *context, int64_t begin, int64_t end)
{
    const Pooling *c = context;
    const minifm_convolution *s = c->s;
    int64_t i = begin * s->result[0] * s->result[1];
    for (int64_t plane = begin; plane < end; plane++)
        for (int64_t p = 0; p < s->result[0]; p++)
            for (int64_t q = 0; q < s->result[1]; q++, i++) {
                const Overlap row = overlap_of(s, 0, p), col = overlap_of(s, 1, q);
                const float *x = c->in + plane * pixels(s);
                if (c->place_out)
                    c->place_out[i] = find_largest(s, x, row, col, c->out + i);
                else
                    c->out[i] = mean_of(s, x, row, col);
            }
}

/* To the pixel that won, or to each of the window its share. */
static void spread_planes(void *context, int64_t begin, int64_t end)
{
    const Pooling *c = context;
    const minifm_convolution *s = c->s;
    const float share = 1 / (float)(s->window[0] * s->window[1]);
    int64_t i = begin * s->result[0] * s->result[1];
    for (int64_t plane = begin; plane < end; plane++) {
        float *dx = c->out + plane * pixels(s);
        memset(dx, 0, (size_t)pixels(s) * sizeof *dx);
        for (int64_t p = 0; p < s->result[0]; p++)
            for (int64_t q = 0; q < s->result[1]; q++, i++) {
                Overlap row = overlap_of(s, 0, p), col = overlap_of(s, 1, q);
                if (c->place) {
                    const int64_t r = c->place[i] / s->window[1], t = c->place[i] % s->window[1];
                    if (r >= row.first && r < row.end && t >= col.first && t < col.end)
                        dx[(row.at + r) * s->image[1] + col.at + t] += c->in[i];
                    continue;
                }
                for (int64_t r = row.first; r < row.end; r++)
                    for (int64_t t = col.first; t < col.end; t++)
                        dx[(row.at + r) * s->image[1] + col.at + t] += c->in[i] * share;
            }
    }
}

void minifm_max_pool(float *y, int64_t *place, const float *x, const minifm_convolution *s)
{
    Pooling c = {.out = y, .place_out = place, .in = x, .s = s};
    parallel_for(planes(s), grain_of(pixels(s)), pool_planes, &c);
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
    parallel_for(planes(s), grain_of(pixels(s)), pool_planes, &c);
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
