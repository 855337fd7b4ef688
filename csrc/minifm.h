/* Every kernel that Python calls. CFFI parses this very text (without the lines that begin with a
 * number sign), and the C files include it.
 *
 * Argument order: outputs, inputs, sizes, scalars. Arrays are float32 and contiguous unless
 * strides are passed; strides and offsets count elements. Outputs are overwritten, never added to,
 * unless the comment says so. Functions that return int give 0, or -1 where there was no memory or,
 * where the comment says so, a place outside of an array.
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
    MINIFM_ABSOLUTE, MINIFM_SIGN, MINIFM_LOG, MINIFM_SIN, MINIFM_COS,
};

/* Functions of two. */
enum {
    MINIFM_ADD, MINIFM_SUBTRACT, MINIFM_MULTIPLY, MINIFM_DIVIDE, MINIFM_MAXIMUM, MINIFM_MINIMUM,
    MINIFM_POWER,
};

/* Comparisons. */
enum { MINIFM_LESS, MINIFM_LESS_EQUAL, MINIFM_EQUAL };

/* -- memory: pool.c ---------------------------------------------------------------------------- */

/* NumPy's PyDataMem_Handler of the pool, and the name that its capsule must have. */
void *minifm_pool_handler(void);
const char *minifm_pool_capsule_name(void);

/* Blocks handed out from memory that was there (hits) or fresh from the system (misses) since the
 * process began; bytes in use and idle; the most in use at once since memory was released. */
typedef struct {
    int64_t hits, misses, used, idle, peak;
} minifm_pool_state;
minifm_pool_state minifm_pool_statistics(void);
/* Give idle memory and the kernels' scratch back to the system; returns how many bytes. */
int64_t minifm_release_memory(void);

/* -- products: gemm.c ------------------------------------------------------------------------ */

/* c[i] = a[i] b[i], or c[i] += with accumulate, for i < batch; c [batch, m, n] is contiguous,
 * a[i] [m, k] begins at a + a_offsets[i] (NULL: a) with strides a_row, a_k of which one is 1, and
 * b[i] [k, n] likewise with b_k, b_col. With bf16, numbers of both are rounded to bf16 first. */
int minifm_matmul(float *c, const float *a, const float *b, int64_t batch, int64_t m, int64_t n,
                  int64_t k, const int64_t *a_offsets, const int64_t *b_offsets, int64_t a_row,
                  int64_t a_k, int64_t b_k, int64_t b_col, int accumulate, int bf16);

/* z = x w + bias; y = f(z) + residual. x [m, k], w [k, n] by strides as above; bias [n] and
 * residual [m, n] may be NULL. With f the identity, z is not kept: pass z == y. */
int minifm_linear(float *y, float *z, const float *x, const float *w, const float *bias,
                  const float *residual, int64_t m, int64_t n, int64_t k, int64_t x_row,
                  int64_t x_k, int64_t w_k, int64_t w_col, int function, int bf16);

/* -- weights in low precision: packed.c; the layouts are described there ------------------------ */

enum { MINIFM_FP32, MINIFM_BF16, MINIFM_INT8, MINIFM_INT4 };

/* codes and scales of w[n, k], which lies by strides. The int4 scale is the best of largest weight /
 * (-8 candidates[tried]). Weights are finite where the format is an int one. */
void minifm_pack(void *codes, uint16_t *scales, const float *w, const float *candidates,
                 int64_t n, int64_t k, int64_t w_n, int64_t w_k, int tried, int format);
/* z = x w + bias; y = f(z) + residual, as minifm_linear; x [m, k] is contiguous. */
int minifm_packed_linear(float *y, float *z, const float *x, const void *codes,
                         const uint16_t *scales, const float *bias, const float *residual,
                         int64_t m, int64_t n, int64_t k, int format, int function);
/* y[n, k] = rows ids[n] of the `rows` that are packed. Returns 0, or -1 where an id is outside. */
int minifm_packed_rows(float *y, const void *codes, const uint16_t *scales, const int64_t *ids,
                       int64_t n, int64_t rows, int64_t k, int format);

/* -- rows: rows.c ---------------------------------------------------------------------------- */

