/* Weights in low precision: packing them, products with them, and looking rows up.
 *
 * A packed weight is made of panels of 16 columns, over all of K, one after the other; columns
 * beyond the last are zeros. Inside a panel the columns lie side by side:
 *
 *   fp32, bf16   [k][16]
 *   int8         codes [group][8][16][4], scales [group][16]: four consecutive k of a column, then
 *                those of the next column; eight such quads make a group
 *   int4         codes [group][4][16][4], scales [group][16]: byte i of a column has the code of
 *                k = i in its lower half and that of k = i + 16 in its upper one, both 8 too high
 *
 * So a row of x streams through the weights once, from their first byte to their last, and every
 * lane of a vector adds up a column of its own: there is nothing to sum across.
 *
 * The arithmetic is specified in backends/reference/packed.py. The float formats follow the law of
 * summation in gemm.c; in the int formats the sums within a group are exact, and groups are added
 * in order. Neither depends on how many rows x has.
 */
#include "packed.h"
#include "bf16.h"
#include "isa.h"
#include "minifm.h"
#include "sizes.h"
#include "threads.h"

#include <math.h>
#include <string.h>

/* Bytes of the codes of one panel. */
static int64_t panel_bytes(int64_t k, int format)
{
    const int64_t groups = ceil_div(k, GROUP);
    switch (format) {
    case MINIFM_FP32: return k * COLS * 4;
    case MINIFM_BF16: return k * COLS * 2;
    case MINIFM_INT8: return groups * GROUP * COLS;
    default: return groups * GROUP * COLS / 2;
    }
}

/* The scales of panel t; NULL in a float format. */
static const uint16_t *scales_of(const uint16_t *scales, int64_t k, int64_t t)
{
    return scales ? scales + t * ceil_div(k, GROUP) * COLS : NULL;
}

/* -- packing --------------------------------------------------------------------------------- */

typedef struct {
    uint8_t *codes;
    uint16_t *scales;
    const float *w, *candidates;
    int64_t n, k, w_n, w_k;
    int tried, format;
} Packing;

/* The nearest whole number in least ... most, ties to even: 1.5 * 2^23 pushes the fraction out. */
static float whole(float x, float least, float most)
{
    x = x < least ? least : x > most ? most : x;
    return (x + 12582912.0f) - 12582912.0f;
}

static float magnitude(const float *w, float *largest)
{
    float most = 0;
    *largest = w[0];
    for (int i = 0; i < GROUP; i++)
        if (fabsf(w[i]) > most) {
            most = fabsf(w[i]);
            *largest = w[i];
        }
    return most;
}

static uint16_t encode_int8(float *codes, const float *w)
{
    float largest;
    const uint16_t half = to_bf16(magnitude(w, &largest) / 127);
    const float scale = from_bf16(half);
    for (int i = 0; i < GROUP; i++)
        codes[i] = scale != 0 ? whole(w[i] / scale, -127, 127) : 0;
    return half;
}

static float squared_error(const float *w, float scale, float largest)
{
    float e[8] = {0};
    for (int i = 0; i < GROUP; i += 8)
        for (int l = 0; l < 8; l++) {
            float off = (whole(w[i + l] / scale, -8, 7) * scale - w[i + l]) / largest;
            e[l] += off * off;
        }
    for (int half = 4; half; half /= 2)
        for (int l = 0; l < half; l++)
            e[l] += e[l + half];
    return e[0];
}

/* The scale of least squared error among those that the candidates give. */
static uint16_t encode_int4(float *codes, const float *w, const float *candidates, int tried)
{
    float largest, best = INFINITY;
    uint16_t chosen = 0;
    magnitude(w, &largest);
    for (int i = 0; i < tried; i++) {
        const uint16_t half = to_bf16(largest / (-8 * candidates[i]));
        if (from_bf16(half) == 0)
            continue;
        const float error = squared_error(w, from_bf16(half), largest);
        if (error < best) {
            best = error;
            chosen = half;
        }
    }
    const float scale = from_bf16(chosen);
    for (int i = 0; i < GROUP; i++)
        codes[i] = scale != 0 ? whole(w[i] / scale, -8, 7) : 0;
    return chosen;
}

/* Where byte i of column c lies among quads. */
static int64_t quad(int64_t i, int c) { return (i / 4 * COLS + c) * 4 + i % 4; }

/* The codes of k = 32 group ... of column c. */
static void place_codes(uint8_t *panel, const float *codes, int64_t group, int c, int format)
{
    if (format == MINIFM_INT8) {
        for (int i = 0; i < GROUP; i++)
            panel[quad(group * GROUP + i, c)] = (uint8_t)(int8_t)codes[i];
        return;
    }
    for (int i = 0; i < GROUP / 2; i++) {
        const int low = (int)codes[i] + 8, high = (int)codes[i + GROUP / 2] + 8;
        panel[quad(group * (GROUP / 2) + i, c)] = (uint8_t)(low | high << 4);
    }
}

