"""Every op of the table against every law: a new op is tested without a line here."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minifm as mf
from minifm.backends.reference import Reference
from minifm.errors import ShapeError
from minifm.gradcheck import GradientMismatch
from minifm.op import OPS, Op
from minifm.ops.arithmetic import check_broadcast
from minifm.tensor import apply
from minifm.testing import laws, sabotage, strategies
from minifm.testing.draw import Explorer

EVERY_OP = [pytest.param(op, id=name) for name, op in list(OPS.items())]


@pytest.mark.parametrize("law", laws.ALL, ids=lambda law: law.__name__)
@pytest.mark.parametrize("op", EVERY_OP)
@given(data=st.data())
def test_law(op, law, data):
    law(data.draw(strategies.examples(op)))


# -- the gradient check itself -----------------------------------------------------------------

# Where some gradient is sure to hold a sum or a square matrix. Elsewhere it may in some examples,
# and is then tested too.
SUMMED = {"Add", "Subtract", "Multiply", "Divide", "Maximum", "Minimum", "Where", "BroadcastTo",
          "Matmul", "Linear", "LayerNorm", "RMSNorm", "GroupNorm", "Embedding", "Conv2d",
          "ConvTranspose2d", "UpsampleNearest", "LinearCrossEntropy", "Attention", "GetItem"}
SQUARE = {"Add", "Multiply", "Where", "Tanh", "Gelu", "Sum", "Max", "Dropout", "Embedding",
          "Matmul", "Linear", "LayerNorm", "RMSNorm", "Attention", "Softmax", "LogSoftmax",
          "CrossEntropy", "LinearCrossEntropy", "Conv2d", "ConvTranspose2d", "Transpose", "Reshape",
          "Concatenate", "TakeAlong", "ScatterAdd", "GetItem"}
MUST = {"scaled": set(OPS), "negated": set(OPS), "unsummed": SUMMED, "transposed": SQUARE}
WHY_NOT = {"unsummed": "no gradient has fewer numbers than its cotangent: nothing need be summed",
           "transposed": "no gradient has two equal last axes, so a transpose has another shape"}


@pytest.mark.parametrize("kind", sabotage.KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("op", EVERY_OP)
def test_a_wrong_gradient_is_caught(op, kind):
    """Of every op, each place that some example can show spoilt; 60 small examples are tried."""
    found, places = set(), set()
    for seed in range(60):
        draw = Explorer.random(seed, sides=(2, 3), layouts=("contiguous",))
        example = strategies.example(op, draw)
        places |= set(example.varied)
        for place in set(example.varied) - found:
            if sabotage.spoils(example, kind, place):
                with sabotage.sabotaged(op, kind, place), pytest.raises(GradientMismatch):
                    laws.gradient_is_right(example)
                found.add(place)
    if kind in (sabotage.scaled, sabotage.negated):
        assert found == places != set()
    if not found:
        assert op.__name__ not in MUST[kind.__name__], "no example shows this sabotage"
        pytest.skip(f"{op.__name__}: {WHY_NOT[kind.__name__]}")


# -- shapes that do not fit ------------------------------------------------------------------------


def misfits(op, example):
    """(inputs, what the message must say) with one size of one operand changed so that it
    disagrees with another operand of the signature."""
    shapes = [x.shape if isinstance(x, np.ndarray) else None for x in example.inputs]
    for i, (name, dims) in enumerate(op.inputs):
        if shapes[i] is None:
            continue
        for dim in dims:
            shared = [n for (n, ds), shape in zip(op.inputs, shapes)
                      if dim in ds and n != name and shape is not None]
            if shared and not dim.startswith("*"):
                star = any(d.startswith("*") for d in dims[: dims.index(dim)])
                axis = dims.index(dim) - len(dims) if star else dims.index(dim)
                larger = list(shapes[i])
                larger[axis] += 1
                yield _replaced(example, i, larger), f"{dim} = {larger[axis]}"
        named = [dim for dim in dims if not dim.startswith("*")]
        if named:
            fewer = shapes[i][: len(named) - 1]
            yield _replaced(example, i, fewer), f"{name} has {len(fewer)} dimensions"


def _replaced(example, i, shape):
    inputs = list(example.inputs)
    inputs[i] = np.zeros(shape, inputs[i].dtype)
    return inputs


def _explains(op, inputs, message):
    """The message names the op, the signature, and every shape that was given."""
    assert message.startswith(f"{op.__name__}: ")
    assert op.signature in message
    for (name, _), x in zip(op.inputs, inputs):
        if isinstance(x, np.ndarray):
            assert f"{name}{list(x.shape)} {x.dtype}" in message


@pytest.mark.parametrize("op", EVERY_OP)
@given(data=st.data())
def test_a_misfit_names_signature_shapes_and_dimension(op, data):
    example = data.draw(strategies.examples(op))
    for inputs, problem in misfits(op, example):
        with pytest.raises(ShapeError) as caught:
            apply(op, *inputs, **example.options)
        # The dimension is named with both its sizes, whichever operand came first.
        assert problem in str(caught.value) or problem.split(" = ")[0] + " = " in str(caught.value)
        _explains(op, inputs, str(caught.value))


@pytest.mark.parametrize("op", [p for p in EVERY_OP if getattr(
    p.values[0].check, "__func__", None) is check_broadcast])
def test_what_does_not_broadcast_names_the_dimension(op):
    inputs = [np.zeros((2, n)) for n in range(3, 3 + len(op.inputs))]
    with pytest.raises(ShapeError, match="dimension -1 is 3 in .* and 4 in ") as caught:
        apply(op, *inputs)
    _explains(op, inputs, str(caught.value))


@pytest.mark.parametrize("op", EVERY_OP)
def test_widths_of_floats_do_not_mix(op):
    """float32 beside float64 is refused, whichever operand it is."""
    for seed in range(10):
        example = strategies.example(op, Explorer.random(seed))
        for i in example.varied if len(example.varied) > 1 else ():
            inputs = list(example.inputs)
            inputs[i] = inputs[i].astype(np.float32)
            with pytest.raises(ShapeError, match="operands mix float32 and float64") as caught:
                apply(op, *inputs, **example.options)
            _explains(op, inputs, str(caught.value))


def test_an_incomplete_op_is_refused_when_it_is_defined():
    def forward(self, x):
        return x

    def backward(self, dy):
        return dy

    complete = {"signature": "x[*X] -> [*X]", "forward": forward, "backward": backward,
                "__doc__": "x."}
    for missing, reason in [("forward", "no forward"), ("backward", "no backward"),
                            ("__doc__", "no docstring"), ("signature", "signature reads")]:
        parts = {key: value for key, value in complete.items() if key != missing}
        with pytest.raises(TypeError, match=reason):
            type("Unfinished", (Op,), parts)
    with pytest.raises(TypeError, match=r"signature names \['z'\], forward \['x'\]"):
        type("Unfinished", (Op,), complete | {"signature": "z[*X] -> [*X]"})
    assert "Unfinished" not in OPS


@pytest.mark.parametrize("name", ["exp", "log", "negative", "tanh", "gelu_tanh", "softmax", "sum",
                                  "mean", "max", "argmax", "reshape", "transpose", "merge_heads"])
@pytest.mark.parametrize("given", [2.0, [1.0, 2.0], None], ids=repr)
def test_what_is_no_array_is_one_clear_line_on_every_backend(backend, name, given):
    with pytest.raises(ShapeError, match="expected a tensor or an array, got ") as caught:
        getattr(mf, name)(given)
    assert repr(given) in str(caught.value) and "\n" not in str(caught.value)


def test_activations_are_float32_or_float64():
    narrow = np.ones(3, np.float16)
    with pytest.raises(ShapeError, match="this is float16"):
        mf.Tensor(narrow)
    with pytest.raises(ShapeError, match="float32 or float64, not float16"):
        mf.exp(narrow)


# -- found by the laws: the smallest examples ------------------------------------------------------


def test_groupnorm_takes_images_of_any_dimension_and_empty_batches():
    ones = np.ones(2)
    for shape in [(0, 2, 5), (1, 2), (1, 2, 2, 2), (1, 2, 2, 2, 2)]:
        assert mf.groupnorm(mf.Tensor(np.zeros(shape)), ones, ones, 2).shape == shape


def test_embedding_of_width_zero_has_an_empty_gradient():
    weight = mf.Tensor(np.zeros((3, 0)), requires_grad=True)
    mf.embedding(weight, np.array([1, 1])).sum().backward()
    assert weight.grad.shape == (3, 0)


@pytest.mark.parametrize("K, N", [(0, 4), (4, 0), (0, 0)])
@pytest.mark.parametrize("lead", [(3,), (2, 0, 3)])
def test_linear_of_nothing_has_gradients(backend, lead, K, N):
    x, w, b = (mf.Tensor(np.ones(shape, np.float32), requires_grad=True)
               for shape in ((*lead, K), (K, N), (N,)))
    mf.linear(x, w, b, mf.silu).sum().backward()
    assert [t.grad.shape for t in (x, w, b)] == [(*lead, K), (K, N), (N,)]
    assert not x.grad.any() and not w.grad.any()


def test_attention_without_a_width_is_the_mean_of_the_values(backend):
    q, k = (np.ones((1, 1, n, 0), np.float32) for n in (2, 4))
    v = np.arange(4, dtype=np.float32).reshape(1, 1, 4, 1)
    assert mf.attention(q, k, v).numpy() == pytest.approx(1.5)


def test_a_frozen_operand_of_a_fused_op_stays_without_gradient():
    x = mf.Tensor(np.ones((2, 3)), requires_grad=True)
    gamma, beta = mf.Tensor(np.ones(3)), np.zeros(3)        # beta no Tensor at all
    mf.layernorm(x, gamma, beta).sum().backward()
    assert gamma.grad is None and x.grad is not None


def test_a_third_operand_of_another_width_is_refused_too():
    wide, narrow = np.ones(2), np.ones(2, np.float32)
    with pytest.raises(ShapeError, match="mix"):
        mf.concatenate([wide, wide, narrow])


# -- where ---------------------------------------------------------------------------------------


@given(strategies.arrays(dtype=np.float64), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_where_leaks_nothing_from_the_branch_not_taken(x, poison):
    """Neither values nor gradients, and neither way."""
    taken = x > 0
    a = mf.Tensor(np.where(taken, x, poison), requires_grad=True)
    b = mf.Tensor(np.where(taken, poison, x), requires_grad=True)
    y = mf.where(taken, a, b)
    assert np.array_equal(y.numpy(), x)
    y.backward(np.where(taken, 1.0, poison))
    assert np.array_equal(a.grad, np.where(taken, 1.0, 0.0))
    assert np.array_equal(b.grad, np.where(taken, 0.0, poison), equal_nan=True)


# -- what a frozen weight saves ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Matmul", "Linear", "LinearCrossEntropy", "Conv2d",
                                  "ConvTranspose2d"])
def test_a_gradient_that_nobody_needs_costs_no_product(name):
    """Multiply-adds of the backward pass, counted in NumPy's own products."""
    with mf.use("numpy"):
        draw = Explorer.random(3, sides=(3, 4), layouts=("contiguous",))
        example = strategies.example(OPS[name], draw)
        everything = _products(example, [True] * len(example.inputs))
        for frozen in range(2):
            needs = [i != frozen for i in range(len(example.inputs))]
            assert _products(example, needs) < everything


def _products(example, needs):
    """How many products of matrices the backward pass asks for."""
    node, outputs = example.node(needs)
    counted = Counting()
    node.backend = counted
    node.backward(*(np.ones(y.shape) for y in outputs))
    return counted.products


class Counting(Reference):
    """The reference, counting its products."""

    def __init__(self):
        super().__init__()
        self.products = 0

    def matmul(self, *arguments):
        self.products += 1
        return super().matmul(*arguments)

    def convolve(self, *arguments):
        self.products += 1
        return super().convolve(*arguments)

    def convolve_image_adjoint(self, *arguments):
        self.products += 1
        return super().convolve_image_adjoint(*arguments)

    def convolve_weight_adjoint(self, *arguments):
        self.products += 1
        return super().convolve_weight_adjoint(*arguments)
