/* Single-precision matrix products, plain, batched, and with the epilogue of a linear layer.
 *
 * Words, from the inside out:
 *
 *              K              N
 *          ..KC....       +--+--+--+       tile     MR x NR numbers of C, whose sums stay in
 *        +---------+    K |  |  |  | KC             registers (isa_tile.h)
 *     MR |         |      |  |  |  |  :    stretch  KC consecutive k
 *        +---------+      +--+--+--+       sliver   what a tile reads: for each k of a stretch MR
 *     MR |  A      |       NR NR NR                 numbers of A, or NR of B, side by side
 *        +---------+                       panel    slivers of the smaller operand, a stretch deep,
 *     MR |         |      +--+--+--+                packed once and shared by all threads
 *        +---------+   MR |  |##|  |       block    rows or columns of the larger operand, which a
 *                         +--+--+--+                thread packs for itself: it draws them by
 *                         |  C     |                their number, its ticket
 *
 * The law of summation: an element of C is the sum over stretches, in order, of sums that begin at
 * 0 and take one fused multiply-add for each k, in order. (The portable kernels do without that
 * instruction: a rounded product and a sum.) It depends on nothing but K: not on M, N, the batch,
 * the threads or where an element lies in a tile. Every path below computes exactly that, so that
 * one row alone, and any number of rows together, agree bitwise.
 *
 * Operands rounded to bf16 are packed into cells (isa.h), of which a stretch has KC. Where the
 * processor multiplies bf16 a cell is a pair of k and one instruction adds its two products, in an
 * order, with roundings, of its own: numbers below 2^-126 are zero to it, operands and sums.
 * These products all go the `blocked` way, however few their rows, so one order serves them all;
 * and bytes are what stretches are measured by, so one of pairs is as large, and twice as deep.
 *
 * Three paths. `blocked`: the threads pack a panel of the smaller operand together; then each draws
 * a block of the larger one by ticket, packs it for itself and multiplies it by the whole panel
 * (after Goto & van de Geijn, "Anatomy of high-performance matrix multiplication", 2008). `thin`:
 * few or small rows, or many small products; a ticket packs its own sliver of B and reads A in
 * place. `streamed`: few rows times a large B whose rows lie in one piece, as in decoding; it is read
 * once, where it lies. Where columns are what lies in one piece the law, which adds along them in
 * order, asks for squares of B turned in registers; that is what packing for `thin` does.
 */
#include "gemm.h"
#include "isa.h"
#include "minifm.h"
#include "sizes.h"
#include "threads.h"

#include <string.h>

enum {
    PANEL = 4 << 20,        /* cells in a panel, to bound the scratch */
    PANEL_COUNT = 4608,     /* and its rows, or columns */
    BLOCK = 96,             /* rows, or columns, of a ticket: packed, they fit in L2 */
    PACKED_TOGETHER = 8,    /* slivers: rows of this length are read in one go */
    FINISHED_TOGETHER = 4,  /* slivers to which the epilogue comes while L2 holds them */
    THIN_COLS = 8,          /* slivers of a ticket (thin) */
    STREAMED_ROWS = 16,
    STREAMED_SUMS = 4096,   /* running sums that stay in L1 */
    STREAMED_LEAST = 256,   /* columns of a ticket, at least */
    STREAMED_MOST = 16 << 20,       /* sums of all blocks and products, to bound the scratch */
};

/* Above this many in one product, packing A pays. */
static const double WORTH_PACKING = 4e6;

typedef struct {
    float *c;               /* [batch, m, n] */
    const float *a, *b;
    int64_t batch, m, n, k; /* in numbers, */
    int64_t depth;          /* and k in cells */
    Cells cells;
    const int64_t *a_offsets, *b_offsets;
    int64_t a_row, a_k, b_k, b_col;
    int accumulate;
    float *y;               /* epilogue: y = f(c + bias) + residual; NULL for none */
    const float *bias, *residual;
    int function;
    float *packed;          /* blocked: the panel; streamed: the sums of each block */
    int64_t panel_count, panel_depth, block;
    int panel_is_a;
    int64_t group;          /* columns of a ticket (thin, streamed) */
} Product;

