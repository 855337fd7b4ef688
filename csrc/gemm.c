/* Single-precision matrix products, plain, batched, and with the epilogue of a linear layer.
 *
 * The law of summation: an element of C is the sum over blocks of KC consecutive k, in order, of
 * sums that begin at 0 and take one fused multiply-add for each k, in order. It depends on nothing
 * but K: not on M, N, the batch, the threads or where an element lies in a tile. Every path below
 * computes exactly that, so that one row alone, and any number of rows together, agree bitwise.
 *
 * Three paths. `blocked`: packs A and B together (all threads), then draws blocks of C by ticket
 * (Goto & van de Geijn, "Anatomy of high-performance matrix multiplication", 2008). `thin`: few or
 * small rows, or many small products; a ticket packs its own sliver of B and reads A in place.
 * `streamed`: up to four rows times a large B, as in decoding; B is read once, row by row.
 */
#include "gemm.h"
#include "isa.h"
#include "minifm.h"
#include "threads.h"

#include <string.h>

enum {
    ROWS_PACKED = 3072,     /* rows of A packed at a time: bounds the scratch */
    COLS_PACKED = 3072,
    BLOCK_ROWS = 8,         /* of a ticket's block, in tiles */
    BLOCK_COLS = 8,
    STREAMED_ROWS = 4,
    STREAMED_COLS = 1024,
};

/* Below this many multiply-adds, waking the pool costs more than it brings. */
static const double WORTH_THREADS = 4e5;
/* Above this many in one product, packing A pays. */
static const double WORTH_PACKING = 4e6;

typedef struct {
    float *c;               /* [batch, m, n] */
    const float *a, *b;
    int64_t batch, m, n, k;
    const int64_t *a_offsets, *b_offsets;
    int64_t a_row, a_k, b_k, b_col;
    int accumulate;
    float *y;               /* epilogue: y = f(c + bias) + residual; NULL for none */
    const float *bias, *residual;
    int function;
    float *packed_a, *packed_b;
    int64_t group;          /* columns of a ticket */
    int64_t block_rows;     /* rows of a ticket (blocked) */
} Product;

static int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }
static int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

/* -- pieces ----------------------------------------------------------------------------------- */

/* out[depth, NR] = b[k0 ..., j ...], zeros beyond the last column. */
static void pack_b(float *out, const Product *p, const float *b, int64_t k0, int64_t depth,
                   int64_t j)
{
    const int64_t NR = kernels->tile_cols, width = smaller(NR, p->n - j);
    b += k0 * p->b_k + j * p->b_col;
    if (p->b_col != 1) {
        kernels->transpose(out, b, NR, p->b_col, depth, (int)width, (int)NR);
        return;
    }
    for (int64_t i = 0; i < depth; i++, out += NR, b += p->b_k) {
        memcpy(out, b, (size_t)width * sizeof *out);
        if (width < NR)
            memset(out + width, 0, (size_t)(NR - width) * sizeof *out);
    }
}

/* out[depth, MR] = a[i ..., k0 ...] transposed, zeros beyond the last row. */
static void pack_a(float *out, const Product *p, const float *a, int64_t k0, int64_t depth,
                   int64_t i)
{
    const int64_t MR = kernels->tile_rows, rows = smaller(MR, p->m - i);
    a += i * p->a_row + k0 * p->a_k;
    if (p->a_k == 1) {
        kernels->transpose(out, a, MR, p->a_row, depth, (int)rows, (int)MR);
        return;
    }
    for (int64_t j = 0; j < depth; j++, out += MR, a += p->a_k) {
        memcpy(out, a, (size_t)rows * sizeof *out);
        if (rows < MR)
            memset(out + rows, 0, (size_t)(MR - rows) * sizeof *out);
    }
}

