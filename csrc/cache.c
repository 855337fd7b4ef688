/* The key-value cache: new keys and values go behind those that are there, as they are or rounded
 * to bf16, which halves what each later token reads.
 */
#include "bf16.h"
#include "isa.h"
#include "minifm.h"
#include "threads.h"

typedef struct {
    void *keys, *values;
    const float *k, *v;
    const int64_t *starts, *k_strides, *v_strides;
    int64_t heads, tokens, capacity, width, value_width;
    int bf16;
} Append;

/* Rows slot ... of store[., width] = rows of x. */
static void put_rows(const Append *a, void *store, int64_t slot, int64_t width, const float *x,
                     int64_t stride)
{
    for (int64_t at = slot * width; at < (slot + a->tokens) * width; at += width, x += stride) {
        if (!a->bf16) {
            memcpy((float *)store + at, x, (size_t)width * sizeof *x);
            continue;
        }
        uint16_t *rounded = (uint16_t *)store + at;
        for (int64_t d = 0; d < width; d++)
            rounded[d] = to_bf16(x[d]);
    }
}

/* Heads begin ... end - 1, of all batches. */
static void append(void *context, int64_t begin, int64_t end)
{
    const Append *a = context;
    for (int64_t i = begin; i < end; i++) {
        const int64_t b = i / a->heads, h = i % a->heads, slot = i * a->capacity + a->starts[b];
        put_rows(a, a->keys, slot, a->width, a->k + b * a->k_strides[0] + h * a->k_strides[1],
                 a->k_strides[2]);
        put_rows(a, a->values, slot, a->value_width,
                 a->v + b * a->v_strides[0] + h * a->v_strides[1], a->v_strides[2]);
    }
}

int minifm_cache_append(void *keys, void *values, const float *k, const float *v,
                        const int64_t *starts, const int64_t *k_strides, const int64_t *v_strides,
                        int64_t batch, int64_t heads, int64_t tokens, int64_t capacity,
                        int64_t width, int64_t value_width, int bf16)
{
    for (int64_t b = 0; b < batch; b++)
        if (starts[b] < 0 || starts[b] > capacity - tokens)
            return -1;
    Append a = {keys, values, k, v, starts, k_strides, v_strides,
                heads, tokens, capacity, width, value_width, bf16};
    parallel_for(batch * heads, grain_of(tokens * (width + value_width)), append, &a);
    return 0;
}

typedef struct {
    float *y;
    const uint16_t *x;
} Widening;

static void widen(void *context, int64_t begin, int64_t end)
{
    const Widening *w = context;
    kernels->widen(w->y + begin, w->x + begin, end - begin);
}

void minifm_widen(float *y, const uint16_t *x, int64_t n)
{
    Widening w = {y, x};
    parallel_for(n, grain_of(1), widen, &w);
}
