/* Every row kernel, written once, in the vector vocabulary of the isa_*.c that includes this.
 *
 *   vf a vector of VL floats, vm a mask of lanes        vset vload vstore, _part for n < VL lanes
 *   vadd vsub vmul vdiv vsqrt vabs vcopysign vround     vfma(x, y, z) = x y + z,  vfnma = z - x y
 *   vmax(x, y) = x > y ? x : y, vmin likewise: y where either is NaN
 *   vscale(x, n) = x 2^n      vless vless_equal vequal vnan, vselect(m, x, y) = m ? x : y
 *   vany(m), vsum, vlargest over lanes      vtrue(p): which of VL bytes are not 0
 *   vrest(x, y, p) = x y - p, exactly, p being the rounded product
 *   vsplit(x, &e): m of sqrt(1/2) ... sqrt(2) and integral e with x = m 2^e, x no less than 2^-126
 *   vexponent(x): the float whose sign and exponent are the lowest 9 bits of x, its fraction 0
 *
 * The last, partial vector of a row runs the same instructions on padded lanes, so that a value
 * never depends on where in a row, or in which tail, its element lies.
 */
#include "minifm.h"

#include <math.h>
#include <string.h>

/* The next vector of a row with `left` numbers to go; missing lanes hold `fill`. */
INLINE vf vget(const float *p, int64_t left, float fill)
{
    return left >= VL ? vload(p) : vload_part(p, left, fill);
}

/* The same, and ask for what lies `ahead` numbers further on. A row that takes several passes
 * leaves the memory idle in all but the first; rows follow one another, so the others ask for the
 * next row, where both are so short that the first-level cache holds them. */
INLINE vf vget_ahead(const float *p, int64_t left, float fill, int64_t ahead)
{
    __builtin_prefetch(p + ahead);
    return vget(p, left, fill);
}

enum { SHORT_ROW = 2048 };
INLINE int64_t next_row(int64_t n) { return n <= SHORT_ROW ? n : 0; }

INLINE void vput(float *p, vf x, int64_t left)
{
    if (left >= VL)
        vstore(p, x);
    else
        vstore_part(p, x, left);
}

/* for each vector of a row of n, with `left` numbers to go at i */
#define EACH_VECTOR for (int64_t i = 0, left = n; i < n; i += VL, left -= VL)

/* `result` = `start` carried through a row by t = `next`, an expression in t, i and left. Four
 * carry at once, because each would wait for its own last step; `join` then makes them one. */
#define CARRY(result, start, join, next)                              \
    {                                                                 \
        vf part[4] = {start, start, start, start};                    \
        int64_t i = 0, left = n;                                      \
        while (left >= 4 * VL) {                                      \
            CARRY_ON(0, next) CARRY_ON(1, next) CARRY_ON(2, next)     \
            CARRY_ON(3, next)                                         \
        }                                                             \
        while (left > 0)                                              \
            CARRY_ON(0, next)                                         \
        result = join(join(part[0], part[1]), join(part[2], part[3])); \
    }
#define CARRY_ON(k, next)     \
    {                         \
        vf t = part[k];       \
        part[k] = next;       \
        i += VL, left -= VL;  \
    }

/* -- functions of one variable ---------------------------------------------------------------- */

/* c0 + c1 x + ... + c7 x^7 from x, x^2 and x^4 (Estrin 1960): a processor waits for three
 * multiply-adds where Horner's rule has it wait for seven. */
INLINE vf polynomial(vf x, vf square, vf fourth, const float c0, const float c1, const float c2,
                     const float c3, const float c4, const float c5, const float c6,
                     const float c7)
{
    vf low = vfma(vfma(vset(c3), x, vset(c2)), square, vfma(vset(c1), x, vset(c0)));
    vf high = vfma(vfma(vset(c7), x, vset(c6)), square, vfma(vset(c5), x, vset(c4)));
    return vfma(high, fourth, low);
}

/* e^r - 1, r in +- log 2 / 2: r + r^2 P(r), P a minimax polynomial (relative error 3e-9) whose
 * pairs of terms need not wait for each other. */
