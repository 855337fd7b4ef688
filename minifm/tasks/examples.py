"""Labelled examples: what all kinds have in common. Each kind stands with its task: Classified
(classify.py), Tagged (ner.py), Question (qa.py), Summary (summarize.py), Answered (freetext.py).

An example knows where it was read, and checks itself when it is made: what is wrong with a label
or a place in the text is said in one line with file and line, before anything is trained on it.
Places in texts are characters, Python's code points.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from minifm.atomic import atomic_file
from minifm.errors import ConfigError, FormatError, listed, plural
from minifm.rng import Rng

HELD_OUT = 0.2              # of the groups of examples, where the user says nothing


class Origin(NamedTuple):
    """Where an example was read: a file, and what in it ("line 7", "data[0].paragraphs[2]")."""

    file: str = "memory"
    key: str = ""

    def error(self, reason):
        """The FormatError to raise."""
        return FormatError(self.file, self.key, reason)


@dataclass(frozen=True)
class Example:
    """origin   where it was read; of no account when two examples are compared
    group    what must not stand on both sides of a split, such as its document; None: its text
    """

    origin: Origin = field(default=Origin(), compare=False, kw_only=True, repr=False)
    group: str | None = field(default=None, kw_only=True)

    @property
    def content(self):
        """What it says without its label, a str."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its content is")

    @property
    def labels(self):
        """The labels in it, a list: one for a class, one for each entity, or none."""
        return []

    @classmethod
    def parse(cls, record, **common):
        """From a record, a dict of a file; raises FormatError by common["origin"]."""
        raise NotImplementedError(f"{cls.__name__} cannot be read")

    @classmethod
    def scores(cls, examples, predictions):
        """How well the predictions, one for each example, agree with it (scores.py): an object
        with `figures` and `table()`."""
        raise NotImplementedError(f"{cls.__name__} cannot be scored")

    def record(self):
        """What `parse` reads, as a dict for JSON."""
        raise NotImplementedError(f"{type(self).__name__} cannot be written")


# -- checks ----------------------------------------------------------------------------------------


def need(record, name, kind, origin):
    """record[name], which must be there and be of `kind` (a type). Raises FormatError."""
    if name not in record:
        there = ", ".join(map(str, record)) or "none"
        raise origin.error(f"expected a field {name!r}; the fields here are: {there:.200}")
    value = record[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise origin.error(f"expected {name!r} to be {KINDS[kind]}, got {_named(value)}")
    return value


KINDS = {str: "a string", int: "an integer", list: "a list", dict: "an object"}


def need_all(values, name, kind, origin):
    """The list `values` of field `name`, each of which must be of `kind`. Raises FormatError."""
    for place, value in enumerate(values):
        if not isinstance(value, kind) or isinstance(value, bool):
            raise origin.error(f"expected {name}[{place}] to be {KINDS[kind]}, got "
                               f"{_named(value)}")
    return values


def need_text(value, name, origin):
    """Raises FormatError where `value` is empty or only white space."""
    if not value.strip():
        raise origin.error(f"{name!r} is empty")


def _named(value):
    return "null" if value is None else f"{type(value).__name__} {value!r:.40}"


def check_labels(examples, known):
    """Raise FormatError, naming the example, for a label that is not among `known`."""
    for example in examples:
        for label in example.labels:
            if label not in known:
                raise example.origin.error(f"label {label!r} is unknown; expected one of "
                                           f"{listed(sorted(known))}")


# -- what they say together ------------------------------------------------------------------------


def labels_of(examples):
    """The labels that occur, in sorted order, as a tuple."""
    return tuple(sorted({label for example in examples for label in example.labels}))


def describe(examples):
    """One line: how many there are, and of which labels, the most frequent first."""
    counts = Counter(label for example in examples for label in example.labels)
    groups = len({_group(example) for example in examples})
    line = f"{plural(len(examples), 'example')} in {plural(groups, 'group')}"
    if not counts:
        return line
    total, ordered = counts.total(), sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{label} {count:,} ({count / total:.0%})" for label, count in ordered[:12])
    more = f", {len(ordered) - 12} more" if len(ordered) > 12 else ""
    kinds = f"{plural(total, 'label')} of {plural(len(counts), 'kind')}"
    return (f"{line}; {kinds}: {shown}{more}; largest to smallest "
            f"{ordered[0][1] / ordered[-1][1]:.3g} : 1")


def split(examples, fraction, seed=0):
    """(training, held out): two lists, in order; about `fraction` of the groups in the second.

    A hash of seed and group decides, as in Corpus.split: the side of a group does not change when
    others are added. At least one group is held out. Raises ConfigError where there is no split.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"held-out fraction: expected a number in (0, 1), got {fraction}")
    sides = [_side(seed, _group(example)) for example in examples]
    if len(set(sides)) < 2:
        raise ConfigError(f"groups of examples: {len(set(sides))}, which leaves none to train on "
                          f"when {fraction:g} of them are held out; give more, or other groups")
    threshold = min(max(int(fraction * 2**64), min(sides) + 1), max(sides))
    pairs = list(zip(examples, sides))
    return ([example for example, side in pairs if side >= threshold],
            [example for example, side in pairs if side < threshold])


def check_sides(config):
    """Raise ConfigError where settings say both which examples are held out, `held_out_data`, and
    how many of the others, `held_out`."""
    if config.held_out_data and config.held_out is not None:
        raise ConfigError("held_out: what is held out is held_out_data; leave one of them out")


def sides(examples, held_out=None, *, fraction=None, seed):
    """(training, held out), both in an order that the seed shuffles. Where there are no `held_out`
    examples, a part of the others is (`fraction`; None: HELD_OUT); see `split`."""
    if held_out is None:
        examples, held_out = split(examples, HELD_OUT if fraction is None else fraction, seed)
    return tuple([part[i] for i in Rng(seed).child("examples").permutation(len(part)).tolist()]
                 for part in (examples, held_out))


def _group(example):
    return ("text", example.content) if example.group is None else ("group", example.group)


def _side(seed, group):
    """A number in 0 … 2^64 - 1."""
    text = json.dumps([seed, *group]).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def write(examples, path):
    """JSON lines that `reading.read(path, type(example), group="group")` reads as they are."""
    with atomic_file(path) as file:
        for example in examples:
            record = example.record()
            if example.group is not None:
                record["group"] = example.group
            file.write(json.dumps(record, ensure_ascii=True).encode() + b"\n")
