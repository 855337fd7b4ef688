"""What an op is: a signature, a forward and a backward, declared once for all backends.

    class LayerNorm(Op):
        "y = (x - mean) * rstd * gamma + beta, over the last axis."
        signature = "x[*B, D], gamma[D], beta[D] -> [*B, D]"

        def forward(self, x, gamma, beta, eps): ...
        def backward(self, dy): ...                       # -> dx, dgamma, dbeta

An instance *is* the node of the graph: what forward keeps for backward are its attributes. Both
methods take and return the raw arrays of `self.backend`, look only at their `.shape` and
`.dtype`, and compute with the backend's verbs. The signature yields the shape check, the tests
and the micro-benchmark; `examples` says what inputs those draw where the signature cannot.
"""

import inspect
import re

import numpy as np

from minifm.errors import ShapeError

OPS = {}            # every op by its class name: what the tests and benchmarks run over
observers = []      # told of every forward and backward; see observe.py

_OPERAND = re.compile(r"(\w*)\[([^\]]*)\]")


class Op:
    """One differentiable operation; subclass, declare, and it is tested and benchmarked.

    Set by the engine before `forward`: `backend`, and `needs`, one bool for each input. A
    gradient that nobody needs must not be computed, and is returned as None.
    """

    signature = ""
    fresh = False           # True: gradients are newly allocated arrays, which the engine may keep
    parents = None          # the input Tensors; None again once backward has consumed the node
    sequence = 0
    checked = frozenset()   # the shapes and dtypes that have passed `check`

    def forward(self, *inputs, **options):
        raise NotImplementedError

    def backward(self, *dys):
        raise NotImplementedError

    @classmethod
    def examples(cls, draw):
        """Inputs and options to test and time the op on: ((array, …), {option: value}).

        `draw` (minifm.testing.draw.Draw) offers sizes by dimension name and arrays by kind.
        This default draws normal numbers of the signature's shapes.
        """
        sizes = {}
        return tuple(draw.normal(draw.shape(dims, sizes)) for _, dims in cls.inputs), {}

    @classmethod
    def flops(cls, *inputs, **options):
        """Floating-point operations of one forward, from the shapes of its inputs.

        None for ops that move bytes rather than multiply: they are judged by bandwidth.
        """
        return None

    def backward_products(self):
        """Backward's cost in units of `flops`: one product for each factor's gradient."""
        return sum(self.needs[:2])

    def only_needed(self, *grads):
        """`grads`, as a fused kernel gave them, with None for those that nobody needs."""
        if all(self.needs):
            return grads
        return tuple([g if needed else None for g, needed in zip(grads, self.needs)])

    @classmethod
    def check(cls, inputs):
        """Raise ShapeError unless `inputs` fit the signature (None: an optional one, absent)."""
        check_dtypes(cls, inputs)
        sizes = {}
        for (name, dims), x in zip(cls.inputs, inputs):
            if hasattr(x, "shape"):
                problem = bind(dims, x.shape, sizes, name)
                if problem:
                    raise ShapeError(explain(cls, inputs, problem))
            elif dims and (x is not None or x is inputs[0]):    # `exponent[]` may be a number
                check_array(cls.__name__, x)

    def __init_subclass__(cls):
        """Refuse an incomplete declaration at once, and enter a complete one into the table."""
        cls.inputs, cls.outputs = parse(cls.__name__, cls.signature)
        for method in ("forward", "backward"):
            if getattr(cls, method) is getattr(Op, method):
                raise TypeError(f"op {cls.__name__} has no {method}")
        if not cls.__doc__:
            raise TypeError(f"op {cls.__name__} has no docstring")
        declared = [name for name, _ in cls.inputs]
        taken = list(inspect.signature(cls.forward).parameters)[1 : 1 + len(declared)]
        if taken != declared:
            raise TypeError(f"op {cls.__name__}: signature names {declared}, forward {taken}")
        cls.checked = set()
        OPS[cls.__name__] = cls


# -- signatures ------------------------------------------------------------------------------


def parse(name, signature):
    """"x[*B, D], w[D] -> [*B]" to [("x", ["*B", "D"]), ("w", ["D"])] and [("", ["*B"])]."""
    left, arrow, right = signature.partition("->")
    inputs, outputs = ([(operand, dims.replace(",", " ").split())
                        for operand, dims in _OPERAND.findall(side)] for side in (left, right))
    if not (arrow and inputs and outputs and all(operand for operand, _ in inputs)):
        raise TypeError(f"op {name}: a signature reads 'x[*B, D], w[D] -> [*B]', not {signature!r}")
    return inputs, outputs


