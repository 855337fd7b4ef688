"""The gradient check: it accepts what is right, and refuses what is a little wrong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minifm as mf
from minifm.gradcheck import GradientMismatch
from minifm.op import OPS
from minifm.testing import sabotage, strategies


@given(strategies.arrays(dtype=np.float64))
def test_accepts_what_is_right(x):
    mf.gradcheck(lambda t: mf.tanh(t) * mf.exp(t) + t[..., None].sum(axis=-1), [x])


@pytest.mark.parametrize("error", [1e-3, -1e-3, 1e-4])
def test_refuses_a_relative_error(error):
    """100 times tighter than the usual defaults: one part in ten thousand is seen."""
    def wrong(backward, node, dys, place):
        return (1 + error) * backward(node, *dys)

    with sabotage.sabotaged(OPS["Exp"], wrong, 0), pytest.raises(GradientMismatch, match="input 0"):
        mf.gradcheck(mf.exp, [np.linspace(-1, 1, 7)])


def test_refuses_a_single_wrong_element_among_many():
    def wrong(backward, node, dys, place):
        g = backward(node, *dys).copy()
        g.reshape(-1)[77] *= 1.01
        return g

    x = np.linspace(0.5, 2, 400).reshape(20, 20)
    with sabotage.sabotaged(OPS["Log"], wrong, 0), pytest.raises(GradientMismatch):
        mf.gradcheck(mf.log, [x])


def test_refuses_a_gradient_of_another_shape():
    def wrong(backward, node, dys, place):
        return backward(node, *dys)[..., None]

    with sabotage.sabotaged(OPS["Sin"], wrong, 0), \
            pytest.raises(GradientMismatch, match="gradient"):
        mf.gradcheck(mf.sin, [np.ones(3)])


def test_names_the_input_that_is_wrong():
    with sabotage.sabotaged(OPS["Divide"], sabotage.negated, 1):
        with pytest.raises(GradientMismatch, match=r"input 1 \(2,\)"):
            mf.gradcheck(mf.divide, [np.array([1.0, 2.0]), np.array([3.0, 4.0])])


def test_a_wrong_sum_does_not_hide_behind_the_checks_own_sum():
    """The check once weighted the outputs by the very ops that it checks."""
    with sabotage.sabotaged(OPS["Sum"], sabotage.negated, 0), pytest.raises(GradientMismatch):
        mf.gradcheck(mf.sum, [np.ones(3)])


@pytest.mark.parametrize("seed", range(3))
def test_inputs_from_the_checks_own_seed_hide_nothing(seed):
    """With weights equal to x, the gradient xᵀx of y is symmetric, and a transpose unseen."""
    random = np.random.default_rng(seed)
    x, y = random.standard_normal((2, 3, 3))
    with sabotage.sabotaged(OPS["Matmul"], sabotage.transposed, 1):
        with pytest.raises(GradientMismatch, match="input 1"):
            mf.gradcheck(mf.matmul, [x, y], seed=seed)


@given(st.integers(0, 5))
def test_outputs_that_depend_on_nothing_have_zero_gradients(n):
    mf.gradcheck(lambda x: mf.Tensor(np.ones(n)), [np.ones(n)])


def test_several_outputs_and_other_inputs():
    def function(x, times, ids, nothing):
        first, second, third = mf.split_heads(x * times, 1)
        return first[..., ids], third

    mf.gradcheck(function, [np.arange(6.0).reshape(1, 1, 6), 3, np.array([1, 0, 1]), None])
