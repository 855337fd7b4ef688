/* Stands before the compiler's own header, for isa_avx512.c and isa_avx512bf16.c alone: their
 * 512-bit intrinsics become those of SIMDe, or these, which any x86-64 with AVX2 and FMA runs, and
 * no function asks for more. */
#ifndef EMULATED_AVX512
#define EMULATED_AVX512

#include_next <immintrin.h>

#include <math.h>
#include <string.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>

#define target(names)
#define __builtin_cpu_supports(name) 1

/* -- what SIMDe lacks, lane by lane -------------------------------------------------------------- */

#define EACH(n) for (int i = 0; i < (n); i++)

static inline __m512 emulated_mask_loadu_ps(__m512 rest, __mmask16 mask, const void *from)
{
    float lanes[16];
    memcpy(lanes, &rest, sizeof lanes);
    EACH(16) if (mask >> i & 1) lanes[i] = ((const float *)from)[i];
    memcpy(&rest, lanes, sizeof lanes);
    return rest;
}

static inline void emulated_mask_storeu_ps(void *to, __mmask16 mask, __m512 x)
{
    float lanes[16];
    memcpy(lanes, &x, sizeof lanes);
    EACH(16) if (mask >> i & 1) ((float *)to)[i] = lanes[i];
}

/* x 2^n with one rounding: SIMDe multiplies by 2^n, which overflows before x 2^n does. */
static inline __m512 emulated_scalef_ps(__m512 x, __m512 n)
{
    float lanes[16], powers[16];
    memcpy(lanes, &x, sizeof lanes);
    memcpy(powers, &n, sizeof powers);
    EACH(16) lanes[i] = isnan(powers[i]) ? powers[i] : scalbnf(lanes[i], (int)floorf(powers[i]));
    memcpy(&x, lanes, sizeof lanes);
    return x;
}

static inline __m512d emulated_cvtps_pd(__m256 x)
{
    float narrow[8];
    double wide[8];
    __m512d result;
    memcpy(narrow, &x, sizeof narrow);
    EACH(8) wide[i] = narrow[i];
    memcpy(&result, wide, sizeof wide);
    return result;
}

static inline __m256 emulated_extractf32x8_ps(__m512 x, int which)
{
    __m256 half;
    memcpy(&half, (const char *)&x + 32 * which, sizeof half);
    return half;
}

/* The lanes in halves, as the compilers' own headers do it. */
static inline double emulated_reduce_add_pd(__m512d x)
{
    double lanes[8];
    memcpy(lanes, &x, sizeof lanes);
    for (int half = 4; half; half /= 2)
        EACH(half) lanes[i] += lanes[i + half];
    return lanes[0];
}

static inline float emulated_reduce_add_ps(__m512 x)
{
    float lanes[16];
    memcpy(lanes, &x, sizeof lanes);
    for (int half = 8; half; half /= 2)
        EACH(half) lanes[i] += lanes[i + half];
    return lanes[0];
}

static inline float emulated_reduce_max_ps(__m512 x)
{
    float lanes[16];
    memcpy(lanes, &x, sizeof lanes);
    for (int half = 8; half; half /= 2)
        EACH(half) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
    return lanes[0];
}

/* Four floats at a time: two of x, then two of y. */
static inline __m512 emulated_shuffle_f32x4(__m512 x, __m512 y, int which)
{
    __m512 result;
    EACH(4)
        memcpy((char *)&result + 16 * i,
               (const char *)(i < 2 ? &x : &y) + 16 * (which >> 2 * i & 3), 16);
    return result;
}

static inline __m512i emulated_cvtepu16_epi32(__m256i x)
{
    uint16_t narrow[16];
    uint32_t wide[16];
    __m512i result;
    memcpy(narrow, &x, sizeof narrow);
    EACH(16) wide[i] = narrow[i];
    memcpy(&result, wide, sizeof wide);
    return result;
}

static inline __m512 emulated_cvtepi32_ps(__m512i x)
{
    int32_t whole[16];
    float lanes[16];
    __m512 result;
    memcpy(whole, &x, sizeof whole);
    EACH(16) lanes[i] = (float)whole[i];
    memcpy(&result, lanes, sizeof lanes);
    return result;
}

static inline __m512i emulated_cvtps_epi32(__m512 x)
{
    float lanes[16];
    int32_t whole[16];
    __m512i result;
    memcpy(lanes, &x, sizeof lanes);
    EACH(16) whole[i] = (int32_t)rintf(lanes[i]);
    memcpy(&result, whole, sizeof whole);
    return result;
}

static inline __m128i emulated_cvtsepi32_epi8(__m512i x)
{
    int32_t wide[16];
    int8_t bytes[16];
    __m128i result;
    memcpy(wide, &x, sizeof wide);
    EACH(16) bytes[i] = (int8_t)(wide[i] > 127 ? 127 : wide[i] < -128 ? -128 : wide[i]);
    memcpy(&result, bytes, sizeof bytes);
    return result;
}

/* SIMDe's name for this one takes other arguments. */
static inline __m512i emulated_madd_epi16(__m512i x, __m512i y)
{
    int16_t a[32], b[32];
    int32_t sums[16];
    memcpy(a, &x, sizeof a), memcpy(b, &y, sizeof b);
    EACH(16) sums[i] = a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
    memcpy(&x, sums, sizeof sums);
    return x;
}

