"""The laws of the engine: what it frees, refuses, adds up, and keeps apart between threads."""

import gc
import threading
import tracemalloc
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minifm as mf
from minifm.errors import GraphError, ShapeError
from minifm.op import OPS, Op
from minifm.tensor import apply, propagate
from minifm.testing import strategies


def leaf(values, dtype=np.float64):
    return mf.Tensor(np.asarray(values, dtype), requires_grad=True)


@pytest.fixture
def no_collector():
    """Python's cycle collector, off: what is freed is freed by its reference count alone."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# -- values ------------------------------------------------------------------------------------


def test_numpy_reads_a_tensor_as_the_array_that_it_holds():
    x = leaf([[1, 2], [3, 4]], np.float32)
    values = np.asarray(x * 2)
    assert values.dtype == np.float32 and values.tolist() == [[2, 4], [6, 8]]
    assert np.asarray(x, np.int64).dtype == np.int64
    np.array(x)[:] = 0                  # a copy
    assert x.numpy().tolist() == [[1, 2], [3, 4]]
    with pytest.raises(ValueError):
        np.asarray(x, np.int64, copy=False)



@pytest.mark.parametrize("name", ["sum", "mean", "max", "amax", "min", "reshape", "transpose"])
def test_a_function_of_numpy_that_tensors_have_says_so(name):
    x = leaf([[1.0, 2.0]])
    own = name.removeprefix("a")
    with pytest.raises(TypeError, match=rf"^np\.{own} is not for tensors: call tensor\.{own}\("):
        getattr(np, name)(x, *[(2, 1)] * (name == "reshape"))


def test_other_functions_of_numpy_see_the_values():
    x = leaf([[1.0, 2.0]])
    assert (np.shape(x), np.ndim(x), np.argmax(x)) == ((1, 2), 2, 1)
    assert np.array_equal(np.concatenate([x, x.numpy()]), [[1, 2], [1, 2]])
    assert np.allclose(x, [[1, 2]]) and not np.allclose(x, [[1, 3]])


def test_a_model_takes_ids_as_a_tensor_as_well():
    from minifm.models import GPT, GPTConfig
    model = GPT(GPTConfig(vocabulary=7, layers=1, heads=1, width=4, context=8), mf.Rng(0))
    ids = np.arange(6).reshape(2, 3)
    assert (model(mf.Tensor(ids)).numpy() == model(ids).numpy()).all()


def test_one_element_is_a_number_and_several_are_not():
    assert float(leaf([1.5])) == 1.5 and int(leaf([[2.5]])) == 2 and leaf(3).item() == 3
    for ask in (float, int, bool, mf.Tensor.item):
        with pytest.raises(ShapeError, match=r"one element, this one has shape \(2,\)"):
            ask(leaf([1, 2]))


def test_rows_of_different_lengths_are_refused():
    with pytest.raises(ShapeError, match="rows of one length"):
        mf.Tensor([[1, 2], [3]])
    with pytest.raises(ShapeError, match="operands mix float32 and float64; give all in one"):
        np.array([1.0, 2.0]) + mf.Tensor([1.0, 2.0])


# -- memory ------------------------------------------------------------------------------------


def test_a_graph_is_freed_without_the_cycle_collector(no_collector):
    x = leaf(np.ones((3, 4)))
    middle = mf.gelu(x * 2)
    loss = (mf.softmax(middle) ** 2).sum()
    nodes = [weakref.ref(t.op) for t in (middle, loss)]
    tensors = [weakref.ref(middle), weakref.ref(loss)]
    loss.backward()
    del middle, loss
    assert [r() for r in (*nodes, *tensors)] == [None] * 4


def test_a_graph_that_is_never_walked_is_freed_too(no_collector):
    x = leaf(np.ones((3, 4)))
    loss = (mf.layernorm(x, leaf(np.ones(4)), leaf(np.zeros(4))) @ leaf(np.ones((4, 2)))).sum()
    node = weakref.ref(loss.op)
    del loss
    assert node() is None


def test_backward_drops_what_an_op_kept_as_soon_as_it_is_consumed(no_collector):
    x = leaf(np.ones(4))
    y = mf.exp(x)
    kept = weakref.ref(y.op)
    y.sum().backward()
    assert vars(kept()) == {}, "the node lives as long as y, but keeps no array"


def test_memory_is_flat_over_a_thousand_steps(no_collector):
    weight = leaf(np.full((16, 16), 0.1))

    def steps(n):
        for _ in range(n):
            y = mf.linear(np.ones((8, 16)), weight, activation=mf.gelu_tanh)
            (mf.softmax(y) * y).sum().backward()
            weight.grad = None

    def traced():
        arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
        found = tracemalloc.take_snapshot().filter_traces([arrays])
        return sum(trace.size for trace in found.traces), tracemalloc.get_traced_memory()[0]

    steps(20)
    tracemalloc.start()
    steps(10)
    arrays, everything = traced()
    steps(1000)
    arrays_after, everything_after = traced()
    tracemalloc.stop()
    assert arrays_after <= arrays, "array data that outlives its step"
    # Python keeps up to 2,000 dead tuples of each length for later; a node that was not freed
    # would cost more than 300 bytes, four times a step.
    assert everything_after - everything < 300 * 1000


def test_no_grad_keeps_nothing(no_collector):
    x = leaf(np.ones(4))
    with mf.no_grad():
        y = mf.exp(x)
    assert y.op is None and not y.requires_grad


# -- what is refused -------------------------------------------------------------------------------


def test_a_second_backward_raises():
    x = leaf([1.0, 2.0])
    loss = (x * x).sum()
    loss.backward()
    with pytest.raises(GraphError, match="consumed by an earlier backward"):
        loss.backward()
    assert np.array_equal(x.grad, [2.0, 4.0]), "the refused pass has added nothing"


def test_a_graph_that_shares_a_consumed_part_raises():
    x = leaf([1.0, 2.0])
    shared = x * x
    shared.sum().backward()
    with pytest.raises(GraphError, match="consumed"):
        (shared * 3).sum().backward()


@pytest.mark.parametrize("use, name", [
    (lambda x, w: mf.matmul(x, w), "Matmul"),
    (lambda x, w: mf.linear(x, w), "Linear"),
    (lambda x, w: x * w, "Multiply"),
    (lambda x, w: mf.softmax(w), "Softmax"),
])
def test_a_weight_changed_after_its_forward_raises_and_names_the_op(use, name):
    x, w = leaf(np.eye(2)), leaf(np.ones((2, 2)))
    loss = use(x, w).sum()
    w.data += 1.0
    w.version += 1
    with pytest.raises(GraphError, match=f"an input of {name} was changed in place"):
        loss.backward()


def test_a_weight_changed_before_its_forward_is_fine():
    w = leaf([1.0])
    w.version += 1
    (w * w).sum().backward()
    assert w.grad == [2.0]


def test_backward_refuses_what_it_cannot_mean():
    x = leaf(np.ones((2, 2)))
    with pytest.raises(GraphError, match=r"\(2, 2\) is not a scalar; pass grad="):
        (x * 2).backward()
    with pytest.raises(GraphError, match="no input of this tensor requires a gradient"):
        mf.Tensor(np.ones(())).backward()
    with pytest.raises(ShapeError, match=r"grad is \(2,\) float64, the tensor \(2, 2\) float64"):
        (x * 2).backward(np.ones(2))
    with pytest.raises(ShapeError, match="float32"):
        (x * 2).backward(np.ones((2, 2), np.float32))
    with pytest.raises(ShapeError, match="only floating-point tensors have gradients"):
        mf.Tensor(np.arange(3), requires_grad=True)


def test_an_op_must_return_one_gradient_for_each_input(monkeypatch):
    monkeypatch.setattr(OPS["Add"], "backward", lambda self, dy: (dy,))
    y = leaf(np.ones(3)) + leaf(np.ones(3))
    with pytest.raises(GraphError, match="Add must return .* 2 inputs, and returned 1"):
        y.backward(np.ones(3))


# -- how gradients add up ------------------------------------------------------------------------


def test_x_times_x():
    x = leaf([3.0, -2.0])
    (x * x).sum().backward()
    assert np.array_equal(x.grad, [6.0, -4.0])


@given(st.integers(1, 6), st.integers(1, 6))
def test_a_tensor_used_n_times_in_m_passes(uses, passes):
    """Integers: the sums are exact, so the equality is bitwise."""
    x = leaf([2.0, 5.0])
    for _ in range(passes):
        total = x * 1.0
        for _ in range(uses - 1):
            total = total + x
        total.sum().backward()
    assert np.array_equal(x.grad, [uses * passes] * 2)


def test_a_diamond_waits_for_both_branches():
    x = leaf([2.0])
    y = x * 3
    z = mf.exp(y * 0) * y + y       # y is reached along paths of different length
    z.backward()
    assert x.grad == [3 * (0 + 1 + 1)]


def test_places_that_an_index_names_twice_receive_both():
    x = leaf([1.0, 2.0, 3.0])
    (x[np.array([0, 2, 0, 0])] * np.array([1.0, 10.0, 100.0, 1000.0])).sum().backward()
    assert np.array_equal(x.grad, [1101.0, 0.0, 10.0])
    weight = leaf(np.zeros((3, 1)))
    rows = mf.embedding(weight, np.array([2, 2, 1]))
    (rows * np.array([[1.0], [10.0], [100.0]])).sum().backward()
    assert np.array_equal(weight.grad, [[0.0], [100.0], [11.0]])


def test_outputs_without_a_gradient():
    """Of a split's three pieces only one is used: the others contribute zeros."""
    for used in range(3):
        x = leaf(np.arange(6.0).reshape(1, 1, 6))
        (mf.split_heads(x, 1)[used] * 2).sum().backward()
        assert np.array_equal(x.grad[0, 0], np.repeat(2.0 * (np.arange(3) == used), 2))


