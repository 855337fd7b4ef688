"""The clock of every benchmark: warm up, then turns of samples.

The standard library alone is imported here: peers (see __init__.py) run this file in
interpreters that have no minifm.
"""

import itertools
import math
import time

SAMPLE = 2e-4           # seconds that a sample lasts at least: reading the clock takes some 1e-7
LONG = 0.1              # seconds; what lasts longer is not disturbed by threads that wake up
WARM = 1.0              # seconds; the first call of what lasts longer is as good as any
IDLE = 0.005            # seconds in which a process that computes nothing is seen to do so


class Timed:
    """`calls`, an endless iterator of which each step is one call of what is timed."""

    def __init__(self, calls):
        self.calls, self.repeat, self.first = calls, 1, []

    def warm(self, seconds):
        """Make calls for so many seconds, and find out how many of them are worth one sample."""
        fastest, end, now = math.inf, time.perf_counter() + seconds, 0
        while now < end:
            start = time.perf_counter()
            next(self.calls)
            now = time.perf_counter()
            fastest = min(fastest, now - start)
        self.repeat = max(1, math.ceil(SAMPLE / fastest))
        self.first = [fastest] if fastest > WARM else []

    def turn(self, seconds):
        """Samples, each the seconds of one call: at least one, and as many as fit into so many
        seconds. The first does not count, because it wakes threads up, unless it is too long for
        that to matter."""
        if self.first:
            samples, self.first = self.first, []
            return samples
        samples, start = [], time.perf_counter()
        end = start + seconds
        for first in itertools.chain([True], itertools.repeat(False)):
            for _ in range(self.repeat):
                next(self.calls)
            now = time.perf_counter()
            if not first or now - start > LONG:
                samples.append((now - start) / self.repeat)
            if samples and now >= end:
                return samples
            start = now


def wait_until_idle(patience=0.5):
    """Wait until no thread of this process computes: those of OpenBLAS and OpenMP go on spinning
    for 0.1 seconds and more, and would take a core from whoever comes next."""
    end = time.perf_counter() + patience
    while time.perf_counter() < end:
        spent = time.process_time()
        time.sleep(IDLE)
        if time.process_time() - spent < IDLE / 5:
            return
