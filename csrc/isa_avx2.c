/* AVX2 and FMA: Haswell and Zen onwards. 8 floats a vector, a 6 x 16 tile of C. */
#include "isa.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <string.h>

#define TARGET __attribute__((target("avx2,fma")))
#define INLINE static inline __attribute__((always_inline)) TARGET

typedef __m256 vf;
typedef __m256 vm;
enum { VL = 8, MR = 6, NR = 16, PR = 6, CHAINS = 12 };

/* All ones in the first n lanes. */
INLINE __m256i first(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n < 8 ? (int)n : 8),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE vf vload(const float *p) { return _mm256_loadu_ps(p); }
INLINE void vstore(float *p, vf x) { _mm256_storeu_ps(p, x); }
INLINE vf vset(float x) { return _mm256_set1_ps(x); }
INLINE vf vload_part(const float *p, int64_t n, float fill)
{
    __m256i lanes = first(n);
    return _mm256_blendv_ps(vset(fill), _mm256_maskload_ps(p, lanes), _mm256_castsi256_ps(lanes));
}
INLINE void vstore_part(float *p, vf x, int64_t n) { _mm256_maskstore_ps(p, first(n), x); }
INLINE vf vadd(vf x, vf y) { return _mm256_add_ps(x, y); }
INLINE vf vsub(vf x, vf y) { return _mm256_sub_ps(x, y); }
INLINE vf vmul(vf x, vf y) { return _mm256_mul_ps(x, y); }
INLINE vf vdiv(vf x, vf y) { return _mm256_div_ps(x, y); }
INLINE vf vfma(vf x, vf y, vf z) { return _mm256_fmadd_ps(x, y, z); }
INLINE vf vfnma(vf x, vf y, vf z) { return _mm256_fnmadd_ps(x, y, z); }
INLINE vf vmax(vf x, vf y) { return _mm256_max_ps(x, y); } /* y where either is NaN */
INLINE vf vmin(vf x, vf y) { return _mm256_min_ps(x, y); } /* y where either is NaN */
INLINE vf vsqrt(vf x) { return _mm256_sqrt_ps(x); }
INLINE vf vabs(vf x) { return _mm256_andnot_ps(vset(-0.0f), x); }
INLINE vf vcopysign(vf x, vf sign)
{
    __m256 bit = vset(-0.0f);
    return _mm256_or_ps(_mm256_andnot_ps(bit, x), _mm256_and_ps(bit, sign));
}
INLINE vm vless(vf x, vf y) { return _mm256_cmp_ps(x, y, _CMP_LT_OQ); }
INLINE vm vless_equal(vf x, vf y) { return _mm256_cmp_ps(x, y, _CMP_LE_OQ); }
INLINE vm vequal(vf x, vf y) { return _mm256_cmp_ps(x, y, _CMP_EQ_OQ); }
INLINE int vany(vm m) { return _mm256_movemask_ps(m) != 0; }
INLINE vm vtrue(const uint8_t *p)
{
    __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(wide, _mm256_setzero_si256()));
}
INLINE vm vnan(vf x) { return _mm256_cmp_ps(x, x, _CMP_UNORD_Q); }
INLINE vf vselect(vm m, vf x, vf y) { return _mm256_blendv_ps(y, x, m); }
INLINE vf vround(vf x) { return _mm256_round_ps(x, 0x08); } /* to nearest even, quietly */

INLINE vf vexponent(vf x)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 23));
}

INLINE vf vrest(vf x, vf y, vf product) { return _mm256_fmsub_ps(x, y, product); }
INLINE vf vsplit(vf x, vf *exponent)
{
    __m256i bits = _mm256_castps_si256(x);
    __m256i whole = _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(HALF_ROOT)), 23);
    *exponent = _mm256_cvtepi32_ps(whole);
    return _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(whole, 23)));
}

INLINE vf power_of_two(__m256i n)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

/* x * 2^n for integral n in -160 ... 130, in two steps so that neither factor overflows. */
INLINE vf vscale(vf x, vf n)
{
    __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    return vmul(vmul(x, power_of_two(half)), power_of_two(_mm256_sub_epi32(whole, half)));
}

INLINE vf vround_bf16(vf x)
{
    __m256i bits = _mm256_castps_si256(x), one = _mm256_set1_epi32(1);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
    __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    __m256 rounded = _mm256_castsi256_ps(_mm256_add_epi32(bits, half));
    __m256 quiet = _mm256_or_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x400000)));
    __m256 upper = _mm256_castsi256_ps(_mm256_set1_epi32((int)0xffff0000));
    return _mm256_and_ps(vselect(vnan(x), quiet, rounded), upper);
}
INLINE float vsum(vf x)
{
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
INLINE float vlargest(vf x)
{
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/* A sum of squares in double precision. */
typedef struct { __m256d low, high; } vwide;
INLINE vwide vwide_zero(void) { return (vwide){_mm256_setzero_pd(), _mm256_setzero_pd()}; }
INLINE vwide vwide_square(vwide sum, vf x)
{
    __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
    __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
    return (vwide){_mm256_fmadd_pd(low, low, sum.low), _mm256_fmadd_pd(high, high, sum.high)};
}
INLINE double vwide_total(vwide sum)
{
    __m256d four = _mm256_add_pd(sum.low, sum.high);
    __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

/* Packed weights: see isa_packed.h. */
typedef __m256i vi;
typedef __m256i vb;
typedef __m256i vn;     /* 16 bits a sum, two to a column: 8 * 2 * 15 * 127 is below 2^15 */
INLINE vf vload_bf16(const uint16_t *p)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
INLINE vi vi_zero(void) { return _mm256_setzero_si256(); }
INLINE vf vfloat(vi x) { return _mm256_cvtepi32_ps(x); }
INLINE vi vi_minus(vi x, int32_t n) { return _mm256_sub_epi32(x, _mm256_set1_epi32(n)); }
INLINE vb vbytes(const void *p) { return _mm256_loadu_si256(p); }
INLINE vb vquad(const int8_t *p)
{
    int32_t quad;
    memcpy(&quad, p, sizeof quad);
    return _mm256_set1_epi32(quad);
}
INLINE vi add_pairs(vi pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
INLINE vi vdot(vi sum, vb w, vb x)
{
    /* |w| times x with the sign of w: two products fit 16 bits, and there is no |-128|. */
    vi pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_add_epi32(sum, add_pairs(pairs));
}
INLINE vb vlow(vb x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
INLINE vb vhigh(vb x) { return vlow(_mm256_srli_epi16(x, 4)); }
INLINE vn vn_zero(void) { return _mm256_setzero_si256(); }
INLINE vn vn_add(vn sum, vb c, vb x) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(c, x)); }
INLINE vi vn_total(vn sum) { return add_pairs(sum); }
INLINE void vstore_bytes(int8_t *p, vf x)
{
    __m256i whole = _mm256_cvtps_epi32(x);
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole),
                                    _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packs_epi16(words, words));
}

/* Transpose 8 x 8 in registers: pairs, quads, then 128-bit halves. */
INLINE void transpose_square(vf x[8])
{
    __m256 t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        x[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        x[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        x[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        x[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(x[i], x[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(x[i], x[i + 4], 0x31);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        x[i] = t[i];
}

#define WORDS_256
#include "isa_kernels.h"

static int supported(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

const Kernels kernels_avx2 = {
    .name = "avx2", .supported = supported, KERNELS,
};

#endif
