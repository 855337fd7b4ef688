/* What all products share: the block of their sums, and the step at an edge. */
#ifndef MINIFM_GEMM_H
#define MINIFM_GEMM_H

#include <stdint.h>

enum {
    KC = 384,               /* the law's block of k: part of every result, not to be tuned */
    MAX_TILE = 12 * 32,
};

/* c[rows, width] = a b, or += : rows <= MR, width <= NR (more is taken as NR), and b has NR
 * columns that can be read. A narrow tile goes by way of a full one. */
void one_tile(float *c, const float *a, const float *b, int64_t ldc, int64_t depth, int64_t a_row,
              int64_t a_k, int64_t b_k, int64_t rows, int64_t width, int accumulate);

/* Writes slivers of columns j ... j + count - 1 of a right operand that is stored in another form
 * than float32: each `depth` long, from k0 on, one after the other; zeros beyond the last column. */
typedef void (*Slivers)(float *out, const void *b, int64_t j, int64_t count, int64_t k0,
                        int64_t depth);

/* minifm_linear with such a right operand; x [m, k] is contiguous. */
int linear_of_slivers(float *y, float *z, const float *x, const void *b, Slivers slivers,
                      const float *bias, const float *residual, int64_t m, int64_t n, int64_t k,
                      int function);

#endif
