"""Who computes a verb: a kernel of the backend, other verbs, or NumPy in its place.

A verb marked `@composed` is written with other verbs only, so it is correct on every backend as
it stands. Every other verb of the reference touches NumPy arrays; a backend that inherits one
*falls back*. `count_fallbacks` makes that visible: it counts each call in `backend.fallbacks`
and, under MINIFM_STRICT=1, refuses it. A silent fallback would make a benchmark lie.
"""

import functools

import numpy as np

from minifm.errors import FallbackError


def composed(verb):
    """Mark a verb of the reference as written with other verbs only (no NumPy)."""
    verb.composed = True
    return verb


def count_fallbacks(backend_class, reference_class, shared=()):
    """Wrap each verb of `reference_class` that `backend_class` neither overrides nor composes.

    `shared` are classes whose methods the backend inherits on purpose: host backends share the
    reference's arrays, so a reshape is no fallback for them.
    """
    inherited_on_purpose = {name for owner in shared for name in vars(owner)}
    for name in dir(reference_class):
        verb = getattr(reference_class, name)
        if name.startswith("_") or not callable(verb) or getattr(verb, "composed", False):
            continue
        if name not in inherited_on_purpose and getattr(backend_class, name) is verb:
            setattr(backend_class, name, _counted(name, verb))
    return backend_class


def belongs_to_the_reference(arguments):
    """Whether there is a float64 operand: the gradient checks run there, by design on NumPy."""
    return any(belongs_to_the_reference(x) if isinstance(x, list)
               else getattr(x, "dtype", None) == np.float64 for x in arguments)


def _counted(name, verb):
    @functools.wraps(verb)
    def fallback(self, *arguments, **options):
        if not belongs_to_the_reference(arguments):
            if self.strict:
                raise FallbackError(
                    f"backend {self.name!r} has no kernel for {name!r} and MINIFM_STRICT=1 "
                    "forbids falling back to NumPy"
                )
            self.fallbacks[name] += 1
        return verb(self, *arguments, **options)

    return fallback
