/* Attention, in two ways. Of many queries (csrc/attention.c) a tile takes NR side by side, and the
 * keys down, so that each query has a lane of its own: the softmax's maximum and sum are lanes too,
 * and nothing is added across a vector. Of few queries, keys and values are read where they lie.
 */

/* -- many queries ---------------------------------------------------------------------------------- */

#define EACH_COLUMN UNROLL for (int c = 0; c < NR / VL; c++)

/* The online softmax of Milakov & Gimelshein (2018). A column of -inf: top stays -inf, and 0 takes
 * its place, because -inf - -inf would make NaN. */
static TARGET void weigh(float *p, float *top, float *total, float *decay, int64_t ld,
                         int64_t keys)
{
    vf shift[NR / VL], sum[NR / VL];
    EACH_COLUMN shift[c] = vload(top + c * VL);
    for (int64_t j = 0; j < keys; j++)
        EACH_COLUMN shift[c] = vmax(vload(p + j * ld + c * VL), shift[c]);
    EACH_COLUMN
    {
        vf old = vload(top + c * VL);
        vstore(top + c * VL, shift[c]);
        shift[c] = vselect(vless(vset(-INFINITY), shift[c]), shift[c], vset(0));
        vstore(decay + c * VL, vexp_flushed(vsub(old, shift[c])));
        sum[c] = vset(0);
    }
    for (int64_t j = 0; j < keys; j++)
        EACH_COLUMN
        {
            float *at = p + j * ld + c * VL;
            vf weight = vexp_flushed(vsub(vload(at), shift[c]));
            vstore(at, weight);
            sum[c] = vadd(sum[c], weight);
        }
    EACH_COLUMN
    {
        float *at = total + c * VL;
        vstore(at, vfma(vload(at), vload(decay + c * VL), sum[c]));
    }
}

static TARGET void weigh_again(float *p, float *ds, const float *lse, const float *delta,
                               int64_t ld, int64_t keys)
{
    for (int64_t j = 0; j < keys; j++, p += ld, ds += ld)
        EACH_COLUMN
        {
            vf weight = vexp_flushed(vsub(vload(p + c * VL), vload(lse + c * VL)));
            vf slope = vsub(vload(ds + c * VL), vload(delta + c * VL));
            vstore(p + c * VL, weight);
            vstore(ds + c * VL, vmul(weight, slope));
        }
}

static TARGET void dot_columns(float *sums, const float *x, const float *y, int64_t k)
{
    vf sum[NR / VL];
    EACH_COLUMN sum[c] = vset(0);
    for (int64_t i = 0; i < k; i++, x += NR, y += NR)
        EACH_COLUMN sum[c] = vfma(vload(x + c * VL), vload(y + c * VL), sum[c]);
    EACH_COLUMN vstore(sums + c * VL, sum[c]);
}

/* -- few queries ------------------------------------------------------------------------------------ */

/* Keys and values are read where they lie, once for up to AT_ONCE queries. They are float32 or bf16,
 * which is exact in float32: the same arithmetic follows.
 *
 * Dot products with the keys have a key in each lane: squares of the keys turn in registers. So
 * they run over d in order, as a tile's do, and nothing is summed across a vector.
 *
 * The work is less than what memory takes to bring k and v. Squares are columns of lines that lie
 * apart, and memory gives columns a third slower than runs of addresses: so while squares turn,
 * the rows some way further on are asked for one by one, from their first byte to their last.
 */
enum { AT_ONCE = 4, LINE = 64 };

/* How many rows ahead memory is asked: as many bytes, whatever a number takes. */
INLINE int64_t rows_ahead(const int bf16) { return bf16 ? 32 : 16; }

#define EACH_QUERY _Pragma("GCC unroll 4") for (int r = 0; r < R; r++)

/* Element i of keys or values; the address alone may lie anywhere. */
INLINE const void *stored_at(const void *x, int64_t i, const int bf16)
{
    return (const char *)x + i * (bf16 ? 2 : 4);
}

/* The next vector of a row with `left` numbers to go, zeros behind them. */
INLINE vf stored(const void *row, int64_t left, const int bf16)
{
    if (!bf16)
        return vget(row, left, 0);
    if (left >= VL)
        return vload_bf16(row);
    uint16_t part[VL] = {0};
    for (int64_t i = 0; i < left; i++)
        part[i] = ((const uint16_t *)row)[i];
    return vload_bf16(part);
}

