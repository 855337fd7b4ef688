/* Every entry of a table of micro-kernels against the portable one, on random rows of all lengths
 * around the vectors: for processors that run this small program, but no Python.
 *
 * Where a law says how a number comes about (moves, single roundings, a tile's multiply-adds in
 * order), the results are the same to the bit; elsewhere they differ by roundings, and stay within
 * a bound on those. Each output lies between canaries. Exit status 0 if all is well.
 */
#include "isa.h"
#include "minifm.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__aarch64__)
#define TABLE kernels_neon
#else
#define TABLE kernels_avx2
#endif

enum { MOST = 1100, MARGIN = 64, ROOM = 11 * MOST + 2 * MARGIN };

static const Kernels *const tables[2] = {&kernels_portable, &TABLE};
static int failures;
static const char *what;
static int64_t size;

/* -- operands --------------------------------------------------------------------------------- */

static uint64_t state = 1;

static float uniform(void) /* -1 ... 1, Knuth's linear congruence */
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(state >> 32) * 0x1p-31f;
}

static float *operand(float scale)
{
    static float rooms[8][ROOM];
    static int next;
    float *x = rooms[next++ % 8];
    for (int i = 0; i < ROOM; i++)
        x[i] = scale * uniform();
    return x;
}

/* The outputs of both tables, each [2][ROOM]: filled with the same, so that what neither writes
 * is the same, and what one writes beside its output is not. */
static float out[3][2][ROOM];

static void clear(float value)
{
    for (int o = 0; o < 3; o++)
        for (int t = 0; t < 2; t++)
            for (int i = 0; i < ROOM; i++)
                out[o][t][i] = value + (float)i * 1e-3f;
}

#define OUT(o) (out[o][t] + MARGIN)

/* -- comparison ------------------------------------------------------------------------------- */

static void expect(int o, int64_t begin, int64_t end, float bound)
{
    for (int64_t i = -MARGIN; i < ROOM - MARGIN; i++) {
        float wanted = out[o][0][i + MARGIN], found = out[o][1][i + MARGIN];
        int inside = i >= begin && i < end;
        if (memcmp(&wanted, &found, sizeof wanted) == 0 || (isnan(wanted) && isnan(found)) ||
            (inside && fabsf(wanted - found) <= bound * (1 + fabsf(wanted))))
            continue;
        printf("%s, n = %lld: output %d at %lld is %.9g, portable %.9g\n", what, (long long)size,
               o, (long long)i, (double)found, (double)wanted);
        failures++;
        return;
    }
}

#define EXACT 0.0f
#define ROUNDINGS(n) (0x1p-22f * (float)(8 + (n)))

/* Run `call` with k the portable table, t = 0, and the other, t = 1. */
#define BOTH(name, call)                            \
    what = name;                                    \
    for (int t = 0; t < 2; t++) {                   \
        const Kernels *k = tables[t];               \
        call;                                       \
    }

/* -- products: the table's own tile, element by element against the law ----------------------- */

static void check_tile(int64_t depth, int rows, int accumulate)
{
    const Kernels *k = &TABLE;
    const int NR = k->tile_cols;
    const float *a = operand(1), *b = operand(1);
    what = "tile", size = depth;
    for (int packed = 0; packed < 2; packed++) {
        const int64_t a_row = packed ? 1 : depth + 3, a_k = packed ? k->tile_rows : 1;
        clear(0.5f);
        k->tile(out[0][1] + MARGIN, a, b, NR + 5, depth, a_row, a_k, NR, rows, accumulate);
        for (int r = 0; r < rows; r++)
            for (int j = 0; j < NR; j++) {
                float sum = 0, *c = out[0][0] + MARGIN + r * (NR + 5) + j;
                for (int64_t p = 0; p < depth; p++)
                    sum = fmaf(a[r * a_row + p * a_k], b[p * NR + j], sum);
                *c = accumulate ? *c + sum : sum;
            }
        expect(0, 0, 0, EXACT);
    }
}

