"""The C backend: the reference's verbs, with a kernel of csrc/ in place of each hot one.

Arrays are NumPy's. Kernels compute in float32; float64 goes to the reference, where the gradient
checks run. Verbs without a kernel run on NumPy, and `fallbacks` counts those. One file per
family, as in the reference; read `operands.py` first.
"""

from minifm.backends.c.arrays import Arrays
from minifm.backends.c.attention import Attention
from minifm.backends.c.capture import Capture
from minifm.backends.c.convolution import Convolution
from minifm.backends.c.elementwise import Elementwise
from minifm.backends.c.embedding import Embedding
from minifm.backends.c.loss import Loss
from minifm.backends.c.noise import Noise
from minifm.backends.c.norm import Norm
from minifm.backends.c.operands import Operands
from minifm.backends.c.optimizer import Optimizer
from minifm.backends.c.packed import Packing
from minifm.backends.c.product import Product
from minifm.backends.c.reduction import Reduction
from minifm.backends.c.softmax import Softmax
from minifm.backends.native import Native
from minifm.backends.reference import Reference, arrays
from minifm.backends.reference.fallback import count_fallbacks


class CBackend(
    Native, Arrays, Elementwise, Reduction, Product, Softmax, Norm, Attention, Loss, Embedding,
    Convolution, Noise, Optimizer, Packing,
):
    """The verbs of the reference on C kernels. Settings: see `Native`."""

    name = "c"

    def __init__(self):
        Operands.__init__(self)
        Native.__init__(self)

    def capture(self, function):
        return Capture(self, function)


count_fallbacks(CBackend, Reference, shared=(arrays.Arrays, Native))
