/* Counter-based noise: Philox4x64-10 (Salmon et al. 2011), numbered as numpy.random.Philox does:
 * words 4 i ... 4 i + 3 of the stream are the block whose counter is i + 1.
 */
#include "minifm.h"
#include "threads.h"

#include <math.h>
#include <string.h>

enum { WORDS = 4, ROUNDS = 10, BLOCKS = 1024 }; /* of a block, of a block, in a range */

typedef struct {
    void *out;
    const float *x;
    int64_t n;
    uint64_t keys[ROUNDS][2];
    uint64_t limit;
    float scale;
} Noise;

static inline void philox(uint64_t words[WORDS], uint64_t counter, const uint64_t keys[ROUNDS][2])
{
    uint64_t c0 = counter, c1 = 0, c2 = 0, c3 = 0;
#pragma GCC unroll 10
    for (int round = 0; round < ROUNDS; round++) {
        unsigned __int128 p0 = (unsigned __int128)c0 * 0xD2E7470EE14C6C93u;
        unsigned __int128 p1 = (unsigned __int128)c2 * 0xCA5A826395121157u;
        c0 = (uint64_t)(p1 >> 64) ^ c1 ^ keys[round][0];
        c2 = (uint64_t)(p0 >> 64) ^ c3 ^ keys[round][1];
        c1 = (uint64_t)p1;
        c3 = (uint64_t)p0;
    }
    words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

/* [0, 1) from the top 24, or 53, bits of a word: exact. */
static float uniform(uint64_t word) { return (float)(int32_t)(word >> 40) * 0x1p-24f; }
static double uniform_wide(uint64_t word) { return (double)(int64_t)(word >> 11) * 0x1p-53; }

/* For each block of the range, with its words, its first number i and how many it gives. */
#define EACH_BLOCK(words)                                                           \
    uint64_t words[WORDS];                                                          \
    for (int64_t i = WORDS * begin, count; i < WORDS * end && i < s->n; i += WORDS) \
        if (philox(words, (uint64_t)(i / WORDS) + 1, s->keys),                      \
            (count = s->n - i < WORDS ? s->n - i : WORDS))

static void bits_range(void *context, int64_t begin, int64_t end)
{
    const Noise *s = context;
    uint64_t *out = s->out;
    EACH_BLOCK(words) memcpy(out + i, words, (size_t)count * sizeof *out);
}

static void uniform_range(void *context, int64_t begin, int64_t end)
{
    const Noise *s = context;
    float *out = s->out;
    EACH_BLOCK(words)
        for (int64_t j = 0; j < count; j++)
            out[i + j] = uniform(words[j]);
}

/* No branch: which numbers are dropped is what no processor can predict. */
static void dropout_range(void *context, int64_t begin, int64_t end)
{
    const Noise *s = context;
    float *out = s->out;
    EACH_BLOCK(words)
        for (int64_t j = 0; j < count; j++) {
            float kept = s->x[i + j] * s->scale;
            uint32_t bits;
            memcpy(&bits, &kept, sizeof bits);
            bits &= -(uint32_t)(words[j] >= s->limit);
            memcpy(out + i + j, &bits, sizeof bits);
        }
}

/* Box & Muller (1958): words 2 i and 2 i + 1 make numbers 2 i and 2 i + 1. */
static void normal_range(void *context, int64_t begin, int64_t end)
{
    const Noise *s = context;
    float *out = s->out;
    EACH_BLOCK(words)
        for (int64_t j = 0; j < count; j += 2) {
            double radius = sqrt(-2 * log1p(-uniform_wide(words[j])));
            double angle = 2 * 3.14159265358979323846 * uniform_wide(words[j + 1]);
            out[i + j] = (float)(radius * cos(angle));
            if (j + 1 < count)
                out[i + j + 1] = (float)(radius * sin(angle));
        }
}

static void run(RangeTask task, Noise *s, uint64_t key0, uint64_t key1)
{
    for (int round = 0; round < ROUNDS; round++) {
        s->keys[round][0] = key0;
        s->keys[round][1] = key1;
        key0 += 0x9E3779B97F4A7C15u; /* the golden ratio */
        key1 += 0xBB67AE8584CAA73Bu; /* sqrt 3 - 1 */
    }
    parallel_for((s->n + WORDS - 1) / WORDS, BLOCKS, task, s);
}

void minifm_random_bits(uint64_t *out, int64_t n, uint64_t key0, uint64_t key1)
{
    run(bits_range, &(Noise){.out = out, .n = n}, key0, key1);
}

void minifm_uniform(float *out, int64_t n, uint64_t key0, uint64_t key1)
{
    run(uniform_range, &(Noise){.out = out, .n = n}, key0, key1);
}

void minifm_normal(float *out, int64_t n, uint64_t key0, uint64_t key1)
{
    run(normal_range, &(Noise){.out = out, .n = n}, key0, key1);
}

void minifm_dropout(float *y, const float *x, int64_t n, uint64_t key0, uint64_t key1,
                    float probability, float scale)
{
    /* uniform(word) >= probability, asked of the words themselves */
    uint64_t limit = (uint64_t)ceil((double)probability * 0x1p24) << 40;
    run(dropout_range, &(Noise){.out = y, .x = x, .n = n, .limit = limit, .scale = scale}, key0,
        key1);
}