def test_a_leaf_as_root():
    x = leaf(1.0)
    x.backward()
    x.backward()
    assert x.grad == 2.0


def test_propagate_starts_from_several_tensors_at_once():
    x = leaf([1.0, 2.0])
    y = x * x
    z = y * 3
    propagate([(y, np.array([1.0, 1.0])), (z, np.array([10.0, 0.0])), (x, np.array([0.5, 0.5]))],
              mf.backend())
    assert np.array_equal(x.grad, [2 * (1 + 30) + 0.5, 4 + 0.5])


@given(strategies.arrays(dtype=np.float64))
def test_a_leafs_gradient_is_its_own(values):
    """It shares no memory with data, with the cotangent, or with another leaf's gradient, so
    that adding to it or scaling it in place changes nothing else."""
    a, b = leaf(values), leaf(values)
    cotangent = np.ones(values.shape)
    (a + b).backward(cotangent)
    reshaped = leaf(values)
    reshaped.reshape(-1).backward(cotangent.reshape(-1))
    alone = leaf(values)
    alone.backward(cotangent)
    grads = [t.grad for t in (a, b, reshaped, alone)]
    for k, g in enumerate(grads):
        for other in (values, cotangent, a.data, b.data, *grads[:k]):
            assert not np.shares_memory(g, other)
        g += 1.0
    assert np.array_equal(cotangent, np.ones(values.shape))


