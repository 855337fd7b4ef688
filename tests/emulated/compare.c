/* Every entry of a table of micro-kernels, TABLE, against the portable one, on random rows of all
 * lengths around the vectors: for processors that run this small program, but no Python.
 *
 * Where a law says how a number comes about (moves, single roundings, multiply-adds in order), the
 * results are the law's to the bit; elsewhere they differ from the portable ones by roundings, and
 * stay within a bound on those. Each output lies between canaries. Exit status 0 if all is well.
 */
#include "bf16.h"
#include "gemm.h"
#include "isa.h"
#include "minifm.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* The cell of a bf16 number, or of two that follow each other along k. */
static float cell_of(float first, float second)
{
    const float numbers[2] = {first, second};
    uint32_t cell = 0;
    for (int i = 0; i < TABLE.bf16.together; i++) {
        const int flushed = TABLE.bf16.together == 2 && fabsf(numbers[i]) < 0x1p-126f;
        uint32_t bits;
        memcpy(&bits, numbers + i, sizeof bits);
        bits = flushed ? bits & 0x80000000 : bits;
        bits = isnan(numbers[i]) ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
        cell = (TABLE.bf16.together == 2 ? cell >> 16 : 0) | (bits & 0xffff0000);
    }
    float x;
    memcpy(&x, &cell, sizeof x);
    return x;
}

static float half_of(float cell, int upper)
{
    uint32_t bits;
    memcpy(&bits, &cell, sizeof bits);
    bits = upper ? bits & 0xffff0000 : bits << 16;
    memcpy(&cell, &bits, sizeof cell);
    return cell;
}

/* Where a cell is a pair, its upper halves are added first, as the manuals have it. */
static void check_tile_of_cells(int64_t depth, int rows, int accumulate)
{
    static float a[40 * 16], b[40 * 64];
    const int MR = TABLE.tile_rows, NR = TABLE.tile_cols;
    const float *x = operand(1), *y = operand(1);
    for (int64_t i = 0; i < depth * MR; i++)
        a[i] = cell_of(x[i], x[i + 1]);
    for (int64_t i = 0; i < depth * NR; i++)
        b[i] = cell_of(y[i], y[i + 1]);
    what = "tile of bf16", size = depth;
    clear(0.5f);
    TABLE.bf16.tile(out[0][1] + MARGIN, a, b, NR + 5, depth, 1, MR, NR, rows, accumulate);
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < NR; j++) {
            float sum = 0, *c = out[0][0] + MARGIN + r * (NR + 5) + j;
            for (int64_t p = 0; p < depth; p++)
                for (int half = 1; half > 1 - TABLE.bf16.together; half--)
                    sum = fmaf(half_of(a[p * MR + r], half), half_of(b[p * NR + j], half), sum);
            *c = accumulate ? *c + sum : sum;
        }
    expect(0, 0, 0, EXACT);
}

