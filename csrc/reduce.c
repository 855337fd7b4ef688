/* Sums and extremes. The order in which numbers are added is a function of how many there are and
 * of whether they lie side by side (lanes of a vector) or apart (one row added to the next), and of
 * nothing else: not of the threads, and not of how many other sums are taken in the same call. The
 * one case that changes sides: a column that is alone lies side by side.
 */
#include "isa.h"
#include "minifm.h"
#include "sizes.h"
#include "threads.h"

#include <string.h>

enum { MOST_CHUNKS = 64, FEWEST_ROWS = 32, RUN = 8192 };

static int64_t rows_of_chunk(int64_t rows)
{
    return larger(FEWEST_ROWS, ceil_div(rows, MOST_CHUNKS));
}

typedef struct {
    float *partials;
    int64_t rows, width, chunk;
    ChunkTask task;
    void *context;
} Reduction;

static void reduce_chunks(void *context, int64_t begin, int64_t end)
{
    const Reduction *r = context;
    for (int64_t i = begin; i < end; i++) {
        float *partial = r->partials + i * r->width;
        int64_t first = i * r->chunk, last = first + r->chunk;
        memset(partial, 0, (size_t)r->width * sizeof *partial);
        r->task(r->context, partial, first, last < r->rows ? last : r->rows);
    }
}

int reduce_rows(float *out, int64_t rows, int64_t width, ChunkTask task, void *context)
{
    const int64_t chunk = rows_of_chunk(rows), chunks = ceil_div(rows, chunk);
    memset(out, 0, (size_t)width * sizeof *out);
    if (chunks <= 1) {
        if (rows)
            task(context, out, 0, rows);
        return 0;
    }
    team_enter();
    float *partials = scratch(SHARED, (size_t)(chunks * width) * sizeof *partials);
    if (partials) {
        Reduction r = {partials, rows, width, chunk, task, context};
        team_for(chunks, 1 + grain_of(chunk * width) / 2, reduce_chunks, &r);
        for (int64_t i = 0; i < chunks; i++)
            kernels->binary(out, out, partials + i * width, width, 1, 1, MINIFM_ADD);
    }
    team_leave();
    return partials ? 0 : -1;
}

/* -- the sum over a dimension ---------------------------------------------------------------------- */

typedef struct {
    float *out;
    const float *x;
    int64_t n, inner;
} Sums;

static void add_rows(void *context, float *partial, int64_t begin, int64_t end)
{
    const Sums *s = context;
    for (int64_t i = begin; i < end; i++)
        kernels->binary(partial, partial, s->x + i * s->inner, s->inner, 1, 1, MINIFM_ADD);
}

/* A row in runs of RUN numbers, the runs' sums added in order: the error grows with n / RUN. */
static void sum_contiguous(void *context, int64_t begin, int64_t end)
{
    const Sums *s = context;
    for (int64_t i = begin; i < end; i++) {
        const float *x = s->x + i * s->n;
        double total = 0;
        for (int64_t j = 0; j < s->n; j += RUN)
            total += kernels->sum(x + j, s->n - j < RUN ? s->n - j : RUN);
        s->out[i] = (float)total;
    }
}

typedef struct {
    double *totals;
    const float *x;
    int64_t n;
} Runs;

static void sum_runs(void *context, int64_t begin, int64_t end)
{
    const Runs *r = context;
    for (int64_t i = begin; i < end; i++) {
        int64_t length = r->n - i * RUN < RUN ? r->n - i * RUN : RUN;
        r->totals[i] = kernels->sum(r->x + i * RUN, length);
    }
}

/* As sum_contiguous, one long row on all threads; *status is -1 where there was no memory. */
static double sum_long(const float *x, int64_t n, int *status)
{
    const int64_t runs = ceil_div(n, RUN);
    double total = 0;
    team_enter();
    Runs r = {scratch(SHARED, (size_t)runs * sizeof(double)), x, n};
    *status = r.totals ? 0 : -1;
    if (r.totals) {
        team_for(runs, 2, sum_runs, &r);
        for (int64_t i = 0; i < runs; i++)
            total += r.totals[i];
    }
    team_leave();
    return total;
}

