"""The engine's own cost of one op: `apply`, the op's own methods, the graph, and the walk back.

    python bench/engine.py

A chain of one kind of op runs on tiny arrays, forward and backward, on a backend that computes
nothing: each verb hands out the result that it gave in a run before. What time remains is the
engine's, the calls of the verbs among it: it is Python on one thread, so it is counted in
processor time, which other programs disturb less. Beside it stands the same chain on the real
backend, by the clock.
"""

import argparse
import statistics
import time

import numpy as np

import minifm as mf
from minifm import backends
from minifm.backends.reference import Reference
from minifm.tensor import Tensor, propagate
from minifm.testing.recording import Recorder

LENGTH = 50         # ops of a chain: short, so that most runs are not interrupted
AIM = 6e-6          # seconds: the most that one op's forward and backward may cost beside its verbs


class Prepared(Reference):
    """A backend whose verbs hand out `results`, an iterator, whatever they are asked."""

    name = "prepared"


def _hand_out(self, *arguments, **options):
    return next(self.results)


for _name in dir(Reference):
    if callable(getattr(Reference, _name)) and not _name.startswith("_"):
        setattr(Prepared, _name, _hand_out)


class Chain:
    """LENGTH times one function, forward and backward: on `backend`, or without its verbs."""

    def __init__(self, function, side, backend):
        self.function, self.backend, self.prepared = function, backend, Prepared()
        values = np.random.default_rng(0).random((side, side), np.float32)
        self.x, self.dy = Tensor(values, requires_grad=True), np.ones_like(values)
        self.run(backend)
        recorder = Recorder(backend)
        self.run(recorder)
        self.results = [call.result for call in recorder.calls]

    def run(self, backend, clock=time.perf_counter):
        """Seconds of one run."""
        self.x.grad = None
        with backends.use(backend):
            start = clock()
            x = self.x
            for _ in range(LENGTH):
                x = self.function(x)
            propagate([(x, self.dy)], backend)
            return clock() - start

    def times(self, rounds):
        """Seconds for one op, each a list: the engine's own, and with the verbs."""
        own = []
        for _ in range(rounds):
            self.prepared.results = iter(self.results)
            own.append(self.run(self.prepared, time.thread_time) / LENGTH)
        return own, [self.run(self.backend) / LENGTH for _ in range(rounds)]


def chains(side):
    """{kind: function of x that makes the next x}. Numbers stay near 1 along a chain."""
    def parameter(values):
        return Tensor(np.asarray(values, np.float32), requires_grad=True)

    ones, w = parameter(np.ones((side, side))), parameter(np.eye(side))
    gamma, b, beta = parameter(np.ones(side)), parameter(np.zeros(side)), parameter(np.zeros(side))
    return {
        "add": lambda x: mf.add(x, ones),
        "multiply": lambda x: mf.multiply(x, ones),
        "x * 1.0": lambda x: x * 1.0,
        "gelu": mf.gelu,
        "softmax": mf.softmax,
        "layernorm": lambda x: mf.layernorm(x, gamma, beta),
        "matmul": lambda x: mf.matmul(x, w),
        "linear": lambda x: mf.linear(x, w, b),
        "linear with gelu": lambda x: mf.linear(x, w, b, mf.gelu),
        "reshape": lambda x: x.reshape(side, side),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default=backends.active().name)
    parser.add_argument("--side", type=int, default=4, help="the arrays are side × side")
    parser.add_argument("--rounds", type=int, default=500)
    args = parser.parse_args()
    backend = mf.use(args.backend).backend
    print(f"{backend.describe()}; arrays {args.side} × {args.side}, chains of {LENGTH} ops, "
          f"{args.rounds} rounds\nµs for one op, forward and its share of backward\n")
    print(f"{'op':<20}{'engine':>8}{'(fastest … slowest)':>22}{'with its verbs':>16}")
    medians = []
    for kind, function in chains(args.side).items():
        engine, whole = Chain(function, args.side, backend).times(args.rounds)
        medians.append(statistics.median(engine))
        spread = f"({1e6 * min(engine):.2f} … {1e6 * max(engine):.2f})"
        print(f"{kind:<20}{1e6 * medians[-1]:>8.2f}{spread:>22}"
              f"{1e6 * statistics.median(whole):>16.2f}")
    print(f"\nmedian of the kinds {1e6 * statistics.median(medians):.2f} µs, largest "
          f"{1e6 * max(medians):.2f} µs (aim: at most {1e6 * AIM:.0f})")


if __name__ == "__main__":
    main()
