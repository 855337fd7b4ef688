/* Stands before the compiler's own header, for isa_neon.c and isa.c alone: NEON through SIMDe, on
 * a machine that says it is arm64. */
#ifndef EMULATED_NEON
#define EMULATED_NEON

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/arm/neon.h>

/* From here on; the headers of the system have been read. */
#undef __x86_64__
#define __aarch64__ 1

/* -- what SIMDe lacks, or does in two roundings -------------------------------------------------- */

#define EACH(n) for (int i = 0; i < (n); i++)

static inline float32x4_t emulated_fmaq(float32x4_t z, float32x4_t x, float32x4_t y, float sign)
{
    float a[4], b[4], c[4];
    vst1q_f32(a, z), vst1q_f32(b, x), vst1q_f32(c, y);
    EACH(4) a[i] = fmaf(sign * b[i], c[i], a[i]);
    return vld1q_f32(a);
}

static inline float64x2_t emulated_fmaq_f64(float64x2_t z, float64x2_t x, float64x2_t y)
{
    double a[2], b[2], c[2];
    vst1q_f64(a, z), vst1q_f64(b, x), vst1q_f64(c, y);
    EACH(2) a[i] = fma(b[i], c[i], a[i]);
    return vld1q_f64(a);
}

static inline float32x4_t emulated_divq(float32x4_t x, float32x4_t y)
{
    float a[4], b[4];
    vst1q_f32(a, x), vst1q_f32(b, y);
    EACH(4) a[i] /= b[i];
    return vld1q_f32(a);
}

static inline float32x4_t emulated_sqrtq(float32x4_t x)
{
    float a[4];
    vst1q_f32(a, x);
    EACH(4) a[i] = sqrtf(a[i]);
    return vld1q_f32(a);
}

static inline float64x2_t emulated_cvt_high(float32x4_t x)
{
    return vcvt_f64_f32(vget_high_f32(x));
}

static inline int32x4_t emulated_cvtnq(float32x4_t x) /* to nearest, as the processor is set */
{
    float a[4];
    int32_t whole[4];
    vst1q_f32(a, x);
    EACH(4) whole[i] = (int32_t)nearbyintf(a[i]);
    return vld1q_s32(whole);
}

#undef vfmaq_f32
#undef vfmaq_f64
#define vfmaq_f32(z, x, y) emulated_fmaq(z, x, y, 1)
#define vfmsq_f32(z, x, y) emulated_fmaq(z, x, y, -1)
#define vfmaq_f64 emulated_fmaq_f64
#define vdivq_f32 emulated_divq
#define vsqrtq_f32 emulated_sqrtq
#define vcvtnq_s32_f32 emulated_cvtnq
#define vcvt_high_f64_f32 emulated_cvt_high

#endif
