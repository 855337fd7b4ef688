/* Words of 64 bits, for Philox: VW of them a vector `vw`.
 *
 * With WORDS_256, four, whose products are put together from those of halves; else one, because a
 * processor without such vectors multiplies words whole.
 */
#ifdef WORDS_256

typedef __m256i vw;
enum { VW = 4 };

INLINE vw vw_set(uint64_t x) { return _mm256_set1_epi64x((long long)x); }
INLINE vw vw_count(uint64_t first)
{
    return _mm256_add_epi64(vw_set(first), _mm256_setr_epi64x(0, 1, 2, 3));
}
INLINE vw vw_xor(vw x, vw y) { return _mm256_xor_si256(x, y); }

/* The lower word of x y, and the higher one. */
INLINE vw vw_multiply(vw x, const uint64_t y, vw *high)
{
    vw low_y = vw_set(y & 0xffffffffu), high_y = vw_set(y >> 32), high_x = _mm256_srli_epi64(x, 32);
    vw low = _mm256_mul_epu32(x, low_y), top = _mm256_mul_epu32(high_x, high_y);
    vw left = _mm256_mul_epu32(high_x, low_y), right = _mm256_mul_epu32(x, high_y);
    left = _mm256_add_epi64(left, _mm256_srli_epi64(low, 32));
    right = _mm256_add_epi64(right, _mm256_blend_epi32(left, _mm256_setzero_si256(), 0xaa));
    top = _mm256_add_epi64(top, _mm256_srli_epi64(left, 32));
    *high = _mm256_add_epi64(top, _mm256_srli_epi64(right, 32));
    return _mm256_blend_epi32(low, _mm256_slli_epi64(right, 32), 0xaa);
}

/* out[VW][4] of c[4][VW] */
INLINE void vw_put(uint64_t *out, vw c0, vw c1, vw c2, vw c3)
{
    vw a = _mm256_unpacklo_epi64(c0, c1), b = _mm256_unpackhi_epi64(c0, c1);
    vw c = _mm256_unpacklo_epi64(c2, c3), d = _mm256_unpackhi_epi64(c2, c3);
    _mm256_storeu_si256((vw *)out, _mm256_permute2x128_si256(a, c, 0x20));
    _mm256_storeu_si256((vw *)out + 1, _mm256_permute2x128_si256(b, d, 0x20));
    _mm256_storeu_si256((vw *)out + 2, _mm256_permute2x128_si256(a, c, 0x31));
    _mm256_storeu_si256((vw *)out + 3, _mm256_permute2x128_si256(b, d, 0x31));
}

#else

typedef uint64_t vw;
enum { VW = 1 };

INLINE vw vw_set(uint64_t x) { return x; }
INLINE vw vw_count(uint64_t first) { return first; }
INLINE vw vw_xor(vw x, vw y) { return x ^ y; }
INLINE vw vw_multiply(vw x, const uint64_t y, vw *high)
{
    unsigned __int128 product = (unsigned __int128)x * y;
    *high = (uint64_t)(product >> 64);
    return (uint64_t)product;
}
INLINE void vw_put(uint64_t *out, vw c0, vw c1, vw c2, vw c3)
{
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

#endif

enum { SIDE_BY_SIDE = 4 }; /* vectors of blocks, which need not wait for each other */

/* Blocks `counter` and on of Philox4x64-10 (Salmon et al. 2011), as many as words[] holds. The
 * first two rounds meet words that are 0 or the same for all blocks. */
static TARGET void philox(uint64_t words[PHILOX_WORDS], uint64_t counter, const uint64_t (*keys)[2])
{
    const uint64_t first = 0xD2E7470EE14C6C93u, second = 0xCA5A826395121157u;
    const unsigned __int128 same = (unsigned __int128)keys[0][0] * first;
    vw c0[SIDE_BY_SIDE], c1[SIDE_BY_SIDE], c2[SIDE_BY_SIDE], c3[SIDE_BY_SIDE];
    for (int i = 0; i < PHILOX_WORDS; i += 4 * SIDE_BY_SIDE * VW) {
#pragma GCC unroll 4
        for (int k = 0; k < SIDE_BY_SIDE; k++) {
            vw high, low = vw_multiply(vw_count(counter + (uint64_t)(i / 4 + k * VW)), first, &high);
            high = vw_xor(high, vw_set(keys[0][1]));
            c1[k] = vw_multiply(high, second, &c0[k]);
            c0[k] = vw_xor(c0[k], vw_set(keys[1][0]));
            c2[k] = vw_xor(low, vw_set((uint64_t)(same >> 64) ^ keys[1][1]));
            c3[k] = vw_set((uint64_t)same);
        }
#pragma GCC unroll 8
        for (int round = 2; round < PHILOX_ROUNDS; round++)
#pragma GCC unroll 4
            for (int k = 0; k < SIDE_BY_SIDE; k++) {
                vw high, higher, low = vw_multiply(c0[k], first, &high);
                vw lower = vw_multiply(c2[k], second, &higher);
                c0[k] = vw_xor(vw_xor(higher, c1[k]), vw_set(keys[round][0]));
                c2[k] = vw_xor(vw_xor(high, c3[k]), vw_set(keys[round][1]));
                c1[k] = lower, c3[k] = low;
            }
#pragma GCC unroll 4
        for (int k = 0; k < SIDE_BY_SIDE; k++)
            vw_put(words + i + 4 * k * VW, c0[k], c1[k], c2[k], c3[k]);
    }
}

#define WORD_KERNELS .philox = philox
