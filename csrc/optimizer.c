/* The updates that write their operands in place, each one pass over memory. */
#include "isa.h"
#include "minifm.h"
#include "threads.h"

enum { BLOCK = 8192 };

typedef struct {
    float *param, *m, *v;
    const float *grad, *constants;
    float rate;
} Update;

static void adamw_range(void *context, int64_t begin, int64_t end)
{
    const Update *u = context;
    kernels->adamw(u->param + begin, u->grad + begin, u->m + begin, u->v + begin, end - begin,
                   u->constants);
}

static void ema_range(void *context, int64_t begin, int64_t end)
{
    const Update *u = context;
    kernels->ema(u->param + begin, u->grad + begin, end - begin, u->rate);
}

void minifm_adamw(float *param, const float *grad, float *m, float *v, int64_t n,
                  const float *constants)
{
    Update u = {.param = param, .m = m, .v = v, .grad = grad, .constants = constants};
    parallel_for(n, BLOCK, adamw_range, &u);
}

void minifm_ema(float *average, const float *param, int64_t n, float rate)
{
    Update u = {.param = average, .grad = param, .rate = rate};
    parallel_for(n, BLOCK, ema_range, &u);
}
