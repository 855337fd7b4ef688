"""What pretraining is worth: the same task learnt from few labels and from many, by a pretrained
model and by one that begins with random weights, beside what is reached without a model.

    DIRECTORY/
      pretrained-50/  scratch-50/ …     runs of fine-tuning (finetune.py)
      baselines-50.json …               the baselines' scores on the same examples
      study.json                        of what model, examples and settings they are
      labels.json  labels.png           the table, and its picture

A study that is begun again keeps the runs that are finished, if they are of the same.
"""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

from minifm.atomic import write_json
from minifm.errors import ConfigError
from minifm.hub import resolve
from minifm.tasks.baselines import compare
from minifm.tasks.pictures import draw_learning
from minifm.tasks.rules import RULES
from minifm.training.finetune import MethodConfig, examples_of, finish, prepare

BEGINNINGS = {"pretrained": MethodConfig(), "scratch": MethodConfig(scratch=True)}


def study(directory, model, task, counts, config, *, say=print, shown=True):
    """{name: {count: {score: fraction}}} of a task learnt from so many labels each.

    model, task, config  as in finetune.prepare; `task` says the data, `counts` how many examples
    say                  called with a line when a number is known

    Raises ConfigError where there are fewer examples than the largest count, or runs of another
    model, of other examples or settings in the directory.
    """
    directory, counts = Path(directory), sorted(set(counts))
    kind, training, held_out = examples_of(task, config.get("seed", 0))
    if not counts or counts[0] < 2 or counts[-1] > len(training):
        raise ConfigError(f"counts: expected from 2 to the {len(training):,} examples that there "
                          f"are to train on, got {', '.join(map(str, counts)) or 'none'}")
    test = held_out[task.validation :] or held_out
    _claim(directory, {"model": str(resolve(model).resolve()), "settings": config,
                       "task": asdict(task), "examples": _digest(training + held_out)})
    found = {}
    for count in counts:
        scores = _baselines(directory / f"baselines-{count}.json", training[:count], test, task)
        for name, method in BEGINNINGS.items():
            run = directory / f"{name}-{count}"
            if not (run / "scores.json").exists():
                prepared = prepare(run, model, replace(task, examples=count), method, config,
                                   resume=(run / "last").exists(), shown=shown)
                prepared.trainer.train()
                finish(prepared)
            scores[name] = json.loads((run / "scores.json").read_text("utf-8"))["scores"]
        for name, figures in scores.items():
            found.setdefault(name, {})[count] = figures
        say(f"{count:,} labels: " + ", ".join(
            f"{name} {next(iter(figures.values())):.3f}" for name, figures in scores.items()))
    write_json({"test": len(test), "scores": found}, directory / "labels.json")
    _draw(found, directory / "labels.png")
    return found


def _claim(directory, made_of):
    """Write what the study is of, or raise ConfigError where it is of something else."""
    made_of, file = json.loads(json.dumps(made_of)), directory / "study.json"
    if file.exists():
        stored = json.loads(file.read_text("utf-8"))
        other = [name for name in made_of if stored.get(name) != made_of[name]]
        if other:
            raise ConfigError(f"{directory} holds another study (it differs in "
                              f"{' and '.join(other)}); choose another --out")
    directory.mkdir(parents=True, exist_ok=True)
    write_json(made_of, file)


def _digest(examples):
    text = json.dumps([example.record() for example in examples])
    return hashlib.sha256(text.encode()).hexdigest()


def _baselines(file, training, test, task):
    """{name: {score: fraction}}, computed once."""
    if not file.exists():
        rule = next((RULES[name] for name in task.data if name in RULES), None)
        write_json({name: scores.figures
                    for name, scores in compare(training, test, rule).items()}, file)
    return json.loads(file.read_text("utf-8"))


def _draw(found, path):
    measure = next(iter(next(iter(next(iter(found.values())).values()))))
    curves = {name: [(count, figures[measure]) for count, figures in scores.items()]
              for name, scores in found.items()}
    draw_learning(curves, path, xlabel="labelled examples to learn from",
                  ylabel=f"held-out {measure.replace('_', ' ')}", logarithmic=True)
