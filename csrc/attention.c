/* Scaled dot-product attention, forward and backward, a block of queries and keys at a time.
 *
 * Scores are kept with the keys down and the queries across, so that each lane of a vector is a
 * query: maxima, weights and sums need no step across lanes, and keys and values are read as they
 * lie. A block of scores becomes weights and is multiplied with the values while the cache holds
 * it; what is kept of a query is a running maximum, sum and result (online softmax, Milakov &
 * Gimelshein 2018). The backward pass computes the weights again from the log-sum-exp (Dao et al.
 * 2022). Keys that the causal mask hides from a whole tile are skipped.
 *
 * A query's result depends on the keys it sees and on nothing else: dot products run over d and
 * sums run over keys, in order, the keys in blocks that begin at multiples of KEYS, and a hidden
 * key adds an exact zero. So the last row of a long sequence and a single query against its cache
 * agree bitwise.
 *
 * So a few queries, as in decoding, may take another way to the same numbers: keys and values are
 * read once, where they lie, for all the queries that look at them. The work is then as large as
 * the keys and values are, and memory the limit.
 */
#include "gemm.h"
#include "isa.h"
#include "minifm.h"
#include "sizes.h"
#include "threads.h"

#include <math.h>
#include <string.h>

enum {
    KEYS = ATTENTION_KEYS,  /* of a block. A multiple of every tile_rows: see isa_tile.h */
    QUERIES = 48,           /* of a block, at least */
    FEW = 12,               /* queries, of all heads that share a key head: read k and v in place */
};

typedef minifm_attention_shape Shape;

typedef struct {
    const Shape *s;
    float *y, *lse_out, *dq, *dk, *dv, *dbias;
    const float *q, *bias, *dy, *y_in, *lse;
    const void *k, *v;      /* float32; forward, bf16 if s->bf16 */
    const uint8_t *key_mask;
    const int64_t *lengths; /* of each batch's keys; NULL: all have s->keys */
    const int64_t *first_keys;      /* of each query of each batch; NULL: 0 */
    int64_t rows;           /* queries of a block */
    int64_t d_padded, e_padded;     /* widths, in whole tiles */
    int64_t blocks;         /* of the queries of a head */
    int64_t splits, units;  /* tickets of a key head for y or dq, blocks of queries of each */
    int64_t key_splits, key_units;  /* for dk, dv (and dq without splits), and blocks of keys */
} Attention;

/* What a ticket works on: some of the blocks of queries of all heads that look at key head g,
 * numbered from head to head, and, backward, some keys. */
typedef struct {
    int64_t b, g, u0, u1, j0, j1;
    int want_q, want_kv;    /* backward: which gradients */
} Part;

/* A thread's scratch, cut into named pieces. */
typedef struct {
    float *keys;            /* k: [S, D] */
    float *values;          /* forward: v in slivers [S, NR] of E; backward: [S, E] */
    float *wide_values;     /* v of bf16 as float32, before it is cut into slivers [S, E] */
    float *key_slivers;     /* k in slivers [S, NR] of D */
    float *queries_t;       /* scale q of the block, transposed: slivers [D, NR] of queries */
    float *dys_t;           /* dy likewise */
    float *queries, *dys;   /* scale q, dy of the block: slivers [queries, NR] of D, E */
    float *p, *ds;          /* scores, then weights, and score gradients [KEYS, queries] */
    float *sums;            /* of the block: y or dq [queries, E or D] */
    float *dk, *dv;         /* [S, D], [S, E] */
    float *top, *total, *decay;     /* of each query; backward: lse and delta in the first two */
    float *bias;            /* of a sliver of queries [KEYS, NR] */
    float *y_t;             /* y of a sliver, transposed [E, NR] */
} Room;

static const float *at(const float *x, const int64_t strides[3], int64_t b, int64_t h, int64_t i)
{
    return x + b * strides[0] + h * strides[1] + i * strides[2];
}

/* Row j of k or v, float32 or bf16. */
static const void *at_stored(const Shape *s, const void *x, const int64_t strides[3], int64_t b,
                             int64_t g, int64_t j)
{
    const int64_t i = b * strides[0] + g * strides[1] + j * strides[2];
    return s->bf16 ? (const void *)((const uint16_t *)x + i) : (const float *)x + i;
}

static float *at_out(float *x, const int64_t strides[3], int64_t b, int64_t h, int64_t i)
{
    return x + b * strides[0] + h * strides[1] + i * strides[2];
}

