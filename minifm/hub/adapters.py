"""Adapters in the layout of the `peft` library: a small directory beside a model.

    adapter_config.json         of which model, which of its layers, rank and scale
    adapter_model.safetensors   of an adapted layer L, by the name that the model's own files have
                                for it: base_model.model.L.lora_A.weight [r, inputs] and
                                base_model.model.L.lora_B.weight [outputs, r]; of parts that were
                                trained whole, their tensors: base_model.model.NAME
    adapter_base.json           which weights it has learnt over (base.py); ours alone

A layer that is a convolution in files, and a matrix here, has convolutions for adapters, too:
A has its window, B a window of 1. Pipelines of diffusion read a file of another name, which is
written beside these for their networks, and read where it comes alone:

    pytorch_lora_weights.safetensors    unet.L.lora_A.weight, or transformer.L…; for want of a place
                                that all readers know, the scale is in B, so that alpha is the rank

`fan_in_fan_out` says how the adapted weight lies in the model's files; the adapter's own matrices
lie as above whatever it says, and so it is written and not read. Kinds of adapters that compute
something else (DoRA, ranks that differ between layers, adapters of embeddings, …) are refused.
"""

import re
import reprlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from minifm import backends
from minifm.atomic import write_json
from minifm.errors import ConfigError, FormatError, UserError
from minifm.hub.arrays import opened, parse_json, read_header, read_metadata, save_arrays
from minifm.hub.base import check_base, write_base
from minifm.hub.locate import ADAPTER, resolve
from minifm.hub.matching import FLOATING, float32_of, misfits, no_weights, sort_out, spellings, told
from minifm.models.stored import Stored
from minifm.nn import LoRA, adapter_config, trainable
from minifm.nn.adapter import AdapterConfig, adapted_layers, attach, linear_layers, require_plain
from minifm.nn.freezing import matches
from minifm.text.older_files import VOCABULARIES

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
PIPELINE_WEIGHTS = "pytorch_lora_weights.safetensors"
ALL_WEIGHTS = WEIGHTS, PIPELINE_WEIGHTS
PIPELINE_SETTINGS = "lora_adapter_metadata"         # where its header has settings, if it does
_PRODUCT = re.compile(r"(.+)\.(lora_[AB])\.weight")
_OLDER_PRODUCT = re.compile(r"(.+?)(?:\.processor\.(to_\w+)_lora|\.lora)\.(down|up)\.weight")
MATRICES = {"lora_A": "down", "lora_B": "up"}       # of a LoRA
# What the library calls a model's task, by the end of its architecture.
TASKS = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM",
         "ForConditionalGeneration": "SEQ_2_SEQ_LM", "MTModel": "SEQ_2_SEQ_LM",
         "ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS",
         "ForQuestionAnswering": "QUESTION_ANS", "Model": "FEATURE_EXTRACTION"}
# {our setting: (theirs, what they take for granted)}
SETTINGS = {"rank": ("r", 8), "alpha": ("lora_alpha", 8), "dropout": ("lora_dropout", 0.0),
            "rank_stabilised": ("use_rslora", False), "base": ("base_model_name_or_path", None)}
# Settings that are read here, and settings that say nothing of what an adapter computes once it
# has been trained. Any other must be empty: who knows what it would mean.
READ = {"peft_type", "target_modules", "modules_to_save"} | {key for key, _ in SETTINGS.values()}
SILENT = {"auto_mapping", "corda_config", "ensure_weight_tying", "eva_config", "fan_in_fan_out",
          "inference_mode", "init_lora_weights", "loftq_config", "lora_ga_config",
          "megatron_config", "megatron_core", "peft_version", "qalora_group_size", "revision",
          "runtime_config", "task_type"}


# -- out -----------------------------------------------------------------------------------------


