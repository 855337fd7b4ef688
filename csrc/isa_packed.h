/* Products with packed weights. To the vocabulary of isa_kernels.h they add
 *
 *   vload_bf16(p)          VL numbers of 16 bits
 *   vi, vi_zero, vfloat(i) VL integers of 32 bits, and as floats
 *   vi_minus(i, n)         i[l] - n
 *   vb, vbytes(p)          4 VL bytes: four consecutive k of each of VL columns
 *   vquad(p)               four bytes, repeated for each column
 *   vdot(i, w, x)          i[l] += the sum of four products; w and x in -127 ... 127
 *   vlow(b), vhigh(b)      the lower and the upper half of each byte
 *   vn, vn_zero            sums of products of halves, of up to 8 quads
 *   vn_add(n, c, x)        n[l] += the sum of four products; c in 0 ... 15
 *   vn_total(n)            as vi
 *   vstore_bytes(p, x)     VL whole numbers of -127 ... 127 as bytes
 *
 * Lanes are columns, so nothing is ever added across a vector. The layouts are in packed.c. What
 * is read from a panel is asked of memory AHEAD bytes before: further than the processor's own
 * look-ahead, which stops at the end of a page.
 */
#include "gemm.h"
#include "packed.h"

_Static_assert((int)PR <= MAX_PANEL_ROWS, "drivers have room for so many rows");

enum { AHEAD = 4096, ACROSS = COLS / VL };

#define EACH_LANE_BLOCK _Pragma("GCC unroll 4") for (int v = 0; v < ACROSS; v++)
#define EACH_ROW _Pragma("GCC unroll 8") for (int r = 0; r < R; r++)

/* -- float formats: the law of summation of gemm.c ------------------------------------------- */

INLINE vf panel_load(const void *panel, int64_t at, const int bf16)
{
    return bf16 ? vload_bf16((const uint16_t *)panel + at) : vload((const float *)panel + at);
}

INLINE void float_rows(float *y, const float *x, const void *panel, int64_t ldy, int64_t k,
                       int64_t ldx, const int R, const int bf16)
{
    const int line = 64 / (bf16 ? 32 : 64); /* rows of a panel in a cache line */
    int64_t p = 0;
    do { /* once for K = 0, too: an empty sum */
        const int64_t end = k - p > KC ? p + KC : k;
        const int first_block = p == 0;
        vf sum[PR][ACROSS];
        EACH_ROW EACH_LANE_BLOCK sum[r][v] = vset(0);
#pragma GCC unroll 4
        for (; p < end; p++, x++) {
            if (p % line == 0)
                __builtin_prefetch((const char *)panel + p * (bf16 ? 32 : 64) + AHEAD);
            vf w[ACROSS];
            EACH_LANE_BLOCK w[v] = panel_load(panel, p * COLS + v * VL, bf16);
            EACH_ROW
            {
                vf factor = vset(x[r * ldx]);
                EACH_LANE_BLOCK sum[r][v] = vfma(factor, w[v], sum[r][v]);
            }
        }
        EACH_ROW EACH_LANE_BLOCK
        {
            float *out = y + r * ldy + v * VL;
            vstore(out, first_block ? sum[r][v] : vadd(vload(out), sum[r][v]));
        }
    } while (p < k);
}

/* -- int formats: groups of 32, exact within, in order between them -------------------------- */

INLINE void int8_group(vi dot[PR][ACROSS], const int8_t *x, int64_t ldx,
                       const uint8_t *codes, const int R)
{
    for (int q = 0; q < 8; q++) {
        __builtin_prefetch(codes + q * 64 + AHEAD);
        EACH_LANE_BLOCK
        {
            vb w = vbytes(codes + (q * COLS + v * VL) * 4);
            EACH_ROW dot[r][v] = vdot(dot[r][v], w, vquad(x + r * ldx + 4 * q));
        }
    }
}

INLINE void int4_group(vi dot[PR][ACROSS], const int8_t *x, int64_t ldx,
                       const int32_t *x_sums, int64_t lds, const uint8_t *codes, const int R)
{
    vn sum[PR][ACROSS];
    EACH_ROW EACH_LANE_BLOCK sum[r][v] = vn_zero();
    for (int q = 0; q < 4; q++) {
        __builtin_prefetch(codes + q * 64 + AHEAD);
        EACH_LANE_BLOCK
        {
            vb both = vbytes(codes + (q * COLS + v * VL) * 4);
            EACH_ROW
            {
                const int8_t *at = x + r * ldx + 4 * q;
                sum[r][v] = vn_add(sum[r][v], vlow(both), vquad(at));
                sum[r][v] = vn_add(sum[r][v], vhigh(both), vquad(at + 16));
            }
        }
    }
    /* Codes lie 8 too high: sum of (c - 8) x = sum of c x - 8 (sum of x). */
    EACH_ROW EACH_LANE_BLOCK dot[r][v] = vi_minus(vn_total(sum[r][v]), 8 * x_sums[r * lds]);
}