static void check_stream(int64_t n, int rows)
{
    const Kernels *k = &TABLE;
    const float *a = operand(1), *b = operand(1);
    size = n;
    for (int64_t depth = 0; depth < 10; depth++) {
        what = "stream";
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

/* Few queries against n keys: the sum over the keys is finished before it is added. */
static void check_few_queries(int64_t n, int64_t width, int rows, int bf16)
{
    static uint16_t halves[ROOM];
    const Kernels *k = &TABLE;
    const float *a = operand(1);
    float *b = operand(1);
    for (int i = 0; i < ROOM && bf16; i++) {
        halves[i] = to_bf16(b[i]);
        b[i] = from_bf16(halves[i]);
    }
    const void *stored = bf16 ? (const void *)halves : b;
    what = "score", size = n;
    clear(0.5f);
    k->score(out[0][1] + MARGIN, a, stored, n + 1, width + 2, width, rows, n, bf16);
    for (int r = 0; r < rows; r++)
        for (int64_t j = 0; j < n; j++) {
            float sum = 0;
            for (int64_t d = 0; d < width; d++)
                sum = fmaf(a[r * width + d], b[j * (width + 2) + d], sum);
            out[0][0][MARGIN + r * (n + 1) + j] = sum;
        }
    expect(0, 0, 0, EXACT);
    what = "add_values";
    clear(0.5f);
    k->add_values(out[0][1] + MARGIN, a, stored, n + 1, width + 2, width, rows, n, bf16);
    for (int r = 0; r < rows; r++)
        for (int64_t d = 0; d < width; d++) {
            float sum = 0;
            for (int64_t j = 0; j < n; j++)
                sum = fmaf(a[r * (n + 1) + j], b[j * (width + 2) + d], sum);
            out[0][0][MARGIN + r * width + d] += sum;
        }
    expect(0, 0, 0, EXACT);
    if (!bf16)
        return;
    what = "widen";
    clear(0.5f);
    k->widen(out[0][1] + MARGIN, halves + 1, n);
    for (int64_t i = 0; i < n; i++)
        out[0][0][MARGIN + i] = b[1 + i];
    expect(0, 0, 0, EXACT);
}

/* Column `column` of a sliver's row p, of x[p * step], p < depth; 0 where there is no column. */
static float packed(const float *x, int64_t p, int64_t step, int64_t depth, int bf16, int there)
{
    const int together = bf16 ? TABLE.bf16.together : 1;
    if (!there)
        return 0;
    const float first = x[p * together * step];
    const float second = p * together + 1 < depth ? x[(p * together + 1) * step] : 0;
    return bf16 ? cell_of(first, second) : first;
}

/* A sliver's place follows from its width alone, which differs from the portable table's. */
static void check_packing(int64_t depth, int64_t columns, int width, int bf16)
{
    const Cells cells = bf16 ? TABLE.bf16 : (Cells){1, TABLE.tile, TABLE.pack, TABLE.transpose};
    const float *in = operand(1);
    const int64_t length = (depth + cells.together - 1) / cells.together;
    const int64_t slivers = (columns + width - 1) / width, sliver = length * width + 3;
    what = bf16 ? "pack to bf16" : "pack", size = columns;
    clear(0.5f);
    cells.pack(out[0][1] + MARGIN, sliver, in, columns + 2, depth, columns, width);
    for (int64_t s = 0; s < slivers; s++)
        for (int64_t p = 0; p < length; p++)
            for (int64_t r = 0; r < width; r++)
                out[0][0][MARGIN + s * sliver + p * width + r] =
                    packed(in + s * width + r, p, columns + 2, depth, bf16, s * width + r < columns);
    expect(0, 0, 0, EXACT);
    what = bf16 ? "transpose to bf16" : "transpose", size = depth;
    for (int rows = 0; rows <= width; rows++) {
        clear(0.5f);
        cells.transpose(out[0][1] + MARGIN, in, depth + 3, depth, rows, width);
        for (int64_t p = 0; p < length; p++)
            for (int64_t r = 0; r < width; r++)
                out[0][0][MARGIN + p * width + r] =
                    packed(in + r * (depth + 3), p, 1, depth, bf16, r < rows);
        expect(0, 0, 0, EXACT);
    }
}

/* `count` runs of all lengths around a vector, and as long as a tile; what is overwritten beyond
 * the last of them may be anything. */
static void check_gather(int64_t length, int count)
{
    enum { K = 5, BEYOND = 15 };
    const int64_t rows[K] = {40, 0, 7, 7, 100};
    const int64_t runs[6] = {3, length, 0, 1, 11, (length + 1) / 2};
    const int64_t total = count == 1 ? length : length + 1 + (length + 1) / 2;
    const float *in = operand(1);
    what = "gather", size = length;
    clear(0.5f);
    TABLE.gather(out[0][1] + MARGIN, in, rows, runs, total, K, count);
    float *wanted = out[0][0] + MARGIN;
    for (int p = 0; p < K; p++)
        for (int run = 0; run < count; run++)
            for (int64_t i = 0; i < runs[2 * run + 1]; i++)
                *wanted++ = in[rows[p] + runs[2 * run] + i];
    memcpy(wanted, out[0][1] + MARGIN + K * total, BEYOND * sizeof *wanted);
    expect(0, 0, 0, EXACT);
}

/* -- rows --------------------------------------------------------------------------------------- */

static void check_elementwise(int64_t n)
{
    const float *x = operand(8), *y = operand(2);
    for (int f = MINIFM_RELU; f <= MINIFM_COS; f++) {
        const int exact = f == MINIFM_RELU || (f >= MINIFM_SQRT && f <= MINIFM_SIGN);
        clear(0);
        BOTH("map", k->map(OUT(0), x, n, f))
        expect(0, 0, n, exact ? EXACT : ROUNDINGS(8));
        if (f <= MINIFM_GELU_QUICK) {
            clear(0);
            BOTH("map_backward", k->map_backward(OUT(0), y, x, n, f))
            expect(0, 0, n, f == MINIFM_RELU ? EXACT : ROUNDINGS(64));
        }
    }
    uint8_t condition[MOST];
    for (int64_t i = 0; i < n; i++)
        condition[i] = x[i] > 0;
    for (int steps = 1; steps < 4; steps++) {
        for (int operation = MINIFM_ADD; operation <= MINIFM_POWER; operation++) {
            clear(0);
            BOTH("binary", k->binary(OUT(0), x, y, n, steps & 1, steps >> 1, operation))
            expect(0, 0, n, operation == MINIFM_POWER ? ROUNDINGS(0) : EXACT);
        }
        for (int operation = MINIFM_LESS; operation <= MINIFM_EQUAL; operation++) {
            clear(0);
            BOTH("compare", k->compare((uint8_t *)OUT(0), x, operation == MINIFM_EQUAL ? x : y, n,
                                       steps & 1, steps >> 1, operation))
            expect(0, 0, 0, EXACT);
        }
        clear(0);
        BOTH("choose", k->choose(OUT(0), condition, x, y, n, steps & 1, steps >> 1))
        expect(0, 0, 0, EXACT);
    }
    for (int parts = 0; parts < 4; parts++) {
        clear(0.1f);
        BOTH("epilogue", k->epilogue(OUT(0), OUT(1), parts & 1 ? x : NULL, parts & 2 ? y : NULL,
                                     n, MINIFM_RELU))
        expect(0, 0, n, EXACT);
        expect(1, 0, n, EXACT);
    }
    clear(0.1f);
    BOTH("keep", k->keep(OUT(0), x, y, n, 0.25f, 1.25f))
    expect(0, 0, n, EXACT);
    clear(0.1f);
    BOTH("scale", k->scale(OUT(0), x, n, 0.3f); k->shift_scale(OUT(1), x, n, 0.7f, 0.3f))
    expect(0, 0, n, EXACT);
    expect(1, 0, n, EXACT);
    clear(0.1f);
    BOTH("ema", k->ema(OUT(1), x, n, 0.01f))
    expect(1, 0, n, ROUNDINGS(0));
}

static void check_sums(int64_t n)
{
    const float *x = operand(1), *y = operand(1);
    if (n) {
        clear(0);
        BOTH("extreme", OUT(0)[0] = k->extreme(x, n, MINIFM_MAXIMUM);
             OUT(0)[1] = k->extreme(x, n, MINIFM_MINIMUM))
        expect(0, 0, 0, EXACT);
    }
    clear(0);
    BOTH("keep_larger", for (int64_t i = 0; i < n; i++) OUT(0)[i] = i % 5 ? y[i] : i % 3 ? x[i] : NAN;
         k->keep_larger(OUT(0), OUT(1), x, n, 7))
    expect(0, 0, n, EXACT);
    expect(1, 0, n, EXACT);
    clear(0);
    BOTH("rotate", k->rotate(OUT(0), x, y, x + n / 2, n / 2, -1))
    expect(0, 0, n, ROUNDINGS(0));
    clear(0);
    BOTH("sum", *OUT(0) = k->sum(x, n))
    expect(0, 0, 1, ROUNDINGS(n));
    BOTH("sum_of_squares", *OUT(0) = (float)k->sum_of_squares(x, n))
    expect(0, 0, 1, ROUNDINGS(0));
    BOTH("logsumexp", *OUT(0) = k->logsumexp(x, n))
    expect(0, 0, 1, ROUNDINGS(n));
    BOTH("around a centre", *OUT(0) = k->squares(x, n, 0.2f);
         *OUT(1) = k->centred_dot(y, x, n, 0.2f))
    expect(0, 0, 1, ROUNDINGS(n));
    expect(1, 0, 1, ROUNDINGS(n));
    clear(0);
    BOTH("around a centre", k->affine(OUT(0), x, n, 0.2f, 3, 1);
         k->blend(OUT(1), y, x, n, 0.2f, 3, 0.5f, 1))
    expect(0, 0, n, ROUNDINGS(0));
    expect(1, 0, n, ROUNDINGS(0));
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
    BOTH("weigh_row", memcpy(OUT(0), x, (size_t)n * sizeof *x); OUT(1)[0] = 0.5f; OUT(1)[1] = 2;
         OUT(1)[2] = k->weigh_row(OUT(0), OUT(1), OUT(1) + 1, n))
    expect(0, 0, n, ROUNDINGS(0));
    expect(1, 0, 3, ROUNDINGS(n));
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
    BOTH("adamw", k->adamw(OUT(0), x, OUT(1), OUT(2), n, 0.1f, constants))
    for (int o = 0; o < 3; o++)
        expect(o, 0, n, ROUNDINGS(8));
}

/* Infinities, NaN and numbers at the ends of the range, one in each lane in turn. */
static void check_special(int64_t n)
{
    const float values[] = {NAN,   INFINITY, -INFINITY, 3.4e38f, -3.4e38f, 1e-40f,
                            -0.0f, 88.7f,    -103.9f,   12799,   -1e6f};
    enum { VALUES = sizeof values / sizeof *values };
    for (int value = 0; value < VALUES; value++)
        for (int64_t lane = 0; lane < n; lane++) {
            float *x = operand(1);
            const float *y = operand(1);
            x[lane] = values[value];
            for (int v = 0; v < VALUES; v++) {
                const float *y = values + v;
                clear(0);
                BOTH("power of a special value", k->binary(OUT(0), x, y, n, 1, 0, MINIFM_POWER);
                     k->binary(OUT(1), y, x, n, 0, 1, MINIFM_POWER))
                expect(0, 0, n, ROUNDINGS(0));
                expect(1, 0, n, ROUNDINGS(0));
            }
            for (int f = MINIFM_RELU; f <= MINIFM_COS; f++) {
                clear(0);
                BOTH("map of a special value", k->map(OUT(0), x, n, f))
                expect(0, 0, n, ROUNDINGS(8));
            }
            for (int f = MINIFM_RELU; f <= MINIFM_GELU_QUICK; f++) {
                clear(0);
                BOTH("slope at a special value", k->map_backward(OUT(0), y, x, n, f))
                expect(0, 0, n, ROUNDINGS(64));
            }
            for (int operation = MINIFM_ADD; operation <= MINIFM_MINIMUM; operation++) {
                clear(0);
                BOTH("binary of a special value", k->binary(OUT(0), x, y, n, 1, 1, operation);
                     k->binary(OUT(1), y, x, n, 1, 1, operation))
                expect(0, 0, 0, EXACT);
                expect(1, 0, 0, EXACT);
            }
            clear(0);
            BOTH("row with a special value", k->softmax(OUT(0), x, n);
                 k->log_softmax(OUT(1), x, n); OUT(2)[0] = k->logsumexp(x, n);
                 OUT(2)[1] = k->extreme(x, n, MINIFM_MAXIMUM);
                 OUT(2)[2] = k->extreme(x, n, MINIFM_MINIMUM))
            expect(0, 0, n, ROUNDINGS(n));
            expect(1, 0, n, ROUNDINGS(n));
            expect(2, 0, 3, ROUNDINGS(n));
            clear(0);
            BOTH("scores with a special value", memcpy(OUT(0), x, (size_t)n * sizeof *x);
                 OUT(1)[0] = 0.5f; OUT(1)[1] = 2;
                 OUT(1)[2] = k->weigh_row(OUT(0), OUT(1), OUT(1) + 1, n))
            expect(0, 0, n, ROUNDINGS(0));
            expect(1, 0, 3, ROUNDINGS(n));
            clear(0);
            BOTH("norm of a special value", k->layernorm(OUT(0), OUT(2), OUT(2) + 1, x, y, y, n, 1);
                 k->rmsnorm(OUT(1), OUT(2) + 2, x, y, n, 1))
            expect(0, 0, n, ROUNDINGS(8 * n));
            expect(1, 0, n, ROUNDINGS(8 * n));
            expect(2, 0, 3, ROUNDINGS(8 * n));
        }
}

/* -- columns, for attention: as many as a table's tile has, and the portable ones piece by piece -- */

static void check_columns(int64_t keys)
{
    enum { LD = 40 };
    const int NR = TABLE.tile_cols;
    const float *x = operand(1), *y = operand(1);
    float columns[2][4][LD], lse[LD], delta[LD];
    size = keys;
    for (int again = 0; again < 2; again++) {
        clear(0);
        for (int j = 0; j < LD; j++) {
            lse[j] = x[j], delta[j] = y[j];
            for (int t = 0; t < 2; t++)
                columns[t][0][j] = j % 3 ? x[j] : -INFINITY, columns[t][1][j] = 2;
        }
        for (int64_t i = 0; i < keys * LD; i++)
            for (int t = 0; t < 2; t++)
                OUT(0)[i] = i % 7 ? 5 * x[i] : -INFINITY, OUT(1)[i] = y[i];
        BOTH("weigh", for (int j = 0; j < NR; j += k->tile_cols) if (again)
                 k->weigh_again(OUT(0) + j, OUT(1) + j, lse + j, delta + j, LD, keys);
             else k->weigh(OUT(0) + j, columns[t][0] + j, columns[t][1] + j, columns[t][2] + j, LD,
                           keys))
        for (int t = 0; t < 2; t++)
            for (int64_t j = 0; j < keys; j++)
                for (int o = 0; o < 2; o++)
                    memset(OUT(o) + j * LD + NR, 0, (LD - (size_t)NR) * sizeof(float));
        for (int t = 0; t < 2 && !again; t++)
            for (int c = 0; c < 3; c++)
                memcpy(OUT(2) + c * LD, columns[t][c], (size_t)NR * sizeof(float));
        expect(0, 0, keys * LD, ROUNDINGS(0));
        expect(1, 0, keys * LD, ROUNDINGS(0));
        expect(2, 0, 3 * LD, ROUNDINGS(keys));
    }
    what = "dot_columns";
    clear(0);
    TABLE.dot_columns(out[0][1] + MARGIN, x, y, keys);
    for (int j = 0; j < NR; j++) {
        float sum = 0;
        for (int64_t i = 0; i < keys; i++)
            sum = fmaf(x[i * NR + j], y[i * NR + j], sum);
        out[0][0][MARGIN + j] = sum;
    }
    expect(0, 0, 0, EXACT);
}

/* -- packed weights, element by element against their laws ---------------------------------------- */

enum { LDY = 20, DEEPEST = 700, GROUPS = 3, FIRST_ROW = 2 };

/* Blocks of KC, added in order, as gemm.c has it. */
static float panel_sum(const float *x, const float *panel, int64_t depth, int column)
{
    float total = 0;
    for (int64_t begin = 0; begin < depth || begin == 0; begin += KC) {
        float sum = 0;
        for (int64_t p = begin; p < depth && p < begin + KC; p++)
            sum = fmaf(x[p], panel[p * COLS + column], sum);
        total = begin ? total + sum : sum;
    }
    return total;
}

static void check_float_panels(int64_t depth, int rows)
{
    static uint16_t halves[DEEPEST * COLS];
    const float *x = operand(1), *floats = operand(1);
    float *widened = operand(1);
    size = depth;
    for (int64_t i = 0; i < depth * COLS; i++) {
        halves[i] = (uint16_t)(0xbf00 + (i * 37 & 255));
        widened[i] = from_bf16(halves[i]);
    }
    for (int bf16 = 0; bf16 < 2; bf16++) {
        what = bf16 ? "panel_bf16" : "panel_fp32";
        clear(0);
        if (bf16)
            TABLE.panel_bf16(out[0][1] + MARGIN, x, halves, LDY, depth, depth + 1, rows);
        else
            TABLE.panel_fp32(out[0][1] + MARGIN, x, floats, LDY, depth, depth + 1, rows);
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < COLS; c++)
                out[0][0][MARGIN + r * LDY + c] =
                    panel_sum(x + r * (depth + 1), bf16 ? widened : floats, depth, c);
        expect(0, 0, 0, EXACT);
    }
}

/* Code k of a column, of 8 bits; or of 4, where 16 k below one another share their bytes. */
static int code_at(const uint8_t *codes, int64_t k, int column, int four)
{
    const int64_t byte = four ? k / GROUP * (GROUP / 2) + k % (GROUP / 2) : k;
    const uint8_t code = codes[(byte / 4 * COLS + column) * 4 + byte % 4];
    if (!four)
        return (int8_t)code;
    return (k % GROUP < GROUP / 2 ? code & 15 : code >> 4) - 8;
}

/* The products of a group are exact, and groups are added in order. */
static float int_sum(const Rounded *x, int64_t row, const uint8_t *codes, const uint16_t *scales,
                     int column, int four)
{
    float total = 0;
    for (int64_t g = 0; g < x->groups; g++) {
        int32_t dot = 0;
        for (int64_t k = g * GROUP; k < (g + 1) * GROUP; k++)
            dot += x->codes[row * x->groups * GROUP + k] * code_at(codes, k, column, four);
        const float scale = from_bf16(scales[g * COLS + column]);
        total += x->scales[row * x->groups + g] * scale * (float)dot;
    }
    return total;
}

/* Codes are any, or all `same` where that is not 0: the largest sums that can be. */
static void check_int_panels(int64_t groups, int rows, uint8_t same)
{
    static uint8_t codes[GROUPS * GROUP * COLS];
    static uint16_t scales[GROUPS * COLS];
    static int8_t q[(FIRST_ROW + MAX_PANEL_ROWS) * GROUPS * GROUP];
    static int32_t sums[(FIRST_ROW + MAX_PANEL_ROWS) * GROUPS];
    static float d[(FIRST_ROW + MAX_PANEL_ROWS) * GROUPS];
    const float *x = operand(1);
    size = groups;
    for (int i = 0; i < GROUPS * GROUP * COLS; i++)
        codes[i] = same ? same : (uint8_t)(int8_t)(127 * uniform());
    for (int i = 0; i < GROUPS * COLS; i++)
        scales[i] = (uint16_t)(0x3c00 + i);
    for (int64_t i = 0; i < (FIRST_ROW + rows) * groups; i++) {
        d[i] = x[i], sums[i] = 0;
        for (int l = 0; l < GROUP; l++) {
            q[i * GROUP + l] = same ? 127 : (int8_t)(127 * uniform());
            sums[i] += q[i * GROUP + l];
        }
    }
    const Rounded rounded = {q, d, sums, groups};
    for (int four = 0; four < 2; four++) {
        what = four ? "panel_int4" : "panel_int8";
        clear(0);
        if (four)
            TABLE.panel_int4(out[0][1] + MARGIN, &rounded, FIRST_ROW, codes, scales, LDY, rows);
        else
            TABLE.panel_int8(out[0][1] + MARGIN, &rounded, FIRST_ROW, codes, scales, LDY, rows);
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < COLS; c++)
                out[0][0][MARGIN + r * LDY + c] =
                    int_sum(&rounded, FIRST_ROW + r, codes, scales, c, four);
        expect(0, 0, 0, EXACT);
    }
}