def bind(dims, shape, sizes, name):
    """Match `shape` against `dims`, entering sizes by name; returns what disagrees, or None."""
    star = next((i for i, dim in enumerate(dims) if dim.startswith("*")), None)
    named = len(dims) - (star is not None)
    if len(shape) < named or (star is None and len(shape) > named):
        least = "" if star is None else "at least "
        return f"{name} has {len(shape)} dimensions where {least}{named} are expected"
    found = list(zip(dims, shape))
    if star is not None:            # it takes what the named dimensions before and after leave
        end = len(shape) - (named - star)
        found = [*zip(dims[:star], shape), (dims[star], tuple(shape[star:end])),
                 *zip(dims[star + 1 :], shape[end:])]
    for dim, size in found:
        if sizes.setdefault(dim, size) != size:
            return f"{name} has {dim} = {size} where {dim} = {sizes[dim]} came before"
    return None


def check_dtypes(cls, inputs):
    """Floating-point operands are float32 or float64, and all of one width: mixing them is a
    mistake, or hides one."""
    floats = {str(x.dtype) for x in inputs
              if hasattr(x, "dtype") and np.issubdtype(x.dtype, np.floating)}
    for other in floats - {"float32", "float64"}:
        raise ShapeError(explain(cls, inputs, f"operands are float32 or float64, not {other}"))
    if len(floats) > 1:
        raise ShapeError(explain(cls, inputs, f"operands mix {' and '.join(sorted(floats))}; give "
                                 "all in one, such as x.astype(np.float32) of an array"))


def check_arithmetic(cls, inputs):
    """Operands that are computed with: arrays and numbers, floating-point ones of one width, and
    no integers beside them, which NumPy would widen to float64."""
    for x in inputs:
        if not (hasattr(x, "dtype") or x is None or isinstance(x, (int, float))):
            raise ShapeError(f"{cls.__name__}: expected tensors, arrays or numbers, got {x!r:.60}")
    check_dtypes(cls, inputs)
    kinds = {np.dtype(x.dtype).kind: x.dtype for x in inputs if hasattr(x, "dtype")}
    integers = kinds.get("i") or kinds.get("u")
    if "f" in kinds and integers is not None:
        raise ShapeError(explain(cls, inputs, f"operands mix {kinds['f']} and {integers}; give "
                                 "the integers as floating-point numbers"))


def check_integers(cls, inputs, name):
    """Raise ShapeError unless the operand called `name`, which counts places, is of integers."""
    x = inputs[[operand for operand, _ in cls.inputs].index(name)]
    if not (hasattr(x, "dtype") and np.issubdtype(x.dtype, np.integer)):
        raise ShapeError(explain(cls, inputs, f"{name} must be integers"))


def check_floating(cls, inputs, *names):
    """Raise ShapeError unless the operands called so (default: all) are absent or of floating-point
    numbers."""
    for (name, _), x in zip(cls.inputs, inputs):
        if (name in names or not names) and not np.issubdtype(
                getattr(x, "dtype", np.float32), np.floating):
            raise ShapeError(explain(cls, inputs, f"{name} must be of floating-point numbers"))


def check_array(name, x):
    """Raise ShapeError where x is a number, a list or None."""
    if not hasattr(x, "shape"):
        raise ShapeError(f"{name}: expected a tensor or an array, got {x!r:.60}")


def check_axis(name, x, axis):
    """Raise ShapeError unless `axis` is one of x."""
    check_array(name, x)
    if not -len(x.shape) <= axis < len(x.shape):
        raise ShapeError(f"{name}: axis {axis} of a tensor of shape {tuple(x.shape)}")


def explain(cls, inputs, problem):
    """The message of a ShapeError: what disagrees, the signature, and what was given."""
    given = ", ".join(
        f"{name}{list(x.shape)} {x.dtype}" if hasattr(x, "shape") else f"{name} {x!r}"
        for (name, _), x in zip(cls.inputs, inputs)
    )
    return f"{cls.__name__}: {problem}\n  signature  {cls.signature}\n  given      {given}"


# -- observers -------------------------------------------------------------------------------


class Observer:
    """Told of every op while it is installed: `with observer: ...`. Override what you need."""

    def before(self, op, phase, arrays, options):
        """`phase` is "forward" (arrays: the inputs) or "backward" (arrays: the dys)."""

    def after(self, op, phase, arrays):
        """`arrays`: the outputs, or the gradients by the inputs."""

    def __enter__(self):
        observers.append(self)
        return self

    def __exit__(self, *exception):
        observers.remove(self)


def observed(op, phase, function, arrays, options):
    """function(*arrays, **options) with every observer told before and after."""
    watching = tuple(observers)
    for observer in watching:
        observer.before(op, phase, arrays, options)
    result = function(*arrays, **options)
    results = result if isinstance(result, tuple) else (result,)
    for observer in watching:
        observer.after(op, phase, results)
    return result
