"""`minifm finetune`: labelled examples in, a model that has learnt their task out; of a diffusion
model (tuning.py), examples in, a model that makes such ones out."""

import math
import sys

import numpy as np

from minifm.cli.arguments import add_config, add_fields, add_run, build, part_of, settings
from minifm.errors import ConfigError
from minifm.nn import AdapterConfig
from minifm.training.config import TrainConfig

EXAMPLE = """\
example:
  minifm finetune runs/bert --data stdlib-ner --out runs/ner
  minifm finetune runs/gpt --task classify --data reviews.csv --method lora --out runs/reviews
  minifm finetune runs/t5 --task summarize --data pairs.jsonl --epochs 5 --out runs/short
  minifm finetune FacebookAI/roberta-base --task qa --data train.json --held-out-data dev.json \\
    --length 384 --out runs/squad
  minifm finetune --resume --out runs/ner
  minifm finetune runs/digits --data photographs/ --method lora --out runs/tuned
  minifm finetune runs/digits --concept sigma --data five/ --out runs/sigma
"""


def arguments(parser, argv):
    from minifm.cli import tuning
    from minifm.training.finetune import MethodConfig, TaskConfig
    parser.set_defaults(diffusion=tuning.is_meant(argv[1:]))
    if parser.get_default("diffusion"):
        return tuning.arguments(parser)
    parser.usage = "minifm finetune MODEL --out DIRECTORY --data SOURCE ... [options]"
    parser.add_argument("model", nargs="?",
                        help="the model to start from, a directory or a name on the hub; diffusion "
                             "models have settings of their own, which are shown when one stands "
                             "before --help")
    add_run(parser, "checkpoints, log, scores, pictures")
    parser.add_argument("--show-mask", action="store_true",
                        help="lm, summarize: show the first row, and which of its tokens are "
                             "learnt")
    add_config(parser)
    add_fields(parser, TaskConfig, "task")
    add_fields(parser, MethodConfig, "which weights learn")
    add_fields(parser, AdapterConfig, "adapters, for --method lora", skip=("base", "whole"))
    add_fields(parser, TrainConfig, "training (steps, batch, evaluations and learning rate follow "
                                    "from the examples and the model, unless they are said)",
               defaults=False)


def run(args):
    from minifm.backends.ceilings import flop_ceiling
    from minifm.cli import tuning
    from minifm.cli.pretrain import trained
    if args.diffusion:
        return tuning.run(args, said_in_all)
    from minifm.training.finetune import (
        MethodConfig,
        TaskConfig,
        finish,
        name_of_task,
        prepare,
    )
    kinds = (TaskConfig, MethodConfig, AdapterConfig, TrainConfig)
    said = said_in_all(args, kinds)
    if said.get("model") is None:
        raise ConfigError("model: expected a model to start from, a directory or a name on the hub")
    adapted = part_of(AdapterConfig, said)
    if adapted and said.get("method") != "lora" and not args.resume:
        raise ConfigError(f"{sorted(adapted)[0]}: only for --method lora")
    given = {"resume": args.resume, "force": args.force, "ceiling": flop_ceiling().rate}
    task = build(TaskConfig, said)
    rest = build(MethodConfig, said), part_of(TrainConfig, said), build(AdapterConfig, said)
    if task.task == "lm":
        return run_text(args, said, task, rest, given)
    if args.show_mask and (name := name_of_task(task)[0]) != "summarize":
        raise ConfigError(f"show_mask: is for lm and summarize; what {name} learns are no tokens")
    prepared = prepare(args.out, said["model"], task, *rest, **given)
    for line in summary(prepared) + (shown_mask(prepared.trainer) if args.show_mask else []):
        print(line, file=sys.stderr)
    status = trained(prepared.trainer, "finetune")
    if status == 0:
        tell(prepared, *finish(prepared))
    return status


