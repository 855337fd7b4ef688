"""Does a backend compute what the reference computes? Bounds from arithmetic, no magic tolerances.

    with minifm.use("c"):
        parity.agrees_with_reference(example)       # an Example in float32

Every op falls under one rule for its outputs; RULES names those that are not `fused`:

    exact     one rounding, or none: bitwise the reference's
    ulps      primitive transcendentals: within 4 units in the last place of float64's result
    activation  functions composed of them: an absolute bound
    summed    |error| ≤ γ_n Σ|x|, with γ_n = nu / (1 - nu) and u the unit roundoff (Higham 2002)
    product   |error| ≤ 2 γ_K |x||y|, entrywise
    fused     the error is at most 3 × that of the reference in float32, both measured against
              float64, and a floor: 8 × what a rounding in each input and each verb's result does
              (a kernel adds a sum's terms in order, BLAS in several chains, of smaller error)

Gradients fall under `fused`, and under `exact` where they only move numbers (and do not add
them up over a stretched operand).
"""

import functools

import numpy as np

from minifm import backends
from minifm.backends.reference import Reference
from minifm.backends.reference.arrays import Arrays
from minifm.op import OPS
from minifm.testing import laws

U = 2.0**-24        # unit roundoff of float32


def agrees_with_reference(example):
    """Outputs and gradients of a float32 example on the active backend, by the rules above."""
    name, dys = example.op.__name__, laws.cotangents(example, 1)
    found = laws.forward_backward(example, dys)
    with backends.use("numpy"):
        narrow = laws.forward_backward(example, dys)
        wide = _in_float64(example, dys)
        nearby = [_nearly(example, dys, seed) for seed in (1, 2, 3, 4)]
    rule = RULES.get(name, fused)
    for k, y in enumerate(found[0]):
        others = [outputs[k] for outputs, _ in nearby]
        _check(f"{name}: output {k}", rule, y, narrow[0][k], wide[0][k], others, example.inputs)
    for i in example.varied:
        others = [grads[i] for _, grads in nearby]
        stretched = name == "Where" and example.inputs[i].shape != found[0][0].shape
        rule = exact if name in MOVES and not stretched else fused
        _check(f"{name}: gradient {i}", rule, found[1][i], narrow[1][i], wide[1][i], others, None)


def special_values_agree(op):
    """An elementwise op of one operand maps NaN, infinities, zeros and the largest and smallest
    numbers to the class to which the reference maps them: NaN, ±inf, ±0, or finite."""
    x = SPECIAL
    with np.errstate(all="ignore"):
        found = _numpy(_forward(op, x))
        with backends.use("numpy"):
            wanted = _forward(op, x)
    for value, a, b in zip(x, _classes(found), _classes(wanted)):
        assert a == b, f"{op.__name__}({value}) is {a}, the reference says {b}"


SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 3.4e38, -3.4e38, 1.2e-38,
                    -1.2e-38, 1e-45, -1e-45, 88.0, 89.0, -88.0, -104.0, 1e4, -1e4], np.float32)


# -- rules: (found, reference in float32, float64, float64 nearby, inputs) -> allowed error ------


def exact(found, narrow, wide, nearby, inputs):
    same = np.array_equal(found, narrow, equal_nan=True)
    return np.inf if same and np.array_equal(np.signbit(found), np.signbit(narrow)) else -1.0


def ulps(found, narrow, wide, nearby, inputs):
    return 4.5 * np.spacing(np.abs(wide).astype(np.float32)).astype(np.float64)


def activation(found, narrow, wide, nearby, inputs):
    """x f(x), f between -0.2 and 1.2: its two roundings, an argument off by 5u, and 4 ULP in the
    function beneath it make less than 16u |x|."""
    return 16 * U * np.abs(inputs[0].astype(np.float64)) + np.finfo(np.float32).tiny


def summed(found, narrow, wide, nearby, inputs):
    x = np.abs(inputs[0].astype(np.float64))
    n = x.size // max(wide.size, 1)
    return _gamma(n) * x.sum() if wide.size == 1 else _gamma(n) * x.max(initial=0) * n


def product(found, narrow, wide, nearby, inputs):
    x, y = (np.abs(a.astype(np.float64)) for a in inputs)
    return 2 * _gamma(x.shape[-1]) * (x @ y)


