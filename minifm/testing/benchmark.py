"""Benchmarks: on each backend and beside other libraries, against the machine's limits.

    from minifm.testing.benchmark import Bench
    bench = Bench(["numpy", "c"])
    for row in bench.rows("LayerNorm"):
        print(row.backend, row.phase, row.median, row.fraction)

What is done so that the figures can be believed:

- the ceilings (backends/ceilings.py) are measured in the same run, on the same threads, again
  before each op, and the best counts: a busy machine must not flatter the kernels;
- backends and peers take turns, A B A B, so that what disturbs one disturbs the other; their
  ratio is the median of the turns' ratios. A turn begins once the other's threads are asleep:
  those of OpenBLAS go on spinning for a while;
- operands are random numbers, in so many copies, used one after the other, that a call finds
  none of its own in a cache; results are kept as long, so that new ones go to memory that no
  cache holds. A row whose arrays are too small for that says `cached`;
- networks that undo noise have the same weights on all sides, and who computes something else
  with them is not timed, but named;
- verbs that a backend leaves to NumPy, and operands that it had to copy first, are named.

What declares FLOPs is held against multiply-adds in registers, but for products of few rows and
decoding: those wait for weights to be read. Anything else is judged by the bytes that it must
move (testing/recording.py) against the bandwidth of a copy.
"""

import gc
import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace

import numpy as np

from minifm import backends
from minifm.backends.ceilings import (
    bf16_ceiling,
    flop_ceiling,
    last_level_cache,
    memory_arrays,
    memory_ceilings,
)
from minifm.errors import FallbackError
from minifm.testing.cases import declared
from minifm.testing.machine import describe_machine, threads_of
from minifm.testing.peers import Unable
from minifm.testing.peers.clock import Timed, wait_until_idle

BASELINE = "numpy"
LEAST, MOST = 3, 10     # turns
AGAIN = 0.02            # seconds for which each ceiling is measured again before each case
# How far a peer's numbers may be from ours, of the largest of them. Networks of some 50 layers, one
# after the other: rounding to float32 comes to some 1e-6, to bf16 to some 1e-2, and whatever is
# computed otherwise shows as a whole.
CLOSE, CLOSE_BF16 = 1e-3, 0.1


@dataclass(frozen=True)
class Row:
    """One phase of a case, on one backend or by one mode of a peer. Times are seconds of a call."""

    set: str                # "ops", or a named set of cases.py
    group: str              # the op's class, "gemm", "step", …
    name: str               # which of the group
    phase: str              # "forward", "backward", "both", "update", "step", "logits", "call"
    inputs: str             # names, shapes and options
    backend: str            # or the peer's library
    mode: str | None = None         # of a peer: eager, compile, bf16, …
    isa: str | None = None
    threads: int | None = None      # None: not known
    problem: str | None = None      # why there are no figures
    median: float | None = None
    fastest: float | None = None
    slowest: float | None = None
    samples: int = 0
    flops: int | None = None
    bytes: int = 0          # 0: results are views of the operands, nothing moves, or not counted
    tokens: int | None = None       # that a call goes through
    limit: str | None = None        # what it is held against: "FMA", "read", "copy"; a view: None
    rate: float | None = None       # FLOP/s or bytes/s
    fraction: float | None = None   # of the limit
    # {"numpy" or a peer's library: how many times as fast as it this row is}
    versus: dict = field(default_factory=dict)
    cached: bool = False    # the copies of its arrays are too small to leave the cache
    on_numpy: tuple = ()    # verbs that the backend left to NumPy
    copied: tuple = ()      # verbs for which it copied an operand first

    @property
    def title(self):
        return f"{self.group} {self.name}".strip()


