/* Functions of one or more numbers, over contiguous arrays or, for more, any broadcast of strides. */
#include "isa.h"
#include "minifm.h"
#include "sizes.h"
#include "threads.h"

/* numbers of a piece, of an array at most (as NumPy has it), and gathered at once */
enum { BLOCK = 8192, MAX_DIMENSIONS = 64, GATHERED = 256, MAX_OPERANDS = 3 };

typedef struct {
    float *out;
    const float *x, *y;
    int x_step, y_step, function;
} Flat;

static void map_range(void *context, int64_t begin, int64_t end)
{
    const Flat *f = context;
    kernels->map(f->out + begin, f->x + begin, end - begin, f->function);
}

static void map_backward_range(void *context, int64_t begin, int64_t end)
{
    const Flat *f = context;
    kernels->map_backward(f->out + begin, f->y + begin, f->x + begin, end - begin, f->function);
}

static void binary_range(void *context, int64_t begin, int64_t end)
{
    const Flat *f = context;
    kernels->binary(f->out + begin, f->x + begin * f->x_step, f->y + begin * f->y_step,
                    end - begin, f->x_step, f->y_step, f->function);
}

void minifm_map(float *y, const float *x, int64_t n, int function)
{
    Flat f = {.out = y, .x = x, .function = function};
    parallel_for(n, BLOCK, map_range, &f);
}

void minifm_map_backward(float *dx, const float *dy, const float *x, int64_t n, int function)
{
    Flat f = {.out = dx, .x = x, .y = dy, .function = function};
    parallel_for(n, BLOCK, map_backward_range, &f);
}

void minifm_binary(float *out, const float *x, const float *y, int64_t n, int x_step, int y_step,
                   int operation)
{
    Flat f = {.out = out, .x = x, .y = y, .x_step = x_step, .y_step = y_step,
              .function = operation};
    parallel_for(n, 2 * BLOCK, binary_range, &f);
}

/* -- any strides --------------------------------------------------------------------------------- */

/* A walk over an array of results and the elements of its operands that belong to each. */
typedef struct Walk Walk;
struct Walk {
    char *out;
    const char *in[MAX_OPERANDS];
    int out_size, in_size[MAX_OPERANDS];            /* bytes of an element */
    int operands, operation, ndim;
    int64_t shape[MAX_DIMENSIONS], strides[MAX_OPERANDS][MAX_DIMENSIONS];
    /* a row of n results; of operand k the elements lie side by side, or it is one (step 0) */
    void (*row)(const Walk *w, char *out, const char *const *in, const int *step, int64_t n);
};

static void binary_row(const Walk *w, char *out, const char *const *in, const int *step, int64_t n)
{
    kernels->binary((float *)out, (const float *)in[0], (const float *)in[1], n, step[0], step[1],
                    w->operation);
}

static void compare_row(const Walk *w, char *out, const char *const *in, const int *step,
                        int64_t n)
{
    kernels->compare((uint8_t *)out, (const float *)in[0], (const float *)in[1], n, step[0],
                     step[1], w->operation);
}

static void choose_row(const Walk *w, char *out, const char *const *in, const int *step, int64_t n)
{
    kernels->choose((float *)out, (const uint8_t *)in[0], (const float *)in[1],
                    (const float *)in[2], n, step[1], step[2]);
}

/* room[i] = x[i * stride] for i < n <= GATHERED, bytes or floats. */
static void gather(char *room, const char *x, int64_t stride, int64_t n, int size)
{
    if (size == 1)
        for (int64_t i = 0; i < n; i++)
            room[i] = x[i * stride];
    else
        for (int64_t i = 0; i < n; i++)
            ((float *)room)[i] = ((const float *)x)[i * stride];
}

/* Results first ... first + n of the last dimension, which at[] are the beginnings of. What no
 * kernel reads in place is gathered first: bytes and a lone number where nothing else moves. */