INLINE vf exp_near_0(vf r)
{
    vf square = vmul(r, r);
    vf low = vfma(vset(1.666651964e-1f), r, vset(4.999999404e-1f));
    vf high = vfma(vset(8.368780836e-3f), r, vset(4.166839272e-2f));
    high = vfma(vset(1.381446724e-3f), square, high);
    return vfma(vfma(high, square, low), square, r);
}

/* e^r - 1, r = x - n log 2, with log 2 split so that n * HIGH is exact. */
INLINE vf exp_rest(vf x, vf n)
{
    vf r = vfnma(n, vset(0.693359375f), x);
    return exp_near_0(vfnma(n, vset(-2.12194440e-4f), r));
}

/* e^x, x = n log 2 + r. Beyond the clamp the result is 0 or infinity; NaN passes through. */
INLINE vf vexp(vf x)
{
    x = vmax(vset(-104.0f), vmin(vset(89.0f), x));
    vf n = vround(vmul(x, vset(1.44269504f)));
    return vscale(vadd(exp_rest(x, n), vset(1)), n);
}

/* 2^k e^x at little more than half the cost: below 2^-126 it is 0, and from 2^127 on it grows no
 * more. Adding 1.5 * 2^23 rounds to the integer n; with a float's bias, 127, and k more, the sum's
 * lowest bits are the exponent of 2^(n + k). */
INLINE vf vexp_scaled(vf x, const int k)
{
    const float log_2 = 0.693147181f, magic = 12582912.0f + 127 + (float)k;
    x = vmax(vset(-log_2 * (float)(127 + k)), vmin(vset(log_2 * (float)(127 - k)), x));
    vf biased = vfma(x, vset(1.44269504f), vset(magic)), power = vexponent(biased);
    return vfma(exp_rest(x, vsub(biased, vset(magic))), power, power);
}

/* For what is added to larger numbers. */
INLINE vf vexp_flushed(vf x) { return vexp_scaled(x, 0); }

/* e^x / (1 + e^x), both scaled so that the smallest quotients, too, are rounded but once. */
INLINE vf vsigmoid(vf x)
{
    vf e = vexp_scaled(x, 24);
    return vdiv(e, vadd(vset(0x1p24f), e));
}

/* e^x - 1 for x in -87 ... 88, with as many digits near 0 as elsewhere: (2^n - 1) + 2^n (e^r - 1). */
INLINE vf vexp_less_1(vf x)
{
    const float magic = 12582912.0f + 127;      /* as in vexp_scaled */
    vf biased = vfma(x, vset(1.44269504f), vset(magic)), power = vexponent(biased);
    return vfma(exp_rest(x, vsub(biased, vset(magic))), power, vsub(power, vset(1)));
}

/* (e^2|x| - 1) / (e^2|x| + 1), from 10 on 1 */
INLINE vf vtanh(vf x)
{
    vf t = vmin(vset(10), vabs(x)), e = vexp_less_1(vadd(t, t));
    return vcopysign(vdiv(e, vadd(e, vset(2))), x);
}

/* 1 - e^(|x| Q(|x|)), Q the minimax polynomial of log erfc x / x by what it does to erf (relative
 * error 4e-9); from 4 on, erf rounds to 1. */
INLINE vf verf(vf x)
{
    vf t = vmin(vset(4), vabs(x)), square = vmul(t, t), fourth = vmul(square, square);
    vf q = polynomial(t, square, fourth, -3.37917171e-3f, -6.36619389e-1f, -1.02777727e-1f,
                      1.91526264e-2f, 1.61246193e-4f, -1.66790350e-3f, 6.33331714e-4f,
                      -1.17785967e-4f);
    vf eighth = vmul(fourth, fourth);
    q = vfma(vset(9.27336805e-6f), eighth, q);
    return vcopysign(vexp_less_1(vfma(t, vset(-1.125f), vmul(q, t))), x); /* 1.125 t is exact */
}

INLINE vf vsign(vf x)
{
    vf negative = vselect(vless(x, vset(0)), vset(-1), vadd(x, vset(0))); /* -0 + 0 = 0 */
    return vselect(vless(vset(0), x), vset(1), negative);
}

/* NaN where either is; y where they are equal. */
INLINE vf vmaximum(vf x, vf y) { return vselect(vnan(x), x, vmax(x, y)); }
INLINE vf vminimum(vf x, vf y) { return vselect(vnan(x), x, vmin(x, y)); }