class Bench:
    """Measures the ceilings when it is made, and one case at a time in `rows`.

    names      of the backends, in the order of their turns
    seconds    how long all turns of one case take, about
    sizes      {dimension name: size} of ops, in place of those of draw.Benchmark
    footprint  bytes that the copies of a case's arrays fill; default: four times the cache
    peers      Peers that are asked for the same
    """

    def __init__(self, names, seconds=1.0, sizes=None, footprint=None, ceiling_seconds=0.3,
                 peers=()):
        self.backends = {name: backends.get(name) for name in names}
        self.seconds, self.sizes, self.peers = seconds, sizes, peers
        self.cache = last_level_cache()
        self.footprint = 4 * self.cache if footprint is None else footprint
        self.fma, self.bf16 = {}, {}
        self.read, self.copy, self.memory = None, None, memory_arrays()
        self.measure_ceilings(ceiling_seconds)

    def measure_ceilings(self, seconds):
        """Measure each for so long, and keep the better of this and what was found before."""
        for name, backend in self.backends.items():
            self.fma[name] = better(flop_ceiling(backend, seconds), self.fma.get(name))
            if pairs := bf16_ceiling(backend, seconds):
                self.bf16[name] = better(pairs, self.bf16.get(name))
        read, copy = memory_ceilings(2 * seconds, self.memory)
        self.read, self.copy = better(read, self.read), better(copy, self.copy)

    def rows(self, case):
        """The rows of a Case, or of the op called so: each phase on each backend and peer."""
        case = declared(case, self.sizes) if isinstance(case, str) else case
        self.measure_ceilings(AGAIN)
        subjects = {name: attempt(lambda: case.subject(backend, self.footprint))
                    for name, backend in self.backends.items()}
        return [row for phase in case.phases for row in self._phase(case, phase, subjects)]

    def _phase(self, case, phase, subjects):
        """The rows of one phase: whoever can takes turns, and whoever cannot says why."""
        sides = {(name, None): made if isinstance(made, str) else Timed(made.calls(phase))
                 for name, made in subjects.items()}
        sides |= self._remotes(case, phase, subjects.values())
        turns = take_turns(sides, self.seconds / len(case.phases))
        for peer in self.peers:
            peer.forget()
        found = []
        for (name, mode), own in turns.items():
            row = Row(case.set, case.group, case.name, phase, case.inputs, name, mode)
            if isinstance(own, str):
                found.append(replace(row, problem=own))
            elif mode is not None:
                found.append(replace(row, **spread(own), tokens=case.tokens))
            else:
                found.append(self._judged(row, case, subjects[name], own, turns))
        return found

    def _remotes(self, case, phase, subjects):
        """{(library, mode): what a peer has prepared, or a line that says why there is nothing}."""
        with tempfile.TemporaryDirectory() as folder:
            ours = [made for made in subjects if not isinstance(made, str)]
            expected = ours[0].share(folder) if ours and self.peers else None
            given = {} if expected is None else {"folder": folder}
            return {(peer.library.name, mode): attempt(lambda: agreeing(
                        peer, self._request(case, phase, mode) | given, expected))
                    for peer in self.peers for mode in peer.modes(case)}

    def _request(self, case, phase, mode):
        """What a peer is asked for; models have one phase and choose their own memory."""
        op = {"phase": phase, "footprint": self.footprint} if case.set == "kernels" else {}
        return case.request | {"mode": mode} | op

    def _judged(self, row, case, subject, own, turns):
        """The row of a backend of ours: against its limit and beside the others."""
        backend, cost = self.backends[row.backend], subject.costs[row.phase]
        limit = case.limit or ("FMA" if cost.flops else "copy" if cost.bytes else None)
        amount = cost.flops if limit == "FMA" else case.weight or cost.bytes
        row = replace(
            row, **spread(own), isa=getattr(backend, "isa", None),
            threads=threads_of(backend, cost.flops), flops=cost.flops, bytes=cost.bytes,
            tokens=case.tokens, limit=limit, versus=comparisons(row.backend, own, turns),
            cached=subject.filled < 2 * self.cache, on_numpy=cost.on_numpy, copied=cost.copied)
        row = replace(row, rate=amount / row.median if limit else None)
        return replace(row, fraction=self.fraction(row))

    def report(self, rows):
        """The machine, the ceilings and `rows` (held against the ceilings as they are known now),
        as what JSON can hold."""
        return {
            "machine": describe_machine(self.backends.values()),
            "peers": {peer.library.name: peer.name for peer in self.peers},
            "ceilings": {"FMA": {name: vars(ceiling) for name, ceiling in self.fma.items()},
                         "bf16": {name: vars(ceiling) for name, ceiling in self.bf16.items()},
                         "read": vars(self.read), "copy": vars(self.copy)},
            "seconds": self.seconds, "footprint": self.footprint,
            "rows": [vars(replace(row, fraction=self.fraction(row))) for row in rows],
        }

    def fraction(self, row):
        """The row's rate as a fraction of its ceiling; None where nothing limits."""
        if row.limit is None:
            return None
        return row.rate / {"FMA": self.fma.get(row.backend), "read": self.read,
                           "copy": self.copy}[row.limit].rate


