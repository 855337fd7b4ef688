/* Cross-entropy of rows of logits against target indices.
 *
 * With smoothing e the target distribution is 1 - e on the target plus e / n everywhere:
 * loss = logsumexp(x) - (1 - e) x_target - e mean(x).
 */
#include "isa.h"
#include "minifm.h"
#include "threads.h"

#include <string.h>

typedef struct {
    float *out, *lse_out;
    const float *dlosses, *logits, *lse;
    const int64_t *targets;
    int64_t n, ignored;
    float smoothing;
} Loss;

static void loss_rows(void *context, int64_t begin, int64_t end)
{
    const Loss *s = context;
    for (int64_t i = begin; i < end; i++) {
        const float *x = s->logits + i * s->n;
        float lse = s->lse_out[i] = kernels->logsumexp(x, s->n);
        if (s->targets[i] == s->ignored) {
            s->out[i] = 0;
            continue;
        }
        float loss = lse - (1 - s->smoothing) * x[s->targets[i]];
        if (s->smoothing > 0)
            loss -= s->smoothing * (kernels->sum(x, s->n) / (float)s->n);
        s->out[i] = loss;
    }
}

static void loss_backward_rows(void *context, int64_t begin, int64_t end)
{
    const Loss *s = context;
    for (int64_t i = begin; i < end; i++) {
        float *d = s->out + i * s->n, slope = s->dlosses[i];
        if (s->targets[i] == s->ignored) {
            memset(d, 0, (size_t)s->n * sizeof *d);
            continue;
        }
        kernels->exp_sum(d, s->logits + i * s->n, s->n, s->lse[i]);
        d[s->targets[i]] -= 1 - s->smoothing;
        kernels->shift_scale(d, d, s->n, -s->smoothing / (float)s->n, slope);
    }
}

static int all_valid(const Loss *s, int64_t rows)
{
    for (int64_t i = 0; i < rows; i++)
        if (s->targets[i] != s->ignored && (s->targets[i] < 0 || s->targets[i] >= s->n))
            return 0;
    return 1;
}

int minifm_cross_entropy(float *losses, float *lse, const float *logits, const int64_t *targets,
                         int64_t rows, int64_t n, int64_t ignored, float smoothing)
{
    Loss s = {.out = losses, .lse_out = lse, .logits = logits, .targets = targets, .n = n,
              .ignored = ignored, .smoothing = smoothing};
    if (!all_valid(&s, rows))
        return -1;
    parallel_for(rows, grain_of(n), loss_rows, &s);
    return 0;
}

int minifm_cross_entropy_backward(float *dlogits, const float *dlosses, const float *logits,
                                  const int64_t *targets, const float *lse, int64_t rows,
                                  int64_t n, int64_t ignored, float smoothing)
{
    Loss s = {.out = dlogits, .dlosses = dlosses, .logits = logits, .lse = lse,
              .targets = targets, .n = n, .ignored = ignored, .smoothing = smoothing};
    if (!all_valid(&s, rows))
        return -1;
    parallel_for(rows, grain_of(n), loss_backward_rows, &s);
    return 0;
}