INLINE vf vnegative(vf x) { return vsub(vset(-0.0f), x); }

/* x = m 2^e as vsplit has it, of smaller numbers too. */
INLINE vf split_any(vf x, vf *e)
{
    vm small = vless(x, vset(0x1p-126f));
    vf m = vsplit(vselect(small, vmul(x, vset(0x1p23f)), x), e);
    *e = vselect(small, vsub(*e, vset(23)), *e);
    return m;
}

/* e log 2 + log m: f - f^2 / 2 + f^3 P(f), f = m - 1, P the minimax polynomial (relative error of
 * log m 6e-9). */
INLINE vf vlog(vf x)
{
    vf e, m = split_any(x, &e), f = vsub(m, vset(1)), square = vmul(f, f);
    vf p = polynomial(f, square, vmul(square, square), 3.33333313e-1f, -2.50008196e-1f,
                      2.00012416e-1f, -1.66234091e-1f, 1.42015800e-1f, -1.31596103e-1f,
                      1.27622128e-1f, -7.63642788e-2f);
    vf y = vfma(vmul(p, f), square, vmul(e, vset(-2.12194440e-4f)));
    y = vadd(f, vfma(vset(-0.5f), square, y));
    y = vfma(e, vset(0.693359375f), y);
    y = vselect(vless(vset(0), x), y, vselect(vless(x, vset(0)), vset(NAN), vset(-INFINITY)));
    return vselect(vless(x, vset(INFINITY)), y, x);
}

/* sin(x + quarters pi / 2) for |x| <= NEAR. After Cody & Waite (1980), pi / 2 is taken off in parts
 * of 11 bits, whose products with n < 2^13 are exact; what the last differences round off is kept
 * (low). Relative errors of the minimax polynomials: 5e-9 and 2e-10. */
static const float NEAR = 12800;

INLINE vf vsine_near(vf x, const float quarters)
{
    vf t = vabs(x), n = vround(vmul(t, vset(0.636619772f)));
    vf r = vfnma(n, vset(0x1.fbp-12f), vfnma(n, vset(0x1.92p+0f), t));
    vf third = vfnma(n, vset(0x1.51p-22f), r), low = vfnma(n, vset(0x1.51p-22f), vsub(r, third));
    vf high = vfnma(n, vset(0x1.0bp-34f), third);
    low = vadd(low, vfnma(n, vset(0x1.0bp-34f), vsub(third, high)));
    low = vfnma(n, vset(0x1.184698p-44f), low);
    r = vadd(high, low);
    vf s = vmul(r, r), sine = vset(-1.95051456e-4f), cosine = vset(2.44120856e-5f);
    sine = vfma(sine, s, vset(8.33209325e-3f));
    sine = vfma(sine, s, vset(-1.66666538e-1f));
    sine = vadd(high, vfma(vmul(sine, s), r, low));
    cosine = vfma(cosine, s, vset(-1.38871302e-3f));
    cosine = vfma(cosine, s, vset(4.16666418e-2f));
    cosine = vfma(vfma(cosine, s, vset(-0.5f)), s, vset(1));
    /* the quadrant, 0 ... 3: the second half of a turn is the negative of the first */
    vf q = vadd(n, vset(quarters));
    q = vfnma(vset(4), vround(vfma(q, vset(0.25f), vset(-0.375f))), q);
    vm negative = vless(vset(1.5f), q);
    vf y = vselect(vless(vset(0.5f), vselect(negative, vsub(q, vset(2)), q)), cosine, sine);
    return vselect(negative, vnegative(y), y);
}

/* Lanes beyond NEAR, one by one by the C library, which knows pi to as many digits as they need. */
static TARGET __attribute__((noinline)) vf sine_far(vf y, vf x, float (*exact)(float))
{
    float found[VL], given[VL];
    vstore(found, y);
    vstore(given, x);
    for (int l = 0; l < VL; l++)
        if (fabsf(given[l]) > NEAR)
            found[l] = exact(given[l]);
    return vload(found);
}

INLINE vf vsin(vf x)
{
    vf y = vmul(vsine_near(x, 0), vcopysign(vset(1), x));
    return vany(vless(vset(NEAR), vabs(x))) ? sine_far(y, x, sinf) : y;
}

