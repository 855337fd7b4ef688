"""A run's directory: where it may lie, what it was made with, and what it goes on from.

Each verb that trains keeps its settings in `run.json`; only that verb resumes the run.
"""

import json
import os
import platform
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import minifm
from minifm import backends
from minifm.atomic import write_json
from minifm.errors import ConfigError, FormatError, why
from minifm.hub import load_model
from minifm.models import architecture_of, network_of
from minifm.training import checkpoint


def run_directory(out, sources):
    """The directory of the run, a Path; raises ConfigError for one that cannot be, or that lies
    within one of the sources, which would read the run's own files when it is resumed."""
    if not os.fspath(out):
        raise ConfigError("out: expected a directory, got an empty name")
    directory = Path(os.path.expanduser(out))
    if os.path.lexists(directory) and not os.path.isdir(directory):
        raise ConfigError(f"{directory}: expected a directory, or a name that is free")
    for source in sources:
        folder = Path(os.path.expanduser(source))
        if os.path.isdir(folder) and directory.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"out: {directory} lies within the text {source}; choose another")
    return directory


def begin(directory, sources, resume, shown):
    """(the directory of a run that learns from the sources, a Path; the checkpoint to go on from,
    or None; say(line), which says what is being done where it is to be `shown`). Raises ConfigError
    for a directory that will not do."""
    directory = run_directory(directory, sources)
    newest = newest_checkpoint(directory, resume)
    require_writable(directory)
    return directory, newest, say_on_stderr if shown else lambda line: None


def require_writable(directory, *files):
    """Raise ConfigError unless files can be made in `directory`, or it can be made itself, and no
    directory stands in the place of one of `files`, which are going to be written there."""
    for file in files:
        if (directory / file).is_dir():
            raise ConfigError(f"out: {directory / file}: expected a file, or a name that is free, "
                              "found a directory")
    place = next(path for path in (directory, *directory.absolute().parents)
                 if os.path.lexists(path))
    try:
        with tempfile.TemporaryDirectory(prefix=".minifm-", dir=place):
            pass
    except OSError as error:
        raise ConfigError(f"out: {directory}: nothing can be written in {place} "
                          f"({error.strerror})") from error


def newest_checkpoint(directory, resume):
    """The path of the checkpoint to go on from, None for a new run. Raises ConfigError where the
    directory holds no run to resume, or one that is in the way."""
    steps = checkpoint.steps_in(directory)
    if steps and not resume:
        raise ConfigError(f"{directory} already holds a run of {steps[-1]} steps: go on with it by "
                          "--resume, or choose another --out")
    if resume and not steps:
        raise ConfigError(f"{directory} holds no checkpoint to resume from")
    return checkpoint.path_of(directory, steps[-1]) if resume else None


def model_to_resume(path, arch, shape):
    """The model of the checkpoint at `path`. Raises ConfigError listing every difference where it
    is not of the architecture `arch` (None: of any), or not of the `shape`, {setting: value}, that
    is asked for.
    """
    model = load_model(path)
    stored = {"arch": architecture_of(model)} | asdict(network_of(model).config)
    asked = {"arch": arch or stored["arch"]} | shape
    own = {key: stored.get(key) for key in asked}
    checkpoint.refuse_differences(path, checkpoint.differences(
        *(json.loads(json.dumps(settings)) for settings in (own, asked))))
    return model


def write_run(directory, verb, settings, trainer, **more):
    """run.json: which verb made the run, the settings by which it is resumed, and for people what
    they became."""
    write_json({
        "verb": verb, "settings": settings,
        "minifm": minifm.__version__, "python": platform.python_version(),
        "backend": backends.active().describe(),
        "parameters": trainer.model.config.parameters,
        "data": {"training": trainer.batches.description,
                 "held_out": trainer.held_out.description}, **more,
    }, directory / "run.json")


def read_settings(directory, verb=None):
    """The settings in the `run.json` of a run that `verb` made (None: any verb); raises ConfigError
    where there is no run, or one of another verb, FormatError for a damaged file."""
    file = Path(directory) / "run.json"
    if not file.exists():
        raise ConfigError(f"{directory}: there is no run to resume (no run.json)")
    try:
        run = json.loads(file.read_text("utf-8"))
        made, settings = run.get("verb", "pretrain"), dict(run["settings"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(file, "settings", f"cannot be read: {why(error)}") from error
    if verb not in (None, made):
        raise ConfigError(f"{directory}: is a run of {made}, which resumes it")
    return settings


def say_on_stderr(line):
    """What is being done, which may take a while."""
    print(f"{line} …", file=sys.stderr, flush=True)