def fused(found, narrow, wide, nearby, inputs):
    size = np.abs(wide).max(initial=0)
    moved = max(np.abs(other - wide).max(initial=0) for other in nearby)
    return 3 * np.abs(narrow - wide).max(initial=0) + 8 * (moved + U * size)


RULES = {
    **dict.fromkeys([
        "Add", "Subtract", "Multiply", "Divide", "Maximum", "Minimum", "Where", "Negative",
        "Absolute", "Sqrt", "Relu", "Embedding", "Max", "Min", "MaxPool2d", "UpsampleNearest",
        "Dropout",
        "Reshape", "Transpose", "BroadcastTo", "GetItem", "TakeAlong", "Concatenate",
        "SplitHeads", "MergeHeads", "Pad",
    ], exact),
    **dict.fromkeys(["Exp", "Log", "Sin", "Cos", "Tanh", "Erf", "Sigmoid"], ulps),
    **dict.fromkeys(["Silu", "Gelu", "GeluTanh", "GeluQuick"], activation),
    "Sum": summed, "Matmul": product,
}
MOVES = ("Negative", "Where", "Reshape", "Transpose", "Concatenate", "SplitHeads", "MergeHeads",
         "Pad", "Relu", "Absolute", "Dropout", "Sum")
UNARY = [op for op in OPS.values() if op.signature == "x[*X] -> [*X]" and op.__name__ != "Dropout"]


def _check(what, rule, found, narrow, wide, nearby, inputs):
    assert found.dtype == np.float32, f"{what} is {found.dtype}, not float32"
    assert found.shape == wide.shape, f"{what} has shape {found.shape}, not {wide.shape}"
    error = np.abs(found.astype(np.float64) - wide)
    allowed = rule(found, narrow, wide, nearby, inputs)
    if rule is exact:
        assert allowed > 0, f"{what} is not bitwise the reference's"
    elif error.size:
        excess = np.max(np.asarray(error - allowed))
        assert excess <= 0, (f"{what} is off by {error.max():.3g}, {rule.__name__} allows "
                             f"{np.max(allowed):.3g} (the reference: "
                             f"{np.abs(narrow - wide).max():.3g})")


def _in_float64(example, dys, off=lambda x: x):
    """Outputs and gradients in float64, each input and cotangent passed through `off`."""
    def wide(x):
        narrow = isinstance(x, np.ndarray) and x.dtype == np.float32
        return off(x.astype(np.float64)) if narrow else x

    return laws.forward_backward(example, [wide(dy) for dy in dys],
                                 [wide(x) for x in example.inputs])


def _nearly(example, dys, seed):
    """The same with a rounding of float32 in each input and in the result of each verb."""
    with backends.use(Rounding(seed)) as backend:
        return _in_float64(example, dys, backend.off)


class Rounding(Reference):
    """The reference in float64, where each verb that rounds is off by up to a rounding of
    float32. Composed verbs are so at each step: this is what finds parts that cancel."""

    EXACT = ("max", "min", "maximum", "minimum", "where", "absolute", "negative", "relu")

    def __init__(self, seed):
        super().__init__()
        self.random = np.random.default_rng(seed)

    def off(self, x):
        """x, or the arrays in the tuple x, with each float64 changed by up to u."""
        if isinstance(x, tuple):
            return tuple(self.off(part) for part in x)
        if not isinstance(x, np.ndarray) or x.dtype != np.float64:
            return x
        return x * (1 + U * self.random.uniform(-1, 1, x.shape))


def _rounding(verb):
    @functools.wraps(verb)
    def rounding(self, *arguments, **options):
        return self.off(verb(self, *arguments, **options))
    return rounding


for _name in dir(Reference):
    _verb = getattr(Reference, _name)
    if (callable(_verb) and not _name.startswith("_") and not hasattr(_verb, "composed")
            and _name not in vars(Arrays) and _name not in Rounding.EXACT):
        setattr(Rounding, _name, _rounding(_verb))


def _forward(op, x):
    node = op()
    node.backend, node.needs = backends.active(), [False]
    return node.forward(node.backend.from_numpy(x))


def _classes(x):
    return np.where(np.isnan(x), "NaN", np.where(
        np.isinf(x), np.where(x > 0, "inf", "-inf"), np.where(x == 0, "zero", "finite")))


def _gamma(n):
    return n * U / (1 - n * U)


def _numpy(array):
    return backends.active().to_numpy(array)