INLINE vf vcos(vf x)
{
    vf y = vsine_near(x, 1);
    return vany(vless(vset(NEAR), vabs(x))) ? sine_far(y, x, cosf) : y;
}

/* log2 of x > 0 as a sum, *low the smaller part: e + log2 m, and log2 m = 2 / log 2 artanh s with
 * s = (m - 1) / (m + 1). x^y asks of it 7 bits more than a float has, so all but the last term of
 * artanh s = s + s^3 / 3 + s^5 P(s^2) is kept with what its roundings leave. */
INLINE vf vlog2_sum(vf x, vf *low)
{
    const float third = 0.333333343f, third_low = -9.93410748e-9f;
    const float scale = 2.88539004f, scale_low = 3.85192607e-8f;
    vf e, m = split_any(x, &e), above = vsub(m, vset(1)), below = vadd(m, vset(1));
    vf below_low = vsub(m, vsub(below, vset(1))), inverse = vdiv(vset(1), below);
    vf s = vmul(above, inverse), product = vmul(s, below);
    vf missing = vsub(vsub(above, product), vrest(s, below, product));
    vf s_low = vmul(vfnma(s, below_low, missing), inverse), z = vmul(s, s);
    vf q = vmul(z, vset(third)), q_low = vfma(z, vset(third_low), vrest(z, vset(third), q));
    q_low = vfma(vrest(s, s, z), vset(third), q_low);
    vf cube = vmul(s, q), cube_low = vfma(s, q_low, vrest(s, q, cube));
    vf p = vset(1.17100701e-1f);
    p = vfma(p, z, vset(1.42735392e-1f));
    p = vfma(p, z, vset(2.00000763e-1f));
    vf tail = vfma(vmul(p, z), vmul(s, z), vfma(s_low, z, vadd(cube_low, s_low)));
    vf sum = vadd(s, cube), sum_low = vadd(vadd(vsub(s, sum), cube), tail);
    vf first = vmul(sum, vset(scale));
    vf rest = vfma(sum, vset(scale_low), vrest(sum, vset(scale), first));
    rest = vfma(sum_low, vset(scale), rest);
    vf log_m = vadd(first, rest), high = vadd(e, log_m);
    *low = vadd(vadd(vsub(e, high), log_m), vadd(vsub(first, log_m), rest));
    return high;
}

/* Whether x >= 0 is integral: adding 2^23 rounds to an integer what is smaller. */
INLINE vm vwhole(vf x)
{
    vf rounded = vsub(vadd(x, vset(0x1p23f)), vset(0x1p23f));
    return vequal(vselect(vless(x, vset(0x1p23f)), rounded, x), x);
}

/* x^y = 2^(y log2 |x|), with the sign of x where y is odd; the exceptions are those of C's pow. */
INLINE vf vpower(vf x, vf y)
{
    const float largest = 3.40282347e38f;
    vf t = vabs(x), low, exponent = vmax(vset(-largest), vmin(vset(largest), y));
    vf high = vlog2_sum(t, &low);
    vm ordinary = vless(vset(0), t);
    high = vselect(ordinary, high, vset(-INFINITY));
    high = vselect(vless(t, vset(INFINITY)), high, t);
    vf p = vmul(exponent, high);
    vf rest = vfma(exponent, low, vrest(exponent, high, p));
    rest = vmax(vset(-1), vmin(rest, vset(1)));         /* NaN beside an infinity: 1 */
    p = vmax(vset(-160), vmin(vset(130), p));
    vf n = vround(p), r = vmul(vadd(vsub(p, n), rest), vset(0.693147181f));
    vf size = vscale(vadd(exp_near_0(r), vset(1)), n);
    vf whole = vabs(exponent), half = vmul(whole, vset(0.5f));
    vf odd = vselect(vwhole(half), vset(1), vcopysign(vset(1), x));
    vf signed_size = vmul(size, vselect(vwhole(whole), odd, vset(1)));
    vf root = vselect(vwhole(whole), signed_size, vset(NAN));      /* of a negative number */
    vf found = vselect(vless(x, vset(0)), vselect(vless(t, vset(INFINITY)), root, signed_size),
                       signed_size);
    found = vselect(vnan(x), x, vselect(vnan(y), y, found));
    return vselect(vequal(x, vset(1)), x, vselect(vequal(y, vset(0)), vset(1), found));
}

