"""Every op's micro-benchmark, from its one declaration: on each backend, against the machine.

    from minifm.testing.benchmark import Bench
    bench = Bench(["numpy", "c"])
    for row in bench.rows("LayerNorm"):
        print(row.backend, row.phase, row.median, row.fraction)

What is done so that the figures can be believed:

- the ceilings (backends/ceilings.py) are measured in the same run, on the same threads, again
  before each op, and the best counts: a busy machine must not flatter the kernels;
- backends take turns, A B A B, so that what disturbs one disturbs the other; their ratio is the
  median of the turns' ratios. A turn begins once the other's threads are asleep: those of
  OpenBLAS go on spinning for a while;
- operands are random numbers, in so many copies, used one after the other, that a call finds
  none of its own in a cache; results are kept as long, so that new ones go to memory that no
  cache holds. A row whose arrays are too small for that says `cached`;
- verbs that a backend leaves to NumPy, and operands that it had to copy first, are named.

An op that declares FLOPs is held against multiply-adds in registers. Any other is judged by the
bytes that it must move (testing/recording.py) against the bandwidth of a copy.
"""

import gc
import itertools
import math
import statistics
import time
from dataclasses import dataclass, replace

import numpy as np

from minifm import backends
from minifm.backends.ceilings import (
    flop_ceiling,
    last_level_cache,
    memory_arrays,
    memory_ceilings,
)
from minifm.op import OPS
from minifm.testing.draw import Benchmark
from minifm.testing.example import example
from minifm.testing.machine import describe_machine, threads_of
from minifm.testing.recording import costs, cotangents

BASELINE = "numpy"
PHASES = ("forward", "backward")
SAMPLE = 2e-4           # seconds that a sample lasts at least: reading the clock takes some 1e-7
LONG = 0.1              # seconds; what lasts longer is not disturbed by threads that wake up
IDLE = 0.005            # seconds in which a process that computes nothing is seen to do so
LEAST, MOST = 3, 10     # turns
MOST_COPIES = 1000
AGAIN = 0.02            # seconds for which each ceiling is measured again before each op


@dataclass(frozen=True)
class Row:
    """One op, forward or backward, on one backend. Times are seconds of one call."""

    op: str
    phase: str
    inputs: str             # names, shapes and options
    backend: str
    isa: str | None
    threads: int | None     # None: not known
    median: float
    fastest: float
    slowest: float
    samples: int
    flops: int | None
    bytes: int              # 0: results are views of the operands, nothing moves
    limit: str | None       # what it is held against: "FMA", "copy", or None for a view
    rate: float | None      # FLOP/s or bytes/s
    fraction: float | None  # of the limit
    ratio: float | None     # how many times as fast as NumPy
    cached: bool            # the copies of its arrays are too small to leave the cache
    on_numpy: tuple         # verbs that the backend left to NumPy
    copied: tuple           # verbs for which it copied an operand first


class Bench:
    """Measures the ceilings when it is made, and one op at a time in `rows`.

    names      of the backends, in the order of their turns
    seconds    how long all turns of one op take, about
    sizes      {dimension name: size} in place of those of draw.Benchmark
    footprint  bytes that the copies of an op's arrays fill; default: four times the cache
    """

    def __init__(self, names, seconds=1.0, sizes=None, footprint=None, ceiling_seconds=0.3):
        self.backends = {name: backends.get(name) for name in names}
        self.seconds, self.sizes = seconds, sizes
        self.cache = last_level_cache()
        self.footprint = 4 * self.cache if footprint is None else footprint
        self.fma, self.read, self.copy, self.memory = {}, None, None, memory_arrays()
        self.measure_ceilings(ceiling_seconds)

    def measure_ceilings(self, seconds):
        """Measure each for so long, and keep the better of this and what was found before."""
        for name, backend in self.backends.items():
            self.fma[name] = better(flop_ceiling(backend, seconds), self.fma.get(name))
        read, copy = memory_ceilings(2 * seconds, self.memory)
        self.read, self.copy = better(read, self.read), better(copy, self.copy)

    def rows(self, name):
        """The rows of the op called `name`: each phase on each backend."""
        self.measure_ceilings(AGAIN)
        made = example(OPS[name], Benchmark(self.sizes))
        subjects = [Subject(made, backend, self.footprint) for backend in self.backends.values()]
        found = []
        for phase in PHASES:
            turns = take_turns([s.calls(phase) for s in subjects], self.seconds / len(PHASES))
            base = dict(zip(self.backends, turns)).get(BASELINE)
            found += [self._row(subject, phase, own, base)
                      for subject, own in zip(subjects, turns)]
        return found

    def _row(self, subject, phase, turns, base):
        backend, cost = subject.backend, subject.costs[phase]
        samples = [sample for turn in turns for sample in turn]
        median = statistics.median(samples)
        limit = "FMA" if cost.flops else "copy" if cost.bytes else None
        rate = (cost.flops or cost.bytes) / median if limit else None
        return Row(
            op=subject.example.op.__name__, phase=phase, inputs=described(subject.example),
            backend=backend.name, isa=getattr(backend, "isa", None),
            threads=threads_of(backend, cost.flops),
            median=median, fastest=min(samples), slowest=max(samples), samples=len(samples),
            flops=cost.flops, bytes=cost.bytes, limit=limit, rate=rate,
            fraction=self.fraction(backend.name, limit, rate),
            ratio=None if base is None or base is turns else speedup(base, turns),
            cached=subject.filled < 2 * self.cache, on_numpy=cost.on_numpy, copied=cost.copied)

    def report(self, rows):
        """The machine, the ceilings and `rows` (held against the ceilings as they are known now),
        as what JSON can hold."""
        return {
            "machine": describe_machine(self.backends.values()),
            "ceilings": {"FMA": {name: vars(ceiling) for name, ceiling in self.fma.items()},
                         "read": vars(self.read), "copy": vars(self.copy)},
            "seconds": self.seconds, "footprint": self.footprint,
            "rows": [vars(replace(row, fraction=self.fraction(row.backend, row.limit, row.rate)))
                     for row in rows],
        }

    def fraction(self, backend, limit, rate):
        """`rate` as a fraction of the ceiling that `limit` names; None where nothing limits."""
        if limit is None:
            return None
        return rate / (self.fma[backend] if limit == "FMA" else self.copy).rate


