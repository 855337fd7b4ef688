"""Checkpoints of a run: complete numbered directories, of which one can resume bitwise.

    runs/NAME/
      step-00000500/            opens in other libraries: config.json, model.safetensors, …; of a
                                model with adapters, these alone: adapter_config.json, …
        trainer_state/          optimizer.safetensors, state.json
      last -> step-00000500     best -> step-00000250
      metrics.jsonl  loss.png

A directory appears under its name by one rename, when all of it is on disk, so whatever is called
step-… is whole, even after kill -9 at any moment. `last` and `best` are for people and commands;
resuming asks for the newest directory itself.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np

from minifm import backends, hub
from minifm.atomic import atomic_directory, replace_link
from minifm.backends.reference.packed import Packed
from minifm.errors import ConfigError, FormatError, listed
from minifm.hub.pipelines import parts_in
from minifm.models import Composite
from minifm.nn import adapter_config, trainable

FORMAT = 1
PLANNED = re.compile(r"config\.steps: (\d+) in the checkpoint, (\d+) now")
# Of what names the data, the digests and lengths, and what it means that they are others.
OTHER_DATA = {re.compile(r"data\.\w+\.(corpus|tokens): "): "the text is another one",
              re.compile(r"data\.\w+\.tokenizer: "): "the vocabulary is another one",
              re.compile(r"data\.\w+\.(sha256|rows): "):
                  "the examples, as rows of tokens, are other ones"}
DIGEST = re.compile(r"[0-9a-f]{64}")
STEP_NAME = re.compile(r"step-(\d{8,})")
STATE, OPTIMIZER = "trainer_state/state.json", "trainer_state/optimizer.safetensors"


def path_of(directory, step):
    """Where the checkpoint after `step` steps lies."""
    return Path(directory) / f"step-{step:08d}"


def steps_in(directory):
    """The steps of the checkpoints in a run's directory, ascending."""
    found = (STEP_NAME.fullmatch(entry.name) for entry in _entries(directory) if entry.is_dir())
    return sorted(int(match[1]) for match in found if match)