INLINE vf vrelu(vf x) { return vmax(vset(0), x); }
INLINE vf vsilu(vf x) { return vmul(x, vsigmoid(x)); }

/* Phi, the normal distribution function, and *density = e^(-x^2 / 2), with which its tail ends:
 * Phi(-|x|) = density * k P(k), k = 1 / (1 + 0.32 |x|), after Hastings (1955), who has it as
 * Abramowitz & Stegun's 26.2.17; P is the minimax polynomial (absolute error of Phi 3e-9). */
INLINE vf vnormal(vf x, vf *density)
{
    vf t = vabs(x), k = vdiv(vset(1), vfma(vset(0.32f), t, vset(1)));
    vf square = vmul(k, k), even = vset(4.443805e-2f), odd = vset(-2.3444752e-1f);
    even = vfma(even, square, vset(3.957135e-1f));
    odd = vfma(odd, square, vset(-1.5299756e-1f));
    even = vfma(even, square, vset(2.1062789e-1f));
    odd = vfma(odd, square, vset(1.0718647e-1f));
    even = vfma(even, square, vset(1.2947916e-1f));
    *density = vexp_flushed(vmul(vmul(vset(-0.5f), x), x));
    vf tail = vmul(*density, vmul(k, vfma(odd, k, even)));
    return vselect(vless(x, vset(0)), tail, vsub(vset(1), tail));
}

INLINE vf vgelu(vf x)
{
    vf density;
    return vmul(x, vnormal(x, &density));
}

/* (1 + tanh u) / 2 = sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3): one exp, one division. */
INLINE vf vgelu_gate(vf x)
{
    vf cubic = vfma(vmul(x, x), vset(0.044715f), vset(1));
    return vsigmoid(vmul(vmul(vset(1.59576912f), x), cubic));
}

INLINE vf vgelu_tanh(vf x) { return vmul(x, vgelu_gate(x)); }
INLINE vf vgelu_quick(vf x) { return vmul(x, vsigmoid(vmul(vset(1.702f), x))); }

/* -- and their derivatives -------------------------------------------------------------------- */

INLINE vf vrelu_slope(vf x) { return vselect(vless(vset(0), x), vset(1), vset(0)); }

/* d/dx x s(a x) = s (1 + a x (1 - s)) */
INLINE vf vgated_slope(vf x, float a)
{
    vf s = vsigmoid(vmul(vset(a), x));
    return vmul(s, vfma(vmul(vset(a), x), vsub(vset(1), s), vset(1)));
}

INLINE vf vsilu_slope(vf x) { return vgated_slope(x, 1); }
INLINE vf vgelu_quick_slope(vf x) { return vgated_slope(x, 1.702f); }

/* Phi(x) + x phi(x) */
INLINE vf vgelu_slope(vf x)
{
    vf density, below = vnormal(x, &density);
    return vfma(vmul(vset(0.39894228f), x), density, below);
}

/* s + x s (1 - s) 2 u', the sigmoid s = (1 + tanh u) / 2 reused. The clamp: far out s (1 - s) is
 * 0, and x^2 must not become the infinity that makes NaN of it. */
INLINE vf vgelu_tanh_slope(vf x)
{
    x = vmax(vset(-1e18f), vmin(vset(1e18f), x));
    vf s = vgelu_gate(x);
    vf twice_du = vmul(vset(1.59576912f), vfma(vmul(x, x), vset(0.134145f), vset(1)));
    return vfma(vmul(x, vmul(s, vsub(vset(1), s))), twice_du, s);
}

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
static TARGET void row_larger(float *top, float *place, const float *x, int64_t n, float here)
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
static TARGET void row_softmax_gradient(float *ds, const float *p, const float *dp, int64_t n,
                                        float delta)
{
    EACH_VECTOR
    {
        vf d = vsub(vget(dp + i, left, 0), vset(delta));
        vput(ds + i, vmul(vget(p + i, left, 0), d), left);
    }
}