static inline __m512i emulated_srai_epi32(__m512i x, unsigned int places)
{
    int32_t lanes[16];
    memcpy(lanes, &x, sizeof lanes);
    EACH(16) lanes[i] >>= places;
    memcpy(&x, lanes, sizeof lanes);
    return x;
}

static inline __mmask16 emulated_test_epi8_mask(__m128i x, __m128i y)
{
    uint8_t a[16], b[16];
    __mmask16 mask = 0;
    memcpy(a, &x, sizeof a), memcpy(b, &y, sizeof b);
    EACH(16) mask |= (__mmask16)((a[i] & b[i]) != 0) << i;
    return mask;
}

/* -- bf16 and VNNI, as Intel's manual describes the instructions ------------------------------------ */

/* Numbers below 2^-126 are zero to both instructions of bf16. */
static inline float emulated_flush(float x)
{
    return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x;
}

static inline float emulated_widen(uint16_t half)
{
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return emulated_flush(x);
}

static inline __m512bh emulated_cvtne2ps_pbh(__m512 high, __m512 low)
{
    float numbers[32];
    uint16_t halves[32];
    __m512bh result;
    memcpy(numbers, &low, sizeof low), memcpy(numbers + 16, &high, sizeof high);
    EACH(32)
    {
        const float x = emulated_flush(numbers[i]);
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        bits += isnan(x) ? 0 : 0x7fff + (bits >> 16 & 1);
        halves[i] = (uint16_t)(bits >> 16 | (isnan(x) ? 0x40 : 0));
    }
    memcpy(&result, halves, sizeof halves);
    return result;
}

/* Two fused multiply-adds to a lane, the upper halves first. */
static inline __m512 emulated_dpbf16_ps(__m512 sum, __m512bh x, __m512bh y)
{
    float sums[16];
    uint16_t a[32], b[32];
    memcpy(sums, &sum, sizeof sums), memcpy(a, &x, sizeof a), memcpy(b, &y, sizeof b);
    EACH(16)
        for (int half = 2 * i + 1; half >= 2 * i; half--)
            sums[i] = emulated_flush(fmaf(emulated_widen(a[half]), emulated_widen(b[half]),
                                          emulated_flush(sums[i])));
    memcpy(&sum, sums, sizeof sums);
    return sum;
}

static inline __m512i emulated_dpbusd_epi32(__m512i sum, __m512i x, __m512i y)
{
    int32_t sums[16];
    uint8_t a[64];
    int8_t b[64];
    memcpy(sums, &sum, sizeof sums), memcpy(a, &x, sizeof a), memcpy(b, &y, sizeof b);
    EACH(64) sums[i / 4] += a[i] * b[i];
    memcpy(&sum, sums, sizeof sums);
    return sum;
}

static inline __m512i emulated_permutexvar_epi16(__m512i places, __m512i x)
{
    uint16_t at[32], from[32], to[32];
    memcpy(at, &places, sizeof at), memcpy(from, &x, sizeof from);
    EACH(32) to[i] = from[at[i] & 31];
    memcpy(&x, to, sizeof to);
    return x;
}

#undef _mm512_srai_epi32
#define _mm512_srai_epi32 emulated_srai_epi32
#undef _mm_test_epi8_mask
#define _mm_test_epi8_mask emulated_test_epi8_mask
#undef _mm512_cvtne2ps_pbh
#undef _mm512_dpbf16_ps
#undef _mm512_dpbusd_epi32
#undef _mm512_permutexvar_epi16
#define _mm512_cvtne2ps_pbh emulated_cvtne2ps_pbh
#define _mm512_dpbf16_ps emulated_dpbf16_ps
#define _mm512_dpbusd_epi32 emulated_dpbusd_epi32
#define _mm512_permutexvar_epi16 emulated_permutexvar_epi16
#undef _mm512_cvtepu16_epi32
#undef _mm512_cvtepi32_ps
#undef _mm512_cvtps_epi32
#undef _mm512_cvtsepi32_epi8
#undef _mm512_madd_epi16
#define _mm512_cvtepu16_epi32 emulated_cvtepu16_epi32
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps
#define _mm512_cvtps_epi32 emulated_cvtps_epi32
#define _mm512_cvtsepi32_epi8 emulated_cvtsepi32_epi8
#define _mm512_madd_epi16 emulated_madd_epi16
#undef _mm512_shuffle_f32x4
#undef _mm512_scalef_ps
#undef _mm512_cvtps_pd
#undef _mm512_extractf32x8_ps
#undef _mm512_reduce_add_pd
#undef _mm512_reduce_add_ps
#undef _mm512_reduce_max_ps
#undef _mm512_mask_loadu_ps
#undef _mm512_maskz_loadu_ps
#undef _mm512_mask_storeu_ps
#define _mm512_shuffle_f32x4 emulated_shuffle_f32x4
#define _mm512_scalef_ps emulated_scalef_ps
#define _mm512_cvtps_pd emulated_cvtps_pd
#define _mm512_extractf32x8_ps emulated_extractf32x8_ps
#define _mm512_reduce_add_pd emulated_reduce_add_pd
#define _mm512_reduce_add_ps emulated_reduce_add_ps
#define _mm512_reduce_max_ps emulated_reduce_max_ps
#define _mm512_mask_loadu_ps emulated_mask_loadu_ps
#define _mm512_maskz_loadu_ps(mask, from) emulated_mask_loadu_ps(_mm512_setzero_ps(), mask, from)
#define _mm512_mask_storeu_ps emulated_mask_storeu_ps

#endif
