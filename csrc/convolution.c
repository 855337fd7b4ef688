/* Convolutions of images, and their adjoints by the image and by the weights.
 *
 * Each is a matrix product in which one factor has the windows of the images as its columns. That
 * matrix, R S times as large as the images, is never stored: its rows are gathered, a few at a
 * time, straight into what the tile reads (Chetlur et al., "cuDNN: efficient primitives for deep
 * learning", 2014). Gathering is cheap because the images are first laid out so that neighbouring
 * windows have neighbouring elements: see Windows.
 *
 * The law of summation of gemm.c holds, with K the elements of a window, inputs x R x S. The
 * adjoint by the weights sums over all positions: in chunks that follow from the sizes alone, and
 * the chunks' sums in order.
 *
 * Letters as in backends/reference/convolution.py: windows of R x S, P x Q of them in an image.
 */
#include "gemm.h"
#include "isa.h"
#include "minifm.h"
#include "sizes.h"
#include "threads.h"

#include <string.h>

enum {
    STAGED = 1 << 21,       /* numbers laid out at a time: bounds the scratch, part of results */
    SLIVERS = 8,            /* of a ticket */
    PARTIALS = 1 << 20,     /* numbers in the chunks' sums, part of results */
    MOST_CHUNKS = 64,
    GATHERED = 48,          /* elements of windows at a time */
    SLIVER_ROOM = KC * MAX_TILE_COLS + CACHE_LINE,
};

/* -- windows ------------------------------------------------------------------------------------ */

/* The windows of images [batch, channels, height, width]. They are read from a layout [images,
 * channels, tall, phases, wide] that has the zeros around the image, and columns that are `right`
 * apart side by side; or from the images themselves where those serve. */
typedef struct {
    const float *x;
    int64_t channels, height, width;
    int64_t R, S, P, Q, down, right;
    int64_t above, left;                /* rows and columns of zeros; negative: of x left out */
    int64_t tall, phases, wide;
    int in_place;
    int64_t start, pitch, plane;        /* of the first window, a row, a channel: distances */
    int64_t images;                     /* laid out at a time */
    float *room;
    int64_t *places;                    /* of the elements of a window, from its first */
} Windows;

static int64_t elements(const Windows *s, int64_t inputs) { return inputs * s->R * s->S; }

static void choose_layout(Windows *s, int64_t batch)
{
    s->tall = (s->P - 1) * s->down + s->R;
    s->phases = smaller(s->right, larger(s->S, 1));
    s->wide = s->Q + (s->S > 0 ? (s->S - 1) / s->right : 0);
    s->in_place = s->right == 1 && s->above <= 0 && s->left <= 0 &&
                  s->tall - s->above <= s->height && s->wide - s->left <= s->width;
    s->start = s->in_place ? -s->above * s->width - s->left : 0;
    s->pitch = s->in_place ? s->width : s->phases * s->wide;
    s->plane = s->in_place ? s->height * s->width : s->tall * s->pitch;
    s->images = smaller(batch, larger(1, STAGED / larger(1, s->channels * s->plane)));
}

/* Room for `extra` bytes, which begin the block, for the places and for the layout. */
static char *reserve(Windows *s, size_t extra, int64_t inputs)
{
    const int64_t numbers = s->in_place ? 0 : s->images * s->channels * s->plane;
    const size_t places = (size_t)elements(s, inputs) * sizeof *s->places;
    extra = (extra / CACHE_LINE + 1) * CACHE_LINE;
    char *block = scratch(SHARED, extra + places + (size_t)numbers * sizeof *s->room);
    if (!block)
        return NULL;
    s->places = (int64_t *)(block + extra);
    s->room = (float *)(block + extra + places);
    int64_t *place = s->places;
    for (int64_t i = 0; i < inputs; i++)
        for (int64_t r = 0; r < s->R; r++)
            for (int64_t t = 0; t < s->S; t++)
                *place++ = i * s->plane + r * s->pitch + t % s->right * s->wide + t / s->right;
    return block;
}

