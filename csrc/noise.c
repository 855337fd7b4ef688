/* Counter-based noise: Philox4x64-10 (Salmon et al. 2011), numbered as numpy.random.Philox does:
 * words 4 i ... 4 i + 3 of the stream are the block whose counter is i + 1.
 */
#include "isa.h"
#include "minifm.h"
#include "sizes.h"
#include "threads.h"

#include <math.h>
#include <string.h>

enum { WORDS_OF_BLOCK = 4, PIECES = 32 }; /* of PHILOX_WORDS words, in a range */

typedef struct {
    void *out;
    const float *x;
    int64_t n;
    uint64_t keys[PHILOX_ROUNDS][2];
    float probability, scale;
} Noise;

/* [0, 1) from the top 24, or 53, bits of a word: exact. */
static float uniform(uint64_t word) { return (float)(int32_t)(word >> 40) * 0x1p-24f; }
static double uniform_wide(uint64_t word) { return (double)(int64_t)(word >> 11) * 0x1p-53; }

/* For each piece of the range: its words, the number i of the first, and how many there are. */
#define EACH_PIECE(words)                                                          \
    uint64_t words[PHILOX_WORDS];                                                  \
    for (int64_t i = PHILOX_WORDS * begin, count; i < PHILOX_WORDS * end && i < s->n; \
         i += PHILOX_WORDS)                                                        \
        if (kernels->philox(words, (uint64_t)(i / WORDS_OF_BLOCK) + 1, s->keys),   \
            (count = smaller(PHILOX_WORDS, s->n - i)))

static void bits_range(void *context, int64_t begin, int64_t end)
{
    const Noise *s = context;
    uint64_t *out = s->out;
    EACH_PIECE(words) memcpy(out + i, words, (size_t)count * sizeof *out);
}

static void uniform_range(void *context, int64_t begin, int64_t end)
{
    const Noise *s = context;
    float *out = s->out;
    EACH_PIECE(words)
        for (int64_t j = 0; j < count; j++)
            out[i + j] = uniform(words[j]);
}

static void dropout_range(void *context, int64_t begin, int64_t end)
{
    const Noise *s = context;
    float *out = s->out, drawn[PHILOX_WORDS];
    EACH_PIECE(words)
    {
        for (int64_t j = 0; j < PHILOX_WORDS; j++)
            drawn[j] = uniform(words[j]);
        kernels->keep(out + i, s->x + i, drawn, count, s->probability, s->scale);
    }
}

/* Box & Muller (1958): words 2 i and 2 i + 1 make numbers 2 i and 2 i + 1. */
static void normal_range(void *context, int64_t begin, int64_t end)
{
    const Noise *s = context;
    float *out = s->out;
    EACH_PIECE(words)
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
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        s->keys[round][0] = key0;
        s->keys[round][1] = key1;
        key0 += 0x9E3779B97F4A7C15u; /* the golden ratio */
        key1 += 0xBB67AE8584CAA73Bu; /* sqrt 3 - 1 */
    }
    parallel_for(ceil_div(s->n, PHILOX_WORDS), PIECES, task, s);
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
    run(dropout_range, &(Noise){.out = y, .x = x, .n = n, .probability = probability,
                               .scale = scale},
        key0, key1);
}
