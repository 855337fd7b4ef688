/* Few rows times a large matrix, which streams by once from where it lies: packing it for a tile
 * would cost more than the product. The sums of all columns stay in the cache.
 */

/* -- b as it lies, [k, n]: four of its rows at a time ---------------------------------------------- */

enum { STREAMED = 4, ROWS_AHEAD = 8 }; /* rows of b at a time; how far ahead they are fetched */

/* V vectors of each of `rows` running sums take in `depth` rows of b. */
INLINE void stream_block(float *sums, const float *a, const float *b, int64_t lds, int64_t a_row,
                         int64_t a_k, int64_t b_k, int rows, const int depth, const int V,
                         int64_t left)
{
    vf row[STREAMED][2], sum[2];
#pragma GCC unroll 4
    for (int p = 0; p < depth; p++)
#pragma GCC unroll 2
        for (int v = 0; v < V; v++)
            row[p][v] = vget(b + p * b_k + v * VL, left - v * VL, 0);
    for (int r = 0; r < rows; r++, a += a_row, sums += lds) {
#pragma GCC unroll 2
        for (int v = 0; v < V; v++)
            sum[v] = vget(sums + v * VL, left - v * VL, 0);
#pragma GCC unroll 4
        for (int p = 0; p < depth; p++) {
            vf x = vset(a[p * a_k]);
#pragma GCC unroll 2
            for (int v = 0; v < V; v++)
                sum[v] = vfma(x, row[p][v], sum[v]);
        }
#pragma GCC unroll 2
        for (int v = 0; v < V; v++)
            vput(sums + v * VL, sum[v], left - v * VL);
    }
}

INLINE void stream_rows(float *sums, const float *a, const float *b, int64_t lds, int64_t a_row,
                        int64_t a_k, int64_t b_k, int rows, const int depth, int64_t n)
{
    int64_t i = 0;
    for (; i + 2 * VL <= n; i += 2 * VL) {
#pragma GCC unroll 4
        for (int p = 0; p < depth; p++)
            __builtin_prefetch(b + (p + ROWS_AHEAD) * b_k + i, 0, 2); /* to L2: L1 is full */
        stream_block(sums + i, a, b + i, lds, a_row, a_k, b_k, rows, depth, 2, 2 * VL);
    }
    for (; i < n; i += VL)
        stream_block(sums + i, a, b + i, lds, a_row, a_k, b_k, rows, depth, 1, n - i);
}

static TARGET void stream(float *sums, const float *a, const float *b, int64_t lds, int64_t k,
                          int64_t a_row, int64_t a_k, int64_t b_k, int rows, int64_t n)
{
    for (; k >= STREAMED; k -= STREAMED, a += STREAMED * a_k, b += STREAMED * b_k)
        stream_rows(sums, a, b, lds, a_row, a_k, b_k, rows, STREAMED, n);
    for (; k > 0; k--, a += a_k, b += b_k)
        stream_rows(sums, a, b, lds, a_row, a_k, b_k, rows, 1, n);
}

/* -- b transposed, [n, k]: squares of it turn in registers ----------------------------------------- */

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

#define STREAM_KERNELS .stream = stream, .stream_across = stream_across