/* One channel of the layout. */
static void lay_out_plane(const Windows *s, float *out, const float *x)
{
    for (int64_t h = 0; h < s->tall; h++)
        for (int64_t phase = 0; phase < s->phases; phase++, out += s->wide) {
            const int64_t from = h - s->above, lacking = s->left - phase;
            if (from < 0 || from >= s->height) {
                memset(out, 0, (size_t)s->wide * sizeof *out);
                continue;
            }
            const float *row = x + from * s->width - lacking;
            int64_t begin = lacking > 0 ? ceil_div(lacking, s->right) : 0;
            int64_t end = larger(0, ceil_div(s->width + lacking, s->right));
            end = smaller(end, s->wide);
            begin = smaller(begin, end);
            memset(out, 0, (size_t)begin * sizeof *out);
            if (s->right == 1)
                memcpy(out + begin, row + begin, (size_t)(end - begin) * sizeof *out);
            else
                for (int64_t i = begin; i < end; i++)
                    out[i] = row[i * s->right];
            memset(out + end, 0, (size_t)(s->wide - end) * sizeof *out);
        }
}

static int64_t planes_to_lay_out(const Windows *s, int64_t images)
{
    return s->in_place ? 0 : images * s->channels;
}

/* Where the windows of group `group` begin, of the images laid out, the first being image b. */
static const float *windows_of(const Windows *s, int64_t b, int64_t group, int64_t inputs)
{
    const float *images = s->in_place ? s->x + b * s->channels * s->plane : s->room;
    return images + s->start + group * inputs * s->plane;
}

/* n neighbouring positions, counted over the images laid out, as runs of neighbours in memory:
 * (first, length). Returns how many. */
static int64_t find_runs(const Windows *s, int64_t position, int64_t n, int64_t (*runs)[2])
{
    const int64_t of_image = s->P * s->Q;
    int64_t image = position / of_image, p = position % of_image / s->Q, q = position % s->Q;
    int64_t count = 0;
    while (n > 0) {
        int64_t first = image * s->channels * s->plane + p * s->down * s->pitch + q;
        int64_t length = smaller(n, s->Q - q);
        if (count && runs[count - 1][0] + runs[count - 1][1] == first) {
            runs[count - 1][1] += length;
        } else {
            runs[count][0] = first;
            runs[count++][1] = length;
        }
        n -= length;
        q = 0;
        if (++p == s->P) {
            p = 0;
            image++;
        }
    }
    return count;
}

/* -- convolution ---------------------------------------------------------------------------------- */

/* y[b, o, p, q] = bias[o] + sum_irs w[o, i, r, s] window[b, i, p, q][r, s], group by group. Windows
 * and y may be any subset of the rows and columns: the adjoint by the image takes those of each
 * residue by the stride in turn. */
typedef struct {
    Windows in;
    float *y;               /* [batch, groups outputs, height, width] */
    int64_t height, width, first, row_step, col_step;   /* y's position (0, 0), from row to row */
    const float *w, *bias;
    int64_t w_group, w_output, w_input, w_row, w_col;
    int64_t batch, groups, inputs, outputs;     /* channels of one group */
    float *packed;          /* w: for each group and each block of k, slivers [depth, MR] */
    int64_t slivers, rows;  /* of a ticket */
} Convolution;

/* Positions of one image, one for each column of a tile. */
typedef struct {
    int64_t image, first, width;
    int64_t runs[MAX_TILE_COLS][2], count;
} Sliver;

static int64_t padded_outputs(const Convolution *c)
{
    return ceil_div(c->outputs, kernels->tile_rows) * kernels->tile_rows;
}

/* The sliver of outputs o ... of a group, at k0 of K. */
static float *packed_at(const Convolution *c, int64_t group, int64_t o, int64_t k0)
{
    const int64_t K = elements(&c->in, c->inputs), padded = padded_outputs(c);
    return c->packed + group * padded * K + k0 * padded + o * smaller(KC, K - k0);
}

