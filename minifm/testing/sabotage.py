"""A checker that cannot fail is a defect: wrong gradients on purpose, for the check to find.

Each kind of sabotage is a function (op, dys) -> gradients that spoils what the op's own backward
returns, at one place:

    scaled        the gradient times 1.001
    negated       a flipped sign
    unsummed      a dropped reduction: what only the first slice of the cotangent contributes
    transposed    a missed transpose: the last two axes, of equal size, swapped
"""

import contextlib

import numpy as np

from minifm import backends

NOTICEABLE = 1e-2       # a spoilt gradient this close to the true one is not spoilt


def scaled(backward, node, dys, place):
    grads = backward(node, *dys)
    return _with(grads, place, 1.001 * _tuple(grads)[place])


def negated(backward, node, dys, place):
    grads = backward(node, *dys)
    return _with(grads, place, -_tuple(grads)[place])


def unsummed(backward, node, dys, place):
    """Along the first axis of the first cotangent that is longer than one element."""
    grads = backward(node, *dys)
    axis = next((a for a, n in enumerate(dys[0].shape) if n > 1), None)
    if axis is None or _tuple(grads)[place].size >= dys[0].size:
        return grads        # no fewer numbers than the cotangent has: nothing need be summed
    first = np.zeros_like(dys[0])
    slot = (slice(None),) * axis + (slice(0, 1),)
    first[slot] = dys[0][slot]
    part = backward(node, first, *dys[1:])
    return _with(grads, place, _tuple(part)[place])


def transposed(backward, node, dys, place):
    grads = backward(node, *dys)
    g = _tuple(grads)[place]
    square = g.ndim >= 2 and g.shape[-1] == g.shape[-2]
    return _with(grads, place, g.swapaxes(-1, -2)) if square else grads


KINDS = (scaled, negated, unsummed, transposed)


@contextlib.contextmanager
def sabotaged(op, kind, place):
    """Within the block, the gradient of `op` by its input number `place` is spoilt."""
    backward = op.backward

    def spoilt(node, *dys):
        return kind(backward, node, dys, place)

    op.backward = spoilt
    try:
        yield
    finally:
        op.backward = backward


def spoils(example, kind, place):
    """Whether this kind of sabotage changes the example's gradient by `place` at all.

    It does not where the gradient is (nearly) zero, where no sum is taken, or where there is no
    square matrix, or only a symmetric one.
    """
    true, spoilt = (_gradient(example, place, change) for change in (None, kind))
    if not true.size:
        return False
    change, size = np.abs(spoilt - true).max(), np.abs(true).max()
    return bool(size > NOTICEABLE and change > (5e-4 if kind is scaled else NOTICEABLE) * size)


def _gradient(example, place, kind):
    node, outputs = example.node()
    random = np.random.default_rng(5)
    dys = [random.standard_normal(y.shape) for y in outputs]
    dys = [backends.active().from_numpy(dy) for dy in dys]
    backward = type(node).backward
    grads = backward(node, *dys) if kind is None else kind(backward, node, dys, place)
    return np.array(_tuple(grads)[place])


def _with(grads, place, g):
    grads = list(_tuple(grads))
    grads[place] = g
    return tuple(grads)


def _tuple(value):
    return value if isinstance(value, tuple) else (value,)
