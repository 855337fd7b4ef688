"""From unlabelled text to a run that learns from it: corpus → tokenizer → tokens → model → Trainer.

A run's directory holds all that the run needs to go on:

    runs/NAME/
      run.json          the settings it was started with, and what they became
      tokens/           the corpus as token ids (text/shards.py)
      step-…/  last  best  metrics.jsonl  loss.png      (training/checkpoint.py)
"""

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import minifm
from minifm import backends
from minifm.atomic import atomic_file
from minifm.config import check, setting
from minifm.errors import ConfigError, FormatError
from minifm.hub import load_causal, resolve
from minifm.models import ARCHITECTURES, architecture_of, packed_format
from minifm.rng import Rng
from minifm.text import Tokenizer, shards
from minifm.text.corpus import Corpus, Documents
from minifm.text.packing import HeldOutBatches, TrainingBatches
from minifm.training import checkpoint, memory
from minifm.training.trainer import Trainer


@dataclass(frozen=True)
class TextConfig:
    """What a run reads, and how the text becomes tokens."""

    data: tuple[str, ...] = setting(
        (), "text: files, directories, globs, .jsonl, or - for standard input (default: the "
        "source of Python's standard library)")
    pattern: str | None = setting(
        None, "which files of a directory are read, such as *.py (default: all but hidden ones)")
    separator: str | None = setting(
        None, "a string that ends a document within a file (default: a file of a directory is a "
        "document, a file named by itself is cut at blank lines)")
    tokenizer: str | None = setting(
        None, "a tokenizer.json, a directory or hub name that has one, or 'bytes' for raw bytes "
        "(default: learn one from the training text)")
    vocabulary: int = setting(4096, "tokens of the vocabulary, where it is learnt", least=257)
    held_out: float = setting(
        0.05, "fraction of the documents that training never sees", above=0, below=1)
    apart: bool = setting(
        False, "documents that share a sequence do not see each other (default: they do, as in "
        "GPT-2; only the mark between them tells)")
    length: int | None = setting(
        None, "tokens of one training sequence (default: the model's context)", least=1)

    __post_init__ = check


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to train, and the parts of which it is made."""

    trainer: Trainer
    corpus: Corpus
    training: shards.Tokens
    held_out: shards.Tokens
    held_out_text: Documents


def prepare(directory, text, shape, config, *, arch=None, initial=None, resume=False,
            force=False, ceiling=None, shown=True):
    """The run in `directory`, new or (`resume`) taken up at its newest checkpoint.

    text     a TextConfig
    shape    {field: value} of the model's configuration; its vocabulary is the tokenizer's
    arch     which of models.ARCHITECTURES a new model is of (default: gpt)
    config   a TrainConfig
    initial  a model's directory or hub name to start from, in place of random weights
    ceiling  FLOP/s of this machine at its best, for the utilisation that is shown
    shown    say on standard error what is being done, and show a progress bar

    Raises ConfigError or FormatError before anything is written, wherever it can.
    """
    directory = _run_directory(directory, text)
    say = _say if shown else lambda line: None
    own = _own_tokenizer(directory, text, resume, force)
    if initial is not None:
        initial = resolve(initial)
    corpus = Corpus(text.data, pattern=text.pattern, separator=text.separator)
    parts = corpus.split(text.held_out, config.seed)
    say(f"reading {corpus.description}")
    tokenizer = own or _tokenizer(text, parts[0], initial, say)
    model = _model(arch, shape, tokenizer, config, initial)
    length = _length(text.length, model.config)
    memory.require_tokens(config.batch, length)
    say("turning it into tokens")
    tokens = [shards.store(part, tokenizer, directory / "tokens") for part in parts]
    say("measuring the memory that a step takes")
    trainer = Trainer(
        model, TrainingBatches(tokens[0], batch=config.batch, length=length, seed=config.seed,
                               apart=text.apart),
        config, directory=directory, tokenizer=tokenizer, shown=shown, ceiling=ceiling,
        held_out=HeldOutBatches(tokens[1], batch=config.batch, length=length,
                                apart=text.apart))
    if resume:
        trainer.resume(force=force)
    _write_run(directory, text, trainer, corpus)
    return Prepared(trainer, corpus, *tokens, parts[1])


def read_settings(directory):
    """The settings in a run's `run.json`; raises ConfigError where there is no run, FormatError
    for a damaged file."""
    file = Path(directory) / "run.json"
    if not file.exists():
        raise ConfigError(f"{directory}: there is no run to resume (no run.json)")
    try:
        return dict(json.loads(file.read_text("utf-8"))["settings"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(file, "settings", f"cannot be read: {error}") from error


def _run_directory(out, text):
    """The directory of the run, a Path; raises ConfigError for one that cannot be, or that lies
    within the text, which would read the run's own files when it is resumed."""
    if not os.fspath(out):
        raise ConfigError("out: expected a directory, got an empty name")
    directory = Path(os.path.expanduser(out))
    if os.path.lexists(directory) and not os.path.isdir(directory):
        raise ConfigError(f"{directory}: expected a directory, or a name that is free")
    for source in text.data:
        folder = Path(os.path.expanduser(source))
        if os.path.isdir(folder) and directory.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"out: {directory} lies within the text {source}; choose another")
    return directory