def save_adapter(model, directory, *, base=None):
    """Write the adapters of `model`, and all else that is trained, into an existing directory.

    base   what the files call the model that is adapted, a directory or a name on the hub
           (default: what its AdapterConfig says)

    Raises ConfigError for a model without adapters, or a trained part that files cannot name;
    UserError where the directory does not exist or the disk refuses.
    """
    directory, config = Path(directory), adapter_config(model)
    if config is None:
        raise ConfigError("save_adapter: this model has no adapters")
    if not directory.is_dir():
        raise UserError(f"{directory}: expected a directory that exists")
    layers, names = _layer_names(model), model.stored_names(model.config)
    adapted = {place for name in adapted_layers(model) for place in layers[name]}
    modules = {place.rpartition(".")[0] for stored in names.values() for place in _places(stored)}
    whole = _whole_modules(model, names)
    said = {
        "base_model_name_or_path": base or config.base, "bias": "none",
        "fan_in_fan_out": not any(names[f"{name}.weight"].transposed for name in layers),
        "inference_mode": True, "init_lora_weights": True, "lora_alpha": _plain(config.alpha),
        "lora_dropout": config.dropout, "modules_to_save": whole or None, "peft_type": "LORA",
        "r": config.rank, "target_modules": _endings(adapted, modules),
        "task_type": _task(model), "use_rslora": config.rank_stabilised}
    products = _products_of(model, layers, names)
    save_arrays({PREFIX + name: array for name, array in products.items()}
                | _arrays_of(model, names, whole), directory / WEIGHTS)
    write_json(said, directory / ADAPTER)
    write_base(model, directory, {ours for ours in names if _within(names[ours].name, whole)})
    if model.folder is not None and not whole:      # these files know adapters alone
        scale = np.float32(config.scale)
        save_arrays({f"{model.folder}.{name}": array * scale if ".lora_B." in name else array
                     for name, array in products.items()}, directory / PIPELINE_WEIGHTS)


def _products_of(model, layers, names):
    """{name in a file, but for what it begins with: NumPy array} of all adapters."""
    arrays, to_numpy = {}, backends.active().to_numpy
    for ours, layer in adapted_layers(model).items():
        for part, name in MATRICES.items():
            there = _matrix(names[f"{ours}.weight"], part, layer.adapter.config.rank)
            array = there.array_there(to_numpy(getattr(layer.adapter, name).data))
            arrays |= {f"{place}.{part}.weight": array for place in layers[ours]}
    return arrays


def _arrays_of(model, names, whole):
    """{name in the file: NumPy array} of what is trained whole."""
    arrays, to_numpy = {}, backends.active().to_numpy
    for ours, parameter in model.parameters().items():
        if ours in names and _within(names[ours].name, whole):
            array = names[ours].array_there(to_numpy(parameter.data))
            arrays |= {PREFIX + place: array for place in _places(names[ours])}
    return arrays


def _matrix(weight, part, rank):
    """How a matrix of the adapter of a weight, that lies in files as `weight` says, lies there."""
    if weight.shape is None:
        return Stored("", transposed=True)
    outputs, inputs, *window = weight.shape
    return Stored("", transposed=True, shape=(
        (rank, inputs, *window) if part == "lora_A" else (outputs, rank, *(1 for _ in window))))


def _places(stored):
    """All names that a tensor has in files."""
    return stored.name, *stored.copies


def _layer_names(model):
    """{our name of each linear layer: its names in the model's files, of which the first counts}.
    """
    names = model.stored_names(model.config)
    return {ours: tuple(place.removesuffix(".weight") for place in _places(names[f"{ours}.weight"]))
            for ours in linear_layers(model)}


def _whole_modules(model, names):
    """The largest modules, by their names in files, of which every parameter is trained itself.

    Raises ConfigError for a parameter that stands beside modules: files name modules, and a module
    may hold more than this model's parameters, such as a tied table.
    """
    everything, found = {place for stored in names.values() for place in _places(stored)}, set()
    trained = {place for ours in trainable(model) if ours in names
               for place in _places(names[ours])}
    for name in trained:
        *above, last = _above(name) or [""]
        if not last or any(other.startswith(last + ".") and other.count(".") > name.count(".")
                           for other in everything):
            raise ConfigError(f"save_adapter: {name} is trained and stands beside other parts of "
                              f"its module, {last or 'the model'}; files of adapters cannot say "
                              "that: freeze it")
        found.add(next((module for module in above
                        if not any(_within(other, [module]) for other in everything - trained)),
                       last))
    return sorted(found)