/* The number of query i among all of [batch, heads, queries]. */
static int64_t row_of(const Shape *s, int64_t b, int64_t h, int64_t i)
{
    return (b * s->heads + h) * s->queries + i;
}

/* How many keys batch b has. */
static int64_t keys_of(const Attention *a, int64_t b)
{
    return a->lengths ? smaller(a->s->keys, larger(0, a->lengths[b])) : a->s->keys;
}

/* How many keys the causal mask lets query 0 of batch b see; query i sees i more. May be negative. */
static int64_t first_sees(const Attention *a, int64_t b)
{
    return keys_of(a, b) - a->s->queries + 1;
}

/* How many keys query i of batch b sees: 0 ... visible - 1. */
static int64_t visible(const Attention *a, int64_t b, int64_t i)
{
    const int64_t keys = keys_of(a, b);
    return a->s->causal ? smaller(keys, larger(0, i + first_sees(a, b))) : keys;
}

/* The first key that any of `count` queries of batch b from i on sees. */
static int64_t first_key(const Attention *a, int64_t b, int64_t i, int64_t count)
{
    if (!a->first_keys)
        return 0;
    int64_t first = a->s->keys;
    for (int64_t r = i; r < smaller(i + count, a->s->queries); r++)
        first = smaller(first, larger(0, a->first_keys[b * a->s->queries + r]));
    return first;
}

/* -- packing ------------------------------------------------------------------------------------- */

/* Slivers [width, NR] of rows 0 ... rows - 1 of x[., width], transposed and scaled. */
static void transpose_rows(float *out, const float *x, int64_t stride, int64_t rows,
                            int64_t width, float scale)
{
    const int64_t NR = kernels->tile_cols;
    for (int64_t j = 0; j < rows; j += NR, out += NR * width) {
        kernels->transpose(out, x + j * stride, stride, width, (int)smaller(NR, rows - j), (int)NR);
        if (scale != 1)
            kernels->scale(out, out, NR * width, scale);
    }
}

/* Slivers [ld, NR] of the columns of x[rows, width]. */
static void pack_rows(float *out, int64_t ld, const float *x, int64_t stride, int64_t rows,
                      int64_t width)
{
    const int64_t NR = kernels->tile_cols;
    kernels->pack(out, ld * NR, x, stride, rows, width, (int)NR);
}

static void copy_rows(float *out, int64_t out_stride, const float *x, int64_t stride,
                      int64_t rows, int64_t width)
{
    for (int64_t i = 0; i < rows; i++)
        memcpy(out + i * out_stride, x + i * stride, (size_t)width * sizeof *x);
}

/* The same from rows of bf16. */
static void widen_rows(float *out, const uint16_t *x, int64_t stride, int64_t rows, int64_t width)
{
    for (int64_t i = 0; i < rows; i++)
        kernels->widen(out + i * width, x + i * stride, width);
}

/* -- products ------------------------------------------------------------------------------------ */

/* How many of the block's n keys from j0 on at least one of `count` queries from i on sees. */
static int64_t seen_by(const Attention *a, int64_t b, int64_t i, int64_t count, int64_t j0,
                       int64_t n)
{
    return larger(0, smaller(n, visible(a, b, smaller(i + count, a->s->queries) - 1) - j0));
}

/* scores[keys, queries] of n rows of x (keys or values) and the slivers of a block of queries
 * (or dys), but for tiles that nobody sees. */
static void multiply_scores(float *scores, const Attention *a, int64_t b, const float *x,
                            int64_t width, const float *slivers, int64_t i0, int64_t rows,
                            int64_t j0, int64_t n)
{
    const int64_t MR = kernels->tile_rows, NR = kernels->tile_cols;
    for (int64_t c = 0; c < rows; c += NR) {
        int64_t seen = seen_by(a, b, i0 + c, NR, j0, n);
        for (int64_t j = 0; j < seen; j += MR)
            kernels->tile(scores + j * a->rows + c, x + j * width, slivers + c * width, a->rows,
                          width, width, 1, NR, (int)MR, 0);
    }
}

/* sums[queries, width] += the weights, transposed, times slivers [ld, NR] of the keys' rows. */
static void multiply_rows(float *sums, const Attention *a, int64_t b, const float *weights,
                          const float *slivers, int64_t ld, int64_t padded, int64_t i0,
                          int64_t rows, int64_t j0, int64_t n)
{
    const int64_t MR = kernels->tile_rows, NR = kernels->tile_cols;
    for (int64_t c = 0; c < padded; c += NR)
        for (int64_t r = 0; r < rows; r += MR)
            kernels->tile(sums + r * padded + c, weights + r, slivers + c * ld, padded,
                          seen_by(a, b, i0 + r, MR, j0, n), 1, a->rows, NR,
                          (int)smaller(MR, rows - r), 1);
}

