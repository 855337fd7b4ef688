"""From labelled examples and a pretrained model to one that has learnt their task: examples → rows
→ a head → Trainer → scores.

A run's directory is that of any run (training/checkpoint.py), with, at its end:

    runs/NAME/
      run.json        the settings
      scores.json     how well the best of its models does on the held-out examples
      learning.png    how that rose; confusion.png, for classes: what was taken for what
"""

import math
import os
from dataclasses import asdict, dataclass, replace

from minifm.atomic import write_json
from minifm.config import check, setting
from minifm.errors import ConfigError
from minifm.hub import load_model, resolve, tokenizer_of
from minifm.models import pack_model
from minifm.models.heads import Headed, new_parameters
from minifm.nn import AdapterConfig, add_adapters, freeze_layers, train_only
from minifm.rng import Rng
from minifm.tasks import read, sides, stdlib
from minifm.tasks.batches import HeldOutTaskBatches, TaskBatches
from minifm.tasks.examples import HELD_OUT, check_sides
from minifm.tasks.pictures import draw_confusion, draw_learning
from minifm.tasks.scores import ClassScores
from minifm.text import Tokenizer
from minifm.training import pretrain
from minifm.training.config import TrainConfig, row_length
from minifm.training.labelled import TASKS
from minifm.training.pretrain import require_plain_weights, say_what_is_left_out
from minifm.training.run import (
    newest_checkpoint,
    require_writable,
    run_directory,
    say_on_stderr,
    write_run,
)
from minifm.training.trainer import Trainer

METHODS = ("full", "lora", "head")
EVALUATIONS = 20        # at most so many in a run, where the user does not say
FEWEST_STEPS = 300      # of a run, where the user does not say


@dataclass(frozen=True)
class TaskConfig:
    """What is to be learnt, and from what."""

    task: str | None = setting(
        None, f"one of {', '.join(TASKS)}, or lm: go on learning from text without labels "
        "(default: that of a built-in stdlib- task)", choices=(None, *TASKS, "lm"))
    data: tuple[str, ...] = setting(
        (), "labelled examples: .jsonl, .csv, .tsv, .conll, SQuAD's .json; or one of "
        f"{', '.join(stdlib.DATASETS)}, from the source of Python's standard library")
    held_out_data: tuple[str, ...] = setting(
        (), "examples to evaluate on (default: a part of --data)")
    held_out: float | None = setting(
        None, f"the part of the groups of examples that is held out, where there is no "
              f"--held-out-data (default: {HELD_OUT})", above=0, below=1)
    group: str | None = setting(None, "the field of examples that names what must not be on both "
                                "sides, such as a document (default: each text)")
    scheme: str = setting("iob2", "how CoNLL files mark where an entity begins: iob2 or iob1",
                          choices=("iob2", "iob1"))
    examples: int = setting(0, "train on so many examples, chosen by the seed; 0: on all", least=0)
    validation: int = setting(400, "held-out examples by which the best of a run's models is "
                              "chosen; it is scored on the others, if there are any", least=1)
    length: int | None = setting(None, "tokens of a row (default: the model's context, 512 for a "
                                 "model without one)", least=1)
    epochs: float | None = setting(
        None, f"times through the examples (default: 3, or as many as make {FEWEST_STEPS} steps)",
        above=0)

    def __post_init__(self):
        check(self)
        check_sides(self)


