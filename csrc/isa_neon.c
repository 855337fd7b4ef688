/* NEON (Advanced SIMD) with FMA: every arm64 machine. 4 floats a vector, an 8 x 12 tile of C. */
#include "isa.h"

#if defined(__aarch64__)

#include <arm_neon.h>
#include <string.h>

#define TARGET
#define INLINE static inline __attribute__((always_inline)) TARGET

typedef float32x4_t vf;
typedef uint32x4_t vm;
enum { VL = 4, MR = 8, NR = 12, PR = 4, CHAINS = 16 };

INLINE vf vload(const float *p) { return vld1q_f32(p); }
INLINE void vstore(float *p, vf x) { vst1q_f32(p, x); }
INLINE vf vset(float x) { return vdupq_n_f32(x); }
INLINE vf vload_part(const float *p, int64_t n, float fill)
{
    float lanes[4] = {fill, fill, fill, fill};
    for (int64_t i = 0; i < n && i < 4; i++)
        lanes[i] = p[i];
    return vld1q_f32(lanes);
}
INLINE void vstore_part(float *p, vf x, int64_t n)
{
    float lanes[4];
    vst1q_f32(lanes, x);
    for (int64_t i = 0; i < n && i < 4; i++)
        p[i] = lanes[i];
}
INLINE vf vadd(vf x, vf y) { return vaddq_f32(x, y); }
INLINE vf vsub(vf x, vf y) { return vsubq_f32(x, y); }
INLINE vf vmul(vf x, vf y) { return vmulq_f32(x, y); }
INLINE vf vdiv(vf x, vf y) { return vdivq_f32(x, y); }
INLINE vf vfma(vf x, vf y, vf z) { return vfmaq_f32(z, x, y); }
INLINE vf vfnma(vf x, vf y, vf z) { return vfmsq_f32(z, x, y); }
/* vmaxq and vminq would return NaN where either is NaN; y is wanted there. */
INLINE vf vmax(vf x, vf y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
INLINE vf vmin(vf x, vf y) { return vbslq_f32(vcltq_f32(x, y), x, y); }
INLINE vf vsqrt(vf x) { return vsqrtq_f32(x); }
INLINE vf vabs(vf x) { return vabsq_f32(x); }
INLINE vf vcopysign(vf x, vf sign) { return vbslq_f32(vdupq_n_u32(0x80000000u), sign, x); }
INLINE vm vless(vf x, vf y) { return vcltq_f32(x, y); }
INLINE vm vless_equal(vf x, vf y) { return vcleq_f32(x, y); }
INLINE vm vequal(vf x, vf y) { return vceqq_f32(x, y); }
INLINE int vany(vm m) { return vmaxvq_u32(m) != 0; }
INLINE vm vtrue(const uint8_t *p)
{
    uint32_t bytes;
    memcpy(&bytes, p, sizeof bytes);
    uint16x8_t words = vmovl_u8(vcreate_u8(bytes));
    uint32x4_t wide = vmovl_u16(vget_low_u16(words));
    return vtstq_u32(wide, wide);
}
INLINE vm vnan(vf x) { return vmvnq_u32(vceqq_f32(x, x)); }
INLINE vf vselect(vm m, vf x, vf y) { return vbslq_f32(m, x, y); }
INLINE vf vround(vf x) { return vrndnq_f32(x); }

INLINE vf vexponent(vf x)
{
    return vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(x), 23));
}

INLINE vf vrest(vf x, vf y, vf product) { return vnegq_f32(vfmsq_f32(product, x, y)); }
INLINE vf vsplit(vf x, vf *exponent)
{
    int32x4_t bits = vreinterpretq_s32_f32(x);
    int32x4_t whole = vshrq_n_s32(vsubq_s32(bits, vdupq_n_s32(HALF_ROOT)), 23);
    *exponent = vcvtq_f32_s32(whole);
    return vreinterpretq_f32_s32(vsubq_s32(bits, vshlq_n_s32(whole, 23)));
}

INLINE vf power_of_two(int32x4_t n)
{
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}