/* sums[keys, width] += the weights times slivers [queries, NR] of the queries' rows. */
static void multiply_keys(float *sums, const Attention *a, int64_t b, const float *weights,
                          const float *slivers, int64_t padded, int64_t i0, int64_t rows,
                          int64_t j0, int64_t n)
{
    const int64_t MR = kernels->tile_rows, NR = kernels->tile_cols;
    for (int64_t c = 0; c < padded; c += NR)
        for (int64_t j = 0; j < n; j += MR) {
            /* the first query of the block that sees the key */
            int64_t first = a->s->causal ? larger(0, j0 + j + 1 - first_sees(a, b) - i0) : 0;
            kernels->tile(sums + j * padded + c, weights + j * a->rows + first,
                          slivers + c * a->rows + first * NR, padded, rows - first, a->rows, 1, NR,
                          (int)smaller(MR, n - j), 1);
        }
}

/* -- masks and bias ------------------------------------------------------------------------------ */

static void fill(float *x, int64_t n, float value)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = value;
}

/* Add the bias to scores [n, NR] of `rows` queries from i on. */
static void add_bias(const Attention *a, Room *room, float *scores, int64_t b, int64_t h,
                     int64_t i, int64_t rows, int64_t j0, int64_t n)
{
    const int64_t NR = kernels->tile_cols, *strides = a->s->bias_strides;
    const float *bias = at(a->bias, strides, b, h, i) + j0 * strides[3];
    if (strides[3])
        kernels->transpose(room->bias, bias, strides[2], n, (int)rows, (int)NR);
    else
        for (int64_t j = 0; j < n; j++)
            for (int64_t r = 0; r < NR; r++)
                room->bias[j * NR + r] = r < rows ? bias[r * strides[2]] : 0;
    for (int64_t j = 0; j < n; j++)
        kernels->binary(scores + j * a->rows, scores + j * a->rows, room->bias + j * NR, NR, 1, 1,
                        MINIFM_ADD);
}

/* Bias and masks on scores [n, NR] of `rows` queries from i on: -inf where a key is hidden. */
static void bias_and_mask(const Attention *a, Room *room, float *scores, int64_t b, int64_t h,
                          int64_t i, int64_t rows, int64_t j0, int64_t n)
{
    const int64_t NR = kernels->tile_cols;
    if (a->bias)
        add_bias(a, room, scores, b, h, i, rows, j0, n);
    if (a->key_mask) {
        const uint8_t *mask = a->key_mask + b * a->s->keys + j0;
        for (int64_t j = 0; j < n; j++)
            if (!mask[j])
                fill(scores + j * a->rows, NR, -INFINITY);
    }
    if (a->s->causal) {
        /* query i + r sees keys 0 ... first + r - 1 of the block */
        const int64_t first = i + first_sees(a, b) - j0;
        for (int64_t j = larger(0, first); j < n; j++)
            fill(scores + j * a->rows, smaller(NR, j - first + 1), -INFINITY);
    }
    for (int64_t r = 0; r < rows && a->first_keys; r++) {
        const int64_t first = first_key(a, b, i + r, 1) - j0;
        for (int64_t j = 0; j < smaller(n, first); j++)
            scores[j * a->rows + r] = -INFINITY;
    }
}

/* -- forward -------------------------------------------------------------------------------------- */

/* The block's scores to weights, in place; sums of a query whose maximum rises are scaled down. */
static void weigh_block(const Attention *a, Room *room, int64_t b, int64_t h, int64_t i0,
                        int64_t rows, int64_t j0, int64_t n)
{
    const int64_t NR = kernels->tile_cols;
    for (int64_t c = 0; c < rows; c += NR) {
        int64_t seen = seen_by(a, b, i0 + c, NR, j0, n), width = smaller(NR, rows - c);
        bias_and_mask(a, room, room->p + c, b, h, i0 + c, width, j0, seen);
        kernels->weigh(room->p + c, room->top + c, room->total + c, room->decay + c, a->rows,
                       seen);
        for (int64_t j = seen; j < n; j++)
            fill(room->p + j * a->rows + c, NR, 0);
    }
    for (int64_t r = 0; r < rows && j0 > 0; r++)
        if (room->decay[r] != 1)
            kernels->scale(room->sums + r * a->e_padded, room->sums + r * a->e_padded, a->e_padded,
                           room->decay[r]);
}

