"""A weight in low precision, for `linear` and `embedding` to read in the weight's place."""

import weakref

from minifm import backends
from minifm.backends.reference.packed import Packed
from minifm.errors import GraphError
from minifm.tensor import Tensor


class PackedTensor(Tensor):
    """What `pack` returns: its data is a Packed, as long as the weight is what it was."""

    __slots__ = ("_packed", "_source", "_source_version")

    def __init__(self, packed, source):
        self._packed, self._source = packed, weakref.ref(source)
        self._source_version = source.version
        self.requires_grad, self.version, self.place = False, 0, 0
        self.grad = self.op = None

    @property
    def data(self):
        source = self._source()
        if source is not None and source.version != self._source_version:
            raise GraphError(f"a weight packed as {self._packed.format} is stale: the weight was "
                             "changed in place after `pack`; pack it again")
        return self._packed


def pack(weight, format, inner=0):
    """`weight`, a Tensor [K, N] (or [N, K] with inner=1, such as an embedding's table), packed.

    The result stands in for the weight in `linear` and `embedding`, and transposed. Products give
    a gradient by their other factor, none by a packed weight. Formats and arithmetic:
    backends/reference/packed.py. Raises ConfigError or ShapeError for what cannot be packed; using
    the result after `weight` has changed in place raises GraphError.
    """
    return PackedTensor(backends.active().pack(weight.data, format, inner), weight)


def refuse_gradient(weight):
    """Raise GraphError where the gradient by a weight is wanted, and it is packed."""
    if isinstance(weight, Packed):
        raise GraphError(f"a weight packed as {weight.format} cannot be trained: set its "
                         "requires_grad to False, or train the weight that it was packed from")
