"""Hypothesis strategies: examples of any op, and arrays as an op meets them.

    from hypothesis import given
    from minifm.testing import strategies

    @given(strategies.examples(MyOp))
    def test_gradient(example):
        laws.gradient_is_right(example)
"""

from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from minifm import backends
from minifm.op import Op
from minifm.ops.elementwise import raw
from minifm.tensor import Tensor, apply
from minifm.testing.draw import LAYOUTS, Explorer


@dataclass
class Example:
    """One way to run an op: its inputs (NumPy arrays, numbers or None) and options.

    varied    the places of the inputs that the op owes a gradient
    """

    op: type[Op]
    inputs: tuple
    options: dict
    varied: tuple = field(default=())

    def run(self, *inputs):
        """The outputs, as a tuple of Tensors; `inputs` in place of the example's, if given."""
        outputs = apply(self.op, *(inputs or self.inputs), **self._options())
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def tensors(self):
        """The inputs, with a Tensor that requires a gradient at each varied place."""
        return [Tensor(x, requires_grad=True) if i in self.varied else x
                for i, x in enumerate(self.inputs)]

    def node(self, needs=None):
        """The op after its forward, outside any graph, and its outputs as a tuple of arrays.

        needs   which inputs want a gradient; default: the varied ones. Call `backward` on it with
                raw arrays to see exactly what the op returns.
        """
        node, backend = self.op(), backends.active()
        node.backend = backend
        node.needs = [i in self.varied for i in range(len(self.inputs))] if needs is None else needs
        arrays = [backend.from_numpy(x) if isinstance(x, np.ndarray) else x for x in self.inputs]
        node.parents = tuple(_leaf(x) for x in arrays)
        outputs = node.forward(*arrays, **self._options())
        return node, outputs if isinstance(outputs, tuple) else (outputs,)

    def _options(self):
        """The options, an index array among them as the backend's."""
        return {name: raw(value) for name, value in self.options.items()}

    def __repr__(self):
        given = ", ".join(f"{x.dtype}{list(x.shape)} strides {x.strides}"
                          if isinstance(x, np.ndarray) else repr(x) for x in self.inputs)
        return f"{self.op.__name__}({given}, {self.options})"


def _leaf(x):
    return Tensor(x) if hasattr(x, "dtype") else x


def example(op, draw):
    """The Example that `draw` (see draw.py) makes of `op`."""
    inputs, options = op.examples(draw)
    constant = [id(x) for x in draw.constants]
    varied = tuple(i for i, x in enumerate(inputs) if isinstance(x, np.ndarray)
                   and np.issubdtype(x.dtype, np.floating) and id(x) not in constant)
    return Example(op, tuple(inputs), options, varied)


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