def shown_mask(trainer):
    """A line that says what the first row is, with marks around the tokens that are learnt."""
    ids, learnt = trainer.objective.learnt(trainer.batches.batch(0))
    edges = np.flatnonzero(np.diff(learnt)) + 1
    parts = [repr(trainer.tokenizer.spelt(part).decode("utf-8", "replace"))[1:-1]
             for part in np.split(ids, edges)]
    text = "".join(f"[[{part}]]" if learnt[at] else part
                   for part, at in zip(parts, [0, *edges.tolist()]))
    return [f"learnt     {learnt.sum():,} of the first row's {len(ids):,} tokens, in [[ ]]: {text}"]


def run_text(args, said, task, rest, given):
    """Fine-tune on text without labels, as pretrain does."""
    from minifm.cli import courses, pretrain, summaries
    from minifm.training.finetune import TaskConfig, prepare_text
    from minifm.training.pretrain import TextConfig
    for name in ("held_out_data", "group", "examples", "validation", "epochs", "scheme"):
        if getattr(task, name) != getattr(TaskConfig(), name):
            raise ConfigError(f"{name}: is for labelled examples; leave it out with --task lm")
    text = TextConfig(data=task.data, length=task.length, held_out=said.get("held_out", 0.05))
    prepared = prepare_text(args.out, said["model"], text, *rest, **given)
    for line in summaries.of_text(prepared) + (
            shown_mask(prepared.trainer) if args.show_mask else []):
        print(line, file=sys.stderr)
    status = pretrain.trained(prepared.trainer, "finetune")
    if status == 0:
        pretrain.tell(prepared.trainer, courses.text())
    return status


def said_in_all(args, kinds):
    """{name: value} of flags over the file of settings over, for a run that is resumed, its own:
    what to learn and which weights do is decided when it begins (but for --force)."""
    from minifm.training import checkpoint
    from minifm.training.run import read_settings
    said = settings(args, *kinds, also={"model": str})
    if said.get("model") is None:
        said.pop("model", None)
    if not args.resume:
        return said
    stored, free = read_settings(args.out, "finetune"), part_of(TrainConfig, said)
    fixed = {name: value for name, value in said.items() if name not in free}
    if not args.force:
        checkpoint.refuse_differences(args.out, checkpoint.differences(
            {name: _plain(stored.get(name)) for name in fixed},
            {name: _plain(value) for name, value in fixed.items()}))
    return stored | said


def _plain(value):
    """As JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def summary(prepared):
    """What is going to happen, a line a part."""
    from minifm import backends
    from minifm.nn import trainable
    from minifm.tasks import describe
    trainer, config = prepared.trainer, prepared.trainer.config
    model, rows = trainer.model, trainer.batches.rows
    test, validation = prepared.test, prepared.validation
    held_out = test if test is validation else test + validation
    learning = sum(math.prod(p.shape) for p in trainable(model).values())
    facts = ", ".join(f"{what}: {count:,}" for what, count in prepared.facts.items() if count)
    new = f"; new: {', '.join(prepared.new)}" if prepared.new else ""
    after = f", resumed after step {trainer.step:,}" if trainer.step else ""
    return [f"{name:<11}{text}" for name, text in {
        "training": describe(prepared.training),
        "held out": describe(held_out),
        "rows": f"{len(rows):,} of at most {rows.length} tokens{f'; {facts}' if facts else ''}",
        "model": f"{type(model).__name__}, {model.config.parameters:,} parameters, "
                 f"{learning:,} of them learn{new}",
        "steps": f"{config.steps:,} of {config.batch} rows, "
                 f"{config.steps * config.batch / len(rows):.2f} times through them, learning rate "
                 f"{config.learning_rate:.3g}",
        "backend": backends.active().describe(),
        "run": f"{trainer.directory}{after}",
    }.items()]


def tell(prepared, scores, step):
    """Print the scores, and what to do with the model."""
    directory = prepared.trainer.directory
    chosen = "these" if prepared.test is prepared.validation else \
        f"{len(prepared.validation):,} others"
    print(f"held out: {len(prepared.test):,} examples; the best model, of step {step}, was chosen "
          f"by {chosen}")
    print(scores.table())
    pictures = [name for name in ("learning.png", "confusion.png") if (directory / name).exists()]
    print(f"\nsaved as   {directory}/best; figures in {', '.join(['scores.json', *pictures])}")
