/* Scaled dot-product attention, forward and backward, a block of queries at a time.
 *
 * The scores of a block of queries against all the keys they see fit in the cache; they are
 * computed, turned into weights and multiplied with the values there, and never stored beyond
 * that. The backward pass computes them again from the log-sum-exp of the forward pass (Dao et
 * al. 2022). Under the causal mask, tiles without a visible key are skipped.
 *
 * A query's result depends on the keys it sees and on nothing else: dot products run over d, and
 * sums over keys run over j, in one order, and a hidden key adds an exact zero. So the last row of
 * a long sequence and a single query against its cache agree bitwise.
 */
#include "gemm.h"
#include "isa.h"
#include "minifm.h"
#include "threads.h"

#include <math.h>
#include <string.h>

enum { BLOCK_TILES = 4 }; /* row tiles of a block of queries */

typedef minifm_attention_shape Shape;

typedef struct {
    const Shape *s;
    float *y, *lse_out, *dq, *dk, *dv, *dbias;
    const float *q, *k, *v, *bias, *dy, *lse;
    const uint8_t *key_mask;
    int64_t splits, blocks;         /* tickets of a head, blocks of queries of a ticket */
    int64_t key_slivers, d_slivers, e_slivers;
} Attention;

/* A thread's scratch, cut into named pieces. */
typedef struct {
    float *keys_t;      /* scale k, transposed: slivers [D, NR] of keys */
    float *keys;        /* scale k: slivers [S, NR] of D */
    float *values_t;    /* v transposed: slivers [E, NR] of keys */
    float *values;      /* v: slivers [S, NR] of E */
    float *rows_t;      /* tiles [D or E, MR] of q, or of dy */
    float *queries;     /* scale q of the block: slivers [rows, NR] of D */
    float *dys;         /* dy of the block: slivers [rows, NR] of E */
    float *p, *ds;      /* weights and score gradients of the block [rows, keys] */
} Room;

static int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }
static int64_t larger(int64_t x, int64_t y) { return x > y ? x : y; }
static int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

