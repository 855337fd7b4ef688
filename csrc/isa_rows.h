/* Kernels that walk along a row, with the functions of isa_functions.h.
 *
 * The last, partial vector of a row runs the same instructions on padded lanes, so that a value
 * never depends on where in a row, or in which tail, its element lies.
 */

/* -- elementwise ------------------------------------------------------------------------------ */

#define MAP(f)                                              \
    EACH_VECTOR vput(y + i, f(vget(x + i, left, 0)), left); \
    break;

static TARGET void row_map(float *y, const float *x, int64_t n, int function)
{
    switch (function) {
    case MINIFM_RELU: MAP(vrelu)
    case MINIFM_SILU: MAP(vsilu)
    case MINIFM_GELU: MAP(vgelu)
    case MINIFM_GELU_TANH: MAP(vgelu_tanh)
    case MINIFM_GELU_QUICK: MAP(vgelu_quick)
    case MINIFM_SIGMOID: MAP(vsigmoid)
    case MINIFM_TANH: MAP(vtanh)
    case MINIFM_EXP: MAP(vexp)
    case MINIFM_ERF: MAP(verf)
    case MINIFM_SQRT: MAP(vsqrt)
    case MINIFM_NEGATIVE: MAP(vnegative)
    case MINIFM_ABSOLUTE: MAP(vabs)
    case MINIFM_SIGN: MAP(vsign)
    case MINIFM_LOG: MAP(vlog)
    case MINIFM_SIN: MAP(vsin)
    case MINIFM_COS: MAP(vcos)
    }
}

#define MAP_BACKWARD(slope)                                                                    \
    EACH_VECTOR vput(dx + i, vmul(vget(dy + i, left, 0), slope(vget(x + i, left, 0))), left); \
    break;

static TARGET void row_map_backward(float *dx, const float *dy, const float *x, int64_t n,
                                    int function)
{
    switch (function) {
    case MINIFM_RELU: MAP_BACKWARD(vrelu_slope)
    case MINIFM_SILU: MAP_BACKWARD(vsilu_slope)
    case MINIFM_GELU: MAP_BACKWARD(vgelu_slope)
    case MINIFM_GELU_TANH: MAP_BACKWARD(vgelu_tanh_slope)
    case MINIFM_GELU_QUICK: MAP_BACKWARD(vgelu_quick_slope)
    }
}

static TARGET void row_epilogue(float *y, float *z, const float *bias, const float *residual,
                                int64_t n, int function)
{
    if (bias)
        EACH_VECTOR vput(z + i, vadd(vget(z + i, left, 0), vget(bias + i, left, 0)), left);
    if (function != MINIFM_IDENTITY)
        row_map(y, z, n, function);
    const float *x = function != MINIFM_IDENTITY ? y : z;
    if (residual)
        EACH_VECTOR vput(y + i, vadd(vget(x + i, left, 0), vget(residual + i, left, 0)), left);
}

/* Both operands vectors, or one of them a single number. */
#define OF_TWO(put, f)                                                                        \
    if (x_step && y_step)                                                                     \
        EACH_VECTOR put(out + i, f(vget(x + i, left, 1), vget(y + i, left, 1)), left);        \
    else if (x_step)                                                                          \
        EACH_VECTOR put(out + i, f(vget(x + i, left, 1), vset(*y)), left);                    \
    else                                                                                      \
        EACH_VECTOR put(out + i, f(vset(*x), vget(y + i, left, 1)), left);                    \
    break;
#define BINARY(f) OF_TWO(vput, f)
#define COMPARE(f) OF_TWO(vput_truth, f)

static TARGET void row_binary(float *out, const float *x, const float *y, int64_t n, int x_step,
                              int y_step, int operation)
{
    switch (operation) {
    case MINIFM_ADD: BINARY(vadd)
    case MINIFM_SUBTRACT: BINARY(vsub)
    case MINIFM_MULTIPLY: BINARY(vmul)
    case MINIFM_DIVIDE: BINARY(vdiv)
    case MINIFM_MAXIMUM: BINARY(vmaximum)
    case MINIFM_MINIMUM: BINARY(vminimum)
    case MINIFM_POWER: BINARY(vpower)
    }
}

