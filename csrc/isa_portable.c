/* The floor: plain C11, "vectors" of one number. Compilers make of it what the base architecture
 * offers. No fmaf: without the instruction it is a slow call; each product is rounded here.
 */
#include "isa.h"

#include <math.h>
#include <string.h>

#define TARGET
#define ONE_LANE

typedef float vf;
typedef int vm;
enum { VL = 1, MR = 4, NR = 16, CHAINS = 56 };

#define INLINE static inline __attribute__((always_inline)) TARGET

INLINE vf vload(const float *p) { return *p; }
INLINE void vstore(float *p, vf x) { *p = x; }
INLINE vf vload_part(const float *p, int64_t n, float fill) { return n > 0 ? *p : fill; }
INLINE void vstore_part(float *p, vf x, int64_t n) { if (n > 0) *p = x; }
INLINE vf vset(float x) { return x; }
INLINE vf vadd(vf x, vf y) { return x + y; }
INLINE vf vsub(vf x, vf y) { return x - y; }
INLINE vf vmul(vf x, vf y) { return x * y; }
INLINE vf vdiv(vf x, vf y) { return x / y; }
INLINE vf vfma(vf x, vf y, vf z) { return x * y + z; }
INLINE vf vfnma(vf x, vf y, vf z) { return z - x * y; }
INLINE vf vmax(vf x, vf y) { return x > y ? x : y; }
INLINE vf vmin(vf x, vf y) { return x < y ? x : y; }
INLINE vf vsqrt(vf x) { return sqrtf(x); }
INLINE vf vabs(vf x) { return fabsf(x); }
INLINE vf vcopysign(vf x, vf sign) { return copysignf(x, sign); }
INLINE vm vless(vf x, vf y) { return x < y; }
INLINE vf vselect(vm m, vf x, vf y) { return m ? x : y; }
INLINE float vsum(vf x) { return x; }
INLINE float vlargest(vf x) { return x; }

/* A sum of squares in double precision. */
typedef double vwide;
INLINE vwide vwide_zero(void) { return 0; }
INLINE vwide vwide_square(vwide sum, vf x) { return sum + (double)x * x; }
INLINE double vwide_total(vwide sum) { return sum; }

/* Adding 1.5 * 2^23 pushes the fraction out of a float's 24 bits: round to nearest even. */
INLINE vf vround(vf x) { return (x + 12582912.0f) - 12582912.0f; }

INLINE float power_of_two(int n)
{
    uint32_t bits = (uint32_t)(n + 127) << 23;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* x * 2^n for integral n in -160 ... 130, in two steps so that neither factor overflows. */
INLINE vf vscale(vf x, vf n)
{
    int whole = n == n ? (int)n : 0, half = whole / 2;
    return x * power_of_two(half) * power_of_two(whole - half);
}

#include "isa_rows.h"

static void tile(float *c, const float *a, const float *b, int64_t ldc, int64_t k, int64_t a_row,
                 int64_t a_k, int64_t b_k, int rows, int accumulate)
{
    for (int r = 0; r < rows; r++) {
        float sum[NR] = {0};
        for (int64_t p = 0; p < k; p++) {
            float x = a[r * a_row + p * a_k];
            for (int j = 0; j < NR; j++)
                sum[j] += x * b[p * b_k + j];
        }
        for (int j = 0; j < NR; j++)
            c[r * ldc + j] = accumulate ? c[r * ldc + j] + sum[j] : sum[j];
    }
}

static void transpose(float *out, const float *in, int64_t ld, int64_t stride, int64_t k, int rows,
                      int width)
{
    for (int64_t p = 0; p < k; p++)
        for (int r = 0; r < width; r++)
            out[p * ld + r] = r < rows ? in[r * stride + p] : 0.0f;
}

static int supported(void) { return 1; }

const Kernels kernels_portable = {
    .name = "portable", .supported = supported, .tile_rows = MR, .tile_cols = NR,
    .tile = tile, .transpose = transpose, ROW_KERNELS,
};
