/* AVX-512 F, VL, DQ, BW: Skylake-X and Zen 4 onwards. */
#include "isa.h"

#if defined(__x86_64__)

#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")))
#include "isa_avx512.h"

/* Products of bytes, added up in 16 bits and in pairs: see isa_packed.h. */
typedef __m512i vn;     /* 16 bits a sum, two to a column: 8 * 2 * 15 * 127 is below 2^15 */
INLINE vi add_pairs(vi pairs) { return _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)); }
INLINE vi vdot(vi sum, vb w, vb x)
{
    /* Two products of |w| and the turned x fit 16 bits. */
    return _mm512_add_epi32(sum, add_pairs(_mm512_maddubs_epi16(_mm512_abs_epi8(w), turned(x, w))));
}
INLINE vn vn_zero(void) { return _mm512_setzero_si512(); }
INLINE vn vn_add(vn sum, vb c, vb x) { return _mm512_add_epi16(sum, _mm512_maddubs_epi16(c, x)); }
INLINE vi vn_total(vn sum) { return add_pairs(sum); }

#define WORDS_256
#include "isa_kernels.h"

static int supported(void) { return supports_avx512(); }

const Kernels kernels_avx512 = {
    .name = "avx512", .supported = supported, KERNELS,
};

#endif