static void pack_int_panel(const Packing *p, uint8_t *panel, uint16_t *scales, int64_t j)
{
    for (int64_t g = 0; g < ceil_div(p->k, GROUP); g++, scales += COLS)
        for (int c = 0; c < COLS; c++) {
            float w[GROUP] = {0}, codes[GROUP];
            const int64_t depth = j + c < p->n ? smaller(GROUP, p->k - g * GROUP) : 0;
            for (int64_t i = 0; i < depth; i++)
                w[i] = p->w[(j + c) * p->w_n + (g * GROUP + i) * p->w_k];
            scales[c] = p->format == MINIFM_INT8 ? encode_int8(codes, w)
                                                 : encode_int4(codes, w, p->candidates, p->tried);
            place_codes(panel, codes, g, c, p->format);
        }
}

static void pack_float_panel(const Packing *p, void *panel, int64_t j)
{
    for (int64_t i = 0; i < p->k; i++)
        for (int c = 0; c < COLS; c++) {
            const float w = j + c < p->n ? p->w[(j + c) * p->w_n + i * p->w_k] : 0;
            if (p->format == MINIFM_FP32)
                ((float *)panel)[i * COLS + c] = w;
            else
                ((uint16_t *)panel)[i * COLS + c] = to_bf16(w);
        }
}

static void pack_panels(void *context, int64_t begin, int64_t end)
{
    const Packing *p = context;
    const int64_t bytes = panel_bytes(p->k, p->format), groups = ceil_div(p->k, GROUP);
    for (int64_t t = begin; t < end; t++)
        if (p->scales)
            pack_int_panel(p, p->codes + t * bytes, p->scales + t * groups * COLS, t * COLS);
        else
            pack_float_panel(p, p->codes + t * bytes, t * COLS);
}

void minifm_pack(void *codes, uint16_t *scales, const float *w, const float *candidates, int64_t n,
                 int64_t k, int64_t w_n, int64_t w_k, int tried, int format)
{
    Packing p = {codes, scales, w, candidates, n, k, w_n, w_k, tried, format};
    parallel_for(ceil_div(n, COLS), grain_of(k * COLS), pack_panels, &p);
}

/* -- looking rows up ------------------------------------------------------------------------- */

typedef struct {
    float *y;
    const uint8_t *codes;
    const uint16_t *scales;
    const int64_t *ids;
    int64_t k;
    int format;
} Lookup;

/* Number i of column c of a panel. */
static float number_at(const void *panel, const uint16_t *scales, int64_t i, int c, int format)
{
    if (format == MINIFM_FP32)
        return ((const float *)panel)[i * COLS + c];
    if (format == MINIFM_BF16)
        return from_bf16(((const uint16_t *)panel)[i * COLS + c]);
    const float scale = from_bf16(scales[i / GROUP * COLS + c]);
    if (format == MINIFM_INT8)
        return ((const int8_t *)panel)[quad(i, c)] * scale;
    const int64_t byte = i / GROUP * (GROUP / 2) + i % (GROUP / 2);
    const uint8_t both = ((const uint8_t *)panel)[quad(byte, c)];
    return ((i % GROUP < GROUP / 2 ? both & 15 : both >> 4) - 8) * scale;
}

static void look_up(void *context, int64_t begin, int64_t end)
{
    const Lookup *l = context;
    const int64_t bytes = panel_bytes(l->k, l->format);
    for (int64_t i = begin; i < end; i++) {
        const int64_t panel = l->ids[i] / COLS;
        const uint16_t *scales = scales_of(l->scales, l->k, panel);
        for (int64_t k = 0; k < l->k; k++)
            l->y[i * l->k + k] = number_at(l->codes + panel * bytes, scales, k,
                                           (int)(l->ids[i] % COLS), l->format);
    }
}

int minifm_packed_rows(float *y, const void *codes, const uint16_t *scales, const int64_t *ids,
                       int64_t n, int64_t rows, int64_t k, int format)
{
    if (!all_inside(ids, n, rows))
        return -1;
    Lookup l = {y, codes, scales, ids, k, format};
    parallel_for(n, grain_of(k), look_up, &l);
    return 0;
}

/* -- products -------------------------------------------------------------------------------- */

/* Of a ticket, at most: the cache holds them until bias and activation have been applied. */
enum { RESULTS = 65536 };

typedef struct {
    float *y, *z;
    const float *x, *bias, *residual;
    const uint8_t *codes;
    const uint16_t *scales;
    int64_t m, n, k;
    int format, function;
    Rounded rounded;        /* x, for the int formats */
    int64_t most;           /* panels of a ticket */
} PackedProduct;

