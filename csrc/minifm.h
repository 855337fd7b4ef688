/* Every kernel that Python calls. CFFI parses this very text (without the lines that begin with a
 * number sign), and the C files include it.
 *
 * Argument order: outputs, inputs, sizes, scalars. Arrays are float32 and contiguous unless
 * strides are passed; strides and offsets count elements. Outputs are overwritten, never added to,
 * unless the comment says so. Functions that return int give 0, or -1 where there was no memory.
 */
#ifndef MINIFM_H
#define MINIFM_H

#include <stdint.h>

/* -- the machine --------------------------------------------------------------------------- */

/* The i-th best instruction set that this machine supports, or NULL. */
const char *minifm_supported_isa(int i);
/* Use that one from now on; -1 if it is not supported. Not while a kernel runs. */
int minifm_select_isa(const char *name);
const char *minifm_compiler(void);
int minifm_threads(void);
void minifm_set_threads(int threads);

/* Functions of one variable. */
enum {
    MINIFM_IDENTITY,
    MINIFM_RELU, MINIFM_SILU, MINIFM_GELU, MINIFM_GELU_TANH, MINIFM_GELU_QUICK,
    MINIFM_SIGMOID, MINIFM_TANH, MINIFM_EXP, MINIFM_ERF, MINIFM_SQRT, MINIFM_NEGATIVE,
    MINIFM_ABSOLUTE, MINIFM_LOG, MINIFM_SIN, MINIFM_COS, MINIFM_SIGN,
};

/* -- products: gemm.c ------------------------------------------------------------------------ */

/* c[i] = a[i] b[i], or c[i] += with accumulate, for i < batch; c [batch, m, n] is contiguous,
 * a[i] [m, k] begins at a + a_offsets[i] (NULL: a) with strides a_row, a_k of which one is 1, and
 * b[i] [k, n] likewise with b_k, b_col. */
int minifm_matmul(float *c, const float *a, const float *b, int64_t batch, int64_t m, int64_t n,
                  int64_t k, const int64_t *a_offsets, const int64_t *b_offsets, int64_t a_row,
                  int64_t a_k, int64_t b_k, int64_t b_col, int accumulate);

/* z = x w + bias; y = f(z) + residual. x [m, k], w [k, n] by strides as above; bias [n] and
 * residual [m, n] may be NULL. With f the identity, z is not kept: pass z == y. */
int minifm_linear(float *y, float *z, const float *x, const float *w, const float *bias,
                  const float *residual, int64_t m, int64_t n, int64_t k, int64_t x_row,
                  int64_t x_k, int64_t w_k, int64_t w_col, int function);

/* -- rows: rows.c ---------------------------------------------------------------------------- */

/* y[rows, n] = softmax(x[rows, n]) of each row, its logarithm, and their gradients. */
void minifm_softmax(float *y, const float *x, int64_t rows, int64_t n);
void minifm_softmax_backward(float *dx, const float *dy, const float *y, int64_t rows, int64_t n);
void minifm_log_softmax(float *y, const float *x, int64_t rows, int64_t n);
void minifm_log_softmax_backward(float *dx, const float *dy, const float *y, int64_t rows,
                                 int64_t n);
/* lse[rows] = log sum_j e^x[rows, n] */
void minifm_logsumexp(float *lse, const float *x, int64_t rows, int64_t n);

#endif
