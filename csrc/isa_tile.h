/* The tile of a matrix product and the packing that feeds it, written once in the vector
 * vocabulary of the isa_*.c that includes this (see isa_rows.h), for its VL, MR and NR, and with
 * its `transpose_square`, which turns VL vectors of VL lanes about their diagonal.
 *
 * A sliver is what a tile reads of an operand: for each k, `width` numbers side by side, MR of A's
 * rows or NR of B's columns. Its rows are as long as the register tile and not as long as vectors,
 * so the last vector of a row may reach into the next row, which is written after it.
 */
#include <string.h>

_Static_assert(NR % VL == 0 && (MR % VL == 0 || MR < VL), "rows of slivers overlap only in order");

/* R rows of the tile, R a constant once inlined: R * NR / VL accumulators in registers. */
INLINE void tile_rows(float *c, const float *a, const float *b, int64_t ldc, int64_t k,
                      int64_t a_row, int64_t a_k, int64_t b_k, const int R, int accumulate)
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
                sum[r][j] = vfma(x, row[j], sum[r][j]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; r++, c += ldc)
#pragma GCC unroll 4
        for (int j = 0; j < V; j++)
            vstore(c + j * VL, accumulate ? vadd(vload(c + j * VL), sum[r][j]) : sum[r][j]);
}

/* Slivers of A have constant strides, which gives the broadcasts fixed offsets. */
#define ROWS(R)                                                                              \
    case R:                                                                                  \
        if (R <= MR && a_row == 1 && a_k == MR)                                              \
            tile_rows(c, a, b, ldc, k, 1, MR, b_k, R <= MR ? R : MR, accumulate);            \
        else if (R <= MR)                                                                    \
            tile_rows(c, a, b, ldc, k, a_row, a_k, b_k, R <= MR ? R : MR, accumulate);       \
        break;

static TARGET void tile(float *c, const float *a, const float *b, int64_t ldc, int64_t k,
                        int64_t a_row, int64_t a_k, int64_t b_k, int rows, int accumulate)
{
    switch (rows) {
        ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
        ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
    }
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
                         int64_t columns, const int W)
{
    for (int64_t p = 0; p < k; p++, in += stride, out += W) {
        float *to = out;
        for (int64_t j = 0; j < columns; j += W, to += sliver) {
            __builtin_prefetch(in + j + 8 * stride); /* hardware does not see such strides */
            for (int r = 0; r < W; r += VL) {
                int64_t left = columns - j - r;
                vf x = left >= VL ? vload(in + j + r) : vload_part(in + j + r, left, 0);
                put_in_sliver(to, x, r, W, p == k - 1);
            }
        }
    }
}

INLINE void pack_transposed(float *out, const float *in, int64_t stride, int64_t k, int rows,
                            const int W)
{
    for (int r = 0; r < W; r += VL)
        for (int64_t p = 0; p < k; p += VL) {
            vf x[VL];
            const int64_t left = k - p;
#pragma GCC unroll 16
            for (int i = 0; i < VL; i++) {
                const float *from = in + (r + i) * stride + p;
                x[i] = r + i >= rows ? vset(0) : left >= VL ? vload(from)
                                                            : vload_part(from, left, 0);
            }
            transpose_square(x);
#pragma GCC unroll 16
            for (int i = 0; i < VL; i++)
                if (i < left)
                    put_in_sliver(out + (p + i) * W, x[i], r, W, i == left - 1);
        }
}

static TARGET void pack(float *out, int64_t sliver, const float *in, int64_t stride, int64_t k,
                        int64_t columns, int width)
{
    if (width == NR)
        pack_columns(out, sliver, in, stride, k, columns, NR);
    else
        pack_columns(out, sliver, in, stride, k, columns, MR);
}

static TARGET void transpose(float *out, const float *in, int64_t stride, int64_t k, int rows,
                             int width)
{
    if (width == NR)
        pack_transposed(out, in, stride, k, rows, NR);
    else
        pack_transposed(out, in, stride, k, rows, MR);
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

/* -- few rows times a large transposed matrix ------------------------------------------------------ */

/* A square of b, `depth` <= VL of its rows by `width` <= VL of its columns, enters the sums. */
INLINE void enter_square(float *sums, const float *a, const float *b, int64_t lds, int64_t a_row,
                         int64_t a_k, int64_t b_col, int rows, const int depth, int64_t width)
{
    vf x[VL];
#pragma GCC unroll 16
    for (int j = 0; j < VL; j++) {
        const float *column = b + (j < width ? j : 0) * b_col;
        __builtin_prefetch(column + 2 * VL * b_col);
        x[j] = depth == VL ? vload(column) : vload_part(column, depth, 0);
    }
    transpose_square(x);
    for (int r = 0; r < rows; r++, a += a_row, sums += lds) {
        vf sum = width >= VL ? vload(sums) : vload_part(sums, width, 0);
#pragma GCC unroll 16
        for (int p = 0; p < VL; p++)
            if (p < depth)
                sum = vfma(vset(a[p * a_k]), x[p], sum);
        if (width >= VL)
            vstore(sums, sum);
        else
            vstore_part(sums, sum, width);
    }
}

static TARGET void stream_across(float *sums, const float *a, const float *b, int64_t lds,
                                 int64_t k, int64_t a_row, int64_t a_k, int64_t b_col, int rows,
                                 int64_t n)
{
    for (int64_t j = 0; j < n; j += VL, b += VL * b_col, sums += VL) {
        int64_t p = 0;
        for (; p + VL <= k; p += VL)
            enter_square(sums, a + p * a_k, b + p, lds, a_row, a_k, b_col, rows, VL, n - j);
        if (p < k)
            enter_square(sums, a + p * a_k, b + p, lds, a_row, a_k, b_col, rows, (int)(k - p),
                         n - j);
    }
}

/* The upper 16 bits, after adding half of what is cut off; NaN keeps its upper bits, made quiet. */
static TARGET void round_to_bf16(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1), quiet = bits | 0x400000;
        bits = ((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded) & 0xffff0000;
        memcpy(x + i, &bits, sizeof bits);
    }
}

#define TILE_KERNELS                                                                        \
    .tile_rows = MR, .tile_cols = NR, .tile = tile, .pack = pack, .transpose = transpose,   \
    .stream_across = stream_across, .round_to_bf16 = round_to_bf16,                         \
    .gather = gather