def agreeing(peer, request, expected):
    """What the peer prepares, once it has been seen to compute what we do: `expected`, {name:
    numbers}, or None where there is nothing to compare. Raises Unable."""
    remote = peer.prepare(request)
    rounded = "bf16" in (request["mode"] + request.get("precision", ""))
    for name, ours in (expected or {}).items():
        difference = np.max(np.abs(np.subtract(remote.found[name], ours))) / np.max(np.abs(ours))
        if not difference <= (CLOSE_BF16 if rounded else CLOSE):
            raise Unable(f"computes something else: {name} differs by {difference:.1%}")
    return remote


def attempt(make):
    """What make() gives, or one line that says why it could not be had."""
    try:
        return make()
    except MemoryError:
        return "there is not enough memory"
    except (Unable, FallbackError) as problem:
        return str(problem)


def spread(turns):
    """Median, extremes and number of all the samples of some turns."""
    samples = [sample for turn in turns for sample in turn]
    return {"median": statistics.median(samples), "fastest": min(samples),
            "slowest": max(samples), "samples": len(samples)}


def comparisons(name, own, turns):
    """How many times as fast as NumPy, and as the best mode of each peer, the turns `own` of the
    backend `name` are: {who: {"mode", "median", "low", "high"}}, over pairs of turns."""
    best = {}
    for (who, mode), theirs in turns.items():
        if isinstance(theirs, str) or who == name or (mode is None and who != BASELINE):
            continue
        if who not in best or spread(theirs)["median"] < spread(best[who][1])["median"]:
            best[who] = mode, theirs
    found = {}
    for who, (mode, theirs) in best.items():
        ratios = [statistics.median(a) / statistics.median(b) for a, b in zip(theirs, own)]
        found[who] = {"mode": mode, "median": statistics.median(ratios), "low": min(ratios),
                      "high": max(ratios)}
    return found


def better(found, before):
    """The higher of two Ceilings; the second may be None."""
    return found if before is None or found.rate > before.rate else before


def take_turns(sides, seconds):
    """For each of `sides` its turns, each a list of samples: the seconds that one of its calls
    takes. As many turns for each as fit into `seconds`, at least LEAST.

    sides   {key: something with `warm` and `turn`, or a line that says why there is nothing};
            who fails on the way has such a line in place of turns
    """
    turns = {key: side if isinstance(side, str) else [] for key, side in sides.items()}

    def alive():
        return [key for key, own in turns.items() if not isinstance(own, str)]

    def ask(key, work):
        wait_until_idle()
        result = attempt(work)
        if isinstance(result, str):
            turns[key] = result
        return result

    share, collecting = seconds / max(1, len(alive())), gc.isenabled()
    gc.disable()
    try:
        for key in alive():
            ask(key, lambda: sides[key].warm(share / 4))
        end, count = time.perf_counter() + seconds, 0
        while count < LEAST or count < MOST and time.perf_counter() < end:
            for key in alive():
                samples = ask(key, lambda: sides[key].turn(share / MOST))
                if not isinstance(samples, str):
                    turns[key].append(samples)
            count += 1
    finally:
        if collecting:
            gc.enable()
    return turns
