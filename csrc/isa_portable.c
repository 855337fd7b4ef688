/* The floor: C11 and the vectors of gcc and clang, four floats, which a compiler keeps in whatever
 * registers the base architecture offers. No fmaf: without the instruction it is a slow call; each
 * product is rounded here.
 */
#include "isa.h"

#include <math.h>
#include <string.h>

#define TARGET
#define INLINE static inline __attribute__((always_inline)) TARGET

typedef float vf __attribute__((vector_size(16)));
typedef uint32_t vm __attribute__((vector_size(16)));   /* lanes of all ones, or of all zeros */
enum { VL = 4, MR = 4, NR = 8, PR = 4, CHAINS = 14 };

INLINE vf vload(const float *p)
{
    vf x;
    memcpy(&x, p, sizeof x);
    return x;
}
INLINE void vstore(float *p, vf x) { memcpy(p, &x, sizeof x); }
INLINE vf vset(float x) { return (vf){x, x, x, x}; }
INLINE vf vload_part(const float *p, int64_t n, float fill)
{
    vf x = vset(fill);
    for (int i = 0; i < VL && i < n; i++)
        x[i] = p[i];
    return x;
}
INLINE void vstore_part(float *p, vf x, int64_t n)
{
    for (int i = 0; i < VL && i < n; i++)
        p[i] = x[i];
}
INLINE vf vadd(vf x, vf y) { return x + y; }
INLINE vf vsub(vf x, vf y) { return x - y; }
INLINE vf vmul(vf x, vf y) { return x * y; }
INLINE vf vdiv(vf x, vf y) { return x / y; }
INLINE vf vfma(vf x, vf y, vf z) { return x * y + z; }
INLINE vf vfnma(vf x, vf y, vf z) { return z - x * y; }
INLINE vm vless(vf x, vf y) { return (vm)(x < y); }
INLINE vm vless_equal(vf x, vf y) { return (vm)(x <= y); }
INLINE vm vequal(vf x, vf y) { return (vm)(x == y); }
INLINE vm vnan(vf x) { return (vm)(x != x); }
INLINE int vany(vm m) { return (m[0] | m[1] | m[2] | m[3]) != 0; }
INLINE vm vtrue(const uint8_t *p) { return (vm)((vm){p[0], p[1], p[2], p[3]} != 0); }
INLINE vf vselect(vm m, vf x, vf y) { return (vf)((m & (vm)x) | (~m & (vm)y)); }
INLINE vf vmax(vf x, vf y) { return vselect(vless(y, x), x, y); }
INLINE vf vmin(vf x, vf y) { return vselect(vless(x, y), x, y); }
INLINE vf vsqrt(vf x) { return (vf){sqrtf(x[0]), sqrtf(x[1]), sqrtf(x[2]), sqrtf(x[3])}; }
INLINE vf vcopysign(vf x, vf sign) { return vselect((vm)vset(-0.0f), sign, x); }
INLINE vf vabs(vf x) { return vcopysign(x, vset(0)); }
INLINE float vsum(vf x) { return (x[0] + x[2]) + (x[1] + x[3]); }
INLINE float vlargest(vf x)
{
    float left = x[0] > x[2] ? x[0] : x[2], right = x[1] > x[3] ? x[1] : x[3];
    return left > right ? left : right;
}

typedef double vd __attribute__((vector_size(32)));
INLINE vf vrest(vf x, vf y, vf product)
{
    vd exact = __builtin_convertvector(x, vd) * __builtin_convertvector(y, vd);
    return __builtin_convertvector(exact - __builtin_convertvector(product, vd), vf);
}

/* A sum of squares in double precision. */
typedef struct { double at[VL]; } vwide;
INLINE vwide vwide_zero(void) { return (vwide){{0}}; }
INLINE vwide vwide_square(vwide sum, vf x)
{
    for (int i = 0; i < VL; i++)
        sum.at[i] += (double)x[i] * x[i];
    return sum;
}
INLINE double vwide_total(vwide sum)
{
    return (sum.at[0] + sum.at[2]) + (sum.at[1] + sum.at[3]);
}

