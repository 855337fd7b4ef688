/* Kernels over rows: softmax and its kin. Rows are shared out to the threads in ranges; a row is
 * always computed by one thread and its order of summation depends on its length alone.
 */
#include "isa.h"
#include "minifm.h"
#include "threads.h"

typedef struct {
    float *out;
    const float *in, *saved;
    int64_t n;
    void (*forward)(float *, const float *, int64_t);
    void (*backward)(float *, const float *, const float *, int64_t);
} Rows;

static void forward_rows(void *context, int64_t begin, int64_t end)
{
    const Rows *r = context;
    for (int64_t i = begin; i < end; i++)
        r->forward(r->out + i * r->n, r->in + i * r->n, r->n);
}

static void backward_rows(void *context, int64_t begin, int64_t end)
{
    const Rows *r = context;
    for (int64_t i = begin; i < end; i++)
        r->backward(r->out + i * r->n, r->in + i * r->n, r->saved + i * r->n, r->n);
}

void minifm_softmax(float *y, const float *x, int64_t rows, int64_t n)
{
    Rows r = {.out = y, .in = x, .n = n, .forward = kernels->softmax};
    parallel_for(rows, grain_of(n), forward_rows, &r);
}

void minifm_softmax_backward(float *dx, const float *dy, const float *y, int64_t rows, int64_t n)
{
    Rows r = {.out = dx, .in = dy, .saved = y, .n = n, .backward = kernels->softmax_backward};
    parallel_for(rows, grain_of(n), backward_rows, &r);
}

void minifm_log_softmax(float *y, const float *x, int64_t rows, int64_t n)
{
    Rows r = {.out = y, .in = x, .n = n, .forward = kernels->log_softmax};
    parallel_for(rows, grain_of(n), forward_rows, &r);
}

void minifm_log_softmax_backward(float *dx, const float *dy, const float *y, int64_t rows,
                                 int64_t n)
{
    Rows r = {.out = dx, .in = dy, .saved = y, .n = n, .backward = kernels->log_softmax_backward};
    parallel_for(rows, grain_of(n), backward_rows, &r);
}

static void logsumexp_rows(void *context, int64_t begin, int64_t end)
{
    const Rows *r = context;
    for (int64_t i = begin; i < end; i++)
        r->out[i] = kernels->logsumexp(r->in + i * r->n, r->n);
}

void minifm_logsumexp(float *lse, const float *x, int64_t rows, int64_t n)
{
    Rows r = {.out = lse, .in = x, .n = n};
    parallel_for(rows, grain_of(n), logsumexp_rows, &r);
}
