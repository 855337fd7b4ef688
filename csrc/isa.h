/* The table of micro-kernels, one per instruction set, and which one is in use.
 *
 * Drivers (gemm.c, rows.c, ...) are portable: they own loops, packing, edges and threads, and call
 * micro-kernels through `kernels`. An isa_*.c defines a small vocabulary of vector operations and
 * includes the headers isa_*.h, which write every kernel once in that vocabulary. Intrinsics appear
 * in these files alone.
 */
#ifndef MINIFM_ISA_H
#define MINIFM_ISA_H

#include "packed.h"

#include <stdint.h>

enum { PHILOX_ROUNDS = 10, PHILOX_WORDS = 128 }; /* words: as many as are made at once */

/* c[r, j] = sum_k a[r * a_row + k * a_k] * b[k * b_k + j], k ascending, one fma each
 * (portable: a product, rounded, and a sum), for r < rows <= MR and all NR columns j; with
 * `accumulate` the finished sum is added to c. */
typedef void Tile(float *c, const float *a, const float *b, int64_t ldc, int64_t k, int64_t a_row,
                  int64_t a_k, int64_t b_k, int rows, int accumulate);
/* Slivers of `width` (MR or NR) columns, sliver s at out + s * sliver, zeros beyond the last:
 * out[s * sliver + p * width + r] = in[p * stride + s * width + r], p < k. */
typedef void Pack(float *out, int64_t sliver, const float *in, int64_t stride, int64_t k,
                  int64_t columns, int width);
/* One sliver of `width` (MR or NR) rows, transposed, zeros beyond the last:
 * out[p * width + r] = in[r * stride + p], p < k. */
typedef void Transpose(float *out, const float *in, int64_t stride, int64_t k, int rows, int width);

/* How a product packs its operands into cells of 32 bits, and multiplies slivers of them. A cell is
 * a float32, or a float32 rounded to bf16, or two numbers, rounded to bf16, that follow each other
 * along k: `together` says how many. `pack` and `transpose` count k in numbers, `tile` in cells. */
typedef struct {
    int together;
    Tile *tile;
    Pack *pack;
    Transpose *transpose;
} Cells;

