"""The error function, which NumPy lacks, to float64 accuracy.

W. J. Cody, "Rational Chebyshev approximation for the error function", Math. Comp. 23 (1969):
three intervals, each a ratio of polynomials, relative error below 1.2e-16.
"""

import numpy as np

# |x| <= 0.46875:  erf(x) = x A(x²) / B(x²)
A = (1.85777706184603153e-1, 3.16112374387056560e00, 1.13864154151050156e02,
     3.77485237685302021e02, 3.20937758913846947e03)
B = (1.0, 2.36012909523441209e01, 2.44024637934444173e02,
     1.28261652607737228e03, 2.84423683343917062e03)
# 0.46875 < x <= 4:  erfc(x) = exp(-x²) C(x) / D(x)
C = (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e00,
     6.61191906371416295e01, 2.98635138197400131e02, 8.81952221241769090e02,
     1.71204761263407058e03, 2.05107837782607147e03, 1.23033935479799725e03)
D = (1.0, 1.57449261107098347e01, 1.17693950891312499e02, 5.37181101862009858e02,
     1.62138957456669019e03, 3.29079923573345963e03, 4.36261909014324716e03,
     3.43936767414372164e03, 1.23033935480374942e03)
# beyond 4, erfc is below 1.6e-8, and one term of precision less would do; Cody's third ratio,
# in z = 1/x²:  erfc(x) = exp(-x²)/x (1/√π - z P(z)/Q(z))
P = (1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1,
     1.25781726111229246e-1, 1.60837851487422766e-2, 6.58749161529837803e-4)
Q = (1.0, 2.56852019228982242e00, 1.87295284992346725e00,
     5.27905102951428412e-1, 6.05183413124413191e-2, 2.33520497626869185e-3)
INVERSE_SQRT_PI = 0.5641895835477563


def erf(x):
    """erf, elementwise. Computed in float64 and rounded to the dtype of `x`."""
    wide = np.asarray(x, np.float64)
    magnitude = np.abs(wide)
    out = np.empty_like(wide)

    small = magnitude <= 0.46875
    y = wide[small]
    out[small] = y * _ratio(A, B, y * y)

    middle = (magnitude > 0.46875) & (magnitude <= 4)
    y = magnitude[middle]
    out[middle] = 1 - _exp_minus_square(y) * _ratio(C, D, y)

    tail = ~(small | middle)                              # also NaN, which must come out as NaN
    y = np.minimum(magnitude[tail], 27)                   # erf(27) is 1 to the last bit
    z = 1 / (y * y)
    out[tail] = 1 - _exp_minus_square(y) / y * (INVERSE_SQRT_PI - z * _ratio(P, Q, z))

    return np.where(small, out, np.copysign(out, wide)).astype(x.dtype)


def _ratio(numerator, denominator, x):
    return np.polyval(numerator, x) / np.polyval(denominator, x)


def _exp_minus_square(y):
    """exp(-y²) without the rounding error of y²: split y = s + rest with s² exact."""
    s = np.trunc(y * 16) / 16
    return np.exp(-s * s) * np.exp(-(y - s) * (y + s))