/* y[rows, n] = softmax(x[rows, n]) of each row, its logarithm, and their gradients. */
void minifm_softmax(float *y, const float *x, int64_t rows, int64_t n);
void minifm_softmax_backward(float *dx, const float *dy, const float *y, int64_t rows, int64_t n);
void minifm_log_softmax(float *y, const float *x, int64_t rows, int64_t n);
void minifm_log_softmax_backward(float *dx, const float *dy, const float *y, int64_t rows,
                                 int64_t n);
/* lse[rows] = log sum_j e^x[rows, n] */
void minifm_logsumexp(float *lse, const float *x, int64_t rows, int64_t n);

/* -- elementwise.c ----------------------------------------------------------------------------- */

/* y[n] = f(x[n]);  dx[n] = dy[n] f'(x[n]) */
void minifm_map(float *y, const float *x, int64_t n, int function);
void minifm_map_backward(float *dx, const float *dy, const float *x, int64_t n, int function);
/* out[n] = x[n] op y[n]; an operand whose step is 0 is one number. out may be x or y. */
void minifm_binary(float *out, const float *x, const float *y, int64_t n, int x_step, int y_step,
                   int operation);
/* The same on arrays of up to 64 dimensions, x and y by strides (0: broadcast), out contiguous.
 * sizes_strides is shape[ndim], strides of x[ndim], strides of y[ndim]. */
void minifm_binary_strided(float *out, const float *x, const float *y, int ndim,
                           const int64_t *sizes_strides, int operation);
/* Likewise a comparison, 1 or 0 a byte; and out = condition ? x : y, whose strides come first. */
void minifm_compare(uint8_t *out, const float *x, const float *y, int ndim,
                    const int64_t *sizes_strides, int operation);
void minifm_choose(float *out, const uint8_t *condition, const float *x, const float *y, int ndim,
                   const int64_t *sizes_strides);

/* -- reduce.c ------------------------------------------------------------------------------------ */

/* out[outer, inner] = the sum of x[outer, n, inner] over its middle dimension. */
int minifm_sum(float *out, const float *x, int64_t outer, int64_t n, int64_t inner);

/* out[outer, inner] = the largest, or the smallest, of x[outer, n, inner] over its middle dimension
 * (n > 0), and NaN where there is one; `operation` is MINIFM_MAXIMUM or MINIFM_MINIMUM. */
void minifm_extreme(float *out, const float *x, int64_t outer, int64_t n, int64_t inner,
                    int operation);
/* Likewise the first place of the largest, or of the first NaN. */
void minifm_argmax(int64_t *out, const float *x, int64_t outer, int64_t n, int64_t inner);

/* -- norm.c -------------------------------------------------------------------------------------- */

/* y[rows, n], mean[rows], rstd[rows] of x[rows, n], gamma[n], beta[n] */
void minifm_layernorm(float *y, float *mean, float *rstd, const float *x, const float *gamma,
                      const float *beta, int64_t rows, int64_t n, float eps);
/* dx[rows, n], dgamma_dbeta[2, n] */
int minifm_layernorm_backward(float *dx, float *dgamma_dbeta, const float *dy, const float *x,
                              const float *gamma, const float *mean, const float *rstd,
                              int64_t rows, int64_t n);
void minifm_rmsnorm(float *y, float *rstd, const float *x, const float *gamma, int64_t rows,
                    int64_t n, float eps);
int minifm_rmsnorm_backward(float *dx, float *dgamma, const float *dy, const float *x,
                            const float *gamma, const float *rstd, int64_t rows, int64_t n);

/* -- convolution.c ------------------------------------------------------------------------------- */

/* Sizes: images [batch, groups inputs, image], weights [groups outputs, inputs, window], results
 * [batch, groups outputs, result]; image, window, result, stride and padding are (height, width). */
typedef struct {
    int64_t batch, groups, inputs, outputs;     /* inputs and outputs: channels of one group */
    int64_t image[2], window[2], result[2], stride[2], padding[2];
} minifm_convolution;

/* y = the convolution of x with w, plus bias [groups outputs], which may be NULL. */
int minifm_convolve(float *y, const float *x, const float *w, const float *bias,
                    const minifm_convolution *sizes);
/* dx = its adjoint applied to dy, plus bias [groups inputs], which may be NULL. */
int minifm_convolve_image_adjoint(float *dx, const float *dy, const float *w, const float *bias,
                                  const minifm_convolution *sizes);
int minifm_convolve_weight_adjoint(float *dw, const float *dy, const float *x,
                                   const minifm_convolution *sizes);

