"""Settings that explain and check themselves: frozen dataclasses whose fields are `setting`s.

    @dataclass(frozen=True)
    class Sampling:
        top_k: int = setting(0, "keep the k likeliest tokens (0: all)", least=0)

        __post_init__ = check

The text of a setting is its documentation and its line in `--help`; its bounds refuse what makes
no sense, in one place and in the same words everywhere.
"""

import dataclasses
import math
import sys
import types
import typing

from minifm.errors import ConfigError

LARGEST = sys.float_info.max


def setting(default, help, *, least=None, above=None, most=None, below=None, choices=None,
            free=False):
    """A field with its help text and the values that make sense.

    free   a resumed run may change it: it decides what is reported or kept, never the weights
    """
    return dataclasses.field(default=default, metadata={
        "help": help, "least": least, "above": above, "most": most, "below": below,
        "choices": choices, "free": free})


def check(config):
    """Raise ConfigError, naming the field, what was expected and what came, for any setting of
    the wrong type or outside its bounds. Serves as a dataclass's `__post_init__`."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        if field.metadata:
            _check_one(field.name, getattr(config, field.name), hints[field.name], field.metadata)


def fits(value, hint):
    """Whether `value` is of the type `hint`: an integer is a number too, a bool is neither."""
    kind = plain_type(hint)
    if value is None:
        return kind is not hint
    if kind is float:
        kind = (int, float)
    elif typing.get_origin(kind) is tuple:
        return isinstance(value, (tuple, list)) and all(fits(x, element_type(kind)) for x in value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def plain_type(hint):
    """`int | None` is int where leaving a setting out means None."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return next(t for t in typing.get_args(hint) if t is not type(None))
    return hint


def element_type(hint):
    """What `tuple[int, ...]` is a tuple of; None for what is no tuple."""
    kind = plain_type(hint)
    return typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None


def type_name(hint):
    """A type as a message calls it."""
    kind = plain_type(hint)
    return {int: "an integer", float: "a number", str: "a string", bool: "true or false",
            tuple[int, ...]: "a list of integers"}.get(kind, "a list of strings")


def _check_one(name, value, hint, limits):
    if not fits(value, hint):
        raise ConfigError(f"{name}: expected {type_name(hint)}, got {value!r}")
    if value is None:
        return
    if limits["choices"] is not None and value not in limits["choices"]:
        named = ", ".join(choice for choice in limits["choices"] if choice is not None)
        raise ConfigError(f"{name}: expected one of {named}, got {value!r}")
    for number in value if isinstance(value, (tuple, list)) else [value]:
        if isinstance(number, (int, float)):
            _check_bounds(name, number, hint, limits)


def _check_bounds(name, value, hint, limits):
    if plain_type(hint) is float and isinstance(value, int) and abs(value) > LARGEST:
        raise ConfigError(f"{name}: expected a number that a float can hold")
    least, above, most, below = (limits[key] for key in ("least", "above", "most", "below"))
    finite = isinstance(value, int) or math.isfinite(value)     # isfinite(10**400) overflows
    inside = finite and (least is None or value >= least) and \
        (above is None or value > above) and (most is None or value <= most) and \
        (below is None or value < below)
    if not inside:
        bounds = [f"{words} {bound}" for words, bound in (
            ("at least", least), ("more than", above), ("at most", most), ("less than", below))
            if bound is not None]
        raise ConfigError(f"{name}: expected {' and '.join(bounds) or 'a finite number'}, "
                          f"got {value}")