/* y and the log-sum-exp of query i, from its sums over all keys. */
static void finish_query(const Attention *a, const float *sums, float top, float total, int64_t b,
                         int64_t h, int64_t i)
{
    const Shape *s = a->s;
    kernels->scale(at_out(a->y, s->y_strides, b, h, i), sums, s->value_width,
                   total == 0 ? 0 : 1 / total); /* nothing to look at: zeros */
    a->lse_out[row_of(s, b, h, i)] = (top == -INFINITY ? 0 : top) + logf(total);
}

static void forward_block(const Attention *a, Room *room, const Part *part, int64_t h, int64_t i0,
                          int64_t rows)
{
    const Shape *s = a->s;
    const int64_t n = visible(a, part->b, i0 + rows - 1);
    transpose_rows(room->queries_t, at(a->q, s->q_strides, part->b, h, i0), s->q_strides[2], rows,
                    s->width, s->scale);
    memset(room->sums, 0, (size_t)(rows * a->e_padded) * sizeof *room->sums);
    fill(room->top, a->rows, -INFINITY);
    fill(room->total, a->rows, 0);
    for (int64_t j = first_key(a, part->b, i0, rows) / KEYS * KEYS; j < n; j += KEYS) {
        int64_t keys = smaller(KEYS, n - j);
        multiply_scores(room->p, a, part->b, room->keys + j * s->width, s->width, room->queries_t,
                        i0, rows, j, keys);
        weigh_block(a, room, part->b, h, i0, rows, j, keys);
        multiply_rows(room->sums, a, part->b, room->p, room->values + j * kernels->tile_cols,
                      s->keys, a->e_padded, i0, rows, j, keys);
    }
    for (int64_t r = 0; r < rows; r++)
        finish_query(a, room->sums + r * a->e_padded, room->top[r], room->total[r], part->b, h,
                     i0 + r);
}

/* The block of queries that is number u of the heads that look at key head g. */
static void locate(const Attention *a, const Part *part, int64_t u, int64_t *h, int64_t *i0,
                   int64_t *rows)
{
    *h = part->g * (a->s->heads / a->s->key_heads) + u / a->blocks;
    *i0 = u % a->blocks * a->rows;
    *rows = smaller(a->rows, a->s->queries - *i0);
}

static void forward_part(const Attention *a, Room *room, const Part *part)
{
    const Shape *s = a->s;
    const int64_t E = s->value_width;
    const void *k = at_stored(s, a->k, s->k_strides, part->b, part->g, 0);
    const void *v = at_stored(s, a->v, s->v_strides, part->b, part->g, 0);
    if (s->bf16) {
        widen_rows(room->keys, k, s->k_strides[2], part->j1, s->width);
        widen_rows(room->wide_values, v, s->v_strides[2], part->j1, E);
        pack_rows(room->values, s->keys, room->wide_values, E, part->j1, E);
    } else {
        copy_rows(room->keys, s->width, k, s->k_strides[2], part->j1, s->width);
        pack_rows(room->values, s->keys, v, s->v_strides[2], part->j1, E);
    }
    for (int64_t u = part->u0, h, i0, rows; u < part->u1; u++) {
        locate(a, part, u, &h, &i0, &rows);
        forward_block(a, room, part, h, i0, rows);
    }
}

/* -- forward, few queries ------------------------------------------------------------------------- */

/* Scores [n] of query i to weights; hidden keys' are 0. The sums so far are scaled, as in a block. */
static void weigh_query(const Attention *a, Room *room, int64_t row, int64_t b, int64_t h,
                        int64_t i, int64_t j0, int64_t n)
{
    const Shape *s = a->s;
    const int64_t seen = seen_by(a, b, i, 1, j0, n), step = s->bias_strides[3];
    float *p = room->p + row * KEYS, *sums = room->sums + row * s->value_width;
    if (a->bias)
        kernels->binary(p, p, at(a->bias, s->bias_strides, b, h, i) + j0 * step, seen, 1,
                        (int)step, MINIFM_ADD);
    for (int64_t j = 0; j < seen && a->key_mask; j++)
        if (!a->key_mask[b * s->keys + j0 + j])
            p[j] = -INFINITY;
    fill(p, smaller(seen, first_key(a, b, i, 1) - j0), -INFINITY);
    float decay = kernels->weigh_row(p, room->top + row, room->total + row, seen);
    fill(p + seen, n - seen, 0);
    if (j0 > 0 && decay != 1)
        kernels->scale(sums, sums, s->value_width, decay);
}