static void pack_weights(const Convolution *c, int64_t group, int64_t o)
{
    const Windows *s = &c->in;
    const int64_t MR = kernels->tile_rows, K = elements(s, c->inputs);
    const int64_t rows = smaller(MR, c->outputs - o);
    const float *w = c->w + group * c->w_group + o * c->w_output;
    if (c->w_col == 1 && c->w_row == s->S && c->w_input == s->R * s->S) {
        for (int64_t k = 0; k < K; k += KC)
            kernels->transpose(packed_at(c, group, o, k), w + k, c->w_output,
                               smaller(KC, K - k), (int)rows, (int)MR);
        return;
    }
    float *out = NULL;
    for (int64_t i = 0, k = 0; i < c->inputs; i++)
        for (int64_t r = 0; r < s->R; r++)
            for (int64_t t = 0; t < s->S; t++, k++, out += MR) {
                const float *from = w + i * c->w_input + r * c->w_row + t * c->w_col;
                if (k % KC == 0)
                    out = packed_at(c, group, o, k);
                for (int64_t row = 0; row < MR; row++)
                    out[row] = row < rows ? from[row * c->w_output] : 0;
            }
}

static void prepare(const Convolution *c, int64_t b, int64_t images)
{
    const Windows *s = &c->in;
    const int64_t MR = kernels->tile_rows, down = ceil_div(c->outputs, MR);
    const int64_t slivers = b == 0 ? c->groups * down : 0;
    const int64_t total = slivers + planes_to_lay_out(s, images);
    for (int64_t t; (t = team_ticket()) < total;) {
        int64_t plane = t - slivers;
        if (t < slivers)
            pack_weights(c, t / down, t % down * MR);
        else
            lay_out_plane(s, s->room + plane * s->plane,
                          s->x + (b * s->channels + plane) * s->height * s->width);
    }
}

static float *plane_of(const Convolution *c, int64_t image, int64_t group, int64_t o)
{
    return c->y + ((image * c->groups + group) * c->outputs + o) * c->height * c->width;
}

static int is_dense(const Convolution *c)
{
    return c->row_step == 1 && c->col_step == 1 && c->in.Q == c->width;
}

/* A tile whose columns lie apart in y. */
static void scatter_tile(const Convolution *c, float *y, const Sliver *at, const float *a,
                         const float *b, int64_t depth, int64_t rows, int accumulate)
{
    const int64_t NR = kernels->tile_cols, Q = c->in.Q;
    float full[MAX_TILE];
    kernels->tile(full, a, b, NR, depth, 1, kernels->tile_rows, NR, (int)rows, 0);
    for (int64_t r = 0; r < rows; r++, y += c->height * c->width) {
        int64_t p = at->first / Q, q = at->first % Q;
        for (int64_t j = 0; j < at->width; j++) {
            float *out = y + c->first + p * c->row_step * c->width + q * c->col_step;
            *out = accumulate ? *out + full[r * NR + j] : full[r * NR + j];
            if (++q == Q) {
                q = 0;
                p++;
            }
        }
    }
}

static void add_bias(const Convolution *c, int64_t b, int64_t group, int64_t o, int64_t o_end,
                     const Sliver *at, int64_t count)
{
    for (int64_t i = 0; c->bias && i < count; i++)
        for (int64_t row = o; row < o_end; row++) {
            float *y = plane_of(c, b + at[i].image, group, row);
            float bias = c->bias[group * c->outputs + row];
            if (is_dense(c)) {
                y += at[i].first;
                kernels->binary(y, y, &bias, at[i].width, 1, 0, MINIFM_ADD);
                continue;
            }
            for (int64_t j = at[i].first; j < at[i].first + at[i].width; j++)
                y[c->first + j / c->in.Q * c->row_step * c->width + j % c->in.Q * c->col_step] +=
                    bias;
        }
}

/* Elements k ... of the windows at `count` slivers; a few of them at a time, so that what they
 * share in the layout is in the L1 cache. */
static void gather_slivers(const Convolution *c, float *room, const float *windows, int64_t k,
                           int64_t depth, const Sliver *at, int64_t count)
{
    const int64_t NR = kernels->tile_cols;
    for (int64_t row = 0; row < depth; row += GATHERED)
        for (int64_t i = 0; i < count; i++)
            kernels->gather(room + i * SLIVER_ROOM + row * NR, windows, c->in.places + k + row,
                            at[i].runs[0], NR, smaller(GATHERED, depth - row), at[i].count);
}