static void check_stream(int64_t n, int rows)
{
    const Kernels *k = &TABLE;
    const float *a = operand(1), *b = operand(1);
    what = "stream", size = n;
    for (int64_t depth = 0; depth < 10; depth++) {
        clear(0.5f);
        k->stream(out[0][1] + MARGIN, a, b, n + 1, depth, 11, 1, n + 2, rows, n);
        for (int r = 0; r < rows; r++)
            for (int64_t j = 0; j < n; j++) {
                float *sum = out[0][0] + MARGIN + r * (n + 1) + j;
                for (int64_t p = 0; p < depth; p++)
                    *sum = fmaf(a[r * 11 + p], b[p * (n + 2) + j], *sum);
            }
        expect(0, 0, 0, EXACT);
    }
}

static void check_transpose(int64_t n, int rows, int width)
{
    const float *in = operand(1);
    size = n;
    clear(0.5f);
    BOTH("transpose", k->transpose(OUT(0), in, width + 1, n + 3, n, rows, width))
    expect(0, 0, 0, EXACT);
}

/* -- rows --------------------------------------------------------------------------------------- */

static void check_elementwise(int64_t n)
{
    const float *x = operand(8), *y = operand(2), *z = operand(1);
    for (int f = MINIFM_RELU; f <= MINIFM_ABSOLUTE; f++) {
        const int exact = f == MINIFM_RELU || f >= MINIFM_SQRT;
        clear(0);
        BOTH("map", k->map(OUT(0), x, n, f))
        expect(0, 0, n, exact ? EXACT : ROUNDINGS(8));
        if (f <= MINIFM_GELU_QUICK) {
            clear(0);
            BOTH("map_backward", k->map_backward(OUT(0), y, x, n, f))
            expect(0, 0, n, f == MINIFM_RELU ? EXACT : ROUNDINGS(64));
        }
    }
    for (int operation = MINIFM_ADD; operation <= MINIFM_DIVIDE; operation++)
        for (int steps = 1; steps < 4; steps++) {
            clear(0);
            BOTH("binary", k->binary(OUT(0), x, y, n, steps & 1, steps >> 1, operation))
            expect(0, 0, n, EXACT);
        }
    for (int parts = 0; parts < 4; parts++) {
        clear(0.1f);
        BOTH("epilogue", k->epilogue(OUT(0), OUT(1), parts & 1 ? x : NULL, parts & 2 ? y : NULL,
                                     n, MINIFM_RELU))
        expect(0, 0, n, EXACT);
        expect(1, 0, n, EXACT);
    }
    clear(0.1f);
    BOTH("scale", k->scale(OUT(0), x, n, 0.3f); k->shift_scale(OUT(1), x, n, 0.7f, 0.3f))
    expect(0, 0, n, EXACT);
    expect(1, 0, n, EXACT);
    clear(0.1f);
    BOTH("add_scaled", k->add_scaled(OUT(0), x, n, 0.3f); k->ema(OUT(1), x, n, 0.01f);
         k->softmax_gradient(OUT(2), z, y, n, 0.2f))
    expect(0, 0, n, ROUNDINGS(0));
    expect(1, 0, n, ROUNDINGS(0));
    expect(2, 0, n, EXACT);
}

static void check_sums(int64_t n)
{
    const float *x = operand(1), *y = operand(1);
    clear(0);
    BOTH("sum", *OUT(0) = k->sum(x, n))
    expect(0, 0, 1, ROUNDINGS(n));
    BOTH("sum_of_squares", *OUT(0) = (float)k->sum_of_squares(x, n))
    expect(0, 0, 1, ROUNDINGS(0));
    BOTH("dot", *OUT(0) = k->dot(x, y, n))
    expect(0, 0, 1, ROUNDINGS(n));
    BOTH("max", *OUT(0) = k->max(x, n))
    expect(0, 0, 1, EXACT);
    BOTH("logsumexp", *OUT(0) = k->logsumexp(x, n))
    expect(0, 0, 1, ROUNDINGS(n));
    clear(0);
    BOTH("exp_sum", *OUT(1) = k->exp_sum(OUT(0), x, n, 0.5f))
    expect(0, 0, n, ROUNDINGS(0));
    expect(1, 0, 1, ROUNDINGS(n));
}