static void walk_row(const Walk *w, char *out, const char *const *at, int64_t first, int64_t n)
{
    const int last = w->ndim - 1;
    float room[MAX_OPERANDS][GATHERED];
    const char *in[MAX_OPERANDS];
    int moved[MAX_OPERANDS], step[MAX_OPERANDS], direct = 1, still = 1;
    for (int k = 0; k < w->operands; k++) {
        const int64_t stride = w->strides[k][last];
        still &= stride == 0;
        moved[k] = stride != 1 && (stride != 0 || w->in_size[k] == 1 || (k == 1 && still));
        step[k] = moved[k] || stride;
        direct &= !moved[k];
    }
    const int64_t block = direct ? n : GATHERED;
    for (int64_t i = first; i < first + n; i += block) {
        const int64_t length = smaller(block, first + n - i);
        for (int k = 0; k < w->operands; k++) {
            const int64_t stride = w->strides[k][last];
            in[k] = at[k] + i * stride * w->in_size[k];
            if (moved[k]) {
                gather((char *)room[k], in[k], stride, length, w->in_size[k]);
                in[k] = (const char *)room[k];
            }
        }
        w->row(w, out + i * w->out_size, in, step, length);
    }
}

/* Pieces of rows, the last dimension at some place of the others. */
static void walk_pieces(void *context, int64_t begin, int64_t end)
{
    const Walk *w = context;
    const int64_t n = w->shape[w->ndim - 1], pieces = ceil_div(n, BLOCK);
    for (int64_t piece = begin; piece < end; piece++) {
        const int64_t row = piece / pieces, first = piece % pieces * BLOCK;
        const char *at[MAX_OPERANDS];
        for (int k = 0; k < w->operands; k++) {
            int64_t offset = 0, rest = row;
            for (int d = w->ndim - 2; d >= 0; rest /= w->shape[d--])
                offset += rest % w->shape[d] * w->strides[k][d];
            at[k] = w->in[k] + offset * w->in_size[k];
        }
        walk_row(w, w->out + row * n * w->out_size, at, first, smaller(BLOCK, n - first));
    }
}

/* Merge dimensions that can be walked as one, and drop those of size 1. sizes_strides is
 * shape[ndim], then the strides of each operand. */
static void collapse(Walk *w, int ndim, const int64_t *sizes_strides)
{
    int top = -1;
    for (int d = 0; d < ndim; d++) {
        const int64_t size = sizes_strides[d], *strides = sizes_strides + ndim + d;
        if (size == 1)
            continue;
        int merged = top >= 0;
        for (int k = 0; k < w->operands; k++)
            merged &= top >= 0 && w->strides[k][top] == size * strides[k * ndim];
        w->shape[top + !merged] = merged ? w->shape[top] * size : size;
        top += !merged;
        for (int k = 0; k < w->operands; k++)
            w->strides[k][top] = strides[k * ndim];
    }
    if (top < 0) { /* a single element */
        w->shape[++top] = 1;
        for (int k = 0; k < w->operands; k++)
            w->strides[k][top] = 1;
    }
    w->ndim = top + 1;
}

static void walk(Walk *w, int ndim, const int64_t *sizes_strides)
{
    collapse(w, ndim, sizes_strides);
    const int64_t n = w->shape[w->ndim - 1];
    int64_t pieces = ceil_div(n, BLOCK);
    for (int d = 0; d < w->ndim - 1; d++)
        pieces *= w->shape[d];
    parallel_for(pieces, grain_of(smaller(n, BLOCK)), walk_pieces, w);
}

void minifm_binary_strided(float *out, const float *x, const float *y, int ndim,
                           const int64_t *sizes_strides, int operation)
{
    Walk w = {.out = (char *)out, .in = {(const char *)x, (const char *)y}, .out_size = 4,
              .in_size = {4, 4}, .operands = 2, .operation = operation, .row = binary_row};
    walk(&w, ndim, sizes_strides);
}

void minifm_compare(uint8_t *out, const float *x, const float *y, int ndim,
                    const int64_t *sizes_strides, int operation)
{
    Walk w = {.out = (char *)out, .in = {(const char *)x, (const char *)y}, .out_size = 1,
              .in_size = {4, 4}, .operands = 2, .operation = operation, .row = compare_row};
    walk(&w, ndim, sizes_strides);
}

void minifm_choose(float *out, const uint8_t *condition, const float *x, const float *y, int ndim,
                   const int64_t *sizes_strides)
{
    Walk w = {.out = (char *)out,
              .in = {(const char *)condition, (const char *)x, (const char *)y}, .out_size = 4,
              .in_size = {1, 4, 4}, .operands = 3, .row = choose_row};
    walk(&w, ndim, sizes_strides);
}
