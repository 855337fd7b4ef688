/* The tile of a matrix product, MR rows by NR columns of C, and the packing that feeds it. Its words
 * (vf, vfma, MR, NR, …) are those of isa_kernels.h; isa_portable.c has their plainest meaning.
 *
 * A sliver is what a tile reads of an operand: for each k, `width` numbers side by side, MR of A's
 * rows or NR of B's columns. Its rows are as long as the register tile and not as long as vectors,
 * so the last vector of a row may reach into the next row, which is written after it.
 *
 * With operands of bf16 a cell of 32 bits takes the place of each number. It holds TOGETHER
 * numbers that follow each other along k:
 *
 *   2   where the processor multiplies pairs (PAIRS): the first in the lower half, the second, or
 *       zero behind the last k, in the upper one
 *   1   elsewhere: a float whose lower half is zero, by vround_bf16(x), to nearest, ties to even
 *
 *   cells_along(x, y)      cells of the numbers of x, and then those of y, which all follow each
 *                          other along k
 *   cells_across(x, y)     cells of numbers of x, and, for the next k, y
 *   vdot_cells(x, y, z)    z + the products of the numbers in x and y
 */
#include "gemm.h"

#ifndef PAIRS
enum { TOGETHER = 1 };
INLINE vf cells_along(vf x, vf y) { return vround_bf16(x); }
INLINE vf cells_across(vf x, vf y) { return vround_bf16(x); }
INLINE vf vdot_cells(vf x, vf y, vf z) { return vfma(x, y, z); }
#endif

_Static_assert(NR % VL == 0 && (MR % VL == 0 || MR < VL), "rows of slivers overlap only in order");
_Static_assert((int)MR * (int)NR <= (int)MAX_TILE, "one_tile has room for a whole tile");
_Static_assert((int)MR <= (int)MAX_TILE_ROWS, "WITH_TILE_ROWS has a case for every number of rows");
_Static_assert((int)NR <= (int)MAX_TILE_COLS, "a sliver of a convolution has room for its runs");
_Static_assert((int)ATTENTION_KEYS % (int)MR == 0, "tiles do not cross a block of keys");

/* R rows of the tile, R and bf16 constants once inlined: R * NR / VL accumulators in registers. */
INLINE void multiply_tile(float *c, const float *a, const float *b, int64_t ldc, int64_t k,
                      int64_t a_row, int64_t a_k, int64_t b_k, const int R, int accumulate,
                      const int bf16)
{
    enum { V = NR / VL };
    vf sum[MR][V];
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
        __builtin_prefetch(c + r * ldc, 1); /* C is needed after the loop, and may be far away */
        __builtin_prefetch(c + r * ldc + NR - 1, 1);
#pragma GCC unroll 4
        for (int j = 0; j < V; j++)
            sum[r][j] = vset(0);
    }
#pragma GCC unroll 4
    for (int64_t p = 0; p < k; p++, a += a_k, b += b_k) {
        vf row[V];
#pragma GCC unroll 4
        for (int j = 0; j < V; j++)
            row[j] = vload(b + j * VL);
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) {
            vf x = vset(a[r * a_row]);
#pragma GCC unroll 4
            for (int j = 0; j < V; j++)
                sum[r][j] = bf16 ? vdot_cells(x, row[j], sum[r][j]) : vfma(x, row[j], sum[r][j]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; r++, c += ldc)
#pragma GCC unroll 4
        for (int j = 0; j < V; j++)
            vstore(c + j * VL, accumulate ? vadd(vload(c + j * VL), sum[r][j]) : sum[r][j]);
}

/* CALL with the number of rows as a constant, R, so that all of sum[r][j] are registers. */
#define TILE_CASE(N, CALL)                             \
    case N:                                            \
        if (N <= MR) {                                 \
            enum { R = N <= MR ? N : MR };             \
            CALL;                                      \
        }                                              \
        break;
#define WITH_TILE_ROWS(CALL)                                                       \
    switch (rows) {                                                                \
        TILE_CASE(1, CALL) TILE_CASE(2, CALL) TILE_CASE(3, CALL) TILE_CASE(4, CALL) \
        TILE_CASE(5, CALL) TILE_CASE(6, CALL) TILE_CASE(7, CALL) TILE_CASE(8, CALL) \
        TILE_CASE(9, CALL) TILE_CASE(10, CALL) TILE_CASE(11, CALL) TILE_CASE(12, CALL) \
    }

/* Slivers of A have constant strides, which gives the broadcasts fixed offsets. */
static TARGET void tile(float *c, const float *a, const float *b, int64_t ldc, int64_t k,
                        int64_t a_row, int64_t a_k, int64_t b_k, int rows, int accumulate)
{
    if (a_row == 1 && a_k == MR)
        WITH_TILE_ROWS(multiply_tile(c, a, b, ldc, k, 1, MR, b_k, R, accumulate, 0))
    else
        WITH_TILE_ROWS(multiply_tile(c, a, b, ldc, k, a_row, a_k, b_k, R, accumulate, 0))
}