/* All queries that look at key head g: row h * queries + i is query i of its head number h. */
static void forward_few(const Attention *a, Room *room, int64_t b, int64_t g)
{
    const Shape *s = a->s;
    const int64_t D = s->width, E = s->value_width, h0 = g * (s->heads / s->key_heads);
    const int64_t rows = a->rows, end = visible(a, b, s->queries - 1);
    for (int64_t r = 0; r < rows; r++)
        kernels->scale(room->queries + r * D,
                       at(a->q, s->q_strides, b, h0 + r / s->queries, r % s->queries), D, s->scale);
    fill(room->sums, rows * E, 0);
    fill(room->top, rows, -INFINITY);
    fill(room->total, rows, 0);
    for (int64_t j = first_key(a, b, 0, s->queries) / KEYS * KEYS; j < end; j += KEYS) {
        const int64_t n = smaller(KEYS, end - j);
        kernels->score(room->p, room->queries, at_stored(s, a->k, s->k_strides, b, g, j), KEYS,
                       s->k_strides[2], D, (int)rows, n, s->bf16);
        for (int64_t r = 0; r < rows; r++)
            weigh_query(a, room, r, b, h0 + r / s->queries, r % s->queries, j, n);
        kernels->add_values(room->sums, room->p, at_stored(s, a->v, s->v_strides, b, g, j), KEYS,
                            s->v_strides[2], E, (int)rows, n, s->bf16);
    }
    for (int64_t r = 0; r < rows; r++)
        finish_query(a, room->sums + r * E, room->top[r], room->total[r], b, h0 + r / s->queries,
                     r % s->queries);
}

/* -- backward ------------------------------------------------------------------------------------- */

/* The log-sum-exp of each query and delta = dy . y, by the same sum over e as dp = dy . v: where one
 * key has all the weight, so that y is its v, dp - delta is exactly 0. */
static void row_statistics(const Attention *a, Room *room, int64_t b, int64_t h, int64_t i0,
                           int64_t rows)
{
    const Shape *s = a->s;
    const int64_t NR = kernels->tile_cols, E = s->value_width;
    const float *y = at(a->y_in, s->y_strides, b, h, i0), *lse = a->lse + row_of(s, b, h, i0);
    fill(room->top, a->rows, 0);
    for (int64_t r = 0; r < rows; r++)
        room->top[r] = lse[r] == -INFINITY ? 0 : lse[r];
    for (int64_t c = 0; c < rows; c += NR) {
        kernels->transpose(room->y_t, y + c * s->y_strides[2], s->y_strides[2], E,
                           (int)smaller(NR, rows - c), (int)NR);
        kernels->dot_columns(room->total + c, room->dys_t + c * E, room->y_t, E);
    }
}

/* Scores and dp to weights p = e^(score - lse) and score gradients ds = p (dp - delta). */
static void weigh_block_again(const Attention *a, Room *room, int64_t b, int64_t h, int64_t i0,
                              int64_t rows, int64_t j0, int64_t n)
{
    const int64_t NR = kernels->tile_cols;
    for (int64_t c = 0; c < rows; c += NR) {
        int64_t seen = seen_by(a, b, i0 + c, NR, j0, n), width = smaller(NR, rows - c);
        bias_and_mask(a, room, room->p + c, b, h, i0 + c, width, j0, seen);
        kernels->weigh_again(room->p + c, room->ds + c, room->top + c, room->total + c, a->rows,
                                seen);
        for (int64_t j = seen; j < n; j++) {
            fill(room->p + j * a->rows + c, NR, 0);
            fill(room->ds + j * a->rows + c, NR, 0);
        }
    }
}

/* dbias[queries, S] = ds of the block, transposed; zeros for keys that no query of it sees. */
static void write_dbias(const Attention *a, const Room *room, int64_t b, int64_t h, int64_t i0,
                        int64_t rows, int64_t j0, int64_t n)
{
    for (int64_t r = 0; r < rows; r++) {
        float *out = a->dbias + row_of(a->s, b, h, i0 + r) * a->s->keys + j0;
        for (int64_t j = 0; j < n; j++)
            out[j] = room->ds[j * a->rows + r];
    }
}

