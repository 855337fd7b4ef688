/* Few rows times a large matrix b [k, n], which streams by once from where it lies, four of its rows
 * at a time: packing it for a tile would cost more than the product. The sums of all columns stay
 * in the cache.
 */

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

#define STREAM_KERNELS .stream = stream
