"""From unlabelled text to a run that learns from it: corpus → tokenizer → tokens → model → Trainer.

A run's directory holds all that the run needs to go on:

    runs/NAME/
      run.json          the settings it was started with, and what they became
      tokens/           the corpus as token ids (text/shards.py)
      step-…/  last  best  metrics.jsonl  loss.png      (training/checkpoint.py)
"""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from minifm.config import check, setting
from minifm.errors import ConfigError
from minifm.hub import load_model, resolve
from minifm.models import ARCHITECTURES, architecture_of, packed_format
from minifm.nn import adapter_config
from minifm.rng import Rng
from minifm.text import Tokenizer, shards
from minifm.text.corpus import Corpus, Documents
from minifm.text.packing import HeldOutBatches, TrainingBatches
from minifm.text.tokenizer import FIRST, MASK, PADDING, SENTINELS
from minifm.training import checkpoint, memory
from minifm.training.config import row_length
from minifm.training.objectives import LearningConfig, objective_of
from minifm.training.run import (
    model_to_resume,
    newest_checkpoint,
    read_settings,
    require_writable,
    run_directory,
    say_on_stderr,
    write_run,
)
from minifm.training.trainer import Trainer

# Settings of a model that follow from the tokenizer or from what is learnt.
NOT_CHOSEN = {"vocabulary", "padding", "start", "end", "pooler", "masked_head", "sentence_head",
              "reader", "absorbing"}
