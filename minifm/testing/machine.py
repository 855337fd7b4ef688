"""What a figure of speed must be read with: processor, cores, versions, threads."""

import os
import platform
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info

from minifm.backends.ceilings import last_level_cache
from minifm.backends.threads import usable_cores

PROCESSORS = Path("/proc/cpuinfo")
THREADS = Path("/proc/self/task")


def describe_machine(used):
    """{what: how it is} of this machine and process, for the backends in `used`."""
    from minifm import __version__
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "last_level_cache": last_level_cache(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(), "numpy": np.__version__, "minifm": __version__,
        "backends": {backend.name: backend.describe() for backend in used},
        "settings": {k: v for k, v in sorted(os.environ.items()) if k.startswith("MINIFM_")},
    }


def threads_of(backend, products):
    """How many threads a verb may use; None where that is not known. NumPy computes on one,
    but in products on those of its BLAS."""
    if hasattr(backend, "threads"):
        return backend.threads
    return blas_threads() if products else 1


def blas_threads():
    """The threads of NumPy's BLAS, or None where it does not tell."""
    return max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"),
               default=None)


def waited():
    """Seconds for which threads of this process, ready to run, have waited for a core: others
    had it. 0 where the system does not tell."""
    try:
        return sum(int(thread.read_text().split()[1])
                   for thread in THREADS.glob("*/schedstat")) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def _processor():
    """The model's name, as far as the system tells."""
    if PROCESSORS.exists():
        for line in PROCESSORS.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
