"""Which tensor of a file is which of a model's: names, shapes and dtypes, all checked before one
number is read; and where a directory has no such file, what to say.
"""

import numpy as np

from minifm.errors import FormatError, listed
from minifm.hub.arrays import read, shown

FLOATING = ("F64", "F32", "F16", "BF16")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def sort_out(entries, slots, left_out, accepted_name):
    """({name: [Entry, …]} of what a file holds under the model's names, [what is unknown]).

    `left_out` are names of parts that the model does not have, but its kind may: published files
    bring a pooler, say, that their `architectures` does without. Those tensors are not read.
    """
    meant = {spellings(name, accepted_name)[0]: name for name in slots}
    left_out = {spellings(name, accepted_name)[0] for name in left_out}
    found, unknown = {}, []
    for key, entry in entries.items():
        names = spellings(key, accepted_name)
        name = next((name for name in names if name in meant), names[0])
        if name in meant:
            found.setdefault(meant[name], []).append(entry)
        elif name is not None and name not in left_out:
            unknown.append(f"{shown(key)} is unknown")
    return found, sorted(unknown)


def spellings(key, accepted_name):
    """The names that a key may stand for, the likeliest first: a model says one, or several."""
    names = accepted_name(key)
    return names if isinstance(names, tuple) else (names,)


def misfits(found, slots):
    """One line for each tensor that is missing, of another shape, or not of numbers, in the order
    of the model."""
    wrong = [f"{name} is missing" for name in slots if name not in found]
    for name, (expected, dtypes) in slots.items():
        for entry in found.get(name, ()):
            if entry.shape != tuple(expected):
                wrong.append(f"{shown(entry.name)} is {list(entry.shape)}, expected "
                             f"{list(expected)}")
            elif entry.dtype not in dtypes:
                wrong.append(f"{shown(entry.name)} is {entry.dtype}, expected one of "
                             f"{', '.join(dtypes)}")
    return wrong


def told(*kinds):
    """Lists of what does not fit as one line, in which each kind has its first few."""
    return "; ".join(listed(kind, "; ") for kind in kinds if kind)


def float32_of(same):
    """The array of one tensor, from all entries that claim to be it: they must agree.

    A tied head may be stored twice; if the two differ, the file is of another, untied model.
    """
    first, *others = same
    array = _float32(first)
    for other in others:
        if not np.array_equal(array, _float32(other), equal_nan=True):
            raise FormatError(other.file, shown(other.name), f"differs from {shown(first.name)}; "
                              "in this model they are one tensor")
    return array


def _float32(entry):
    array = read(entry)
    try:
        with np.errstate(over="raise", invalid="ignore"):
            return array.astype(np.float32, copy=False)
    except FloatingPointError:
        raise FormatError(entry.file, shown(entry.name), "has numbers beyond float32") from None


def no_weights(directory, missing):
    """The FormatError for a directory without weights; `missing` says which file is not there."""
    pickles = sorted(entry.name for pattern in PICKLES for entry in directory.glob(pattern))
    reason = f"; {pickles[0]} may be a pickle, which can run any code when it is opened, and is " \
             "not opened: save the model as safetensors first" if pickles else ""
    return FormatError(directory, None, missing + reason)
