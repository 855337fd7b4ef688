/* AVX-512 F, VL, DQ, BW: Skylake-X and Zen 4 onwards. 16 floats a vector, a 12 x 32 tile of C. */
#include "isa.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")))
#define INLINE static inline __attribute__((always_inline)) TARGET

typedef __m512 vf;
typedef __mmask16 vm;
enum { VL = 16, MR = 12, NR = 32, CHAINS = 16 };

INLINE __mmask16 first(int64_t n) { return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1); }

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
INLINE vf vselect(vm m, vf x, vf y) { return _mm512_mask_blend_ps(m, y, x); }
INLINE vf vround(vf x) { return _mm512_roundscale_ps(x, 0x08); } /* to nearest even, quietly */
INLINE vf vscale(vf x, vf n) { return _mm512_scalef_ps(x, n); }  /* x * 2^n */
INLINE vf vexponent(vf x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), 23));
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

#include "isa_rows.h"
#include "isa_tile.h"

static int supported(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

const Kernels kernels_avx512 = {
    .name = "avx512", .supported = supported, TILE_KERNELS, ROW_KERNELS,
};

#endif
