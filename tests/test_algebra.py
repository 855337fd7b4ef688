"""The algebra that ops obey, whatever computes them: softmax, norms, attention, losses, RoPE."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import minifm as mf
from minifm.errors import ShapeError
from minifm.testing import strategies

U = 2.0**-24        # unit roundoff of float32
SIZES = st.sampled_from([1, 2, 3, 7, 8, 17, 33, 65])


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def gradients(function, *arrays):
    """(value, gradients) of a scalar function of arrays."""
    tensors = [mf.Tensor(x, requires_grad=True) for x in arrays]
    loss = function(*tensors)
    loss.backward()
    return loss.item(), [mf.backend().to_numpy(t.grad) for t in tensors]


# -- softmax ---------------------------------------------------------------------------------------


@given(rows=SIZES, n=SIZES, shift=st.sampled_from([-2048.0, -8.0, 0.5, 1024.0]), data=st.data())
def test_softmax_is_shift_invariant(backend, rows, n, shift, data):
    """Bitwise, where adding the shift rounds nothing."""
    x = np.random.default_rng(n).integers(-64, 64, (rows, n)).astype(np.float32) / 8
    np.testing.assert_array_equal(mf.softmax(x + np.float32(shift)).numpy(), mf.softmax(x).numpy())
    np.testing.assert_array_equal(mf.log_softmax(x + np.float32(shift)).numpy(),
                                  mf.log_softmax(x).numpy())


@given(strategies.arrays(np.float32), st.data())
def test_softmax_sums_to_one_and_is_permutation_equivariant(backend, x, data):
    if x.ndim == 0 or x.size == 0:
        return
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    n, y = x.shape[axis], mf.softmax(x, axis).numpy()
    assert (y >= 0).all()
    # Each quotient errs by a few roundings, and their sum here is taken in float64.
    assert np.abs(y.sum(axis, dtype=np.float64) - 1).max() <= (n + 4) * U
    order = np.random.default_rng(n).permutation(n)
    permuted = mf.softmax(np.take(x, order, axis), axis).numpy()
    np.testing.assert_allclose(permuted, np.take(y, order, axis), rtol=2 * (n + 4) * U)


def test_softmax_is_finite_at_large_logits_and_zero_where_all_is_masked(backend):
    x = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [3e38, -3e38, 0], [-np.inf] * 3,
                  [-np.inf, 5, -np.inf]], np.float32)
    y = mf.softmax(x).numpy()
    wanted = [[1, 0, 0], [1 / 3] * 3, [1, 0, 0], [0] * 3, [0, 1, 0]]
    np.testing.assert_allclose(y, wanted, rtol=4 * U)
    assert np.isnan(mf.softmax(np.array([1, np.nan, 2], np.float32)).numpy()).all()


# -- norms -----------------------------------------------------------------------------------------


@given(rows=SIZES, n=st.sampled_from([2, 3, 8, 17, 65]), scale=st.sampled_from([0.5, 4.0, 1024.0]))
def test_layernorm_forgets_shift_and_scale(backend, rows, n, scale):
    x = normal(rows, n, seed=n, dtype=np.float64) * 10
    ones, zeros = np.ones(n), np.zeros(n)
    y = mf.layernorm(x, ones, zeros, eps=0.0).numpy()
    moved = mf.layernorm(x * scale + 3, ones, zeros, eps=0.0).numpy()
    np.testing.assert_allclose(moved, y, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-12)
    np.testing.assert_allclose(y.var(-1), 1, rtol=1e-12)
    root = mf.rmsnorm(x, ones, eps=0.0).numpy()
    np.testing.assert_allclose((root * root).mean(-1), 1, rtol=1e-12)
    np.testing.assert_allclose(mf.rmsnorm(x * scale, ones, eps=0.0).numpy(), root, rtol=1e-12)


def test_one_group_of_groupnorm_is_layernorm_over_all_channels(backend):
    x = normal(3, 4, 5)
    gamma, beta = np.ones(4, np.float32), np.zeros(4, np.float32)
    y = mf.groupnorm(x, gamma, beta, groups=1).numpy()
    flat = mf.layernorm(x.reshape(3, 20), np.ones(20, np.float32), np.zeros(20, np.float32))
    np.testing.assert_allclose(y.reshape(3, 20), flat.numpy(), atol=64 * U)


# -- attention -------------------------------------------------------------------------------------


def composed_attention(q, k, v, *, causal=False, bias=None, key_mask=None):
    """The definition, from matmul and softmax, heads repeated for grouped queries."""
    groups = q.shape[1] // k.shape[1]
    k, v = (mf.concatenate([x[:, i // groups : i // groups + 1] for i in range(q.shape[1])], 1)
            for x in (k, v))
    scores = mf.matmul(q, k.transpose(0, 1, 3, 2)) * (1 / math.sqrt(q.shape[-1]))
    if bias is not None:
        scores = scores + bias
    hidden = np.zeros((q.shape[0], 1, q.shape[2], k.shape[2]), bool)
    if causal:
        hidden |= ~np.tri(q.shape[2], k.shape[2], k.shape[2] - q.shape[2], dtype=bool)
    if key_mask is not None:
        hidden |= ~key_mask[:, None, None, :]
    scores = mf.where(np.broadcast_to(hidden, scores.shape), -math.inf, scores)
    return mf.matmul(mf.softmax(scores), v)


@given(B=st.sampled_from([1, 2]), K=st.sampled_from([1, 2]), groups=st.sampled_from([1, 3]),
       T=SIZES, past=st.sampled_from([0, 1, 7, 64]), D=st.sampled_from([1, 8, 17, 64]),
       causal=st.booleans(), biased=st.booleans(), padded=st.booleans())
def test_fused_attention_is_the_composed_one(backend, B, K, groups, T, past, D, causal, biased,
                                             padded):
    """Outputs and all gradients in float64 to 1e-12, in float32 by the 2-3 × rule."""
    S = T + past
    shapes = [(B, K * groups, T, D), (B, K, S, D), (B, K, S, D)] + [(K * groups, T, S)] * biased
    exact = [normal(*shape, seed=i, dtype=np.float64) for i, shape in enumerate(shapes)]
    mask = np.random.default_rng(S).random((B, S)) < 0.7 if padded else None
    weights = normal(B, K * groups, T, D, seed=9, dtype=np.float64)

    def results(attention, arrays):
        def loss(q, k, v, bias=None):
            y = attention(q, k, v, causal=causal, bias=bias, key_mask=mask)
            return mf.sum(y * weights.astype(arrays[0].dtype))
        value, grads = gradients(loss, *arrays)
        return [np.float64(value), *grads]

    oracle = results(composed_attention, exact)
    for found, wanted in zip(results(mf.attention, exact), oracle):
        size = max(1, np.abs(wanted).max())
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12 * size)
    narrow = [x.astype(np.float32) for x in exact]
    oracle = results(composed_attention, [x.astype(np.float64) for x in narrow])
    fused, plain = results(mf.attention, narrow), results(composed_attention, narrow)
    # The fused backward takes dp - Σ p dp from two sums that cancel where p is one-hot: each errs
    # by up to γ Σ|dy||v|, which the products with q and k, summed over T, carry on.
    sums = (np.abs(weights) @ np.abs(exact[2]).swapaxes(-1, -2).repeat(groups, 1)).max()
    largest = max(1, np.abs(exact[0]).max(), np.abs(exact[1]).max())
    floor = 2 * (D + S) * U * sums * largest * (groups * T)**0.5
    for found, composed, wanted in zip(fused[1:], plain[1:], oracle[1:]):
        assert np.abs(found - wanted).max() <= 3 * np.abs(composed - wanted).max() + floor


def test_a_query_that_may_look_at_nothing_gets_zeros_and_no_gradient(backend):
    q = normal(1, 1, 2, 4)
    mask = np.zeros((1, 2), bool)
    value, grads = gradients(lambda q: mf.sum(mf.attention(q, q, q, key_mask=mask)), q)
    assert value == 0 and not grads[0].any()


@pytest.mark.parametrize("mask", [np.ones((1, 2), np.int64), np.ones((1, 2), np.float32)])
def test_a_mask_that_is_not_bool_is_refused(backend, mask):
    q = normal(1, 1, 2, 4)
    with pytest.raises(ShapeError, match="key_mask must be bool"):
        mf.attention(q, q, q, key_mask=mask)
    with pytest.raises(ShapeError, match="bias must be of floating-point numbers"):
        mf.attention(q, q, q, bias=np.ones((2, 2), bool))


# -- rotary positions ------------------------------------------------------------------------------


def angles(positions, width):
    frequency = 10000.0 ** (-np.arange(width // 2) * 2 / width)
    angle = positions[:, None] * frequency
    return np.cos(angle), np.sin(angle)


@given(shift=st.integers(0, 500), D=st.sampled_from([2, 8, 64]))
def test_rotated_scores_depend_on_distance_alone(shift, D):
    q, k = (normal(1, 1, 5, D, seed=i, dtype=np.float64) for i in (1, 2))

    def scores(start):
        cos, sin = angles(np.arange(start, start + 5), D)
        return mf.rope(q, cos, sin).numpy() @ mf.rope(k, cos, sin).numpy().swapaxes(-1, -2)
    np.testing.assert_allclose(scores(shift), scores(0), atol=1e-11)
    rotated = mf.rope(q, *angles(np.arange(5), D)).numpy()
    np.testing.assert_allclose((rotated**2).sum(-1), (q**2).sum(-1), rtol=1e-12)


# -- losses ----------------------------------------------------------------------------------------


@given(N=SIZES, C=st.sampled_from([1, 3, 16]), V=st.sampled_from([2, 9, 65]),
       smoothing=st.sampled_from([0.0, 0.1]), ignored=st.booleans(), bias=st.booleans())
@example(N=600, C=3, V=9, smoothing=0.1, ignored=True, bias=True)       # more than two chunks
def test_fused_linear_cross_entropy_is_the_composed_one(backend, N, C, V, smoothing, ignored,
                                                        bias):
    x, w = normal(N, C, seed=1, dtype=np.float64), normal(V, C, seed=2, dtype=np.float64)
    operands = (x, w, normal(V, seed=3, dtype=np.float64)) if bias else (x, w)
    targets = np.random.default_rng(N).integers(0, V, N)
    if ignored:
        targets[::2] = -100
    fused = gradients(lambda x, w, b=None: mf.linear_cross_entropy(
        x, w, targets, smoothing=smoothing, bias=b), *operands)
    composed = gradients(lambda x, w, b=0.0: mf.cross_entropy(
        mf.matmul(x, w.transpose(1, 0)) + b, targets, smoothing=smoothing), *operands)
    assert fused[0] == pytest.approx(composed[0], rel=1e-12, abs=1e-12)
    for found, wanted in zip(fused[1], composed[1]):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_cross_entropy_is_the_definition(backend):
    logits, targets = normal(5, 7, dtype=np.float64), np.array([0, 6, -100, 3, 3])
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    counted = targets != -100
    nats = -np.log(p[counted, targets[counted]])
    assert mf.cross_entropy(logits, targets).item() == pytest.approx(nats.mean(), rel=1e-12)
    # Szegedy et al. 2016: the target's distribution is mixed with the uniform one.
    mixed = 0.9 * np.eye(7)[targets[counted]] + 0.1 / 7
    smoothed = -(mixed * np.log(p[counted])).sum(-1).mean()
    found = mf.cross_entropy(logits, targets, smoothing=0.1).item()
    assert found == pytest.approx(smoothed, rel=1e-12)
    assert mf.cross_entropy(logits, np.full(5, -100)).item() == 0
    assert mf.cross_entropy(logits, np.full(5, 1), ignore_index=1).item() == 0


# -- integers and truth values ---------------------------------------------------------------------


def test_integers_and_truth_values_add_up(backend):
    hits = mf.equal(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 0]))
    assert mf.mean(hits).item() == 0.75 and mf.sum(hits).item() == 3
    assert mf.sum(np.full(10, 100, np.int8)).item() == 1000
    assert mf.sum(np.full(3, 2**30, np.int32)).item() == 3 * 2**30
    assert mf.mean(np.full(10, 200, np.uint8)).item() == 200
    assert mf.variance(np.array([True, False])).item() == 0.25
    assert mf.min(np.array([0, 5], np.uint8)).item() == 0
    assert mf.min(np.array([-128, 5], np.int8)).item() == -128
    assert mf.where(np.array([True]), 0.0, -np.inf).dtype == np.float32


@pytest.mark.parametrize("wrong", [
    lambda x: x * np.arange(3), lambda x: np.arange(3) + x, lambda x: x @ np.ones((3, 1), int),
    lambda x: mf.where(x > 0, x, np.arange(3)), lambda x: x + [1, 2, 3], lambda x: x * "3",
    lambda x: x + 1j, lambda x: x @ 2, lambda x: mf.softmax(x, 5), lambda x: mf.sum(x, (0, 0)),
    lambda x: mf.Tensor([None]), lambda x: mf.Tensor(["a"]), lambda x: mf.argmax(x, 3),
    lambda x: mf.embedding(x, np.array([1.7], np.float32)),
    lambda x: mf.embedding(x, np.array([True])), lambda x: x.transpose(2, 3),
    lambda x: mf.cross_entropy(x, np.zeros(2, np.float32)), lambda x: x.reshape(-2, -3),
    lambda x: mf.groupnorm(x, x[0], x[0], 0), lambda x: x.sum().backward(1.0),
    lambda x: mf.take_along(x, np.array([[0]]), 3),
])
def test_what_would_be_silently_wrong_is_refused(backend, wrong):
    with pytest.raises(ShapeError):
        wrong(mf.Tensor(np.ones((2, 3), np.float32), requires_grad=True))


def test_a_numpy_scalar_is_a_number(backend):
    x = mf.Tensor(np.full((2, 2), 3, np.float32), requires_grad=True)
    y = (x / np.sqrt(64) + np.int64(2)) * np.float64(4)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == np.float32 and y.numpy()[0, 0] == 9.5
    assert (np.ones((1, 2), np.float32) @ x).shape == (1, 2)


def test_truth_is_that_of_one_element():
    assert not mf.Tensor([1.0]) < 0 and bool(mf.Tensor(2.0) > 1)
    with pytest.raises(ValueError, match="one element"):
        bool(mf.Tensor([1.0, 2.0]) > 0)


# -- functions -------------------------------------------------------------------------------------


def test_erf_is_within_4_ulp_in_float64():
    """NumPy has no erf; the reference's own is held against the standard library's."""
    random = np.random.default_rng(0)
    x = np.concatenate([random.uniform(-6, 6, 20_000), random.normal(0, 1e-3, 2000),
                        [0.0, -0.0, 1e-300, 5e-324, 30.0, -30.0, np.inf, -np.inf]])
    with mf.use("numpy"):
        found = mf.erf(x).numpy()
    wanted = np.array([math.erf(v) for v in x])
    assert (np.abs(found - wanted) <= 4 * np.spacing(np.abs(wanted))).all()
    assert math.copysign(1, mf.erf(np.array([-0.0])).numpy()[0]) == -1


@pytest.mark.parametrize("function, definition", [
    (mf.gelu, lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2)))),
    (mf.gelu_tanh, lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi)
                                                      * (v + 0.044715 * v**3)))),
    (mf.gelu_quick, lambda v: v / (1 + math.exp(-1.702 * v))),
    (mf.silu, lambda v: v / (1 + math.exp(-v))),
], ids=lambda f: getattr(f, "__name__", ""))
def test_activations_are_their_definitions(backend, function, definition):
    x = np.random.default_rng(1).uniform(-8, 8, 2000)
    wanted = np.array([definition(v) for v in x])
    np.testing.assert_allclose(function(x).numpy(), wanted, rtol=1e-12, atol=1e-14)
    narrow = function(x.astype(np.float32)).numpy()
    assert (np.abs(narrow - wanted) <= 32 * U * np.maximum(np.abs(x), 1)).all()
    for limit in (-1e4, 1e4):
        assert function(np.array([limit], np.float32)).numpy()[0] == max(limit, 0)
