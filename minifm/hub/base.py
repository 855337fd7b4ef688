"""The weights that an adapter learnt over: it is worth nothing beside others, and they may change
after it was saved, under the same name and in the same shapes.

    adapter_base.json   "sha256" of the model's frozen weights, as they were in memory, and the
                        "format" in which they were packed (QLoRA), or null

Other libraries leave the file alone, and do not write it; an adapter without it is not checked.
"""

import hashlib
import reprlib
from pathlib import Path

import numpy as np

from minifm import backends
from minifm.atomic import write_json
from minifm.backends.reference.packed import FORMATS, Packed
from minifm.errors import FormatError
from minifm.hub.arrays import opened, parse_json
from minifm.hub.locate import ADAPTER_BASE
from minifm.models import packed_format

KEPT = "fp32"       # weights packed in this format are the numbers that they were


def write_base(model, directory, learnt):
    """Say in an adapter's directory over which weights of `model` it has learnt: over all but
    `learnt`, the names of the parameters that are saved with it."""
    write_json({"format": _format(model), "sha256": _digest(model, learnt)},
               Path(directory) / ADAPTER_BASE)


def check_base(model, directory, learnt):
    """Raise FormatError where the weights of `model`, but those in `learnt`, are not the ones that
    the adapter in a directory has learnt over, as far as the directory says which these were."""
    file, said = Path(directory) / ADAPTER_BASE, _read(directory)
    if said is None:
        return
    way_out = "; if you mean these all the same, delete this file"
    if said["format"] != _format(model):
        raise FormatError(file, "format", "the adapter has learnt over weights that are "
                          f"{_named(said['format'])}, those of the model are "
                          f"{_named(_format(model))}{way_out}")
    if said["sha256"] != _digest(model, learnt):
        raise FormatError(file, "sha256", "the adapter has learnt over other weights than those "
                          f"of the model, a {type(model).__name__}: it is another one, or has "
                          "been trained since" + way_out)


def learnt_format(directory):
    """The format of the packed weights that the adapter in a directory has learnt over; None for
    plain ones, and where it does not say. Raises FormatError."""
    said = _read(directory)
    return None if said is None else said["format"]


def _read(directory):
    file = Path(directory) / ADAPTER_BASE
    if not file.exists():
        return None
    with opened(file) as (stream, _):
        said = parse_json(stream.read(), file)
    for key, known in (("format", (None, *FORMATS)), ("sha256", None)):
        value = said.get(key, ...)
        if value not in known if known else not isinstance(value, str):
            expected = f"one of null, {', '.join(FORMATS)}" if known else "a digest"
            got = "nothing" if value is ... else reprlib.repr(value)
            raise FormatError(file, key, f"expected {expected}, got {got}")
    return said


def _format(model):
    format = packed_format(model)
    return None if format == KEPT else format


def _named(format):
    return "not packed" if format is None else f"packed as {format}"


def _digest(model, learnt):
    """SHA-256 of the parameters of `model` but `learnt`: the names that files have for them,
    their shapes, and their numbers as float32, or their codes and scales."""
    digest, names = hashlib.sha256(), model.stored_names(model.config)
    own = {names[ours].name: p for ours, p in model.parameters().items()
           if ours in names and ours not in learnt}
    for name, parameter in sorted(own.items()):
        digest.update(f"{name} {list(parameter.shape)}\n".encode())
        for part in _parts(parameter.data):
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _parts(data):
    """The arrays that a weight is made of."""
    b = backends.active()
    if isinstance(data, Packed) and data.format != KEPT:
        return [part for part in b.packed_parts(data) if part is not None]
    plain = b.unpack(data) if isinstance(data, Packed) else data
    return [np.asarray(b.to_numpy(plain), "<f4")]
