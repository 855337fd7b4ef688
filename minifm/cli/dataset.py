"""`minifm dataset`: tasks with exact labels, and what is reached on them without a model."""

EXAMPLE = """\
example:
  minifm dataset stdlib-ner --out data
  minifm dataset --out data --no-baselines
"""


def arguments(parser, argv):
    from minifm.tasks.stdlib import DATASETS
    parser.add_argument("tasks", nargs="*", metavar="TASK",
                        help=f"{', '.join(DATASETS)}: from the source of Python's standard "
                             "library (default: all)")
    parser.add_argument("--out", required=True, metavar="DIR",
                        help="gets a directory for each task, which must not exist, with "
                             "train.jsonl and held-out.jsonl")
    parser.add_argument("--held-out", type=float, default=0.2, metavar="FLOAT",
                        help="the part of the modules that is held out (default: 0.2)")
    parser.add_argument("--seed", type=int, default=0, metavar="INT",
                        help="decides which modules are held out (default: 0)")
    parser.add_argument("--no-baselines", action="store_true",
                        help="write the examples only, without learning from them")


def run(args):
    from pathlib import Path

    from minifm.atomic import atomic_directory
    from minifm.tasks import describe, split, stdlib, write
    from minifm.tasks.baselines import compare
    from minifm.tasks.rules import RULES
    names = list(dict.fromkeys(args.tasks)) or list(stdlib.DATASETS)
    for name, examples in stdlib.build(names).items():
        parts = dict(zip(("train", "held-out"), split(examples, args.held_out, args.seed)))
        with atomic_directory(Path(args.out) / name) as aside:
            for part, found in parts.items():
                write(found, aside / f"{part}.jsonl")
        print(f"{name}: {Path(args.out) / name}")
        for part, found in parts.items():
            print(f"  {part:<9} {describe(found)}")
        if not args.no_baselines:
            scores = compare(parts["train"], parts["held-out"], RULES[name])
            print(_indented(baselines_table(scores)))
        print(flush=True)


def baselines_table(scores):
    """One row for each baseline, one column for each of its figures."""
    from minifm.tasks.scores import table
    figures = {name: found.figures for name, found in scores.items()}
    columns = list(next(iter(figures.values())))
    return table(("held out", *columns),
                 [(name, *map(found.get, columns)) for name, found in figures.items()])


def _indented(text):
    return "\n".join(f"  {line}" for line in text.splitlines())
