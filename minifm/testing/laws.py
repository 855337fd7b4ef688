"""What holds of every op: one function for each law, for your own ops as for minifm's.

    from hypothesis import given
    from minifm.testing import laws, strategies

    @given(strategies.examples(MyOp))
    def test_my_op(example):
        for law in laws.ALL:
            law(example)

A law takes an Example, raises an AssertionError that says what is broken, and returns whether the
example had anything to show (no two operands, nothing to repeat). It runs on the active backend.
Equalities are bitwise where no rounding can differ, else within 1e-12 of the largest number
involved. Those in ALL are for float64; those in ANY_WIDTH hold for float32 examples too, within
as many roundings. parity.py compares backends, sabotage.py proves that the gradient check can
fail.
"""

import numpy as np

from minifm import backends
from minifm.gradcheck import gradcheck
from minifm.ops.arithmetic import check_broadcast
from minifm.tensor import Tensor, propagate
from minifm.testing.draw import lay_out

ROUNDINGS = 4500        # 1e-12 of the largest number involved, in float64


def gradient_is_right(example):
    """Each gradient agrees with differences of the forward, along random directions."""
    def function(*varied):
        return example.run(*_with(example, varied))
    gradcheck(function, [example.inputs[i] for i in example.varied])
    return bool(example.varied)


def linear_in_cotangent(example):
    """backward(2u - 3v) = 2 backward(u) - 3 backward(v)."""
    u, v = cotangents(example, 1), cotangents(example, 2)
    both = [2 * a - 3 * b for a, b in zip(u, v)]
    for whole, one, two in zip(*(gradients(example, dys) for dys in (both, u, v))):
        if whole is not None:
            assert_close(whole, 2 * one - 3 * two, "the gradient of 2u - 3v", one, two)
    return bool(example.varied)


def accumulates(example):
    """A second forward and backward doubles every leaf's gradient."""
    tensors = example.tensors()
    grads = []
    for _ in range(2):
        outputs = example.run(*tensors)
        dys = [backends.active().from_numpy(dy) for dy in cotangents(example, 1)]
        propagate(zip(outputs, dys), backends.active())
        grads.append([np.array(_numpy(tensors[i].grad)) for i in example.varied])
    for i, once, twice in zip(example.varied, *grads):
        assert_close(twice, 2 * once, f"input {i}: the gradient after two passes", once)
    return bool(example.varied)


def repeated_operand(example):
    """f(x, x) has the gradients of both places, added."""
    pairs = [(i, j) for i in example.varied for j in example.varied
             if i < j and example.inputs[i].shape == example.inputs[j].shape]
    for i, j in pairs:
        def function(x, i=i, j=j):
            inputs = list(example.inputs)
            inputs[i] = inputs[j] = x
            return example.run(*inputs)
        gradcheck(function, [example.inputs[j]])
    return bool(pairs)


def broadcast_sums(example):
    """The gradient of a broadcast operand is that of the stretched one, summed back."""
    if getattr(example.op.check, "__func__", None) is not check_broadcast:
        return False
    full = np.broadcast_shapes(*(x.shape for x in example.inputs))
    dys = cotangents(example, 1)
    grads = gradients(example, dys)
    stretched = gradients(example, dys, [np.broadcast_to(x, full) for x in example.inputs])
    stretches = False
    for i in example.varied:
        shape = example.inputs[i].shape
        padded = (1,) * (len(full) - len(shape)) + shape
        axes = tuple(a for a, n in enumerate(padded) if n == 1 and full[a] != 1)
        summed = stretched[i].sum(axis=axes, keepdims=True).reshape(shape)
        size = np.abs(stretched[i]).sum(axis=axes)
        assert_close(grads[i], summed, f"input {i}: the gradient summed back", size)
        stretches |= shape != full
    return stretches


def layout_does_not_matter(example):
    """Strided, reversed, transposed, stretched or misaligned operands and cotangents give what
    contiguous ones give."""
    dys = cotangents(example, 1)
    plain = [np.array(x, order="C") if isinstance(x, np.ndarray) else x for x in example.inputs]
    expected_outputs, expected = forward_backward(example, dys, plain)
    for layout in ("sliced", "reversed", "transposed", "misaligned"):
        laid = [lay_out(dy, layout, lambda options: options[-1]) for dy in dys]
        outputs, grads = forward_backward(example, laid)
        for y, wanted in zip(outputs, expected_outputs):
            assert_close(y, wanted, "the output of operands in another layout")
        for g, wanted in zip(grads, expected):
            if wanted is not None:
                assert_close(g, wanted, f"the gradient of a {layout} cotangent")
    ones = [np.broadcast_to(np.ones((), dy.dtype), dy.shape) for dy in dys]
    for g, wanted in zip(gradients(example, ones), gradients(example, [np.array(o) for o in ones])):
        if wanted is not None:
            assert_close(g, wanted, "the gradient of a cotangent of stride 0")
    return True


def inputs_are_not_written(example):
    """Forward and backward leave every input and cotangent, and what lies between their
    elements, as it was."""
    dys = [lay_out(dy, "sliced", lambda options: options[0]) for dy in cotangents(example, 1)]
    watched = [x for x in (*example.inputs, *dys) if isinstance(x, np.ndarray)]
    before = [_bytes(x) for x in watched]
    node, outputs = example.node()
    after_forward = [_bytes(x) for x in watched], [_bytes(_numpy(y)) for y in outputs]
    assert after_forward[0] == before, "forward has written to an input"
    backward(node, dys)
    assert [_bytes(x) for x in watched] == before, "backward has written to an input or cotangent"
    assert [_bytes(_numpy(y)) for y in outputs] == after_forward[1], "backward wrote to an output"
    return True


