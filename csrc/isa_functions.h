/* Functions of one and of two variables, of a vector. Where "minimax" is said, the coefficients are
 * those of the polynomial whose largest error is smallest.
 */

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