static void check_rows(int64_t n)
{
    const float *x = operand(3), *dy = operand(1), *gamma = operand(1), *beta = operand(1);
    clear(0);
    BOTH("softmax", k->softmax(OUT(0), x, n); k->softmax_backward(OUT(1), dy, OUT(0), n))
    expect(0, 0, n, ROUNDINGS(n));
    expect(1, 0, n, ROUNDINGS(n));
    clear(0);
    BOTH("log_softmax", k->log_softmax(OUT(0), x, n);
         k->log_softmax_backward(OUT(1), dy, OUT(0), n))
    expect(0, 0, n, ROUNDINGS(n));
    expect(1, 0, n, ROUNDINGS(n));
    clear(0);
    BOTH("layernorm", k->layernorm(OUT(0), OUT(1), OUT(2), x, gamma, beta, n, 1e-3f))
    expect(0, 0, n, ROUNDINGS(8 * n));
    expect(1, 0, 1, ROUNDINGS(n));
    expect(2, 0, 1, ROUNDINGS(8 * n));
    clear(0);
    BOTH("layernorm_backward",
         k->layernorm_backward(OUT(0), OUT(1), OUT(2), dy, x, gamma, n, 0.2f, 0.6f))
    for (int o = 0; o < 3; o++)
        expect(o, 0, n, ROUNDINGS(n));
    clear(0);
    BOTH("rmsnorm", k->rmsnorm(OUT(0), OUT(1), x, gamma, n, 1e-3f))
    expect(0, 0, n, ROUNDINGS(8 * n));
    expect(1, 0, 1, ROUNDINGS(8 * n));
    clear(0);
    BOTH("rmsnorm_backward", k->rmsnorm_backward(OUT(0), OUT(1), dy, x, gamma, n, 0.6f))
    expect(0, 0, n, ROUNDINGS(n));
    expect(1, 0, n, ROUNDINGS(n));
    const float constants[8] = {0.7f, 0.1f, 0.01f, 1.9f, 4.2f, 1e-6f, 0.01f, 0.1f};
    clear(0.1f);
    BOTH("adamw", k->adamw(OUT(0), x, OUT(1), OUT(2), n, constants))
    for (int o = 0; o < 3; o++)
        expect(o, 0, n, ROUNDINGS(8));
}

/* Infinities, NaN and numbers at the ends of the range, one in each lane in turn. */
static void check_special(int64_t n)
{
    const float values[] = {NAN,    INFINITY, -INFINITY, 3.4e38f, -3.4e38f,
                            1e-40f, -0.0f,    88.7f,     -103.9f};
    for (int value = 0; value < 9; value++)
        for (int64_t lane = 0; lane < n; lane++) {
            float *x = operand(1);
            x[lane] = values[value];
            for (int f = MINIFM_RELU; f <= MINIFM_ABSOLUTE; f++) {
                clear(0);
                BOTH("map of a special value", k->map(OUT(0), x, n, f))
                expect(0, 0, n, ROUNDINGS(8));
            }
            clear(0);
            BOTH("row with a special value", k->softmax(OUT(0), x, n); *OUT(1) = k->max(x, n);
                 *OUT(2) = k->logsumexp(x, n))
            expect(0, 0, n, ROUNDINGS(n));
            expect(1, 0, 1, EXACT);
            expect(2, 0, 1, ROUNDINGS(n));
        }
}

int main(void)
{
    for (int64_t depth = 0; depth < 40; depth += depth < 9 ? 1 : 10)
        for (int rows = 1; rows <= TABLE.tile_rows; rows++)
            for (int accumulate = 0; accumulate < 2; accumulate++)
                check_tile(depth, rows, accumulate);
    for (size = 0; size <= MOST; size += size < 70 ? 1 : 343) {
        const int64_t n = size;
        for (int rows = 1; rows <= 4; rows++)
            check_stream(n, rows);
        check_elementwise(n);
        check_sums(n);
        if (n)
            check_rows(n);
    }
    for (int64_t n = 0; n < 20; n++)
        for (int rows = 0; rows <= TABLE.tile_cols; rows++)
            check_transpose(n, rows, TABLE.tile_cols);
    for (size = 1; size < 19; size += 5)
        check_special(size);
    printf("%s against portable: %d differences\n", TABLE.name, failures);
    return failures > 0;
}
