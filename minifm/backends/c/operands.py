"""What every family of the C backend needs: operands as pointers, their strides, the way to NumPy.

Kernels compute in float32. Operands whose strides a kernel does not read are copied first, and
`copies` counts these by verb; `fallbacks` counts the verbs that NumPy had to compute.
"""

from collections import Counter

import numpy as np

from minifm.backends.native import ffi, lib
from minifm.backends.reference import Reference
from minifm.backends.reference.fallback import belongs_to_the_reference
from minifm.errors import FallbackError

F32, U16, I64 = np.dtype(np.float32), np.dtype(np.uint16), np.dtype(np.int64)
NULL = ffi.NULL
# What arrays are to C, by their dtypes: all those that any kernel reads.
NAMES = {F32: "float", I64: "int64_t", U16: "uint16_t", np.dtype(np.uint64): "uint64_t",
         np.dtype(np.bool_): "uint8_t"}
ARRAYS = {dtype: ffi.typeof(f"{name}[]") for dtype, name in NAMES.items()}
POINTERS = {dtype: ffi.typeof(f"{name} *") for dtype, name in NAMES.items()}
FLOATS, INTEGERS = ARRAYS[F32], ARRAYS[I64]
FUNCTIONS = {None: lib.MINIFM_IDENTITY, "relu": lib.MINIFM_RELU, "silu": lib.MINIFM_SILU,
             "gelu": lib.MINIFM_GELU, "gelu_tanh": lib.MINIFM_GELU_TANH,
             "gelu_quick": lib.MINIFM_GELU_QUICK}
from_buffer = ffi.from_buffer


def pointer(x):
    """The elements of a contiguous array, for a kernel. None becomes NULL.

    It has the C type of the array's dtype, so that CFFI refuses, by a TypeError, what the kernel
    does not read; a dtype that no kernel reads is refused here.
    """
    if x is None:
        return NULL
    try:
        return from_buffer(ARRAYS[x.dtype], x)
    except KeyError:
        raise _unread(x) from None


def strided_pointer(x):
    """The first element of an array of any strides, likewise."""
    if x.flags.c_contiguous:
        return pointer(x)
    try:
        return ffi.cast(POINTERS[x.dtype], x.__array_interface__["data"][0])
    except KeyError:
        raise _unread(x) from None


def _unread(x):
    return TypeError(f"a kernel of the C backend was given an array of {x.dtype}; kernels read "
                     f"{', '.join(map(str, NAMES))}")


def steps(x):
    """Strides counted in elements; None where the array is misaligned for that."""
    size = x.itemsize
    if not x.flags.aligned or any(stride % size for stride in x.strides):
        return None
    return [stride // size for stride in x.strides]


def done(status):
    """Raise MemoryError where a kernel found no memory."""
    if status:
        raise MemoryError("a kernel of the C backend found no memory for its scratch")


class Operands(Reference):
    """The helpers of all families: which arrays a kernel reads as they are, what happens else."""

    def __init__(self):
        Reference.__init__(self)
        self.copies = Counter()

    def _contiguous(self, x, verb):
        """x itself where a kernel can read it, else a copy, counted."""
        flags = x.flags
        if flags.carray or (flags.c_contiguous and flags.aligned):
            return x
        self.copies[verb] += 1
        return np.array(x, order="C")

    def _integers(self, ids, verb):
        """Integer ids as a contiguous int64 array: themselves, or a copy, counted."""
        if ids.dtype == I64 and ids.flags.c_contiguous and ids.flags.aligned:
            return ids
        self.copies[verb] += 1
        return np.array(ids, I64, order="C")

    def _on_numpy(self, verb, *arguments):
        """The reference's verb. Counted as a fallback, unless for float64, which belongs there."""
        if not belongs_to_the_reference(arguments):
            if self.strict:
                raise FallbackError(
                    f"backend 'c' has no kernel for {verb!r} of such operands and "
                    "MINIFM_STRICT=1 forbids falling back to NumPy")
            self.fallbacks[verb] += 1
        return getattr(Reference, verb)(self, *arguments)

    def _matrix(self, x, verb):
        """x and the strides of its last two dimensions, of which one is 1."""
        strides = steps(x)
        if strides is not None:
            rows, columns = strides[-2], strides[-1]
            if x.shape[-1] == 1:        # the stride of a dimension of size 1 means nothing
                columns = 1
            elif x.shape[-2] == 1:
                rows = 1
            if rows == 1 or columns == 1:
                return x, (rows, columns)
        self.copies[verb] += 1
        x = np.array(x, order="C")
        return x, (x.shape[-1], 1)
