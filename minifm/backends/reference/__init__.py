"""The backend interface, and its NumPy reference, in one class.

A backend owns arrays and computes *verbs* on them: `add`, `matmul`, `softmax_backward`, … This
class is the list of all verbs and, in NumPy, the specification of each: a kernel that disagrees
with it is wrong. Other backends subclass it and override what they accelerate. No backend ever
defines a gradient; a `…_backward` verb is arithmetic that an op asks for.

One file per family; read `arrays.py` first.
"""

import os
from collections import Counter

import numpy as np

from minifm.backends.reference.arrays import Arrays
from minifm.backends.reference.attention import Attention
from minifm.backends.reference.convolution import Convolution
from minifm.backends.reference.elementwise import Elementwise
from minifm.backends.reference.embedding import Embedding
from minifm.backends.reference.loss import Loss
from minifm.backends.reference.noise import Noise
from minifm.backends.reference.norm import Norm
from minifm.backends.reference.optimizer import Optimizer
from minifm.backends.reference.packed import Packing
from minifm.backends.reference.product import Product
from minifm.backends.reference.reduction import Reduction
from minifm.backends.reference.softmax import Softmax


class Reference(
    Arrays, Elementwise, Reduction, Product, Softmax, Norm, Attention, Loss, Embedding,
    Convolution, Noise, Optimizer, Packing,
):
    """All verbs, in NumPy. Arrays are `np.ndarray`."""

    name = "numpy"

    def __init__(self):
        self.fallbacks = Counter()
        self.strict = os.environ.get("MINIFM_STRICT", "0") not in ("", "0")

    def describe(self):
        """One line for `minifm env`: what computes, and on how many threads where known."""
        blas = np.__config__.CONFIG["Build Dependencies"]["blas"]
        return f"NumPy {np.__version__}, BLAS {blas['name']} {blas['version']}"