/* One ticket: outputs o ... o_end of a group, at `count` slivers of the images from b on. */
static void convolve_block(const Convolution *c, int64_t b, int64_t group, int64_t o,
                           int64_t o_end, const Sliver *at, int64_t count, float *room)
{
    const int64_t MR = kernels->tile_rows, NR = kernels->tile_cols;
    const int64_t K = elements(&c->in, c->inputs);
    const float *windows = windows_of(&c->in, b, group, c->inputs);
    for (int64_t k = 0; k == 0 || k < K; k += KC) {
        const int64_t depth = smaller(KC, K - k);
        gather_slivers(c, room, windows, k, depth, at, count);
        for (int64_t row = o; row < o_end; row += MR)
            for (int64_t i = 0; i < count; i++) {
                const float *a = packed_at(c, group, row, k), *sliver = room + i * SLIVER_ROOM;
                float *y = plane_of(c, b + at[i].image, group, row);
                int64_t rows = smaller(MR, o_end - row);
                if (is_dense(c))
                    one_tile(kernels->tile, y + at[i].first, a, sliver, c->height * c->width,
                             depth, 1, MR, NR, rows, at[i].width, k > 0);
                else
                    scatter_tile(c, y, at + i, a, sliver, depth, rows, k > 0);
            }
    }
    add_bias(c, b, group, o, o_end, at, count);
}

static void convolve_slivers(const Convolution *c, int64_t b, int64_t images, float *room)
{
    const int64_t NR = kernels->tile_cols, positions = c->in.P * c->in.Q;
    const int64_t of_image = ceil_div(positions, NR), slivers = images * of_image;
    const int64_t across = ceil_div(slivers, c->slivers), down = ceil_div(c->outputs, c->rows);
    Sliver at[SLIVERS];
    for (int64_t t; (t = team_ticket()) < c->groups * down * across;) {
        int64_t group = t / (down * across), o = t / across % down * c->rows;
        int64_t first = t % across * c->slivers, count = smaller(c->slivers, slivers - first);
        for (int64_t i = 0; i < count; i++) {
            int64_t begin = (first + i) % of_image * NR;
            at[i].image = (first + i) / of_image;
            at[i].first = begin;
            at[i].width = smaller(NR, positions - begin);
            at[i].count = find_runs(&c->in, at[i].image * positions + begin, at[i].width,
                                    at[i].runs);
        }
        convolve_block(c, b, group, o, smaller(c->outputs, o + c->rows), at, count, room);
    }
}

static void convolve_images(void *context, int thread, int threads)
{
    const Convolution *c = context;
    for (int64_t b = 0; b < c->batch; b += c->in.images) {
        int64_t images = smaller(c->in.images, c->batch - b);
        prepare(c, b, images);
        team_barrier(threads);
        convolve_slivers(c, b, images, scratch(PRIVATE + thread, 0));
        team_barrier(threads);
    }
}

/* Slivers and rows of a ticket: as many slivers as stay in the L2 cache, fewer where that leaves
 * threads without work; then fewer rows, each group of which gathers the windows anew. */
static void choose_tickets(Convolution *c, int threads)
{
    const int64_t MR = kernels->tile_rows, wanted = 4 * threads;
    const int64_t slivers = c->in.images * ceil_div(c->in.P * c->in.Q, kernels->tile_cols);
    c->rows = padded_outputs(c);
    c->slivers = larger(1, smaller(SLIVERS, c->groups * slivers / wanted));
    while (c->rows > 8 * MR &&
           c->groups * ceil_div(slivers, c->slivers) * ceil_div(c->outputs, c->rows) < wanted)
        c->rows = ceil_div(c->rows, 2 * MR) * MR;
}