@pytest.mark.parametrize("tied", [False, True])
def test_a_weight_gradient_accumulates_into_the_leafs_own_array(tied):
    """Linear, embedding and the fused loss add into an existing gradient: no second array."""
    rng = np.random.default_rng(7)
    weight = leaf(rng.standard_normal((5, 4)))
    ids, targets = np.array([1, 1, 3]), np.array([0, 4, 2])

    def loss():
        x = mf.embedding(weight, ids)
        head = weight if tied else leaf(rng.standard_normal((5, 4)))
        return mf.linear_cross_entropy(x, head, targets)

    loss().backward()
    array, once = weight.grad, weight.grad.copy()
    loss().backward()
    assert weight.grad is array
    if tied:
        np.testing.assert_allclose(array, 2 * once, rtol=1e-12, atol=1e-14)


def test_a_linear_whose_weight_is_its_input():
    """x @ x, with a gradient already there: the product must not be added to a half-done sum."""
    x = leaf(np.arange(4.0).reshape(2, 2))
    once = None
    for _ in range(3):
        mf.linear(x, x).sum().backward()
        once = x.grad.copy() if once is None else once
    assert np.array_equal(x.grad, 3 * once)
    mf.gradcheck(lambda w: mf.linear(w, w), [np.arange(4.0).reshape(2, 2)])