/* -- pieces ----------------------------------------------------------------------------------- */

/* The operands of one product of the batch. */
static const float *a_of(const Product *p, int64_t item)
{
    return p->a + (p->a_offsets ? p->a_offsets[item] : 0);
}

static const float *b_of(const Product *p, int64_t item)
{
    return p->b + (p->b_offsets ? p->b_offsets[item] : 0);
}

void one_tile(Tile *tile, float *c, const float *a, const float *b, int64_t ldc, int64_t depth,
              int64_t a_row, int64_t a_k, int64_t b_k, int64_t rows, int64_t width,
              int accumulate)
{
    const int64_t NR = kernels->tile_cols;
    if (width >= NR) {
        tile(c, a, b, ldc, depth, a_row, a_k, b_k, (int)rows, accumulate);
        return;
    }
    float full[MAX_TILE];
    tile(full, a, b, NR, depth, a_row, a_k, b_k, (int)rows, 0);
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

/* One operand as the other meets it: `count` rows of A, or columns of B, each of k numbers. */
typedef struct {
    const float *x;
    int64_t count, step, k, k_step, width;
} Side;

static Side side_of(const Product *p, int is_a)
{
    return is_a ? (Side){p->a, p->m, p->a_row, p->k, p->a_k, kernels->tile_rows}
                : (Side){p->b, p->n, p->b_col, p->k, p->b_k, kernels->tile_cols};
}

/* Slivers of x[i ...] from cell k0 on, `depth` cells long, each after the other. */
static void pack(const Cells *cells, float *out, const Side *side, int64_t i, int64_t count,
                 int64_t k0, int64_t depth)
{
    const int64_t width = side->width, begin = k0 * cells->together;
    const int64_t numbers = smaller(depth * cells->together, side->k - begin);
    const float *x = side->x + i * side->step + begin * side->k_step;
    if (side->step == 1)
        cells->pack(out, width * depth, x, side->k_step, numbers, count, (int)width);
    else
        for (int64_t s = 0; s < count; s += width)
            cells->transpose(out + s * depth, x + s * side->step, side->step, numbers,
                             (int)smaller(width, count - s), (int)width);
}

/* The part of the shared operand that is packed just now: blocks of KC, each of slivers. */
typedef struct {
    float *packed;
    int64_t begin, count, padded, k0, depth;
} Panel;

static float *sliver_of(const Panel *panel, int64_t k, int64_t i)
{
    return panel->packed + k * panel->padded + i * smaller(KC, panel->depth - k);
}

static void pack_panel(const Cells *cells, const Panel *panel, const Side *side)
{
    const int64_t group = PACKED_TOGETHER * side->width, across = ceil_div(panel->count, group);
    for (int64_t t; (t = team_ticket()) < across * ceil_div(panel->depth, KC);) {
        int64_t k = t / across * KC, i = t % across * group;
        pack(cells, sliver_of(panel, k, i), side, panel->begin + i,
             smaller(group, panel->count - i), panel->k0 + k, smaller(KC, panel->depth - k));
    }
}

/* A part of what comes next, so that it is in L2 by then: part `number` of `parts`. */
static void prefetch(const float *next, int64_t length, int64_t number, int64_t parts)
{
    const int64_t line = CACHE_LINE / sizeof(float);
    for (int64_t i = number * length / parts; i < (number + 1) * length / parts; i += line)
        __builtin_prefetch(next + i);
}

/* Slivers i ... i_end - 1 of the panel times the ticket's block of the other operand. The sliver
 * stays in L1 while those of the block, which fill a part of L2, pass by. */
static void multiply_slivers(const Product *p, const Panel *panel, int64_t i, int64_t i_end, int64_t k,
                     const float *block, int64_t j, int64_t j_end)
{
    const Side side = side_of(p, p->panel_is_a), other = side_of(p, !p->panel_is_a);
    const int64_t MR = kernels->tile_rows, NR = kernels->tile_cols;
    const int64_t depth = smaller(KC, panel->depth - k), tiles = ceil_div(j_end - j, other.width);
    const int accumulate = p->accumulate || panel->k0 + k > 0;
    for (int64_t s = i; s < i_end; s += side.width) {
        const float *shared = sliver_of(panel, k, s);
        for (int64_t r = j; r < j_end; r += other.width) {
            const float *own = block + (r - j) * depth;
            const int64_t row = p->panel_is_a ? panel->begin + s : r;
            const int64_t column = p->panel_is_a ? r : panel->begin + s;
            prefetch(shared + side.width * depth, side.width * depth, (r - j) / other.width, tiles);
            one_tile(p->cells.tile, p->c + row * p->n + column, p->panel_is_a ? shared : own,
                     p->panel_is_a ? own : shared, p->n, depth, 1, MR, NR,
                     smaller(MR, p->m - row), p->n - column, accumulate);
        }
    }
    if (panel->k0 + k + depth < p->depth)
        return;
    i += panel->begin, i_end += panel->begin;
    if (p->panel_is_a)
        epilogue(p, i, i_end, j, j_end);
    else
        epilogue(p, j, j_end, i, i_end);
}

static void multiply_panel(const Product *p, const Panel *panel, float *block)
{
    const Side side = side_of(p, p->panel_is_a), other = side_of(p, !p->panel_is_a);
    const int64_t group = FINISHED_TOGETHER * side.width;
    for (int64_t t; (t = team_ticket()) < ceil_div(other.count, p->block);) {
        int64_t j = t * p->block, j_end = smaller(other.count, j + p->block);
        for (int64_t k = 0; k < panel->depth; k += KC) {
            pack(&p->cells, block, &other, j, j_end - j, panel->k0 + k,
                 smaller(KC, panel->depth - k));
            for (int64_t i = 0; i < panel->count; i += group)
                multiply_slivers(p, panel, i, smaller(i + group, panel->count), k, block, j, j_end);
        }
    }
}

static void blocked(void *context, int thread, int threads)
{
    const Product *p = context;
    const Side side = side_of(p, p->panel_is_a);
    for (int64_t i = 0; i < side.count; i += p->panel_count)
        for (int64_t k = 0; k < p->depth; k += p->panel_depth) {
            int64_t count = smaller(p->panel_count, side.count - i);
            Panel panel = {p->packed, i, count, ceil_div(count, side.width) * side.width, k,
                           smaller(p->panel_depth, p->depth - k)};
            pack_panel(&p->cells, &panel, &side);
            team_barrier(threads);
            multiply_panel(p, &panel, scratch(PRIVATE + thread, 0));
            team_barrier(threads);
        }
}

/* What is packed together, and what by ticket. The panel is taken from the smaller operand, so
 * that it is read again from L3; the larger one is packed once, into L2, by whoever uses it. */
static int lay_out_panel(Product *p, int threads)
{
    p->panel_is_a = p->m < p->n;
    const Side side = side_of(p, p->panel_is_a), other = side_of(p, !p->panel_is_a);
    p->panel_count = smaller(ceil_div(side.count, side.width), PANEL_COUNT / side.width) * side.width;
    p->panel_depth = smaller(p->depth, PANEL / p->panel_count / KC * KC);
    p->block = smaller(BLOCK, ceil_div(other.count, 4 * threads));
    p->block = ceil_div(p->block, other.width) * other.width;
    p->packed = scratch(SHARED, (size_t)(p->panel_count * p->panel_depth) * sizeof(float));
    return p->packed ? scratch_for_threads(threads, (size_t)(p->block * KC) * sizeof(float)) : -1;
}

/* -- thin: a ticket is some slivers of one product of the batch ---------------------------------- */

static void thin_sliver(const Product *p, const float *a, const float *b, float *c, int64_t j,
                        float *room)
{
    const int64_t MR = kernels->tile_rows, NR = kernels->tile_cols;
    const int64_t width = smaller(NR, p->n - j);
    const int in_place = p->b_col == 1 && width == NR && p->m <= 2 * MR;
    const Side side = {b, p->n, p->b_col, p->k, p->b_k, NR};
    for (int64_t k = 0; k < p->k; k += KC) {
        int64_t depth = smaller(KC, p->k - k);
        const float *sliver = in_place ? b + k * p->b_k + j : room;
        if (!in_place)
            pack(&p->cells, room, &side, j, width, k, depth);
        for (int64_t i = 0; i < p->m; i += MR)
            one_tile(p->cells.tile, c + i * p->n + j, a + i * p->a_row + k * p->a_k, sliver, p->n,
                     depth, p->a_row, p->a_k, in_place ? p->b_k : NR, smaller(MR, p->m - i), width,
                     p->accumulate || k > 0);
    }
}

static void thin(void *context, int thread, int threads)
{
    const Product *p = context;
    const int64_t NR = kernels->tile_cols, across = ceil_div(p->n, p->group);
    float *room = scratch(PRIVATE + thread, 0);
    for (int64_t t; (t = team_ticket()) < p->batch * across;) {
        int64_t item = t / across, j0 = t % across * p->group;
        int64_t j1 = smaller(p->n, j0 + p->group);
        const float *a = a_of(p, item);
        const float *b = b_of(p, item);
        for (int64_t j = j0; j < j1; j += NR)
            thin_sliver(p, a, b, p->c + item * p->m * p->n, j, room);
        epilogue(p, 0, p->m, j0, j1);
    }
}

/* -- streamed: few rows -------------------------------------------------------------------------- */

/* sums[m, n by its rows] of block `k` of the law, columns j ... of one product. They run in a room
 * of their own, and so do the rows of A: rows that lie a power of two apart would push each other
 * out of L1. */
static void stream_columns(const Product *p, int64_t item, float *sums, int64_t k, int64_t j,
                           int64_t j_end)
{
    const float *a = a_of(p, item) + k * p->a_k;
    const float *b = b_of(p, item) + k * p->b_k;
    const int64_t at_once = STREAMED_SUMS / p->m / 16 * 16, stride = at_once + 16;
    const int64_t depth = smaller(KC, p->k - k);
    int64_t a_row = p->a_row;
    float room[STREAMED_SUMS + 16 * STREAMED_ROWS], rows[STREAMED_ROWS * (KC + 16)];
    if (p->a_k == 1 && p->m > 1) {
        for (int64_t r = 0; r < p->m; r++)
            memcpy(rows + r * (KC + 16), a + r * a_row, (size_t)depth * sizeof *rows);
        a = rows;
        a_row = KC + 16;
    }
    for (int64_t width; j < j_end; j += width) {
        width = smaller(at_once, j_end - j);
        memset(room, 0, (size_t)(p->m * stride) * sizeof *room);
        kernels->stream(room, a, b + j, stride, depth, a_row, p->a_k, p->b_k, (int)p->m, width);
        for (int64_t r = 0; r < p->m; r++)
            memcpy(sums + r * p->n + j, room + r * stride, (size_t)width * sizeof *sums);
    }
}

/* c[n] = or += the sums of all blocks, in their order. */
static void add_blocks(const Product *p, float *c, const float *sums, int64_t stride, int64_t n)
{
    int64_t first = 0;
    if (!p->accumulate) {
        memcpy(c, sums, (size_t)n * sizeof *c);
        first = 1;
    }
    for (int64_t block = first; block < ceil_div(p->k, KC); block++)
        kernels->binary(c, c, sums + block * stride, n, 1, 1, MINIFM_ADD);
}

/* Whole blocks of k are a ticket's, so that it reads rows of B that are long, one after the other;
 * the law adds their sums at the end. */
static void streamed(void *context, int thread, int threads)
{
    const Product *p = context;
    const int64_t across = ceil_div(p->n, p->group), blocks = ceil_div(p->k, KC);
    const int64_t size = p->m * p->n;
    for (int64_t t; (t = team_ticket()) < p->batch * blocks * across;) {
        int64_t item = t / across / blocks, block = t / across % blocks, j = t % across * p->group;
        stream_columns(p, item, p->packed + (item * blocks + block) * size, block * KC, j,
                       smaller(p->n, j + p->group));
    }
    team_barrier(threads);
    for (int64_t t; (t = team_ticket()) < p->batch * across;) {
        int64_t item = t / across, j = t % across * p->group, width = smaller(p->group, p->n - j);
        for (int64_t r = 0; r < p->m; r++)
            add_blocks(p, p->c + item * size + r * p->n + j,
                       p->packed + item * blocks * size + r * p->n + j, size, width);
        epilogue(p, 0, p->m, j, j + width);
    }
}

static double streamed_sums(const Product *p)
{
    return (double)p->batch * (double)ceil_div(p->k, KC) * (double)p->m * (double)p->n;
}

static int run_streamed(Product *p, int threads)
{
    const int64_t tickets = p->batch * ceil_div(p->k, KC);
    p->packed = scratch(SHARED, (size_t)streamed_sums(p) * sizeof(float));
    p->group = larger(STREAMED_LEAST, ceil_div(p->n, ceil_div(threads, tickets)));
    p->group = ceil_div(p->group, 64) * 64;
    if (!p->packed)
        return -1;
    team_run(streamed, p, threads);
    return 0;
}

/* -- which path ------------------------------------------------------------------------------------ */

/* Columns of a ticket: a multiple of `unit`, at most `most`, and four tickets for each thread. */
static int64_t columns_per_ticket(const Product *p, int64_t unit, int64_t most, int threads)
{
    int64_t wanted = ceil_div(4 * threads, p->batch);
    int64_t columns = ceil_div(ceil_div(p->n, wanted), unit) * unit;
    return smaller(columns, most);
}

static int run_blocked(Product *p, int threads)
{
    if (lay_out_panel(p, threads))
        return -1;
    Product item = *p;
    for (int64_t i = 0; i < p->batch; i++) {
        item.a = a_of(p, i);
        item.b = b_of(p, i);
        item.c = p->c + i * p->m * p->n;
        team_run(blocked, &item, threads);
    }
    return 0;
}

static int run_product(Product *p, int bf16)
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
    p->cells = bf16 ? kernels->bf16
                    : (Cells){1, kernels->tile, kernels->pack, kernels->transpose};
    p->depth = ceil_div(p->k, p->cells.together);
    team_enter();
    const int threads = threads_for(work * (double)p->batch);
    int status = 0;
    if (bf16) { /* operands are rounded where they are packed */
        status = run_blocked(p, threads);
    } else if (p->m <= STREAMED_ROWS && p->b_col == 1 && streamed_sums(p) <= STREAMED_MOST) {
        status = run_streamed(p, threads);
    } else if (p->m > 3 * MR && work > WORTH_PACKING) {
        status = run_blocked(p, threads);
    } else {
        p->group = columns_per_ticket(p, NR, THIN_COLS * NR, threads);
        status = scratch_for_threads(threads, KC * (size_t)NR * sizeof(float));
        if (!status)
            team_run(thin, p, threads);
    }
    team_leave();
    return status;
}