/* x * 2^n for integral n in -160 ... 130, in two steps so that neither factor overflows. */
INLINE vf vscale(vf x, vf n)
{
    int32x4_t whole = vcvtq_s32_f32(n), half = vshrq_n_s32(whole, 1);
    return vmul(vmul(x, power_of_two(half)), power_of_two(vsubq_s32(whole, half)));
}

INLINE vf vround_bf16(vf x)
{
    uint32x4_t bits = vreinterpretq_u32_f32(x), quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    rounded = vbslq_u32(vnan(x), quiet, rounded);
    return vreinterpretq_f32_u32(vandq_u32(rounded, vdupq_n_u32(0xffff0000)));
}
INLINE float vsum(vf x) { return vaddvq_f32(x); }
INLINE float vlargest(vf x) { return vmaxvq_f32(x); }

/* A sum of squares in double precision. */
typedef struct { float64x2_t low, high; } vwide;
INLINE vwide vwide_zero(void) { return (vwide){vdupq_n_f64(0), vdupq_n_f64(0)}; }
INLINE vwide vwide_square(vwide sum, vf x)
{
    float64x2_t low = vcvt_f64_f32(vget_low_f32(x)), high = vcvt_high_f64_f32(x);
    return (vwide){vfmaq_f64(sum.low, low, low), vfmaq_f64(sum.high, high, high)};
}
INLINE double vwide_total(vwide sum) { return vaddvq_f64(vaddq_f64(sum.low, sum.high)); }

/* Packed weights: see isa_packed.h. */
typedef int32x4_t vi;
typedef int8x16_t vb;
typedef int32x4_t vn;
INLINE vf vload_bf16(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
INLINE vi vi_zero(void) { return vdupq_n_s32(0); }
INLINE vf vfloat(vi x) { return vcvtq_f32_s32(x); }
INLINE vi vi_minus(vi x, int32_t n) { return vsubq_s32(x, vdupq_n_s32(n)); }
INLINE vb vbytes(const void *p) { return vld1q_s8(p); }
INLINE vb vquad(const int8_t *p)
{
    int32_t quad;
    memcpy(&quad, p, sizeof quad);
    return vreinterpretq_s8_s32(vdupq_n_s32(quad));
}
INLINE vi vdot(vi sum, vb w, vb x)
{
    int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x)), high = vmull_high_s8(w, x);
    return vpadalq_s16(sum, vpaddq_s16(low, high)); /* two products fit 16 bits */
}
INLINE vb vlow(vb x) { return vandq_s8(x, vdupq_n_s8(15)); }
INLINE vb vhigh(vb x) { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(x), 4)); }
INLINE vn vn_zero(void) { return vi_zero(); }
INLINE vn vn_add(vn sum, vb c, vb x) { return vdot(sum, c, x); }
INLINE vi vn_total(vn sum) { return sum; }
INLINE void vstore_bytes(int8_t *p, vf x)
{
    int16x4_t words = vqmovn_s32(vcvtq_s32_f32(x));
    int32_t four = vget_lane_s32(vreinterpret_s32_s8(vqmovn_s16(vcombine_s16(words, words))), 0);
    memcpy(p, &four, sizeof four);
}

/* Transpose 4 x 4 in registers: pairs, then halves. */
INLINE void transpose_square(vf x[4])
{
    float32x4x2_t low = vtrnq_f32(x[0], x[1]), high = vtrnq_f32(x[2], x[3]);
    x[0] = vcombine_f32(vget_low_f32(low.val[0]), vget_low_f32(high.val[0]));
    x[1] = vcombine_f32(vget_low_f32(low.val[1]), vget_low_f32(high.val[1]));
    x[2] = vcombine_f32(vget_high_f32(low.val[0]), vget_high_f32(high.val[0]));
    x[3] = vcombine_f32(vget_high_f32(low.val[1]), vget_high_f32(high.val[1]));
}

#include "isa_kernels.h"

static int supported(void) { return 1; }

const Kernels kernels_neon = {
    .name = "neon", .supported = supported, KERNELS,
};

#endif
