"""What this machine can do at most: the ceilings that a benchmark holds every kernel against.

Up to four figures, always measured, never looked up, because they move from machine to machine
and from day to day: multiply-adds in registers, in float32 and, where there are any, in bf16;
reads; and copies of arrays that no cache holds. The C extension measures them on its threads, for
its instruction set; where it is not installed, NumPy does what it can, and each says what it is.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minifm import backends

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
USUAL_CACHE = 32 << 20      # where the system does not tell
LARGEST = 512 << 20         # no array here is larger than this, whatever the cache
ROUNDS = 200_000            # of multiply-adds: some milliseconds
SIDE = 1024                 # of a large matrix


@dataclass(frozen=True)
class Ceiling:
    """The best of many tries: `rate` in FLOP/s or bytes/s, and how it was measured."""

    rate: float
    how: str


def flop_ceiling(backend=None, seconds=0.2):
    """The most float32 operations a second that `backend` (default: the active one) could do.

    The C backend is measured with its instruction set. NumPy's BLAS chooses its own, so NumPy is
    held against the best one. Without the extension this is the speed of a large matrix product.
    """
    backend, native = backend or backends.active(), _native()
    if native is None:
        return _product_ceiling(seconds)
    chosen = native.isa
    try:
        if backend is not native:
            native.set_isa(native.available_isas()[0])
        return _multiply_add_ceiling(native, seconds)
    finally:
        native.set_isa(chosen)


def bf16_ceiling(backend, seconds=0.2):
    """The same with operands of bf16 (ops/precision.py); None where `backend` has no instruction
    that multiplies them."""
    from_c = backend is _native()
    return _multiply_add_ceiling(backend, seconds, bf16=True) if from_c else None


def memory_ceilings(seconds=0.4, arrays=None):
    """(read, copy): the most bytes a second that can be read, and that can be read and written
    together. Who measures often passes the same `memory_arrays()`."""
    source, target = arrays or memory_arrays()
    size, (read, copy, who) = source.nbytes, _memory_verbs(source, target)
    how = f"arrays of {size >> 20} MB, {who}"
    return (Ceiling(_best(read, size, seconds / 2), how),
            Ceiling(_best(copy, 2 * size, seconds / 2), how))


def memory_arrays():
    """Two arrays, each of twice the last-level cache, written once so that their pages exist."""
    n = min(2 * last_level_cache(), LARGEST) // 8
    return np.arange(n, dtype=np.uint64), np.ones(n, np.uint64)


def last_level_cache():
    """Bytes of the largest cache that a core sees."""
    texts = [file.read_text().strip() for file in CACHES.glob("index*/size")]
    units = {"K": 1 << 10, "M": 1 << 20}
    return max((int(text[:-1]) * units[text[-1]] for text in texts if text[-1:] in units),
               default=USUAL_CACHE)


# -- how each is measured --------------------------------------------------------------------------


def _best(work, amount, seconds):
    """The highest rate at which `work()`, which does so much, was done in so many seconds.

    The best, not the median: whatever disturbs a measurement makes it slower.
    """
    work()
    fastest, end = math.inf, time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        work()
        now = time.perf_counter()
        fastest = min(fastest, now - start)
        if now >= end:
            return amount / fastest


def _multiply_add_ceiling(native, seconds, bf16=False):
    from minifm.backends.native import lib
    flops = lib.minifm_multiply_adds(ROUNDS, bf16)
    if not flops:
        return None
    rate = _best(lambda: lib.minifm_multiply_adds(ROUNDS, bf16), flops, seconds)
    what = "pairs of bf16" if bf16 else "multiply-adds"
    return Ceiling(rate, f"{what} in registers, {native.isa}, {_threads(native)}")


def _product_ceiling(seconds):
    x = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    rate = _best(lambda: np.matmul(x, x), 2 * SIDE**3, seconds)
    return Ceiling(rate, f"NumPy's product of {SIDE} × {SIDE} matrices, without the C extension")


def _memory_verbs(source, target):
    """How to read `source`, how to copy it to `target`, and who does it."""
    native = _native()
    if native is None:
        return source.max, lambda: np.copyto(target, source), "NumPy, one thread"
    from minifm.backends.native import ffi, lib
    x, y = (ffi.from_buffer("uint64_t[]", array) for array in (source, target))
    return (lambda: lib.minifm_read(x, source.size), lambda: lib.minifm_copy(y, x, source.size),
            _threads(native))


def _native():
    """The C backend, or None where it is not installed."""
    return None if backends.why_not("c") else backends.get("c")


def _threads(native):
    return "one thread" if native.threads == 1 else f"{native.threads} threads"