int minifm_sum(float *out, const float *x, int64_t outer, int64_t n, int64_t inner)
{
    int status = 0;
    if (inner == 1 && outer == 1) {
        *out = (float)sum_long(x, n, &status);
    } else if (inner == 1) {
        Sums s = {out, x, n, 1};
        parallel_for(outer, grain_of(n), sum_contiguous, &s);
    } else {
        for (int64_t i = 0; i < outer && !status; i++) {
            Sums s = {NULL, x + i * n * inner, n, inner};
            status = reduce_rows(out + i * inner, n, inner, add_rows, &s);
        }
    }
    return status;
}

/* -- the largest and the smallest: any order gives the same ------------------------------------------ */

typedef struct {
    void *out;
    const float *x;
    int64_t n, inner;
    int operation;
} Extremes;

static void extreme_of_rows(void *context, int64_t begin, int64_t end)
{
    const Extremes *e = context;
    for (int64_t i = begin; i < end; i++)
        ((float *)e->out)[i] = kernels->extreme(e->x + i * e->n, e->n, e->operation);
}

/* A strip of columns of each of the outer dimension's blocks [n, inner], row by row. */
static void extreme_of_strips(void *context, int64_t begin, int64_t end)
{
    const Extremes *e = context;
    for (int64_t i = begin; i < end; i++) {
        const Strip s = strip_of(i, e->n, e->inner);
        float *out = (float *)e->out + s.out;
        memcpy(out, e->x + s.in, (size_t)s.width * sizeof *out);
        for (int64_t j = 1; j < e->n; j++)
            kernels->binary(out, out, e->x + s.in + j * e->inner, s.width, 1, 1, e->operation);
    }
}

void minifm_extreme(float *out, const float *x, int64_t outer, int64_t n, int64_t inner,
                    int operation)
{
    Extremes e = {out, x, n, inner, operation};
    if (inner == 1)
        parallel_for(outer, grain_of(n), extreme_of_rows, &e);
    else
        parallel_for(strips(outer, inner), grain_of(n * smaller(inner, STRIP)), extreme_of_strips,
                     &e);
}

static void argmax_of_rows(void *context, int64_t begin, int64_t end)
{
    const Extremes *e = context;
    for (int64_t i = begin; i < end; i++) {
        const float *x = e->x + i * e->n, largest = kernels->extreme(x, e->n, MINIFM_MAXIMUM);
        int64_t place = 0;
        while (x[place] != largest && x[place] == x[place]) /* NaN is what `extreme` found first */
            place++;
        ((int64_t *)e->out)[i] = place;
    }
}

/* The largest of every column, then, from the last row up, where it is. */
static void argmax_of_strips(void *context, int64_t begin, int64_t end)
{
    const Extremes *e = context;
    float largest[STRIP];
    for (int64_t i = begin; i < end; i++) {
        const Strip s = strip_of(i, e->n, e->inner);
        const float *x = e->x + s.in;
        int64_t *place = (int64_t *)e->out + s.out;
        memcpy(largest, x, (size_t)s.width * sizeof *x);
        for (int64_t j = 1; j < e->n; j++)
            kernels->binary(largest, largest, x + j * e->inner, s.width, 1, 1, MINIFM_MAXIMUM);
        for (int64_t j = e->n - 1; j >= 0; j--) {
            const float *row = x + j * e->inner;
            for (int64_t c = 0; c < s.width; c++)
                place[c] = row[c] == largest[c] || row[c] != row[c] ? j : place[c];
        }
    }
}

void minifm_argmax(int64_t *out, const float *x, int64_t outer, int64_t n, int64_t inner)
{
    Extremes e = {out, x, n, inner, MINIFM_MAXIMUM};
    if (inner == 1)
        parallel_for(outer, grain_of(n), argmax_of_rows, &e);
    else
        parallel_for(strips(outer, inner), grain_of(n * smaller(inner, STRIP)), argmax_of_strips,
                     &e);
}