/* sum[r][s] takes in `depth` <= VL of the numbers of `keys` <= VL keys. */
INLINE void enter_keys(vf *sum, int squares, const float *q, const void *k, int64_t stride,
                       int64_t width, int64_t keys, const int depth, const int R, const int bf16)
{
    vf x[VL];
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++)
        x[i] = stored(stored_at(k, (i < keys ? i : 0) * stride, bf16), depth, bf16);
    transpose_square(x);
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++)
        if (i < depth)
            EACH_QUERY sum[r * squares] = vfma(vset(q[r * width + i]), x[i], sum[r * squares]);
}

/* What is left of a width that is no multiple of VL: of one query, and compiled once. */
static TARGET __attribute__((noinline)) void enter_last(vf *sum, const float *q, const void *k,
                                                        int64_t stride, int64_t keys, int depth,
                                                        int bf16)
{
    if (bf16)
        enter_keys(sum, 1, q, k, stride, 0, keys, depth, 1, 1);
    else
        enter_keys(sum, 1, q, k, stride, 0, keys, depth, 1, 0);
}

INLINE void fetch_row(const void *row, int64_t width, const int bf16)
{
    for (int64_t byte = 0; byte < width * (bf16 ? 2 : 4); byte += LINE)
        __builtin_prefetch((const char *)row + byte);
}

/* The scores of `keys` keys, in S squares side by side, so that one need not wait for another. */
INLINE void score_keys(float *scores, const float *q, const void *k, int64_t ld, int64_t stride,
                       int64_t width, int64_t keys, const int R, const int S, const int bf16)
{
    vf sum[AT_ONCE * 2];
    int64_t d = 0, due = 0, ahead = rows_ahead(bf16) * stride;
    EACH_QUERY
#pragma GCC unroll 2
    for (int s = 0; s < S; s++)
        sum[r * S + s] = vset(0);
    for (; d + VL <= width; d += VL) {
        for (due += S * VL * VL; due >= width; due -= width, ahead += stride)
            fetch_row(stored_at(k, ahead, bf16), width, bf16);
#pragma GCC unroll 2
        for (int s = 0; s < S; s++)
            enter_keys(sum + s, S, q + d, stored_at(k, s * VL * stride + d, bf16), stride, width,
                       keys - s * VL, VL, R, bf16);
    }
    if (d < width)
        EACH_QUERY
#pragma GCC unroll 2
        for (int s = 0; s < S; s++) {
            vf last = sum[r * S + s];
            enter_last(&last, q + r * width + d, stored_at(k, s * VL * stride + d, bf16), stride,
                       keys - s * VL, (int)(width - d), bf16);
            sum[r * S + s] = last;
        }
    EACH_QUERY
#pragma GCC unroll 2
    for (int s = 0; s < S; s++)
        vput(scores + r * ld + s * VL, sum[r * S + s], keys - s * VL);
}

INLINE void score_queries(float *scores, const float *q, const void *k, int64_t ld,
                          int64_t stride, int64_t width, int64_t n, const int R, const int bf16)
{
    int64_t j = 0;
    for (; j + 2 * VL <= n; j += 2 * VL)
        score_keys(scores + j, q, stored_at(k, j * stride, bf16), ld, stride, width, 2 * VL, R, 2,
                   bf16);
    for (; j < n; j += VL)
        score_keys(scores + j, q, stored_at(k, j * stride, bf16), ld, stride, width,
                   n - j < VL ? n - j : VL, R, 1, bf16);
}

