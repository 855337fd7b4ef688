"""What a function asks of the kernels, recorded once and repeated: how decoding leaves Python.

The verbs of one token are always the same, on arrays of the same shapes; only what the arrays
hold changes. Going through a hundred ops in Python takes longer than many of their kernels. So a
`Capture` runs a function once and keeps each kernel that it called, with its arguments; from then
on it calls these. (CUDA graphs do the same for a GPU.) The arrays between the kernels are kept,
too, and written anew each time.
"""

import threading

import numpy as np

from minifm import backends
from minifm.backends.native import lib
from minifm.backends.reference import Reference
from minifm.backends.relay import Relay
from minifm.errors import CaptureError

_one_at_a_time = threading.Lock()
_owner = None               # the thread that records just now


class Capture:
    """`function()`, whose kernels are recorded by the first call and repeated by all others.

    Returns what the function returned; the arrays in that are written anew by the next call.
    Raises CaptureError for a function in which NumPy computes something, which asks for
    gradients, or which needs a number that a kernel returns.
    """

    def __init__(self, backend, function):
        self.backend, self.function = backend, function
        self.calls = None       # (kernel, arguments), in order

    def __call__(self):
        if self.calls is None:
            recording = _Recording(self.backend)
            self.result = recording.run(self.function)
            self.calls, self.kept = recording.calls, recording.kept
            return self.result
        for kernel, arguments in self.calls:
            if kernel(*arguments):
                self.function()         # raises what the verb has to say about that
                raise MemoryError("a recorded kernel of the C backend found no memory")
        return self.result


class _Recording(Relay):
    """Notes the kernels behind each verb, and sees that there is nothing else behind it."""

    def __init__(self, inner):
        super().__init__(inner)
        self.calls = []
        self.kept = []          # arguments and results of the verbs: kernels know addresses only
        self.thread = threading.get_ident()

    def run(self, function):
        """function(), on this backend, with a note of every kernel that this thread calls."""
        global _owner
        if _owner == self.thread:
            raise CaptureError("capture: a recording inside of another one")
        with _one_at_a_time:
            kernels = {name: kernel for name, kernel in vars(lib).items() if callable(kernel)}
            noting = {name: self._noting(kernel) for name, kernel in kernels.items()}
            try:                        # an interrupt may come between any two lines
                _owner = self.thread
                vars(lib).update(noting)
                with backends.use(self):
                    return function()
            finally:
                vars(lib).update(kernels)
                _owner = None

    def _noting(self, kernel):
        def noting(*arguments):
            result = kernel(*arguments)
            if threading.get_ident() == self.thread:
                if isinstance(result, float):
                    raise CaptureError(f"capture: {kernel.__name__} returns a number; what is "
                                       "recorded must leave its results in arrays")
                self.calls.append((kernel, arguments))
            return result
        return noting

    def relay(self, verb, arguments, options):
        if threading.get_ident() != self.thread:
            return super().relay(verb, arguments, options)
        if verb.endswith("_backward"):
            raise CaptureError(f"capture: {verb!r} belongs to gradients, which are not recorded")
        specified = getattr(Reference, verb)
        if getattr(specified, "composed", False) and getattr(type(self.inner), verb) is specified:
            return specified(self, *arguments, **options)       # its verbs come here one by one
        kernels, besides = len(self.calls), self._count_besides()
        result = super().relay(verb, arguments, options)
        if self._count_besides() != besides or (
                len(self.calls) == kernels and not _are_views(result, arguments)):
            raise CaptureError(f"capture: NumPy computes (a part of) {verb!r} for operands "
                               f"{_described(arguments)}; what is recorded must be kernels alone")
        self.kept += arguments, options, result
        return result

    def _count_besides(self):
        """What inner has done that is no kernel: verbs on NumPy, and copies of operands."""
        return self.inner.fallbacks.total() + self.inner.copies.total()


def _are_views(results, operands):
    """Whether every array among the results is a view of an operand."""
    results = results if isinstance(results, tuple) else (results,)
    return all(any(np.may_share_memory(x, y) for y in operands if isinstance(y, np.ndarray))
               for x in results if isinstance(x, np.ndarray))


def _described(operands):
    return ", ".join(f"{list(x.shape)} {x.dtype}" for x in operands if isinstance(x, np.ndarray))
