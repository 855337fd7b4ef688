/* Counter-based noise: Philox4x64-10 (Salmon et al. 2011), numbered as numpy.random.Philox does:
 * words 4 i ... 4 i + 3 of the stream are the block whose counter is i + 1.
 */
#include "minifm.h"
#include "threads.h"

#include <math.h>

enum { BLOCKS = 1024 }; /* of four words, in a range */

typedef struct {
    uint64_t w[4];
} Block;

static Block philox(uint64_t counter, uint64_t key0, uint64_t key1)
{
    uint64_t c0 = counter, c1 = 0, c2 = 0, c3 = 0;
    for (int round = 0; round < 10; round++) {
        unsigned __int128 p0 = (unsigned __int128)c0 * 0xD2E7470EE14C6C93u;
        unsigned __int128 p1 = (unsigned __int128)c2 * 0xCA5A826395121157u;
        c0 = (uint64_t)(p1 >> 64) ^ c1 ^ key0;
        c2 = (uint64_t)(p0 >> 64) ^ c3 ^ key1;
        c1 = (uint64_t)p1;
        c3 = (uint64_t)p0;
        key0 += 0x9E3779B97F4A7C15u; /* the golden ratio */
        key1 += 0xBB67AE8584CAA73Bu; /* sqrt 3 - 1 */
    }
    return (Block){{c0, c1, c2, c3}};
}

typedef struct {
    void *out;
    const float *x;
    int64_t n;
    uint64_t key0, key1;
    float probability, scale;
} Noise;

/* [0, 1) from the top 24, or 53, bits of a word: exact. */
static float uniform(uint64_t word) { return (float)(word >> 40) * 0x1p-24f; }
static double uniform_wide(uint64_t word) { return (double)(word >> 11) * 0x1p-53; }

/* For the words of blocks begin ... end - 1: word j of `block`, number i of the stream. */
#define EACH_WORD                                                                          \
    for (int64_t b = begin; b < end; b++)                                                  \
        for (Block block = philox((uint64_t)b + 1, s->key0, s->key1), *one = &block; one; \
             one = NULL)                                                                   \
            for (int64_t j = 0, i = 4 * b; j < 4 && i < s->n; j++, i++)

static void bits_range(void *context, int64_t begin, int64_t end)
{
    const Noise *s = context;
    EACH_WORD ((uint64_t *)s->out)[i] = block.w[j];
}

static void uniform_range(void *context, int64_t begin, int64_t end)
{
    const Noise *s = context;
    EACH_WORD ((float *)s->out)[i] = uniform(block.w[j]);
}

static void dropout_range(void *context, int64_t begin, int64_t end)
{
    const Noise *s = context;
    EACH_WORD
    {
        int kept = uniform(block.w[j]) >= s->probability;
        ((float *)s->out)[i] = kept ? s->x[i] * s->scale : 0;
    }
}

/* Box & Muller (1958): words 2 i and 2 i + 1 make numbers 2 i and 2 i + 1. */
static void normal_range(void *context, int64_t begin, int64_t end)
{
    const Noise *s = context;
    EACH_WORD
    {
        double radius = sqrt(-2 * log1p(-uniform_wide(block.w[j & 2])));
        double angle = 2 * 3.14159265358979323846 * uniform_wide(block.w[(j & 2) + 1]);
        ((float *)s->out)[i] = (float)(radius * (j & 1 ? sin(angle) : cos(angle)));
    }
}

static void run(RangeTask task, Noise *s)
{
    parallel_for((s->n + 3) / 4, BLOCKS, task, s);
}

void minifm_random_bits(uint64_t *out, int64_t n, uint64_t key0, uint64_t key1)
{
    run(bits_range, &(Noise){.out = out, .n = n, .key0 = key0, .key1 = key1});
}

void minifm_uniform(float *out, int64_t n, uint64_t key0, uint64_t key1)
{
    run(uniform_range, &(Noise){.out = out, .n = n, .key0 = key0, .key1 = key1});
}

void minifm_normal(float *out, int64_t n, uint64_t key0, uint64_t key1)
{
    run(normal_range, &(Noise){.out = out, .n = n, .key0 = key0, .key1 = key1});
}

void minifm_dropout(float *y, const float *x, int64_t n, uint64_t key0, uint64_t key1,
                    float probability, float scale)
{
    run(dropout_range, &(Noise){.out = y, .x = x, .n = n, .key0 = key0, .key1 = key1,
                                .probability = probability, .scale = scale});
}