def fresh_gradients_alias_nothing(example):
    """An op that declares `fresh` returns gradients that share no memory with its inputs, its
    outputs, its cotangents, what it has kept, or each other."""
    if not example.op.fresh:
        return False
    node, outputs = example.node()
    dys = [backends.active().from_numpy(dy) for dy in cotangents(example, 1)]
    grads = [_numpy(g) for g in _tuple(node.backward(*dys)) if g is not None]
    kept = [x for value in vars(node).values() for x in _tuple(value)
            if hasattr(x, "shape") and not isinstance(x, Tensor)]
    others = [_numpy(x) for x in (*outputs, *dys, *kept)]
    others += [x for x in example.inputs if isinstance(x, np.ndarray)]
    for k, g in enumerate(grads):
        for other in (*others, *grads[:k]):
            assert not np.shares_memory(g, other), (
                f"gradient {k} is declared fresh and shares memory with shape {other.shape}")
        assert g.flags.writeable and _distinct_elements(g), f"gradient {k} cannot be added to"
    return True


def unneeded_gradients_are_none(example):
    """Where `needs` is False the gradient is None, and the others are what they were."""
    dys = cotangents(example, 1)
    everything = gradients(example, dys)
    for i in range(len(example.inputs)):
        assert i in example.varied or everything[i] is None, f"input {i} is owed no gradient"
    for frozen in example.varied if len(example.varied) > 1 else ():
        needs = [i in example.varied and i != frozen for i in range(len(example.inputs))]
        node, _ = example.node(needs)
        some = backward(node, dys)
        assert some[frozen] is None, f"the gradient of input {frozen}, which nobody needs"
        for i in example.varied:
            if i != frozen:
                assert some[i] is not None, f"no gradient for input {i} without input {frozen}"
                assert_close(some[i], everything[i], f"gradient {i} without that of {frozen}")
    return len(example.varied) > 1


def gradients_have_their_operands_shape(example):
    """Each gradient has the shape and dtype of its input, each output the dtype of the inputs;
    in float32 too."""
    for dtype in (np.float64, np.float32):
        inputs = [x.astype(dtype) if i in example.varied or _is_float(x) else x
                  for i, x in enumerate(example.inputs)]
        dys = [dy.astype(dtype) for dy in cotangents(example, 1)]
        outputs, grads = forward_backward(example, dys, inputs)
        for y in outputs:
            assert y.dtype == dtype or not _is_float(y), f"an output is {y.dtype}, not {dtype}"
        for i in example.varied:
            assert grads[i] is not None, f"input {i} receives no gradient"
            found = grads[i].shape, grads[i].dtype
            assert found == (inputs[i].shape, inputs[i].dtype), f"gradient {i} is {found}"
    return True


ALL = (gradient_is_right, linear_in_cotangent, accumulates, repeated_operand, broadcast_sums,
       layout_does_not_matter, inputs_are_not_written, fresh_gradients_alias_nothing,
       unneeded_gradients_are_none, gradients_have_their_operands_shape)
ANY_WIDTH = (linear_in_cotangent, accumulates, broadcast_sums, layout_does_not_matter,
             inputs_are_not_written, fresh_gradients_alias_nothing, unneeded_gradients_are_none)


# -- the parts of which laws are made ----------------------------------------------------------


def cotangents(example, seed):
    """One array of N(0, 1) numbers for each output, in the dtype of the inputs."""
    random = np.random.default_rng(seed)
    dtypes = [x.dtype for x in example.inputs if _is_float(x)]
    _, outputs = example.node()
    return [random.standard_normal(y.shape).astype(dtypes[0]) for y in outputs]


def forward_backward(example, dys, inputs=None):
    """The outputs and the gradients as NumPy arrays (None for an input that is owed none)."""
    replaced = example if inputs is None else type(example)(
        example.op, tuple(inputs), example.options, example.varied)
    node, outputs = replaced.node()
    return [np.array(_numpy(y)) for y in outputs], backward(node, dys)


def gradients(example, dys, inputs=None):
    """The gradients as NumPy arrays (None for an input that is owed none)."""
    return forward_backward(example, dys, inputs)[1]


def backward(node, dys):
    """What `node.backward` makes of NumPy cotangents, as NumPy arrays."""
    backend = backends.active()
    grads = _tuple(node.backward(*(backend.from_numpy(dy) for dy in dys)))
    return [None if g is None else _numpy(g) for g in grads]


def assert_close(found, expected, what, *sizes):
    """`found` within so many ROUNDINGS of `expected`, by the largest of it and of `sizes`."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, f"{what}: shape {found.shape}, not {expected.shape}"
    if expected.size:
        largest = max(np.abs(x).max(initial=0) for x in (expected, *sizes))
        error = np.abs(found - expected).max()
        allowed = ROUNDINGS * np.finfo(expected.dtype).eps * max(largest, 1)
        assert error <= allowed, f"{what} is off by {error:.3g} of {largest:.3g}"


def _with(example, varied):
    """The example's inputs with `varied` in the varied places."""
    inputs = list(example.inputs)
    for i, x in zip(example.varied, varied):
        inputs[i] = x
    return inputs


def _bytes(x):
    """Every byte of the buffer that `x` looks at, also those between its elements."""
    while isinstance(x.base, np.ndarray):
        x = x.base
    return np.array(x).tobytes()


def _distinct_elements(x):
    """Whether no two elements of x share memory, so that adding in place is right."""
    return x.size == 0 or all(stride != 0 for n, stride in zip(x.shape, x.strides) if n > 1)


def _numpy(array):
    return backends.active().to_numpy(array)


def _is_float(x):
    return isinstance(x, np.ndarray) and np.issubdtype(x.dtype, np.floating)


def _tuple(value):
    return value if isinstance(value, tuple) else (value,)