def _say(line):
    print(f"{line} …", file=sys.stderr, flush=True)


def _own_tokenizer(directory, text, resume, force):
    """The vocabulary of the run that is to be resumed; None for a new run.

    Raises ConfigError where the directory holds no run to resume, or one that is in the way, or
    one of another vocabulary (None then, with `force`).
    """
    steps = checkpoint.steps_in(directory)
    if not resume:
        if steps:
            raise ConfigError(f"{directory} already holds a run of {steps[-1]} steps: go on with "
                              "it by --resume, or choose another --out")
        return None
    if not steps:
        raise ConfigError(f"{directory} holds no checkpoint to resume from")
    stored, path = read_settings(directory), checkpoint.path_of(directory, steps[-1])
    asked = {"tokenizer": text.tokenizer, "vocabulary": text.vocabulary}
    lines = checkpoint.differences({key: stored.get(key) for key in asked}, asked)
    if lines and force:
        return None
    checkpoint.refuse_differences(path, lines)
    return Tokenizer.load(path)


def _tokenizer(text, training, initial, say):
    """The vocabulary of a new run: the initial model's, a given one, or one learnt here."""
    if initial is not None:
        if text.tokenizer is not None:
            raise ConfigError("tokenizer: the model to start from brings its own; leave it out")
        return Tokenizer.load(initial)
    if text.tokenizer is None:
        say(f"learning a vocabulary of {text.vocabulary:,} tokens from it")
        return Tokenizer.train((document.text for document in training), text.vocabulary)
    if text.tokenizer == "bytes":
        return Tokenizer.bytes()
    path = Path(text.tokenizer)
    return Tokenizer.load(path if path.is_file() else resolve(text.tokenizer))


def _model(arch, shape, tokenizer, config, initial):
    if initial is None:
        kind = ARCHITECTURES[arch or "gpt"]
        shape = kind.config(**shape | {"vocabulary": tokenizer.vocabulary})
        memory.require_parameters(shape.parameters, config)
        return kind.model(shape, Rng(config.seed).child("model"))
    if shape:
        raise ConfigError(f"{', '.join(shape)}: the model to start from has its own; leave it out")
    model = load_causal(initial)
    if arch not in (None, architecture_of(model)):
        raise ConfigError(f"arch: {initial} is of {architecture_of(model)}, not of {arch}")
    if packed_format(model):
        raise ConfigError(f"{initial}: its weights are packed as {packed_format(model)}, and are "
                          "not trained; start from the model that they were made of")
    if model.config.vocabulary < tokenizer.vocabulary:
        raise ConfigError(f"{initial}: the tokenizer has {tokenizer.vocabulary} tokens, the model "
                          f"knows {model.config.vocabulary}")
    return model


def _length(length, shape):
    if length is not None and length > shape.context:
        raise ConfigError(f"length: expected at most the model's context of {shape.context}, "
                          f"got {length}")
    return length or shape.context


def _write_run(directory, text, trainer, corpus):
    """run.json: the settings by which a run is resumed, and for people what they became."""
    shape = asdict(trainer.model.config)
    del shape["vocabulary"]                     # it is the tokenizer's
    run = {
        "settings": {"arch": architecture_of(trainer.model)} | asdict(text) | shape
        | asdict(trainer.config),
        "minifm": minifm.__version__, "python": platform.python_version(),
        "backend": backends.active().describe(),
        "parameters": trainer.model.config.parameters,
        "corpus": {"description": corpus.description, "documents": corpus.count,
                   "bytes": corpus.size, "sha256": corpus.sha256, "skipped": corpus.skipped},
        "data": {"training": trainer.batches.description,
                 "held_out": trainer.held_out.description},
    }
    with atomic_file(directory / "run.json") as file:
        file.write((json.dumps(run, indent=2) + "\n").encode())
