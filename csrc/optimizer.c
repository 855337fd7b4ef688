/* The updates that write their operands in place, each one pass over memory, and the norm that
 * clipping needs. They take all parameters at once, as if these lay end to end in one long array:
 * one parallel region, in which a small bias costs no more than its bytes.
 */
#include "isa.h"
#include "minifm.h"
#include "sizes.h"
#include "threads.h"

enum { RANGE = 8192 };

typedef struct {
    float *const *params, *const *m, *const *v;
    const float *const *grads;
    const int64_t *ends;        /* of each array, counted through all of them */
    int64_t arrays;
    const float *decays, *constants;
    double *totals;
    float rate;
} Update;

/* Which array holds element i of them all: the first that ends beyond it. */
static int64_t holder(const Update *u, int64_t i)
{
    int64_t first = 0, last = u->arrays - 1;
    while (first < last) {
        int64_t middle = (first + last) / 2;
        if (u->ends[middle] > i)
            last = middle;
        else
            first = middle + 1;
    }
    return first;
}

static int64_t start(const Update *u, int64_t array) { return array ? u->ends[array - 1] : 0; }

/* For each array that begin ... end - 1 touches: the n elements from i on of array number a. */
#define EACH_PIECE                                                                      \
    for (int64_t a = holder(u, begin), i = begin - start(u, a), n; begin < end;         \
         begin += n, a++, i = 0)                                                        \
        if ((n = (u->ends[a] < end ? u->ends[a] : end) - begin) > 0)

static void adamw_range(void *context, int64_t begin, int64_t end)
{
    const Update *u = context;
    EACH_PIECE
        kernels->adamw(u->params[a] + i, u->grads[a] + i, u->m[a] + i, u->v[a] + i, n,
                       u->decays[a], u->constants);
}

static void ema_range(void *context, int64_t begin, int64_t end)
{
    const Update *u = context;
    EACH_PIECE kernels->ema(u->params[a] + i, u->grads[a] + i, n, u->rate);
}

static void squares_range(void *context, int64_t begin, int64_t end)
{
    const Update *u = context;
    double *total = u->totals + begin / RANGE;
    *total = 0;
    EACH_PIECE *total += kernels->sum_of_squares(u->grads[a] + i, n);
}

static int64_t elements(const int64_t *ends, int64_t arrays) { return arrays ? ends[arrays - 1] : 0; }

void minifm_adamw(float *const *params, float *const *m, float *const *v,
                  const float *const *grads, const int64_t *ends, int64_t arrays,
                  const float *decays, const float *constants)
{
    Update u = {.params = params, .m = m, .v = v, .grads = grads, .ends = ends, .arrays = arrays,
                .decays = decays, .constants = constants};
    parallel_for(elements(ends, arrays), RANGE, adamw_range, &u);
}

void minifm_ema(float *const *averages, const float *const *params, const int64_t *ends,
                int64_t arrays, float rate)
{
    Update u = {.params = averages, .grads = params, .ends = ends, .arrays = arrays,
                .rate = rate};
    parallel_for(elements(ends, arrays), RANGE, ema_range, &u);
}

double minifm_sum_of_squares(const float *const *x, const int64_t *ends, int64_t arrays)
{
    const int64_t n = elements(ends, arrays), ranges = ceil_div(n, RANGE);
    double total = 0;
    team_enter();
    Update u = {.grads = x, .ends = ends, .arrays = arrays,
                .totals = scratch(SHARED, (size_t)ranges * sizeof(double))};
    if (u.totals) {
        team_for(n, RANGE, squares_range, &u);
        for (int64_t i = 0; i < ranges; i++)
            total += u.totals[i];
    }
    team_leave();
    return u.totals || !n ? total : -1;
}