/* y[rows, 16] = rows i ... of x times panel t. */
static void one_panel(const PackedProduct *p, float *y, int64_t ldy, int64_t i, int rows, int64_t t)
{
    const uint8_t *codes = p->codes + t * panel_bytes(p->k, p->format);
    const uint16_t *scales = scales_of(p->scales, p->k, t);
    const float *x = p->x + i * p->k;
    switch (p->format) {
    case MINIFM_FP32: kernels->panel_fp32(y, x, codes, ldy, p->k, p->k, rows); break;
    case MINIFM_BF16: kernels->panel_bf16(y, x, codes, ldy, p->k, p->k, rows); break;
    case MINIFM_INT8: kernels->panel_int8(y, &p->rounded, i, codes, scales, ldy, rows); break;
    default: kernels->panel_int4(y, &p->rounded, i, codes, scales, ldy, rows);
    }
}

/* All rows times panel t: it comes from memory once, then from the cache. */
static void all_rows(const PackedProduct *p, int64_t t)
{
    const int64_t j = t * COLS, width = smaller(COLS, p->n - j);
    for (int64_t i = 0; i < p->m; i += kernels->panel_rows) {
        const int rows = (int)smaller(kernels->panel_rows, p->m - i);
        float *z = p->z + i * p->n + j, whole_panel[MAX_PANEL_ROWS * COLS];
        if (width == COLS) {
            one_panel(p, z, p->n, i, rows, t);
            continue;
        }
        one_panel(p, whole_panel, COLS, i, rows, t);
        for (int r = 0; r < rows; r++)
            memcpy(z + r * p->n, whole_panel + r * COLS, (size_t)width * sizeof *z);
    }
}

typedef struct { int64_t ticket, first, last; } Panels;

/* Draws a ticket and finds its panels. Memory is slow to begin a run of addresses, and threads should
 * end together: so the first tickets are long, and each takes a part of what is left. */
static int draw_panels(const PackedProduct *p, int threads, Panels *drawn)
{
    const int64_t all = ceil_div(p->n, COLS);
    for (const int64_t ticket = team_ticket(); drawn->ticket <= ticket; drawn->ticket++) {
        drawn->first = drawn->last;
        const int64_t part = (all - drawn->first) / (2 * threads);
        drawn->last = smaller(all, drawn->first + larger(1, smaller(p->most, part)));
    }
    return drawn->first < all;
}

static void multiply_panels(void *context, int thread, int threads)
{
    const PackedProduct *p = context;
    const int plain = !p->bias && !p->residual && p->function == MINIFM_IDENTITY;
    for (Panels drawn = {0}; draw_panels(p, threads, &drawn);) {
        const int64_t first = drawn.first, last = drawn.last;
        for (int64_t t = first; t < last; t++)
            all_rows(p, t);
        const int64_t j = first * COLS, width = smaller(last * COLS, p->n) - j;
        for (int64_t i = 0; i < p->m && !plain; i++) {
            const int64_t at = i * p->n + j;
            kernels->epilogue(p->y + at, p->z + at, p->bias ? p->bias + j : NULL,
                              p->residual ? p->residual + at : NULL, width, p->function);
        }
    }
}

static void round_rows(void *context, int64_t begin, int64_t end)
{
    const PackedProduct *p = context;
    for (int64_t item = begin; item < end; item++) {
        const int64_t i = item / p->rounded.groups, g = item % p->rounded.groups;
        const int64_t left = p->k - g * GROUP;
        const float *x = p->x + i * p->k + g * GROUP;
        float padded[GROUP] = {0};
        if (left < GROUP)
            x = memcpy(padded, x, (size_t)left * sizeof *x);
        int8_t *codes = p->rounded.codes + item * GROUP;
        p->rounded.scales[item] = kernels->round_group(codes, x);
        int32_t sum = 0;
        for (int l = 0; l < GROUP; l++)
            sum += codes[l];
        p->rounded.sums[item] = sum;
    }
}

/* Rounds x into scratch memory; -1 if there is none. */
static int round_x(PackedProduct *p)
{
    const int64_t groups = ceil_div(p->k, GROUP), items = p->m * groups;
    float *room = scratch(SHARED, (size_t)items * (sizeof(float) + sizeof(int32_t) + GROUP));
    if (!room)
        return -1;
    p->rounded = (Rounded){(int8_t *)(room + 2 * items), room, (int32_t *)(room + items), groups};
    team_for(items, 1024, round_rows, p);
    return 0;
}

int minifm_packed_linear(float *y, float *z, const float *x, const void *codes,
                         const uint16_t *scales, const float *bias, const float *residual,
                         int64_t m, int64_t n, int64_t k, int format, int function)
{
    PackedProduct p = {.y = y, .z = z, .x = x, .bias = bias, .residual = residual, .codes = codes,
                 .scales = scales, .m = m, .n = n, .k = k, .format = format,
                 .function = function};
    if (m == 0 || n == 0)
        return 0;
    team_enter();
    const int status = scales ? round_x(&p) : 0;
    if (!status) {
        const int threads = threads_for((double)m * (double)n * (double)k);
        p.most = larger(8, ceil_div(RESULTS, m * COLS));
        team_run(multiply_panels, &p, threads);
    }
    team_leave();
    return status;
}
