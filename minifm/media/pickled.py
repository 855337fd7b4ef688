"""Reading a pickle without running it.

A pickle is a program for a small stack machine, and one of its instructions calls any function that
it names. CIFAR is published as pickles. So none is run here: the instructions are read as data, and
the few that build dicts, lists, strings and numbers are carried out by the table below. Of what a
pickle calls, three names are known, and they only note what they are given: an array is its shape,
its type and its bytes. Everything else is refused by name.
"""

import pickletools
from typing import NamedTuple

import numpy as np

from minifm.errors import FormatError

MARK = object()                 # on the stack, before the items of a list


class Name(NamedTuple):
    """What a pickle refers to, as "module name"; never looked up."""

    name: str


class Array:
    """An array that is being read: its `state` comes after it is made."""

    state = None


class Type(NamedTuple):
    name: str


KNOWN = {"numpy.core.multiarray _reconstruct": lambda *_: Array(),
         "numpy._core.multiarray _reconstruct": lambda *_: Array(),
         "numpy dtype": lambda name, *_: Type(name),
         "_codecs encode": lambda text, coding: text.encode(coding)}
ONLY_NAMED = ("numpy ndarray",)
MOST = 50_000_000               # instructions; CIFAR's files have 60,000


def read_pickle(data, path):
    """What the bytes hold: dicts, lists, tuples, strings, bytes, numbers and uint8 arrays. Strings
    of Python 2 are str of latin-1, as are the keys of dicts, where they are bytes.

    Raises FormatError for an instruction that is not one of these, and for a damaged file.
    """
    machine = _Machine(path)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > MOST:
                raise FormatError(path, None, "a pickle of more instructions than CIFAR has")
            machine.step(opcode.name, argument)
        return _plain(machine.stack.pop(), path)
    except FormatError:
        raise
    except Exception as error:          # a stack that is empty, a key that cannot be one, …
        raise FormatError(path, None,
                          f"a damaged pickle: {error or type(error).__name__}") from error


class _Machine:
    def __init__(self, path):
        self.path, self.stack, self.memo = path, [], {}

    def step(self, name, argument):
        if name in PUSHED:
            self.stack.append(argument)
        elif name in VALUES:
            self.stack.append(VALUES[name]())
        elif name in STEPS:
            STEPS[name](self, argument)
        elif name not in IGNORED:
            raise FormatError(self.path, None, f"a pickle that says {name}, which is not carried "
                              "out here; only CIFAR's own kind of pickle is read")

    def items(self):
        """Pop what stands above the topmost mark."""
        items = []
        while (item := self.stack.pop()) is not MARK:
            items.append(item)
        return items[::-1]

    def put(self, index):
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def get(self, index):
        self.stack.append(self.memo[index])

    def tuple(self, length):
        items = self.items() if length is None else [self.stack.pop() for _ in range(length)][::-1]
        self.stack.append(tuple(items))

    def extend(self, items):
        self.stack[-1].extend(items)

    def set_items(self, items):
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def name(self, name):
        if name not in KNOWN and name not in ONLY_NAMED:
            raise FormatError(self.path, None, f"a pickle that names {name!r}, which is never "
                              "called; only dicts, lists, strings, numbers and arrays are read")
        self.stack.append(Name(name))

    def name_from_stack(self, _):
        name, module = self.stack.pop(), self.stack.pop()
        self.name(f"{module} {name}")

    def call(self, _):
        arguments, called = self.stack.pop(), self.stack.pop()
        self.stack.append(KNOWN[called.name](*arguments))

    def build(self, _):
        """The state of an array, (version, shape, type, whether Fortran's order, bytes); that of a
        type says the order of bytes, of which a uint8 has but one."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Array):
            self.stack[-1].state = state


# Instructions by what they do; `pickletools` has told their arguments from the bytes.
PUSHED = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING",
          "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "BINUNICODE",
          "SHORT_BINUNICODE", "BINUNICODE8", "FLOAT", "BINFLOAT"}
VALUES = {"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
          "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "MARK": lambda: MARK}
IGNORED = {"PROTO", "FRAME", "STOP"}
STEPS = {
    "PUT": _Machine.put, "BINPUT": _Machine.put, "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "GET": _Machine.get, "BINGET": _Machine.get, "LONG_BINGET": _Machine.get,
    "TUPLE": lambda machine, _: machine.tuple(None),
    "TUPLE1": lambda machine, _: machine.tuple(1), "TUPLE2": lambda machine, _: machine.tuple(2),
    "TUPLE3": lambda machine, _: machine.tuple(3),
    "DICT": lambda machine, _: machine.stack.append(dict(_pairs(machine.items()))),
    "LIST": lambda machine, _: machine.stack.append(machine.items()),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.items()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(),
                                                     machine.stack.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.items()),
    "GLOBAL": _Machine.name, "STACK_GLOBAL": _Machine.name_from_stack,
    "REDUCE": _Machine.call, "BUILD": _Machine.build,
}


def _pairs(items):
    return zip(items[::2], items[1::2], strict=True)


def _plain(value, path):
    """With arrays in the place of what was noted of them. Not deeper than CIFAR: a dict of values,
    or a list."""
    if isinstance(value, dict):
        return {key.decode("latin-1") if isinstance(key, bytes) else key: _plain(item, path)
                for key, item in value.items()}
    if not isinstance(value, Array):
        return value
    _, shape, kind, fortran, data = value.state
    if kind != Type("u1"):
        raise FormatError(path, None, f"an array of {kind.name!r} in the pickle; expected uint8")
    data = data.encode("latin-1") if isinstance(data, str) else data
    return np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")
