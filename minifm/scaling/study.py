"""A study of scaling: the cells of a grid are trained one after the other, and what they reach is
kept.

    runs/NAME/
      study.json        the settings, the grid, and the text's digests
      tokenizer/        learnt once, for all cells
      tokens/           the text as token ids (text/shards.py)
      cells/width-…/    the run of the cell at hand (training/checkpoint.py); of a finished one
                        only its log is left
      results.jsonl     one line for each finished cell
      scaling.png

It may be killed at any moment: a finished cell has its line, and the one at hand goes on from its
checkpoint, bitwise as if it had never stopped.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import minifm
from minifm import backends
from minifm.atomic import atomic_directory, exclusive, write_json
from minifm.errors import ConfigError, FormatError
from minifm.models import GPT
from minifm.rng import Rng
from minifm.scaling.grid import Cell, StudyConfig, grid, shape
from minifm.text import Tokenizer, shards
from minifm.text.corpus import Corpus
from minifm.text.packing import HeldOutBatches, TrainingBatches
from minifm.training import checkpoint, memory
from minifm.training.config import TrainConfig
from minifm.training.objectives import CausalLanguageModel
from minifm.training.pretrain import TextConfig, choose_tokenizer
from minifm.training.report import Metrics, seconds_of
from minifm.training.timing import measured_step
from minifm.training.trainer import Trainer

FORMAT = 1
BETWEEN_SAVES = 20          # seconds
NUMBERS = ("budget", "parameters", "tokens", "flops", "loss", "seconds")    # of a result


@dataclass(frozen=True)
class Study:
    """A grid, the text that its cells learn from, and the directory that it all lies in."""

    directory: Path
    config: StudyConfig
    cells: list
    left_out: dict
    tokenizer: Tokenizer
    training: shards.Tokens
    held_out: shards.Tokens

    @property
    def results(self):
        return Metrics(self.directory / "results.jsonl")

    def rows(self):
        """The results of the finished cells, as dictionaries; FormatError for a damaged file."""
        rows = self.results.read()
        for row in rows:
            for key in NUMBERS:
                if not isinstance(row.get(key), (int, float)) or not row[key] > 0:
                    raise FormatError(self.results.path, key, f"expected a number above 0 in the "
                                      f"line of {row.get('cell')!r}, got {row.get(key)!r}")
        return rows

    def remaining(self):
        """The cells that have no result yet."""
        done = {row["cell"] for row in self.rows()}
        return [cell for cell in self.cells if cell.name not in done]

    def run(self, say=lambda line: None):
        """Train what remains; `say` hears a line for each cell. Raises Interrupted after SIGINT or
        SIGTERM, when the cell at hand has been saved."""
        with exclusive(self.directory):
            rows = self.rows()
            self.results.rewind(max((row["step"] for row in rows), default=0), rows)
            for cell in self.remaining():
                row = self.train(cell)
                self.results.append(row)
                self.results.sync()
                self.clear(cell)
                say(f"{len(self.rows()):>3} of {len(self.cells)}  {cell.name:<24}"
                    f"{row['loss']:.4f} nats a token after {row['tokens']:,} tokens "
                    f"({row['seconds']:.1f} s)")
        for cell in self.cells:
            self.clear(cell)                # should a kill have come between line and clearing

    def train(self, cell):
        """The result of one cell, trained from where its directory says."""
        trainer = self.trainer(cell)
        if checkpoint.steps_in(trainer.directory):
            trainer.resume()
        trainer.train()
        found, model = trainer.evaluate(), trainer.model.config
        return {"step": cell.steps, "cell": cell.name, "width": cell.width,
                "layers": model.layers, "heads": model.heads, "parameters": cell.parameters,
                "budget": cell.budget, "tokens": trainer.tokens, "flops": cell.flops,
                "learning_rate": cell.learning_rate, "loss": found["held_out_loss"],
                "bits_per_byte": found["bits_per_byte"],
                "seconds": seconds_of(trainer.metrics.read())}

    def trainer(self, cell):
        """The Trainer of a cell. All read the same text in the same order, as far as they get."""
        config = self.config
        steps_between_saves = max(1, round(BETWEEN_SAVES * cell.steps / cell.seconds))
        data = {"batch": config.batch, "length": config.length}
        return Trainer(
            GPT(shape(cell.width, config), Rng(config.seed).child("model")),
            TrainingBatches(self.training, seed=config.seed, **data),
            TrainConfig(steps=cell.steps, batch=config.batch, seed=config.seed,
                        learning_rate=cell.learning_rate, evaluate_every=0,
                        evaluate_batches=config.evaluate_batches, save_every=steps_between_saves,
                        log_every=max(1, cell.steps // 100)),
            directory=self.directory / "cells" / cell.name, tokenizer=self.tokenizer,
            lengths=self.held_out.token_lengths(self.tokenizer),
            held_out=HeldOutBatches(self.held_out, **data), shown=False, draw=False,
            check_memory=False)

    def clear(self, cell):
        """Delete the checkpoints of a finished cell, which nothing needs any more."""
        directory = self.directory / "cells" / cell.name
        checkpoint.prune(directory, keep=0, best=None)
        (directory / "last").unlink(missing_ok=True)


# -- beginning and going on ----------------------------------------------------------------------


def begin(directory, text, config, *, say=lambda line: None, seconds_of_a_step=None):
    """A new Study in `directory`; nothing is trained yet.

    text     a TextConfig; its vocabulary and length are those of `config`, a StudyConfig
    seconds_of_a_step  (GPTConfig) -> seconds of an update (default: measured here)

    Raises ConfigError where the directory holds a study, or no grid fits the text and the time.
    """
    directory = _free(directory)
    corpus = Corpus(text.data, pattern=text.pattern, separator=text.separator)
    say(f"reading {corpus.description} …")
    parts = corpus.split(text.held_out, config.seed)
    text = replace(text, vocabulary=config.vocabulary, length=config.length)
    tokenizer = choose_tokenizer(text, parts[0], None, CausalLanguageModel(),
                                 lambda line: say(f"{line} …"))
    config = replace(config, vocabulary=tokenizer.vocabulary)
    say("turning it into tokens …")
    training, held_out = (shards.store(part, tokenizer, directory / "tokens") for part in parts)
    say("timing a step of each size …")
    found = grid(config, training.count, seconds_of_a_step or (
        lambda model: measured_step(model, config.batch, config.length)))
    memory.require_parameters(max(cell.parameters for cell in found.cells), TrainConfig())
    if not (directory / "tokenizer").exists():
        with atomic_directory(directory / "tokenizer") as aside:
            tokenizer.save(aside)
    study = Study(directory, config, *found, tokenizer, training, held_out)
    _write(study, text)
    return study


def take_up(directory):
    """The Study in `directory`, as it was begun. Raises ConfigError where there is none or where
    its text has changed, FormatError for a damaged file."""
    directory = Path(os.path.expanduser(directory))
    stored = _read(directory / "study.json")
    text, config = TextConfig(**stored["text"]), StudyConfig(**stored["study"])
    corpus = Corpus(text.data, pattern=text.pattern, separator=text.separator)
    tokenizer = Tokenizer.load(directory / "tokenizer")
    parts = [shards.store(part, tokenizer, directory / "tokens")
             for part in corpus.split(text.held_out, config.seed)]
    if stored["data"] != _data(*parts):
        raise ConfigError(f"{directory}: the text is not that of the study any more; give back "
                          "what it was, or begin another study")
    return Study(directory, config, [Cell(**cell) for cell in stored["cells"]],
                 stored["left_out"], tokenizer, *parts)


def _free(directory):
    if not os.fspath(directory):
        raise ConfigError("out: expected a directory, got an empty name")
    directory = Path(os.path.expanduser(directory))
    if (directory / "study.json").exists():
        raise ConfigError(f"{directory} already holds a study: go on with it by --resume, or "
                          "choose another --out")
    if os.path.lexists(directory) and not os.path.isdir(directory):
        raise ConfigError(f"{directory}: expected a directory, or a name that is free")
    return directory


def _data(training, held_out):
    return {"training": training.description, "held_out": held_out.description}


def _write(study, text):
    stored = {
        "format": FORMAT, "study": asdict(study.config), "text": asdict(text),
        "data": _data(study.training, study.held_out),
        "cells": [cell._asdict() for cell in study.cells], "left_out": study.left_out,
        "minifm": minifm.__version__, "backend": backends.active().describe(),
    }
    write_json(stored, study.directory / "study.json")


def _read(file):
    if not file.exists():
        raise ConfigError(f"{file.parent}: there is no study to go on with (no study.json)")
    try:
        stored = json.loads(file.read_text("utf-8"))
        if stored["format"] != FORMAT:
            raise ValueError(f"its format is {stored['format']}, this version reads {FORMAT}")
        for key in ("text", "study", "data", "left_out"):
            stored[key].items()
        [Cell(**cell) for cell in stored["cells"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(file, None, f"no study can be read: {error!r}") from error
    return stored