/* Both operands are slivers, so a_row, a_k and b_k are what their widths say. */
static TARGET void tile_bf16(float *c, const float *a, const float *b, int64_t ldc, int64_t k,
                             int64_t a_row, int64_t a_k, int64_t b_k, int rows, int accumulate)
{
    WITH_TILE_ROWS(multiply_tile(c, a, b, ldc, k, 1, MR, NR, R, accumulate, 1))
}

/* -- packing ----------------------------------------------------------------------------------- */

/* One vector of a sliver's row, at column r of W; `last` where no row follows to mend it. */
INLINE void put_in_sliver(float *to, vf x, int r, const int W, int last)
{
    if (W - r >= VL || !last)
        vstore(to + r, x);
    else
        vstore_part(to + r, x, W - r);
}

INLINE void pack_columns(float *out, int64_t sliver, const float *in, int64_t stride, int64_t k,
                         int64_t columns, const int W, const int bf16)
{
    const int step = bf16 ? TOGETHER : 1;
    for (int64_t p = 0; p < k; p += step, in += step * stride, out += W) {
        float *to = out;
        for (int64_t j = 0; j < columns; j += W, to += sliver) {
#pragma GCC unroll 2
            for (int i = 0; i < step; i++) /* hardware does not see such strides */
                __builtin_prefetch(in + j + (8 * step + i) * stride);
            for (int r = 0; r < W; r += VL) {
                const float *from = in + j + r;
                const int64_t left = columns - j - r;
                vf x = vget(from, left, 0);
                if (bf16) {
                    const int beside = step == 2 && p + 1 < k;
                    x = cells_across(x, beside ? vget(from + stride, left, 0) : vset(0));
                }
                put_in_sliver(to, x, r, W, p + step >= k);
            }
        }
    }
}

/* The cells of up to VL * step numbers of a run. */
INLINE vf cells_of(const float *from, int64_t left, const int step, const int bf16)
{
    const vf x = vget(from, left, 0);
    return bf16 ? cells_along(x, step == 2 ? vget(from + VL, left - VL, 0) : x) : x;
}

INLINE void pack_transposed(float *out, const float *in, int64_t stride, int64_t k, int rows,
                            const int W, const int bf16)
{
    const int step = bf16 ? TOGETHER : 1;
    for (int r = 0; r < W; r += VL)
        for (int64_t p = 0; p < k; p += VL * step) {
            vf x[VL];
            const int64_t left = k - p;
#pragma GCC unroll 16
            for (int i = 0; i < VL; i++)
                x[i] = r + i >= rows ? vset(0)
                                     : cells_of(in + (r + i) * stride + p, left, step, bf16);
            transpose_square(x);
#pragma GCC unroll 16
            for (int i = 0; i < VL; i++)
                if (i * step < left)
                    put_in_sliver(out + (p / step + i) * W, x[i], r, W, (i + 1) * step >= left);
        }
}

static TARGET void pack(float *out, int64_t sliver, const float *in, int64_t stride, int64_t k,
                        int64_t columns, int width)
{
    if (width == NR)
        pack_columns(out, sliver, in, stride, k, columns, NR, 0);
    else
        pack_columns(out, sliver, in, stride, k, columns, MR, 0);
}

static TARGET void pack_bf16(float *out, int64_t sliver, const float *in, int64_t stride,
                             int64_t k, int64_t columns, int width)
{
    if (width == NR)
        pack_columns(out, sliver, in, stride, k, columns, NR, 1);
    else
        pack_columns(out, sliver, in, stride, k, columns, MR, 1);
}

static TARGET void transpose(float *out, const float *in, int64_t stride, int64_t k, int rows,
                             int width)
{
    if (width == NR)
        pack_transposed(out, in, stride, k, rows, NR, 0);
    else
        pack_transposed(out, in, stride, k, rows, MR, 0);
}

static TARGET void transpose_bf16(float *out, const float *in, int64_t stride, int64_t k,
                                  int rows, int width)
{
    if (width == NR)
        pack_transposed(out, in, stride, k, rows, NR, 1);
    else
        pack_transposed(out, in, stride, k, rows, MR, 1);
}

/* A run reaches a little beyond its end, where the next one begins. */
static TARGET void gather(float *out, const float *in, const int64_t *rows, const int64_t *runs,
                          int64_t ld, int64_t k, int64_t count)
{
    if (count == 1 && runs[1] == NR) {
        for (int64_t p = 0; p < k; p++, out += ld)
#pragma GCC unroll 4
            for (int j = 0; j < NR; j += VL)
                vstore(out + j, vload(in + rows[p] + runs[0] + j));
        return;
    }
    for (int64_t p = 0; p < k; p++, out += ld) {
        float *y = out;
        for (int64_t run = 0; run < count; run++) {
            const float *x = in + rows[p] + runs[2 * run];
            const int64_t n = runs[2 * run + 1];
            EACH_VECTOR vstore(y + i, vget(x + i, left, 0));
            y += n;
        }
    }
}

#define TILE_KERNELS                                                                        \
    .tile_rows = MR, .tile_cols = NR, .tile = tile, .pack = pack, .transpose = transpose,   \
    .bf16 = {TOGETHER, TOGETHER == 1 ? tile : tile_bf16, pack_bf16, transpose_bf16},        \
    .gather = gather