static const float *at(const float *x, const int64_t strides[3], int64_t b, int64_t h, int64_t i)
{
    return x + b * strides[0] + h * strides[1] + i * strides[2];
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

/* How many keys query i sees: 0 ... visible - 1. */
static int64_t visible(const Shape *s, int64_t i)
{
    if (!s->causal)
        return s->keys;
    return smaller(s->keys, larger(0, i + s->keys - s->queries + 1));
}

/* -- packing ------------------------------------------------------------------------------------- */

/* Slivers [width, NR] of rows 0 ... rows - 1 of x[., width], transposed and scaled. */
static void pack_transposed(float *out, const float *x, int64_t stride, int64_t rows,
                            int64_t width, float scale)
{
    const int64_t NR = kernels->tile_cols;
    for (int64_t j = 0; j < rows; j += NR, out += NR * width) {
        kernels->transpose(out, x + j * stride, stride, width, (int)smaller(NR, rows - j), (int)NR);
        if (scale != 1)
            kernels->scale(out, out, NR * width, scale);
    }
}

/* Slivers [rows, NR] of the columns of x[rows, width], scaled, zeros beyond the last column. */
static void pack_rows(float *out, const float *x, int64_t stride, int64_t rows, int64_t width,
                      float scale)
{
    const int64_t NR = kernels->tile_cols;
    for (int64_t j = 0; j < width; j += NR)
        for (int64_t i = 0; i < rows; i++, out += NR) {
            int64_t columns = smaller(NR, width - j);
            kernels->scale(out, x + i * stride + j, columns, scale);
            if (columns < NR)
                memset(out + columns, 0, (size_t)(NR - columns) * sizeof *out);
        }
}

/* c[rows, width] = (or +=) a[rows, k] times the slivers of b, each [ldb, NR], of which `b` is
 * the first row that counts. */
static void multiply(float *c, int64_t ldc, const float *a, int64_t a_row, int64_t a_k,
                     const float *b, int64_t ldb, int64_t k, int64_t rows, int64_t width,
                     int accumulate)
{
    const int64_t NR = kernels->tile_cols;
    for (int64_t j = 0; j < width; j += NR, b += ldb * NR) {
        int64_t k0 = 0;
        do { /* also once for k = 0, to write zeros */
            one_tile(c + j, a + k0 * a_k, b + k0 * NR, ldc, smaller(KC, k - k0), a_row, a_k, NR,
                     rows, width - j, accumulate || k0 > 0);
            k0 += KC;
        } while (k0 < k);
    }
}

/* scores[rows, n] of `rows` rows of x (queries, or dys) against the slivers of packed keys. */
static void multiply_tiles(float *scores, int64_t ld, Room *room, const float *x, int64_t stride,
                           const float *packed, int64_t width, int64_t i0, int64_t rows,
                           const Shape *s)
{
    const int64_t MR = kernels->tile_rows, NR = kernels->tile_cols;
    for (int64_t r = 0; r < rows; r += MR) {
        int64_t height = smaller(MR, rows - r), n = visible(s, i0 + r + height - 1);
        kernels->transpose(room->rows_t, x + r * stride, stride, width, (int)height, (int)MR);
        for (int64_t j = 0; j < n; j += NR)
            kernels->tile(scores + r * ld + j, room->rows_t, packed + j * width, ld, width, 1, MR,
                          NR, (int)height, 0);
    }
}

/* Add the bias of query i to its scores[n], and -inf where a key is hidden. */
static void bias_and_mask(const Attention *a, float *scores, int64_t b, int64_t h, int64_t i,
                          int64_t n)
{
    const int64_t *strides = a->s->bias_strides;
    if (a->bias)
        kernels->binary(scores, scores, at(a->bias, strides, b, h, i), n, 1, (int)strides[3],
                        MINIFM_ADD);
    const uint8_t *mask = a->key_mask ? a->key_mask + b * a->s->keys : NULL;
    for (int64_t j = 0; mask && j < n; j++)
        if (!mask[j])
            scores[j] = -INFINITY;
}

/* -- forward -------------------------------------------------------------------------------------- */

/* scores[n] to e^(score - max), zeros up to `width`; returns 1 / sum and sets the log-sum-exp. */
static float weigh(float *scores, int64_t n, int64_t width, float *lse)
{
    float top = kernels->max(scores, n), shift = top == -INFINITY ? 0 : top;
    float total = kernels->exp_sum(scores, scores, n, shift);
    memset(scores + n, 0, (size_t)(width - n) * sizeof *scores);
    *lse = shift + logf(total);
    return total == 0 ? 0 : 1 / total; /* nothing to look at: zeros */
}

static void forward_block(const Attention *a, Room *room, int64_t b, int64_t h, int64_t i0,
                          int64_t rows)
{
    const Shape *s = a->s;
    const int64_t MR = kernels->tile_rows, ld = a->key_slivers * kernels->tile_cols;
    multiply_tiles(room->p, ld, room, at(a->q, s->q_strides, b, h, i0), s->q_strides[2],
                   room->keys_t, s->width, i0, rows, s);
    for (int64_t r = 0; r < rows; r += MR) {
        int64_t height = smaller(MR, rows - r), n = visible(s, i0 + r + height - 1);
        float *y = at_out(a->y, s->y_strides, b, h, i0 + r), inverse[64];
        for (int64_t t = 0; t < height; t++) {
            int64_t i = i0 + r + t, seen = visible(s, i);
            float *scores = room->p + (r + t) * ld;
            bias_and_mask(a, scores, b, h, i, seen);
            inverse[t] = weigh(scores, seen, n, a->lse_out + row_of(s, b, h, i));
        }
        multiply(y, s->y_strides[2], room->p + r * ld, ld, 1, room->values, s->keys, n, height,
                 s->value_width, 0);
        for (int64_t t = 0; t < height; t++)
            kernels->scale(y + t * s->y_strides[2], y + t * s->y_strides[2], s->value_width,
                           inverse[t]);
    }
}

/* -- backward ------------------------------------------------------------------------------------- */

/* p = e^(score - lse) and, from dp, ds = p (dp - delta), zeros up to `width`. delta is p . dp, not
 * dy . y, the same number by another sum: where one key has all the weight, ds is exactly 0. */
static void score_gradient(const Attention *a, float *p, float *ds, int64_t b, int64_t h,
                           int64_t i, int64_t width)
{
    const Shape *s = a->s;
    const float lse = a->lse[row_of(s, b, h, i)];
    int64_t n = lse == -INFINITY ? 0 : visible(s, i);
    bias_and_mask(a, p, b, h, i, n);
    kernels->exp_sum(p, p, n, lse);
    kernels->softmax_gradient(ds, p, ds, n, kernels->dot(p, ds, n));
    memset(p + n, 0, (size_t)(width - n) * sizeof *p);
    memset(ds + n, 0, (size_t)(width - n) * sizeof *ds);
    if (a->dbias) {
        float *row = a->dbias + row_of(s, b, h, i) * s->keys;
        memcpy(row, ds, (size_t)n * sizeof *row);
        memset(row + n, 0, (size_t)(s->keys - n) * sizeof *row);
    }
}

/* dk and dv of the keys that the block sees += dsT q and pT dy. */
static void key_gradients(const Attention *a, Room *room, int64_t b, int64_t g, int64_t i0,
                          int64_t rows, int64_t n)
{
    const Shape *s = a->s;
    const int64_t MR = kernels->tile_rows, NR = kernels->tile_cols, ld = a->key_slivers * NR;
    for (int64_t j = 0; j < n; j += MR) {
        /* the first query of the block that sees key j */
        int64_t first = s->causal ? larger(0, j - (s->keys - s->queries) - i0) : 0;
        int64_t height = smaller(MR, n - j), k = rows - first;
        multiply(at_out(a->dv, s->dv_strides, b, g, j), s->dv_strides[2],
                 room->p + first * ld + j, 1, ld, room->dys + first * NR, rows, k, height,
                 s->value_width, 1);
        multiply(at_out(a->dk, s->dk_strides, b, g, j), s->dk_strides[2],
                 room->ds + first * ld + j, 1, ld, room->queries + first * NR, rows, k, height,
                 s->width, 1);
    }
}

static void backward_block(const Attention *a, Room *room, int64_t b, int64_t h, int64_t g,
                           int64_t i0, int64_t rows)
{
    const Shape *s = a->s;
    const int64_t MR = kernels->tile_rows, ld = a->key_slivers * kernels->tile_cols;
    const int64_t n = visible(s, i0 + rows - 1);
    const float *q = at(a->q, s->q_strides, b, h, i0), *dy = at(a->dy, s->dy_strides, b, h, i0);
    multiply_tiles(room->p, ld, room, q, s->q_strides[2], room->keys_t, s->width, i0, rows, s);
    multiply_tiles(room->ds, ld, room, dy, s->dy_strides[2], room->values_t, s->value_width, i0,
                   rows, s);
    for (int64_t r = 0; r < rows; r++)
        score_gradient(a, room->p + r * ld, room->ds + r * ld, b, h, i0 + r, n);
    pack_rows(room->queries, q, s->q_strides[2], rows, s->width, s->scale);
    pack_rows(room->dys, dy, s->dy_strides[2], rows, s->value_width, 1);
    key_gradients(a, room, b, g, i0, rows, n);
    for (int64_t r = 0; r < rows; r += MR) {
        int64_t height = smaller(MR, rows - r);
        multiply(at_out(a->dq, s->dq_strides, b, h, i0 + r), s->dq_strides[2], room->ds + r * ld,
                 ld, 1, room->keys, s->keys, visible(s, i0 + r + height - 1), height, s->width, 0);
    }
}

/* -- tickets --------------------------------------------------------------------------------------- */

static int64_t block_rows(void) { return BLOCK_TILES * kernels->tile_rows; }

/* The pieces of a thread's scratch, laid out from `base`; returns the floats they take. */
static int64_t lay_out(Room *room, float *base, const Attention *a, int backward)
{
    const Shape *s = a->s;
    const int64_t NR = kernels->tile_cols, rows = block_rows();
    const int64_t padded_keys = a->key_slivers * NR, tile = larger(s->width, s->value_width);
    const int64_t sizes[] = {
        padded_keys * s->width, backward ? s->keys * a->d_slivers * NR : 0,
        backward ? padded_keys * s->value_width : 0, backward ? 0 : s->keys * a->e_slivers * NR,
        tile * kernels->tile_rows, backward ? rows * a->d_slivers * NR : 0,
        backward ? rows * a->e_slivers * NR : 0, rows * padded_keys,
        backward ? rows * padded_keys : 0,
    };
    float **const pieces[] = {&room->keys_t, &room->keys, &room->values_t, &room->values,
                              &room->rows_t, &room->queries, &room->dys, &room->p, &room->ds};
    int64_t total = 0;
    for (int i = 0; i < 9; i++) {
        if (base)
            *pieces[i] = base + total;
        total += ceil_div(sizes[i], 16) * 16;
    }
    return total;
}

static void forward(void *context, int thread, int threads)
{
    const Attention *a = context;
    const Shape *s = a->s;
    const int64_t group = s->heads / s->key_heads, rows = block_rows();
    Room room;
    lay_out(&room, scratch(PRIVATE + thread, 0), a, 0);
    for (int64_t t; (t = pool_ticket()) < s->batch * s->heads * a->splits;) {
        int64_t b = t / a->splits / s->heads, h = t / a->splits % s->heads;
        int64_t begin = t % a->splits * a->blocks * rows;
        int64_t end = smaller(s->queries, begin + a->blocks * rows);
        if (begin >= end)
            continue;
        int64_t n = visible(s, end - 1), g = h / group;
        pack_transposed(room.keys_t, at(a->k, s->k_strides, b, g, 0), s->k_strides[2], n,
                        s->width, s->scale);
        /* each sliver is s->keys rows long, of which only n are needed */
        for (int64_t j = 0; j < a->e_slivers; j++) {
            int64_t column = j * kernels->tile_cols;
            pack_rows(room.values + column * s->keys,
                      at(a->v, s->v_strides, b, g, 0) + column, s->v_strides[2], n,
                      smaller(kernels->tile_cols, s->value_width - column), 1);
        }
        for (int64_t i = begin; i < end; i += rows)
            forward_block(a, &room, b, h, i, smaller(rows, end - i));
    }
}

static void clear_rows(float *x, int64_t stride, int64_t rows, int64_t width)
{
    for (int64_t i = 0; i < rows; i++)
        memset(x + i * stride, 0, (size_t)width * sizeof *x);
}

static void backward(void *context, int thread, int threads)
{
    const Attention *a = context;
    const Shape *s = a->s;
    const int64_t group = s->heads / s->key_heads, rows = block_rows();
    Room room;
    lay_out(&room, scratch(PRIVATE + thread, 0), a, 1);
    for (int64_t t; (t = pool_ticket()) < s->batch * s->key_heads;) {
        int64_t b = t / s->key_heads, g = t % s->key_heads;
        const float *k = at(a->k, s->k_strides, b, g, 0), *v = at(a->v, s->v_strides, b, g, 0);
        pack_transposed(room.keys_t, k, s->k_strides[2], s->keys, s->width, s->scale);
        pack_rows(room.keys, k, s->k_strides[2], s->keys, s->width, s->scale);
        pack_transposed(room.values_t, v, s->v_strides[2], s->keys, s->value_width, 1);
        clear_rows(at_out(a->dk, s->dk_strides, b, g, 0), s->dk_strides[2], s->keys, s->width);
        clear_rows(at_out(a->dv, s->dv_strides, b, g, 0), s->dv_strides[2], s->keys,
                   s->value_width);
        for (int64_t h = g * group; h < (g + 1) * group; h++)
            for (int64_t i = 0; i < s->queries; i += rows)
                backward_block(a, &room, b, h, g, i, smaller(rows, s->queries - i));
    }
}

static int run(Attention *a, Task task, int is_backward)
{
    const Shape *s = a->s;
    const int64_t NR = kernels->tile_cols;
    a->key_slivers = larger(1, ceil_div(s->keys, NR));
    a->d_slivers = ceil_div(s->width, NR);
    a->e_slivers = ceil_div(s->value_width, NR);
    const double work = (double)s->batch * (double)s->heads * (double)s->queries *
                        (double)s->keys * (double)s->width;
    pool_enter();
    const int threads = work < 1e5 ? 1 : pool_threads();
    const int64_t heads = larger(1, s->batch * s->heads);
    const int64_t blocks = ceil_div(s->queries, block_rows());
    a->blocks = larger(larger(1, smaller(blocks, 4)), ceil_div(blocks, ceil_div(4 * threads, heads)));
    a->splits = ceil_div(blocks, a->blocks);
    Room unused;
    size_t bytes = (size_t)lay_out(&unused, NULL, a, is_backward) * sizeof(float);
    int status = scratch_for_threads(threads, bytes);
    if (!status)
        pool_run(task, a, threads);
    pool_leave();
    return status;
}

int minifm_attention(float *y, float *lse, const float *q, const float *k, const float *v,
                     const float *bias, const uint8_t *key_mask,
                     const minifm_attention_shape *shape)
{
    Attention a = {.s = shape, .y = y, .lse_out = lse, .q = q, .k = k, .v = v, .bias = bias,
                   .key_mask = key_mask};
    return run(&a, forward, 0);
}

int minifm_attention_backward(float *dq, float *dk, float *dv, float *dbias, const float *dy,
                              const float *q, const float *k, const float *v, const float *bias,
                              const uint8_t *key_mask, const float *lse,
                              const minifm_attention_shape *shape)
{
    Attention a = {.s = shape, .dq = dq, .dk = dk, .dv = dv, .dbias = dbias, .dy = dy, .q = q,
                   .k = k, .v = v, .bias = bias, .key_mask = key_mask, .lse = lse};
    return run(&a, backward, 1);
}