INLINE void vput_truth(uint8_t *p, vm m, int64_t left)
{
    int8_t bytes[VL];
    vstore_bytes(bytes, vselect(m, vset(1), vset(0)));
    memcpy(p, bytes, (size_t)(left < VL ? left : VL));
}

static TARGET void row_compare(uint8_t *out, const float *x, const float *y, int64_t n, int x_step,
                               int y_step, int operation)
{
    switch (operation) {
    case MINIFM_LESS: COMPARE(vless)
    case MINIFM_LESS_EQUAL: COMPARE(vless_equal)
    case MINIFM_EQUAL: COMPARE(vequal)
    }
}

static TARGET void row_choose(float *out, const uint8_t *condition, const float *x, const float *y,
                              int64_t n, int x_step, int y_step)
{
    EACH_VECTOR
    {
        uint8_t bytes[VL] = {0};
        memcpy(bytes, condition + i, (size_t)(left < VL ? left : VL));
        vf first = x_step ? vget(x + i, left, 0) : vset(*x);
        vf second = y_step ? vget(y + i, left, 0) : vset(*y);
        vput(out + i, vselect(vtrue(bytes), first, second), left);
    }
}

/* No branch: which numbers are dropped is what no processor can predict. */
static TARGET void row_keep(float *y, const float *x, const float *drawn, int64_t n,
                            float probability, float scale)
{
    EACH_VECTOR
    {
        vm kept = vless_equal(vset(probability), vget(drawn + i, left, 0));
        vput(y + i, vselect(kept, vmul(vget(x + i, left, 0), vset(scale)), vset(0)), left);
    }
}

static TARGET void row_scale(float *y, const float *x, int64_t n, float scale)
{
    EACH_VECTOR vput(y + i, vmul(vget(x + i, left, 0), vset(scale)), left);
}

static TARGET void row_shift_scale(float *y, const float *x, int64_t n, float shift, float scale)
{
    EACH_VECTOR vput(y + i, vmul(vadd(vget(x + i, left, 0), vset(shift)), vset(scale)), left);
}

/* -- reductions of a row: in an order that depends on its length alone -------------------------- */

static TARGET float row_sum(const float *x, int64_t n)
{
    vf total;
    CARRY(total, vset(0), vadd, vadd(t, vget(x + i, left, 0)))
    return vsum(total);
}

static TARGET double row_sum_of_squares(const float *x, int64_t n)
{
    vwide total = vwide_zero();
    EACH_VECTOR total = vwide_square(total, vget(x + i, left, 0));
    return vwide_total(total);
}

static TARGET float row_dot(const float *x, const float *y, int64_t n)
{
    vf total;
    CARRY(total, vset(0), vadd, vfma(vget(x + i, left, 0), vget(y + i, left, 0), t))
    return vsum(total);
}

/* Of those that are not NaN; -inf without any. */
static TARGET float row_max(const float *x, int64_t n)
{
    vf top;
    CARRY(top, vset(-INFINITY), vmax, vmax(vget(x + i, left, -INFINITY), t))
    return vlargest(top);
}

static TARGET float row_extreme(const float *x, int64_t n, int operation)
{
    float lanes[VL];
    vf found;
    if (operation == MINIFM_MAXIMUM)
        CARRY(found, vset(x[0]), vmaximum, vmaximum(t, vget(x + i, left, x[0])))
    else
        CARRY(found, vset(x[0]), vminimum, vminimum(t, vget(x + i, left, x[0])))
    vstore(lanes, found);
    for (int l = 1; l < VL; l++) {
        int further = operation == MINIFM_MAXIMUM ? lanes[l] > lanes[0] : lanes[l] < lanes[0];
        if (further || lanes[l] != lanes[l])
            lanes[0] = lanes[l];
    }
    return lanes[0];
}