def write(directory, step, *, model, tokenizer, optimizer, state, companion=None):
    """Save a checkpoint atomically, and point `last` (and `best`, if it is this one) at it;
    `companion.save(directory)` writes what else belongs to the model.

    With a moving average the model's files hold the averaged weights. Returns the path.
    """
    path = path_of(directory, step)
    with atomic_directory(path) as aside:
        if optimizer.averages:
            with optimizer.averaged():
                hub.save_model(model, aside, tokenizer)
        else:
            hub.save_model(model, aside, tokenizer)
        if companion is not None:
            companion.save(aside)
        (aside / STATE).parent.mkdir()
        hub.save_arrays(optimizer.state(), aside / OPTIMIZER)
        digests = {str(file.relative_to(aside)): _digest(file)
                   for file in sorted(aside.rglob("*.safetensors"))}
        with open(aside / STATE, "w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, **state, "sha256": digests}, file, indent=2)
    link(directory, step, state["best"])
    return path


def link(directory, step, best):
    """Set `last` to `step` and `best` to best["step"], as far as those checkpoints exist."""
    for name, target in (("last", step), ("best", best and best["step"])):
        if target is not None and path_of(directory, target).exists():
            replace_link(Path(directory) / name, path_of(directory, target).name)


def prune(directory, keep, best):
    """Delete all but the last `keep` checkpoints and the best; one is first renamed away, so that
    no half of it is ever found under its name."""
    directory = Path(directory)
    for entry in _entries(directory):
        # A kill came between renaming and deleting.
        if entry.name.startswith(".old-") and entry.is_dir():
            shutil.rmtree(entry)
    steps = steps_in(directory)
    for step in steps[: max(0, len(steps) - keep)]:
        if not best or step != best["step"]:
            path = path_of(directory, step)
            aside = directory / f".old-{path.name}"
            os.rename(path, aside)
            shutil.rmtree(aside)


def read_state(path):
    """The contents of state.json; raises FormatError."""
    file = Path(path) / STATE
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise FormatError(file, None, f"no trainer state can be read: {problem}") from None
    needed = {"format": int, "step": int, "updates": int, "skipped": int, "tokens": int,
              "best": (dict, type(None)), "config": dict, "model": dict, "data": dict,
              "sha256": dict}
    for key, kind in needed.items():
        if not isinstance(state, dict) or not isinstance(state.get(key, ...), kind):
            raise FormatError(file, key, "is missing or not of its type")
    if state["format"] != FORMAT:
        raise FormatError(file, "format", f"is {state['format']}, this version reads {FORMAT}")
    best = state["best"]
    if path_of(Path(path).parent, state["step"]).name != Path(path).name:
        raise FormatError(file, "step", f"is {state['step']} in {Path(path).name}")
    if not 0 <= state["updates"] <= state["step"] or not 0 <= state["skipped"] <= state["step"]:
        raise FormatError(file, "updates", f"{state['updates']} updates and {state['skipped']} "
                          f"skipped steps in {state['step']} steps")
    if best is not None and not (
            isinstance(best.get("step"), int) and isinstance(best.get("loss"), float)
            and 0 <= best["step"] <= state["step"]):
        raise FormatError(file, "best", f"expected a loss and a step, got {best!r:.80}")
    return state


def check_whole(path, state):
    """Raise FormatError unless every file of arrays is what `write` has written, to the bit."""
    for name, digest in state["sha256"].items():
        file = Path(path) / name
        if not file.is_file():
            raise FormatError(file, None, "is missing")
        if _digest(file) != digest:
            raise FormatError(file, None, "is damaged: its contents are not those that were saved")


def read_weights(path, model, optimizer, updates):
    """Put the checkpoint's weights into `model` and its moments into `optimizer`.

    Raises FormatError, and changes nothing, unless every array is there and fits.
    """
    path = Path(path)
    if adapter_config(model) is None:
        stored, needed = _weights_of(hub.load_model(path)), model.parameters()
    else:                               # what they adapt is not in the checkpoint, nor changed
        stored, needed = _adapters_of(model, path), trainable(model)
    wrong = [f"{name} is {list(stored[name].shape) if name in stored else 'missing'}, expected "
             f"{list(p.shape)}" for name, p in needed.items()
             if name not in stored or stored[name].shape != p.shape]
    if wrong:
        raise FormatError(path, None, listed(wrong, "; "))
    optimizer.load(hub.load_arrays(path / OPTIMIZER), updates, path / OPTIMIZER)
    trained = optimizer.parameters if optimizer.averages else {}    # those are in its own file
    for name, parameter in needed.items():
        if name not in trained and not isinstance(parameter.data, Packed):      # that is frozen
            array = np.array(stored[name], parameter.dtype)
            parameter.data = backends.active().from_numpy(array)
            parameter.version += 1


def _adapters_of(model, path):
    """{name: array} of the adapters in a checkpoint of `model`, those of its network where it is a
    Composite."""
    if not isinstance(model, Composite):
        return hub.read_adapter(model, path)[1]
    found = hub.read_adapter(model.network, parts_in(path)["network"])[1]
    return {f"network.{name}": array for name, array in found.items()}


def _weights_of(model):
    return {name: p.numpy() for name, p in model.parameters().items()}


def differences(stored, own, free=()):
    """One line for each entry in which two (nested) dictionaries differ, but those in `free`."""
    lines = []
    for key in sorted(stored.keys() | own.keys()):
        was, now = stored.get(key, "absent"), own.get(key, "absent")
        if isinstance(was, dict) and isinstance(now, dict):
            lines += [f"{key}.{line}" for line in differences(was, now, free)]
        elif was != now and key not in free:
            lines.append(f"{key}: {_shown(was)} in the checkpoint, {_shown(now)} now")
    return lines


def _shown(value):
    """As a message shows it: of a digest the beginning."""
    return f"{value[:8]}…" if isinstance(value, str) and DIGEST.fullmatch(value) else repr(value)


def refuse_differences(path, lines):
    """Raise ConfigError that tells how the run and the checkpoint differ, if they do."""
    for digests, other in OTHER_DATA.items():
        lines = _in_one(lines, digests, f"{other} than in the checkpoint")
    if len(lines) == 1 and (steps := PLANNED.fullmatch(lines[0])):
        raise ConfigError(f"{path}: the run was planned for {steps[1]} steps, not {steps[2]}; "
                          "--force changes that, and the learning rate's way to its end with it")
    if lines:
        raise ConfigError(f"{path} was made by another run than this one (--force goes on anyway): "
                          + listed(lines, "; "))


def _in_one(lines, alike, said):
    """`lines` of differences, of which those that begin `alike` are one, and plainly `said`."""
    others = [line for line in lines if not alike.match(line)]
    return lines if len(others) == len(lines) else [said, *others]


def _digest(file):
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _entries(directory):
    directory = Path(directory)
    return sorted(directory.iterdir()) if os.path.isdir(directory) else []
