/* NEON (Advanced SIMD) with FMA: every arm64 machine. 4 floats a vector, an 8 x 12 tile of C. */
#include "isa.h"

#if defined(__aarch64__)

#include <arm_neon.h>

#define TARGET
#define INLINE static inline __attribute__((always_inline)) TARGET

typedef float32x4_t vf;
typedef uint32x4_t vm;
enum { VL = 4, MR = 8, NR = 12, CHAINS = 16 };

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
INLINE vf vselect(vm m, vf x, vf y) { return vbslq_f32(m, x, y); }
INLINE vf vround(vf x) { return vrndnq_f32(x); }

INLINE vf vexponent(vf x)
{
    return vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(x), 23));
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

/* Transpose 4 x 4 in registers: pairs, then halves. */
INLINE void transpose_square(vf x[4])
{
    float32x4x2_t low = vtrnq_f32(x[0], x[1]), high = vtrnq_f32(x[2], x[3]);
    x[0] = vcombine_f32(vget_low_f32(low.val[0]), vget_low_f32(high.val[0]));
    x[1] = vcombine_f32(vget_low_f32(low.val[1]), vget_low_f32(high.val[1]));
    x[2] = vcombine_f32(vget_high_f32(low.val[0]), vget_high_f32(high.val[0]));
    x[3] = vcombine_f32(vget_high_f32(low.val[1]), vget_high_f32(high.val[1]));
}

#include "isa_rows.h"
#include "isa_tile.h"

static int supported(void) { return 1; }

const Kernels kernels_neon = {
    .name = "neon", .supported = supported, TILE_KERNELS, ROW_KERNELS,
};

#endif