# -- depth and breadth -----------------------------------------------------------------------------


def test_a_chain_of_a_hundred_thousand_nodes(no_collector):
    """No recursion: neither in the walk nor, which is easy to forget, in the freeing."""
    x = leaf([1.0])
    y = x
    for _ in range(100_000):
        y = y + 1.0
    y.backward()
    assert x.grad == [1.0]


def test_a_long_chain_that_is_never_walked_is_freed(no_collector):
    y = leaf([1.0])
    for _ in range(100_000):
        y = y + 1.0
    node = weakref.ref(y.op)
    del y
    assert node() is None


# -- threads -----------------------------------------------------------------------------------


def in_threads(function, n):
    """function(0), …, function(n - 1), each in a thread of its own, all running at once."""
    results, errors, start = [None] * n, [], threading.Barrier(n)

    def body(i):
        try:
            start.wait()
            results[i] = function(i)
        except BaseException as error:      # a thread's error would be printed and forgotten
            errors.append(error)

    threads = [threading.Thread(target=body, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def test_no_grad_is_per_thread():
    inside, outside = threading.Event(), threading.Event()

    def recorded(i):
        x = leaf([1.0])
        if i == 0:
            with mf.no_grad():
                inside.set()
                outside.wait(10)
                return (x * 2).requires_grad
        inside.wait(10)
        answer = (x * 2).requires_grad
        outside.set()
        return answer

    assert in_threads(recorded, 2) == [False, True]


def test_no_grad_nests_and_survives_an_error():
    x = leaf([1.0])
    with mf.no_grad():
        with pytest.raises(ZeroDivisionError), mf.no_grad():
            1 / 0
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad


def test_threads_give_bitwise_what_one_thread_gives(backend):
    def gradient(i):
        rng = mf.Rng(i)
        x = mf.Tensor(rng.child("x").normal((6, 16)), requires_grad=True)
        w = mf.Tensor(rng.child("w").normal((16, 16)), requires_grad=True)
        for _ in range(20):
            y = mf.linear(x, w, activation=mf.gelu_tanh)
            mf.softmax(y).max(axis=-1).sum().backward()
        return backend.to_numpy(x.grad).tobytes() + backend.to_numpy(w.grad).tobytes()

    assert in_threads(gradient, 4) == [gradient(i) for i in range(4)]


# -- an op of one's own ----------------------------------------------------------------------------


@pytest.fixture
def cube():
    """An op as a user writes one; it leaves the table again after the test."""
    class Cube(Op):
        """x³."""

        signature = "x[*X] -> [*X]"

        def forward(self, x):
            self.x = x
            return self.backend.multiply(x, self.backend.multiply(x, x))

        def backward(self, dy):
            b = self.backend
            return b.multiply(b.multiply(dy, b.multiply(self.x, self.x)), 3)

    yield Cube
    del OPS["Cube"]


def test_an_op_of_ones_own_is_checked_by_the_same_laws(cube):
    from minifm.testing import laws

    @given(strategies.examples(cube))
    def check(example):
        for law in laws.ALL:
            law(example)

    check()
    x = leaf([2.0])
    apply(cube, x).backward()
    assert x.grad == [12.0]
