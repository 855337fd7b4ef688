"""The compiled extension: loading it, its instruction set, its threads, its memory.

MINIFM_ISA forces an instruction set; MINIFM_THREADS, see threads.py.
"""

import os
from types import SimpleNamespace

from minifm.backends import threads
from minifm.errors import BackendUnavailable, ConfigError

REMEDY = "install gcc or clang, then minifm again from its source"

try:
    from minifm.backends._csrc import ffi
    from minifm.backends._csrc import lib as compiled
except ImportError as error:
    raise BackendUnavailable(
        f"backend 'c': the compiled extension is not there ({error}); {REMEDY}") from error


from minifm.backends import pool  # noqa: E402 (it needs the extension too)

# The functions and constants of csrc/minifm.h, in a namespace where one may stand in for another.
lib = SimpleNamespace(**{name: getattr(compiled, name) for name in dir(compiled)})


class Native:
    """What CBackend knows about its machine; the settings hold for the whole process."""

    def __init__(self):
        self.unpooled = pool.install()      # None, or why NumPy cannot use the pool
        wanted = threads.setting()
        if wanted:
            self.set_threads(wanted)
        else:
            lib.minifm_set_threads(min(threads.usable_cores(), threads.MOST_THREADS))
        self.set_isa(os.environ.get("MINIFM_ISA") or self.available_isas()[0])

    def available_isas(self):
        """The instruction sets that this build and this machine share, best first."""
        names = []
        while (name := lib.minifm_supported_isa(len(names))) != ffi.NULL:
            names.append(ffi.string(name).decode())
        return names

    def set_isa(self, name):
        """Compute with one of `available_isas()`; raises ConfigError for any other name.

        The whole process does, and no other thread may be computing meanwhile.
        """
        if lib.minifm_select_isa(name.encode()) != 0:
            raise ConfigError(f"MINIFM_ISA: this machine offers {', '.join(self.available_isas())}"
                              f"; not {name!r}")
        self.isa = name

    @property
    def threads(self):
        """How many threads a kernel may use, the caller among them."""
        return lib.minifm_threads()

    def set_threads(self, number):
        """Use so many threads, here and in NumPy's BLAS. Results do not depend on it."""
        number = threads.thread_count(number, "threads")
        lib.minifm_set_threads(number)
        threads.limit_blas(number)

    def enter_thread(self):
        pool.install()

    def memory(self):
        """What the pool of arrays has done and holds: a PoolState."""
        return pool.statistics()

    def release_memory(self):
        return pool.release()

    def describe(self):
        """One line for a benchmark: instruction set, threads, compiler."""
        apart = f"; arrays are not pooled: {self.unpooled}" if self.unpooled else ""
        return f"c ({self.isa}, {self.threads} threads, {self.compiler}{apart})"

    @property
    def compiler(self):
        """What the extension was compiled with."""
        return ffi.string(lib.minifm_compiler()).decode()
