"""`minifm prompt`: how well a model does a task that it is shown in its prompt, by the number of
solved examples there; a table and a picture."""

import json
import statistics
import sys
from dataclasses import asdict

from minifm.backends.reference.packed import FORMATS
from minifm.cli.arguments import add_fields, build
from minifm.errors import ConfigError, plural
from minifm.evaluation.prompting import PromptConfig
from minifm.picture import MISSING

RECORD, PICTURE = "prompt.json", "prompt.png"       # what --out gets

EXAMPLE = """\
example:
  minifm prompt runs/demo --task stdlib-kind --calibrate --out runs/prompt
  minifm prompt openai-community/gpt2 --task reviews.jsonl --shots 0,4,16 --normalize tokens
  minifm prompt runs/demo --task sums.jsonl --by text --template sum.txt --json
  minifm prompt runs/demo --task reviews.jsonl --shots 4 --show
"""


def arguments(parser, argv):
    parser.add_argument("model", help="a directory with config.json and model.safetensors, or a "
                                      "name on the Hugging Face hub")
    parser.add_argument("--task", nargs="+", required=True, metavar="SOURCE",
                        help="files of examples, text and label, or input and output, or question "
                             "and answer: .jsonl, .csv, .tsv; or stdlib-kind, stdlib-package, "
                             "stdlib-qa or stdlib-summarize, from the source of Python's standard "
                             "library")
    parser.add_argument("--shots", nargs="+", metavar="INT", default=["0,1,2,4,8"],
                        help="how many solved examples stand in the prompt, with commas or spaces "
                             "between (default: 0,1,2,4,8)")
    parser.add_argument("--show", action="store_true",
                        help="print one prompt with the most shots, as the model sees it, and stop")
    parser.add_argument("--format", choices=FORMATS,
                        help="pack the weights so (default: as they are stored)")
    parser.add_argument("--out", metavar="DIRECTORY", help="gets prompt.json and prompt.png")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    add_fields(parser, PromptConfig, "how the model is asked")


def run(args):
    from minifm.atomic import write_json
    from minifm.cli.evaluate import loaded
    from minifm.evaluation.prompting import asker_of, prompt_study, prompt_task
    from minifm.hub import load_model
    from minifm.tasks import describe
    from minifm.training.run import require_writable, run_directory
    counts, config = numbers(args.shots), build(PromptConfig, vars(args))
    if args.show and (args.json or args.out is not None):
        raise ConfigError(f"{'json' if args.json else 'out'}: --show prints a prompt and stops; "
                          "leave one of them out")
    directory = None if args.out is None else run_directory(args.out, ())
    if directory is not None:       # before all that takes a while
        require_writable(directory, RECORD, PICTURE)
    tokenizer, model = loaded(args, load_model)
    asker = asker_of(model, tokenizer, config)
    task = prompt_task(args.task, config, cloze=asker.cloze)
    if args.show:
        return show(task, asker, max(counts), config)
    say(f"to show    {describe(task.pool)}")
    say(f"to ask     {describe(task.asked)}")
    if task.copies:
        say(f"left out   {plural(task.copies, 'example')} to show, of which a copy is asked about")
    results = prompt_study(model, tokenizer, task, counts, config,
                           say=lambda result: say(told(result)))
    record = {"model": args.model, "task": args.task, **described(results, task, config)}
    print(json.dumps(record, indent=2, ensure_ascii=False) if args.json
          else table(results, task.baseline))
    if directory is not None:
        write_json(record, directory / RECORD)
        drawn = draw(results, task.baseline, directory / PICTURE)
        picture = f", {directory / PICTURE}" if drawn else f"; no picture: {MISSING}"
        say(f"saved as   {directory / RECORD}{picture}")
    return 0


def numbers(words):
    """Numbers of shots from words such as "0,1,2" and "4"; raises ConfigError for another."""
    found = [text for word in words for text in word.split(",") if text]
    for text in found:
        if not (text.isascii() and text.isdecimal()):
            raise ConfigError(f"shots: expected integers from 0, got {text!r}")
    if not found:
        raise ConfigError("shots: expected integers from 0, got none")
    return sorted({int(text) for text in found})