/* -- pooling.c: a convolution's sizes, each channel a group, inputs = outputs = 1 ------------------- */

/* y = the largest of each window, place = which of its elements that was. */
void minifm_max_pool(float *y, int64_t *place, const float *x, const minifm_convolution *sizes);
void minifm_max_pool_backward(float *dx, const float *dy, const int64_t *place,
                              const minifm_convolution *sizes);
void minifm_average_pool(float *y, const float *x, const minifm_convolution *sizes);
void minifm_average_pool_backward(float *dx, const float *dy, const minifm_convolution *sizes);
/* y [rows, down, cols, right] = x [rows, cols];  dx = the sum of dy's blocks. */
void minifm_upsample(float *y, const float *x, int64_t rows, int64_t cols, int64_t down,
                     int64_t right);
void minifm_upsample_backward(float *dx, const float *dy, int64_t rows, int64_t cols,
                              int64_t down, int64_t right);

/* -- groupnorm.c ------------------------------------------------------------------------------------ */

/* y = f(z), z = x normalised over each group, times gamma, plus beta: x [batch, groups, width, n],
 * gamma and beta [groups, width], mean and rstd [batch, groups]. */
void minifm_groupnorm(float *y, float *mean, float *rstd, const float *x, const float *gamma,
                      const float *beta, int64_t batch, int64_t groups, int64_t width, int64_t n,
                      float eps, int function);
/* dx, and dgamma_dbeta [2, groups, width] */
int minifm_groupnorm_backward(float *dx, float *dgamma_dbeta, const float *dy, const float *x,
                              const float *gamma, const float *beta, const float *mean,
                              const float *rstd, int64_t batch, int64_t groups, int64_t width,
                              int64_t n, int function);

/* -- attention.c --------------------------------------------------------------------------------- */

/* Sizes and the strides of batch, head and position; the last dimension is contiguous. A bias has
 * strides for all four dimensions, the last 1 or 0. Query head h looks at key head
 * h / (heads / key_heads). With `bf16`, k and v are of 16 bits, not of 32; forward only. */
typedef struct {
    int64_t batch, heads, key_heads, queries, keys, width, value_width;
    int64_t q_strides[3], k_strides[3], v_strides[3], y_strides[3], dy_strides[3];
    int64_t dq_strides[3], dk_strides[3], dv_strides[3], bias_strides[4];
    float scale;
    int causal, bf16;
} minifm_attention_shape;

/* y [batch, queries, heads, value_width] by y_strides; lse [batch, heads, queries]; bias and dbias
 * [batch, heads, queries, keys], dbias contiguous; key_mask [batch, keys] of 0 and 1; lengths[batch],
 * of which batch b has only the first lengths[b] keys; first_keys [batch, queries], before which a
 * query looks at none. bias, dbias, key_mask, lengths and first_keys may be NULL. */
int minifm_attention(float *y, float *lse, const float *q, const void *k, const void *v,
                     const float *bias, const uint8_t *key_mask, const int64_t *lengths,
                     const int64_t *first_keys, const minifm_attention_shape *shape);
int minifm_attention_backward(float *dq, float *dk, float *dv, float *dbias, const float *dy,
                              const float *q, const float *k, const float *v, const float *bias,
                              const uint8_t *key_mask, const int64_t *lengths,
                              const int64_t *first_keys, const float *y, const float *lse, const minifm_attention_shape *shape);

/* -- cache.c -------------------------------------------------------------------------------------- */

/* keys [batch, heads, capacity, width]: slot starts[b] + t of each head = k of token t; values
 * likewise, float32 or, with `bf16`, rounded to that. k, v [batch, heads, tokens, ...] by strides
 * but for the last. Returns 0, or -1, and nothing is written, where tokens would fall outside of
 * the slots. */
int minifm_cache_append(void *keys, void *values, const float *k, const float *v,
                        const int64_t *starts, const int64_t *k_strides, const int64_t *v_strides,
                        int64_t batch, int64_t heads, int64_t tokens, int64_t capacity,
                        int64_t width, int64_t value_width, int bf16);
/* y[n] = x[n], of bf16. */
void minifm_widen(float *y, const uint16_t *x, int64_t n);

/* -- loss.c -------------------------------------------------------------------------------------- */