static TARGET float row_exp_sum(float *y, const float *x, int64_t n, float shift)
{
    vf total = vset(0);
    EACH_VECTOR
    {
        vf e = vexp_flushed(vsub(vget_ahead(x + i, left, -INFINITY, next_row(n)), vset(shift)));
        vput(y + i, e, left);
        total = vadd(total, e);
    }
    return vsum(total);
}

/* The first of equals stays; so does a NaN, which is larger than any number. */
static TARGET void row_keep_larger(float *top, float *place, const float *x, int64_t n, float here)
{
    EACH_VECTOR
    {
        vf value = vget(x + i, left, 0), old = vget(top + i, left, 0), at = vget(place + i, left, 0);
        vm stays = vless_equal(value, old), full = vnan(old);
        vput(top + i, vselect(full, old, vselect(stays, old, value)), left);
        vput(place + i, vselect(full, at, vselect(stays, at, vset(here))), left);
    }
}

/* -- rotary positions ------------------------------------------------------------------------- */

static TARGET void row_rotate(float *y, const float *x, const float *cos, const float *sin,
                              int64_t n, float sign)
{
    EACH_VECTOR
    {
        vf first = vget(x + i, left, 0), second = vget(x + n + i, left, 0);
        vf c = vget(cos + i, left, 0), s = vmul(vget(sin + i, left, 0), vset(sign));
        vput(y + i, vsub(vmul(first, c), vmul(second, s)), left);
        vput(y + n + i, vadd(vmul(second, c), vmul(first, s)), left);
    }
}

/* -- softmax ---------------------------------------------------------------------------------- */

/* The row's maximum, or 0 for a row of -inf: there -inf - -inf would make NaN. */
INLINE float row_shift(const float *x, int64_t n)
{
    float top = row_max(x, n);
    return top == -INFINITY ? 0 : top;
}

static TARGET void row_softmax(float *y, const float *x, int64_t n)
{
    float total = row_exp_sum(y, x, n, row_shift(x, n));
    row_scale(y, y, n, total == 0 ? 1 : 1 / total); /* a row of -inf: all zeros */
}

/* Sum_j e^(x_j - *shift), *shift the maximum. A long row is read once, in pieces that the cache
 * holds while their own maximum is sought; where that is a new one, the sum so far is scaled. */
static TARGET float shifted_sum(const float *row, int64_t length, float *shift)
{
    float top = -INFINITY, total = 0;
    for (int64_t begin = 0; begin < length; begin += SHORT_ROW) {
        const float *x = row + begin;
        const int64_t n = length - begin < SHORT_ROW ? length - begin : SHORT_ROW;
        const float before = top, own = row_max(x, n);
        top = own > top ? own : top;
        *shift = top == -INFINITY ? 0 : top;
        if (top != before)
            total *= expf(before - top);
        vf sum, minus = vset(*shift);
        CARRY(sum, vset(0), vadd,
              vadd(t, vexp_flushed(vsub(vget_ahead(x + i, left, -INFINITY, n), minus))))
        total += vsum(sum);
    }
    return total;
}

static TARGET float row_logsumexp(const float *x, int64_t n)
{
    float shift = 0, total = shifted_sum(x, n, &shift);
    return shift + logf(total);
}

static TARGET void row_log_softmax(float *y, const float *x, int64_t n)
{
    float shift = 0, log_total = logf(shifted_sum(x, n, &shift));
    EACH_VECTOR
    {
        vf shifted = vsub(vget_ahead(x + i, left, 0, next_row(n)), vset(shift));
        vput(y + i, vsub(shifted, vset(log_total)), left);
    }
}

/* dx = y (dy - sum_j dy_j y_j) */
static TARGET void row_softmax_backward(float *dx, const float *dy, const float *y, int64_t n)
{
    vf delta = vset(row_dot(dy, y, n));
    EACH_VECTOR
    {
        vf d = vsub(vget(dy + i, left, 0), delta);
        vput(dx + i, vmul(vget(y + i, left, 0), d), left);
    }
}