static void backward_block(const Attention *a, Room *room, const Part *part, int64_t h, int64_t i0,
                           int64_t rows)
{
    const Shape *s = a->s;
    const int64_t b = part->b, D = s->width, E = s->value_width, NR = kernels->tile_cols;
    const int64_t end = smaller(part->j1, visible(a, b, i0 + rows - 1));
    const int64_t begin = larger(part->j0, first_key(a, b, i0, rows) / KEYS * KEYS);
    const float *q = at(a->q, s->q_strides, b, h, i0), *dy = at(a->dy, s->dy_strides, b, h, i0);
    transpose_rows(room->queries_t, q, s->q_strides[2], rows, D, s->scale);
    transpose_rows(room->dys_t, dy, s->dy_strides[2], rows, E, 1);
    pack_rows(room->queries, a->rows, q, s->q_strides[2], rows, D);
    kernels->scale(room->queries, room->queries, a->rows * a->d_padded, s->scale);
    pack_rows(room->dys, a->rows, dy, s->dy_strides[2], rows, E);
    row_statistics(a, room, b, h, i0, rows);
    memset(room->sums, 0, (size_t)(rows * a->d_padded) * sizeof *room->sums);
    for (int64_t j = begin; j < end; j += KEYS) {
        const int64_t n = smaller(KEYS, end - j), at_j = j - part->j0;
        multiply_scores(room->p, a, b, room->keys + at_j * D, D, room->queries_t, i0, rows, j, n);
        multiply_scores(room->ds, a, b, room->values + at_j * E, E, room->dys_t, i0, rows, j, n);
        weigh_block_again(a, room, b, h, i0, rows, j, n);
        if (part->want_kv) {
            multiply_keys(room->dv + at_j * a->e_padded, a, b, room->p, room->dys, a->e_padded, i0,
                          rows, j, n);
            multiply_keys(room->dk + at_j * a->d_padded, a, b, room->ds, room->queries,
                          a->d_padded, i0, rows, j, n);
        }
        if (part->want_q)
            multiply_rows(room->sums, a, b, room->ds, room->key_slivers + at_j * NR,
                          part->j1 - part->j0, a->d_padded, i0, rows, j, n);
        if (part->want_q && a->dbias)
            write_dbias(a, room, b, h, i0, rows, j, n);
    }
    for (int64_t r = 0; r < rows && part->want_q; r++) {
        kernels->scale(at_out(a->dq, s->dq_strides, b, h, i0 + r), room->sums + r * a->d_padded, D,
                       s->scale);
        if (a->dbias) {
            float *out = a->dbias + row_of(s, b, h, i0 + r) * s->keys;
            fill(out, smaller(begin, end), 0);
            fill(out + end, s->keys - end, 0);
        }
    }
}

static void backward_part(const Attention *a, Room *room, const Part *part)
{
    const Shape *s = a->s;
    const int64_t n = part->j1 - part->j0;
    const float *k = at(a->k, s->k_strides, part->b, part->g, part->j0);
    const float *v = at(a->v, s->v_strides, part->b, part->g, part->j0);
    copy_rows(room->keys, s->width, k, s->k_strides[2], n, s->width);
    copy_rows(room->values, s->value_width, v, s->v_strides[2], n, s->value_width);
    pack_rows(room->key_slivers, n, k, s->k_strides[2], n, s->width);
    memset(room->dk, 0, (size_t)(n * a->d_padded) * sizeof(float));
    memset(room->dv, 0, (size_t)(n * a->e_padded) * sizeof(float));
    for (int64_t u = part->u0, h, i0, rows; u < part->u1; u++) {
        locate(a, part, u, &h, &i0, &rows);
        backward_block(a, room, part, h, i0, rows);
    }
    if (part->want_kv) {
        copy_rows(at_out(a->dk, s->dk_strides, part->b, part->g, part->j0), s->dk_strides[2],
                  room->dk, a->d_padded, n, s->width);
        copy_rows(at_out(a->dv, s->dv_strides, part->b, part->g, part->j0), s->dv_strides[2],
                  room->dv, a->e_padded, n, s->value_width);
    }
}

/* -- tickets --------------------------------------------------------------------------------------- */

typedef struct {
    float **at;
    int64_t size;
} Piece;

/* A thread's scratch cut into pieces from `base` on, which may be NULL; the floats they take. */
static int64_t cut(float *base, const Piece *pieces, size_t count)
{
    int64_t total = 0;
    for (size_t i = 0; i < count; i++) {
        if (base)
            *pieces[i].at = base + total;
        total += ceil_div(pieces[i].size, 16) * 16;
    }
    return total;
}