INLINE void int_rows(float *y, const Rounded *x, int64_t row, const uint8_t *codes,
                     const uint16_t *scales, int64_t ldy, const int R, const int four)
{
    const int64_t groups = x->groups, ldx = groups * GROUP;
    const int8_t *q = x->codes + row * ldx;
    const float *d = x->scales + row * groups;
    const int32_t *sums = x->sums + row * groups;
    vf total[PR][ACROSS];
    EACH_ROW EACH_LANE_BLOCK total[r][v] = vset(0);
    for (int64_t g = 0; g < groups; g++, q += GROUP, scales += COLS) {
        vi dot[PR][ACROSS];
        EACH_ROW EACH_LANE_BLOCK dot[r][v] = vi_zero();
        if (four)
            int4_group(dot, q, ldx, sums + g, groups, codes, R);
        else
            int8_group(dot, q, ldx, codes, R);
        codes += COLS * GROUP / (four ? 2 : 1);
        EACH_LANE_BLOCK
        {
            vf scale = vload_bf16(scales + v * VL);
            EACH_ROW
            {
                vf factor = vmul(vset(d[r * groups + g]), scale);
                total[r][v] = vadd(total[r][v], vmul(factor, vfloat(dot[r][v])));
            }
        }
    }
    EACH_ROW EACH_LANE_BLOCK vstore(y + r * ldy + v * VL, total[r][v]);
}

/* R as a constant; what is never called is not compiled. */
#define ROWS_CASE(N, CALL)                                                                       \
    case N: { enum { R = N <= PR ? N : PR }; if (N <= PR) CALL; } break;
#define WITH_ROWS(CALL)                                                                          \
    switch (rows) {                                                                              \
    ROWS_CASE(1, CALL) ROWS_CASE(2, CALL) ROWS_CASE(3, CALL) ROWS_CASE(4, CALL)                  \
    ROWS_CASE(5, CALL) ROWS_CASE(6, CALL) ROWS_CASE(7, CALL) ROWS_CASE(8, CALL)                  \
    }

static TARGET void panel_fp32(float *y, const float *x, const void *panel, int64_t ldy, int64_t k,
                              int64_t ldx, int rows)
{
    WITH_ROWS(float_rows(y, x, panel, ldy, k, ldx, R, 0))
}

static TARGET void panel_bf16(float *y, const float *x, const void *panel, int64_t ldy, int64_t k,
                              int64_t ldx, int rows)
{
    WITH_ROWS(float_rows(y, x, panel, ldy, k, ldx, R, 1))
}

static TARGET void panel_int8(float *y, const Rounded *x, int64_t row, const uint8_t *codes,
                              const uint16_t *scales, int64_t ldy, int rows)
{
    WITH_ROWS(int_rows(y, x, row, codes, scales, ldy, R, 0))
}

static TARGET void panel_int4(float *y, const Rounded *x, int64_t row, const uint8_t *codes,
                              const uint16_t *scales, int64_t ldy, int rows)
{
    WITH_ROWS(int_rows(y, x, row, codes, scales, ldy, R, 1))
}

/* -- the other factor ------------------------------------------------------------------------ */

/* x[32] as integers q[32] and the scale that is returned: x is about q * scale. */
static TARGET float round_group(int8_t *q, const float *x)
{
    vf most = vset(0), wrong = vset(0);
    for (int i = 0; i < GROUP; i += VL) {
        most = vmax(vabs(vload(x + i)), most);
        wrong = vfma(vload(x + i), vset(0), wrong); /* NaN, if any is NaN or infinite */
    }
    const float scale = vlargest(most) / 127 + vsum(wrong);
    if (!(scale > 0)) {
        memset(q, 0, GROUP);
        return scale;
    }
    for (int i = 0; i < GROUP; i += VL) {
        vf whole = vround(vmax(vmin(vdiv(vload(x + i), vset(scale)), vset(127)), vset(-127)));
        vstore_bytes(q + i, whole);
    }
    return scale;
}

#define PACKED_KERNELS                                                                           \
    .panel_rows = PR, .panel_fp32 = panel_fp32, .panel_bf16 = panel_bf16, .panel_int8 = panel_int8,                \
    .panel_int4 = panel_int4, .round_group = round_group
