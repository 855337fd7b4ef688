"""Does a run fit this machine's memory? Asked before the first step, not learnt from a kill.

Weights, gradients and AdamW's moments are counted. Activations are measured: one sequence, then
two, go forward and backward, and what a piece of n sequences needs follows in a straight line.
"""

import subprocess
import sys
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minifm.backends.reference.packed import Packed
from minifm.errors import ConfigError
from minifm.rng import Rng
from minifm.tensor import Tensor

GIGABYTE = 1e9


@dataclass(frozen=True)
class Need:
    """Bytes that training needs. `activations` of a piece of `rows` sequences: what the graph
    keeps for the backward pass and the largest temporaries, `row` more for each sequence;
    `divisible`: a batch may be cut into smaller pieces."""

    weights: int
    gradients: int
    moments: int
    average: int
    activations: int
    rows: int
    row: int
    divisible: bool = True

    @property
    def new(self):
        """Bytes still to be allocated once the weights exist."""
        return self.gradients + self.moments + self.average + self.activations

    def __str__(self):
        parts = ", ".join(f"{name} {getattr(self, name) / GIGABYTE:.2f}" for name in
                          ("weights", "gradients", "moments", "average", "activations"))
        return f"{(self.weights + self.new) / GIGABYTE:.2f} GB ({parts})"