def _within(name, modules):
    return any(name.startswith(module + ".") for module in modules)


def _endings(chosen, names):
    """The shortest endings, in whole words between dots, that fit each of `chosen` and no other of
    `names`: how files say which layers are adapted."""
    others, found = names - chosen, []
    for name in sorted(chosen):
        if not any(matches(name, ending) for ending in found):
            words = name.split(".")
            tried = (".".join(words[i:]) for i in reversed(range(len(words))))
            found.append(next((ending for ending in tried
                               if not any(matches(other, ending) for other in others)), name))
    return found


def _plain(number):
    return int(number) if number == int(number) else number


def _task(model):
    architecture = model.config_to_hub(model.config).get("architectures", [""])[0]
    return next((task for ending, task in TASKS.items() if architecture.endswith(ending)), None)


# -- in ------------------------------------------------------------------------------------------


def load_adapter(model, directory):
    """Give `model` the adapters in a directory, and freeze all that they do not train.

    Raises FormatError, and changes nothing, for anything in the directory that is not as expected;
    tensors that are missing, unknown or of another shape, as those of an adapter for another model
    are, are told in one. So are weights of the model other than those that it has learnt over
    (base.py). Raises ConfigError for a model that has adapters.
    """
    require_plain(model)
    config, arrays = read_adapter(model, directory)
    adapters, parameters = {}, model.parameters()
    for name, layer in linear_layers(model).items():
        if f"{name}.adapter.down" in arrays:
            adapters[name] = LoRA(*layer.weight.shape, config, rng=None)
            for part, matrix in adapters[name].parameters().items():
                matrix.data = backends.active().from_numpy(arrays[f"{name}.adapter.{part}"])
    modules = model.modules()
    try:
        attach(model, adapters, {name: modules[name] for name in config.whole})
    except ConfigError as problem:
        raise FormatError(Path(directory) / ADAPTER, "lora_dropout", str(problem)) from problem
    for name in arrays.keys() & parameters.keys():
        parameters[name].data = backends.active().from_numpy(arrays[name])
        parameters[name].version += 1


def read_adapter(model, directory):
    """(the AdapterConfig, {name of our parameter: NumPy array, float32}) in a directory, for
    `model`, which may have adapters or not. Raises FormatError."""
    directory = Path(directory)
    file, prefix = directory / WEIGHTS, PREFIX
    if _is_of_pipeline(directory):
        file, prefix = directory / PIPELINE_WEIGHTS, f"{model.folder}."
        config, targets, modules = _read_pipeline_config(file, prefix)
    else:
        config, targets, modules = _read_config(directory / ADAPTER)
    if not file.exists():
        raise no_weights(directory, f"{WEIGHTS} is not here")
    entries, accepted = read_header(file), partial(_accepted, model.accepted_name, prefix)
    targeted = _targeted(_layer_names(model), prefix, targets, entries, accepted)
    slots, meant, whole = _slots(model, prefix, targeted, config.rank, modules)
    found, unknown = sort_out(entries, slots, [], accepted)
    wrong = misfits(found, slots)
    if not targeted:
        wrong.append(f"target_modules {targets!r:.200} name no linear layer")
    if unknown or wrong:
        what = f"{ADAPTER} and " if prefix == PREFIX else ""
        raise FormatError(file, None, f"does not fit {what}this model, a "
                          f"{type(model).__name__}: {told(unknown, wrong)}")
    check_base(model, directory, whole)
    arrays = {ours: stored.array_here(float32_of(found[name]), shape)
              for name, (ours, stored, shape) in meant.items()}
    return replace(
        config, targets=tuple(_endings(set(targeted), set(linear_layers(model)))),
        whole=_parts_of(model, whole)), arrays


