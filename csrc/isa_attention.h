/* Attention of few queries: keys and values are read where they lie, once for up to AT_ONCE queries,
 * in the vector vocabulary of the isa_*.c that includes this (after isa_rows.h and isa_tile.h).
 *
 * Dot products with the keys have a key in each lane: squares of the keys turn in registers. So
 * they run over d in order, as a tile's do, and nothing is summed across a vector.
 *
 * The work is less than what memory takes to bring k and v. Squares are columns of lines that lie
 * apart, and memory gives columns a third slower than runs of addresses: so while squares turn,
 * the rows FETCHED further on are asked for one by one, from their first byte to their last.
 */
enum { AT_ONCE = 4, FETCHED = 16, LINE = 64 / sizeof(float) };

#define EACH_QUERY _Pragma("GCC unroll 4") for (int r = 0; r < R; r++)

/* sum[r][s] takes in `depth` <= VL of the numbers of `keys` <= VL keys. */
INLINE void enter_keys(vf *sum, int squares, const float *q, const float *k, int64_t stride,
                       int64_t width, int64_t keys, const int depth, const int R)
{
    vf x[VL];
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++) {
        const float *key = k + (i < keys ? i : 0) * stride;
        x[i] = vget(key, depth, 0);
    }
    transpose_square(x);
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++)
        if (i < depth)
            EACH_QUERY sum[r * squares] = vfma(vset(q[r * width + i]), x[i], sum[r * squares]);
}

INLINE void fetch_row(const float *row, int64_t width)
{
    for (int64_t d = 0; d < width; d += LINE)
        __builtin_prefetch(row + d);
}

/* The scores of `keys` keys, in S squares side by side, so that one need not wait for another. */
INLINE void score_keys(float *scores, const float *q, const float *k, int64_t ld, int64_t stride,
                       int64_t width, int64_t keys, const int R, const int S)
{
    vf sum[AT_ONCE * 2];
    const float *ahead = k + FETCHED * stride;
    int64_t d = 0, due = 0;
    EACH_QUERY
#pragma GCC unroll 2
    for (int s = 0; s < S; s++)
        sum[r * S + s] = vset(0);
    for (; d + VL <= width; d += VL) {
        for (due += S * VL * VL; due >= width; due -= width, ahead += stride)
            fetch_row(ahead, width);
#pragma GCC unroll 2
        for (int s = 0; s < S; s++)
            enter_keys(sum + s, S, q + d, k + s * VL * stride + d, stride, width, keys - s * VL,
                       VL, R);
    }
    if (d < width)
#pragma GCC unroll 2
        for (int s = 0; s < S; s++)
            enter_keys(sum + s, S, q + d, k + s * VL * stride + d, stride, width, keys - s * VL,
                       (int)(width - d), R);
    EACH_QUERY
#pragma GCC unroll 2
    for (int s = 0; s < S; s++)
        vput(scores + r * ld + s * VL, sum[r * S + s], keys - s * VL);
}

INLINE void score_queries(float *scores, const float *q, const float *k, int64_t ld,
                          int64_t stride, int64_t width, int64_t n, const int R)
{
    for (; n >= 2 * VL; n -= 2 * VL, scores += 2 * VL, k += 2 * VL * stride)
        score_keys(scores, q, k, ld, stride, width, 2 * VL, R, 2);
    for (; n > 0; n -= VL, scores += VL, k += VL * stride)
        score_keys(scores, q, k, ld, stride, width, n < VL ? n : VL, R, 1);
}

/* V vectors of columns, of which `left` columns are there. */
INLINE void add_columns(float *sums, const float *p, const float *v, int64_t lds, int64_t ld,
                        int64_t stride, int64_t n, int64_t left, const int R, const int V)
{
    vf sum[AT_ONCE * 8];
    EACH_QUERY
#pragma GCC unroll 8
    for (int c = 0; c < V; c++)
        sum[r * V + c] = vset(0);
    for (int64_t j = 0; j < n; j++, v += stride)
#pragma GCC unroll 8
        for (int c = 0; c < V; c++) {
            if (c * VL % LINE == 0)
                __builtin_prefetch(v + FETCHED * stride + c * VL);
            vf row = vget(v + c * VL, left - c * VL, 0);
            EACH_QUERY sum[r * V + c] = vfma(vset(p[r * ld + j]), row, sum[r * V + c]);
        }
    EACH_QUERY
#pragma GCC unroll 8
    for (int c = 0; c < V; c++) {
        float *to = sums + r * lds + c * VL;
        vput(to, vadd(vget(to, left - c * VL, 0), sum[r * V + c]), left - c * VL);
    }
}

INLINE void add_queries(float *sums, const float *p, const float *v, int64_t ld, int64_t stride,
                        int64_t width, int64_t n, const int R)
{
    enum { WIDE = VL <= 8 ? 8 : 64 / VL }; /* a row of 64 at once, where registers allow */
    int64_t i = 0;
    for (; R == 1 && i + WIDE * VL <= width; i += WIDE * VL)
        add_columns(sums + i, p, v + i, width, ld, stride, n, WIDE * VL, R, R == 1 ? WIDE : 2);
    for (; i + 2 * VL <= width; i += 2 * VL)
        add_columns(sums + i, p, v + i, width, ld, stride, n, 2 * VL, R, 2);
    for (; i < width; i += VL)
        add_columns(sums + i, p, v + i, width, ld, stride, n, width - i, R, 1);
}

/* CALL for R queries at a time, R a constant; `first` is the number of the first of them. */
#define QUERIES_CASE(N, CALL) case N: { enum { R = N }; CALL; } break;
#define WITH_QUERIES(CALL)                                                                   \
    for (int first = 0; first < rows; first += AT_ONCE)                                      \
        switch (rows - first < AT_ONCE ? rows - first : AT_ONCE) {                           \
        QUERIES_CASE(1, CALL) QUERIES_CASE(2, CALL) QUERIES_CASE(3, CALL) QUERIES_CASE(4, CALL) \
        }

static TARGET void score(float *scores, const float *q, const float *k, int64_t ld, int64_t stride,
                         int64_t width, int rows, int64_t n)
{
    WITH_QUERIES(score_queries(scores + first * ld, q + first * width, k, ld, stride, width, n, R))
}

static TARGET void add_values(float *sums, const float *p, const float *v, int64_t ld,
                              int64_t stride, int64_t width, int rows, int64_t n)
{
    WITH_QUERIES(add_queries(sums + first * width, p + first * ld, v, ld, stride, width, n, R))
}

#define ATTENTION_KERNELS .score = score, .add_values = add_values