/* losses[rows], lse[rows] of logits[rows, n], targets[rows]. Returns 0, or -1 where a target is
 * neither ignored nor in 0 ... n - 1, and nothing is written. */
int minifm_cross_entropy(float *losses, float *lse, const float *logits, const int64_t *targets,
                         int64_t rows, int64_t n, int64_t ignored, float smoothing);
/* dlogits[rows, n] = dlosses (softmax - target distribution). Returns the same. */
int minifm_cross_entropy_backward(float *dlogits, const float *dlosses, const float *logits,
                                  const int64_t *targets, const float *lse, int64_t rows,
                                  int64_t n, int64_t ignored, float smoothing);

/* -- embedding.c --------------------------------------------------------------------------------- */

/* y[i] = w[ids[i]], rows of `width` numbers. Returns 0, or -1 where an id is outside 0 ... rows-1,
 * and nothing is written. */
int minifm_embedding(float *y, const float *w, const int64_t *ids, int64_t n, int64_t rows,
                     int64_t width);
/* dw[ids[i]] += dy[i] for i = 0, 1, ..., in that order. Returns the same; then dw is unchanged. */
int minifm_embedding_backward(float *dw, const float *dy, const int64_t *ids, int64_t n,
                              int64_t rows, int64_t width);

/* out[outer, k, inner] = x[outer, n, inner] where index[outer, k, inner] says in the middle dimension,
 * a negative one from its end; and the adjoint: out[outer, n, inner] = 0, values[outer, k, inner]
 * added at these places, in the order of k. They return -1, and do nothing, where a place is
 * outside. */
int minifm_take_along(float *out, const float *x, const int64_t *index, int64_t outer, int64_t k,
                      int64_t n, int64_t inner);
int minifm_add_along(float *out, const float *values, const int64_t *index, int64_t outer,
                     int64_t k, int64_t n, int64_t inner);

/* y[batch, positions, heads, 2 half] = x [batch, heads, positions, 2 half], by strides but for the
 * last, with each pair (x_d, x_{d + half}) rotated; cos, sin [batch, positions, half], where a new
 * batch begins `angles` numbers further on (0: one for all). `inverse` rotates back. */
void minifm_rope(float *y, const float *x, const float *cos, const float *sin, int64_t batch,
                 int64_t positions, int64_t heads, int64_t half, const int64_t *strides,
                 int64_t angles, int inverse);

/* -- optimizer.c: in place ------------------------------------------------------------------------- */

/* Each takes so many arrays; ends[i] counts the elements of arrays 0 ... i. decays[arrays];
 * constants: gradient scale, 1 - beta1, 1 - beta2, 1 / (1 - beta1^t), 1 / (1 - beta2^t), eps, lr */
void minifm_adamw(float *const *params, float *const *m, float *const *v,
                  const float *const *grads, const int64_t *ends, int64_t arrays,
                  const float *decays, const float *constants);
/* average += rate (param - average) */
void minifm_ema(float *const *averages, const float *const *params, const int64_t *ends,
                int64_t arrays, float rate);
/* The sum of all squares, in double precision; -1 where there was no memory. */
double minifm_sum_of_squares(const float *const *x, const int64_t *ends, int64_t arrays);

/* -- noise.c: words 0 ... n - 1 of the Philox stream (key0, key1) ------------------------------------ */

void minifm_random_bits(uint64_t *out, int64_t n, uint64_t key0, uint64_t key1);
void minifm_uniform(float *out, int64_t n, uint64_t key0, uint64_t key1);
void minifm_normal(float *out, int64_t n, uint64_t key0, uint64_t key1);
/* y[i] = x[i] * scale where uniform i >= probability, else 0 */
void minifm_dropout(float *y, const float *x, int64_t n, uint64_t key0, uint64_t key1,
                    float probability, float scale);

/* -- ceilings.c: what the machine can do at most, on all threads ------------------------------------- */

/* Multiply-adds in registers, `rounds` of them in every chain; returns the operations done. With
 * bf16, of operands of bf16; 0 where the instruction set does not multiply those. */
int64_t minifm_multiply_adds(int64_t rounds, int bf16);
/* Reads x[n]; returns a number that depends on all of it. */
uint64_t minifm_read(const uint64_t *x, int64_t n);
/* y[n] = x[n] */
void minifm_copy(uint64_t *y, const uint64_t *x, int64_t n);

#endif
