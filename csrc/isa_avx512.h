/* The vector vocabulary of AVX-512 F, VL, DQ, BW, for the files of its instruction sets, which
 * define TARGET and the words in which they differ. 16 floats a vector, a 12 x 32 tile of C.
 */
#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline)) TARGET

typedef __m512 vf;
typedef __mmask16 vm;
enum { VL = 16, MR = 12, NR = 32, PR = 8, CHAINS = 16 };

/* Ones for the first n lanes; n may be negative. */
INLINE __mmask16 first(int64_t n)
{
    return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1);
}

INLINE vf vload(const float *p) { return _mm512_loadu_ps(p); }
INLINE void vstore(float *p, vf x) { _mm512_storeu_ps(p, x); }
INLINE vf vset(float x) { return _mm512_set1_ps(x); }
INLINE vf vload_part(const float *p, int64_t n, float fill)
{
    return _mm512_mask_loadu_ps(vset(fill), first(n), p);
}
INLINE void vstore_part(float *p, vf x, int64_t n) { _mm512_mask_storeu_ps(p, first(n), x); }
INLINE vf vadd(vf x, vf y) { return _mm512_add_ps(x, y); }
INLINE vf vsub(vf x, vf y) { return _mm512_sub_ps(x, y); }
INLINE vf vmul(vf x, vf y) { return _mm512_mul_ps(x, y); }
INLINE vf vdiv(vf x, vf y) { return _mm512_div_ps(x, y); }
INLINE vf vfma(vf x, vf y, vf z) { return _mm512_fmadd_ps(x, y, z); }
INLINE vf vfnma(vf x, vf y, vf z) { return _mm512_fnmadd_ps(x, y, z); }
INLINE vf vmax(vf x, vf y) { return _mm512_max_ps(x, y); } /* y where either is NaN */
INLINE vf vmin(vf x, vf y) { return _mm512_min_ps(x, y); } /* y where either is NaN */
INLINE vf vsqrt(vf x) { return _mm512_sqrt_ps(x); }
INLINE vf vabs(vf x) { return _mm512_abs_ps(x); }
INLINE vf vcopysign(vf x, vf sign)
{
    __m512 bit = _mm512_set1_ps(-0.0f);
    return _mm512_or_ps(_mm512_andnot_ps(bit, x), _mm512_and_ps(bit, sign));
}
INLINE vm vless(vf x, vf y) { return _mm512_cmp_ps_mask(x, y, _CMP_LT_OQ); }
INLINE vm vless_equal(vf x, vf y) { return _mm512_cmp_ps_mask(x, y, _CMP_LE_OQ); }
INLINE vm vequal(vf x, vf y) { return _mm512_cmp_ps_mask(x, y, _CMP_EQ_OQ); }
INLINE int vany(vm m) { return m != 0; }
INLINE vm vtrue(const uint8_t *p)
{
    __m128i bytes = _mm_loadu_si128((const __m128i *)p);
    return _mm_test_epi8_mask(bytes, bytes);
}
INLINE vm vnan(vf x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); }
INLINE vf vselect(vm m, vf x, vf y) { return _mm512_mask_blend_ps(m, y, x); }
INLINE vf vround(vf x) { return _mm512_roundscale_ps(x, 0x08); } /* to nearest even, quietly */
INLINE vf vscale(vf x, vf n) { return _mm512_scalef_ps(x, n); }  /* x * 2^n */
INLINE vf vexponent(vf x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), 23));
}
INLINE vf vrest(vf x, vf y, vf product) { return _mm512_fmsub_ps(x, y, product); }
INLINE vf vsplit(vf x, vf *exponent)
{
    __m512i bits = _mm512_castps_si512(x);
    __m512i whole = _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(HALF_ROOT)), 23);
    *exponent = _mm512_cvtepi32_ps(whole);
    return _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(whole, 23)));
}
INLINE vf vround_bf16(vf x)
{
    __m512i bits = _mm512_castps_si512(x), one = _mm512_set1_epi32(1);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    __m512i rounded = _mm512_mask_mov_epi32(_mm512_add_epi32(bits, half), vnan(x), quiet);
    return _mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32((int)0xffff0000)));
}
INLINE float vsum(vf x) { return _mm512_reduce_add_ps(x); }
INLINE float vlargest(vf x) { return _mm512_reduce_max_ps(x); }

/* A sum of squares in double precision. */
typedef struct { __m512d low, high; } vwide;
INLINE vwide vwide_zero(void) { return (vwide){_mm512_setzero_pd(), _mm512_setzero_pd()}; }
INLINE vwide vwide_square(vwide sum, vf x)
{
    __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
    __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
    return (vwide){_mm512_fmadd_pd(low, low, sum.low), _mm512_fmadd_pd(high, high, sum.high)};
}
INLINE double vwide_total(vwide sum) { return _mm512_reduce_add_pd(_mm512_add_pd(sum.low, sum.high)); }

/* Packed weights: see isa_packed.h. */
typedef __m512i vi;
typedef __m512i vb;
INLINE vf vload_bf16(const uint16_t *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
INLINE vi vi_zero(void) { return _mm512_setzero_si512(); }
INLINE vf vfloat(vi x) { return _mm512_cvtepi32_ps(x); }
INLINE vi vi_minus(vi x, int32_t n) { return _mm512_sub_epi32(x, _mm512_set1_epi32(n)); }
INLINE vb vbytes(const void *p) { return _mm512_loadu_si512(p); }
INLINE vb vquad(const int8_t *p)
{
    int32_t quad;
    memcpy(&quad, p, sizeof quad);
    return _mm512_set1_epi32(quad);
}
/* x with the sign of w, whose absolute value then is the other factor; there is no |-128|. */
INLINE vb turned(vb x, vb w)
{
    return _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
}
INLINE vb vlow(vb x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
INLINE vb vhigh(vb x) { return vlow(_mm512_srli_epi16(x, 4)); }
INLINE void vstore_bytes(int8_t *p, vf x)
{
    _mm_storeu_si128((__m128i *)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x)));
}

/* Transpose 16 x 16 in registers: pairs, quads, then 128-bit lanes twice. */
INLINE void transpose_square(vf x[16])
{
    __m512 t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        x[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        x[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        x[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_f32x4(x[i], x[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(x[i], x[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        x[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        x[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
        x[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
        x[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

static int supports_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
