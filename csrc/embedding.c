/* Rows of a table, and numbers along an axis, by their index; the sum of gradients back to where
 * they came from; rotary positions.
 *
 * The threads of the backward pass share out columns, not rows, so that no two write one number
 * and every sum is taken in the order of the ids.
 */
#include "isa.h"
#include "minifm.h"
#include "sizes.h"
#include "threads.h"

#include <string.h>

/* columns of a ticket: whole cache lines where the table is aligned; how many ids ahead to fetch */
enum { SLAB = 64, AHEAD = 8, LINE = CACHE_LINE / sizeof(float) };

typedef struct {
    float *out;
    const float *in;
    const int64_t *ids;
    int64_t n, width;
} Rows;

static void gather(void *context, int64_t begin, int64_t end)
{
    const Rows *r = context;
    for (int64_t i = begin; i < end; i++)
        memcpy(r->out + i * r->width, r->in + r->ids[i] * r->width,
               (size_t)r->width * sizeof *r->out);
}

static void add_slabs(void *context, int64_t begin, int64_t end)
{
    const Rows *r = context;
    const int64_t first = begin * SLAB, last = end * SLAB < r->width ? end * SLAB : r->width;
    for (int64_t i = 0; i < r->n; i++) {
        float *row = r->out + r->ids[i] * r->width + first;
        const float *next = r->in + smaller(i + AHEAD, r->n - 1) * r->width;
        for (int64_t c = first; c < last; c += LINE)
            __builtin_prefetch(next + c);
        kernels->binary(row, row, r->in + i * r->width + first, last - first, 1, 1, MINIFM_ADD);
    }
}

int minifm_embedding(float *y, const float *w, const int64_t *ids, int64_t n, int64_t rows,
                     int64_t width)
{
    if (!all_inside(ids, n, rows))
        return -1;
    Rows r = {y, w, ids, n, width};
    parallel_for(n, grain_of(width), gather, &r);
    return 0;
}

int minifm_embedding_backward(float *dw, const float *dy, const int64_t *ids, int64_t n,
                              int64_t rows, int64_t width)
{
    if (!all_inside(ids, n, rows))
        return -1;
    Rows r = {dw, dy, ids, n, width};
    const int64_t slabs = ceil_div(width, SLAB), each = larger(1, slabs / team_threads());
    parallel_for(slabs, n * width < 16384 ? slabs : each, add_slabs, &r);
    return 0;
}

/* -- along an axis: to each of k places in the middle of [outer, k, inner] belongs one of n --------- */

typedef struct {
    float *out;
    const float *in;
    const int64_t *index;
    int64_t k, n, inner;
} Along;

/* Negative places count from the end. */
static inline int64_t place_of(int64_t index, int64_t n) { return index < 0 ? index + n : index; }

static void take_along(void *context, int64_t begin, int64_t end)
{
    const Along *a = context;
    for (int64_t i = begin; i < end; i++) {
        const Strip here = strip_of(i, a->k, a->inner), there = strip_of(i, a->n, a->inner);
        for (int64_t j = 0; j < a->k; j++) {
            const int64_t at = here.in + j * a->inner;
            for (int64_t c = 0; c < here.width; c++)
                a->out[at + c] =
                    a->in[there.in + place_of(a->index[at + c], a->n) * a->inner + c];
        }
    }
}

static void add_along(void *context, int64_t begin, int64_t end)
{
    const Along *a = context;
    for (int64_t i = begin; i < end; i++) {
        const Strip here = strip_of(i, a->k, a->inner), there = strip_of(i, a->n, a->inner);
        for (int64_t j = 0; j < a->n; j++)
            memset(a->out + there.in + j * a->inner, 0, (size_t)there.width * sizeof *a->out);
        for (int64_t j = 0; j < a->k; j++) {
            const int64_t at = here.in + j * a->inner;
            for (int64_t c = 0; c < here.width; c++)
                a->out[there.in + place_of(a->index[at + c], a->n) * a->inner + c] +=
                    a->in[at + c];
        }
    }
}

static int along(RangeTask task, Along a, int64_t outer)
{
    for (int64_t i = 0; i < outer * a.k * a.inner; i++)
        if (a.index[i] < -a.n || a.index[i] >= a.n)
            return -1;
    parallel_for(strips(outer, a.inner), grain_of(larger(a.k, a.n) * smaller(a.inner, STRIP)),
                 task, &a);
    return 0;
}

int minifm_take_along(float *out, const float *x, const int64_t *index, int64_t outer, int64_t k,
                      int64_t n, int64_t inner)
{
    return along(take_along, (Along){out, x, index, k, n, inner}, outer);
}

int minifm_add_along(float *out, const float *values, const int64_t *index, int64_t outer,
                     int64_t k, int64_t n, int64_t inner)
{
    return along(add_along, (Along){out, values, index, k, n, inner}, outer);
}

/* -- rotary positions: every head of a position by the same angles ----------------------------------- */

typedef struct {
    float *y;
    const float *x, *cos, *sin;
    const int64_t *strides;
    int64_t positions, heads, half, angles;
    float sign;
} Rotation;

static void rotate_positions(void *context, int64_t begin, int64_t end)
{
    const Rotation *r = context;
    for (int64_t i = begin; i < end; i++) {
        const int64_t b = i / r->positions, t = i % r->positions;
        const int64_t angle = b * r->angles + t * r->half;
        const float *x = r->x + b * r->strides[0] + t * r->strides[2];
        for (int64_t h = 0; h < r->heads; h++)
            kernels->rotate(r->y + (i * r->heads + h) * 2 * r->half, x + h * r->strides[1],
                            r->cos + angle, r->sin + angle, r->half, r->sign);
    }
}

void minifm_rope(float *y, const float *x, const float *cos, const float *sin, int64_t batch,
                 int64_t positions, int64_t heads, int64_t half, const int64_t *strides,
                 int64_t angles, int inverse)
{
    Rotation r = {y, x, cos, sin, strides, positions, heads, half, angles, inverse ? -1 : 1};
    parallel_for(batch * positions, grain_of(2 * heads * half), rotate_positions, &r);
}