static int64_t lay_out(Room *room, float *base, const Attention *a, int backward)
{
    const Shape *s = a->s;
    const int64_t NR = kernels->tile_cols, D = s->width, E = s->value_width, S = s->keys;
    const int64_t padded_keys = S + kernels->tile_rows;
    const Piece pieces[] = {
        {&room->keys, padded_keys * D},
        {&room->values, backward ? padded_keys * E : S * a->e_padded},
        {&room->wide_values, s->bf16 ? S * E : 0},
        {&room->key_slivers, backward ? S * a->d_padded : 0},
        {&room->queries_t, a->rows * D},
        {&room->dys_t, backward ? a->rows * E : 0},
        {&room->queries, backward ? a->rows * a->d_padded : 0},
        {&room->dys, backward ? a->rows * a->e_padded : 0},
        {&room->p, KEYS * a->rows},
        {&room->ds, backward ? KEYS * a->rows : 0},
        {&room->sums, a->rows * (backward ? a->d_padded : a->e_padded)},
        {&room->dk, backward ? S * a->d_padded : 0},
        {&room->dv, backward ? S * a->e_padded : 0},
        {&room->top, a->rows},
        {&room->total, a->rows},
        {&room->decay, a->rows},
        {&room->bias, a->bias ? KEYS * NR : 0},
        {&room->y_t, backward ? E * NR : 0},
    };
    return cut(base, pieces, sizeof pieces / sizeof *pieces);
}

static int64_t lay_out_few(Room *room, float *base, const Attention *a)
{
    const int64_t rows = a->rows, E = a->s->value_width;
    const Piece pieces[] = {
        {&room->queries, rows * a->s->width},
        {&room->p, rows * KEYS},
        {&room->sums, rows * E},
        {&room->top, rows},
        {&room->total, rows},
    };
    return cut(base, pieces, sizeof pieces / sizeof *pieces);
}

/* Part number `split` of the queries of key head number `head` of the batch; the last, which under
 * the causal mask have most to do, come first. */
static Part query_part(const Attention *a, int64_t head, int64_t split)
{
    const Shape *s = a->s;
    const int64_t all = a->blocks * (s->heads / s->key_heads);
    Part part = {.b = head / s->key_heads, .g = head % s->key_heads, .want_q = 1};
    part.u0 = (a->splits - 1 - split) * a->units;
    part.u1 = smaller(all, part.u0 + a->units);
    /* in one head only, the last query sees most keys */
    int64_t last = part.u0 / a->blocks == (part.u1 - 1) / a->blocks
                       ? (part.u1 - 1) % a->blocks * a->rows + a->rows - 1 : s->queries - 1;
    part.j1 = visible(a, part.b, smaller(last, s->queries - 1));
    return part;
}

static void forward(void *context, int thread, int threads)
{
    const Attention *a = context;
    const int64_t heads = a->s->batch * a->s->key_heads;
    Room room;
    lay_out(&room, scratch(PRIVATE + thread, 0), a, 0);
    for (int64_t t; (t = team_ticket()) < heads * a->splits;) {
        Part part = query_part(a, t % heads, t / heads);
        forward_part(a, &room, &part);
    }
}

static void forward_of_few(void *context, int thread, int threads)
{
    const Attention *a = context;
    const int64_t key_heads = a->s->key_heads;
    Room room;
    lay_out_few(&room, scratch(PRIVATE + thread, 0), a);
    for (int64_t t; (t = team_ticket()) < a->s->batch * key_heads;)
        forward_few(a, &room, t / key_heads, t % key_heads);
}

/* All gradients of a key head at once take five products. Where there are too few heads for the
 * threads, dq is computed query by query and dk, dv key by key: that takes seven, and gives the same
 * numbers, because either way a query's sums run over the keys in order, and a key's over the
 * queries. */