/* V vectors of columns, of which `left` columns are there. */
INLINE void add_columns(float *sums, const float *p, const void *v, int64_t lds, int64_t ld,
                        int64_t stride, int64_t n, int64_t left, const int R, const int V,
                        const int bf16)
{
    vf sum[AT_ONCE * 8];
    EACH_QUERY
#pragma GCC unroll 8
    for (int c = 0; c < V; c++)
        sum[r * V + c] = vset(0);
    for (int64_t j = 0; j < n; j++, v = stored_at(v, stride, bf16))
#pragma GCC unroll 8
        for (int c = 0; c < V; c++) {
            if (c * VL * (bf16 ? 2 : 4) % LINE == 0)
                __builtin_prefetch(stored_at(v, rows_ahead(bf16) * stride + c * VL, bf16));
            vf row = stored(stored_at(v, c * VL, bf16), left - c * VL, bf16);
            EACH_QUERY sum[r * V + c] = vfma(vset(p[r * ld + j]), row, sum[r * V + c]);
        }
    EACH_QUERY
#pragma GCC unroll 8
    for (int c = 0; c < V; c++) {
        float *to = sums + r * lds + c * VL;
        vput(to, vadd(vget(to, left - c * VL, 0), sum[r * V + c]), left - c * VL);
    }
}

INLINE void add_queries(float *sums, const float *p, const void *v, int64_t ld, int64_t stride,
                        int64_t width, int64_t n, const int R, const int bf16)
{
    enum { WIDE = VL <= 8 ? 8 : 64 / VL }; /* a row of 64 at once, where registers allow */
    int64_t i = 0;
    for (; R == 1 && i + WIDE * VL <= width; i += WIDE * VL)
        add_columns(sums + i, p, stored_at(v, i, bf16), width, ld, stride, n, WIDE * VL, R,
                    R == 1 ? WIDE : 2, bf16);
    for (; i + 2 * VL <= width; i += 2 * VL)
        add_columns(sums + i, p, stored_at(v, i, bf16), width, ld, stride, n, 2 * VL, R, 2, bf16);
    for (; i < width; i += VL)
        add_columns(sums + i, p, stored_at(v, i, bf16), width, ld, stride, n, width - i, R, 1,
                    bf16);
}

/* CALL for R queries at a time, R a constant; `first` is the number of the first of them. */
#define QUERIES_CASE(N, CALL)                                                                    \
    for (; first + N <= rows; first += N) {                                                      \
        enum { R = N };                                                                          \
        CALL;                                                                                    \
    }
#define WITH_QUERIES(CALL)                                                                       \
    {                                                                                            \
        int first = 0;                                                                           \
        QUERIES_CASE(4, CALL) QUERIES_CASE(2, CALL) QUERIES_CASE(1, CALL)                        \
    }

static TARGET void score(float *scores, const float *q, const void *k, int64_t ld, int64_t stride,
                         int64_t width, int rows, int64_t n, int bf16)
{
    if (bf16)
        WITH_QUERIES(score_queries(scores + first * ld, q + first * width, k, ld, stride, width,
                                   n, R, 1))
    else
        WITH_QUERIES(score_queries(scores + first * ld, q + first * width, k, ld, stride, width,
                                   n, R, 0))
}

static TARGET void add_values(float *sums, const float *p, const void *v, int64_t ld,
                              int64_t stride, int64_t width, int rows, int64_t n, int bf16)
{
    if (bf16)
        WITH_QUERIES(add_queries(sums + first * width, p + first * ld, v, ld, stride, width, n, R,
                                 1))
    else
        WITH_QUERIES(add_queries(sums + first * width, p + first * ld, v, ld, stride, width, n, R,
                                 0))
}

/* As `weigh`, for one query whose scores lie side by side. */
static TARGET float weigh_row(float *p, float *top, float *total, int64_t n)
{
    const float old = *top, largest = row_max(p, n);
    *top = largest > old ? largest : old;
    const float shift = *top == -INFINITY ? 0 : *top;
    row_exp_sum(p, p, n, shift);
    float sum = 0, decay;
    for (int64_t j = 0; j < n; j++)
        sum += p[j];
    vf factor = vexp_flushed(vset(old - shift));
    vstore_part(&decay, factor, 1);
    vstore_part(total, vfma(vset(*total), factor, vset(sum)), 1);
    return decay;
}

static TARGET void widen(float *y, const uint16_t *x, int64_t n)
{
    EACH_VECTOR vput(y + i, stored(x + i, left, 1), left);
}

#define ATTENTION_KERNELS                                                                   \
    .weigh = weigh, .weigh_again = weigh_again, .dot_columns = dot_columns,                 \
    .score = score, .weigh_row = weigh_row, .add_values = add_values, .widen = widen
