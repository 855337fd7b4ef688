"""Hypothesis strategies: examples of any op, and arrays as an op meets them.

    from hypothesis import given
    from minifm.testing import strategies

    @given(strategies.examples(MyOp))
    def test_gradient(example):
        laws.gradient_is_right(example)
"""

import numpy as np
from hypothesis import strategies as st

from minifm.testing.draw import LAYOUTS, Explorer
from minifm.testing.example import Example, example  # noqa: F401  (found here, too)


def _explorer(draw, **options):
    """An Explorer that chooses by hypothesis; digits come from a seed, which need not shrink."""
    def choose(options):
        return options[draw(st.integers(0, len(options) - 1))]
    return Explorer(choose, draw(st.integers(0, 2**32 - 1)), **options)


@st.composite
def examples(draw, op, dtype=np.float64, most=4096, layouts=LAYOUTS):
    """Examples of `op`. The product of one example's sizes stays below `most`."""
    return example(op, _explorer(draw, dtype=dtype, most=most, layouts=layouts))


@st.composite
def arrays(draw, dtype=np.float32, shape=None, most=4096, layouts=LAYOUTS):
    """Arrays of N(0, 1) numbers, of the given or of any shape, in any of the layouts."""
    explorer = _explorer(draw, dtype=dtype, most=most, layouts=layouts)
    return explorer.normal(explorer.any_shape() if shape is None else shape)
