"""Watching a computation through the one list of observers: time, FLOPs, memory, anomalies.

Each class here is a context manager; nothing in the ops knows of them.

    with mf.OpTimer() as timer:
        train_step()
    print(timer.table())
"""

import math
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from minifm import backends
from minifm.errors import AnomalyError
from minifm.op import Observer

PACKAGE = Path(__file__).parent
# Frames of these files run ops; the line that *asked* for one is above them.
MACHINERY = tuple(str(PACKAGE / part) for part in ("ops", "op.py", "tensor.py", "observe.py",
                                                   "backends", "gradcheck.py"))


class OpTimer(Observer):
    """Seconds and calls for each (op, phase); waits for the backend around every op."""

    def __init__(self):
        self.seconds, self.calls = defaultdict(float), defaultdict(int)
        self._started = []

    def before(self, op, phase, arrays, options):
        backends.active().sync()
        self._started.append(time.perf_counter())

    def after(self, op, phase, arrays):
        backends.active().sync()
        key = type(op).__name__, phase
        self.seconds[key] += time.perf_counter() - self._started.pop()
        self.calls[key] += 1

    def __repr__(self):
        return (f"OpTimer({sum(self.calls.values()):,} calls, {1e3 * self.total:.2f} ms; "
                "see table())")

    @property
    def total(self):
        return math.fsum(self.seconds.values())

    def table(self):
        """One line for each op and phase, the slowest first."""
        rows = [f"{'op':<22}{'phase':<10}{'calls':>7}{'ms':>10}{'share':>8}"]
        for (name, phase), spent in sorted(self.seconds.items(), key=lambda item: -item[1]):
            share = spent / self.total if self.total else 0
            rows.append(f"{name:<22}{phase:<10}{self.calls[name, phase]:>7}"
                        f"{1e3 * spent:>10.2f}{share:>8.1%}")
        return "\n".join(rows)


class FlopCounter(Observer):
    """Floating-point operations by op, for the ops that declare theirs.

    A backward pass of a product costs one such product for each gradient that is needed.
    """

    def __init__(self):
        self.flops = defaultdict(int)

    def before(self, op, phase, arrays, options):
        if phase == "forward":
            op.forward_flops = type(op).flops(*arrays, **options)
            self.flops[type(op).__name__, phase] += op.forward_flops or 0
        elif getattr(op, "forward_flops", None):
            self.flops[type(op).__name__, phase] += op.forward_flops * op.backward_products()

    def __repr__(self):
        return f"FlopCounter({self.total:,} FLOPs; see flops)"

    @property
    def total(self):
        return sum(self.flops.values())


class MemoryMeter(Observer):
    """Bytes of the arrays that ops make: in all, and the largest single one with its op."""

    def __init__(self):
        self.bytes, self.largest = 0, (0, "")

    def __repr__(self):
        return (f"MemoryMeter({self.bytes:,} bytes, the largest array {self.largest[0]:,} of "
                f"{self.largest[1] or 'no op'})")

    def after(self, op, phase, arrays):
        for x in arrays:
            if x is not None:
                size = math.prod(x.shape) * np.dtype(x.dtype).itemsize
                self.bytes += size
                self.largest = max(self.largest, (size, f"{type(op).__name__} {phase}"))


class detect_anomaly(Observer):
    """Raise AnomalyError at the first op whose result is not finite, forward or backward.

    The message names the op and the lines of the model, innermost first, that called it.
    -inf in an input, such as a mask given as a bias, is no result of an op and passes; the
    result of `where(mask, scores, -inf)` is one.
    """

    def before(self, op, phase, arrays, options):
        if phase == "forward":
            op.site = call_site()

    def after(self, op, phase, arrays):
        finite = backends.active().all_finite
        for x in arrays:
            if x is not None and np.issubdtype(x.dtype, np.floating) and not finite(x):
                which = "value" if phase == "forward" else "gradient"
                raise AnomalyError(f"{type(op).__name__} {phase}: first non-finite {which}, "
                                   f"shape {tuple(x.shape)}, called at {op.site}")


def call_site(depth=3):
    """"models/gpt.py:80 in __call__ < …": the nearest frames outside the machinery of ops."""
    frame, found = sys._getframe(1), []
    while frame is not None and len(found) < depth:
        file = frame.f_code.co_filename
        if not file.startswith(MACHINERY):
            shown = Path(file)
            shown = shown.relative_to(PACKAGE.parent) if PACKAGE in shown.parents else shown.name
            found.append(f"{shown}:{frame.f_lineno} in {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(found)