/* Adding 1.5 * 2^23 pushes the fraction out of a float's 24 bits: round to nearest even. */
INLINE vf vround(vf x) { return (x + 12582912.0f) - 12582912.0f; }

INLINE vf vexponent(vf x) { return (vf)((vm)x << 23); }

INLINE vf vround_bf16(vf x)
{
    const vm bits = (vm)x, rounded = bits + 0x7fff + (bits >> 16 & 1), quiet = bits | 0x400000;
    return (vf)((vm)vselect(vnan(x), (vf)quiet, (vf)rounded) & 0xffff0000);
}

/* 2^n for integral n in -126 ... 127: its sum with 1.5 * 2^23 and a float's bias, 127, has the
 * exponent in its lowest bits. */
INLINE vf power_of_two(vf n) { return vexponent(n + (12582912.0f + 127)); }

typedef int32_t vi __attribute__((vector_size(16)));
INLINE vf vsplit(vf x, vf *exponent)
{
    vi whole = (vi)((vm)x - (uint32_t)HALF_ROOT) >> 23; /* wraps around where x is negative */
    *exponent = __builtin_convertvector(whole, vf);
    return (vf)((vm)x - ((vm)whole << 23));
}

/* x * 2^n for integral n in -160 ... 130, in two steps so that neither factor overflows. */
INLINE vf vscale(vf x, vf n)
{
    vf half = vround(n * 0.5f);
    return x * power_of_two(half) * power_of_two(n - half);
}

/* Packed weights: see isa_packed.h. */
typedef int16_t words __attribute__((vector_size(16)));
typedef int8_t half_bytes __attribute__((vector_size(8)));
typedef struct { words low, high; } vb;
typedef vi vn;
INLINE vf vload_bf16(const uint16_t *p) { return (vf)((vm){p[0], p[1], p[2], p[3]} << 16); }
INLINE vi vi_zero(void) { return (vi){0, 0, 0, 0}; }
INLINE vf vfloat(vi x) { return __builtin_convertvector(x, vf); }
INLINE vi vi_minus(vi x, int32_t n) { return x - n; }
INLINE vb vbytes(const void *p)
{
    half_bytes x[2];
    memcpy(x, p, sizeof x);
    return (vb){__builtin_convertvector(x[0], words), __builtin_convertvector(x[1], words)};
}
INLINE vb vquad(const int8_t *p)
{
    words x = {p[0], p[1], p[2], p[3], p[0], p[1], p[2], p[3]};
    return (vb){x, x};
}
/* Sums of neighbours, whichever of them is the lower half. */
INLINE vi add_pairs(words x) { return ((vi)x << 16 >> 16) + ((vi)x >> 16); }
INLINE vi vdot(vi sum, vb w, vb x)
{
    vi low = add_pairs(w.low * x.low), high = add_pairs(w.high * x.high);
    return sum + (vi){low[0] + low[1], low[2] + low[3], high[0] + high[1], high[2] + high[3]};
}
INLINE vb vlow(vb x) { return (vb){x.low & 15, x.high & 15}; }
INLINE vb vhigh(vb x) { return (vb){x.low >> 4 & 15, x.high >> 4 & 15}; }
INLINE vn vn_zero(void) { return vi_zero(); }
INLINE vn vn_add(vn sum, vb c, vb x) { return vdot(sum, c, x); }
INLINE vi vn_total(vn sum) { return sum; }
INLINE void vstore_bytes(int8_t *p, vf x)
{
    for (int i = 0; i < VL; i++)
        p[i] = (int8_t)x[i];
}

INLINE void transpose_square(vf x[4])
{
    vf a = x[0], b = x[1], c = x[2], d = x[3];
    x[0] = (vf){a[0], b[0], c[0], d[0]};
    x[1] = (vf){a[1], b[1], c[1], d[1]};
    x[2] = (vf){a[2], b[2], c[2], d[2]};
    x[3] = (vf){a[3], b[3], c[3], d[3]};
}

#include "isa_kernels.h"

static int supported(void) { return 1; }

const Kernels kernels_portable = {
    .name = "portable", .supported = supported, KERNELS,
};