static TARGET void row_softmax_backward(float *dx, const float *dy, const float *y, int64_t n)
{
    row_softmax_gradient(dx, y, dy, n, row_dot(dy, y, n));
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

/* -- attention: NR queries side by side, the keys down ------------------------------------------- */

#define UNROLL _Pragma("GCC unroll 16")
#define EACH_COLUMN UNROLL for (int c = 0; c < NR / VL; c++)

/* The online softmax of Milakov & Gimelshein (2018). A column of -inf: top stays -inf, and 0 takes
 * its place, because -inf - -inf would make NaN. */
static TARGET void weigh(float *p, float *top, float *total, float *decay, int64_t ld,
                         int64_t keys)
{
    vf shift[NR / VL], sum[NR / VL];
    EACH_COLUMN shift[c] = vload(top + c * VL);
    for (int64_t j = 0; j < keys; j++)
        EACH_COLUMN shift[c] = vmax(vload(p + j * ld + c * VL), shift[c]);
    EACH_COLUMN
    {
        vf old = vload(top + c * VL);
        vstore(top + c * VL, shift[c]);
        shift[c] = vselect(vless(vset(-INFINITY), shift[c]), shift[c], vset(0));
        vstore(decay + c * VL, vexp_flushed(vsub(old, shift[c])));
        sum[c] = vset(0);
    }
    for (int64_t j = 0; j < keys; j++)
        EACH_COLUMN
        {
            float *at = p + j * ld + c * VL;
            vf weight = vexp_flushed(vsub(vload(at), shift[c]));
            vstore(at, weight);
            sum[c] = vadd(sum[c], weight);
        }
    EACH_COLUMN
    {
        float *at = total + c * VL;
        vstore(at, vfma(vload(at), vload(decay + c * VL), sum[c]));
    }
}

/* The same for one query whose scores lie side by side. */
static TARGET float weigh_row(float *p, float *top, float *total, int64_t n)
{
    const float old = *top, largest = row_max(p, n);
    *top = largest > old ? largest : old;
    const float shift = *top == -INFINITY ? 0 : *top;
    row_exp_sum(p, p, n, shift);
    float sum = 0, decay;
    for (int64_t j = 0; j < n; j++)
        sum += p[j];
    vf factor = vexp_flushed(vset(old - shift));
    vstore_part(&decay, factor, 1);
    vstore_part(total, vfma(vset(*total), factor, vset(sum)), 1);
    return decay;
}

static TARGET void weigh_again(float *p, float *ds, const float *lse, const float *delta,
                               int64_t ld, int64_t keys)
{
    for (int64_t j = 0; j < keys; j++, p += ld, ds += ld)
        EACH_COLUMN
        {
            vf weight = vexp_flushed(vsub(vload(p + c * VL), vload(lse + c * VL)));
            vf slope = vsub(vload(ds + c * VL), vload(delta + c * VL));
            vstore(p + c * VL, weight);
            vstore(ds + c * VL, vmul(weight, slope));
        }
}

static TARGET void dot_columns(float *sums, const float *x, const float *y, int64_t k)
{
    vf sum[NR / VL];
    EACH_COLUMN sum[c] = vset(0);
    for (int64_t i = 0; i < k; i++, x += NR, y += NR)
        EACH_COLUMN sum[c] = vfma(vload(x + c * VL), vload(y + c * VL), sum[c]);
    EACH_COLUMN vstore(sums + c * VL, sum[c]);
}

/* -- few rows times a large matrix: rows of b stream by, four at a time --------------------------- */

enum { STREAMED = 4, ROWS_AHEAD = 8 }; /* rows of b at a time; how far ahead they are fetched */

/* V vectors of each of `rows` running sums take in `depth` rows of b. */
INLINE void stream_block(float *sums, const float *a, const float *b, int64_t lds, int64_t a_row,
                         int64_t a_k, int64_t b_k, int rows, const int depth, const int V,
                         int64_t left)
{
    vf row[STREAMED][2], sum[2];
#pragma GCC unroll 4
    for (int p = 0; p < depth; p++)
#pragma GCC unroll 2
        for (int v = 0; v < V; v++)
            row[p][v] = vget(b + p * b_k + v * VL, left - v * VL, 0);
    for (int r = 0; r < rows; r++, a += a_row, sums += lds) {
#pragma GCC unroll 2
        for (int v = 0; v < V; v++)
            sum[v] = vget(sums + v * VL, left - v * VL, 0);
#pragma GCC unroll 4
        for (int p = 0; p < depth; p++) {
            vf x = vset(a[p * a_k]);
#pragma GCC unroll 2
            for (int v = 0; v < V; v++)
                sum[v] = vfma(x, row[p][v], sum[v]);
        }
#pragma GCC unroll 2
        for (int v = 0; v < V; v++)
            vput(sums + v * VL, sum[v], left - v * VL);
    }
}

INLINE void stream_rows(float *sums, const float *a, const float *b, int64_t lds, int64_t a_row,
                        int64_t a_k, int64_t b_k, int rows, const int depth, int64_t n)
{
    int64_t i = 0;
    for (; i + 2 * VL <= n; i += 2 * VL) {
#pragma GCC unroll 4
        for (int p = 0; p < depth; p++)
            __builtin_prefetch(b + (p + ROWS_AHEAD) * b_k + i, 0, 2); /* to L2: L1 is full */
        stream_block(sums + i, a, b + i, lds, a_row, a_k, b_k, rows, depth, 2, 2 * VL);
    }
    for (; i < n; i += VL)
        stream_block(sums + i, a, b + i, lds, a_row, a_k, b_k, rows, depth, 1, n - i);
}

static TARGET void stream(float *sums, const float *a, const float *b, int64_t lds, int64_t k,
                          int64_t a_row, int64_t a_k, int64_t b_k, int rows, int64_t n)
{
    for (; k >= STREAMED; k -= STREAMED, a += STREAMED * a_k, b += STREAMED * b_k)
        stream_rows(sums, a, b, lds, a_row, a_k, b_k, rows, STREAMED, n);
    for (; k > 0; k--, a += a_k, b += b_k)
        stream_rows(sums, a, b, lds, a_row, a_k, b_k, rows, 1, n);
}

/* -- the ceiling of arithmetic -------------------------------------------------------------------- */

/* CHAINS vectors that stay in registers, each multiplied and added to in every round. */
static TARGET int64_t multiply_add(float *result, int64_t rounds)
{
    vf chain[CHAINS], factor = vset(0.5f), term = vset(result[0] + 1);
    UNROLL for (int i = 0; i < CHAINS; i++)
        chain[i] = vset((float)i);
    for (int64_t r = 0; r < rounds; r++)
        UNROLL for (int i = 0; i < CHAINS; i++)
            chain[i] = vfma(chain[i], factor, term);
    vf sum = vset(0);
    UNROLL for (int i = 0; i < CHAINS; i++)
        sum = vadd(sum, chain[i]);
    *result = vsum(sum);
    return 2 * rounds * CHAINS * VL;
}

/* The entries of the table that this file provides. */
#define ROW_KERNELS                                                                         \
    .extreme = row_extreme, .larger = row_larger, .rotate = row_rotate,                     \
    .stream = stream, .map = row_map, .map_backward = row_map_backward,                     \
    .epilogue = row_epilogue, .softmax = row_softmax,                                       \
    .softmax_backward = row_softmax_backward, .log_softmax = row_log_softmax,               \
    .log_softmax_backward = row_log_softmax_backward, .logsumexp = row_logsumexp,           \
    .sum = row_sum, .sum_of_squares = row_sum_of_squares, .exp_sum = row_exp_sum,           \
    .keep = row_keep, .scale = row_scale,                                                   \
    .shift_scale = row_shift_scale, .binary = row_binary, .compare = row_compare,           \
    .choose = row_choose, .ema = row_ema,                                                   \
    .layernorm = row_layernorm, .layernorm_backward = row_layernorm_backward,               \
    .rmsnorm = row_rmsnorm, .rmsnorm_backward = row_rmsnorm_backward, .adamw = row_adamw,   \
    .squares = row_squares, .centred_dot = row_centred_dot, .affine = row_affine,           \
    .blend = row_blend,                                                                     \
    .weigh = weigh, .weigh_row = weigh_row, .weigh_again = weigh_again,                     \
    .dot_columns = dot_columns, .multiply_add = multiply_add