def say(line):
    """On standard error: what is said beside the result."""
    print(line, file=sys.stderr, flush=True)


def show(task, asker, count, config):
    """Print the prompt of the first example after so many shots, and about it on standard error."""
    from minifm.evaluation.prompting import prompter_of, shots_of

    def text(ids):
        return asker.tokenizer.decode(ids).decode("utf-8", "replace")

    prompt = prompter_of(task, asker, config)(
        task.form.given(task.asked[0]), shots_of(task, count, 0, config))
    print(text(prompt.ids))
    cut, context = ", its text cut" if prompt.cut else "", asker.model.config.context
    limit = f"the model's context is {context:,}" if context else "the model's context has no limit"
    say(f"minifm: {len(prompt.ids):,} tokens, {prompt.shots} of {plural(count, 'shot')}{cut}; "
        f"{limit}")
    right = repr(task.form.said(task.asked[0]))
    if task.chosen:
        answers = ", ".join(
            repr(asker.tokenizer.spelt(prompt.answer(row)).decode("utf-8", "replace"))
            for row in prompt.rows)
        where = "in its place" if asker.cloze else "behind it"
        say(f"minifm: {where} are scored {answers}; the right one is {right}")
    else:
        say(f"minifm: the model goes on; right is {right}")


# -- what is shown of a study ----------------------------------------------------------------------


def mean_and_spread(values):
    """(their mean, their standard deviation or, of one value, None)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def told(result):
    """One line about a Result."""
    first = {way: next(iter(scores.items())) for way, scores in result.scores.items()}
    parts = [f"{way} {name} {statistics.fmean(values):.3f}" for way, (name, values)
             in first.items()]
    for what, text in (("fewer shots", f"had fewer, {result.shown:.1f} on the average"),
                       ("cut", "had their text cut"), ("no label", "were answered by no label")):
        if result.facts.get(what):
            parts.append(f"{result.facts[what]:,} of {plural(result.facts['prompts'], 'prompt')} "
                         f"{text}")
    return f"{plural(result.shots, 'shot')}: {'; '.join(parts)}"


def table(results, baseline):
    """A row for each number of shots and way to answer, with the mean and ± the standard deviation
    of all draws; `shown`: how many shots a prompt had, on the average."""
    from minifm.tasks.scores import table as columns
    names = list(baseline)
    header = ("shots", "", *(name.replace("_", " ").replace("f1", "F1") for name in names), "shown")
    rows = [(str(result.shots), way, *(_cell(*mean_and_spread(scores[name])) for name in names),
             f"{result.shown:.1f}")
            for result in results for way, scores in result.scores.items()]
    rows.append(("", "majority", *(_cell(baseline[name]) for name in names), ""))
    return columns(header, rows)


def _cell(mean, spread=None):
    return f"{mean:.3f}" + ("" if spread is None else f" ± {spread:.3f}")


def described(results, task, config):
    """What the JSON says."""
    return {"settings": asdict(config), "labels": list(task.labels), "examples": len(task.asked),
            "to_show": len(task.pool), "copies_left_out": task.copies, "majority": task.baseline,
            "results": [_described(result) for result in results]}


def _described(result):
    facts = {what.replace(" ", "_"): count for what, count in result.facts.items()}
    scores = {way: {name: dict(zip(("mean", "spread"), mean_and_spread(values)), draws=values)
                    for name, values in found.items()} for way, found in result.scores.items()}
    return {"shots": result.shots, "shown": result.shown, **facts, "scores": scores}


def draw(results, baseline, path):
    """The first score against the number of shots, within a band of one standard deviation, as
    PNG; False where matplotlib is not installed."""
    from minifm.tasks.pictures import draw_learning
    name, curves, bands = next(iter(baseline)), {}, {}
    for way in results[0].scores:
        points = [(r.shots, *mean_and_spread(r.scores[way][name])) for r in results]
        curves[way] = [(shots, mean) for shots, mean, _ in points]
        bands[way] = [(shots, mean - (spread or 0), mean + (spread or 0))
                      for shots, mean, spread in points]
    return draw_learning(curves, path, xlabel="solved examples in the prompt",
                         ylabel=f"held-out {name.replace('_', ' ')}", bands=bands,
                         levels={"majority": baseline[name]})