void one_tile(float *c, const float *a, const float *b, int64_t ldc, int64_t depth,
                     int64_t a_row, int64_t a_k, int64_t b_k, int64_t rows, int64_t width,
                     int accumulate)
{
    const int64_t NR = kernels->tile_cols;
    if (width >= NR) {
        kernels->tile(c, a, b, ldc, depth, a_row, a_k, b_k, (int)rows, accumulate);
        return;
    }
    float full[MAX_TILE];
    kernels->tile(full, a, b, NR, depth, a_row, a_k, b_k, (int)rows, 0);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < width; j++)
            c[r * ldc + j] = accumulate ? c[r * ldc + j] + full[r * NR + j] : full[r * NR + j];
}

static void epilogue(const Product *p, int64_t i0, int64_t i1, int64_t j0, int64_t j1)
{
    if (!p->y)
        return;
    for (int64_t i = i0; i < i1; i++) {
        int64_t at = i * p->n + j0;
        kernels->epilogue(p->y + at, p->c + at, p->bias ? p->bias + j0 : NULL,
                          p->residual ? p->residual + at : NULL, j1 - j0, p->function);
    }
}

/* -- blocked: large products -------------------------------------------------------------------- */

typedef struct {
    int64_t i0, rows, j0, cols, k0, depth; /* the part of the product that is packed just now */
} Part;

static void pack_part(const Product *p, const Part *part, int with_b)
{
    const int64_t MR = kernels->tile_rows, NR = kernels->tile_cols;
    const int64_t slivers_b = with_b ? ceil_div(part->cols, NR) : 0;
    const int64_t total = slivers_b + ceil_div(part->rows, MR);
    for (int64_t t; (t = pool_ticket()) < total;) {
        int64_t s = t - slivers_b;
        if (t < slivers_b)
            pack_b(p->packed_b + t * NR * part->depth, p, p->b, part->k0, part->depth,
                   part->j0 + t * NR);
        else
            pack_a(p->packed_a + s * MR * part->depth, p, p->a, part->k0, part->depth,
                   part->i0 + s * MR);
    }
}

/* One ticket's block of C, offsets i, j within the part: A slivers stay in L1, B's in L2. */
static void multiply_block(const Product *p, const Part *part, int64_t i, int64_t j)
{
    const int64_t MR = kernels->tile_rows, NR = kernels->tile_cols;
    const int64_t i_end = smaller(part->rows, i + p->block_rows);
    const int64_t j_end = smaller(part->cols, j + p->group);
    const int accumulate = p->accumulate || part->k0 > 0;
    for (int64_t ir = i; ir < i_end; ir += MR)
        for (int64_t jr = j; jr < j_end; jr += NR)
            one_tile(p->c + (part->i0 + ir) * p->n + part->j0 + jr,
                     p->packed_a + ir * part->depth, p->packed_b + jr * part->depth, p->n,
                     part->depth, 1, MR, NR, smaller(MR, i_end - ir), j_end - jr, accumulate);
    if (part->k0 + part->depth == p->k)
        epilogue(p, part->i0 + i, part->i0 + i_end, part->j0 + j, part->j0 + j_end);
}

static void multiply_part(const Product *p, const Part *part)
{
    const int64_t down = ceil_div(part->rows, p->block_rows);
    const int64_t across = ceil_div(part->cols, p->group);
    for (int64_t t; (t = pool_ticket()) < down * across;)
        multiply_block(p, part, t % down * p->block_rows, t / down * p->group);
}

static void blocked(void *context, int thread, int threads)
{
    const Product *p = context;
    for (int64_t j = 0; j < p->n; j += COLS_PACKED)
        for (int64_t k = 0; k < p->k; k += KC)
            for (int64_t i = 0; i < p->m; i += ROWS_PACKED) {
                Part part = {i, smaller(ROWS_PACKED, p->m - i), j, smaller(COLS_PACKED, p->n - j),
                             k, smaller(KC, p->k - k)};
                pack_part(p, &part, i == 0);
                pool_barrier(threads);
                multiply_part(p, &part);
                pool_barrier(threads);
            }
}

