"""The one setting of threads: MINIFM_THREADS, for the kernels and for NumPy's BLAS alike.

Two sets of threads, each as large as the machine, would fight for its cores. Without a setting
both use every core that the process may run on.
"""

import operator
import os

from threadpoolctl import threadpool_limits

from minifm.errors import ConfigError

MOST_THREADS = 256      # of csrc/threads.h


def setting():
    """The number of threads in MINIFM_THREADS, or None; raises ConfigError."""
    wanted = os.environ.get("MINIFM_THREADS")
    return thread_count(wanted, "MINIFM_THREADS") if wanted else None


def limit_blas(threads):
    """Give every BLAS of the process so many threads from now on, and NumPy's with them."""
    threadpool_limits(threads, user_api="blas")


def usable_cores():
    """How many cores the process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_count(value, name):
    """`value`, of the setting called `name`, as a number of threads; raises ConfigError."""
    try:
        number = int(value) if isinstance(value, str) else operator.index(value)
    except (ValueError, TypeError):
        number = 0
    if not 1 <= number <= MOST_THREADS:
        raise ConfigError(f"{name}: expected a whole number from 1 to {MOST_THREADS}, "
                          f"got {value!r}")
    return number