static int run_convolution(Convolution *c)
{
    const int64_t K = elements(&c->in, c->inputs);
    const double outputs = (double)c->batch * c->groups * c->outputs * c->in.P * c->in.Q;
    if (outputs == 0)
        return 0;
    choose_layout(&c->in, c->batch);
    c->in.in_place |= K == 0;
    team_enter();
    const int threads = threads_for(outputs * (double)K);
    choose_tickets(c, threads);
    size_t packed = (size_t)(c->groups * padded_outputs(c) * K) * sizeof(float);
    size_t room = (size_t)(c->slivers * SLIVER_ROOM) * sizeof(float);
    c->packed = (float *)reserve(&c->in, packed, c->inputs);
    int status = c->packed ? scratch_for_threads(threads, room) : -1;
    if (!status)
        team_run(convolve_images, c, threads);
    team_leave();
    return status;
}

/* x in the windows of a convolution as Python describes it. */
static Windows image_windows(const float *x, const minifm_convolution *s)
{
    return (Windows){
        .x = x, .channels = s->groups * s->inputs, .height = s->image[0], .width = s->image[1],
        .R = s->window[0], .S = s->window[1], .P = s->result[0], .Q = s->result[1],
        .down = s->stride[0], .right = s->stride[1], .above = s->padding[0], .left = s->padding[1]};
}

int minifm_convolve(float *y, const float *x, const float *w, const float *bias,
                    const minifm_convolution *s)
{
    const int64_t R = s->window[0], S = s->window[1];
    Convolution c = {
        .in = image_windows(x, s),
        .y = y, .height = s->result[0], .width = s->result[1], .row_step = 1, .col_step = 1,
        .w = w, .bias = bias, .w_group = s->outputs * s->inputs * R * S,
        .w_output = s->inputs * R * S, .w_input = R * S, .w_row = S, .w_col = 1,
        .batch = s->batch, .groups = s->groups, .inputs = s->inputs, .outputs = s->outputs};
    return run_convolution(&c);
}

/* -- the adjoint by the image: convolutions with the window turned around -------------------------- */

/* Along one axis, the elements h = residue, residue + stride, ... of the image: which of the
 * window's elements ever meet them, and how many zeros dy then needs before it. */
typedef struct {
    int64_t count;      /* of the image's elements */
    int64_t taps, last; /* of the window's: last, last - stride, ... */
    int64_t zeros;
} Residue;

static Residue residue_of(const minifm_convolution *s, int axis, int64_t residue)
{
    const int64_t stride = s->stride[axis], window = s->window[axis];
    const int64_t from = residue + s->padding[axis], first = from % stride;
    Residue found = {.count = larger(0, ceil_div(s->image[axis] - residue, stride)),
                     .taps = larger(0, ceil_div(window - first, stride))};
    found.last = first + stride * (found.taps - 1);
    found.zeros = found.taps - 1 - from / stride;
    return found;
}

int minifm_convolve_image_adjoint(float *dx, const float *dy, const float *w, const float *bias,
                                  const minifm_convolution *s)
{
    const int64_t R = s->window[0], S = s->window[1], down = s->stride[0], right = s->stride[1];
    int status = 0;
    for (int64_t phase = 0; phase < down * right && !status; phase++) {
        Residue row = residue_of(s, 0, phase / right), col = residue_of(s, 1, phase % right);
        int64_t turned = row.taps && col.taps ? row.last * S + col.last : 0;
        Convolution c = {
            .in = {.x = dy, .channels = s->groups * s->outputs, .height = s->result[0],
                   .width = s->result[1], .R = row.taps, .S = col.taps, .P = row.count,
                   .Q = col.count, .down = 1, .right = 1, .above = row.zeros, .left = col.zeros},
            .y = dx, .height = s->image[0], .width = s->image[1],
            .first = phase / right * s->image[1] + phase % right, .row_step = down,
            .col_step = right,
            .w = w + turned, .bias = bias, .w_group = s->outputs * s->inputs * R * S,
            .w_output = R * S, .w_input = s->inputs * R * S, .w_row = -down * S, .w_col = -right,
            .batch = s->batch, .groups = s->groups, .inputs = s->outputs, .outputs = s->inputs};
        status = run_convolution(&c);
    }
    return status;
}

/* -- the adjoint by the weights: a product over all positions --------------------------------------- */