/* -- thin: a ticket is some slivers of one product of the batch ---------------------------------- */

static void thin_sliver(const Product *p, const float *a, const float *b, float *c, int64_t j,
                        float *room)
{
    const int64_t MR = kernels->tile_rows, NR = kernels->tile_cols;
    const int64_t width = smaller(NR, p->n - j);
    const int in_place = p->b_col == 1 && width == NR && p->m <= 2 * MR;
    for (int64_t k = 0; k < p->k; k += KC) {
        int64_t depth = smaller(KC, p->k - k);
        const float *sliver = in_place ? b + k * p->b_k + j : room;
        if (!in_place)
            pack_b(room, p, b, k, depth, j);
        for (int64_t i = 0; i < p->m; i += MR)
            one_tile(c + i * p->n + j, a + i * p->a_row + k * p->a_k, sliver, p->n, depth,
                     p->a_row, p->a_k, in_place ? p->b_k : NR, smaller(MR, p->m - i), width,
                     p->accumulate || k > 0);
    }
}

static void thin(void *context, int thread, int threads)
{
    const Product *p = context;
    const int64_t NR = kernels->tile_cols, across = ceil_div(p->n, p->group);
    float *room = scratch(PRIVATE + thread, 0);
    for (int64_t t; (t = pool_ticket()) < p->batch * across;) {
        int64_t item = t / across, j0 = t % across * p->group;
        int64_t j1 = smaller(p->n, j0 + p->group);
        const float *a = p->a + (p->a_offsets ? p->a_offsets[item] : 0);
        const float *b = p->b + (p->b_offsets ? p->b_offsets[item] : 0);
        for (int64_t j = j0; j < j1; j += NR)
            thin_sliver(p, a, b, p->c + item * p->m * p->n, j, room);
        epilogue(p, 0, p->m, j0, j1);
    }
}

/* -- streamed: a few rows ------------------------------------------------------------------------ */

static void stream_columns(const Product *p, const float *a, const float *b, float *c, int64_t j,
                           int64_t width)
{
    float sums[STREAMED_ROWS * STREAMED_COLS];
    for (int64_t k = 0; k < p->k; k += KC) {
        memset(sums, 0, (size_t)(p->m * width) * sizeof *sums);
        kernels->stream(sums, a + k * p->a_k, b + k * p->b_k + j, width, smaller(KC, p->k - k),
                        p->a_row, p->a_k, p->b_k, (int)p->m, width);
        for (int64_t r = 0; r < p->m; r++) {
            float *out = c + r * p->n + j, *sum = sums + r * width;
            if (p->accumulate || k > 0)
                for (int64_t i = 0; i < width; i++)
                    out[i] += sum[i];
            else
                memcpy(out, sum, (size_t)width * sizeof *out);
        }
    }
}

static void streamed(void *context, int thread, int threads)
{
    const Product *p = context;
    const int64_t across = ceil_div(p->n, p->group);
    for (int64_t t; (t = pool_ticket()) < p->batch * across;) {
        int64_t item = t / across, j0 = t % across * p->group;
        int64_t j1 = smaller(p->n, j0 + p->group);
        const float *a = p->a + (p->a_offsets ? p->a_offsets[item] : 0);
        const float *b = p->b + (p->b_offsets ? p->b_offsets[item] : 0);
        stream_columns(p, a, b, p->c + item * p->m * p->n, j0, j1 - j0);
        epilogue(p, 0, p->m, j0, j1);
    }
}

/* -- which path ------------------------------------------------------------------------------------ */

/* Columns of a ticket: a multiple of `unit`, at most `most`, and four tickets for each thread. */
static int64_t columns_per_ticket(const Product *p, int64_t unit, int64_t most, int threads)
{
    int64_t wanted = ceil_div(4 * threads, p->batch);
    int64_t columns = ceil_div(ceil_div(p->n, wanted), unit) * unit;
    return smaller(columns, most);
}

