/* The key-value cache: new keys and values go behind those that are there. */
#include "minifm.h"
#include "threads.h"

#include <string.h>

typedef struct {
    float *keys, *values;
    const float *k, *v;
    const int64_t *starts, *k_strides, *v_strides;
    int64_t heads, tokens, capacity, width, value_width;
} Append;

/* Heads begin ... end - 1, of all batches. */
static void append(void *context, int64_t begin, int64_t end)
{
    const Append *a = context;
    for (int64_t i = begin; i < end; i++) {
        const int64_t b = i / a->heads, h = i % a->heads, slot = i * a->capacity + a->starts[b];
        const float *k = a->k + b * a->k_strides[0] + h * a->k_strides[1];
        const float *v = a->v + b * a->v_strides[0] + h * a->v_strides[1];
        for (int64_t t = 0; t < a->tokens; t++) {
            memcpy(a->keys + (slot + t) * a->width, k + t * a->k_strides[2],
                   (size_t)a->width * sizeof *k);
            memcpy(a->values + (slot + t) * a->value_width, v + t * a->v_strides[2],
                   (size_t)a->value_width * sizeof *v);
        }
    }
}

int minifm_cache_append(float *keys, float *values, const float *k, const float *v,
                        const int64_t *starts, const int64_t *k_strides, const int64_t *v_strides,
                        int64_t batch, int64_t heads, int64_t tokens, int64_t capacity,
                        int64_t width, int64_t value_width)
{
    for (int64_t b = 0; b < batch; b++)
        if (starts[b] < 0 || starts[b] > capacity - tokens)
            return -1;
    Append a = {keys, values, k, v, starts, k_strides, v_strides,
                heads, tokens, capacity, width, value_width};
    parallel_for(batch * heads, grain_of(tokens * (width + value_width)), append, &a);
    return 0;
}
