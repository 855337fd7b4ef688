/* Functions of one or two numbers, over contiguous arrays or, for two, any broadcast of strides. */
#include "isa.h"
#include "minifm.h"
#include "threads.h"

enum { BLOCK = 8192, MAX_DIMENSIONS = 8, GATHERED = 256 };

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

typedef struct {
    float *out;
    const float *x, *y;
    int ndim, operation;
    int64_t shape[MAX_DIMENSIONS], x_strides[MAX_DIMENSIONS], y_strides[MAX_DIMENSIONS];
} Strided;

/* x[i * stride] for i < n <= GATHERED: itself where a kernel can read it, else in `room`. */
static const float *gathered(const float *x, int64_t stride, int64_t n, float *room)
{
    if (stride == 0 || stride == 1)
        return x;
    for (int64_t i = 0; i < n; i++)
        room[i] = x[i * stride];
    return room;
}

/* out[n] = x[n] op y[n], the last dimension at some place of the others. */
static void strided_row(float *out, const float *x, const float *y, const Strided *s)
{
    const int last = s->ndim - 1;
    const int64_t n = s->shape[last], x_stride = s->x_strides[last], y_stride = s->y_strides[last];
    const int x_step = x_stride != 0, y_step = y_stride != 0;
    const int direct = (x_stride == 0 || x_stride == 1) && (y_stride == 0 || y_stride == 1);
    const int64_t block = direct ? n : GATHERED;
    float x_room[GATHERED], y_room[GATHERED];
    for (int64_t i = 0; i < n; i += block) {
        int64_t length = n - i < block ? n - i : block;
        const float *left = gathered(x + i * x_stride, x_stride, length, x_room);
        const float *right = gathered(y + i * y_stride, y_stride, length, y_room);
        if (x_step || y_step)
            kernels->binary(out + i, left, right, length, x_step, y_step, s->operation);
        else /* one number for the whole row: compute it once, then spread it */
            for (int64_t j = 0; j < length; j++)
                kernels->binary(out + i + j, left, right, 1, 1, 1, s->operation);
    }
}

static void strided_rows(void *context, int64_t begin, int64_t end)
{
    const Strided *s = context;
    for (int64_t row = begin; row < end; row++) {
        const float *x = s->x, *y = s->y;
        int64_t rest = row;
        for (int d = s->ndim - 2; d >= 0; d--) {
            int64_t i = rest % s->shape[d];
            rest /= s->shape[d];
            x += i * s->x_strides[d];
            y += i * s->y_strides[d];
        }
        strided_row(s->out + row * s->shape[s->ndim - 1], x, y, s);
    }
}

/* Merge dimensions that can be walked as one, and drop those of size 1. */
static void collapse(Strided *s, int ndim, const int64_t *shape, const int64_t *x_strides,
                     const int64_t *y_strides)
{
    int top = -1;
    for (int d = 0; d < ndim; d++) {
        if (shape[d] == 1)
            continue;
        if (top >= 0 && s->x_strides[top] == shape[d] * x_strides[d] &&
            s->y_strides[top] == shape[d] * y_strides[d]) {
            s->shape[top] *= shape[d];
        } else {
            s->shape[++top] = shape[d];
        }
        s->x_strides[top] = x_strides[d];
        s->y_strides[top] = y_strides[d];
    }
    if (top < 0) { /* a single element */
        s->shape[++top] = 1;
        s->x_strides[top] = s->y_strides[top] = 1;
    }
    s->ndim = top + 1;
}

void minifm_binary_strided(float *out, const float *x, const float *y, int ndim,
                           const int64_t *sizes_strides, int operation)
{
    Strided s = {.out = out, .x = x, .y = y, .operation = operation};
    collapse(&s, ndim, sizes_strides, sizes_strides + ndim, sizes_strides + 2 * ndim);
    int64_t rows = 1;
    for (int d = 0; d < s.ndim - 1; d++)
        rows *= s.shape[d];
    parallel_for(rows, grain_of(s.shape[s.ndim - 1]), strided_rows, &s);
}
