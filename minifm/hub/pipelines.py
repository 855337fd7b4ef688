"""A directory of models that work as one, as other libraries lay it out:

    model_index.json        which library's class each part is of
    unet/ or transformer/   the network;  text_encoder/, vae/  what it works with
    tokenizer/, scheduler/

directory.py saves and loads the parts, each as a model's directory; here is what ties them.
"""

import re
from pathlib import Path

from minifm.atomic import write_json
from minifm.errors import FormatError
from minifm.hub.arrays import opened, parse_json

INDEX = "model_index.json"
TOKENIZER = "tokenizer"
NAME = "_class_name"
FOLDERS = {"unet": "network", "transformer": "network", "text_encoder": "encoder",
           "vae": "autoencoder"}
# Parts that are no models, or judge and change nothing of what is made here: a filter of pictures
# that were made (and what reads them for it), and an encoder of pictures for adapters.
BESIDE = (TOKENIZER, "scheduler", "safety_checker", "feature_extractor", "image_encoder")
_CLASS = re.compile(r"[A-Z]\w*")


def folder_of(name, part):
    """The folder of a Composite's part, a model, by its name there."""
    if name != "network":
        return {ours: theirs for theirs, ours in FOLDERS.items()}[name]
    return "unet" if type(part).__name__ == "UNet" else "transformer"


def write_index(directory, classes, tokenizer):
    """Write model_index.json; `classes` is {folder: what config.json says of its model}."""
    described = {NAME: _pipeline(classes), "_diffusers_version": "0.31.0"}
    for folder, config in classes.items():
        described[folder] = ["diffusers", config[NAME]] if NAME in config else \
            ["transformers", config["architectures"][0]]
    if tokenizer is not None:
        described[TOKENIZER] = ["transformers", "PreTrainedTokenizerFast"]
    if described[NAME] == "StableDiffusionPipeline":
        described |= {"safety_checker": [None, None], "feature_extractor": [None, None],
                      "requires_safety_checker": False}
    write_json(described, Path(directory) / INDEX)


def _pipeline(classes):
    """The class that makes pictures with such parts elsewhere; where there is none, that of all:
    then the parts open there one by one."""
    folders = frozenset(classes)
    return {frozenset(("unet", "text_encoder", "vae")): "StableDiffusionPipeline"}.get(
        folders, "DiffusionPipeline")


def add_scheduler(directory, class_name):
    """Name the class of the scheduler in the directory's index."""
    file = Path(directory) / INDEX
    write_json(read_index(file) | {"scheduler": ["diffusers", class_name]}, file)


def read_index(file):
    """What a model_index.json says; raises FormatError for what is no such thing."""
    with opened(file) as (stream, _):
        said = parse_json(stream.read(), file)
    if not isinstance(said.get(NAME), str):
        raise FormatError(file, NAME, f"expected the name of a class, got {said.get(NAME)!r:.80}")
    return said


def parts_in(directory):
    """{name of a Composite's part: its folder} in a directory; raises FormatError for parts that
    are not known here, or of which there is no network."""
    file, found = Path(directory) / INDEX, {}
    for key, value in read_index(file).items():
        if not isinstance(value, list) or value in ([None, None], []) or key in BESIDE:
            continue                                # a setting, or a part that is not there
        if len(value) != 2 or not all(isinstance(x, str) and x for x in value):
            raise FormatError(file, key, f"expected a library and a class, got {value!r:.80}")
        if key not in FOLDERS or FOLDERS[key] in found:
            raise FormatError(file, key, f"a pipeline with such a part, a {value[1]:.80}, is not "
                              f"supported; only {', '.join(FOLDERS)}")
        found[FOLDERS[key]] = Path(directory) / key
    if "network" not in found:
        raise FormatError(file, None, "names neither unet nor transformer")
    return found
