"""Convolution against loops, against its adjoints, and against differences.

Numbers are small integers where equality is bitwise: then every sum is exact in any order.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minifm as mf
from minifm.errors import ShapeError
from minifm.op import OPS


@st.composite
def geometries(draw):
    """Every choice a convolution makes, with an image that at least one window fits."""
    groups = draw(st.integers(1, 3))
    window = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    padding = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    size = tuple(max(1, k - 2 * p) + draw(st.integers(0, 4)) for k, p in zip(window, padding))
    return {
        "groups": groups, "window": window, "padding": padding, "size": size,
        "stride": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "batch": draw(st.integers(0, 2)), "seed": draw(st.integers(0, 99)),
        "inputs": groups * draw(st.integers(1, 2)), "outputs": groups * draw(st.integers(1, 2)),
    }


def integers(seed, name, shape):
    return mf.Rng(seed).child(name).integers(-4, 5, shape).astype(np.float64)


def images(g):
    x = integers(g["seed"], "x", (g["batch"], g["inputs"], *g["size"]))
    w = integers(g["seed"], "w", (g["outputs"], g["inputs"] // g["groups"], *g["window"]))
    return x, w, integers(g["seed"], "b", (g["outputs"],))


def options(g):
    return {"stride": g["stride"], "padding": g["padding"], "groups": g["groups"]}


def by_loops(x, w, b, stride, padding, groups):
    """The definition of a convolution, one product at a time."""
    (B, _, H, W), (O, I, R, S) = x.shape, w.shape
    P, Q = ((n + 2 * p - k) // s + 1 for n, p, k, s in zip((H, W), padding, (R, S), stride))
    y = np.zeros((B, O, P, Q))
    for n, o, p, q, i, r, s in itertools.product(*map(range, (B, O, P, Q, I, R, S))):
        h, v = p * stride[0] + r - padding[0], q * stride[1] + s - padding[1]
        if 0 <= h < H and 0 <= v < W:
            y[n, o, p, q] += w[o, i, r, s] * x[n, o // (O // groups) * I + i, h, v]
    return y + b[:, None, None]


@given(geometries())
def test_conv2d_equals_the_definition(g):
    x, w, b = images(g)
    assert np.array_equal(mf.conv2d(x, w, b, **options(g)).numpy(), by_loops(x, w, b, **options(g)))


@given(geometries())
def test_conv_transpose2d_is_the_adjoint_of_conv2d(g):
    x, w, _ = images(g)
    y = mf.conv2d(x, w, **options(g)).numpy()
    cotangent = integers(g["seed"], "y", y.shape)
    extra = tuple((n + 2 * p - k) % s for n, p, k, s in
                  zip(g["size"], g["padding"], g["window"], g["stride"]))
    back = mf.conv_transpose2d(cotangent, w, output_padding=extra, **options(g)).numpy()
    assert back.shape == x.shape
    assert np.vdot(y, cotangent) == np.vdot(x, back)


@given(geometries())
def test_conv2d_weight_gradient_is_an_adjoint(g):
    x, w, b = images(g)
    tensors = [mf.Tensor(a, requires_grad=True) for a in (x, w, b)]
    y = mf.conv2d(*tensors, **options(g))
    cotangent = integers(g["seed"], "y", y.shape)
    y.backward(cotangent)
    linear_part = np.vdot(y.numpy() - b[:, None, None], cotangent)
    for tensor in tensors[:2]:
        assert np.vdot(tensor.numpy(), tensor.grad) == linear_part
    assert np.array_equal(tensors[2].grad, cotangent.sum((0, 2, 3)))


@given(geometries())
def test_pooling_equals_its_definition(g):
    window, stride = g["window"], g["stride"]
    padding = tuple(min(p, k // 2) for p, k in zip(g["padding"], window))
    size = tuple(max(n, k) for n, k in zip(g["size"], window))
    x = integers(g["seed"], "x", (g["batch"], 2, *size))
    lead = ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2)
    hidden, zeros = (np.pad(x, lead, constant_values=v) for v in (-np.inf, 0))
    largest = mf.max_pool2d(x, window, stride=stride, padding=padding).numpy()
    means = mf.average_pool2d(x, window, stride=stride, padding=padding).numpy()
    for p, q in np.ndindex(largest.shape[2:]):
        part = (..., slice(p * stride[0], p * stride[0] + window[0]),
                slice(q * stride[1], q * stride[1] + window[1]))
        assert np.array_equal(largest[..., p, q], hidden[part].max((-2, -1), initial=-np.inf))
        assert np.array_equal(means[..., p, q], zeros[part].mean((-2, -1)))


@pytest.mark.parametrize("stride, padding, groups", [(1, 0, 1), ((2, 1), (1, 2), 1), (2, 1, 2)])
def test_gradients_equal_differences(stride, padding, groups):
    rng = mf.Rng(3)
    x = rng.child("x").normal((2, 4, 5, 6), np.float64)
    w, b = rng.child("w").normal((4, 4 // groups, 3, 2), np.float64), np.array([1.0, 2, 3, 4])
    choice = {"stride": stride, "padding": padding, "groups": groups}
    mf.gradcheck(lambda *a: mf.conv2d(*a, **choice), (x, w, b))
    mf.gradcheck(lambda x, w: mf.conv2d(x, w, **choice), (x, w))
    b = np.arange(4.0)[: 4 // groups * groups]
    mf.gradcheck(lambda *a: mf.conv_transpose2d(*a, **choice), (x, w, b))
    distinct = rng.child("order").permutation(x.size).reshape(x.shape) / 8.0
    pool = {"stride": stride, "padding": 1}
    mf.gradcheck(lambda x: mf.max_pool2d(x, (3, 2), **pool), (distinct,))
    mf.gradcheck(lambda x: mf.average_pool2d(x, (3, 2), **pool), (x,))
    mf.gradcheck(lambda x: mf.upsample_nearest(x, (2, 3)), (x,))


def test_upsample_nearest_repeats_pixels():
    x = np.arange(6.0).reshape(1, 1, 2, 3)
    y = mf.upsample_nearest(x, (2, 3)).numpy()
    assert np.array_equal(y, x.repeat(2, axis=2).repeat(3, axis=3))
    assert np.array_equal(mf.upsample_nearest(x).numpy(), x.repeat(2, 2).repeat(2, 3))


def test_max_pool_gives_the_gradient_to_the_first_of_equals():
    x = mf.Tensor(np.ones((1, 1, 2, 2)), requires_grad=True)
    mf.max_pool2d(x, 2).sum().backward()
    assert np.array_equal(x.grad[0, 0], [[1, 0], [0, 0]])


def test_padding_never_wins_even_against_minus_infinity():
    x = mf.Tensor(np.full((1, 1, 2, 2), -np.inf), requires_grad=True)
    mf.max_pool2d(x, 2, padding=1).sum().backward()
    assert np.array_equal(x.grad[0, 0], [[1, 1], [1, 1]])


def test_gradients_nobody_needs_are_not_computed(monkeypatch):
    backend = type(mf.backend())
    for verb in ("convolve_image_adjoint", "convolve_weight_adjoint"):
        monkeypatch.setattr(backend, verb, lambda *a: pytest.fail("computed in vain"))
    b = mf.Tensor(np.zeros(2), requires_grad=True)
    mf.conv2d(np.ones((1, 3, 4, 4)), np.ones((2, 3, 2, 2)), b).sum().backward()
    assert np.array_equal(b.grad, [9, 9])


def test_flops_count_the_products():
    x, w = np.ones((2, 4, 7, 8)), np.ones((6, 2, 3, 3))
    with mf.FlopCounter() as counter:
        mf.conv2d(x, w, stride=2, padding=1, groups=2)
    assert counter.total == 2 * (2 * 6 * 4 * 4) * (2 * 3 * 3)
    y = np.ones((2, 6, 4, 4))
    assert OPS["ConvTranspose2d"].flops(y, w, None, (7, 8)) == counter.total


IMAGE, WEIGHT = np.ones((1, 4, 5, 5)), np.ones((6, 2, 3, 3))


@pytest.mark.parametrize("call, said", [
    (lambda: mf.conv2d(IMAGE, WEIGHT), "x has 4 channels where 1 groups"),
    (lambda: mf.conv2d(IMAGE, WEIGHT, groups=4), "4 groups do not divide the 6 channels"),
    (lambda: mf.conv2d(IMAGE[0], WEIGHT), "of 4 dimensions, got [4, 5, 5]"),
    (lambda: mf.conv2d(IMAGE[..., :2], WEIGHT, groups=2), "3 x 3 does not fit an image of 5 x 2"),
    (lambda: mf.conv2d(IMAGE, WEIGHT, groups=2, stride=0), "stride: expected an integer of at"),
    (lambda: mf.conv2d(IMAGE, WEIGHT, np.ones(5), groups=2), "bias has O = 5 where O = 6"),
    (lambda: mf.conv2d(IMAGE, WEIGHT, groups=2, padding=(1, 1, 1)), "or two, got (1, 1, 1)"),
    (lambda: mf.conv_transpose2d(IMAGE, WEIGHT[:4], np.ones(3)), "bias is [3] where 1 groups"),
    (lambda: mf.conv_transpose2d(IMAGE, WEIGHT[:4], output_padding=1), "less than stride"),
    (lambda: mf.conv_transpose2d(IMAGE, WEIGHT), "weight has C = 6 where C = 4"),
    (lambda: mf.conv_transpose2d(IMAGE, WEIGHT[:4], padding=4), "leaves an image of -1 x -1"),
    (lambda: mf.max_pool2d(IMAGE, 2, padding=2), "more than half of the window"),
    (lambda: mf.average_pool2d(IMAGE, 6), "6 x 6 does not fit an image of 5 x 5"),
    (lambda: mf.max_pool2d(IMAGE[0], 2), "expected an image [B, C, H, W]"),
    (lambda: mf.upsample_nearest(IMAGE, 0), "factor: expected an integer of at least 1"),
])
def test_operands_that_do_not_fit_are_refused(call, said):
    with pytest.raises(ShapeError) as refusal:
        call()
    assert said in str(refusal.value)