typedef struct {
    Windows in;
    float *dw;              /* [groups outputs, K] */
    const float *dy;        /* [batch, groups outputs, P, Q] */
    float *partials;        /* [chunks, groups, K, outputs] */
    int64_t batch, groups, inputs, outputs, K;
    int64_t chunk, chunks;  /* positions of one; their number */
    int64_t rows, cols;     /* of a ticket: of K, of outputs */
} WeightAdjoint;

static float *partial_at(const WeightAdjoint *c, int64_t chunk, int64_t group, int64_t k)
{
    return c->partials + ((chunk * c->groups + group) * c->K + k) * c->outputs;
}

/* Slivers [depth, NR] of dy at positions `first` ... of the images from b on, outputs o ... o_end. */
static void pack_gradient(const WeightAdjoint *c, float *out, int64_t b, int64_t group, int64_t o,
                          int64_t o_end, int64_t first, int64_t depth)
{
    const int64_t NR = kernels->tile_cols, positions = c->in.P * c->in.Q;
    for (; o < o_end; o += NR)
        for (int64_t done = 0, n; done < depth; done += n, out += n * NR) {
            int64_t image = (first + done) / positions, at = (first + done) % positions;
            n = smaller(depth - done, positions - at);
            const float *dy = c->dy + (((b + image) * c->groups + group) * c->outputs + o) *
                              positions + at;
            kernels->transpose(out, dy, positions, n, (int)smaller(NR, c->outputs - o), (int)NR);
        }
}

/* One ticket: rows k ... k_end and outputs o ... o_end of a chunk's sum. */
static void sum_chunk(const WeightAdjoint *c, int64_t b, int64_t images, int64_t chunk,
                      int64_t group, int64_t k, int64_t o, float *gradient)
{
    const int64_t MR = kernels->tile_rows, NR = kernels->tile_cols;
    const int64_t k_end = smaller(c->K, k + c->rows), o_end = smaller(c->outputs, o + c->cols);
    const int64_t end = smaller((chunk + 1) * c->chunk, images * c->in.P * c->in.Q);
    const float *windows = windows_of(&c->in, b, group, c->inputs);
    float *window_rows = gradient + KC * ceil_div(c->cols, NR) * NR;
    int64_t runs[KC][2];
    for (int64_t first = chunk * c->chunk; first < end; first += KC) {
        const int64_t depth = smaller(KC, end - first);
        const int64_t count = find_runs(&c->in, first, depth, runs);
        const int accumulate = b > 0 || first > chunk * c->chunk;
        pack_gradient(c, gradient, b, group, o, o_end, first, depth);
        for (int64_t row = k; row < k_end; row += MR) {
            int64_t rows = smaller(MR, k_end - row);
            kernels->gather(window_rows, windows, c->in.places + row, runs[0], depth, rows, count);
            for (int64_t j = o; j < o_end; j += NR)
                one_tile(kernels->tile, partial_at(c, chunk, group, row) + j, window_rows,
                         gradient + (j - o) * depth, c->outputs, depth, depth, 1, NR, rows,
                         o_end - j, accumulate);
        }
    }
}

/* dw[o, k] = sum[k, o] for k < rows. */
static void turn_around(const WeightAdjoint *c, float *dw, const float *sum, int64_t rows,
                        float *room)
{
    const int64_t NR = kernels->tile_cols;
    for (int64_t k = 0; k < rows; k += NR)
        for (int64_t o = 0; o < c->outputs; o += KC) {
            const int64_t width = smaller(NR, rows - k), n = smaller(KC, c->outputs - o);
            kernels->transpose(room, sum + k * c->outputs + o, c->outputs, n, (int)width, (int)NR);
            for (int64_t i = 0; i < n; i++)
                memcpy(dw + (o + i) * c->K + k, room + i * NR, (size_t)width * sizeof *dw);
        }
}