def _targeted(layers, prefix, targets, entries, accepted):
    """Our names of the adapted ones of `layers`, {ours: theirs}: by the list of endings that
    `target_modules` is, or, where that is a regular expression or nothing, by the tensors that are
    there (an expression can take for ever)."""
    if isinstance(targets, list):
        return [ours for ours, theirs in layers.items()
                if any(matches(theirs[0], target) for target in targets)]
    there = {name for key in entries for name in spellings(key, accepted)}
    return [ours for ours, theirs in layers.items()
            if not there.isdisjoint(spellings(f"{prefix}{theirs[0]}.{part}.weight", accepted)[0]
                                    for part in MATRICES)]


def _slots(model, prefix, targeted, rank, modules):
    """({name in the file: (shape, dtypes)}, {the same name: (our name, a Stored that says how it
    lies there, its shape here)}, our names of what was trained whole)."""
    layers, names, parameters = _layer_names(model), model.stored_names(model.config), \
        model.parameters()
    slots, meant = {}, {}
    for ours in targeted:
        inputs, outputs = parameters[f"{ours}.weight"].shape
        for part, shape in (("lora_A", (inputs, rank)), ("lora_B", (rank, outputs))):
            name = f"{prefix}{layers[ours][0]}.{part}.weight"
            there = _matrix(names[f"{ours}.weight"], part, rank)
            slots[name] = there.shape_there(shape), FLOATING
            meant[name] = f"{ours}.adapter.{MATRICES[part]}", there, shape
    whole = [ours for ours in parameters if ours in names and any(
        matches(part, module) for part in _above(names[ours].name) for module in modules)]
    for ours in whole:
        theirs, shape = names[ours], parameters[ours].shape
        slots[PREFIX + theirs.name] = (theirs.shape_there(shape), FLOATING)
        meant[PREFIX + theirs.name] = ours, theirs, shape
    return slots, meant, whole


def _accepted(accepted_name, prefix, key):
    """The present spelling of a key of an adapter's file. Files of pipelines may leave out what
    keys begin with, and had other names once."""
    name = key.removeprefix(prefix)
    if prefix == PREFIX and name == key:
        return key
    older = None if prefix == PREFIX else _OLDER_PRODUCT.fullmatch(name)
    if older:
        layer = older[1] if older[2] is None else \
            f"{older[1]}.{'to_out.0' if older[2] == 'to_out' else older[2]}"
        name = f"{layer}.lora_{'A' if older[3] == 'down' else 'B'}.weight"
    product = _PRODUCT.fullmatch(name)
    if product is None:
        return tuple(prefix + (name or "") for name in spellings(name, accepted_name))
    layers = spellings(f"{product[1]}.weight", accepted_name)
    return tuple(f"{prefix}{(layer or '').removesuffix('.weight')}.{product[2]}.weight"
                 for layer in layers)


def _above(name):
    """The names of the modules that hold a tensor, from the outermost: of a.b.weight, a and a.b."""
    words = name.split(".")
    return [".".join(words[:i]) for i in range(1, len(words))]


def _parts_of(model, parameters):
    """The largest parts of `model` that hold nothing but these `parameters`."""
    parts = {name for name, part in model.modules().items() if name and part.parameters()
             and all(f"{name}.{inner}" in parameters for inner in part.parameters())}
    return tuple(sorted(name for name in parts if not _within(name, parts - {name})))


# -- the configuration ---------------------------------------------------------------------------


def is_adapter(directory):
    """Whether a directory holds an adapter, not a model."""
    return (Path(directory) / ADAPTER).exists() or _is_of_pipeline(directory)


def _is_of_pipeline(directory):
    """Whether an adapter comes in a pipeline's file alone."""
    return (Path(directory) / PIPELINE_WEIGHTS).exists() and not any(
        (Path(directory) / name).exists() for name in (ADAPTER, "config.json", "model_index.json"))