# What files call the dropout of attention's probabilities.
ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")


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
        "document; a file named by itself is cut at blank lines into documents of about 16 kB)")
    tokenizer: str | None = setting(
        None, "a tokenizer.json, a directory or hub name that has one, or 'bytes' for raw bytes "
        "(default: learn one from the training text)")
    vocabulary: int = setting(4096, "tokens of the vocabulary, where it is learnt", least=257)
    held_out: float = setting(
        0.05, "fraction of the documents that training never sees; at least one of them",
        above=0, below=1)
    apart: bool = setting(
        False, "documents that share a sequence do not see each other (default: they do, as in "
        "GPT-2; only the mark between them tells); other models than gpt and llama then read of "
        "each sequence its longest document")
    length: int | None = setting(
        None, "tokens of one training sequence, of an encoder-decoder's source (default: the "
        "model's context, 512 for a model without one)", least=1)

    __post_init__ = check


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to train, and the parts of which it is made."""

    trainer: Trainer
    corpus: Corpus
    training: shards.Tokens
    held_out: shards.Tokens
    held_out_text: Documents
    length: int                 # tokens of a sequence


def prepare(directory, text, shape, config, *, learning=LearningConfig(), arch=None, initial=None,
            adapt=None, verb="pretrain", also=(), resume=False, force=False, ceiling=None,
            shown=True):
    """The run in `directory`, new or (`resume`) taken up at its newest checkpoint.

    text     a TextConfig
    shape    {field: value} of the model's configuration; what its tokens are is the tokenizer's
    config   a TrainConfig
    learning a LearningConfig: what is to be guessed
    arch     which of models.ARCHITECTURES a new model is of (default: gpt)
    initial  a model's directory or hub name to start from, in place of random weights
    adapt    adapt(model) is called with the initial model, which must then be given for a run that
             is resumed, too: it may freeze weights and add adapters
    verb     of the command line, that makes this run, and resumes it
    also     {setting: value} to be kept in run.json beside those above
    ceiling  FLOP/s of this machine at its best, for the utilisation that is shown
    shown    say on standard error what is being done, and show a progress bar

    Raises ConfigError or FormatError before anything is written, wherever it can.
    """
    directory = run_directory(directory, text.data)
    say = say_on_stderr if shown else lambda line: None
    newest = newest_checkpoint(directory, resume)
    own = _own_tokenizer(directory, verb, newest, text, force)
    if initial is not None:
        initial = resolve(initial)
    model, objective = _begun(newest, text, shape, config, learning, arch, initial, adapt)
    if initial is not None:
        say_what_is_left_out(initial, say)
    require_writable(directory)
    if resume and "-" in text.data:
        say("this run has read standard input: pipe the same text in again")
    corpus = Corpus(text.data, pattern=text.pattern, separator=text.separator)
    parts = corpus.split(text.held_out, config.seed)
    say(f"reading {corpus.description}")
    tokenizer = own or choose_tokenizer(text, parts[0], initial, objective, say)
    _require_specials(tokenizer, objective)
    if model is None:
        say("making the weights")
        model = _new_model(arch or "gpt", shape | objective.shape | objective.teaches, tokenizer,
                           config)
    elif model.config.vocabulary < tokenizer.vocabulary:
        raise ConfigError(f"{initial or directory}: the tokenizer has {tokenizer.vocabulary} "
                          f"tokens, the model knows {model.config.vocabulary}")
    length = _row_length(text, model.config, objective)
    memory.require_tokens(config.batch, length)
    say("turning it into tokens")
    tokens = [shards.store(part, tokenizer, directory / "tokens") for part in parts]
    training, held_out = _batches(tokens, text, config, objective, tokenizer, length)
    say("measuring the memory that a step takes")
    trainer = Trainer(model, training, config, directory=directory, objective=objective,
                      held_out=held_out, tokenizer=tokenizer, shown=shown, ceiling=ceiling,
                      lengths=tokens[1].token_lengths(tokenizer))
    if resume:
        trainer.resume(force=force)
    _write_run(directory, verb, text, learning, trainer, corpus, dict(also))
    return Prepared(trainer, corpus, *tokens, parts[1], length)


def _begun(newest, text, shape, config, learning, arch, initial, adapt):
    """(the model to start from, or None for a new one; its objective); what a new one cannot be is
    refused before any text is read."""
    # What adapts a model begins with it again; `trainer.resume` then reads what it had learnt.
    model = _started_model(newest if adapt is None else None, arch, shape, initial)
    if adapt is not None:
        adapt(model)
    objective = objective_of(ARCHITECTURES[arch or "gpt"].model if model is None else type(model),
                             config.recompute, learning)
    if model is None:
        _check_shape(arch or "gpt", shape | objective.shape, objective, text, config)
    else:
        _check_parts(model, objective)
        model.config = replace(model.config, **objective.teaches)
    return model, objective


def _check_parts(model, objective):
    """Raise ConfigError for a model to start from that lacks what the objective learns with."""
    lacking = [name for name, value in objective.shape.items()
               if getattr(model.config, name) != value]
    if objective.shape and model.config.types < 2:
        lacking.append("types of tokens for a first and a second text")
    if lacking:
        raise ConfigError(f"the {objective.name} objective needs a model with "
                          f"{', '.join(lacking)}, and the one to start from has none")


def _own_tokenizer(directory, verb, path, text, force):
    """The vocabulary of the run that is to be resumed, whose newest checkpoint is at `path`; None
    for a new run. Raises ConfigError for one of another vocabulary (None then, with `force`)."""
    if path is None:
        return None
    stored = read_settings(directory, verb)
    asked = {"tokenizer": text.tokenizer, "vocabulary": text.vocabulary}
    lines = checkpoint.differences({key: stored.get(key) for key in asked}, asked)
    if lines and force:
        return None
    checkpoint.refuse_differences(path, lines)
    return Tokenizer.load(path)


def choose_tokenizer(text, training, initial, objective, say):
    """The vocabulary of a new run: the initial model's, a given one, or one learnt here."""
    if initial is not None:
        if text.tokenizer is not None:
            raise ConfigError("tokenizer: the model to start from brings its own; leave it out")
        return Tokenizer.load(initial)
    if text.tokenizer is None:
        say(f"learning a vocabulary of {text.vocabulary:,} tokens from it")
        return Tokenizer.train((document.text for document in training), text.vocabulary,
                               objective.special_tokens)
    if text.tokenizer == "bytes":
        return Tokenizer.bytes(objective.special_tokens)
    path = Path(text.tokenizer)
    return Tokenizer.load(path if path.is_file() else resolve(text.tokenizer))


def _require_specials(tokenizer, objective):
    """Raise ConfigError for a vocabulary that lacks what the objective marks places with."""
    roles = {FIRST: tokenizer.first, PADDING: tokenizer.padding, MASK: tokenizer.mask}
    lacking = [token for token in objective.special_tokens
               if roles.get(token, True) is None]
    if set(SENTINELS) <= set(objective.special_tokens) \
            and len(tokenizer.sentinels) < len(SENTINELS):
        lacking.append(f"{SENTINELS[0]} … {SENTINELS[-1]}")
    if lacking:
        raise ConfigError(f"tokenizer: the {objective.name} objective needs {', '.join(lacking)}, "
                          "and the vocabulary has no such special tokens; leave --tokenizer out "
                          "to learn one that has")