static void backward(void *context, int thread, int threads)
{
    const Attention *a = context;
    const Shape *s = a->s;
    const int64_t heads = s->batch * s->key_heads, all = a->blocks * (s->heads / s->key_heads);
    Room room;
    lay_out(&room, scratch(PRIVATE + thread, 0), a, 1);
    for (int64_t t; (t = team_ticket()) < heads * (a->splits + a->key_splits);) {
        Part part;
        if (t < heads * a->splits) {
            part = query_part(a, t % heads, t / heads);
        } else {
            int64_t u = t - heads * a->splits;
            part = (Part){.b = u % heads / s->key_heads, .g = u % heads % s->key_heads, .u1 = all,
                          .want_q = a->splits == 0, .want_kv = 1};
            part.j0 = smaller(s->keys, u / heads * a->key_units * KEYS);
            part.j1 = smaller(s->keys, part.j0 + a->key_units * KEYS);
        }
        backward_part(a, &room, &part);
    }
}

/* How a head's blocks, `all` of them, are shared out: *units to each of *splits tickets, four
 * tickets for each thread over all heads, but of at least `least` blocks. */
static void share(int64_t *units, int64_t *splits, int64_t all, int64_t heads, int threads,
                  int64_t least)
{
    int64_t wanted = ceil_div(4 * threads, larger(1, heads));
    *units = larger(larger(1, smaller(all, least)), ceil_div(all, wanted));
    *splits = ceil_div(all, *units);
}

static int64_t block_rows(void)
{
    int64_t rows = kernels->tile_cols;
    while (rows % kernels->tile_rows)
        rows += kernels->tile_cols;
    return ceil_div(QUERIES, rows) * rows;
}

/* A multiply-add of attention brings a part of a softmax with it: it is worth `times` one. */
static int threads_for_shape(const Shape *s, double times)
{
    return threads_for(times * (double)s->batch * (double)s->heads * (double)s->queries *
                       (double)s->keys * (double)s->width);
}

static int run_few(Attention *a)
{
    Room unused;
    const size_t bytes = (size_t)lay_out_few(&unused, NULL, a) * sizeof(float);
    team_enter();
    const int threads = threads_for_shape(a->s, 8);
    const int status = scratch_for_threads(threads, bytes);
    if (!status)
        team_run(forward_of_few, a, threads);
    team_leave();
    return status;
}

static int run_blocks(Attention *a, Task task, int is_backward)
{
    const Shape *s = a->s;
    const int64_t NR = kernels->tile_cols, heads = s->batch * s->key_heads;
    a->d_padded = ceil_div(s->width, NR) * NR;
    a->e_padded = ceil_div(s->value_width, NR) * NR;
    a->rows = block_rows();
    a->blocks = ceil_div(s->queries, a->rows);
    team_enter();
    const int threads = threads_for_shape(s, 4);
    share(&a->units, &a->splits, a->blocks * (s->heads / larger(1, s->key_heads)), heads, threads,
          4);
    a->key_splits = 1;
    a->key_units = ceil_div(s->keys, KEYS);
    if (is_backward && 7 * heads < 5 * threads * ceil_div(heads, threads))
        share(&a->key_units, &a->key_splits, ceil_div(s->keys, KEYS), heads, threads, 2);
    else if (is_backward)
        a->splits = 0;
    Room unused;
    size_t bytes = (size_t)lay_out(&unused, NULL, a, is_backward) * sizeof(float);
    int status = scratch_for_threads(threads, bytes);
    if (!status)
        team_run(task, a, threads);
    team_leave();
    return status;
}

int minifm_attention(float *y, float *lse, const float *q, const void *k, const void *v,
                     const float *bias, const uint8_t *key_mask, const int64_t *lengths,
                     const int64_t *first_keys, const minifm_attention_shape *shape)
{
    Attention a = {.s = shape, .y = y, .lse_out = lse, .q = q, .k = k, .v = v, .bias = bias,
                   .key_mask = key_mask, .lengths = lengths, .first_keys = first_keys};
    a.rows = shape->queries * (shape->heads / larger(1, shape->key_heads));
    if (a.rows == 0)
        return 0;
    return a.rows <= FEW ? run_few(&a) : run_blocks(&a, forward, 0);
}

int minifm_attention_backward(float *dq, float *dk, float *dv, float *dbias, const float *dy,
                              const float *q, const float *k, const float *v, const float *bias,
                              const uint8_t *key_mask, const int64_t *lengths,
                              const int64_t *first_keys, const float *y, const float *lse,
                              const minifm_attention_shape *shape)
{
    Attention a = {.s = shape, .dq = dq, .dk = dk, .dv = dv, .dbias = dbias, .dy = dy, .q = q,
                   .k = k, .v = v, .bias = bias, .key_mask = key_mask, .lengths = lengths,
                   .first_keys = first_keys, .y_in = y, .lse = lse};
    return run_blocks(&a, backward, 1);
}
