"""A backend whose arrays show only `shape` and `dtype`: what leaks NumPy into an op fails here.

Numbers are the reference's, to the bit. Composed verbs run as they are written, on opaque arrays,
so that they too are seen to use other verbs only.
"""

import functools

import numpy as np

from minifm.backends.reference import Reference


class OpaqueArray:
    """An array somewhere else. Every question but `shape` and `dtype` is refused."""

    __slots__ = ("_hidden",)
    __array_ufunc__ = None
    __hash__ = object.__hash__

    def __init__(self, hidden):
        self._hidden = hidden

    @property
    def shape(self):
        return self._hidden.shape

    @property
    def dtype(self):
        return self._hidden.dtype

    def _refuse(self, *arguments):
        raise TypeError("an op may look at the shape and dtype of an array, and at nothing else")

    # What Python or NumPy would otherwise find an answer to.
    __array__ = __bool__ = __eq__ = __iter__ = __len__ = __getitem__ = _refuse


def hidden(value, seen):
    """`value` with its opaque arrays, wherever they are, laid open; `seen` remembers them."""
    if isinstance(value, OpaqueArray):
        seen[id(value._hidden)] = value
        return value._hidden
    if isinstance(value, (tuple, list)):
        return type(value)(hidden(part, seen) for part in value)
    if isinstance(value, np.ndarray):
        raise TypeError("a NumPy array reached a verb without from_numpy")
    return value


def opaque(value, seen):
    """`value` with its arrays hidden; an operand that comes back is the same opaque array."""
    if isinstance(value, (np.ndarray, np.generic)):
        known = seen.get(id(value))
        return OpaqueArray(np.asarray(value)) if known is None else known
    if isinstance(value, tuple):
        return tuple(opaque(part, seen) for part in value)
    return value


def _guarded(name, verb):
    @functools.wraps(verb)
    def guarded(self, *arguments, **options):
        seen = {}
        arguments = hidden(arguments, seen)
        self.calls.add(name)
        return opaque(getattr(self.inner, name)(*arguments, **options), seen)
    return guarded


class OpaqueBackend(Reference):
    """The reference behind opaque arrays. `calls`: the verbs that were asked for."""

    name = "opaque"

    def __init__(self):
        super().__init__()
        self.inner = Reference()
        self.calls = set()

    def from_numpy(self, array):
        return OpaqueArray(np.asarray(array))

    def to_numpy(self, array):
        return array._hidden


for _name in dir(Reference):
    _verb = getattr(Reference, _name)
    if (callable(_verb) and not _name.startswith("_") and not getattr(_verb, "composed", False)
            and _name not in vars(OpaqueBackend)):
        setattr(OpaqueBackend, _name, _guarded(_name, _verb))
