/* Group norm over [batch, channels, positions], with an activation behind it: a row is one group of
 * channels with all their positions; gain and offset are by channel.
 *
 * A row is too long for the nearest cache. What takes several passes takes them over pieces that
 * are not, and memory sees the row as often as it must: once, and once more where a sum over all
 * of it comes before the result.
 */
#include "isa.h"
#include "minifm.h"
#include "sizes.h"
#include "threads.h"

#include <math.h>
#include <string.h>

enum { PIECE = 2048 };

typedef struct {
    float *y, *mean_out, *rstd_out;     /* y: dx in the backward pass */
    const float *dy, *x, *gamma, *beta, *mean, *rstd;
    int64_t groups, width, n;           /* of a group: channels, and positions of each */
    float eps;
    int function;
    float *sums;                        /* [batch, 2, channels] */
} GroupNorm;

/* The mean and the sum of squared distances from it, from those of the pieces (Chan, Golub &
 * LeVeque 1983). */
static void moments(const float *x, int64_t n, double *mean, double *squares)
{
    *mean = *squares = 0;
    for (int64_t done = 0, length; done < n; done += length) {
        length = smaller(PIECE, n - done);
        const float own = kernels->sum(x + done, length) / (float)length;
        const double apart = own - *mean, share = (double)length / (double)(done + length);
        *squares += kernels->squares(x + done, length, own) + apart * apart * share * (double)done;
        *mean += apart * share;
    }
}

static void groupnorm_rows(void *context, int64_t begin, int64_t end)
{
    const GroupNorm *s = context;
    for (int64_t row = begin; row < end; row++) {
        const int64_t first = row % s->groups * s->width, numbers = s->width * s->n;
        double mean, squares;
        moments(s->x + row * numbers, numbers, &mean, &squares);
        s->mean_out[row] = (float)mean;
        s->rstd_out[row] = (float)(1 / sqrt(squares / (double)numbers + s->eps));
        for (int64_t c = 0; c < s->width; c++)
            for (int64_t i = 0; i < s->n; i += PIECE) {
                const int64_t at = row * numbers + c * s->n + i, length = smaller(PIECE, s->n - i);
                kernels->affine(s->y + at, s->x + at, length, s->mean_out[row],
                                s->rstd_out[row] * s->gamma[first + c], s->beta[first + c]);
                if (s->function != MINIFM_IDENTITY)
                    kernels->map(s->y + at, s->y + at, length, s->function);
            }
    }
}

/* The gradient by what the activation is given, z: dy itself, or a piece of it, in dx. */
static const float *before_activation(const GroupNorm *s, int64_t at, int64_t length, float mean,
                                      float scale, float offset)
{
    if (s->function == MINIFM_IDENTITY)
        return s->dy + at;
    float *dz = s->y + at;
    kernels->affine(dz, s->x + at, length, mean, scale, offset);
    kernels->map_backward(dz, s->dy + at, dz, length, s->function);
    return dz;
}

/* With x^ = (x - mean) rstd and g = dz gamma: dx = rstd (g - mean(g) - x^ mean(g x^)). */
static void groupnorm_backward_rows(void *context, int64_t begin, int64_t end)
{
    const GroupNorm *s = context;
    const int64_t numbers = s->width * s->n, channels = s->groups * s->width;
    for (int64_t row = begin; row < end; row++) {
        const int64_t first = row % s->groups * s->width;
        const float mean = s->mean[row], rstd = s->rstd[row], *gamma = s->gamma + first;
        float *dgamma = s->sums + row / s->groups * 2 * channels + first;
        double centre = 0, slope = 0;
        for (int64_t c = 0; c < s->width; c++) {
            double sum = 0, product = 0;
            for (int64_t i = 0; i < s->n; i += PIECE) {
                const int64_t at = row * numbers + c * s->n + i, length = smaller(PIECE, s->n - i);
                const float *dz = before_activation(s, at, length, mean, rstd * gamma[c],
                                                    s->beta[first + c]);
                sum += kernels->sum(dz, length);
                product += kernels->centred_dot(dz, s->x + at, length, mean);
            }
            dgamma[c] = (float)(product * rstd);
            dgamma[channels + c] = (float)sum;
            centre += gamma[c] * sum;
            slope += gamma[c] * product * rstd;
        }
        const float *dz = s->function == MINIFM_IDENTITY ? s->dy : s->y;
        centre /= (double)numbers, slope /= (double)numbers;
        for (int64_t c = 0, at = row * numbers; c < s->width; c++, at += s->n)
            kernels->blend(s->y + at, dz + at, s->x + at, s->n, mean, rstd * gamma[c],
                           (float)(-rstd * slope * rstd), (float)(-rstd * centre));
    }
}

void minifm_groupnorm(float *y, float *mean, float *rstd, const float *x, const float *gamma,
                      const float *beta, int64_t batch, int64_t groups, int64_t width, int64_t n,
                      float eps, int function)
{
    GroupNorm s = {.y = y, .mean_out = mean, .rstd_out = rstd, .x = x, .gamma = gamma,
                   .beta = beta, .groups = groups, .width = width, .n = n, .eps = eps,
                   .function = function};
    parallel_for(batch * groups, grain_of(width * n), groupnorm_rows, &s);
}

int minifm_groupnorm_backward(float *dx, float *dgamma_dbeta, const float *dy, const float *x,
                              const float *gamma, const float *beta, const float *mean,
                              const float *rstd, int64_t batch, int64_t groups, int64_t width,
                              int64_t n, int function)
{
    const int64_t channels = groups * width;
    memset(dgamma_dbeta, 0, (size_t)(2 * channels) * sizeof *dgamma_dbeta);
    if (batch * channels * n == 0)
        return 0;
    team_enter();
    GroupNorm s = {.y = dx, .dy = dy, .x = x, .gamma = gamma, .beta = beta, .mean = mean,
                   .rstd = rstd, .groups = groups, .width = width, .n = n, .function = function,
                   .sums = scratch(SHARED, (size_t)(batch * 2 * channels) * sizeof(float))};
    if (s.sums) {
        team_for(batch * groups, grain_of(width * n), groupnorm_backward_rows, &s);
        for (int64_t b = 0; b < batch; b++)
            kernels->binary(dgamma_dbeta, dgamma_dbeta, s.sums + b * 2 * channels, 2 * channels, 1,
                            1, MINIFM_ADD);
    }
    team_leave();
    return s.sums ? 0 : -1;
}