@dataclass(frozen=True)
class MethodConfig:
    """Which weights learn."""

    method: str = setting("full", "full: all weights; lora: adapters beside frozen weights, and "
                          "the head; head: the head alone", choices=METHODS)
    freeze: int = setting(0, "full: leave the embeddings and so many blocks as they are; 0: none",
                          least=0)
    format: str | None = setting(None, "lora: keep the frozen weights packed as int8, int4 or bf16 "
                                 "(QLoRA)", choices=(None, "bf16", "int8", "int4"))
    scratch: bool = setting(False, "full: begin with random weights of the model's shape, to see "
                            "what pretraining is worth")

    def __post_init__(self):
        check(self)
        for name, method in (("freeze", "full"), ("scratch", "full"), ("format", "lora")):
            if getattr(self, name) and self.method != method:
                raise ConfigError(f"{name}: only for method {method}, got {self.method}")


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to train, and what it is made of.

    task        one of labelled.TASKS
    training    examples
    validation  held-out examples by which the best model is chosen
    test        those on which it is scored; the same ones where there are no others
    facts       what had to be done to make rows of those to train on
    new         the names of the parameters that the model to start from does not have
    """

    trainer: Trainer
    task: object
    training: list
    validation: list
    test: list
    facts: dict
    new: list

    def scores(self, examples):
        """How well what the model says of the examples agrees with their labels."""
        trainer = self.trainer
        rows = self.task.rows(trainer.model, examples, trainer.tokenizer,
                              trainer.batches.rows.length)
        with trainer.judged():
            answers = self.task.answers(trainer.model, rows, trainer.tokenizer,
                                        trainer.config.batch)
        return self.task.scores(examples, answers)


def prepare(directory, model, task, method=MethodConfig(), config=(), adapter=AdapterConfig(), *,
            resume=False, force=False, ceiling=None, shown=True):
    """The run in `directory`, new or (`resume`) taken up at its newest checkpoint.

    model    a model's directory, or its name on the hub
    task     a TaskConfig
    method   a MethodConfig
    config   {setting of TrainConfig: value}; what it leaves out is chosen for fine-tuning (`tuned`)
    adapter  an AdapterConfig, for the method lora

    Raises ConfigError or FormatError before anything is written.
    """
    say = say_on_stderr if shown else lambda line: None
    directory, place = run_directory(directory, task.data), resolve(model)
    newest_checkpoint(directory, resume)
    require_writable(directory)
    say("reading the examples")
    seed = dict(config).get("seed", 0)
    kind, training, held_out = examples_of(task, seed)
    tokenizer, begun = Tokenizer.load(tokenizer_of(place)), load_model(place)
    require_plain_weights(begun, model)
    say_what_is_left_out(place, say)
    labelled = training if task.held_out_data else training + held_out
    learner, new = learner_of(begun, kind, labelled, tokenizer, method, replace(
        adapter, base=name_of_base(model, place)), Rng(seed).child("fine-tuning"))
    training, seen = training[: task.examples or None], held_out[: task.validation]
    length = row_length(task.length, learner.config)
    rows, measured = (kind.rows(learner, part, tokenizer, length) for part in (training, seen))
    config = tuned(dict(config), task, method, learner, len(rows))

    def measure(model):
        return kind.scores(seen, kind.answers(model, measured, tokenizer, config.batch)).figures

    say("measuring the memory that a step takes")
    trainer = Trainer(
        learner, TaskBatches(rows, batch=config.batch, seed=config.seed), config,
        directory=directory, objective=kind.objective(learner, config.recompute),
        held_out=HeldOutTaskBatches(measured, batch=config.batch), tokenizer=tokenizer,
        measure=measure, shown=shown, ceiling=ceiling)
    if resume:
        trainer.resume(force=force)
    write_run(directory, "finetune", asdict(task) | asdict(config)
              | chosen(model, method, adapter), trainer)
    return Prepared(trainer, kind, training, seen, held_out[task.validation :] or seen,
                    rows.facts, new)


def prepare_text(directory, model, text, method, config, adapter=AdapterConfig(), *,
                 resume=False, force=False, ceiling=None, shown=True):
    """The same for unlabelled text, the task "lm": a pretraining run (training/pretrain.py) that
    starts from `model` and in which only those weights learn that `method` says.

    text     a pretrain.TextConfig
    config   {setting of TrainConfig: value}; learning_rate 3e-4 (full) or 1e-3 unless it is said
    """
    if method.scratch or method.method == "head":
        raise ConfigError("method: text without labels has no head of its own, and pretrain begins "
                          "with random weights; expected full or lora")
    seed = dict(config).get("seed", 0)
    place = resolve(model)
    adapter = replace(adapter, base=name_of_base(model, place))

    def adapt(begun):
        choose_weights(begun, method, adapter, Rng(seed).child("fine-tuning", "adapters"))

    config = TrainConfig(**{"learning_rate": 3e-4 if method.method == "full" else 1e-3}
                         | dict(config))
    return pretrain.prepare(
        directory, text, {}, config, initial=place, adapt=adapt, verb="finetune",
        also={"task": "lm"} | chosen(model, method, adapter), resume=resume, force=force,
        ceiling=ceiling, shown=shown)


def finish(prepared):
    """Score the best of the run's models on the test examples, and write scores.json and the
    pictures. Returns the scores, and the step at which that model was."""
    trainer, directory = prepared.trainer, prepared.trainer.directory
    step = trainer.take_best()
    scores = prepared.scores(prepared.test)
    write_json({
        "step": step, "training": len(prepared.training), "validation": len(prepared.validation),
        "test": len(prepared.test), "scores": scores.figures}, directory / "scores.json")
    curves = {name: [(line["step"], line["scores"][name]) for line in trainer.metrics.read()
                     if "scores" in line] for name in scores.figures}
    if any(curves.values()):
        draw_learning(curves, directory / "learning.png")
    if isinstance(scores, ClassScores):
        draw_confusion(scores, directory / "confusion.png")
    return scores, step


# -- what is learnt from ---------------------------------------------------------------------------


def examples_of(task, seed):
    """(the Task, examples to train on, examples held out), both in an order that the seed shuffles.

    Raises ConfigError, or FormatError with file and line.
    """
    name, built = name_of_task(task)
    if name != "ner" and task.scheme != TaskConfig.scheme:
        raise ConfigError(f"scheme: only for ner, not for {name}; leave it out")
    examples = stdlib.build([built])[built] if built else \
        _read_all(task.data, TASKS[name].example, task)
    held_out = _read_all(task.held_out_data, TASKS[name].example, task) or None
    training, held_out = sides(examples, held_out, fraction=task.held_out, seed=seed)
    if task.examples > len(training):
        raise ConfigError(f"examples: expected at most the {len(training):,} that there are to "
                          f"train on, got {task.examples:,}")
    return TASKS[name], training, held_out


def name_of_task(task):
    """(its name in TASKS, the name of the built-in examples or None); raises ConfigError."""
    built = stdlib.named_in(task.data, "data")
    if not built:
        if task.task is None:
            raise ConfigError(f"task: expected one of {', '.join(TASKS)}")
        return task.task, None
    name = next(name for name, kind in TASKS.items()
                if kind.example is stdlib.DATASETS[built].kind)
    if task.task not in (None, name):
        raise ConfigError(f"task: {built} is for {name}, not for {task.task}")
    return name, built


def _read_all(files, example, task):
    return [found for file in files
            for found in read(file, example, group=task.group, scheme=task.scheme)]


# -- which weights learn ---------------------------------------------------------------------------


def learner_of(begun, task, labelled, tokenizer, method, adapter, rng):
    """(the model that learns, the names of its parameters that `begun`, the model to start from,
    does not have): with a head for the labels of all examples, `labelled`, and of its weights only
    those free that learn. Raises ConfigError."""
    if method.scratch:
        begun = type(begun)(begun.config, rng.child("model"))
    learner = task.model(begun, labelled, tokenizer, rng.child("head"))
    new = new_parameters(learner, begun)
    choose_weights(learner, method, adapter, rng.child("adapters"), head_parts(learner, new))
    return learner, new


def head_parts(learner, new):
    """The names of the modules that a head is made of, and of those that are new with it."""
    parts = {name.rpartition(".")[0] for name in new}
    if isinstance(learner, Headed):
        parts |= {"output", "dense"} if learner.dense else {"output"}
    return tuple(sorted(parts))


def choose_weights(model, method, adapter, rng, head=()):
    """Freeze what does not learn by `method`, and give the model adapters, for lora. `head`: the
    names of modules that learn in any case."""
    if method.method == "head":
        if not head:
            raise ConfigError("method: this task has no head of its own; expected full or lora")
        train_only(model, head)
    elif method.method == "lora":
        add_adapters(model, replace(adapter, whole=head), rng=rng)
        if method.format is not None:
            pack_model(model, method.format)
    elif method.freeze:
        freeze_layers(model, method.freeze)


def name_of_base(model, place):
    """What an adapter calls the model that it is of: a name on the hub, or the directory `place`
    of a model here, whatever a run's `last` will be by then."""
    return str(place.resolve()) if os.path.isdir(os.path.expanduser(model)) else str(model)


def chosen(model, method, adapter):
    """What run.json says of the beginning, and of which weights learn."""
    own = {key: value for key, value in asdict(adapter).items() if key not in ("base", "whole")}
    return {"model": str(model)} | asdict(method) | own


def learning_rate(method, width):
    """5e-4 for a model 128 wide, and less the wider it is; 1e-3 where the pretrained weights stay
    as they are."""
    return min(0.064 / width, 1e-3) if method.method == "full" else 1e-3


def tuned(said, task, method, model, rows):
    """The TrainConfig of what the user said; for the rest: as many steps as the epochs have, and a
    held-out evaluation after each epoch but at most EVALUATIONS."""
    batch = said.get("batch", 16)
    steps = math.ceil((task.epochs or 3) * rows / batch)
    steps = said.get("steps", steps if task.epochs else max(steps, FEWEST_STEPS))
    width = getattr(model.config, "body", model.config).width
    chosen = {
        "batch": batch, "steps": steps, "weight_decay": 0.01, "save_every": 0,
        "learning_rate": learning_rate(method, width),
        "evaluate_batches": 10**9,
        "evaluate_every": max(math.ceil(rows / batch), math.ceil(steps / EVALUATIONS), 1)}
    return TrainConfig(**chosen | said)