static int run_blocked(Product *p)
{
    const int64_t MR = kernels->tile_rows, NR = kernels->tile_cols, batch = p->batch;
    const int64_t rows = ceil_div(smaller(p->m, ROWS_PACKED), MR) * MR;
    const int64_t cols = ceil_div(smaller(p->n, COLS_PACKED), NR) * NR;
    const int64_t depth = smaller(p->k, KC);
    p->packed_a = scratch(SHARED_A, (size_t)(rows * depth) * sizeof(float));
    p->packed_b = scratch(SHARED_B, (size_t)(cols * depth) * sizeof(float));
    if (!p->packed_a || !p->packed_b)
        return -1;
    p->group = BLOCK_COLS * NR;
    p->block_rows = BLOCK_ROWS * MR;
    while (p->block_rows > 2 * MR &&
           ceil_div(rows, p->block_rows) * ceil_div(cols, p->group) < 4 * pool_threads())
        p->block_rows -= MR;
    Product item = *p;
    for (int64_t i = 0; i < batch; i++) {
        item.a = p->a + (p->a_offsets ? p->a_offsets[i] : 0);
        item.b = p->b + (p->b_offsets ? p->b_offsets[i] : 0);
        item.c = p->c + i * p->m * p->n;
        pool_run(blocked, &item, 0);
    }
    return 0;
}

static int run(Product *p)
{
    const int64_t MR = kernels->tile_rows, NR = kernels->tile_cols;
    const double work = (double)p->m * (double)p->n * (double)p->k;
    if (p->batch == 0 || p->m == 0 || p->n == 0)
        return 0;
    if (p->k == 0) { /* an empty sum */
        if (!p->accumulate)
            memset(p->c, 0, (size_t)(p->batch * p->m * p->n) * sizeof *p->c);
        epilogue(p, 0, p->m, 0, p->n);
        return 0;
    }
    pool_enter();
    const int threads = work * (double)p->batch < WORTH_THREADS ? 1 : pool_threads();
    int status = 0;
    if (p->m <= STREAMED_ROWS && p->b_col == 1) {
        p->group = columns_per_ticket(p, 64, STREAMED_COLS, threads);
        pool_run(streamed, p, threads);
    } else if (p->m > 3 * MR && work > WORTH_PACKING) {
        status = run_blocked(p);
    } else {
        p->group = columns_per_ticket(p, NR, BLOCK_COLS * NR, threads);
        status = scratch_for_threads(threads, KC * (size_t)NR * sizeof(float));
        if (!status)
            pool_run(thin, p, threads);
    }
    pool_leave();
    return status;
}

int minifm_matmul(float *c, const float *a, const float *b, int64_t batch, int64_t m, int64_t n,
                  int64_t k, const int64_t *a_offsets, const int64_t *b_offsets, int64_t a_row,
                  int64_t a_k, int64_t b_k, int64_t b_col, int accumulate)
{
    Product p = {.c = c, .a = a, .b = b, .batch = batch, .m = m, .n = n, .k = k,
                 .a_offsets = a_offsets, .b_offsets = b_offsets, .a_row = a_row, .a_k = a_k,
                 .b_k = b_k, .b_col = b_col, .accumulate = accumulate};
    return run(&p);
}

int minifm_linear(float *y, float *z, const float *x, const float *w, const float *bias,
                  const float *residual, int64_t m, int64_t n, int64_t k, int64_t x_row,
                  int64_t x_k, int64_t w_k, int64_t w_col, int function)
{
    Product p = {.c = z, .a = x, .b = w, .batch = 1, .m = m, .n = n, .k = k, .a_row = x_row,
                 .a_k = x_k, .b_k = w_k, .b_col = w_col, .y = y, .bias = bias,
                 .residual = residual, .function = function};
    if (!bias && !residual && function == MINIFM_IDENTITY)
        p.y = NULL;
    return run(&p);
}