typedef struct {
    const char *name;
    int (*supported)(void);     /* by the processor and by the operating system */
    int tile_rows, tile_cols;   /* MR x NR: the block of C that `tile` keeps in registers */

    Tile *tile;                 /* of float32 */
    Pack *pack;
    Transpose *transpose;
    Cells bf16;                 /* the same with operands rounded to bf16; A and B are slivers */
    /* sums[r, j] += sum_k a[r * a_row + k * a_k] * b[k * b_k + j], k ascending, into running sums
     * for any n. Streams through rows of b: for products with few rows. */
    void (*stream)(float *sums, const float *a, const float *b, int64_t lds, int64_t k,
                   int64_t a_row, int64_t a_k, int64_t b_k, int rows, int64_t n);
    /* out[p * ld ...] = row p < k of a matrix of windows: the runs in[rows[p] + first ... + length]
     * one after the other, for `count` runs (first, length). Less than a vector beyond the last of
     * them is overwritten. */
    void (*gather)(float *out, const float *in, const int64_t *rows, const int64_t *runs,
                   int64_t ld, int64_t k, int64_t count);

    /* y[n] = x[n], of bf16. */
    void (*widen)(float *y, const uint16_t *x, int64_t n);

    /* Elementwise, f by its number in minifm.h: y[n] = f(x[n]);  dx[n] = dy[n] * f'(x[n]). */
    void (*map)(float *y, const float *x, int64_t n, int function);
    void (*map_backward)(float *dx, const float *dy, const float *x, int64_t n, int function);
    /* out[n] = x[n] op y[n], op by its number in minifm.h; an operand whose step is 0 is one
     * number (not both). */
    void (*binary)(float *out, const float *x, const float *y, int64_t n, int x_step, int y_step,
                   int operation);
    /* The same of a comparison, 1 or 0; out[n] = condition[n] ? x[n] : y[n]. */
    void (*compare)(uint8_t *out, const float *x, const float *y, int64_t n, int x_step, int y_step,
                    int operation);
    void (*choose)(float *out, const uint8_t *condition, const float *x, const float *y, int64_t n,
                   int x_step, int y_step);
    /* z[n] += bias[n]; y[n] = f(z[n]) + residual[n]. bias and residual may be NULL; y may be z. */
    void (*epilogue)(float *y, float *z, const float *bias, const float *residual, int64_t n,
                     int function);

    /* One row of n numbers at a time. */
    void (*softmax)(float *y, const float *x, int64_t n);
    void (*softmax_backward)(float *dx, const float *dy, const float *y, int64_t n);
    void (*log_softmax)(float *y, const float *x, int64_t n);
    void (*log_softmax_backward)(float *dx, const float *dy, const float *y, int64_t n);
    float (*logsumexp)(const float *x, int64_t n);
    float (*sum)(const float *x, int64_t n);
    double (*sum_of_squares)(const float *x, int64_t n);
    /* y = e^(x - shift), returns the sum of y. */
    float (*exp_sum)(float *y, const float *x, int64_t n, float shift);
    /* The largest or smallest of n > 0 numbers by its number in minifm.h; NaN where there is one. */
    float (*extreme)(const float *x, int64_t n, int operation);
    /* Where x[n] is larger than top[n], x becomes top and `here` its place[n]. */
    void (*keep_larger)(float *top, float *place, const float *x, int64_t n, float here);
    /* y[d] = x[d] cos[d] - x[d + half] sin[d] sign;  y[d + half] = x[d + half] cos[d] + x[d] ... */
    void (*rotate)(float *y, const float *x, const float *cos, const float *sin, int64_t half,
                   float sign);
    /* y = x * scale;  y = (x + shift) * scale. */
    void (*scale)(float *y, const float *x, int64_t n, float scale);
    void (*shift_scale)(float *y, const float *x, int64_t n, float shift, float scale);
    /* y = x * scale where drawn >= probability, else 0. */
    void (*keep)(float *y, const float *x, const float *drawn, int64_t n, float probability,
                 float scale);
    void (*layernorm)(float *y, float *mean, float *rstd, const float *x, const float *gamma,
                      const float *beta, int64_t n, float eps);
    void (*layernorm_backward)(float *dx, float *dgamma, float *dbeta, const float *dy,
                               const float *x, const float *gamma, int64_t n, float mean,
                               float rstd);
    void (*rmsnorm)(float *y, float *rstd, const float *x, const float *gamma, int64_t n,
                    float eps);
    void (*rmsnorm_backward)(float *dx, float *dgamma, const float *dy, const float *x,
                             const float *gamma, int64_t n, float rstd);
    /* Around a centre: sum_i (x - centre)^2;  sum_i dz (x - centre);
     * y = (x - centre) * scale + offset;  dx = dz * p + (x - centre) * q + r. */
    float (*squares)(const float *x, int64_t n, float centre);
    float (*centred_dot)(const float *dz, const float *x, int64_t n, float centre);
    void (*affine)(float *y, const float *x, int64_t n, float centre, float scale, float offset);
    void (*blend)(float *dx, const float *dz, const float *x, int64_t n, float centre, float p,
                  float q, float r);
    void (*adamw)(float *param, const float *grad, float *m, float *v, int64_t n, float decay,
                  const float *constants);
    /* average += rate * (param - average) */
    void (*ema)(float *average, const float *param, int64_t n, float rate);
    /* Attention: scores p [keys, NR] of tile_cols queries, one a column, rows ld apart. Each column's
     * top becomes the maximum of itself and the column, decay = e^(old - new top), p = e^(p - top)
     * and total = total * decay + the sum of p, in order. Below 2^-126, e^x is 0. */
    void (*weigh)(float *p, float *top, float *total, float *decay, int64_t ld, int64_t keys);
    /* The same for the scores p[n] of one query; returns its decay. */
    float (*weigh_row)(float *p, float *top, float *total, int64_t n);
    /* For q [rows, width], scores[r, n] = q[r] . k[j], over the width in order; sums[r, width] += the
     * sum of p[r, j] v[j] over n keys in order. Rows of scores and p lie ld apart, of k and v
     * `stride`; k and v are float32, or bf16. */
    void (*score)(float *scores, const float *q, const void *k, int64_t ld, int64_t stride,
                  int64_t width, int rows, int64_t n, int bf16);
    void (*add_values)(float *sums, const float *p, const void *v, int64_t ld, int64_t stride,
                       int64_t width, int rows, int64_t n, int bf16);
    /* The same columns again: p = e^(p - lse), ds = p * (ds - delta). */
    void (*weigh_again)(float *p, float *ds, const float *lse, const float *delta, int64_t ld,
                        int64_t keys);
    /* sums[j] = sum_k x[k, j] * y[k, j] for tile_cols columns j, k ascending, one fma each. */
    void (*dot_columns)(float *sums, const float *x, const float *y, int64_t k);

    /* Weights in low precision (packed.c has the layouts): y[r, 16] = row r of x times one panel,
     * r < rows <= panel_rows; of x as it is, or rounded, from its row `row` on. */
    int panel_rows;
    void (*panel_fp32)(float *y, const float *x, const void *panel, int64_t ldy, int64_t k,
                       int64_t ldx, int rows);
    void (*panel_bf16)(float *y, const float *x, const void *panel, int64_t ldy, int64_t k,
                       int64_t ldx, int rows);
    void (*panel_int8)(float *y, const Rounded *x, int64_t row, const uint8_t *codes,
                       const uint16_t *scales, int64_t ldy, int rows);
    void (*panel_int4)(float *y, const Rounded *x, int64_t row, const uint8_t *codes,
                       const uint16_t *scales, int64_t ldy, int rows);
    /* q[32] = x[32] / scale to nearest, of -127 ... 127; returns the scale, NaN if x has any. */
    float (*round_group)(int8_t *q, const float *x);

    /* Words of the stream of noise from the block `counter` on: see noise.c. */
    void (*philox)(uint64_t words[PHILOX_WORDS], uint64_t counter,
                   const uint64_t (*keys)[2]);

    /* For ceilings.c: `rounds` of multiply-adds that touch no memory, in enough independent chains
     * to keep the processor busy. Returns how many floating-point operations that was; *result
     * depends on all of them. */
    int64_t (*multiply_add)(float *result, int64_t rounds);
    /* The same with operands of bf16; 0 where the processor does not multiply those. */
    int64_t (*multiply_add_bf16)(float *result, int64_t rounds);
} Kernels;

extern const Kernels *kernels;

/* For vsplit: the bits of the float next to sqrt(1 / 2). */
enum { HALF_ROOT = 0x3f3504f3 };

extern const Kernels kernels_portable, kernels_avx2, kernels_avx512, kernels_avx512bf16,
    kernels_neon;

/* Compilers that know the instructions bring this header with their intrinsics. */
#if defined(__x86_64__) && __has_include(<avx512bf16intrin.h>)
#define HAVE_AVX512BF16 1
#else
#define HAVE_AVX512BF16 0
#endif

#endif
