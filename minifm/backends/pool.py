"""NumPy's arrays in the pool of csrc/pool.c, through NumPy's own hook (NEP 49).

NumPy keeps with each array the functions that free it, so arrays from here and from elsewhere
live side by side, and views keep their memory alive as ever. Which allocator serves new arrays
belongs to the context (PEP 567), and a thread begins with an empty one: each calls `install`.
"""

import ctypes
from dataclasses import dataclass

from minifm.backends._csrc import ffi, lib

# Places in NumPy's table of functions for compiled extensions, the same in every NumPy 2.
GET_ABI_VERSION, SET_HANDLER = 0, 304
ABI_VERSION = 0x02000000


@dataclass(frozen=True)
class PoolState:
    """What the pool did since the process began, and what it holds, in bytes.

    hits, misses   blocks that came from memory which was there, and from fresh memory
    used, idle     in use, and kept for later; `idle` stays below peak / 4 + 64 MB, plus what has
                   been freed since the peak; the kernels' own scratch is not counted
    peak           the most in use at once since the start or the last `release_memory`
    """

    hits: int
    misses: int
    used: int
    idle: int
    peak: int


def install():
    """Let new arrays of this thread come from the pool; returns None, or why they cannot."""
    if isinstance(_set_handler, str):
        return _set_handler
    _set_handler(_capsule)
    return None


def statistics():
    """The PoolState of now."""
    state = lib.minifm_pool_statistics()
    return PoolState(state.hits, state.misses, state.used, state.idle, state.peak)


def release():
    """Give all idle memory back to the system; returns how many bytes that were."""
    return lib.minifm_release_memory()


def _numpy_function():
    """NumPy's PyDataMem_SetHandler, or a string: why it cannot be reached."""
    try:
        from numpy._core._multiarray_umath import _ARRAY_API
        get_pointer = _python_function("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object,
                                       ctypes.c_char_p)
    except (ImportError, AttributeError) as error:
        return f"NumPy's allocator cannot be set here: {error}"
    table = ctypes.cast(get_pointer(_ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
    version = ctypes.PYFUNCTYPE(ctypes.c_uint)(table[GET_ABI_VERSION])()
    if version != ABI_VERSION:
        return f"NumPy's binary interface is {version:#x}, known is {ABI_VERSION:#x}"
    return ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(table[SET_HANDLER])


def _handler_capsule():
    """The capsule by which NumPy knows the pool; it and its name outlive every array."""
    address = [int(ffi.cast("uintptr_t", pointer))
               for pointer in (lib.minifm_pool_handler(), lib.minifm_pool_capsule_name())]
    return _python_function("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p,
                            ctypes.c_void_p)(*address, None)


def _python_function(name, *types):
    """A function of Python's C interface; `types`: of the result, then of the arguments."""
    return ctypes.PYFUNCTYPE(*types)((name, ctypes.pythonapi))


_set_handler = _numpy_function()
_capsule = None if isinstance(_set_handler, str) else _handler_capsule()
