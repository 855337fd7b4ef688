"""A model's directory: what every library of the ecosystem expects to find in one.

    config.json               which model, and its shape
    generation_config.json    which token ends a text
    model.safetensors         the weights; a large model's lie in model-0000i-of-0000n.safetensors,
                              and model.safetensors.index.json says which is where
    tokenizer.json, tokenizer_config.json

A network of a diffusion model has its weights in diffusion_pytorch_model.safetensors, or as many
files, and no other file beside its config.json, which names it by `_class_name` where those of
language models have a `model_type`.

A model in low precision (`minifm quantize`) says so in config.json:

    "quantization_config": {"quant_method": "minifm", "format": "int8", "group_size": 32}

Then a weight W that products read is stored as W.codes and W.scales, both with a row for each of
the product's outputs (for a look-up table: for each entry). With G groups of 32 weights to a row:

    int8   W.codes I8 [N, G, 32]; a weight is code * scale
    int4   W.codes U8 [N, G, 16]: byte i holds the codes of weights i and i + 16 of its group, in
           its lower and its upper half; a weight is (code - 8) * scale
           W.scales BF16 [N, G]; weights beyond the last of a row are zeros

In bf16, W is stored under its own name and shape as BF16. Everything else is as ever.

Models that work as one (models/composite.py) have a folder each, and model_index.json above them
(pipelines.py).
"""

import math
import re
import reprlib
from pathlib import Path

from minifm import backends
from minifm.atomic import write_json
from minifm.backends.reference.packed import GROUP, Packed, rounded_to_bf16
from minifm.errors import ConfigError, FormatError, UserError, listed
from minifm.hub.adapters import ALL_WEIGHTS, base_of, is_adapter, load_adapter, save_adapter
from minifm.hub.arrays import (
    BFLOAT16,
    opened,
    parse_json,
    read,
    read_header,
    save_arrays,
    shown,
)
from minifm.hub.base import learnt_format
from minifm.hub.locate import ADAPTER, ADAPTER_BASE
from minifm.hub.matching import FLOATING, float32_of, misfits, no_weights, sort_out, told
from minifm.hub.pipelines import INDEX, TOKENIZER, folder_of, parts_in, write_index
from minifm.models import MODELS, NETWORKS, pack_model, packed_format
from minifm.models.causal import CausalModel
from minifm.models.classes import with_class
from minifm.models.composite import PARTS, Composite
from minifm.models.heads import Headed, described, with_head
from minifm.nn import adapter_config
from minifm.rng import Rng
from minifm.text.tokenizer import Tokenizer

