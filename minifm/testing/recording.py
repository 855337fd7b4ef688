"""A backend that notes each verb it is asked for, and what the notes tell of an op's cost.

    recorder = Recorder(backends.active())
    with backends.use(recorder):
        example.node()
    recorder.calls          # [Call("layernorm", (x, gamma, beta, 1e-05), {}, (y, mean, rstd))]
"""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from minifm.backends import use
from minifm.backends.relay import Relay

# These look things up: they read no more of their first operand than they return.
LOOKUPS = ("embedding", "getitem", "take_along")


@dataclass(frozen=True)
class Call:
    """One call of a verb: what went in and what came out."""

    verb: str
    arguments: tuple
    options: dict
    result: object


class Recorder(Relay):
    """`inner` with every call noted in `calls`. Arrays are those of `inner`."""

    def __init__(self, inner):
        super().__init__(inner)
        self.calls = []

    def relay(self, verb, arguments, options):
        result = super().relay(verb, arguments, options)
        self.calls.append(Call(verb, arguments, options, result))
        return result


# -- what one call of an op costs ------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Of one phase of an op on one backend, all but the time."""

    flops: int | None       # as the op declares them; None: it does not
    bytes: int              # see `traffic`
    on_numpy: tuple         # verbs that the backend has no kernel for and left to NumPy
    copied: tuple           # verbs for which it copied an operand first


def costs(example, backend, gradients=True):
    """{"forward": Cost} of an Example on a backend, and with `gradients` {"backward": Cost} too;
    and the bytes of its inputs and outputs."""
    recorder, found = Recorder(backend), {}
    flops = example.op.flops(*example.inputs, **example.options)
    with use(recorder):
        before = besides(backend)
        node, outputs = example.node()
        found["forward"] = Cost(flops, traffic(recorder.calls, arrays_in(example.inputs), outputs),
                                *since(before, backend))
        if not gradients:
            return found, _bytes(example, outputs)
        kept, dys = arrays_in(tuple(vars(node).values())), cotangents(recorder, outputs)
        recorder.calls.clear()
        before = besides(backend)
        gradients = arrays_in(node.backward(*dys))
        found["backward"] = Cost(flops and int(flops * node.backward_products()),
                                 traffic(recorder.calls, [*dys, *kept], gradients),
                                 *since(before, backend))
    return found, _bytes(example, outputs)


def _bytes(example, outputs):
    return sum(x.nbytes for x in (*arrays_in(example.inputs), *outputs))


def cotangents(backend, outputs):
    """One array of N(0, 1) numbers for each output."""
    random = np.random.default_rng(1)
    return [backend.from_numpy(np.asarray(random.standard_normal(y.shape), y.dtype))
            for y in outputs]


def besides(backend):
    """What the backend has done besides calling its kernels: two counts by verb."""
    return Counter(backend.fallbacks), Counter(getattr(backend, "copies", ()))


def since(before, backend):
    """The verbs whose counts have grown since `before`: (left to NumPy, with an operand copied)."""
    return tuple(tuple(now - then) for then, now in zip(before, besides(backend)))


# -- how many bytes must move ----------------------------------------------------------------------


def traffic(calls, given, made):
    """The bytes that must move at least: of the arrays `given` what the calls read, each once,
    and those arrays of `made` that are new. What lies between is the backend's choice.

    0 where nothing moves: the results are views of the operands, or the operands themselves.
    """
    new = [y for y in made if not any(np.may_share_memory(y, x) for x in given)]
    if not new:
        return 0
    once = {id(y): y for y in new}.values()
    return sum(_read(calls, x) for x in given) + sum(map(_size, once))


def _read(calls, x):
    """How much of x the calls read: of all that look at it, the one that reads most."""
    most = 0
    for call in calls:
        results = arrays_in(call.result)
        for place, argument in enumerate(call.arguments):
            for operand in arrays_in(argument):
                if not np.may_share_memory(operand, x) or _is_view(results, operand):
                    continue
                size = min(_size(operand), _size(x))
                if place == 0 and call.verb in LOOKUPS:
                    size = min(size, sum(map(_size, results)))
                most = max(most, size)
    return most


def _is_view(results, operand):
    """Whether the results are only other views of the operand: then nothing was read."""
    return bool(results) and all(np.may_share_memory(y, operand) for y in results)


def _size(x):
    """Bytes of x, a dimension of stride 0 counted once."""
    return x.itemsize * math.prod(n for n, stride in zip(x.shape, x.strides) if stride)


def arrays_in(value):
    """The NumPy arrays that `value` is, or that its tuples and lists hold."""
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, (tuple, list)):
        return [x for part in value for x in arrays_in(part)]
    return []
