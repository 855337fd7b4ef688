"""One way to run an op, on real numbers: what laws hold for and what the benchmark times."""

from dataclasses import dataclass, field

import numpy as np

from minifm import backends
from minifm.op import Op
from minifm.ops.arithmetic import raw
from minifm.tensor import Tensor, apply


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
        outputs = apply(self.op, *(inputs or self.inputs), **self.raw_options())
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
        node = self.op()
        node.backend = backends.active()
        node.needs = [i in self.varied for i in range(len(self.inputs))] if needs is None else needs
        arrays = self.arrays()
        node.parents = tuple(_leaf(x) for x in arrays)
        outputs = node.forward(*arrays, **self.raw_options())
        return node, outputs if isinstance(outputs, tuple) else (outputs,)

    def arrays(self):
        """The inputs, each NumPy array as the active backend's."""
        return [raw(x) for x in self.inputs]

    def raw_options(self):
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