/* dx = dy - e^y sum_j dy_j */
static TARGET void row_log_softmax_backward(float *dx, const float *dy, const float *y, int64_t n)
{
    vf total = vset(row_sum(dy, n));
    EACH_VECTOR
    {
        vf p = vexp_flushed(vget(y + i, left, 0));
        vput(dx + i, vfnma(p, total, vget(dy + i, left, 0)), left);
    }
}

/* -- normalisation ---------------------------------------------------------------------------- */

INLINE vf square_added(vf x, vf sum) { return vfma(x, x, sum); }

static TARGET void row_layernorm(float *y, float *mean, float *rstd, const float *x,
                                 const float *gamma, const float *beta, int64_t n, float eps)
{
    *mean = row_sum(x, n) / (float)n;
    vf m = vset(*mean), squares;
    /* padding by the mean adds nothing */
    CARRY(squares, vset(0), vadd, square_added(vsub(vget(x + i, left, *mean), m), t))
    *rstd = 1 / sqrtf(vsum(squares) / (float)n + eps);
    vf r = vset(*rstd);
    EACH_VECTOR
    {
        vf normalised = vmul(vsub(vget_ahead(x + i, left, 0, next_row(n)), m), r);
        vput(y + i, vfma(normalised, vget(gamma + i, left, 0), vget(beta + i, left, 0)), left);
    }
}

/* y = (x - mean) rstd gamma + beta. With x^ = (x - mean) rstd and g = dy gamma:
 * dx = rstd (g - mean(g) - x^ mean(g x^)). dgamma and dbeta are added to. */
static TARGET void row_layernorm_backward(float *dx, float *dgamma, float *dbeta, const float *dy,
                                          const float *x, const float *gamma, int64_t n,
                                          float mean, float rstd)
{
    vf m = vset(mean), r = vset(rstd), sum_g = vset(0), sum_gx = vset(0);
    EACH_VECTOR
    {
        vf d = vget(dy + i, left, 0), g = vmul(d, vget(gamma + i, left, 0));
        vf normalised = vmul(vsub(vget(x + i, left, 0), m), r);
        sum_g = vadd(sum_g, g);
        sum_gx = vfma(g, normalised, sum_gx);
        vput(dgamma + i, vfma(d, normalised, vget(dgamma + i, left, 0)), left);
        vput(dbeta + i, vadd(vget(dbeta + i, left, 0), d), left);
    }
    vf centre = vset(vsum(sum_g) / (float)n), slope = vset(vsum(sum_gx) / (float)n);
    EACH_VECTOR
    {
        vf g = vmul(vget(dy + i, left, 0), vget(gamma + i, left, 0));
        vf normalised = vmul(vsub(vget(x + i, left, 0), m), r);
        vput(dx + i, vmul(r, vfnma(normalised, slope, vsub(g, centre))), left);
    }
}

static TARGET void row_rmsnorm(float *y, float *rstd, const float *x, const float *gamma,
                               int64_t n, float eps)
{
    *rstd = 1 / sqrtf(row_dot(x, x, n) / (float)n + eps);
    vf r = vset(*rstd);
    EACH_VECTOR vput(y + i, vmul(vmul(vget(x + i, left, 0), r), vget(gamma + i, left, 0)), left);
}

/* y = x rstd gamma: as layernorm's, without the mean. */
static TARGET void row_rmsnorm_backward(float *dx, float *dgamma, const float *dy, const float *x,
                                        const float *gamma, int64_t n, float rstd)
{
    vf r = vset(rstd), sum_gx = vset(0);
    EACH_VECTOR
    {
        vf d = vget(dy + i, left, 0), g = vmul(d, vget(gamma + i, left, 0));
        vf normalised = vmul(vget(x + i, left, 0), r);
        sum_gx = vfma(g, normalised, sum_gx);
        vput(dgamma + i, vfma(d, normalised, vget(dgamma + i, left, 0)), left);
    }
    vf slope = vset(vsum(sum_gx) / (float)n);
    EACH_VECTOR
    {
        vf g = vmul(vget(dy + i, left, 0), vget(gamma + i, left, 0));
        vf normalised = vmul(vget(x + i, left, 0), r);
        vput(dx + i, vmul(r, vfnma(normalised, slope, g)), left);
    }
}