/* A group of any numbers; where `special` is not 0, that is one of them. */
static void check_rounding(float special, int lane)
{
    float *x = operand(1), scale[2];
    int8_t q[2][GROUP];
    if (special != 0)
        x[lane] = special;
    BOTH("round_group", scale[t] = k->round_group(q[t], x))
    if (memcmp(q[0], q[1], sizeof q[0]) ||
        (memcmp(scale, scale + 1, sizeof *scale) && !(isnan(scale[0]) && isnan(scale[1])))) {
        printf("round_group differs: %g at %d\n", (double)special, lane);
        failures++;
    }
    what = "rounding to bf16";
    clear(0);
    TABLE.bf16.pack(out[0][1] + MARGIN, TABLE.tile_cols, x, GROUP, 1, GROUP, TABLE.tile_cols);
    for (int i = 0; i < (GROUP + TABLE.tile_cols - 1) / TABLE.tile_cols * TABLE.tile_cols; i++)
        out[0][0][MARGIN + i] = i < GROUP ? cell_of(x[i], 0) : 0;
    expect(0, 0, 0, EXACT);
}

/* -- the ceiling: every lane of every chain ends at the fixed point of x / 2 + 1 ------------------- */

static void check_multiply_add(void)
{
    enum { ROUNDS = 100 };
    float sum = 0;
    const int64_t flops = TABLE.multiply_add(&sum, ROUNDS), lanes = flops / (2 * ROUNDS);
    if (lanes <= 0 || flops != lanes * 2 * ROUNDS || sum != (float)(2 * lanes)) {
        printf("multiply_add: %lld operations, %g\n", (long long)flops, (double)sum);
        failures++;
    }
    /* Chain i of 16 lanes begins at i, and each round adds 1 + 1. */
    float pairs = 0;
    const int64_t operations = TABLE.multiply_add_bf16(&pairs, ROUNDS);
    const int64_t ends = operations / (4 * ROUNDS), chains = ends / 16;
    if ((operations == 0) != (TABLE.bf16.together == 1) || operations != ends * 4 * ROUNDS ||
        pairs != (float)(ends * 2 * ROUNDS + 8 * chains * (chains - 1))) {
        printf("multiply_add_bf16: %lld operations, %g\n", (long long)operations, (double)pairs);
        failures++;
    }
}

