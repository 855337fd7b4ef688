/* AVX-512 with dot products: BF16 and VNNI, of Cooper Lake, Sapphire Rapids and Zen 4 onwards. In
 * float32 it is AVX-512, bit for bit. With operands of bf16 an instruction multiplies pairs: twice
 * the work of a fused multiply-add. Products of bytes take one instruction instead of three, of
 * the same result.
 */
#include "isa.h"

#if HAVE_AVX512BF16

#define TARGET \
    __attribute__((target("avx512bf16,avx512vnni,avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")))
#include "isa_avx512.h"

/* Pairs of bf16: see isa_tile.h. */
enum { TOGETHER = 2 };
#define PAIRS
INLINE vf cells_along(vf x, vf y) { return (vf)_mm512_cvtne2ps_pbh(y, x); }
INLINE vf cells_across(vf x, vf y)
{
    const __m512i halves = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
        23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (vf)_mm512_permutexvar_epi16(halves, (__m512i)cells_along(x, y));
}
INLINE vf vdot_cells(vf x, vf y, vf z)
{
    return _mm512_dpbf16_ps(z, (__m512bh)x, (__m512bh)y);
}

/* Products of bytes: see isa_packed.h. */
typedef vi vn;
INLINE vi vdot(vi sum, vb w, vb x)
{
    return _mm512_dpbusd_epi32(sum, _mm512_abs_epi8(w), turned(x, w));
}
INLINE vn vn_zero(void) { return vi_zero(); }
INLINE vn vn_add(vn sum, vb c, vb x) { return _mm512_dpbusd_epi32(sum, c, x); }
INLINE vi vn_total(vn sum) { return sum; }

#define WORDS_256
#include "isa_kernels.h"

static int supported(void)
{
    return supports_avx512() && __builtin_cpu_supports("avx512bf16") &&
           __builtin_cpu_supports("avx512vnni");
}

const Kernels kernels_avx512bf16 = {
    .name = "avx512bf16", .supported = supported, KERNELS,
};

#endif