def speedup(base, turns):
    """How many times as fast as `base` the turns are: the median over pairs of turns."""
    return statistics.median(statistics.median(a) / statistics.median(b)
                             for a, b in zip(base, turns))


def better(found, before):
    """The higher of two Ceilings; the second may be None."""
    return found if before is None or found.rate > before.rate else before


class Subject:
    """One op's example on one backend, in as many copies as fill `footprint` bytes.

    costs    {phase: Cost}
    filled   bytes of all copies
    """

    def __init__(self, made, backend, footprint):
        self.example, self.backend = made, backend
        self.costs, size = costs(made, backend)
        copies = max(1, min(MOST_COPIES, math.ceil(footprint / max(size, 1))))
        self.filled = copies * size
        with backends.use(backend):
            self.options = made.raw_options()
            self.copies = [_copy(made, backend) for _ in range(copies)]

    def calls(self, phase):
        """An endless iterator: each step is one call of the phase, on the next copy."""
        held = [None] * len(self.copies)
        while True:
            for i, (node, inputs, dys) in enumerate(self.copies):
                if phase == "forward":
                    held[i] = node.forward(*inputs, **self.options)
                else:
                    held[i] = node.backward(*dys)
                self.backend.sync()
                yield


def _copy(made, backend):
    """(the op after its forward, its inputs, cotangents), in memory of their own."""
    own = replace(made, inputs=tuple(
        x.copy() if isinstance(x, np.ndarray) else x for x in made.inputs))
    node, outputs = own.node()
    return node, own.arrays(), cotangents(backend, outputs)


def described(made):
    """"x[8, 256, 768] weight[768, 768]  activation=None" of an Example."""
    names = [name for name, _ in made.op.inputs]
    given = [f"{name}{list(x.shape)}" if isinstance(x, np.ndarray) else f"{name}={x}"
             for name, x in zip(names, made.inputs) if x is not None]
    given += [f"{name}={_brief(value)}" for name, value in made.options.items()
              if value is not None]
    return " ".join(given)


def _brief(value):
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace(" ", "")


# -- the clock -------------------------------------------------------------------------------------


def take_turns(callers, seconds):
    """For each endless iterator of `callers` its turns, each a list of samples: the seconds that
    one of its steps takes. As many turns for each as fit into `seconds`, at least LEAST."""
    repeats = [warm(calls, seconds / 4 / len(callers)) for calls in callers]
    each, turns = seconds / MOST / len(callers), [[] for _ in callers]
    end, collecting = time.perf_counter() + seconds, gc.isenabled()
    gc.disable()
    try:
        while len(turns[0]) < LEAST or len(turns[0]) < MOST and time.perf_counter() < end:
            for calls, repeat, own in zip(callers, repeats, turns):
                own.append(turn(calls, repeat, each))
    finally:
        if collecting:
            gc.enable()
    return turns


def warm(calls, seconds):
    """Make calls for so many seconds; returns how many of them are worth one sample."""
    fastest, end, now = math.inf, time.perf_counter() + seconds, 0
    while now < end:
        start = time.perf_counter()
        next(calls)
        now = time.perf_counter()
        fastest = min(fastest, now - start)
    return max(1, math.ceil(SAMPLE / fastest))


def turn(calls, repeat, seconds):
    """At least one sample, and as many as fit into so many seconds. The first does not count,
    because it wakes threads up, unless it is too long for that to matter."""
    wait_until_idle()
    samples, start = [], time.perf_counter()
    end = start + seconds
    for first in itertools.chain([True], itertools.repeat(False)):
        for _ in range(repeat):
            next(calls)
        now = time.perf_counter()
        if not first or now - start > LONG:
            samples.append((now - start) / repeat)
        if samples and now >= end:
            return samples
        start = now


def wait_until_idle(patience=0.5):
    """Wait until no thread of this process computes: OpenBLAS's spin for 0.1 seconds after a
    product, and would take a core from whoever comes next."""
    end = time.perf_counter() + patience
    while time.perf_counter() < end:
        spent = time.process_time()
        time.sleep(IDLE)
        if time.process_time() - spent < IDLE / 5:
            return