def of_tokenizer(config, tokenizer):
    """{setting: value} of a model's configuration class that only the tokenizer knows."""
    known = {"vocabulary": tokenizer.vocabulary, "padding": tokenizer.padding,
             "start": tokenizer.padding,        # an encoder-decoder begins to write with it
             "end": tokenizer.end_of_text}
    return {field.name: known[field.name] for field in fields(config) if field.name in known}


def _new_model(arch, shape, tokenizer, config):
    return ARCHITECTURES[arch].model(_whole_shape(arch, shape, tokenizer, config),
                                     Rng(config.seed).child("model"))


def _whole_shape(arch, shape, tokenizer, config):
    """The configuration of a new model; raises ConfigError where it makes no sense, or its
    weights do not fit the memory."""
    kind = ARCHITECTURES[arch]
    shape = kind.config(**shape | kind.fixed | of_tokenizer(kind.config, tokenizer))
    memory.require_parameters(shape.parameters, config)
    return shape


def _row_length(text, shape, objective):
    """Tokens of a row of a model of this configuration; raises ConfigError where the objective
    cannot do with rows as short as they are asked for."""
    length = row_length(text.length, shape)
    if objective.whole_context and length < shape.context:
        raise ConfigError(f"length: by the {objective.name} objective, rows are as long as the "
                          f"model's context of {shape.context}, got {length}; for shorter ones, "
                          "choose a model of less context")
    return length


def _check_shape(arch, shape, objective, text, config):
    """Raise ConfigError, before a long text is read, for what no vocabulary would make right: the
    smallest one stands in for it."""
    smallest = Tokenizer.bytes(objective.special_tokens)
    length = _row_length(text, _whole_shape(arch, shape, smallest, config), objective)
    memory.require_tokens(config.batch, length)


def _started_model(path, arch, shape, initial):
    """The model of the newest checkpoint, at `path`, or the one to start from; None: a new one is
    needed."""
    if path is not None:
        return model_to_resume(path, arch, shape)
    if initial is None:
        return None
    if shape:
        raise ConfigError(f"{', '.join(shape)}: the model to start from has its own; leave it out")
    model = load_model(initial)
    own = architecture_of(model)
    if arch is None and ARCHITECTURES[own].learns != "text":
        raise ConfigError(f"arch: {initial} learns from {ARCHITECTURES[own].learns}, not from "
                          f"text; say --arch {own}")
    if arch not in (None, own):
        raise ConfigError(f"arch: {initial} is of {own}, not of {arch}")
    require_plain_weights(model, initial)
    return model


def require_plain_weights(model, name):
    """Raise ConfigError for a model called `name` of which training could change but a part."""
    if adapter_config(model) is not None:
        raise ConfigError(f"{name}: expected a model, this is an adapter of one: merge it first")
    if packed_format(model):
        raise ConfigError(f"{name}: its weights are packed as {packed_format(model)}, and are not "
                          "trained; start from the model that they were made of")


def say_what_is_left_out(place, say):
    """Say, to who trains the model in the directory `place`, that its file asks for dropout of the
    probabilities of attention, which no model here has."""
    stored = json.loads((Path(place) / "config.json").read_text("utf-8"))
    for key in ATTENTION_DROPOUT:
        if stored.get(key):
            say(f"training without the dropout of attention's probabilities that the model asks "
                f"for ({key} {stored[key]:g}); it is not computed here")


def _batches(tokens, text, config, objective, tokenizer, length):
    """What to train on, and what to evaluate on. Raises ConfigError where the latter have nothing
    to guess."""
    made, window = [], objective.window(length)
    of_rows = {"batch": config.batch, "length": window, "apart": text.apart}
    for windows in (TrainingBatches(tokens[0], seed=config.seed, **of_rows),
                    HeldOutBatches(tokens[1], **of_rows)):
        made.append(objective.batches(windows, tokenizer, seed=config.seed, apart=text.apart))
    if not any(objective.count(made[1].batch(i)) for i in range(made[1].count)):
        raise ConfigError(f"held_out: in the {tokens[1].count:,} tokens that are held out there is "
                          f"nothing to guess in sequences of {length}: give more text, or shorter "
                          "sequences")
    return made


def _write_run(directory, verb, text, learning, trainer, corpus, also):
    arch = architecture_of(trainer.model)
    shape = asdict(trainer.model.config)
    del shape["vocabulary"]                     # it is the tokenizer's
    settings = {"arch": arch} | asdict(text) | shape | asdict(learning) | asdict(trainer.config)
    write_run(directory, verb, settings | also, trainer, corpus={
        "description": corpus.description, "documents": corpus.count, "bytes": corpus.size,
        "sha256": corpus.sha256, "skipped": corpus.skipped})
