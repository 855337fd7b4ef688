"""The compiled extension: loading it, its instruction set, and the one setting of threads.

MINIFM_THREADS sets how many threads the kernels use, and NumPy's BLAS with them (through
threadpoolctl, where that is installed), so that the two never fight for the cores; without it,
every core that the process may run on. MINIFM_ISA forces an instruction set.
"""

import os

from minifm.errors import BackendUnavailable, ConfigError

REMEDY = "install gcc or clang, then minifm again from its source"
MOST_THREADS = 256      # of csrc/threads.h

try:
    from minifm.backends._csrc import ffi, lib
except ImportError as error:
    raise BackendUnavailable(
        f"backend 'c': the compiled extension is not there ({error}); {REMEDY}") from error


from minifm.backends import pool  # noqa: E402 (it needs the extension too)


class Native:
    """What CBackend knows about its machine; the settings hold for the whole process."""

    def __init__(self):
        self.unpooled = pool.install()      # None, or why NumPy cannot use the pool
        self.blas_follows = None        # until someone asks for a number of threads
        wanted = os.environ.get("MINIFM_THREADS", "")
        if wanted:
            self.set_threads(_thread_count(wanted, "MINIFM_THREADS"))
        else:
            lib.minifm_set_threads(min(usable_cores(), MOST_THREADS))
        self.set_isa(os.environ.get("MINIFM_ISA") or self.available_isas()[0])

    def available_isas(self):
        """The instruction sets that this build and this machine share, best first."""
        names = []
        while (name := lib.minifm_supported_isa(len(names))) != ffi.NULL:
            names.append(ffi.string(name).decode())
        return names

    def set_isa(self, name):
        """Compute with one of `available_isas()`; raises ConfigError for any other name."""
        if lib.minifm_select_isa(name.encode()) != 0:
            raise ConfigError(f"MINIFM_ISA: this machine offers {', '.join(self.available_isas())}"
                              f"; not {name!r}")
        self.isa = name

    @property
    def threads(self):
        """How many threads a kernel may use, the caller among them."""
        return lib.minifm_threads()

    def set_threads(self, threads):
        """Use so many threads, here and in NumPy's BLAS. Results do not depend on it."""
        lib.minifm_set_threads(_thread_count(threads, "threads"))
        self.blas_follows = limit_blas(threads)

    def enter_thread(self):
        pool.install()

    def memory(self):
        """What the pool of arrays has done and holds: a PoolState."""
        return pool.statistics()

    def release_memory(self):
        return pool.release()

    def describe(self):
        """One line for a benchmark: instruction set, threads, compiler."""
        apart = "" if self.blas_follows is not False else (
            "; NumPy's BLAS keeps its own number of threads: pip install threadpoolctl")
        return f"c ({self.isa}, {self.threads} threads, {self.compiler}{apart})"

    @property
    def compiler(self):
        """What the extension was compiled with."""
        return ffi.string(lib.minifm_compiler()).decode()


def usable_cores():
    """How many cores the process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_blas(threads):
    """Give NumPy's BLAS the same number of threads; False where nothing here can do so."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return False
    threadpool_limits(threads, user_api="blas")
    return True


def _thread_count(value, name):
    try:
        number = int(value)
    except ValueError:
        number = 0
    if not 1 <= number <= MOST_THREADS:
        raise ConfigError(f"{name}: expected a whole number from 1 to {MOST_THREADS}, "
                          f"got {value!r}")
    return number