static void check_noise(uint64_t counter)
{
    uint64_t words[2][PHILOX_WORDS], keys[PHILOX_ROUNDS][2];
    for (int i = 0; i < 2 * PHILOX_ROUNDS; i++)
        keys[i / 2][i % 2] = state = state * 6364136223846793005u + 1442695040888963407u;
    BOTH("philox", k->philox(words[t], counter, (const uint64_t(*)[2])keys))
    if (memcmp(words[0], words[1], sizeof words[0])) {
        printf("philox differs from the block %llu on\n", (unsigned long long)counter);
        failures++;
    }
}

int main(void)
{
    for (int i = 0; i < 64; i++)
        check_noise((uint64_t)1 << i);
    for (int64_t depth = 0; depth < 40; depth += depth < 9 ? 1 : 10)
        for (int rows = 1; rows <= TABLE.tile_rows; rows++)
            for (int accumulate = 0; accumulate < 2; accumulate++)
                check_tile(depth, rows, accumulate), check_tile_of_cells(depth, rows, accumulate);
    for (size = 0; size <= MOST; size += size < 70 ? 1 : 343) {
        const int64_t n = size;
        for (int rows = 1; rows <= 4; rows++)
            check_stream(n, rows);
        check_elementwise(n);
        check_sums(n);
        if (n)
            check_rows(n);
    }
    for (int64_t depth = 0; depth < 20; depth++)
        for (int64_t columns = 0; columns < 2 * TABLE.tile_cols + 2; columns++) {
            for (int bf16 = 0; bf16 < 2; bf16++) {
                check_packing(depth, columns, TABLE.tile_rows, bf16);
                check_packing(depth, columns, TABLE.tile_cols, bf16);
            }
        }
    for (int64_t length = 0; length < 40; length++)
        check_gather(length, 1), check_gather(length, 3);
    for (int64_t keys = 0; keys < 40; keys++)
        check_columns(keys);
    for (int64_t keys = 0; keys < 40; keys += keys < 9 ? 1 : 6)
        for (int64_t width = 0; width < 150; width += width < 9 ? 1 : 23)
            for (int rows = 1; rows <= 5; rows++)
                check_few_queries(keys, width, rows, 0), check_few_queries(keys, width, rows, 1);
    for (size = 2047; size < 5000; size += size < 2049 ? 1 : 2050) /* rows in several pieces */
        check_sums(size), check_rows(size);
    const uint8_t same[] = {0, 127, (uint8_t)-127, 0xff};
    for (int rows = 1; rows <= TABLE.panel_rows; rows++) {
        for (int64_t depth = 0; depth <= DEEPEST; depth += depth < 9 ? 1 : depth < 380 ? 75 : 158)
            check_float_panels(depth, rows);
        for (int64_t groups = 0; groups <= GROUPS; groups++)
            for (size_t i = 0; i < sizeof same; i++)
                check_int_panels(groups, rows, same[i]);
    }
    const float special[] = {0, NAN, INFINITY, -INFINITY, 3.4e38f, 1e-40f, -1};
    for (size_t i = 0; i < sizeof special / sizeof *special; i++)
        for (int lane = 0; lane < GROUP; lane++)
            check_rounding(special[i], lane);
    for (size = 1; size < 19; size += 5)
        check_special(size);
    check_multiply_add();
    printf("%s against portable: %d differences\n", TABLE.name, failures);
    return failures > 0;
}
