/* What the machine can do at most: multiply-adds in registers, reads, copies. A benchmark holds
 * every kernel against these, measured in the same run, on the same threads.
 */
#include "isa.h"
#include "minifm.h"
#include "threads.h"

#include <string.h>

/* -- arithmetic ------------------------------------------------------------------------------ */

typedef struct {
    int64_t rounds;
    int bf16;
    int64_t flops[MAX_THREADS]; /* what each thread has done */
    float results[MAX_THREADS]; /* written, so that no compiler leaves the work out */
} MultiplyAdds;

static void multiply_add(void *context, int thread, int threads)
{
    MultiplyAdds *m = context;
    m->flops[thread] = (m->bf16 ? kernels->multiply_add_bf16 : kernels->multiply_add)(
        &m->results[thread], m->rounds);
}

int64_t minifm_multiply_adds(int64_t rounds, int bf16)
{
    MultiplyAdds m = {.rounds = rounds, .bf16 = bf16};
    team_enter();
    team_run(multiply_add, &m, 0);
    int64_t flops = 0;
    for (int i = 0; i < team_threads(); i++)
        flops += m.flops[i];
    team_leave();
    return flops;
}

/* -- memory: each thread has one piece, so that the hardware sees long streams ---------------- */

typedef struct {
    uint64_t *to;
    const uint64_t *from;
    int64_t n;
    uint64_t sums[MAX_THREADS];
} Traffic;

static int64_t piece(const Traffic *t, int thread, int threads, int64_t *begin)
{
    const int64_t each = t->n / threads;
    *begin = thread * each;
    return thread == threads - 1 ? t->n - *begin : each;
}

static void read_piece(void *context, int thread, int threads)
{
    Traffic *t = context;
    int64_t begin, n = piece(t, thread, threads, &begin);
    const uint64_t *from = t->from + begin;
    uint64_t a = 0, b = 0, c = 0, d = 0;
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        a += from[i];
        b += from[i + 1];
        c += from[i + 2];
        d += from[i + 3];
    }
    for (; i < n; i++)
        a += from[i];
    t->sums[thread] = a + b + c + d;
}

static void copy_piece(void *context, int thread, int threads)
{
    Traffic *t = context;
    int64_t begin, n = piece(t, thread, threads, &begin);
    memcpy(t->to + begin, t->from + begin, n * sizeof *t->to);
}

uint64_t minifm_read(const uint64_t *x, int64_t n)
{
    Traffic t = {.from = x, .n = n};
    team_enter();
    team_run(read_piece, &t, 0);
    uint64_t sum = 0;
    for (int i = 0; i < team_threads(); i++)
        sum += t.sums[i];
    team_leave();
    return sum;
}

void minifm_copy(uint64_t *y, const uint64_t *x, int64_t n)
{
    Traffic t = {.to = y, .from = x, .n = n};
    team_enter();
    team_run(copy_piece, &t, 0);
    team_leave();
}