def tokenizer_of(directory):
    """The directory, a Path, of the tokenizer of the model or adapter in `directory`: an adapter's
    own, or that of its model."""
    own = has_tokenizer(directory) or not is_adapter(directory)
    return Path(directory) if own else base_of(directory)


def has_tokenizer(directory):
    """Whether a tokenizer lies in a directory."""
    return any((Path(directory) / name).exists() for name in VOCABULARIES)


def base_of(directory):
    """The directory, a Path, of the model that the adapter in `directory` is of; raises
    FormatError where that is not to be had."""
    file = Path(directory) / ADAPTER
    if _is_of_pipeline(directory):
        raise FormatError(directory, None, f"{PIPELINE_WEIGHTS} does not say of which model this "
                          "is an adapter: merge it into that by minifm merge --base MODEL")
    name = _read_config(file)[0].base
    if not name:
        raise FormatError(file, "base_model_name_or_path", "does not say of which model this is "
                          "an adapter: load that model and give it this by load_adapter")
    try:
        base = resolve(name)
    except UserError as problem:
        raise FormatError(file, "base_model_name_or_path", str(problem)) from problem
    if is_adapter(base):
        raise FormatError(file, "base_model_name_or_path", f"{name} is an adapter itself: merge "
                          "that into its model first")
    return base


def _read_config(file):
    """(an AdapterConfig without targets, target_modules, modules_to_save), checked as far as can be
    without the model; raises FormatError."""
    with opened(file) as (stream, _):
        return _understood(parse_json(stream.read(), file), file)


def _read_pipeline_config(file, prefix):
    """The same of a pipeline's file: from its header, or else from the shapes of its tensors."""
    said = read_metadata(file).get(PIPELINE_SETTINGS)
    if said is not None:
        stored = parse_json(said.encode("utf-8", "replace"), file)
        return _understood({key.removeprefix(prefix): value for key, value in stored.items()}, file)
    ranks = {entry.shape[0] for key, entry in read_header(file).items() if entry.shape
             and re.search(r"(lora_A|down)\.weight$", key)}
    if len(ranks) > 1:
        raise FormatError(file, None, f"adapters of several ranks, {sorted(ranks)}, are not "
                          "supported")
    rank = max(ranks, default=1)
    return _understood({"peft_type": "LORA", "r": rank, "lora_alpha": rank}, file)


def _understood(stored, file):
    """(an AdapterConfig without targets, target_modules, modules_to_save) of settings."""
    if stored.get("peft_type") != "LORA":
        raise FormatError(file, "peft_type", "expected LORA, the one kind of adapter that is "
                          f"known here, got {reprlib.repr(stored.get('peft_type'))}")
    _check_kind(file, stored)
    targets, modules = stored.get("target_modules"), stored.get("modules_to_save") or []
    _check_names(file, "modules_to_save", modules)
    if not isinstance(targets, str) and file.name == ADAPTER:   # others need not say them
        _check_names(file, "target_modules", targets)
    try:
        return AdapterConfig(
            **{ours: stored.get(theirs, default) for ours, (theirs, default) in SETTINGS.items()},
            targets=()), targets, modules
    except ConfigError as problem:
        raise FormatError(file, None, str(problem)) from problem


def _check_names(file, key, names):
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FormatError(file, key, f"expected a list of names, got {reprlib.repr(names)}")


def _check_kind(file, stored):
    """Raise FormatError for a setting by which an adapter computes something else than LoRA."""
    neutral = (None, False, "none")
    for key, value in stored.items():
        if key not in READ | SILENT and value not in neutral and value not in ([], {}):
            raise FormatError(file, key, f"{reprlib.repr(value)} is not supported")
    initial = stored.get("init_lora_weights", True)
    if initial not in (True, False, "gaussian", "orthogonal", "eva"):
        raise FormatError(file, "init_lora_weights", f"{reprlib.repr(initial)} changes the weights "
                          "of the model, too, and is not supported")