int minifm_matmul(float *c, const float *a, const float *b, int64_t batch, int64_t m, int64_t n,
                  int64_t k, const int64_t *a_offsets, const int64_t *b_offsets, int64_t a_row,
                  int64_t a_k, int64_t b_k, int64_t b_col, int accumulate, int bf16)
{
    Product p = {.c = c, .a = a, .b = b, .batch = batch, .m = m, .n = n, .k = k,
                 .a_offsets = a_offsets, .b_offsets = b_offsets, .a_row = a_row, .a_k = a_k,
                 .b_k = b_k, .b_col = b_col, .accumulate = accumulate};
    return run_product(&p, bf16);
}

int minifm_linear(float *y, float *z, const float *x, const float *w, const float *bias,
                  const float *residual, int64_t m, int64_t n, int64_t k, int64_t x_row,
                  int64_t x_k, int64_t w_k, int64_t w_col, int function, int bf16)
{
    /* x w goes to z and the epilogue from there to y; with the identity they are one array */
    Product p = {.c = z, .a = x, .b = w, .batch = 1, .m = m, .n = n, .k = k, .a_row = x_row,
                 .a_k = x_k, .b_k = w_k, .b_col = w_col, .y = y, .bias = bias,
                 .residual = residual, .function = function};
    if (!bias && !residual && function == MINIFM_IDENTITY)
        p.y = NULL;
    return run_product(&p, bf16);
}
