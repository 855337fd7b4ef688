/* Layer norm and RMS norm over rows; the gains' gradients are sums over rows in a fixed order. */
#include "isa.h"
#include "minifm.h"
#include "threads.h"

typedef struct {
    float *y, *mean_out, *rstd_out;     /* y: dx in the backward pass */
    const float *dy, *x, *gamma, *beta, *mean, *rstd;
    int64_t n;
    float eps;
} Norm;

static void layernorm_rows(void *context, int64_t begin, int64_t end)
{
    const Norm *s = context;
    for (int64_t i = begin; i < end; i++)
        kernels->layernorm(s->y + i * s->n, s->mean_out + i, s->rstd_out + i, s->x + i * s->n,
                           s->gamma, s->beta, s->n, s->eps);
}

static void layernorm_backward_rows(void *context, float *partial, int64_t begin, int64_t end)
{
    const Norm *s = context;
    for (int64_t i = begin; i < end; i++)
        kernels->layernorm_backward(s->y + i * s->n, partial, partial + s->n, s->dy + i * s->n,
                                    s->x + i * s->n, s->gamma, s->n, s->mean[i], s->rstd[i]);
}

static void rmsnorm_rows(void *context, int64_t begin, int64_t end)
{
    const Norm *s = context;
    for (int64_t i = begin; i < end; i++)
        kernels->rmsnorm(s->y + i * s->n, s->rstd_out + i, s->x + i * s->n, s->gamma, s->n,
                         s->eps);
}

static void rmsnorm_backward_rows(void *context, float *partial, int64_t begin, int64_t end)
{
    const Norm *s = context;
    for (int64_t i = begin; i < end; i++)
        kernels->rmsnorm_backward(s->y + i * s->n, partial, s->dy + i * s->n, s->x + i * s->n,
                                  s->gamma, s->n, s->rstd[i]);
}

void minifm_layernorm(float *y, float *mean, float *rstd, const float *x, const float *gamma,
                      const float *beta, int64_t rows, int64_t n, float eps)
{
    Norm s = {.y = y, .mean_out = mean, .rstd_out = rstd, .x = x, .gamma = gamma, .beta = beta,
              .n = n, .eps = eps};
    parallel_for(rows, grain_of(n), layernorm_rows, &s);
}

int minifm_layernorm_backward(float *dx, float *dgamma_dbeta, const float *dy, const float *x,
                              const float *gamma, const float *mean, const float *rstd,
                              int64_t rows, int64_t n)
{
    Norm s = {.y = dx, .dy = dy, .x = x, .gamma = gamma, .mean = mean, .rstd = rstd, .n = n};
    return reduce_rows(dgamma_dbeta, rows, 2 * n, layernorm_backward_rows, &s);
}

void minifm_rmsnorm(float *y, float *rstd, const float *x, const float *gamma, int64_t rows,
                    int64_t n, float eps)
{
    Norm s = {.y = y, .rstd_out = rstd, .x = x, .gamma = gamma, .n = n, .eps = eps};
    parallel_for(rows, grain_of(n), rmsnorm_rows, &s);
}

int minifm_rmsnorm_backward(float *dx, float *dgamma, const float *dy, const float *x,
                            const float *gamma, const float *rstd, int64_t rows, int64_t n)
{
    Norm s = {.y = dx, .dy = dy, .x = x, .gamma = gamma, .rstd = rstd, .n = n};
    return reduce_rows(dgamma, rows, n, rmsnorm_backward_rows, &s);
}
