"""Which backend computes: `use("c")`, `active()`, and the environment variable MINIFM_BACKEND.

Names and where they come from: "numpy" is the reference, always there; "c" needs the compiled
extension; "cuda" is not part of this version. Without a choice, "c" serves where it can.
"""

import os
import sys

from minifm.backends import threads
from minifm.backends.reference import Reference
from minifm.errors import BackendUnavailable

NAMES = ("numpy", "c", "cuda")
OFFERED = "numpy or c"      # of them, those that this version has
_active = None
_blocks = []        # the Switches whose `with` has begun and not ended, the latest last
_made = {}


def active():
    """The backend that new ops run on."""
    return _active or use(_chosen() or _best()).backend


def use(backend):
    """Switch to a backend, by name ("numpy", "c", "cuda") or given as an object.

    Takes effect at once for the whole process. As a context manager it switches back at the
    end of the block: `with minifm.use("numpy"): ...`.

    Raises BackendUnavailable with the reason where this machine cannot offer it.
    """
    global _active
    previous = _active
    if not isinstance(backend, (str, Reference)):
        raise BackendUnavailable(f"use: expected a backend, {OFFERED}, got {backend!r}")
    _active = get(backend) if isinstance(backend, str) else backend
    _active.enter_thread()
    return Switch(_active, previous)


class Switch:
    """What `use` returns: the backend now active, and the way back."""

    def __init__(self, backend, previous):
        self.backend, self.previous = backend, previous

    def __enter__(self):
        _blocks.append(self)
        return self.backend

    def __exit__(self, *exception):
        """Blocks of two threads may overlap: one that goes on keeps its backend, and switches back
        to what was there before both."""
        global _active
        place = _blocks.index(self)
        del _blocks[place]
        if place == len(_blocks):
            _active = self.previous
        elif _blocks[place].previous is self.backend:
            _blocks[place].previous = self.previous


def _chosen():
    """The name in MINIFM_BACKEND, or None; raises BackendUnavailable for one that is none."""
    name = os.environ.get("MINIFM_BACKEND")
    if name and name not in NAMES:
        raise BackendUnavailable(f"MINIFM_BACKEND: expected {OFFERED}, got {name!r}")
    return name


def get(name):
    """The one instance of the backend called `name`; raises BackendUnavailable."""
    if name not in _made:
        _made[name] = _make(name)
    return _made[name]


def why_not(name):
    """None where backend `name` can be used, else the reason why it cannot."""
    try:
        get(name)
    except BackendUnavailable as reason:
        return str(reason)
    return None


def _make(name):
    if name == "numpy":
        if wanted := threads.setting():
            threads.limit_blas(wanted)
        return Reference()
    if name == "c":
        from minifm.backends.c import CBackend
        return CBackend()
    if name == "cuda":
        raise BackendUnavailable("backend 'cuda': this version of minifm has no CUDA kernels yet")
    raise BackendUnavailable(f"backend {name!r} is unknown; expected {OFFERED}")


def _best():
    reason = why_not("c")
    if reason is None:
        return "c"
    # pip hides what the install said about this, so it is said here, once: `use` remembers.
    print(f"minifm: {reason}. NumPy computes meanwhile (MINIFM_BACKEND=numpy: without this line)",
          file=sys.stderr)
    return "numpy"