CONFIG, GENERATION = "config.json", "generation_config.json"
ENDING, INDEX_ENDING = ".safetensors", ".safetensors.index.json"
SHARD_BYTES = 5_000_000_000
NAME = "_class_name"
QUANTIZATION, CODES, SCALES = "quantization_config", ".codes", ".scales"
STORED = ("bf16", "int8", "int4")       # the formats of packed weights that files know
CODE_DTYPES = {"int8": ("I8", GROUP), "int4": ("U8", GROUP // 2)}
_WEIGHT_FILE = re.compile(r"(-\d{5,}-of-\d{5,})?\.safetensors(\.index\.json)?")
_SHARD = re.compile(r"[^/\\\0]+\.safetensors")


# -- out -----------------------------------------------------------------------------------------


def save_model(model, directory, tokenizer=None, *, shard_bytes=SHARD_BYTES):
    """Write `model`, and its tokenizer, into an existing directory; of a model with adapters, these
    and not the model that they adapt (adapters.py).

    Each file is replaced as a whole; for a directory that appears whole or not at all, fill one
    by `minifm.atomic.atomic_directory`. Weights of more than `shard_bytes` are split over several
    files. Raises UserError where the directory does not exist or the disk refuses.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: expected a directory that exists")
    if shard_bytes < 1:
        raise ConfigError(f"shard_bytes: expected a positive number, got {shard_bytes}")
    end_of_text = None if tokenizer is None else tokenizer.end_of_text
    if isinstance(model, Composite):
        return _save_parts(model, directory, shard_bytes)
    if adapter_config(model) is None:
        _save_whole(model, directory, end_of_text, shard_bytes)
    else:
        save_adapter(model, directory)
        # Files of adapters do not name the labels of a head, nor how many classes there are.
        if isinstance(model, Headed) or getattr(model.config, "classes", None):
            write_json(model.config_to_hub(model.config, end_of_text=end_of_text),
                       directory / CONFIG)
    if tokenizer is not None:
        tokenizer.save(directory)


def _save_parts(model, directory, shard_bytes):
    """Each model of a Composite in a folder of its own, and its tokenizer in another."""
    classes = {}
    for name, part in model.parts().items():
        folder = folder_of(name, part)
        (directory / folder).mkdir(exist_ok=True)
        save_model(part, directory / folder, shard_bytes=shard_bytes)
        classes[folder] = part.config_to_hub(part.config)
    if model.tokenizer is not None:
        (directory / TOKENIZER).mkdir(exist_ok=True)
        model.tokenizer.save(directory / TOKENIZER)
    write_index(directory, classes, model.tokenizer)


def _save_whole(model, directory, end_of_text, shard_bytes):
    config = model.config_to_hub(model.config, end_of_text=end_of_text)
    config |= _quantization(packed_format(model))
    if "model_type" in config:
        ids = {key: config[key] for key in ("bos_token_id", "eos_token_id")
               if config.get(key) is not None}
        write_json({"_from_model_config": True, **ids}, directory / GENERATION)
    write_json(config, directory / CONFIG)
    written = _write_weights(_arrays_of(model), directory, model.weights, shard_bytes)
    for entry in directory.iterdir():           # a reader would find an earlier model's instead
        if entry.name in (ADAPTER, ADAPTER_BASE, *ALL_WEIGHTS) or (
                _is_of_weights(entry.name, model.weights) and entry.name not in written):
            entry.unlink()


def _is_of_weights(name, stem):
    return name.startswith(stem) and _WEIGHT_FILE.fullmatch(name.removeprefix(stem))


def _arrays_of(model):
    """{name in files: NumPy array} of a model's parameters."""
    names, arrays = model.stored_names(model.config), {}
    for ours, parameter in model.parameters().items():
        stored, data = names[ours], parameter.data
        if isinstance(data, Packed) and data.format in STORED:
            arrays |= _stored_packed(stored, data)
        else:
            array = stored.array_there(backends.active().to_numpy(data))
            arrays |= dict.fromkeys((stored.name, *stored.copies), array)
    return arrays


def _quantization(format):
    """What config.json says of weights in this format; fp32 is only another layout in memory."""
    if format not in STORED:
        return {}
    group = {} if format == "bf16" else {"group_size": GROUP}
    return {QUANTIZATION: {"quant_method": "minifm", "format": format} | group}


def _stored_packed(stored, packed):
    """{name: array} of one packed weight."""
    codes, scales = backends.active().packed_parts(packed)
    if scales is not None:
        return {stored.name + CODES: codes, stored.name + SCALES: scales.view(BFLOAT16)}
    as_shown = codes if packed.inner == 1 else codes.T
    return {stored.name: (as_shown.T if stored.transposed else as_shown).view(BFLOAT16)}


def _write_weights(arrays, directory, stem, shard_bytes):
    """Write one file, or shards and their index; returns the names of the files."""
    shards = _shards(arrays, shard_bytes)
    if len(shards) == 1:
        save_arrays(arrays, directory / (stem + ENDING))
        return [stem + ENDING]
    files, places = [], {}
    for number, shard in enumerate(shards, 1):
        files.append(f"{stem}-{number:05d}-of-{len(shards):05d}{ENDING}")
        save_arrays(shard, directory / files[-1])
        places |= dict.fromkeys(shard, files[-1])
    totals = {"total_parameters": sum(array.size for array in arrays.values()),
              "total_size": sum(array.nbytes for array in arrays.values())}
    index = stem + INDEX_ENDING
    write_json({"metadata": totals, "weight_map": places}, directory / index)
    return [*files, index]


def _shards(arrays, most):
    """Split {name: array}, in order, into dicts of at most `most` bytes, or of one array."""
    shards, held = [{}], 0
    for name, array in arrays.items():
        if shards[-1] and held + array.nbytes > most:
            shards.append({})
            held = 0
        shards[-1][name] = array
        held += array.nbytes
    return shards


# -- in ------------------------------------------------------------------------------------------


def load_model(directory):
    """The model in a directory, on the active backend: its weights as float32, or packed where
    they are stored so. An adapter comes with the model that it adapts (adapters.py), packed as it
    was while the adapter learnt.

    Raises FormatError for anything in the directory that is not as expected; weights that are
    missing, unknown or of another shape are told in one.
    """
    directory = Path(directory)
    if is_adapter(directory):
        model = described_by(directory, load_model(base_of(directory)))
        pack_as_learnt(model, learnt_format(directory))
        load_adapter(model, directory)
        return model
    if (directory / INDEX).exists():
        return _load_parts(directory)
    stored = _read_config(directory / CONFIG)
    file, entries = _find_weights(directory, _class_of(stored).weights)
    model_class, config, format = _understand(stored, directory / CONFIG, entries)
    _check_size(config, file, entries)
    model = model_class(config)
    names = model.stored_names(config)
    packed = model.products(config) if format else {}
    slots, parameters = {}, model.parameters()
    for ours, parameter in parameters.items():
        slots |= _slots(names[ours], parameter.shape, format, packed.get(ours))
    left_out = [stored.name for ours, stored in names.items() if ours not in parameters]
    found, unknown = sort_out(entries, slots, left_out, model.accepted_name)
    wrong = misfits(found, slots)
    if unknown or wrong:
        raise FormatError(file, None, f"does not fit {CONFIG}: {told(unknown, wrong)}")
    for ours, parameter in parameters.items():
        inner = packed.get(ours)
        if inner is not None and format != "bf16":
            parameter.data = _packed(names[ours].name, found, format, parameter.shape, inner)
        else:
            array = names[ours].array_here(float32_of(found[names[ours].name]), parameter.shape)
            parameter.data = backends.active().from_numpy(array)
            if inner is not None:
                parameter.data = backends.active().pack(parameter.data, format, inner)
        parameter.requires_grad = inner is None
    return model


def _load_parts(directory):
    """The Composite of the models that a directory's index names; where that is a network alone,
    the network."""
    parts = {}
    for name, folder in parts_in(directory).items():
        parts[name] = load_model(folder)
        if not isinstance(parts[name], PARTS[name]):
            raise FormatError(directory / INDEX, folder.name, f"a {type(parts[name]).__name__} "
                              f"cannot be the {name} of a diffusion model")
    if len(parts) == 1:
        return parts["network"]
    folder = directory / TOKENIZER
    try:
        return Composite(**parts, tokenizer=Tokenizer.load(folder) if folder.is_dir() else None)
    except ConfigError as problem:
        raise FormatError(directory / INDEX, None, str(problem)) from problem


def pack_as_learnt(model, format):
    """Pack the weights of a model in the format in which an adapter has learnt over them; None:
    they stay as they are. Raises ConfigError for a model that is packed otherwise."""
    if format not in (None, packed_format(model)):
        pack_model(model, format)


def end_tokens(directory):
    """The ids, a tuple, of the tokens with which the model in a directory ends a text or its turn:
    what generation_config.json says, or if there is none, config.json. Raises FormatError."""
    directory = base_of(directory) if is_adapter(directory) else Path(directory)
    file = next((directory / name for name in (GENERATION, CONFIG)
                 if (directory / name).exists()), None)
    if file is None:
        return ()
    with opened(file) as (stream, _):
        said = parse_json(stream.read(), file).get("eos_token_id")
    ids = said if isinstance(said, list) else [] if said is None else [said]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise FormatError(file, "eos_token_id", "expected the id of a token or a list of such, got "
                          f"{reprlib.repr(said)}")
    return tuple(ids)


def described_by(directory, model):
    """The model that an adapter is of, with what it has learnt beside that and a config.json in its
    directory describes: a head, or one more class."""
    file = directory / CONFIG
    if not file.exists():
        return model
    kind, config, _ = _understand(_read_config(file), file, ())
    if type(model) is kind and getattr(config, "classes", None) and model.config.classes and \
            config.classes == model.config.classes + 1:
        return with_class(model)
    if not issubclass(kind, Headed) or isinstance(model, kind) and model.config == config:
        return model
    try:
        settings = {name: getattr(config, name) for name in ("problem", "dropout", "padding")}
        return with_head(model, kind, config.labels, rng=Rng(0), **settings)    # to be replaced
    except ConfigError as problem:
        raise FormatError(file, None, str(problem)) from problem


def load_causal(directory):
    """The same, for what needs a model that predicts the next token; raises ConfigError for
    another."""
    return require_causal(load_model(directory), directory)


def require_causal(model, name):
    """The `model`, called `name`; raises ConfigError unless it predicts the next token."""
    if not isinstance(model, CausalModel):
        raise ConfigError(f"{name}: expected a model that predicts the next token, got a "
                          f"{type(model).__name__}")
    return model


def _slots(stored, shape, format, inner):
    """{name in files: (shape there, dtypes)} of what holds one parameter; `inner` is None unless
    it is stored packed in `format`."""
    if inner is None or format == "bf16":
        return {stored.name: (stored.shape_there(shape), FLOATING)}
    dtype, bytes_of_group = CODE_DTYPES[format]
    groups = (shape[1 - inner], -(-shape[inner] // GROUP))
    return {stored.name + CODES: ((*groups, bytes_of_group), (dtype,)),
            stored.name + SCALES: (groups, ("BF16",))}


def _packed(name, found, format, shape, inner):
    """One weight from its codes and scales."""
    codes, scales = (read(found[name + part][0]) for part in (CODES, SCALES))
    return backends.active().packed_from_parts(format, shape, inner, codes,
                                               rounded_to_bf16(scales))


def _read_config(file):
    """What a config.json says, of a `model_type` or a `_class_name` that is known; raises
    FormatError."""
    with opened(file) as (stream, _):
        stored = parse_json(stream.read(), file)
    key, known = (NAME, NETWORKS) if NAME in stored else ("model_type", MODELS)
    kind = stored.get(key)
    if not isinstance(kind, str) or kind not in known:
        raise FormatError(file, key, f"expected one of {', '.join(known)}, got "
                          f"{reprlib.repr(kind)}")
    return stored


def _class_of(stored):
    """The class of model that a config.json names."""
    return NETWORKS[stored[NAME]] if NAME in stored else MODELS[stored["model_type"]]


def _understand(stored, file, keys):
    """The model's class, its configuration, and the format of its packed weights or None; raises
    FormatError. `keys`: the names of the tensors."""
    body = _class_of(stored)
    try:
        if NAME in stored:      # its configuration knows its own keys alone
            found = body, body.config_from_hub(
                {key: value for key, value in stored.items() if key != QUANTIZATION})
        else:
            found = described(body, stored, keys)
        return *found, _read_format(file, stored)
    except ConfigError as problem:
        raise FormatError(file, None, str(problem).removeprefix(f"{CONFIG}: ")) from problem
    except (TypeError, ValueError, OverflowError) as problem:
        raise FormatError(file, None, f"a value is not of its type: {problem}") from problem


def _read_format(file, stored):
    """The format that `_quantization` has written, or None."""
    said = stored.get(QUANTIZATION)
    if said is None:
        return None
    for format in STORED:
        if {QUANTIZATION: said} == _quantization(format):
            return format
    raise FormatError(file, QUANTIZATION, "expected quant_method minifm in one of the formats "
                      f"{', '.join(STORED)}, got {reprlib.repr(said)}")


def _find_weights(directory, stem):
    """The file that lists the weights, and {key: Entry} of all; raises FormatError."""
    single, index = directory / (stem + ENDING), directory / (stem + INDEX_ENDING)
    if single.exists():
        return single, read_header(single)
    if index.exists():
        return index, _read_shards(index)
    raise no_weights(directory, f"neither {single.name} nor {index.name} is here")


def _read_shards(index):
    """{key: Entry} of the files that an index names; raises FormatError, telling what differs."""
    with opened(index) as (stream, _):
        places = parse_json(stream.read(), index).get("weight_map")
    if not isinstance(places, dict):
        raise FormatError(index, "weight_map", "expected an object of file names")
    for key, name in places.items():
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise FormatError(index, shown(key), "expected the name of a .safetensors file in this "
                              f"directory, got {reprlib.repr(name)}")
    entries, wrong = {}, []
    for name in sorted(set(places.values())):
        for key, entry in read_header(index.parent / name).items():
            if places.get(key) == name:
                entries[key] = entry
            else:
                wrong.append(f"{shown(name)} holds {shown(key)}, which is not listed there")
    wrong += [f"{shown(places[key])} lacks {shown(key)}" for key in places.keys() - entries.keys()]
    if wrong:
        raise FormatError(index, None, listed(sorted(wrong), "; "))
    return entries


def _check_size(config, file, entries):
    """Refuse a configuration far larger than its weights before it takes any memory.

    What is less far off is listed tensor by tensor, as is any small model.
    """
    held = sum(math.prod(entry.shape) for entry in entries.values())
    if config.parameters > 2 * held + (1 << 16) or config.layers > max(len(entries), 64):
        raise FormatError(file, None, f"{held} numbers in {len(entries)} tensors are not half of "
                          f"the model that {CONFIG} describes")