def estimate(model, objective, batch, config):
    """The Need of training `model` by `config`; `batch` is any batch of the run's shape."""
    weights = model.parameters().values()
    trained = sum(_bytes(p) for p in weights if p.requires_grad)
    rows = -(-config.batch // config.accumulate)
    batch = objective.fullest(batch)
    first = _activations(model, objective, batch, 1)
    row = max(0, _activations(model, objective, batch, 2) - first) if rows > 1 else 0
    return Need(weights=sum(_bytes(p) for p in weights), gradients=trained, moments=2 * trained,
                average=trained if config.average else 0, activations=first + (rows - 1) * row,
                rows=rows, row=row, divisible=objective.divisible)


def require(need, config, available=None):
    """Raise ConfigError, saying what to lower, unless `need` fits `available` bytes (default:
    what the machine has; where that is unknown, nothing is refused)."""
    available = available_bytes() if available is None else available
    if available is None or need.new <= available:
        return
    excess = need.new - available
    if 0 < need.row and excess <= (need.rows - 1) * need.row:
        rows = need.rows - -(-excess // need.row)
        advice = f"batch: at most {rows}, or recompute" if not need.divisible else (
            f"accumulate: at least {-(-config.batch // rows)} (now {config.accumulate}) "
                  "gives the same result in less memory")
    else:
        advice = "a smaller model or shorter sequences are needed"
        if config.average:
            advice += ", or average 0"
    raise ConfigError(f"memory: training needs {need}, of which {need.new / GIGABYTE:.2f} GB are "
                      f"still to come; {available / GIGABYTE:.2f} GB are available; {advice}")


def require_parameters(count, config, available=None):
    """Raise ConfigError unless `count` float32 weights fit with their gradients and moments: a
    check before the model is built."""
    available = available_bytes() if available is None else available
    need = 4 * count * (5 if config.average else 4)
    if available is not None and need > available:
        raise ConfigError(
            f"memory: {count:,} weights with gradients and moments need {need / GIGABYTE:.2f} GB, "
            f"{available / GIGABYTE:.2f} GB are available; fewer layers or a smaller width needed")


def require_tokens(batch, length, available=None):
    """Raise ConfigError unless one batch of token ids alone, in and out, fits."""
    available = available_bytes() if available is None else available
    if available is not None and 4 * 8 * batch * (length + 1) > available:
        raise ConfigError(f"memory: the token ids of {batch:,} sequences of {length:,} alone do "
                          f"not fit {available / GIGABYTE:.2f} GB: lower batch or length")


def kept_bytes(root):
    """Bytes of the arrays that the graph under `root` keeps for its backward pass, each block of
    memory counted once; leaves (the weights) are not counted."""
    leaves, blocks, seen, open_ops = set(), {}, set(), [root.op]
    while open_ops:
        op = open_ops.pop()
        if op is None or op in seen:
            continue
        seen.add(op)
        for parent in op.parents:
            if isinstance(parent, Tensor) and parent.op is None:
                leaves.add(id(_owner(parent.data)))
            elif isinstance(parent, Tensor):
                open_ops.append(parent.op)
        for array in _arrays(vars(op)):
            owner = _owner(array)
            blocks[id(owner)] = owner
    return sum(_bytes(x) for key, x in blocks.items() if key not in leaves)


def available_bytes():
    """Bytes that this process may still take: the least of what the machine and the control
    groups above the process leave. None where neither can be told."""
    if sys.platform == "darwin":
        size = subprocess.run(["sysctl", "-n", "hw.memsize"], capture_output=True, text=True,
                              check=False)
        return int(size.stdout) if size.returncode == 0 else None
    return min((*_machine(Path("/proc/meminfo")), *_control_groups(Path("/"))), default=None)


# -- measuring -------------------------------------------------------------------------------


def _activations(model, objective, batch, rows):
    """Peak bytes of a forward and backward over `rows` sequences while all gradients are held.

    So it is from a step's second piece on. With one piece, early activations are gone before the
    last gradients come, and `Need` says up to the gradients' size too much.
    """
    batch = tuple(np.resize(x, (rows, *x.shape[1:])) for x in batch)
    count = max(1, objective.count(batch))
    parameters = model.parameters().values()
    started_here = not tracemalloc.is_tracing()
    if started_here:
        tracemalloc.start(1)
    try:
        for _ in range(2):                      # the second time, gradients are there already
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with np.errstate(all="ignore"):     # what overflows is for the trainer to say
                loss = objective.loss(model, batch, denominator=count, rng=Rng(0))
                kept = kept_bytes(loss)
                loss.backward()
            del loss
            peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        if started_here:
            tracemalloc.stop()
        for p in parameters:
            p.grad = None
    return max(kept, peak)


def _bytes(x):
    """Bytes of an array or a Parameter, which may be packed."""
    data = getattr(x, "data", x)
    if isinstance(data, Packed):
        return data.nbytes
    return int(np.prod(x.shape, dtype=np.int64)) * np.dtype(x.dtype).itemsize


def _arrays(attributes):
    """The arrays among an op's attributes, and within tuples there."""
    for name, value in attributes.items():
        if name != "parents":
            for x in value if isinstance(value, tuple) else (value,):
                if hasattr(x, "shape") and hasattr(x, "dtype"):
                    yield x


def _owner(array):
    """The array whose memory this one is a view of."""
    while isinstance(getattr(array, "base", None), np.ndarray):
        array = array.base
    return array


# -- what there is ---------------------------------------------------------------------------


def _machine(meminfo):
    """MemAvailable of Linux's /proc/meminfo, in bytes, as a list of one or none."""
    if not meminfo.exists():
        return []
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return [int(lines["MemAvailable"].split()[0]) * 1024] if "MemAvailable" in lines else []


def _control_groups(root):
    """What each memory limit on the process's control groups (versions 2 and 1) leaves: the limit
    less what is used, not counting cached file pages, which are given up on demand."""
    own = root / "proc/self/cgroup"
    if not own.exists():
        return
    layouts = {"": ("", "memory.max", "memory.current", "inactive_file"),
               "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
                          "total_inactive_file")}
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for kind in layouts.keys() & set(controllers.split(",")):
            base, limit, usage, cached = layouts[kind]
            base = root / "sys/fs/cgroup" / base
            group = base / path.lstrip("/")
            for directory in (group, *group.parents):
                if (directory / limit).exists() and (directory / usage).exists():
                    most = (directory / limit).read_text().strip()
                    if most != "max":
                        yield int(most) - int((directory / usage).read_text()) \
                            + _cached(directory / "memory.stat", cached)
                if directory == base:
                    break


def _cached(statistics, name):
    if not statistics.exists():
        return 0
    return int(dict(line.split() for line in statistics.read_text().splitlines()).get(name, 0))