/* dw = the sum of the chunks' sums, turned around; a ticket is `rows` of K in one group. */
static void add_chunks(const WeightAdjoint *c, float *room)
{
    const int64_t across = ceil_div(c->K, c->rows);
    for (int64_t t; (t = team_ticket()) < c->groups * across;) {
        int64_t group = t / across, k = t % across * c->rows, rows = smaller(c->rows, c->K - k);
        float *sum = partial_at(c, 0, group, k);
        for (int64_t chunk = 1; chunk < c->chunks; chunk++)
            kernels->binary(sum, sum, partial_at(c, chunk, group, k), rows * c->outputs, 1, 1,
                            MINIFM_ADD);
        turn_around(c, c->dw + group * c->outputs * c->K + k, sum, rows, room);
    }
}

static void sum_positions(void *context, int thread, int threads)
{
    const WeightAdjoint *c = context;
    const Windows *s = &c->in;
    const int64_t down = ceil_div(c->K, c->rows), across = ceil_div(c->outputs, c->cols);
    float *room = scratch(PRIVATE + thread, 0);
    for (int64_t b = 0; b < c->batch; b += s->images) {
        const int64_t images = smaller(s->images, c->batch - b);
        const int64_t chunks = ceil_div(images * s->P * s->Q, c->chunk);
        const int64_t blocks = down * across, total = c->groups * blocks * chunks;
        for (int64_t t; (t = team_ticket()) < planes_to_lay_out(s, images);)
            lay_out_plane(s, s->room + t * s->plane,
                          s->x + (b * s->channels + t) * s->height * s->width);
        team_barrier(threads);
        for (int64_t t; (t = team_ticket()) < total;)
            sum_chunk(c, b, images, t / blocks % chunks, t / (blocks * chunks),
                      t % down * c->rows, t / down % across * c->cols, room);
        team_barrier(threads);
    }
    add_chunks(c, room);
}

/* Chunks by the sizes alone; rows of a ticket by the number of threads, which no sum notices. */
static void choose_chunks(WeightAdjoint *c, int threads)
{
    const int64_t MR = kernels->tile_rows, NR = kernels->tile_cols;
    const int64_t positions = c->in.images * c->in.P * c->in.Q;
    const int64_t most = larger(1, smaller(MOST_CHUNKS, PARTIALS / (c->groups * c->K * c->outputs)));
    c->chunk = ceil_div(larger(ceil_div(positions, most), 2 * KC), KC) * KC;
    c->chunks = ceil_div(positions, c->chunk);
    c->cols = smaller(SLIVERS * NR, c->outputs);
    c->rows = ceil_div(c->K, MR) * MR;
    while (c->rows > 16 * MR && c->chunks * c->groups * ceil_div(c->outputs, c->cols) *
                                        ceil_div(c->K, c->rows) < 8 * threads)
        c->rows = ceil_div(c->rows, 2 * MR) * MR;
}

static int run_weights(WeightAdjoint *c)
{
    const int64_t MR = kernels->tile_rows, NR = kernels->tile_cols;
    const double work = (double)c->batch * c->in.P * c->in.Q * c->groups * c->outputs * c->K;
    if (c->groups * c->outputs * c->K == 0)
        return 0;
    if (work == 0) { /* an empty sum */
        memset(c->dw, 0, (size_t)(c->groups * c->outputs * c->K) * sizeof *c->dw);
        return 0;
    }
    choose_layout(&c->in, c->batch);
    team_enter();
    const int threads = threads_for(work);
    choose_chunks(c, threads);
    size_t partials = (size_t)(c->chunks * c->groups * c->K * c->outputs) * sizeof(float);
    size_t room = (size_t)(KC * (ceil_div(c->cols, NR) * NR + MR) + MAX_TILE_COLS) * sizeof(float);
    c->partials = (float *)reserve(&c->in, partials, c->inputs);
    int status = c->partials ? scratch_for_threads(threads, room) : -1;
    if (!status)
        team_run(sum_positions, c, threads);
    team_leave();
    return status;
}

int minifm_convolve_weight_adjoint(float *dw, const float *dy, const float *x,
                                   const minifm_convolution *s)
{
    WeightAdjoint c = {
        .in = image_windows(x, s),
        .dw = dw, .dy = dy, .batch = s->batch, .groups = s->groups, .inputs = s->inputs,
        .outputs = s->outputs, .K = s->inputs * s->window[0] * s->window[1]};
    return run_weights(&c);
}