/* -- pieces of group norm: lanes beyond the row's end hold the centre, and add nothing ------------- */

static TARGET float row_squares(const float *x, int64_t n, float centre)
{
    vf sum, c = vset(centre);
    CARRY(sum, vset(0), vadd, square_added(vsub(vget(x + i, left, centre), c), t))
    return vsum(sum);
}

static TARGET float row_centred_dot(const float *dz, const float *x, int64_t n, float centre)
{
    vf sum, c = vset(centre);
    CARRY(sum, vset(0), vadd,
          vfma(vget(dz + i, left, 0), vsub(vget(x + i, left, centre), c), t))
    return vsum(sum);
}

static TARGET void row_affine(float *y, const float *x, int64_t n, float centre, float scale,
                              float offset)
{
    vf c = vset(centre), factor = vset(scale), term = vset(offset);
    EACH_VECTOR vput(y + i, vfma(vsub(vget(x + i, left, 0), c), factor, term), left);
}

static TARGET void row_blend(float *dx, const float *dz, const float *x, int64_t n, float centre,
                             float p, float q, float r)
{
    vf c = vset(centre), by_dz = vset(p), by_x = vset(q), term = vset(r);
    EACH_VECTOR
    {
        vf rest = vfma(vsub(vget(x + i, left, 0), c), by_x, term);
        vput(dx + i, vfma(vget(dz + i, left, 0), by_dz, rest), left);
    }
}

/* -- AdamW: 28 bytes a parameter, one pass ------------------------------------------------------ */

static TARGET void row_adamw(float *param, const float *grad, float *m, float *v, int64_t n,
                             float weight_decay, const float *constants)
{
    vf scale = vset(constants[0]), rate1 = vset(constants[1]), rate2 = vset(constants[2]);
    vf unbias1 = vset(constants[3]), unbias2 = vset(constants[4]), eps = vset(constants[5]);
    vf lr = vset(constants[6]), decay = vset(weight_decay);
    EACH_VECTOR
    {
        vf g = vmul(vget(grad + i, left, 0), scale), p = vget(param + i, left, 0);
        vf m1 = vget(m + i, left, 0), v1 = vget(v + i, left, 0);
        m1 = vfma(rate1, vsub(g, m1), m1);
        v1 = vfma(rate2, vsub(vmul(g, g), v1), v1);
        vput(m + i, m1, left);
        vput(v + i, v1, left);
        vf update = vdiv(vmul(m1, unbias1), vadd(vsqrt(vmul(v1, unbias2)), eps));
        vput(param + i, vfnma(lr, vfma(decay, p, update), p), left);
    }
}

/* average += rate (param - average) */
static TARGET void row_ema(float *average, const float *param, int64_t n, float rate)
{
    EACH_VECTOR
    {
        vf a = vget(average + i, left, 0);
        vput(average + i, vfma(vset(rate), vsub(vget(param + i, left, 0), a), a), left);
    }
}

#define ROW_KERNELS                                                                         \
    .extreme = row_extreme, .keep_larger = row_keep_larger, .rotate = row_rotate, .map = row_map,     \
    .map_backward = row_map_backward, .epilogue = row_epilogue, .softmax = row_softmax,     \
    .softmax_backward = row_softmax_backward, .log_softmax = row_log_softmax,               \
    .log_softmax_backward = row_log_softmax_backward, .logsumexp = row_logsumexp,           \
    .sum = row_sum, .sum_of_squares = row_sum_of_squares, .exp_sum = row_exp_sum,           \
    .keep = row_keep, .scale = row_scale, .shift_scale = row_shift_scale,                   \
    .binary = row_binary, .compare = row_compare, .choose = row_choose, .ema = row_ema,     \
    .layernorm = row_layernorm, .layernorm_backward = row_layernorm_backward,               \
    .rmsnorm = row_rmsnorm, .rmsnorm_backward = row_rmsnorm_backward, .adamw = row_adamw,   \
    .squares = row_squares, .centred_dot = row_centred_dot, .affine = row_affine,           \
    .blend = row_blend
